"""Means with their intervals, and the tables that the README files and the report print."""

from pathlib import Path

import numpy as np
from scipy import stats

from experiment.errors import Problem
from experiment.records import reading, write
from study.selection import ARCFACE, RunsByLoss, StudyRecord, differences, finished

# The paper's Table 3: what is measured, and its values there for normalised softmax and ArcFace.
ANGLES = {
    "w_ec": ("W-EC", 44.26, 14.29),
    "w_inter": ("W-Inter", 69.66, 71.61),
    "intra_train": ("Intra, train", 50.50, 38.45),
    "inter_train": ("Inter, train", 59.23, 65.83),
    "intra_test": ("Intra, test", 33.97, 28.05),
    "inter_test": ("Inter, test", 65.60, 66.55),
}
ACCURACY_HEAD = [
    "seeds",
    "test accuracy, %",
    "difference to ArcFace, points",
    "with TTA, %",
    "difference to ArcFace, points",
]

# --- intervals, Markdown --------------------------------------------------------------------------


def interval(values: list[float]) -> tuple[float, float]:
    """Mean of the values, and half the width of its 95% confidence interval (Student's t).

    NaN stands for the mean of no values, and for the interval of fewer than two.
    """
    n = len(values)
    if n < 2:
        return (float(values[0]) if values else float("nan")), float("nan")
    half = stats.t.ppf(0.975, n - 1) * stats.sem(values)
    return float(np.mean(values)), float(half)


def paired_ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """The median of the ratios of paired values, and its 95% interval.

    The interval comes from the ratios' order statistics: no distribution is assumed. At least six
    pairs are needed for it; with fewer it is NaN.
    """
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, high = stats.quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return float(np.median(ratios)), float(low), float(high)


def mean_ci(values: list[float], digits: int) -> str:
    """A mean with its interval, to so many digits: 99.70 ± 0.04.

    Fewer than three values are printed as they are; a dash stands for none.
    """
    if len(values) < 3:
        text = ", ".join(f"{value:z.{digits}f}" for value in values) or "–"
    else:
        mean, half = interval(values)
        text = f"{mean:z.{digits}f} ± {half:.{digits}f}"
    return text.replace("-", "−")


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def fill(text: str, name: str, content: str) -> str:
    """The text with ``content`` between its marks <!-- name --> and <!-- /name -->.

    Raises Problem unless each of them is there, once.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = text.partition(start)
    if text.count(start) != 1 or text.count(end) != 1 or end not in rest:
        remedy = "must be there, once and in this order. Restore the file"
        raise Problem(f"The marks {start} and {end} {remedy}.")
    return f"{before}{start}\n{content}\n{end}{rest.partition(end)[2]}"


def fill_file(path: Path, tables: dict[str, str]) -> None:
    """Put each table between its marks in a Markdown file.

    Raises Problem if a mark is missing or the file cannot be written; the file is then as it was.
    """
    with reading(path, "Restore it."):
        text = path.read_text(encoding="utf-8")
    for name, content in tables.items():
        text = fill(text, name, content)
    write(path, text.encode())


# --- tables of several losses ---------------------------------------------------------------------


def setting_cells(record: StudyRecord) -> list[str]:
    """Scale, margin and head learning rate of a run; a dash where the loss has none."""
    values = (record[key] for key in ("scale", "margin", "head_lr"))
    return ["–" if value is None else f"{value:g}" for value in values]


def accuracy_cells(runs: RunsByLoss, name: str) -> list[str]:
    """Of ACCURACY_HEAD, for the runs with a name: without test-time augmentation and with it, the
    mean accuracy and the differences to ArcFace's runs with the same seeds."""
    done = finished(runs[name])
    cells = [str(len(done))]
    for key in ("accuracy", "accuracy_tta"):
        known = all(run[key] is not None for run in done)
        cells.append(mean_ci([100 * run[key] for run in done], 2) if known else "–")
        known = known and name != ARCFACE
        cells.append(mean_ci(differences(runs, name, key=key), 2) if known else "–")
    return cells


def angles_table(runs: RunsByLoss) -> str:
    """The paper's Table 3 for our data, in degrees, beside its own numbers."""
    rows = []
    for name, group in runs.items():
        cells = [mean_ci([run["angles"][key] for run in finished(group)], 1) for key in ANGLES]
        rows.append([name, *cells])
    for column, name in ((1, "paper, normalised softmax"), (2, "paper, ArcFace")):
        rows.append([f"*{name}*", *(f"*{ANGLES[key][column]:.2f}*" for key in ANGLES)])
    return markdown(["degrees", *(name for name, _, _ in ANGLES.values())], rows)
