"""The study's records to pictures; called by study.losses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiment.figures import GREY, LOSS_STYLE, RED, STYLE, save
from study.selection import (
    DATASETS,
    RunsByLoss,
    StudyRecord,
    common_seeds,
    differences,
    finished,
    load,
)
from study.tables import ANGLES, fill_file, interval, study_tables

Value = Callable[[StudyRecord], float]  # what is drawn of a run

SIMPLEX = float(np.degrees(np.arccos(-1 / 9)))  # ten directions cannot all be further apart
PAPER_STYLE: dict[int, tuple[str, str, Any]] = {  # column of ANGLES: name, colour, line
    1: ("paper, norm. softmax", "#2b7fa8", ":"),
    2: ("paper, ArcFace", "black", "-"),
}


def draw(folder: Path) -> None:
    """Draw every picture whose records are there, and fill the tables of the README beside them.

    Raises:
        Problem: a record is damaged, or a file cannot be written.
    """
    with plt.rc_context(STYLE):
        for dataset, name in DATASETS.items():
            if losses := common_seeds(load(folder, "losses", dataset)):
                save(draw_accuracy(losses, name), folder / f"accuracy-{dataset}.png")
                save(draw_angles(losses, name), folder / f"angles-{dataset}.png")
    fill_file(folder / "README.md", study_tables(folder))


def draw_accuracy(losses: RunsByLoss, name: str) -> plt.Figure:
    """Test accuracy of each loss, and its difference to ArcFace with the same seed."""
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(6.3, 2.5), width_ratios=(1.2, 1))
    for place, (loss, runs) in enumerate(losses.items()):
        values = [100 * record["test_accuracy"] for record in finished(runs)]
        _draw_interval(axes[0], values, place, loss)
        if loss != "arcface":
            _draw_interval(axes[1], differences(losses, loss), place, loss)
    labels = [LOSS_STYLE[loss][0] for loss in losses]
    axes[0].set(yticks=range(len(losses)), yticklabels=labels, xlabel="test accuracy in %")
    axes[0].invert_yaxis()
    axes[1].axvline(0, color=LOSS_STYLE["arcface"][1], linewidth=1.5)
    axes[1].set(xlabel="minus ArcFace with the same seed, points")
    style: dict[str, Any] = {"va": "bottom", "fontsize": 7, "color": GREY}
    style["transform"] = axes[1].get_xaxis_transform()
    for side, words in (("right", "ArcFace better ← "), ("left", " → ArcFace worse")):
        axes[1].text(0, 1.0, words, ha=side, **style)
    count = len(losses["arcface"])
    seeds = f"{count} seed" + "s" * (count > 1)
    title = f"{name}: test accuracy of six losses ({seeds} each; bars: 95% intervals)"
    figure.suptitle(title)
    return figure


def _draw_interval(axis: plt.Axes, values: list[float], place: float, loss: str) -> None:
    _, colour, marker = LOSS_STYLE[loss]
    mean, half = interval(values)
    axis.plot(values, [place + 0.22] * len(values), "|", color=colour, alpha=0.7, markersize=5)
    half = 0 if np.isnan(half) else half
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "capsize": 3}
    axis.errorbar(mean, place, xerr=half, **style)


def draw_angles(losses: RunsByLoss, name: str) -> plt.Figure:
    """The six angles of Table 3 for each loss, the paper's beside them."""
    figure, axes = plt.subplots(figsize=(6.3, 3.2))
    for place, key in enumerate(ANGLES):
        for offset, (loss, runs) in enumerate(losses.items()):
            _, colour, marker = LOSS_STYLE[loss]
            mean, half = interval([record["angles"][key] for record in finished(runs)])
            x = place + 0.12 * (offset - (len(losses) - 1) / 2)
            half = 0 if np.isnan(half) else half
            style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none"}
            axes.errorbar(x, mean, yerr=half, markersize=4, capsize=2, **style)
        for column, (_, colour, line) in PAPER_STYLE.items():
            ends, value = [place - 0.4, place + 0.4], ANGLES[key][column]
            axes.plot(ends, [value, value], color=colour, linewidth=1, linestyle=line)
    axes.axhline(SIMPLEX, color=RED, linewidth=1, linestyle="--")
    axes.text(-0.45, SIMPLEX + 1, f"simplex limit {SIMPLEX:.2f}°", color=RED)
    labels = [label for label, _, _ in ANGLES.values()]
    axes.set(xticks=range(len(ANGLES)), xticklabels=labels)
    axes.set(ylabel="angle in degrees", ylim=(0, 106))
    handles = [_legend_handle(*LOSS_STYLE[loss], "none") for loss in losses]
    handles += [
        _legend_handle(label, colour, "", line) for label, colour, line in PAPER_STYLE.values()
    ]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(f"{name}: W-EC and Intra should be small, W-Inter and Inter large")
    return figure


def _legend_handle(label: str, colour: str, marker: str, line: Any) -> plt.Line2D:
    width = 1 if line != "none" else None
    return plt.Line2D(
        [], [], color=colour, marker=marker, linestyle=line, linewidth=width, label=label
    )


def draw_means(
    axis: plt.Axes, runs: list[StudyRecord], across: str, value: Value, **style: Any
) -> None:
    """A line through the means of a value over the runs with equal ``across``, which is a key of
    their records, and the value of each run as a dash."""
    at = sorted({run[across] for run in runs})
    found = [[value(run) for run in runs if run[across] == x] for x in at]
    axis.plot(at, [np.mean(values) for values in found], **style)
    for x, values in zip(at, found, strict=True):
        axis.plot([x] * len(values), values, "_", color=style["color"], markersize=7)
