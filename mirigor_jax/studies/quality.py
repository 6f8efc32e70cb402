"""The study `quality`: which metric ranks encoders as linear accuracy does?

After Lee et al. 2023, Tables I, II and IV-IX. Their numbers are in paper_quality.csv.
"""

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mirigor_jax import metrics, tables
from mirigor_jax.drawing import INK, LOWER_BOUND, Figure, empty_figure, floats, style
from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath, plain
from mirigor_jax.metrics.table import Better, Group
from mirigor_jax.mi.confidence import t_interval
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.settings import Estimate
from mirigor_jax.studies import quality_order
from mirigor_jax.studies.rows import Row, usable_ends
from mirigor_jax.studies.table import STUDIES, Study

COMPARED = "compared.json"  # the metrics that compare encoders, and the digests of their features
RESAMPLES = 2000
LEAST_BATCHES = 8  # the fewest test batches for a t-interval of a paired difference
# Column of paper_quality.csv → our name of that metric.
PAPERS = {
    "class_alignment": "class_alignment",
    "class_uniformity": "class_uniformity",
    "class_tolerance": "class_tolerance",
    "contrastive_loss": "augmentation_contrastive_loss_nats",
    "simclr_bits": "simclr_nt_xent_bits",
    "class_bits": "class_nt_xent_bits",
}
CAPTIONS = {
    "quality": "Linear accuracy against each metric, a dot an encoder, after Lee et al. 2023, Tables I and II.",
    "usable_order": "Usable information of each encoder between its certified ends, and the pairs of certified order.",
}


@dataclass(frozen=True)
class Ranked:
    """A metric that may rank encoders as linear accuracy does.

    title: its name in tables and pictures.
    better: the direction of better values.
    text: value → its text; a dash for None.
    table: title of the table that shows it.
    """

    title: str
    better: Better
    text: Callable[[float | None], str]
    table: str


def _lower_end(value: float | None) -> str:
    return tables.bits(tables.down(value))


def _upper_end(value: float | None) -> str:
    return tables.bits(None if value is None else tables.round_up(value))


INFORMATION, PAIRS = "Information", "Pairs of representations"
TABLES: dict[Group, str] = {
    "augmentation": PAIRS,
    "class": PAIRS,
    "images": "Spectrum and closed-form scores",
    "probes": "Probes",
}
ESTIMATES = {
    "class_bits": Ranked("I_class, InfoNCE ↑", "higher", tables.bits, INFORMATION),
    "class_lower_bits": Ranked("I_class, certified end ↑", "higher", _lower_end, INFORMATION),
    "class_nt_xent_bits": Ranked("I_class, NT-Xent ↑", "higher", tables.bits, INFORMATION),
    "simclr_bits": Ranked("I_SimCLR, InfoNCE ↑", "higher", tables.bits, INFORMATION),
    "simclr_lower_bits": Ranked("I_SimCLR, certified end ↑", "higher", _lower_end, INFORMATION),
    "simclr_nt_xent_bits": Ranked("I_SimCLR, NT-Xent ↑", "higher", tables.bits, INFORMATION),
    "usable_bits": Ranked("usable information ↑", "higher", tables.bits, INFORMATION),
    "usable_lower_bits": Ranked("usable information, lower end ↑", "higher", _lower_end, INFORMATION),
    "usable_upper_bits": Ranked("usable information, upper end ↑", "higher", _upper_end, INFORMATION),
}
BOUND = {"bound_nats": Ranked("bound of supervised loss, nats ↓", "lower", tables.bits, PAIRS)}
RANKED_BY = "linear_accuracy"  # the metric whose ranking the others are compared with


def ranked() -> dict[str, Ranked]:
    """All metrics that are compared with linear accuracy, by their names in a row.

    These are the estimates, each metric of METRICS that says which values are better, and the bound.
    """
    measured = {
        name: Ranked(metric.title, metric.better, metric.text, TABLES[metric.group])
        for name, metric in metrics.METRICS.items()
        if metric.better and name != RANKED_BY
    }
    return ESTIMATES | measured | BOUND


@dataclass(frozen=True)
class Correlation:
    """Correlations of a metric with accuracy over n encoders, each with its bootstrap interval (lower, upper)."""

    n: int
    pearson: float
    pearson_interval: tuple[float, float]
    kendall: float
    kendall_interval: tuple[float, float]


def correlation(
    metric: Float[np.ndarray, " n"],
    accuracy: Float[np.ndarray, " n"],
    *,
    confidence: float = Estimate.confidence,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Correlation | None:
    """Pearson's ρ and Kendall's τ_b with percentile bootstrap intervals.

    metric, accuracy: values of n encoders.
    confidence: confidence of each interval, 0..1.
    resamples: number of bootstrap resamples.
    Returns None if there are fewer than three encoders, or if one of the two is constant.
    The bootstrap resamples encoders, as if they were a sample of all encoders; their spread includes the noise of each
    metric. The intervals are approximate: with few encoders their coverage is some points too low. A resample with a
    constant metric or accuracy has no correlation and is left out.
    Source: Daniels 1944 (ρ is the cosine between the pairwise differences of both, τ_b that between the signs of these
    differences); Efron 1979.
    """
    n = len(metric)
    if n < 3 or np.ptp(metric) == 0 or np.ptp(accuracy) == 0:
        return None
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    rows = np.concatenate([np.arange(n)[None, :], drawn])
    differences = [np.subtract.outer(values, values) for values in (metric, accuracy)]

    def of(x: np.ndarray, y: np.ndarray) -> tuple[float, tuple[float, float]]:
        x, y = (pairs[rows[:, :, None], rows[:, None, :]] for pairs in (x, y))
        product, x_square, y_square = (np.einsum("rij,rij->r", a, b) for a, b in ((x, y), (x, x), (y, y)))
        scale = np.sqrt(x_square * y_square)
        value = product[scale > 0] / scale[scale > 0]
        lower, upper = np.quantile(value[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(value[0]), (float(lower), float(upper))

    return Correlation(n, *of(*differences), *of(*map(np.sign, differences)))


def row(done: ImageReport, folder: AnyPath) -> Row:
    """An encoder's row: its metrics, the InfoNCE of its test batches under the class pairing, and the paper's row.

    The paper's row is None if the paper does not have the encoder. Raises InputError if the run has no estimate `class`
    or no metrics; configs/images.py and configs/encoder.py make both.
    """
    estimates, measured, config = done.estimates, done.metrics, done.run.config
    if "class" not in estimates or "class_alignment" not in measured:
        raise InputError(f"'{folder}' has no estimate `class`, or no metrics; give it evaluate.metrics=True")
    labels = RunFolder(folder).arrays("features/test.npz")["labels"][:, 0]
    sizes = np.unique(labels, return_counts=True)[1]
    values = {name: measured.get(name) for name in ranked()}
    for pairing in ("class", "simclr"):
        of = estimates.get(pairing)
        for name, field in (("bits", "info_nce_bits"), ("lower_bits", "lower_bits"), ("nt_xent_bits", "nt_xent_bits")):
            values[f"{pairing}_{name}"] = None if of is None else getattr(of, field)
    values |= usable_ends(done)
    loss_nats = measured["class_contrastive_loss_nats"]
    if loss_nats is not None:
        values["bound_nats"] = metrics.supervised_loss_bound_nats(
            loss_nats,
            # the K that the metric used: at most half of the images of each class can be in pairs
            k=min(config["estimate"]["nt_xent_k"], int(np.sum(sizes // 2))),
            temperature=config["train"]["temperature"],
            least_frequency=float(sizes.min() / len(labels)),
        )
    batches = RunFolder(folder).arrays("estimates/class/batches.npz")
    k = max((int(k) for k, values in batches.items() if len(values) >= LEAST_BATCHES), default=None)
    return {
        "accuracy": done.linear["class"],
        "entropy_bits": estimates["class"].entropy_bits,
        "k": estimates["class"].k,
        "metrics": values,
        "batches": None if k is None else {"k": k, "info_nce_bits": batches[str(k)].tolist()},
        # The classes in order and the seed determine the pairs: encoders with equal values here have the same pairs.
        "test": hashlib.sha256(labels.tobytes()).hexdigest()[:12] + f"-seed={config['seed']}",
        "usable": None if done.usable is None or done.usable.value_bits is None else asdict(done.usable),
        "paper": paper().get(folder.name),
    }


@cache
def paper() -> dict[str, Row]:
    """The paper's rows: `TABLE-ENCODER`, the name of our cell → row. Accuracies are in 0..1.

    Our text copy of Table IV lacks the 1 before the decimal point of five alignments. The csv has the 1, because with
    it the alignments agree with the tolerances and the correlations of the table. Table VI gives `supervised` the
    geometry of `moco`, seemingly by mistake.
    Source: Lee et al. 2023, Tables IV-IX.
    """
    with (Path(__file__).parent / "paper_quality.csv").open() as file:
        lines = list(csv.DictReader(file))
    rows = {}
    for line in lines:
        of = {ours: float(line[papers]) if line[papers] else None for papers, ours in PAPERS.items()}
        table, accuracy = line["table"], float(line["accuracy"]) / 100
        rows[f"{table}-{line['encoder']}"] = {"table": table, "accuracy": accuracy, "metrics": of}
    return rows


def correlations(rows: Sequence[Row]) -> dict[str, Correlation | None]:
    """For each metric, its correlation with accuracy over the encoders that have it.

    Values are turned so that more is better, as metrics.GOODNESS does. A metric without a correlation has None.
    """
    by_metric = {}
    for name, metric in ranked().items():
        known = [(row["metrics"][name], row["accuracy"]) for row in rows if row["metrics"].get(name) is not None]
        values, accuracies = np.array(known, float).reshape(-1, 2).T
        good = metrics.GOODNESS[metric.better]
        by_metric[name] = correlation(np.array([good(value) for value in values]), accuracies)
    return by_metric


def neighbors(rows: Sequence[Row], confidence: float = Estimate.confidence) -> list[Row]:
    """Compare each encoder a with the next encoder b in the order of I_class, by InfoNCE on the same test batches.

    Returns rows {"a", "b", "k", "difference_bits", "t_lower_bits", "t_upper_bits", "accuracy"}. Differences, accuracy's
    too, are a's value minus b's. A pair is left out if the two were not measured at the same K on the same test part.
    The paired t-interval compares two lower bounds, each by its run's own critic, as in `mi.compare`. Each interval has
    its confidence for itself; all together have less.
    """
    ranking = sorted(rows, key=lambda row: -row["metrics"]["class_bits"])
    comparisons = []
    for a, b in pairwise(ranking):
        if not a["batches"] or not b["batches"] or (a["test"], a["batches"]["k"]) != (b["test"], b["batches"]["k"]):
            continue
        difference = np.subtract(a["batches"]["info_nce_bits"], b["batches"]["info_nce_bits"])
        lower, upper = t_interval(difference, confidence)
        comparisons.append(
            {
                "a": a["cell"],
                "b": b["cell"],
                "k": a["batches"]["k"],
                "difference_bits": float(difference.mean()),
                "t_lower_bits": lower,
                "t_upper_bits": upper,
                "accuracy": a["accuracy"] - b["accuracy"],
            }
        )
    return comparisons


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f}"


def table(rows: Sequence[Row]) -> str:
    """Every metric of every encoder, the correlations, the neighbors in the ranking, and the paper's numbers."""
    ranking = sorted(rows, key=lambda row: -row["accuracy"])
    by_table: dict[str, dict[str, Ranked]] = {}
    for name, metric in ranked().items():
        if any(row["metrics"].get(name) is not None for row in rows):
            by_table.setdefault(metric.table, {})[name] = metric
    grids = [part for title, of in by_table.items() for part in (f"## {title}", _measured(ranking, of))]
    above = [row["cell"] for row in ranking if row["metrics"]["class_bits"] > row["entropy_bits"]]
    legend = (
        f"MI is in bits, with InfoNCE at K = {max(row['k'] for row in rows):,}; accuracies are on test images. H(C) is "
        f"{_range([row['entropy_bits'] for row in rows])} bits. Usable "
        "information is the information about the class, in bits, that linear probes can use (mi.usable_information). "
        "Each contrastive loss is at the temperature of the encoder's training. “Bound of supervised loss” is an upper "
        "bound of the cross-entropy of the classifier whose weights are the class means. It is computed from the "
        "contrastive loss of same-class pairs (after Bao et al. 2022), and for encoders trained at one temperature "
        "both give the same ranking. A bound of log N or more, for N classes, says nothing: a uniform guess has that "
        "loss. "
        f"I_class by InfoNCE is above H(C) for {', '.join(above) or 'no encoder'}."
    )
    sections = [*grids, legend, "## Which metric ranks as accuracy does", *_correlated(rows)]
    if pairs := neighbors(rows):
        sections += ["## Neighbors in the order of I_class", *_compared(pairs)]
    if known := [row for row in ranking if row["paper"]]:
        sections += ["## The paper's numbers beside ours", *_beside(known)]
    return "\n\n".join(sections)


def _measured(ranking: Sequence[Row], shown: Mapping[str, Ranked]) -> str:
    """A table of these metrics, by name."""
    lines = [
        (row["cell"], _percent(row["accuracy"]), *(one.text(row["metrics"].get(name)) for name, one in shown.items()))
        for row in ranking
    ]
    return tables.grid(("encoder", "accuracy, %", *(one.title for one in shown.values())), lines)


def _range(values: Sequence[float]) -> str:
    """The least and the largest value; one number if they are printed alike."""
    return " to ".join(dict.fromkeys(f"{value:.3f}" for value in (min(values), max(values))))


def _correlated(rows: Sequence[Row]) -> tuple[str, str]:
    scenarios: dict[str, list[Row]] = {}
    for of in paper().values():
        scenarios.setdefault(of["table"], []).append(of)
    papers = [correlations(of) for of in scenarios.values()]
    lines, numbers = [], ranked()
    for name, ours in correlations(rows).items():
        theirs = [theirs_of for of in papers if (theirs_of := of[name])]
        line = [numbers[name].title, "–" if ours is None else str(ours.n)]
        for kind in ("pearson", "kendall"):
            ranges = [getattr(known, kind) for known in theirs]
            line.append("–" if ours is None else _interval(getattr(ours, kind), getattr(ours, f"{kind}_interval")))
            line.append(f"{min(ranges):z.3f} to {max(ranges):z.3f}" if ranges else "–")
        lines.append(line)
    header = ("metric", "encoders", "Pearson's ρ", "the paper's", "Kendall's τ", "the paper's")
    legend = (
        "Correlation with linear accuracy. If less is better, the sign is turned, and for a metric that is best near 1 "
        "its distance from 1 counts, so +1 is always best. Brackets have "
        f"95 % percentile bootstrap intervals ({RESAMPLES:,} resamples, seed 0), which treat the encoders as a sample "
        "of all encoders and are too narrow if there are few. The paper's column has the least and the largest value "
        "of its scenarios that have the metric, mostly six (Lee et al. 2023, Table II). The paper's tightest analytic "
        "bound of the supervised loss has ρ = −0.409 and τ = −0.182 (§IV-B)."
    )
    return tables.grid(header, lines), legend


def _interval(value: float, ends: tuple[float, float]) -> str:
    return f"{value:z.3f} [{ends[0]:z.3f}, {ends[1]:z.3f}]"


def _compared(pairs: Sequence[Row]) -> tuple[str, str]:
    lines = []
    for pair in pairs:
        ends = pair["t_lower_bits"], pair["t_upper_bits"]
        larger = pair["a"] if ends[0] > 0 else pair["b"] if ends[1] < 0 else "the data cannot tell"
        difference = _interval(pair["difference_bits"], ends)
        lines.append((pair["a"], pair["b"], difference, larger, f"{100 * pair['accuracy']:+.2f}"))
    header = ("a", "b", "I_class, a minus b, bits", "larger", "accuracy, a minus b, points")
    legend = (
        f"The differences are of InfoNCE at K = {pairs[0]['k']:,} on the same test batches. Brackets have paired "
        "t-intervals; each holds at 95 % for its own line of the table, and the confidence that all hold together is "
        "lower. They compare two lower bounds, each by its own critic, not the two values of I_class."
    )
    return tables.grid(header, lines), legend


def _beside(rows: Sequence[Row]) -> tuple[str, str]:
    shown = {name: ranked()[name] for name in PAPERS.values()}
    header = ("encoder", "accuracy, %", *(encoder.title for encoder in shown.values()))
    lines = []
    for row in rows:
        theirs = row["paper"]
        pairs = [
            (encoder.text(row["metrics"][name]), encoder.text(theirs["metrics"][name]))
            for name, encoder in shown.items()
        ]
        both = [(_percent(row["accuracy"]), _percent(theirs["accuracy"])), *pairs]
        lines.append((row["cell"], *(f"{ours} / {papers}" for ours, papers in both)))
    legend = "Ours / the paper's (Lee et al. 2023, Tables IV–IX)."
    return tables.grid(header, lines), legend


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """The figure `quality`: a panel for each metric that has a correlation, with accuracy against it."""
    by_metric = correlations(rows)
    panels = {}
    for name, number in ranked().items():
        if measured := by_metric[name]:
            title = f"{number.title}: ρ = {measured.pearson:z.2f}, τ = {measured.kendall:z.2f}"
            panels[title] = [row["metrics"][name] for row in rows]
    return {"quality": picture(panels, [row["accuracy"] for row in rows])} if panels else {}


def picture(panels: Mapping[str, Sequence[float | None]], accuracies: Sequence[float]) -> Figure:
    """Draw the encoders' linear accuracy in % against each metric, four panels in a row.

    panels: title of a metric → its value for each encoder, in the order of `accuracies`; None if an encoder lacks it.
    accuracies: linear accuracy of each encoder, 0..1.
    """
    rows = math.ceil(len(panels) / 4)
    figure = empty_figure(14.4, 3.0 * rows)
    grid = figure.subplots(rows, 4, squeeze=False, sharey=True)
    for ax, (title, values) in zip(grid.flat, panels.items(), strict=False):
        style(ax, title)
        ax.set_title(title, loc="left", fontsize=8)
        ax.plot(floats(values), [100 * accuracy for accuracy in accuracies], "o", color=LOWER_BOUND, markersize=5)
    for ax in grid.flat[len(panels) :]:
        ax.set_axis_off()
    for ax in grid[:, 0]:
        ax.set_ylabel("linear accuracy, %", fontsize=9, color=INK)
    return figure


def with_others(rows: Sequence[Row], runs: Mapping[str, RunFolder], folder: RunFolder) -> list[Row]:
    """The rows with the metrics that compare an encoder with the others; see `metrics.evaluate_several`.

    Only encoders of the same test images are compared, those that most of the encoders share; the others keep None. The
    study's folder keeps the values until an encoder's features have changed. Of a pair, the first view is read.
    rows, runs, folder: as in `Study.joined`.
    """
    [(test, count)] = Counter(row["test"] for row in rows).most_common(1)
    if count < 2:
        return [*rows]
    features = {}
    for row in rows:
        if row["test"] == test:
            arrays = runs[row["cell"]].arrays("features/test.npz")
            features[row["cell"]] = arrays["h" if "h" in arrays else "h_x"]
    digests = {cell: hashlib.sha256(np.ascontiguousarray(h).tobytes()).hexdigest() for cell, h in features.items()}
    known = folder.read(COMPARED)
    if known is None or known["digests"] != digests:
        try:
            values = metrics.evaluate_several(features)
        except InputError as error:  # too few images; the other columns stand
            print(f"encoders are not compared with each other: {error}", flush=True)
            return [*rows]
        known = {"digests": digests, "values": plain(values)}
        folder.write(COMPARED, known)
    return [{**row, "metrics": row["metrics"] | known["values"].get(row["cell"], {})} for row in rows]


STUDIES["quality"] = Study(row, table, draw, CAPTIONS, together=quality_order.section, joined=with_others)
