"""How scale and margin place the classes: python -m study.grid [--data DIR]

MNIST's default recipe, cut to three epochs, with every pair of a scale and a margin; judged on
held-out training images. Records are in figures/study/, the picture is
figures/study/separation.png. ``--figures-only`` draws it from the records alone.
"""

import math
import sys
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import arcface_mnist
from experiment import data, records
from experiment.errors import Problem
from experiment.figures import BLUE, GREEN, GREY, ORANGE, RED
from experiment.records import ROOT
from study.figures import SIMPLEX, draw_means
from study.runs import Setup, Study, Task, outcome, train_and_draw
from study.selection import angle_of, finished, ratio

SCALES, MARGINS = (4, 8, 16, 32, 64), tuple(k / 10 for k in range(9))
EPOCHS, SEEDS = 3, 2
DRAWN = {  # margins, their colours and markers
    0.0: (BLUE, "o"),
    0.1: (GREEN, "s"),
    0.3: (ORANGE, "^"),
    0.5: (RED, "D"),
    0.8: ("black", "v"),
}


def separation(s: float, m: float, probability: float = 0.99, n: int = 10) -> float:
    """How far apart, in degrees, n equally distant classes are when an image on its centre has so
    high a p_y under L3: from cos Θ = cos m − ln((n − 1)·P/(1 − P))/s, at most the simplex's angle.

    Args:
        s, m: scale, and margin in radians.
    """
    cosine = math.cos(m) - math.log((n - 1) * probability / (1 - probability)) / s
    return math.degrees(math.acos(max(cosine, -1 / (n - 1))))


def compute(folder: Path, data_folder: Path) -> None:
    """Train what has no record yet, one seed after the other."""
    recipe = arcface_mnist.DEFAULT
    setup = Setup(train=arcface_mnist.train, recipe=recipe, held_out=10_000)
    source = data.load("MNIST", data_folder)
    study = Study(folder, setup, source, SEEDS * len(SCALES) * len(MARGINS))
    held_out = source.for_validation(setup.held_out)
    for seed in range(SEEDS):
        for scale in SCALES:
            for margin in MARGINS:
                task = Task(
                    part="scale-margin",
                    dataset="mnist",
                    loss="arcface",
                    scale=scale,
                    margin=margin,
                    head_lr=recipe.learning_rates["head"],
                    epochs=EPOCHS,
                    seed=seed,
                    named_by=("scale", "margin", "seed"),
                )
                study.run(task, held_out, partial(outcome, views=[]))
    study.bar.close()


def draw(folder: Path) -> plt.Figure:
    """Inter, and its ratio to Intra, over the scale, a line for each of some margins."""
    runs = finished(records.load_lines(folder / "scale-margin-mnist.jsonl"))
    if not runs:
        raise Problem("study.grid has no records yet. Run it without options.")
    figure, axes = plt.subplots(1, 2, figsize=(6.3, 2.4))
    for margin, (colour, marker) in DRAWN.items():
        of_margin = [run for run in runs if run["margin"] == margin]
        style = {"color": colour, "marker": marker, "label": f"{margin:g}"}
        for axis, value in ((axes[0], angle_of("inter_test")), (axes[1], ratio)):
            draw_means(axis, of_margin, "scale", value, **style)
    across = np.geomspace(min(SCALES), max(SCALES), 200)
    axes[0].plot(across, [separation(s, 0) for s in across], "--", color=GREY, linewidth=1.5)
    axes[0].annotate(
        "$p_y$ = 0.99 on the centres,\nm = 0",
        (40, separation(40, 0)),
        (4.3, 12),
        color=GREY,
        arrowprops={"arrowstyle": "-", "color": GREY},
    )
    axes[0].axhline(SIMPLEX, color=GREY, linewidth=0.8, linestyle=":")
    axes[0].text(64, SIMPLEX + 1, "regular simplex", color=GREY, ha="right")
    axes[0].set(ylabel="Inter, in degrees", ylim=(0, 108), title="how far apart the classes are")
    axes[1].set(yscale="log", ylim=(3, 50), ylabel="Inter / Intra")
    axes[1].set(yticks=(3, 5, 10, 20, 40), yticklabels=("3", "5", "10", "20", "40"))
    axes[1].set(title="divided by how wide they are")
    axes[1].minorticks_off()
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set(xlabel="scale s", xticks=SCALES, xticklabels=map(str, SCALES))
    axes[1].legend(title="margin m", ncols=2)
    figure.suptitle(f"MNIST, ArcFace after {EPOCHS} epochs ({SEEDS} seeds)")
    return figure


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run what has no record yet, then draw. Returns the exit status.

    Args:
        root: the folder of figures/, where records are kept and the picture goes.
    """
    folder = root / "figures" / "study"
    pictures = {"separation.png": draw}
    return train_and_draw(__doc__, argv, partial(compute, folder), folder, pictures)


if __name__ == "__main__":
    sys.exit(main())
