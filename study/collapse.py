"""Why ArcFace can collapse, and what prevents it: python -m study.collapse [--data DIR]

Six classes of CIFAR-10, s = 12 and m = 0.3 in an earlier recipe: the beginning of such a training,
over ten seeds, with the margin from the first step and with a margin that rises; other losses,
margins and learning rates are the controls. Records go to figures/study/, and so does the picture,
collapse.png; ``--figures-only`` draws it from the records alone.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import arcface_cifar10
from experiment import data, records
from experiment.data import Data
from experiment.errors import Problem
from experiment.figures import BLUE, ORANGE
from experiment.records import ROOT
from experiment.training import Trained
from study.runs import Setup, Study, Task, train_and_draw
from study.unseen import classes_seen

# Twelve epochs of that recipe were 720 steps, the first 72 of them its warm-up. It is the beginning
# that matters: 120 steps are made, with the same warm-up, of which the last 30 have larger images.
RECIPE = replace(
    arcface_cifar10.DEFAULT,
    network=arcface_cifar10.DEFAULT.network | {"residual": False},
    augmentation={"shift": 2, "hidden": 0, "sizes": [20, 20, 20, 28], "light": 0.0},
    learning_rates={"filters": 0.12, "others": 0.2, "head": 0.5, "linear head": 0.02},
    warm_up=0.6,
    epochs=2,
    batch_size=500,
    hardest=1.0,
    margin_warm_up=0.6,
)
SETUP = Setup(train=arcface_cifar10.train, recipe=RECIPE, seeds=10)
NAMED_BY = ("scale", "margin", "head_lr", "margin_warm_up", "seed")


def tasks() -> list[Task]:
    """The trainings: with and without the rise over all seeds, then each control with one."""
    base = Task(
        part="collapse",
        dataset="cifar10",
        loss="arcface",
        scale=12.0,
        margin=0.3,
        head_lr=0.25,
        epochs=RECIPE.epochs,
        split=0,
        margin_warm_up=0.0,
        named_by=NAMED_BY,
    )
    rising = replace(base, margin_warm_up=RECIPE.margin_warm_up)
    controls = [
        replace(base, margin=0.1),
        replace(base, margin=0.2),
        replace(base, loss="cosface"),
        replace(base, head_lr=0.0625),
        replace(base, head_lr=1.0),
        replace(rising, margin=0.5),
    ]
    found = [replace(task, seed=seed) for seed in range(SETUP.seeds) for task in (base, rising)]
    return found + controls


def measure(trained: Trained, source: Data, precision: str) -> dict[str, Any]:
    """The mean θ to the own centre of each step, in degrees."""
    return {"mean_theta": [round(theta, 1) for theta in trained.mean_theta.rad2deg().tolist()]}


def compute(folder: Path, data_folder: Path) -> None:
    """Train what has no record yet."""
    source = data.load("CIFAR-10", data_folder)
    study = Study(folder, SETUP, source, len(tasks()))
    seen = source.select_classes(classes_seen(0))
    for task in tasks():
        study.run(task, seen, measure)
    study.bar.close()


def draw(folder: Path) -> plt.Figure:
    """θ to the own centre over the steps, a line for each seed. It is to be printed 3.4 in wide."""
    runs = records.load_lines(folder / "collapse-cifar10.jsonl")
    if not runs:
        raise Problem("study.collapse has no records yet. Run it without options.")
    figure, axes = plt.subplots(figsize=(3.4, 2.6))
    for rise, colour, label in ((0.0, ORANGE, "whole m"), (0.6, BLUE, "rising m")):
        chosen = [
            run
            for run in runs
            if run["loss"] == "arcface"
            and (run["margin"], run["head_lr"], run["margin_warm_up"]) == (0.3, 0.25, rise)
        ]
        for run in chosen:
            steps = np.arange(1, len(run["mean_theta"]) + 1)
            axes.plot(steps, run["mean_theta"], color=colour, linewidth=0.7)
        axes.plot([], [], color=colour, label=f"{label} ({len(chosen)} seeds)")
    axes.axvline(72, color="grey", linestyle=":", linewidth=1)
    axes.annotate("end of\nthe warm-up", (72, 35), xytext=(4, 0), textcoords="offset points")
    axes.set(xlabel="step", ylabel="mean θ to the own centre in °")
    axes.set(ylim=(0, 180), yticks=range(0, 181, 30), title="Six classes, s = 12, m = 0.3")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.58), handlelength=1)
    return figure


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run what has no record yet, then draw. Returns the exit status.

    Args:
        root: the folder of figures/, where records are kept and the picture goes.
    """
    folder = root / "figures" / "study"
    return train_and_draw(__doc__, argv, partial(compute, folder), folder, {"collapse.png": draw})


if __name__ == "__main__":
    sys.exit(main())
