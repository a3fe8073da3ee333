"""Digits on the sphere, and how they got there: python -m study.sphere [--data DIR]

MNIST with three-dimensional embeddings, under plain softmax and under ArcFace. The directions of
test images and of the class centres are kept at four moments of the training, in figures/study/;
the picture is figures/study/sphere.png. ``--figures-only`` draws it from the records alone.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import arcface_mnist
from arcface_loss import unit
from experiment import data, evaluation, records
from experiment.data import Data
from experiment.errors import Problem
from experiment.figures import CLASS_COLOURS, GREY, LOSS_STYLE
from experiment.recipe import Recipe, Settings
from experiment.records import ROOT
from experiment.training import Classifier, Trained
from study.runs import Setup, Study, Task, measure_angles, train_and_draw

RECIPE = replace(arcface_mnist.DEFAULT, hardest=1.0, epochs=6)  # all images in every epoch
SETTINGS = {"softmax": (None, None), "arcface": (16.0, 0.2)}  # s and m of each loss
STEPS = (1, 30, 120)  # what is drawn besides the end: before these steps
SHOWN = 1000  # test images


class Watched:
    """MNIST's train(), which keeps the directions of test images before each of STEPS.

    moments: pairs of embeddings' directions, SHOWN × 3, and centres' directions, 10 × 3.
    """

    def __init__(self) -> None:
        self.moments: list[tuple[Tensor, Tensor]] = []

    def train(
        self, recipe: Recipe, settings: Settings, source: Data, out: Path, resume: bool
    ) -> Trained:
        """From the beginning, even where there is a checkpoint: the moments are not in it."""
        self.moments, step = [], 0

        def watch(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal step
            if isinstance(module, Classifier) and module.training:
                step += 1
                if step in STEPS:
                    module.eval()
                    self.keep(module.network, module.head, source, settings.precision)
                    module.train()

        (out / "checkpoint.pt").unlink(missing_ok=True)
        hook = register_module_forward_hook(watch)
        try:
            return arcface_mnist.train(recipe, settings, source, out, False)
        finally:
            hook.remove()

    def keep(self, network: nn.Module, head: evaluation.Head, source: Data, precision: str) -> None:
        """Add the moment that a network and its head are at."""
        embeddings = evaluation.embed(network, source.test_images[:SHOWN], precision)
        self.moments.append((unit(embeddings), unit(head.weight.detach())))

    def measure(self, path: Path, trained: Trained, source: Data, precision: str) -> dict[str, Any]:
        """The angles; the moments, with the end as their last, go to ``path``."""
        self.keep(trained.network, trained.head, source, precision)
        points, centres = (
            torch.stack(moments).cpu().numpy() for moments in zip(*self.moments, strict=True)
        )
        labels = source.test_labels[:SHOWN].cpu().numpy().astype(np.uint8)
        arrays = {"points": points, "centres": centres}
        records.save_arrays(
            path, labels=labels, **{key: array.astype(np.float16) for key, array in arrays.items()}
        )
        return measure_angles(trained, source, precision)


def compute(folder: Path, data_folder: Path) -> None:
    """Train what has no record yet."""
    watched, source = Watched(), data.load("MNIST", data_folder)
    setup = Setup(train=watched.train, recipe=RECIPE)
    study = Study(folder, setup, source, len(SETTINGS))
    for loss, (scale, margin) in SETTINGS.items():
        task = Task(
            part="sphere",
            dataset="mnist",
            loss=loss,
            scale=scale,
            margin=margin,
            head_lr=RECIPE.learning_rates["linear head" if scale is None else "head"],
            epochs=RECIPE.epochs,
            embedding_size=3,
        )
        study.run(task, source, partial(watched.measure, folder / f"{task.name}.npz"))
    study.bar.close()


# --- the picture ----------------------------------------------------------------------------------


def draw(folder: Path) -> plt.Figure:
    """A row for each loss: one half of the sphere at each moment, and the other half at the end."""
    runs = records.load_lines(folder / "sphere-mnist.jsonl")
    if {run["loss"] for run in runs} != SETTINGS.keys():
        raise Problem("study.sphere has not trained with both losses yet. Run it without options.")
    titles = [f"before step {step}" for step in STEPS] + ["at the end", "the end, from behind"]
    figure, axes = plt.subplots(len(runs), len(titles), figsize=(6.3, 2.75))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for row, run in zip(axes, runs, strict=True):
        arrays = records.load_arrays(folder / f"{run['name']}.npz")
        points, centres = (arrays[key].astype(float) for key in ("points", "centres"))
        for axis, k in zip(row, [*range(len(STEPS) + 1), -1], strict=True):
            side = -1 if axis is row[-1] else 1
            _half(axis, points[k], arrays["labels"], centres[k], side, run["margin"] or 0.0)
        angles, setting = run["angles"], ""
        if run["scale"]:
            setting = f"\ns = {run['scale']:g}, m = {run['margin']:g}"
        row[0].set_ylabel(
            f"{LOSS_STYLE[run['loss']][0]}{setting}\n"
            f"Intra {angles['intra_test']:.1f}°, Inter {angles['inter_test']:.1f}°"
        )
    return figure


def _half(
    axis: plt.Axes, points: np.ndarray, labels: np.ndarray, centres: np.ndarray, side: int, m: float
) -> None:
    """The half of the unit sphere that is seen from the side of the first axis, or from its back.

    Grey: where the two nearest centres differ by less than m in their angle.
    """
    across = np.linspace(-1, 1, 301)
    y, z = np.meshgrid(across, across)
    inside = y**2 + z**2 <= 1
    x = np.sqrt(np.maximum(1 - y**2 - z**2, 0))
    surface = np.stack([side * x, side * y, z], axis=-1)
    theta = np.sort(np.arccos(np.clip(surface @ centres.T, -1, 1)), axis=-1)
    gap = theta[..., 1] - theta[..., 0]
    shade = np.zeros((*gap.shape, 4))
    width, opacity = (m, 0.27) if m else (0.015, 0.54)  # m = 0: a thin line
    shade[..., 3] = np.where(inside & (gap < width), opacity, 0.0)
    axis.imshow(shade, extent=(-1, 1, -1, 1), origin="lower", interpolation="bilinear")
    axis.add_patch(plt.Circle((0, 0), 1, fill=False, color=GREY, linewidth=0.6))
    for k, centre in enumerate(centres):
        mine = points[labels == k]
        mine = mine[side * mine[:, 0] > 0]
        style: dict[str, Any] = {"color": CLASS_COLOURS[k], "linewidths": 0}
        axis.scatter(side * mine[:, 1], mine[:, 2], s=2, alpha=0.6, **style)
        if side * centre[0] > 0:
            place = side * centre[1], centre[2]
            box = {"boxstyle": "circle,pad=0.12", "facecolor": "white", "linewidth": 0.8}
            box |= {"edgecolor": CLASS_COLOURS[k]}
            axis.text(*place, str(k), ha="center", va="center", fontsize=7, bbox=box)
    axis.set(xlim=(-1.06, 1.06), ylim=(-1.06, 1.06), aspect="equal", xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Train what has no record yet, then draw. Returns the exit status.

    Args:
        root: the folder of figures/, where records are kept and the picture goes.
    """
    folder = root / "figures" / "study"
    return train_and_draw(__doc__, argv, partial(compute, folder), folder, {"sphere.png": draw})


if __name__ == "__main__":
    sys.exit(main())
