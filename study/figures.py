"""The study's records to pictures; called by study.losses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiment.figures import BLUE, GREY, LOSS_STYLE, ORANGE, RED, STYLE, save
from study.selection import (
    DATASETS,
    RunsByLoss,
    StudyRecord,
    common_seeds,
    differences,
    drop_collapsed_splits,
    finished,
    load,
    percent,
)
from study.tables import ANGLES, fill_file, interval, study_tables
from study.verification import FALSE_ACCEPT

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
            unseen = common_seeds(load(folder, "unseen", dataset))
            if unseen := drop_collapsed_splits(unseen):
                save(draw_roc(unseen, name), folder / f"roc-{dataset}.png")
                save(draw_pairs(unseen, name), folder / f"pairs-{dataset}.png")
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


def describe_runs(unseen: RunsByLoss) -> str:
    """How many runs of each loss a picture shows, of which splits."""
    runs = next(iter(unseen.values()))
    splits = sorted({record["split"] + 1 for record in runs})
    return f"{len(runs)} runs each, split{'s' * (len(splits) > 1)} {' and '.join(map(str, splits))}"


def draw_roc(unseen: RunsByLoss, name: str) -> plt.Figure:
    """ROC of pairs of unseen classes: the mean over splits and seeds."""
    figure, axes = plt.subplots(figsize=(6.3, 3.6))
    rates = FALSE_ACCEPT * 100
    for loss, runs in unseen.items():
        name_of_loss, colour, marker = LOSS_STYLE[loss]
        curve = (100 * np.array([record["verification"]["roc"] for record in runs])).mean(axis=0)
        label = f"{name_of_loss}: EER {np.mean(percent(runs, 'eer')):.1f}%"
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "markevery": 10,
            "markersize": 3,
        }
        axes.plot(rates, curve, label=label, **style)
    axes.plot(rates, rates, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes.set(xscale="log", xlabel="false accept rate in %", ylabel="true accept rate in %")
    axes.set(xlim=(0.01, 100), ylim=(0, 100))
    axes.legend()
    runs_shown = f"Four classes that training never saw; {describe_runs(unseen)}"
    axes.set_title(f"{name}: are two images of one class?\n{runs_shown}")
    return figure


def draw_pairs(unseen: RunsByLoss, name: str) -> plt.Figure:
    """Angles of positive and negative pairs of unseen classes, after the paper's Fig. 6."""
    figure, axes = plt.subplots(
        len(unseen), 1, sharex=True, squeeze=False, figsize=(6.3, 1.1 * len(unseen) + 0.8)
    )
    for axis, (loss, runs) in zip(axes[:, 0], unseen.items(), strict=True):
        for kind, colour, hatch in (("positive", BLUE, None), ("negative", ORANGE, "///")):
            counts = np.sum([record["verification"][kind] for record in runs], axis=0)
            share = 100 * counts / counts.sum()
            style = {"color": colour, "alpha": 0.6, "hatch": hatch, "edgecolor": "white"}
            axis.bar(np.arange(180) + 0.5, share, 1, linewidth=0, label=kind, **style)
        axis.set(yticks=[], ylabel="share")
        title = f"{LOSS_STYLE[loss][0]}: EER {np.mean(percent(runs, 'eer')):.1f}%"
        axis.set_title(title, loc="left")
    last = axes[-1, 0]
    last.set(xlabel="angle between two embeddings, in degrees")
    last.set(xlim=(0, 140), xticks=range(0, 141, 20))
    axes[0, 0].legend(title="pairs")
    title = f"{name}: pairs of unseen classes; the less overlap, the better"
    figure.suptitle(f"{title}\n({describe_runs(unseen)})")
    return figure


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
