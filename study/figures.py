"""Pictures of several losses, and lines through means, from the study's records."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiment.figures import GREY, LOSS_STYLE, RED
from study.selection import ARCFACE, RunsByLoss, StudyRecord, differences, finished
from study.tables import ANGLES, interval

Value = Callable[[StudyRecord], float]  # what is drawn of a run

SIMPLEX = float(np.degrees(np.arccos(-1 / 9)))  # ten directions cannot all be further apart
PAPER_STYLE: dict[int, tuple[str, str, Any]] = {  # column of ANGLES: name, colour, line
    1: ("paper, norm. softmax", "#2b7fa8", ":"),
    2: ("paper, ArcFace", "black", "-"),
}


def draw_accuracy(runs: RunsByLoss, title: str) -> plt.Figure:
    """Test accuracies, and their differences to ArcFace's with the same seeds.

    Args:
        runs: by the name that is printed.
    """
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(6.3, 2.7), width_ratios=(1.2, 1))
    styles = _styles(runs)
    for place, (name, group) in enumerate(runs.items()):
        style = styles[name]
        _draw_interval(axes[0], [100 * run["accuracy"] for run in finished(group)], place, style)
        if name != ARCFACE:
            _draw_interval(axes[1], differences(runs, name), place, style)
    axes[0].set(yticks=range(len(runs)), yticklabels=runs, xlabel="test accuracy in %")
    axes[0].invert_yaxis()
    axes[1].axvline(0, color=LOSS_STYLE["arcface"][1], linewidth=1.5)
    axes[1].set(xlabel="minus ArcFace's, same seed, points")
    text: dict[str, Any] = {"va": "bottom", "fontsize": 7, "color": GREY}
    text["transform"] = axes[1].get_xaxis_transform()
    for side, words in (("right", "ArcFace better ← "), ("left", " → ArcFace worse")):
        axes[1].text(0, 1.0, words, ha=side, **text)
    figure.suptitle(f"{title} ({len(runs[ARCFACE])} seeds each; bars: 95% intervals)")
    return figure


def _styles(runs: RunsByLoss) -> dict[str, dict[str, Any]]:
    """Colour and marker of each loss; of its other settings the markers are hollow."""
    styles: dict[str, dict[str, Any]] = {}
    hollow = iter("Pvs")
    for name, group in runs.items():
        usual, colour, marker = LOSS_STYLE[group[0]["loss"]]
        own = name == usual
        styles[name] = {"color": colour, "marker": marker if own else next(hollow)}
        styles[name] |= {"markerfacecolor": colour if own else "white"}
        styles[name] |= {"markersize": 4.5, "markeredgewidth": 0.7}
    return styles


def _draw_interval(
    axis: plt.Axes, values: list[float], place: float, style: dict[str, Any]
) -> None:
    mean, half = interval(values)
    colour = style["color"]
    axis.plot(values, [place + 0.22] * len(values), "|", color=colour, alpha=0.7, markersize=5)
    half = 0 if np.isnan(half) else half
    axis.errorbar(mean, place, xerr=half, capsize=3, **style)


def draw_angles(runs: RunsByLoss, title: str) -> plt.Figure:
    """The six angles of Table 3 for each loss, the paper's beside them.

    Args:
        runs: by the name that is printed.
    """
    figure, axes = plt.subplots(figsize=(6.3, 3.2))
    styles = _styles(runs)
    for place, key in enumerate(ANGLES):
        for offset, (name, group) in enumerate(runs.items()):
            mean, half = interval([run["angles"][key] for run in finished(group)])
            x = place + 0.11 * (offset - (len(runs) - 1) / 2)
            half = 0 if np.isnan(half) else half
            axes.errorbar(x, mean, yerr=half, linestyle="none", capsize=2, **styles[name])
        for column, (_, colour, line) in PAPER_STYLE.items():
            ends, value = [place - 0.4, place + 0.4], ANGLES[key][column]
            axes.plot(ends, [value, value], color=colour, linewidth=1, linestyle=line)
    axes.axhline(SIMPLEX, color=RED, linewidth=1, linestyle="--")
    axes.text(-0.45, SIMPLEX + 2.5, f"simplex limit {SIMPLEX:.2f}°", color=RED)
    labels = [label for label, _, _ in ANGLES.values()]
    axes.set(xticks=range(len(ANGLES)), xticklabels=labels)
    axes.set(ylabel="angle in degrees", ylim=(-2, 107))
    handles = [plt.Line2D([], [], label=name, linestyle="none", **styles[name]) for name in runs]
    handles += [
        plt.Line2D([], [], label=label, color=colour, linestyle=line, linewidth=1)
        for label, colour, line in PAPER_STYLE.values()
    ]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(title)
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
