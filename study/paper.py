"""The paper's pictures, redrawn with our loss and our data: python -m study.paper [--data DIR]

They are in figures/paper/. For one of them MNIST's digits are embedded in two dimensions, under
plain softmax and under ArcFace; the records of both trainings are in figures/study/, and none is
computed twice. ``--figures-only`` draws from the records alone.
"""

import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

import arcface_mnist
from arcface_loss import ArcMarginProduct, angle, unit
from experiment import data, evaluation, records
from experiment.data import Data
from experiment.figures import (
    BLUE,
    CLASS_COLOURS,
    CLASS_MARKERS,
    GREEN,
    GREY,
    LOSS_STYLE,
    ORANGE,
    RED,
)
from experiment.records import ROOT
from experiment.training import Trained
from study.runs import Setup, Study, Task, measure_angles, train_and_draw
from study.selection import load

PAPER_MARGINS = {  # the margins of the paper: name, arguments, colour, line
    "softmax, normalised": ({"m": 0.0}, LOSS_STYLE["norm-softmax"][1], "--"),
    "SphereFace (1.35, 0, 0)": ({"m": 0.0, "m1": 1.35}, LOSS_STYLE["sphereface"][1], "-."),
    "CosFace (1, 0, 0.35)": ({"m": 0.0, "m3": 0.35}, LOSS_STYLE["cosface"][1], (0, (5, 1))),
    "ArcFace (1, 0.5, 0)": ({"m": 0.5}, LOSS_STYLE["arcface"][1], "-"),
    "CM1 (1, 0.3, 0.2)": ({"m": 0.3, "m3": 0.2}, LOSS_STYLE["cm1"][1], (0, (3, 1, 1, 1))),
    "CM2 (0.9, 0.4, 0.15)": ({"m": 0.4, "m1": 0.9, "m3": 0.15}, RED, ":"),
}
DARK_ORANGE = "#A06F00"  # for lines and letters, which plain orange makes too pale
# The assignment's two vectors, and the second one 50% longer.
HANDOUT = np.array([[5.0, 2.0], [7.0, 4.0], [10.5, 6.0]])
PLANE = replace(  # all images in every epoch, the margin whole from the first step
    arcface_mnist.DEFAULT,
    augmentation=arcface_mnist.DEFAULT.augmentation | {"full": 1.0},
    epochs=6,
    hardest=1.0,
    margin_warm_up=0.0,
)
# s, m and the last layer's learning rate of the embeddings with d = 2
PLANE_SETTINGS = {"softmax": (None, None, 0.005), "arcface": (16.0, 0.2, 0.2)}
PLANE_CLASSES = list(range(8))  # as many as in the paper's Fig. 3
PLANE_POINTS = 4000  # test embeddings that its picture shows

# --- embeddings in the plane ----------------------------------------------------------------------


def compute(folder: Path, data_folder: Path) -> None:
    """Train what has no record yet: two-dimensional embeddings of eight of the digits."""
    setup = Setup(train=arcface_mnist.train, recipe=PLANE)
    source = data.load("MNIST", data_folder)
    study = Study(folder, setup, source, len(PLANE_SETTINGS))
    plane(study)
    study.bar.close()


def plane(study: Study) -> None:
    """Train each loss on PLANE_CLASSES."""
    digits = study.source.select_classes(PLANE_CLASSES)
    for loss, (scale, margin, head_lr) in PLANE_SETTINGS.items():
        task = Task(
            part="plane",
            dataset="mnist",
            loss=loss,
            scale=scale,
            margin=margin,
            head_lr=head_lr,
            epochs=PLANE.epochs,
            embedding_size=2,
        )
        study.run(task, digits, partial(measure, path=study.folder / f"{task.name}.npz"))


def measure(trained: Trained, source: Data, precision: str, *, path: Path) -> dict[str, Any]:
    """The angles; test embeddings, their labels and the class centres go to ``path``."""
    embeddings = evaluation.embed(trained.network, source.test_images[:PLANE_POINTS], precision)
    records.save_arrays(
        path,
        embeddings=embeddings.cpu().numpy().astype(np.float32),
        labels=source.test_labels[:PLANE_POINTS].cpu().numpy().astype(np.uint8),
        centres=trained.head.weight.detach().cpu().numpy().astype(np.float32),
    )
    return measure_angles(trained, source, precision)


# --- the pictures ---------------------------------------------------------------------------------


def target_logit(theta: np.ndarray, **margins: Any) -> np.ndarray:
    """φ(θ), the target logit over s, at angles in radians; margins as ArcMarginProduct has them."""
    head = ArcMarginProduct(1, 2, s=1.0, **margins)
    return head.target_cosine(torch.from_numpy(theta))[0].numpy()


def fig3(study: Path) -> plt.Figure | None:
    """Two-dimensional test embeddings under softmax and under ArcFace, centres as lines.

    Args:
        study: the folder of their records; without both it returns None.
    """
    runs = load(study, "plane", "mnist")
    if runs.keys() != PLANE_SETTINGS.keys():
        return None
    figure, axes = plt.subplots(1, 2, figsize=(5.2, 2.9))
    for axis, (loss, (record,)) in zip(axes, runs.items(), strict=True):
        arrays = records.load_arrays(study / f"{record['name']}.npz")
        points, centres = arrays["embeddings"], arrays["centres"]
        reach = np.quantile(np.linalg.norm(points, axis=1), 0.995)
        for k, centre in enumerate(centres):
            mine = points[arrays["labels"] == k]
            style = {"color": CLASS_COLOURS[k], "marker": CLASS_MARKERS[k], "label": str(k)}
            axis.scatter(*mine.T, s=3, linewidths=0, alpha=0.5, **style)
            line = np.stack([[0, 0], reach * centre / np.linalg.norm(centre)])
            axis.plot(*line.T, color=CLASS_COLOURS[k], linewidth=1.5)
        limits = (-1.1 * reach, 1.1 * reach)
        axis.set(xlim=limits, ylim=limits, aspect="equal")
        axis.set(xlabel="first coordinate of the embedding", ylabel="second coordinate")
        scale, margin, angles = record["scale"], record["margin"], record["angles"]
        setting = "" if scale is None else f" (s = {scale:g}, m = {margin:g})"
        axis.set_title(
            f"{LOSS_STYLE[loss][0]}{setting}: {record['test_accuracy']:.1%} right\n"
            f"Intra {angles['intra_test']:.1f}°, Inter {angles['inter_test']:.1f}°"
        )
    axes[1].legend(title="digit", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2.5)
    title = "Eight digits in two dimensions: under ArcFace the class centres (lines) lie on their"
    figure.suptitle(f"{title} classes")
    return figure


def fig4b() -> plt.Figure:
    """Target logit curves of all margins."""
    figure, axes = plt.subplots(figsize=(3.4, 3.0))
    degrees = np.linspace(20, 100, 321)
    for name, (margins, colour, line) in PAPER_MARGINS.items():
        logit = target_logit(np.radians(degrees), **margins)
        axes.plot(degrees, logit, color=colour, linestyle=line, label=name)
    axes.set(xlabel="angle θ to the own centre, in degrees", ylabel="target logit / s")
    axes.set(xlim=(20, 100))
    axes.set_title("With a margin the same logit needs a smaller angle")
    title = "loss (m1, m2, m3)"
    figure.legend(title=title, loc="outside lower center", ncols=2, handlelength=3)
    return figure


def fig5() -> plt.Figure:
    """Decision margins between two classes: only ArcFace's has the same width in angle
    everywhere."""
    kinds = {
        "normalised softmax": {"m": 0.0},
        "SphereFace, m1 = 1.35": {"m": 0.0, "m1": 1.35},
        "CosFace, m3 = 0.35": {"m": 0.0, "m3": 0.35},
        "ArcFace, m = 0.5": {"m": 0.5},
    }
    figure, axes = plt.subplots(1, 4, sharey=True, figsize=(6.3, 2.1))
    theta = np.linspace(0, np.pi / 2, 400)
    for axis, (name, margins) in zip(axes, kinds.items(), strict=True):
        logit = target_logit(theta, **margins)
        # The angle to the other centre must be larger than this.
        limit = np.degrees(np.arccos(np.clip(logit, -1, 1)))
        x = np.degrees(theta)
        axis.fill_between(x, limit, 200, color=BLUE, alpha=0.35, linewidth=0)
        axis.fill_betweenx(x, limit, 200, color=ORANGE, alpha=0.35, linewidth=0)
        axis.plot(x, limit, color=BLUE)
        axis.plot(limit, x, color=DARK_ORANGE, linestyle="--")
        axis.text(14, 78, "class 1", color="#004A75", weight="bold", ha="center")
        axis.text(76, 8, "class 2", color="#7A5500", weight="bold", ha="center")
        ticks = range(0, 91, 30)
        axis.set(xlim=(0, 90), ylim=(0, 90), aspect="equal", xticks=ticks, yticks=ticks)
        axis.set(title=name, xlabel="θ₁ in degrees")
    axes[0].set_ylabel("θ₂ in degrees")
    title = "Margin between two classes (white): of constant width for ArcFace alone"
    figure.suptitle(title)
    return figure


def geometry() -> plt.Figure:
    """Left: the assignment's vectors. Right: which two angles ArcFace compares."""
    figure, axes = plt.subplots(1, 2, figsize=(6.3, 2.9))
    _draw_vectors(axes[0])
    _draw_margin(axes[1])
    return figure


def _draw_vectors(axis: plt.Axes) -> None:
    a, b, longer = HANDOUT
    directions = unit(torch.tensor(HANDOUT))
    between, after = (angle(directions[:1], directions[k : k + 1]).rad2deg().item() for k in (1, 2))
    for end, colour, name in (
        (longer, GREEN, "B′ = 1.5·B = (10.5, 6)"),
        (b, ORANGE, "B = (7, 4)"),
        (a, BLUE, "A = (5, 2)"),
    ):
        _draw_arrow(axis, end, colour, shrinkA=0)
        below = end is a
        offset, side = (-4, -11 if below else 4), "left" if below else "right"
        axis.annotate(name, end, xytext=offset, textcoords="offset points", ha=side)
    for end, line in ((b, "--"), (longer, ":")):
        axis.plot(*np.stack([a, end]).T, color="black", linestyle=line, linewidth=1)
    axis.text(8.3, 3.7, f"A to B′: {np.linalg.norm(a - longer):.2f}")
    leader = {"arrowstyle": "-", "linewidth": 0.7}
    text = f"A to B: {np.linalg.norm(a - b):.2f}"
    axis.annotate(text, (6.1, 3.1), (7.6, 1.6), arrowprops=leader)
    low, high = (math.atan2(end[1], end[0]) for end in (a, b))
    _draw_arc(axis, low, high, 3.2, RED)
    text = f"{between:.2f}° to B\n{after:.2f}° to B′"
    axis.annotate(text, (2.86, 1.42), (1.2, 4.2), arrowprops=leader | {"color": RED})
    axis.set(xlim=(0, 12), ylim=(0, 7), aspect="equal")
    axis.set(xlabel="first feature", ylabel="second feature")
    axis.set_title("Longer, but not turned: the distance\nfrom A grows, the angle stays")


def _draw_margin(axis: plt.Axes) -> None:
    """The angles of one embedding on the circle, and below them the comparison, as two bars."""
    degrees = {"own": 25, "x": 60, "other": 130, "m": 20}
    own, x, other = (math.radians(degrees[key]) for key in ("own", "x", "other"))
    turn = np.linspace(0, np.pi, 200)
    axis.plot(np.cos(turn), np.sin(turn), color=GREY, linewidth=1)
    for at, colour, name in (
        (own, BLUE, "own $W_y$"),
        (other, ORANGE, "other $W_j$"),
        (x, "black", "embedding x"),
    ):
        end = np.array([np.cos(at), np.sin(at)])
        _draw_arrow(axis, end, colour, linewidth=1.5)
        axis.text(1.06 * end[0], 1.06 * end[1], name, ha="left" if end[0] > 0 else "right")
    for start, stop, radius, colour, name in (
        (own, x, 0.5, BLUE, r"$\theta_y$"),
        (x, other, 0.35, DARK_ORANGE, r"$\theta_j$"),
    ):
        _draw_arc(axis, start, stop, radius, colour)
        middle, away = (start + stop) / 2, radius + 0.13
        place = away * np.cos(middle), away * np.sin(middle)
        axis.text(*place, name, color=colour, ha="center", va="center")
    theta_y, theta_j = degrees["x"] - degrees["own"], degrees["other"] - degrees["x"]
    for left, width, height, colour, name in (
        (0, theta_y, -0.35, BLUE, rf"$\theta_y$ = {theta_y}°"),
        (theta_y, degrees["m"], -0.35, RED, f"m={degrees['m']}°"),
        (0, theta_j, -0.62, DARK_ORANGE, rf"$\theta_j$ = {theta_j}°"),
    ):
        scale = 2 / 75  # the longest bar is nearly as wide as the circle
        axis.barh(height, scale * width, 0.22, scale * left - 1, color=colour)
        middle = scale * (left + width / 2) - 1
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": "white", "fontsize": 7}
        axis.text(middle, height - 0.01, name, **style)
    axis.set(xlim=(-1.32, 1.5), ylim=(-0.78, 1.12), aspect="equal", xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title(
        "m is added to the own angle alone;\nthe sum must be smaller than any other angle"
    )


def _draw_arc(axis: plt.Axes, start: float, stop: float, radius: float, colour: str) -> None:
    """Round the origin, between two directions in radians."""
    arc = np.linspace(start, stop, 60)
    axis.plot(radius * np.cos(arc), radius * np.sin(arc), color=colour, linewidth=1.5)


def _draw_arrow(axis: plt.Axes, end: np.ndarray, colour: str, **style: Any) -> None:
    """From the origin to ``end``."""
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 2, "shrinkB": 0} | style
    axis.annotate("", (end[0], end[1]), (0, 0), arrowprops=style)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Train what has no record yet, then draw. Returns the exit status.

    Args:
        root: the folder of figures/, where records are kept and pictures go.
    """
    folder, study = root / "figures/paper", root / "figures/study"
    pictures = {
        "fig3-embeddings.png": lambda _: fig3(study),
        "fig4b-logits.png": lambda _: fig4b(),
        "fig5-margins.png": lambda _: fig5(),
        "geometry.png": lambda _: geometry(),
    }
    return train_and_draw(__doc__, argv, partial(compute, study), folder, pictures)


if __name__ == "__main__":
    sys.exit(main())
