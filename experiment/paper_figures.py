"""The paper's pictures, redrawn with our loss and our data; called by experiment.study."""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from arcface_loss import ArcMarginProduct, angle, unit
from experiment import records
from experiment.figures import BLUE, CLASS_COLOURS, CLASS_MARKERS, GREEN, GREY, LOSSES, ORANGE, RED, STYLE, save, times
from experiment.records import ROOT

PAPER = {  # the margins of the paper: name, arguments, colour, line
    "softmax, normalised": ({"m": 0.0}, LOSSES["norm-softmax"][1], "--"),
    "SphereFace (1.35, 0, 0)": ({"m": 0.0, "m1": 1.35}, LOSSES["sphereface"][1], "-."),
    "CosFace (1, 0, 0.35)": ({"m": 0.0, "m3": 0.35}, LOSSES["cosface"][1], (0, (5, 1))),
    "ArcFace (1, 0.5, 0)": ({"m": 0.5}, LOSSES["arcface"][1], "-"),
    "CM1 (1, 0.3, 0.2)": ({"m": 0.3, "m3": 0.2}, LOSSES["cm1"][1], (0, (3, 1, 1, 1))),
    "CM2 (0.9, 0.4, 0.15)": ({"m": 0.4, "m1": 0.9, "m3": 0.15}, RED, ":"),
}
HANDOUT = np.array([[5.0, 2.0], [7.0, 4.0], [10.5, 6.0]])  # the assignment's two vectors, and the second one 50% longer


def draw(study: Path, folder: Path) -> None:
    """Draw the pictures that need no data, and those whose records are on disk.

    Args:
        study: the folder of the study's records. folder: where the pictures go.
    """
    with plt.rc_context(STYLE):
        save(fig4b(), folder / "fig4b-logits.png")
        save(fig5(), folder / "fig5-margins.png")
        save(geometry(), folder / "geometry.png")
        run = ROOT / "figures" / "mnist"
        if (run / "run.json").exists():
            save(fig4a(records.load_json(run / "run.json"), records.load_arrays(run / "arrays.npz")), folder / "fig4a-angles.png")
        planes = {loss: study / f"plane-mnist-{loss}-seed0.npz" for loss in ("softmax", "arcface")}
        if all(path.exists() for path in planes.values()):
            found = {
                loss: (records.load_json(path.with_suffix(".json")), records.load_arrays(path)) for loss, path in planes.items()
            }
            save(fig3(found), folder / "fig3-embeddings.png")


def target_logit(theta: np.ndarray, **margins: float) -> np.ndarray:
    """The target logit over s at angles in radians, as ArcMarginProduct computes it, margins as it takes them."""
    head = ArcMarginProduct(2, 2, s=1.0, **margins).double()
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
        x = torch.from_numpy(np.stack([np.cos(theta), np.sin(theta)], axis=1))
        return head(x, torch.zeros(len(x), dtype=torch.int64))[:, 0].numpy()


def fig3(found: dict[str, tuple[dict, dict]]) -> plt.Figure:
    """Two-dimensional test embeddings under softmax and under ArcFace, centres as lines."""
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 4.8))
    for axis, (loss, (record, arrays)) in zip(axes, found.items(), strict=True):
        points, centres = arrays["embeddings"], arrays["centres"]
        reach = np.quantile(np.linalg.norm(points, axis=1), 0.995)
        for k, centre in enumerate(centres):
            mine = points[arrays["labels"] == k]
            axis.scatter(*mine.T, s=6, linewidths=0, alpha=0.5, color=CLASS_COLOURS[k], marker=CLASS_MARKERS[k], label=str(k))
            axis.plot(*np.stack([[0, 0], reach * centre / np.linalg.norm(centre)]).T, color=CLASS_COLOURS[k], linewidth=1.5)
        axis.set(xlim=(-1.1 * reach, 1.1 * reach), ylim=(-1.1 * reach, 1.1 * reach), aspect="equal")
        axis.set(xlabel="first coordinate of the embedding", ylabel="second coordinate")
        s = "" if record["scale"] is None else f" (s = {record['scale']:g}, m = {record['margin']:g})"
        name, angles = LOSSES[loss][0], record["angles"]
        axis.set_title(
            f"{name}{s}: {record['test_accuracy']:.1%} right\nwithin a class {angles['intra_test']:.1f}°, "
            f"nearest other class {angles['inter_test']:.1f}°"
        )
    axes[1].legend(title="digit", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2.5)
    figure.suptitle("Eight digits in two dimensions: under ArcFace the class centres (lines) lie on their classes", fontsize=11)
    return figure


def fig4a(record: dict, arrays: dict) -> plt.Figure:
    """Distribution of the angle to the own centre at the start, in the middle and at the end of training."""
    figure, axes = plt.subplots()
    theta = arrays["snapshots"].astype(float)[:, :, 0]
    for values, when, colour, style in zip(theta, times(record), (GREY, ORANGE, BLUE), ("--", "-.", "-"), strict=True):
        counts, edges = np.histogram(values, np.arange(0, 181, 2), density=True)
        centre = (edges[:-1] + edges[1:]) / 2
        axes.plot(centre, counts, color=colour, linestyle=style, label=f"{when}: {values.mean():.0f}° on average")
        axes.fill_between(centre, counts, color=colour, alpha=0.2)
    axes.set(xlabel="angle θ to the own centre, in degrees", ylabel="density per degree", xlim=(0, 140), ylim=(0, None))
    axes.set_title(f"{record['dataset']}: ArcFace turns embeddings towards their centres")
    axes.legend()
    return figure


def fig4b() -> plt.Figure:
    """Target logit curves of all margins."""
    figure, axes = plt.subplots()
    degrees = np.linspace(20, 100, 321)
    for name, (margins, colour, style) in PAPER.items():
        axes.plot(degrees, target_logit(np.radians(degrees), **margins), color=colour, linestyle=style, label=name)
    axes.set(xlabel="angle θ to the own centre, in degrees", ylabel="target logit / s", xlim=(20, 100))
    axes.set_title("Every margin asks for a smaller angle to reach the same logit")
    axes.legend(title="loss (m1, m2, m3)")
    return figure


def fig5() -> plt.Figure:
    """Decision margins between two classes: only ArcFace's has the same width in angle everywhere."""
    kinds = {
        "normalised softmax": {"m": 0.0},
        "SphereFace, m1 = 1.35": {"m": 0.0, "m1": 1.35},
        "CosFace, m3 = 0.35": {"m": 0.0, "m3": 0.35},
        "ArcFace, m = 0.5": {"m": 0.5},
    }
    figure, axes = plt.subplots(1, 4, sharey=True, figsize=(10.4, 3.3))
    theta = np.linspace(0, np.pi / 2, 400)
    for axis, (name, margins) in zip(axes, kinds.items(), strict=True):
        logit = target_logit(theta, **margins)
        limit = np.degrees(np.arccos(np.clip(logit, -1, 1)))  # the other angle must be larger than this
        x = np.degrees(theta)
        axis.fill_between(x, limit, 200, color=BLUE, alpha=0.35, linewidth=0)
        axis.fill_betweenx(x, limit, 200, color=ORANGE, alpha=0.35, linewidth=0)
        axis.plot(x, limit, color=BLUE)
        axis.plot(limit, x, color="#A06F00", linestyle="--")
        axis.text(14, 78, "class 1", color="#004A75", weight="bold", ha="center")
        axis.text(76, 8, "class 2", color="#7A5500", weight="bold", ha="center")
        axis.set(title=name, xlim=(0, 90), ylim=(0, 90), aspect="equal", xticks=range(0, 91, 30), yticks=range(0, 91, 30))
        axis.set_xlabel("θ₁ in degrees")
    axes[0].set_ylabel("θ₂ in degrees")
    figure.suptitle("Margin between two classes (white): of constant width for ArcFace alone", fontsize=11)
    return figure


def geometry() -> plt.Figure:
    """Left: the handout's vectors. Right: where the margin is on the circle."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.2))
    a, b, longer = HANDOUT
    between = angle(unit(torch.tensor(a)[None]), unit(torch.tensor(b)[None])).rad2deg().item()
    after = angle(unit(torch.tensor(a)[None]), unit(torch.tensor(longer)[None])).rad2deg().item()
    left = axes[0]
    for end, colour, name in ((longer, GREEN, "B′ = 1.5·B = (10.5, 6)"), (b, ORANGE, "B = (7, 4)"), (a, BLUE, "A = (5, 2)")):
        left.annotate(
            "", end, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
        )
        below = end is a
        left.annotate(name, end, xytext=(-6, -14 if below else 6), textcoords="offset points", ha="left" if below else "right")
    for end, style in ((b, "--"), (longer, ":")):
        left.plot(*np.stack([a, end]).T, color="black", linestyle=style, linewidth=1)
    left.text(6.7, 2.5, f"|A − B| = {np.linalg.norm(a - b):.2f}", fontsize=9)
    left.text(8.1, 3.5, f"|A − B′| = {np.linalg.norm(a - longer):.2f}", fontsize=9)
    left.text(0.2, 6.4, f"angle from A to B:  {between:.2f}°\nangle from A to B′: {after:.2f}°", fontsize=10)
    left.set(xlim=(0, 12), ylim=(0, 8), aspect="equal", xlabel="first feature", ylabel="second feature")
    left.set_title("Longer, but not turned:\nthe distance grows, the angle stays")

    right = axes[1]
    turn = np.linspace(0, 2 * np.pi, 400)
    right.plot(np.cos(turn), np.sin(turn), color=GREY, linewidth=1)
    own, other, x, m = (math.radians(degrees) for degrees in (25, 130, 60, 20))
    for at, colour, name, away in ((own, BLUE, "own centre $W_y$", 1.08), (other, ORANGE, "other centre $W_j$", 1.08)):
        right.annotate(
            "", (np.cos(at), np.sin(at)), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkB": 0, "lw": 2}
        )
        right.text(away * np.cos(at), away * np.sin(at), name, color="black", ha="left" if np.cos(at) > 0 else "right")
    for at, style, name, rise in ((x, "-", "embedding x", -0.02), (x + m, "--", "x as the loss sees it", 0.06)):
        right.plot([0, np.cos(at)], [0, np.sin(at)], color="black", linestyle=style, linewidth=1.5)
        right.text(1.06 * np.cos(at), 1.06 * np.sin(at) + rise, name, ha="left")
    for start, stop, radius, colour, name in (
        (own, x, 0.45, BLUE, r"$\theta_y$"),
        (x, x + m, 0.62, RED, "m"),
        (x, other, 0.3, "#A06F00", r"$\theta_j$"),
    ):
        arc = np.linspace(start, stop, 60)
        right.plot(radius * np.cos(arc), radius * np.sin(arc), color=colour, linewidth=2)
        middle = (start + stop) / 2
        right.text(
            (radius + 0.09) * np.cos(middle), (radius + 0.09) * np.sin(middle), name, color=colour, ha="center", va="center"
        )
    right.set(xlim=(-1.55, 1.75), ylim=(-0.35, 1.3), aspect="equal", xticks=[], yticks=[])
    right.grid(False)
    for side in right.spines.values():
        side.set_visible(False)
    right.set_title("ArcFace adds m to the angle to the own centre:\nthat sum must still be smaller than the angle to any other")
    return figure
