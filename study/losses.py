"""What does the margin do? The comparison of losses: python -m study.losses [mnist | cifar10]

A finished training leaves its record in figures/study/ and is never computed twice; an interrupted
one is resumed. ``--figures-only`` draws the pictures and fills the tables from the records alone.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import arcface_cifar10
import arcface_mnist
from experiment import cli, data, errors, evaluation, machine, records
from experiment.data import Data
from experiment.recipe import LOSSES, Recipe
from experiment.records import ROOT
from experiment.training import Trained
from study import figures, paper
from study.runs import Setup, Study, Task

# Shorter than the recipes of the scripts, every epoch of all images, the margin whole from the
# first step, and for CIFAR-10 with a smaller network.
MNIST = replace(
    arcface_mnist.DEFAULT,
    augmentation=arcface_mnist.DEFAULT.augmentation | {"full": 1.0},
    epochs=6,
    hardest=1.0,
    margin_warm_up=0.0,
)
CIFAR10 = replace(
    arcface_cifar10.DEFAULT,
    network=arcface_cifar10.DEFAULT.network | {"residual": False},
    augmentation={"shift": 2, "hidden": 0, "sizes": [20, 24, 28], "light": 0.0},
    learning_rates={"filters": 0.12, "others": 0.2, "head": 0.5, "linear head": 0.02},
    warm_up=0.1,
    epochs=12,
    batch_size=500,
    hardest=1.0,
    margin_warm_up=0.0,
)
SETUPS = {
    "mnist": Setup(train=arcface_mnist.train, recipe=MNIST, seeds=5),
    "cifar10": Setup(train=arcface_cifar10.train, recipe=CIFAR10, seeds=3),
}
SETTINGS = ("scale", "margin", "head_lr")  # what the runs of tuning differ in
MARGINS = {"arcface": (0.1, 0.3), "cosface": (0.1, 0.2), "sphereface": (1.1, 1.35)}  # first guesses
ATTEMPTS = 6  # short runs to tune a loss
PLANE = {"softmax": (None, None), "arcface": (16.0, 0.2)}  # s and m of the embeddings with d = 2
PLANE_CLASSES = list(range(8))  # as many as in the paper's Fig. 3
PLANE_POINTS = 4000  # test embeddings that its picture shows


# --- the experiments ------------------------------------------------------------------------------


def tune(study: Study, dataset: str, loss: str) -> Task:
    """The best of six short runs, judged on held-out training images.

    Four are first guesses; two then try half and twice the head's learning rate of the best.
    """
    setup = study.setups[dataset]
    held_out = study.sources[dataset].for_validation(setup.held_out)
    tried: list[tuple[float, Task]] = []

    def attempt(scale: float | None, margin: float | None, head_lr: float) -> None:
        task = Task(
            part="tuning",
            dataset=dataset,
            loss=loss,
            scale=scale,
            margin=margin,
            head_lr=head_lr,
            epochs=max(1, setup.recipe.epochs // 3),
            named_by=SETTINGS,
        )
        tried.append((study.run(task, held_out)["test_accuracy"] or 0.0, task))

    def best() -> Task:
        return max(tried, key=lambda pair: pair[0])[1]

    for guess in first_guesses(setup.recipe, loss):
        attempt(*guess)
    centre = best()
    for factor in (0.5, 2):
        attempt(centre.scale, centre.margin, centre.head_lr * factor)
    return best()


def first_guesses(recipe: Recipe, loss: str) -> Iterator[tuple[float | None, float | None, float]]:
    """Four settings of s, margin and head learning rate with which the tuning of a loss begins."""
    head_lr = recipe.learning_rates["linear head" if loss == "softmax" else "head"]
    s = recipe.scale
    if loss == "softmax":
        yield from ((None, None, head_lr * factor) for factor in (0.25, 1, 4, 16))
    elif loss in MARGINS:
        yield from ((scale, margin, head_lr) for scale in (s, 2 * s) for margin in MARGINS[loss])
    else:
        yield from ((scale, None, head_lr) for scale in (s, 2 * s, 4 * s, 8 * s))


def compare(study: Study, dataset: str, losses: Sequence[str] = LOSSES) -> None:
    """Every loss tuned, then trained with several seeds."""
    setup = study.setups[dataset]
    tuned = [tune(study, dataset, loss) for loss in losses]
    chosen = [
        replace(task, part="losses", epochs=setup.recipe.epochs, named_by=("seed",))
        for task in tuned
    ]
    for seed in range(setup.seeds):
        for task in chosen:
            study.run(replace(task, seed=seed), study.sources[dataset], measure_angles)


def plane(study: Study) -> None:
    """Two-dimensional embeddings of eight of MNIST's digits, under softmax and ArcFace."""
    recipe = study.setups["mnist"].recipe
    digits = study.sources["mnist"].select_classes(PLANE_CLASSES)
    for loss, (scale, margin) in PLANE.items():
        task = Task(
            part="plane",
            dataset="mnist",
            loss=loss,
            scale=scale,
            margin=margin,
            head_lr=next(first_guesses(recipe, loss))[2],
            epochs=recipe.epochs,
            embedding_size=2,
        )
        study.run(task, digits, partial(measure_plane, path=study.folder / f"{task.name}.npz"))


# --- what they measure ----------------------------------------------------------------------------


def measure_angles(trained: Trained, source: Data, precision: str) -> dict[str, Any]:
    """The angles of Table 3, in degrees."""
    train, test = evaluation.embed_both(trained.network, source, precision)
    return {
        "angles": evaluation.angle_statistics(trained.head.get_parameter("weight"), train, test)
    }


def measure_plane(trained: Trained, source: Data, precision: str, *, path: Path) -> dict[str, Any]:
    """The angles; test embeddings, their labels and the class centres go to ``path``."""
    embeddings = evaluation.embed(trained.network, source.test_images[:PLANE_POINTS], precision)
    records.save_arrays(
        path,
        embeddings=embeddings.cpu().numpy().astype(np.float32),
        labels=source.test_labels[:PLANE_POINTS].cpu().numpy().astype(np.uint8),
        centres=trained.head.get_parameter("weight").detach().cpu().numpy().astype(np.float32),
    )
    return measure_angles(trained, source, precision)


# --- the command ----------------------------------------------------------------------------------


def count(datasets: Sequence[str]) -> int:
    """How many trainings the study of these data sets consists of."""
    total = sum(len(LOSSES) * (ATTEMPTS + SETUPS[name].seeds) for name in datasets)
    return total + len(PLANE) * ("mnist" in datasets)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run what has no record yet, then draw. Returns the exit status.

    Args:
        root: the folder of figures/, where records are kept and pictures go.
    """
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("datasets", nargs="*", metavar="mnist | cifar10", help="default: both", default=[])
    add("--data", type=cli.path, default=ROOT / "data", metavar="DIR", help="as in the scripts")
    add("--figures-only", action="store_true", help="tables and figures from the records on disk")
    folder = root / "figures" / "study"

    def work() -> None:
        options = parser.parse_args(argv)
        datasets = options.datasets or list(SETUPS)
        if unknown := ", ".join(sorted(set(datasets) - set(SETUPS))):
            parser.error(f"{unknown}: choose mnist, cifar10, or neither for both")
        if not options.figures_only:
            machine.keep_malloc_arenas()
            names = {name: SETUPS[name].recipe.dataset for name in datasets}
            sources = {key: data.load(name, options.data) for key, name in names.items()}
            study = Study(folder, SETUPS, sources, count(datasets))
            if "mnist" in datasets:
                plane(study)
            for name in datasets:
                compare(study, name)
            study.bar.close()
        figures.draw(folder)
        paper.draw(root / "figures")

    return errors.exit_status(work, "The same command goes on from here.")


if __name__ == "__main__":
    sys.exit(main())
