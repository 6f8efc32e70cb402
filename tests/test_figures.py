"""Pictures show the values that they are given, and every word lies inside the picture."""

import io
import itertools
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from small import estimate_entry, image_report, interval, reading

from mirigor_jax.history import TrainingHistory
from mirigor_jax.metrics import METRICS, picture
from mirigor_jax.mi.results import Curve
from mirigor_jax.runs import figures
from mirigor_jax.runs.schema import Fit, History, ImageReport, Truth

CASES = {
    "certified": {},
    "channel": {"true": 3.3, "paper": 3.34, "strict": 3.28, "value": 3.29, "lower": 2.97, "upper": 3.3,
                "verdict": "bounded"},
    "none": {"entropy": 0.0, "true": 0.0, "paper": 0.01, "strict": -0.0004, "value": 0.0, "lower": 0.0, "upper": 0.0,
             "certificate": None},
    "k-limited": {"strict": 5.8, "value": 5.7, "lower": 5.6, "certificate": "infonce", "verdict": "k-limited"},
    "no upper end": {"entropy": None, "true": None, "upper": None, "certificate": "infonce", "verdict": "bounded"},
    "no ends": {"lower": None, "upper": None, "certificate": None, "verdict": "not-a-bound"},
}  # fmt: skip


def make_report(
    *,
    entropy=6.0,
    true=6.0,
    paper=6.0008,
    strict=5.971,
    value=5.984,
    lower=5.962,
    upper=6.0,
    certificate="posterior",
    verdict="certified",
) -> ImageReport:
    info_nce = {
        256: reading(strict - 0.15, ceiling_bits=8.0, max_bits=strict - 0.13),
        2048: reading(strict, 4, ceiling_bits=11.0, interval=interval(strict - 0.012, strict + 0.01)),
    }
    nt_xent = {
        256: reading(paper, 1, ceiling_bits=8.997179),
        2048: reading(paper - 0.001, 1, ceiling_bits=11.999648),
    }
    estimate = estimate_entry(
        nt_xent_bits=paper, info_nce_bits=strict, lower_bits=lower, upper_bits=upper, verdict=verdict,
        value_bits=value, interval=interval(value - 0.005, value + 0.007), certificate=certificate,
        curve={"info_nce_symmetric": Curve("InfoNCE", "lower bound", 2048, info_nce),
               "nt_xent": Curve("NT-Xent estimate", "not a bound", 256, nt_xent)},
        fit=Fit(200, 100, 512, History((0, 100, 200), (0.1, 5.0, 5.9), (None, 5.1, 5.0))),
    )  # fmt: skip
    in_training = replace(image_report().in_training, mi_bits=1.583, ceiling_bits=1.585, k=2)
    return image_report(estimates={"all": estimate}, truth=Truth(entropy, true), in_training=in_training)


def with_more_estimators(report: ImageReport) -> ImageReport:
    """The estimate with two more estimators beside the NT-Xent estimate."""
    curve = report.estimate.curve
    more = {name: replace(curve["nt_xent"], heading=name) for name in ("one-sided InfoNCE", "smile")}
    return replace(report, estimate=replace(report.estimate, curve=curve | more))


def draw_bars(report: ImageReport):
    return figures.bars(report.truth, report.in_training, report.estimate)


def draw_training(n=300, true_bits=3.3):
    rng = np.random.default_rng(0)
    steps, mi_bits = 10 * np.arange(1, n + 1), rng.normal(3, 0.2, n)
    loss_nats = (6.989 - mi_bits) * np.log(2)
    figure = TrainingHistory(64, steps, loss_nats, mi_bits).figure(entropy_bits=6.0, true_bits=true_bits)
    return figure, steps, loss_nats, mi_bits


def draw_pairs(n=12, place="upper left"):
    x, y = np.random.default_rng(1).integers(0, 256, (2, n, 32, 32, 3), dtype=np.uint8)
    captions = [[f"{name}, {i}, {place}" for i in range(n)] for name in ("Magenta", "White")]
    return figures.pair_sheet(x, y, *captions, shared=["digit", "position"]), x, y


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def by_label(ax) -> dict:
    handles, labels = ax.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def whiskers(ax) -> np.ndarray:
    """(x, lower, upper) of every drawn error bar."""
    drawn = [bars.lines[2][0].get_segments() for bars in ax.containers if hasattr(bars, "has_yerr")]
    return np.array([(*segment[0], segment[1][1]) for segments in drawn for segment in segments if len(segment)])


DRAWN = {  # name: a function that draws it
    "pairs": lambda: draw_pairs()[0],
    "one pair": lambda: draw_pairs(1)[0],
    "long captions": lambda: draw_pairs(place="row 3 column 4")[0],
    "training": lambda: draw_training()[0],
    "metrics": lambda: picture.evaluation(dict.fromkeys(METRICS, 0.123)),
    "linear": lambda: figures.linear({"color": 1.0, "all": 0.5}, {"color": 0.25, "all": 1 / 64}),
    "hardest": lambda: figures.hardest({"few": [(draw_pairs()[1][0], "Green, 3 → White, 3\n-1.25 bits")] * 7}),
    "bars, more estimators": lambda: draw_bars(with_more_estimators(make_report())),
    **{f"bars, {name}": lambda case=case: draw_bars(make_report(**case)) for name, case in CASES.items()},
    **{
        f"critic, {name}": lambda case=case: figures.critic(make_report(**case).estimate)
        for name, case in CASES.items()
    },
}


def visible_words(figure) -> list[Text]:
    """Every text that is visible; matplotlib also keeps labels of ticks beyond an axis's limits."""
    hidden = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            hidden |= {label for place, label in labels if not (ax.axison and low <= place <= high)}
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text not in hidden]


@pytest.mark.parametrize("name", DRAWN)
def test_words_are_inside_the_picture_and_apart(name):
    figure = DRAWN[name]()
    figure.draw_without_rendering()
    boxes = {text: text.get_window_extent() for text in visible_words(figure)}
    assert len(boxes) > 2
    for text, box in boxes.items():
        assert figure.bbox.containsx(box.x0), text
        assert figure.bbox.containsx(box.x1), text
        assert figure.bbox.containsy(box.y0), text
        assert figure.bbox.containsy(box.y1), text
    for text, other in itertools.combinations(boxes, 2):
        assert not boxes[text].overlaps(boxes[other]), (text, other)


def test_pyplot_is_never_touched():
    program = (
        "import sys; from mirigor_jax.runs import figures; figures.linear({'a': 0.5}, {'a': 0.1}).savefig(sys.argv[1]);"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, "/dev/null"], check=False).returncode == 0


def test_the_geometry_stands_in_the_order_of_its_legend_around_each_tick():
    values = {"class": (0.1, -3.0, 0.8), "augmentation": (0.2, -2.0, 0.7)}
    names = ("alignment", "uniformity", "tolerance")
    results = {f"{key}_{name}": one for key in values for name, one in zip(names, values[key], strict=True)}
    [right] = picture.evaluation(results).axes
    handles, labels = right.get_legend_handles_labels()
    assert labels == ["T_class", "T_SimCLR"]
    for bars, heights, beside in zip(handles, values.values(), (-0.2, 0.2), strict=True):
        assert [bar.get_height() for bar in bars] == list(heights)
        centers = [bar.get_x() + bar.get_width() / 2 for bar in bars]
        np.testing.assert_allclose(centers, right.get_xticks() + beside)


def test_pair_sheet_shows_each_view_over_its_caption():
    figure, x, y = draw_pairs()
    figure.draw_without_rendering()
    assert "Positive pairs; the two views share: digit, position" in texts(figure)
    assert len(figure.axes) == 24
    place = {}
    for ax in figure.axes:
        caption = ax.texts[0].get_text()
        name, index, _ = caption.split(", ")
        views = x if name == "Magenta" else y
        np.testing.assert_array_equal(ax.images[0].get_array(), views[int(index)])
        place[name, int(index)] = box = ax.get_position()
        assert ax.texts[0].get_window_extent().y1 <= ax.get_window_extent().y0
        assert box.width * 9.6 == pytest.approx(box.height * figure.get_figheight(), rel=0.01)
    for i in range(12):
        left, right = place["Magenta", i], place["White", i]
        assert left.y0 == pytest.approx(right.y0)
        assert 0 < right.x0 - left.x1 < 0.02  # closer than to the next pair
        if i % 3:
            assert left.x0 - place["White", i - 1].x1 > 0.02


def test_training_draws_the_values_their_mean_and_the_references():
    figure, steps, loss_nats, mi_bits = draw_training()
    loss, mi = figure.axes
    for ax, values in ((loss, loss_nats), (mi, mi_bits)):
        raw, mean = ax.lines[:2]
        np.testing.assert_array_equal(raw.get_xydata(), np.stack([steps, values], 1))
        expected = [(np.mean(steps[i : i + 15]), np.mean(values[i : i + 15])) for i in range(300 - 14)]
        np.testing.assert_allclose(mean.get_xydata(), expected)
    levels = {label: line.get_ydata()[0] for label, line in list(by_label(mi).items())[2:]}
    assert levels == {
        "ceiling log₂(2K−1) = 6.989 bits": np.log2(127),
        "H(C) = 6.000 bits": 6.0,
        "true MI = 3.300 bits": 3.3,
    }
    assert not any("true" in text for text in texts(draw_training(true_bits=6.0)[0]))
    assert len(draw_training(n=1)[0].axes[1].lines[1].get_xdata()) == 1


def test_bars_are_the_numbers():
    figure = draw_bars(make_report())
    whole, close = figure.axes
    tops = [(bar.get_y(), bar.get_y() + bar.get_height()) for container in whole.containers[:3] for bar in container]
    heights = [6.0, 1.583, 6.0008, 5.971, 5.984]
    assert tops == [*((0, height) for height in heights), (0, 5.962), (5.962, pytest.approx(6.0))]
    np.testing.assert_allclose(whiskers(whole), [(3, 5.959, 5.981), (4, 5.979, 5.991)])
    np.testing.assert_allclose(whiskers(close), whiskers(whole))
    np.testing.assert_allclose(close.collections[0].get_offsets(), list(enumerate(heights)))
    values = {text.get_text(): text.xy for text in whole.texts}
    assert values == {
        "6.000": (0, 6.0), "1.583": (1, 1.583), "6.001": (2, 6.0008), "5.971": (3, 5.981), "5.984": (4, 5.991),
        "5.962 – 6.000": (5, 6.0),
    }  # fmt: skip
    ticks = [label.get_text() for label in whole.get_xticklabels()]
    assert ticks[1:] == [
        "in-training\nK = 2",
        "NT-Xent estimate\nK = 256",
        "InfoNCE\nK = 2048",
        "estimate,\nposterior",
        "certified\nat 95 %",
    ]
    (ceiling,) = by_label(whole)["ceiling log₂(2K−1) = 1.585 bits"].get_segments()
    np.testing.assert_allclose(ceiling, [(0.6, 1.585), (1.4, 1.585)])
    # close up: the post-training columns, every end in sight, in-training and H(C) not
    assert 1 < close.get_xlim()[0] < 2
    low, high = close.get_ylim()
    assert 5.9 < low < 5.959
    assert 6.0008 < high < 6.05


def test_no_two_columns_of_a_picture_have_one_color():
    """A quantity has one color in all pictures. Both parts of the certified interval are in the last column."""
    columns, certified, possible = draw_bars(make_report()).axes[0].containers[:3]
    assert len({bar.get_facecolor() for bar in (*columns, *certified)}) == 6
    assert possible[0].get_edgecolor() == certified[0].get_facecolor()


@pytest.mark.parametrize(
    ("case", "written"),
    [
        ("channel", "2.970 – 3.300"),
        ("none", "0.000 – 0.000"),
        ("k-limited", "5.600 – 6.000"),
        ("no upper end", "≥ 5.962"),
    ],
)
def test_bars_write_what_is_known_of_the_interval(case, written):
    figure = draw_bars(make_report(**CASES[case]))
    result = texts(figure)
    assert written in result
    assert "-0.000" not in result
    assert ("true MI = 3.300 bits" in result) == (case == "channel")


@pytest.mark.parametrize("case", CASES)
def test_bars_without_a_certificate_have_none_of_its_value(case):
    """If the views are independent, or nothing is certified, InfoNCE is the estimate."""
    report = make_report(**CASES[case])
    whole, _ = draw_bars(report).axes
    ticks = [label.get_text() for label in whole.get_xticklabels()]
    certificate, lower = report.estimate.certificate, report.estimate.lower_bits
    assert (f"estimate,\n{certificate}" in ticks) == (certificate is not None)
    assert any("estimate," in tick for tick in ticks) == (certificate is not None)
    assert len(whiskers(whole)) == (1 if certificate is None else 2)
    assert ("no certificate" in ticks[-1]) == (lower is None)


def test_bars_without_training_or_truth():
    whole, _ = draw_bars(replace(make_report(true=None, entropy=None), in_training=None)).axes
    assert [bar.get_height() for bar in whole.containers[0]] == [6.0008, 5.971, 5.984]
    np.testing.assert_allclose(whiskers(whole)[:, 0], [1, 2])


def test_linear_draws_percent_and_chance():
    figure = figures.linear({"color": 0.99954, "all": 0.5}, {"all": 1 / 64, "color": 0.25})
    figure.draw_without_rendering()
    (ax,) = figure.axes
    np.testing.assert_allclose([bar.get_height() for bar in ax.containers[0]], [99.954, 50.0])
    chance = [segment[0][1] for segment in by_label(ax)["chance"].get_segments()]
    np.testing.assert_allclose(chance, [25.0, 100 / 64])
    assert [text.get_text() for text in ax.texts] == ["99.95 %", "50.00 %"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["color", "all"]


def test_critic_draws_the_fit_and_the_curve():
    fit, curve = figures.critic(make_report().estimate).axes
    lines = by_label(fit)
    np.testing.assert_array_equal(lines["fit part"].get_xydata(), [(0, 0.1), (100, 5.0), (200, 5.9)])
    np.testing.assert_array_equal(lines["validation part"].get_xydata(), [(0, np.nan), (100, 5.1), (200, 5.0)])
    assert lines["chosen: step 100"].get_xdata()[0] == 100
    lines = by_label(curve)
    points = {name: lines[name].get_xydata() for name in lines if "K" not in name}
    np.testing.assert_allclose(points["InfoNCE, lower bound, interval"], [(256, 5.821), (2048, 5.971)])
    np.testing.assert_allclose(points["NT-Xent estimate, not a bound, interval"], [(256, 6.0008), (2048, 5.9998)])
    np.testing.assert_allclose(points["InfoNCE of an optimal critic"], [(256, 5.841), (2048, np.nan)])
    assert "NT-Xent estimate of an optimal critic" not in points
    # One batch has no interval.
    np.testing.assert_allclose(
        [w for w in whiskers(curve) if np.isfinite(w).all()], [(256, 5.817, 5.825), (2048, 5.959, 5.981)]
    )
    np.testing.assert_allclose(lines["upper end = 6.000"].get_ydata(), 6.0)
    np.testing.assert_allclose(lines["ceiling of InfoNCE: 8.0 to 11.0 (above)"].get_ydata(), [8, 11])
    np.testing.assert_allclose(
        lines["ceiling of NT-Xent estimate: 9.0 to 12.0 (above)"].get_ydata(), [8.997179, 11.999648], atol=1e-6
    )
    assert curve.get_ylim()[1] < 6.1
    assert [label.get_text() for label in curve.get_xticklabels()] == ["256", "2048"]


def test_a_notebook_shows_a_figure_without_pyplot():
    figure = TrainingHistory.of([{"step": 1, "loss_nats": 2.0}, {"step": 2, "loss_nats": 1.0}], k=8).figure()
    for one in (figure, pickle.loads(pickle.dumps(figure))):
        shown = Image.open(io.BytesIO(one._repr_png_()))
        assert (shown.format, shown.size) == ("PNG", tuple(np.rint(150 * figure.get_size_inches()).astype(int)))
        assert np.asarray(shown.convert("L")).min() < 128
    line = figure.axes[0].lines[0]
    before = figure._repr_png_()
    line.set_color("red")
    assert figure._repr_png_() != before
