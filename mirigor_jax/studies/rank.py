"""The study `rank`: every metric of each encoder, which encoder is proven to hold more, and which metric ranks alike.

It writes rank.csv, and rank.html for a browser, beside the report that every study has. The study `quality` uses it.
"""

import csv
import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from mirigor_jax import metrics, tables
from mirigor_jax.drawing import INK, LOWER_BOUND, Figure, empty_figure, floats, style
from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath, plain
from mirigor_jax.metrics.table import Better, Group
from mirigor_jax.mi.confidence import t_interval
from mirigor_jax.mi.usable_results import UsableOrder
from mirigor_jax.progress import Progress
from mirigor_jax.runs import page
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.settings import Estimate
from mirigor_jax.studies import rank_order
from mirigor_jax.studies.rows import Row, usable_ends
from mirigor_jax.studies.table import STUDIES, Section, Study

COMPARED = "compared.json"  # the metrics that compare encoders, and the digests of their features
RESAMPLES = 2000
LEAST_BATCHES = 8  # the fewest test batches for a t-interval of a paired difference
CAPTIONS = {
    "metrics": "Linear accuracy against each metric, a dot an encoder, after Lee et al. 2023, Tables I and II.",
    "usable_order": "Usable information of each encoder between its certified ends, and the pairs of certified order.",
}


@dataclass(frozen=True)
class Ranked:
    """A metric that may rank encoders as linear accuracy does.

    title: its name in tables and pictures.
    better: the direction of better values.
    text: value → its text; a dash for None.
    table: title of the table that shows it.
    number: value → the number that pictures show, in the unit of the title.
    """

    title: str
    better: Better
    text: Callable[[float | None], str]
    table: str
    number: Callable[[float], float] = float

    def numbers(self, rows: Sequence[Row], name: str) -> list[float | None]:
        """The number of each row's metric `name`; None if the row has none."""
        values = (row["metrics"].get(name) for row in rows)
        return [None if value is None else self.number(value) for value in values]


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
    "class_value_bits": Ranked("I_class, estimate ↑", "higher", tables.bits, INFORMATION),
    "class_bits": Ranked("I_class, InfoNCE ↑", "higher", tables.bits, INFORMATION),
    "class_lower_bits": Ranked("I_class, certified end ↑", "higher", _lower_end, INFORMATION),
    "class_nt_xent_bits": Ranked("I_class, NT-Xent ↑", "higher", tables.bits, INFORMATION),
    "simclr_value_bits": Ranked("I_SimCLR, estimate ↑", "higher", tables.bits, INFORMATION),
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
        name: Ranked(metric.title, metric.better, metric.text, TABLES[metric.group], metric.number)
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
    """An encoder's row: its metrics, and the InfoNCE of its test batches under the class pairing.

    Raises InputError if the run has no estimate `class` or no metrics; configs/images.py and configs/encoder.py make
    both.
    """
    estimates, measured, config = done.estimates, done.metrics, done.run.config
    if "class" not in estimates or "class_alignment" not in measured:
        raise InputError(f"'{folder}' has no estimate `class`, or no metrics; give it evaluate.metrics=True")
    labels = RunFolder(folder).arrays("features/test.npz")["labels"][:, 0]
    sizes = np.unique(labels, return_counts=True)[1]
    values = {name: measured.get(name) for name in ranked()}
    for pairing in ("class", "simclr"):
        of = estimates.get(pairing)
        fields = {"bits": "info_nce_bits"} | {name: name for name in ("value_bits", "lower_bits", "nt_xent_bits")}
        for name, field in fields.items():
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
    }


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


def percent(accuracy: float) -> str:
    """An accuracy in 0..1 as text, in %."""
    return f"{100 * accuracy:.2f}"


def table(rows: Sequence[Row]) -> str:
    """Every metric of every encoder, the correlations, and the neighbors in the ranking."""
    return report(rows)


def report(rows: Sequence[Row], paper: Mapping[str, Sequence[str]] | None = None) -> str:
    """The text of `table`.

    paper: a metric's name → two texts for the table of correlations: Pearson's and Kendall's in the paper. None: no
        such columns.
    """
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
    sections = [*grids, legend, "## Which metric ranks as accuracy does", *_correlated(rows, paper)]
    if pairs := neighbors(rows):
        sections += ["## Neighbors in the order of I_class", *_compared(pairs)]
    return "\n\n".join(sections)


def _measured(ranking: Sequence[Row], shown: Mapping[str, Ranked]) -> str:
    """A table of these metrics, by name."""
    lines = [
        (row["cell"], percent(row["accuracy"]), *(one.text(row["metrics"].get(name)) for name, one in shown.items()))
        for row in ranking
    ]
    return tables.grid(("encoder", "accuracy, %", *(one.title for one in shown.values())), lines)


def _range(values: Sequence[float]) -> str:
    """The least and the largest value; one number if they are printed alike."""
    return " to ".join(dict.fromkeys(f"{value:.3f}" for value in (min(values), max(values))))


def _correlated(rows: Sequence[Row], paper: Mapping[str, Sequence[str]] | None) -> tuple[str, str]:
    lines, numbers = [], ranked()
    for name, found in correlations(rows).items():
        line = [numbers[name].title, "–" if found is None else str(found.n)]
        for at, kind in enumerate(("pearson", "kendall")):
            line.append("–" if found is None else _interval(getattr(found, kind), getattr(found, f"{kind}_interval")))
            if paper is not None:
                line.append(paper[name][at] if name in paper else "–")
        lines.append(line)
    beside = [] if paper is None else ["the paper's"]
    header = ["metric", "encoders", "Pearson's ρ", *beside, "Kendall's τ", *beside]
    legend = (
        "Correlation with linear accuracy. If less is better, the sign is turned, and for a metric that is best near 1 "
        "its distance from 1 counts, so +1 is always best. Brackets have "
        f"95 % percentile bootstrap intervals ({RESAMPLES:,} resamples, seed 0), which treat the encoders as a sample "
        "of all encoders and are too narrow if there are few."
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


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """The figure `metrics`: a panel for each metric that has a correlation, with accuracy against it."""
    by_metric = correlations(rows)
    panels = {}
    for name, metric in ranked().items():
        if measured := by_metric[name]:
            title = f"{metric.title}: ρ = {measured.pearson:z.2f}, τ = {measured.kendall:z.2f}"
            panels[title] = metric.numbers(rows, name)
    return {"metrics": picture(panels, [row["accuracy"] for row in rows])} if panels else {}


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
            with Progress("comparing the encoders with each other"):
                values = metrics.evaluate_several(features)
        except InputError as error:  # too few images; the other columns stand
            print(f"encoders are not compared with each other: {error}", flush=True)
            return [*rows]
        known = {"digests": digests, "values": plain(values)}
        folder.write(COMPARED, known)
    return [{**row, "metrics": row["metrics"] | known["values"].get(row["cell"], {})} for row in rows]


def section(rows: Sequence[Row], runs: Mapping[str, RunFolder], folder: RunFolder) -> Section:
    """The proven order of the encoders that were measured on the same images, and the files rank.csv and rank.html."""
    text, order = rank_order.found(rows, runs, folder)
    figures = {} if order is None else {"usable_order": order.figure()}
    files = {"rank.csv": csv_text(rows), "rank.html": page_text(rows, text, order)}
    return Section(rank_order.TITLE, text, figures, files)


def csv_text(rows: Sequence[Row]) -> str:
    """A line for each encoder, the most accurate first, with every metric in full precision; "" where it has none."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["encoder", RANKED_BY, "entropy_bits", *ranked()])
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        values = [row["accuracy"], row["entropy_bits"], *(row["metrics"].get(name) for name in ranked())]
        writer.writerow([row["cell"], *("" if value is None else value for value in values)])
    return file.getvalue()


# Columns of the page that show an estimate with its certified ends: title → (value, lower end, upper end).
WITH_ENDS = {
    "I_class, bits": ("class_value_bits", "class_lower_bits", "entropy_bits"),
    "usable information, bits": ("usable_bits", "usable_lower_bits", "usable_upper_bits"),
}


def page_text(rows: Sequence[Row], text: str, order: UsableOrder | None) -> str:
    """The page rank.html: a table that sorts, a plot of any two metrics, and the proven order as a graph.

    text: the words of the order, in Markdown, whose first paragraph the page shows. order: None if there is none.
    """
    ranking = sorted(rows, key=lambda row: -row["accuracy"])
    names = [row["cell"] for row in ranking]
    columns = [_accuracies(ranking), *_with_ends(ranking), *_plain_columns(ranking)]
    best = names[0]
    blocks = [
        page.paragraph(
            f"{len(names)} encoders, measured on the same classes. {best} has the highest linear accuracy, "
            f"{percent(ranking[0]['accuracy'])} %. MI is in bits; brackets have certified ends, at 95 % for each "
            "encoder alone."
        ),
        page.table([page.Column("encoder", names), *columns]),
        page.heading("Any two metrics"),
        page.scatter(names, columns, min(2, len(columns) - 1), 0),
        page.heading(rank_order.TITLE),
    ]
    if order is not None:
        larger: dict[str, set[str]] = {name: set() for name in order.encoders}
        for pair in order.proven:
            larger[str(pair.smaller)].add(str(pair.larger))
        hint = (
            "A line leads from an encoder down to one that is certified to hold less. A click on an encoder marks all "
            "that are certified to hold more, and all that are certified to hold less."
        )
        blocks += [page.order(order.levels, larger, hint), page.figure(order.figure(), CAPTIONS["usable_order"])]
    blocks.append(page.paragraph(text.partition("\n\n")[0]))
    return page.page("Encoders, ranked", blocks)


def _accuracies(ranking: Sequence[Row]) -> page.Column:
    accuracies = [row["accuracy"] for row in ranking]
    return page.Column("linear accuracy, %", [percent(one) for one in accuracies], [100 * one for one in accuracies])


def _with_ends(ranking: Sequence[Row]) -> list[page.Column]:
    columns = []
    for title, (value, lower, upper) in WITH_ENDS.items():
        of = [{**row["metrics"], "entropy_bits": row["entropy_bits"]} for row in ranking]
        ends = [(one[lower], one[upper]) for one in of]
        texts = [
            f"{tables.bits(one[value])} [{_lower_end(low)}, {_upper_end(high)}]" if tables.known(one[value]) else "–"
            for one, (low, high) in zip(of, ends, strict=True)
        ]
        columns.append(page.Column(title, texts, [one[value] for one in of], ends))
    return columns


def _plain_columns(ranking: Sequence[Row]) -> list[page.Column]:
    """The metrics that some encoder has and that no column with ends shows."""
    shown = {name for names in WITH_ENDS.values() for name in names}
    columns = []
    for name, metric in ranked().items():
        values = [row["metrics"].get(name) for row in ranking]
        if name not in shown and any(value is not None for value in values):
            texts = [metric.text(value) for value in values]
            columns.append(page.Column(metric.title, texts, metric.numbers(ranking, name)))
    return columns


STUDIES["rank"] = Study(row, table, draw, CAPTIONS, together=section, joined=with_others)
