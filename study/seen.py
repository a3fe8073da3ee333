"""Do more seen classes help to tell unseen ones apart? python -m study.seen [--data DIR]

MNIST's default recipe on 2 to 8 of the digits, and on 10 to 80 of the 100 numbers that two digits
side by side make; all trainings of a kind have equally many images and steps. Pairs of test images
of other digits or numbers, always the same ones, are then judged by the angle between their
embeddings. Records are in figures/study/, the picture is figures/study/seen.png.
``--figures-only`` draws it, and fills the page's table, from the records alone.
"""

import itertools
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import arcface_mnist
from experiment import data, records
from experiment.data import Data
from experiment.errors import Problem
from experiment.figures import BLUE, GREEN, ORANGE, RED
from experiment.recipe import Recipe
from experiment.records import ROOT
from experiment.training import Trained
from study import verification
from study.figures import draw_means
from study.runs import Setup, Study, Task, measure_angles, train_and_draw
from study.selection import StudyRecord, finished

SEEDS, TEST_IMAGES = 3, 1800
SOFTMAX_RATE = 0.005  # of softmax's last layer: study.margin chose it on held-out training images
DRAWN = {  # losses and margins; their names, colours and markers
    ("softmax", None): ("softmax", BLUE, "o"),
    ("norm-softmax", None): ("normalised softmax", GREEN, "s"),
    ("arcface", 0.1): ("ArcFace, m = 0.1", ORANGE, "^"),
    ("arcface", 0.3): ("ArcFace, m = 0.3", RED, "D"),
}
VARIANTS = tuple(DRAWN)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the classes are.

    digits: side by side in an image; a class is what they read. images: for training.
    seen, unseen: how many classes are trained on, each in turn, and how many are verified.
    """

    digits: int
    images: int
    seen: tuple[int, ...]
    unseen: int
    recipe: Recipe

    @property
    def order(self) -> list[tuple[int, ...]]:
        """All classes in one random order: the first ``unseen`` are verified, the next ones are
        trained on."""
        classes = list(itertools.product(range(10), repeat=self.digits))
        return [classes[k] for k in np.random.default_rng(0).permutation(len(classes))]


# 8, the recipe's scale, is below the bound for 80 classes (p_y = 0.99: 8.9). An image that is twice
# as wide as high is turned and sheared half as far, so that its digits stay in it.
NUMBERS = replace(
    arcface_mnist.DEFAULT,
    scale=16.0,
    epochs=10,
    augmentation=arcface_mnist.DEFAULT.augmentation | {"degrees": 8, "shear": 0.08},
)
KINDS = {
    "numbers": Kind(digits=2, images=16_000, seen=(10, 20, 40, 80), unseen=20, recipe=NUMBERS),
    "digits": Kind(
        digits=1, images=10_000, seen=(2, 4, 6, 8), unseen=2, recipe=arcface_mnist.DEFAULT
    ),
}


def compose(
    images: Tensor, labels: Tensor, classes: list[tuple[int, ...]], count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """So many images of the classes in turn, and their labels; a digit's images are drawn at
    random, none again before all were drawn.

    Args:
        images, labels: of single digits.
        classes: the digits from left to right.
    """
    rng = np.random.default_rng(seed)
    label = np.arange(count) % len(classes)
    parts = []
    for place in np.array(classes).T:
        shown, index = place[label], np.empty(count, dtype=int)
        for digit in np.unique(shown):
            mine = shown == digit
            drawn = rng.permutation(np.flatnonzero(labels.numpy() == digit))
            index[mine] = np.resize(drawn, mine.sum())
        parts.append(images[torch.from_numpy(index)])
    return torch.cat(parts, dim=2), torch.from_numpy(label)


def make_data(source: Data, kind: Kind, classes: list[tuple[int, ...]]) -> Data:
    """Training and test images of these classes, made of MNIST's training and test digits."""
    images, labels = source.train_images, source.train_labels
    train = compose(images, labels, classes, kind.images, seed=0)
    test = compose(source.test_images, source.test_labels, classes, TEST_IMAGES, seed=1)
    return Data(
        source.name,
        ["".join(map(str, digits)) for digits in classes],
        *train,
        *test,
        checksums=source.checksums,
    )


def compute(folder: Path, data_folder: Path) -> None:
    """Train what has no record yet: one seed after the other."""
    source = data.load("MNIST", data_folder)
    for name, kind in KINDS.items():
        setup = Setup(train=arcface_mnist.train, recipe=kind.recipe)
        total = SEEDS * len(kind.seen) * len(VARIANTS)
        study = Study(folder, setup, source, total)
        unseen = make_data(source, kind, kind.order[: kind.unseen])
        for seed, seen in itertools.product(range(SEEDS), kind.seen):
            shown = make_data(source, kind, kind.order[kind.unseen :][:seen])
            for loss, margin in VARIANTS:
                plain = loss == "softmax"
                task = Task(
                    part=f"seen-{name}",
                    dataset="mnist",
                    loss=loss,
                    scale=None if plain else kind.recipe.scale,
                    margin=margin,
                    head_lr=SOFTMAX_RATE if plain else kind.recipe.learning_rates["head"],
                    epochs=kind.recipe.epochs,
                    seed=seed,
                    seen=seen,
                    named_by=("margin", "seen", "seed"),
                )
                study.run(task, shown, partial(measure, unseen=unseen))
        study.bar.close()


def measure(trained: Trained, source: Data, precision: str, *, unseen: Data) -> dict[str, Any]:
    """The angles, and verification on all pairs of test images of ``unseen``."""
    unseen = unseen.to(source.test_images.device)
    theta, same = verification.pairs_of_test_images(trained.network, unseen, precision)
    found = verification.verification(theta, same)
    del found["roc"]
    return measure_angles(trained, source, precision) | {"verification": found}


# --- the picture ----------------------------------------------------------------------------------


def load(folder: Path, name: str) -> list[StudyRecord]:
    """The records of a kind that did not collapse; none if there is no file."""
    path = folder / f"seen-{name}-mnist.jsonl"
    return finished(records.load_lines(path)) if path.exists() else []


def draw(folder: Path) -> plt.Figure:
    """The equal error rate over the number of seen classes, for each kind and loss."""
    found = {name: runs for name in KINDS if (runs := load(folder, name))}
    if not found:
        raise Problem(f"There are no records of study.seen in {folder}. Run it without options.")
    figure, axes = plt.subplots(1, len(found), figsize=(6.3, 2.2), squeeze=False)
    for axis, (name, runs) in zip(axes[0], found.items(), strict=True):
        kind = KINDS[name]
        for key, (label, colour, marker) in DRAWN.items():
            mine = [run for run in runs if (run["loss"], run["margin"]) == key]
            style = {"color": colour, "marker": marker, "label": label}
            draw_means(axis, mine, "seen", equal_error_rate, **style)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set(
            xticks=kind.seen, xticklabels=map(str, kind.seen), xlabel=f"{name} seen in training"
        )
        axis.set(title=f"MNIST, pairs of {kind.unseen} unseen {name} ({SEEDS} seeds)")
        axis.set(ylabel="equal error rate in %")
        low, high = axis.get_ylim()
        ticks = [value for value in (0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 50) if low <= value <= high]
        axis.set(yticks=ticks, yticklabels=[f"{value:g}" for value in ticks])
        axis.minorticks_off()
    axes[0][0].legend()
    return figure


def by_seen(folder: Path, name: str) -> dict[int, list[StudyRecord]]:
    """The runs of a kind for each number of seen classes, from the smallest to the largest."""
    every = load(folder, name)
    return {n: [run for run in every if run["seen"] == n] for n in KINDS[name].seen}


def tables(folder: Path) -> dict[str, str]:
    """How the errors go with angles of the seen classes, by the name of the table's mark."""
    groups = {
        f"{n} {name}": runs for name in KINDS for n, runs in by_seen(folder, name).items() if runs
    }
    return {"seen-angles": verification.correlation_table(groups)}


def equal_error_rate(run: StudyRecord) -> float:
    """On the unseen classes, in %."""
    return 100 * float(run["verification"]["eer"])


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run what has no record yet, then draw and fill the table. Returns the exit status.

    Args:
        root: the folder of figures/, where records are kept and the picture goes.
    """
    folder = root / "figures" / "study"
    pictures = {"seen.png": draw}
    return train_and_draw(__doc__, argv, partial(compute, folder), folder, pictures, tables)


if __name__ == "__main__":
    sys.exit(main())
