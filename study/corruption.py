"""Is the angle more robust than the distance? python -m study.corruption [--data DIR]

Networks of the scripts' default recipes, trained with plain softmax and with ArcFace, embed damaged
test images: how far the embedding turns, by what factor its length changes, and how often the class
mean that is nearest by the angle, or by the straight distance, is the right one. A control has no
whitening. Records are in figures/study/, the pictures are figures/study/corruption-*.png.
``--figures-only`` draws them from the records alone.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

import arcface_cifar10
from arcface_loss import angle, unit
from experiment import data, evaluation
from experiment.augment import random_squares
from experiment.data import Data
from experiment.figures import LOSS_STYLE, RED
from experiment.records import ROOT
from experiment.training import Trained
from study import margin
from study.runs import Study, outcome, train_and_draw
from study.selection import ARCFACE, DATASETS, RunsByLoss, StudyRecord, complete, finished, load
from study.tables import interval, markdown, mean_ci

SEEDS = {"mnist": 5, "cifar10": 3}
LOSSES = ("softmax", "arcface")
METRICS = {"cosine": ("cosine", "-"), "euclidean": ("Euclidean", "--")}  # names, and their lines
COLUMNS = {  # of the tables: names, factors, digits
    "cosine": ("cosine, %", 100, 1),
    "euclidean": ("cosine − Euclidean, points", 100, 1),
    "turned": ("turned by, °", 1, 1),
    "length": ("length ×", 1, 2),
}
AMOUNTS = {  # of each kind of damage, in %
    "noise": (0, 4, 8, 16, 32),
    "occlusion": (0, 15, 30, 45, 60),
    "contrast": (0, 25, 50, 75, 90),
    "brightness": (0, 15, 30, 45, 60),
}
UNITS = {
    "noise": "standard deviation,\n% of the range",
    "occlusion": "side of the square,\n% of the image's",
    "contrast": "contrast lost,\n%",
    "brightness": "added,\n% of the range",
}

# --- damage, and what it does ---------------------------------------------------------------------


def corrupt(images: Tensor, kind: str, amount: float) -> Tensor:
    """Damaged copies of images, uint8 N × H × W × C.

    Args:
        kind: one of AMOUNTS. noise: Gaussian; occlusion: a grey square at random; contrast: shrunk
            towards the image's mean; brightness: added.
        amount: in %. Of the range from black to white for the standard deviation of the noise and
            for the brightness; of the image's side for that of the square; of the contrast for the
            part that is lost. 0 changes nothing.
    """
    generator = torch.Generator().manual_seed(0)
    x, share = images.float().cpu() / 255, amount / 100
    match kind:
        case "noise":
            x += share * torch.randn(x.shape, generator=generator)
        case "occlusion":
            x[random_squares(x.shape, round(share * images.shape[1]), generator)] = 0.5
        case "contrast":
            mean = x.mean(dim=(1, 2, 3), keepdim=True)
            x = mean + (1 - share) * (x - mean)
        case "brightness":
            x += share
        case _:
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(AMOUNTS)}")
    return (255 * x.clamp(0, 1)).round().to(torch.uint8).to(images.device)


@torch.no_grad()
def nearest_mean(embeddings: Tensor, labels: Tensor, means: Tensor) -> dict[str, float]:
    """Accuracy of the nearest class mean: by the angle ("cosine"), and by the straight distance
    ("euclidean").

    Args:
        embeddings: N × d, as the network gives them. labels: N.
        means: n × d, of such embeddings.
    """
    distances = {
        "cosine": evaluation.angles_to_centres(embeddings, means),
        "euclidean": torch.cdist(embeddings, means),
    }
    return {
        name: (d.argmin(dim=1) == labels).double().mean().item() for name, d in distances.items()
    }


@torch.no_grad()
def change(clean: Tensor, damaged: Tensor) -> dict[str, float]:
    """What became of embeddings, N × d, of the same images: medians of the angle by which they
    turned, in degrees, and of the factor by which their length changed."""
    turned = angle(unit(clean), unit(damaged)).rad2deg()
    factor = damaged.norm(dim=1) / clean.norm(dim=1)
    return {"turned": turned.median().item(), "length": factor.median().item()}


def measure(
    trained: Trained, source: Data, precision: str, *, views: list[list[float]]
) -> dict[str, Any]:
    """The training's outcome, and what :func:`nearest_mean` and :func:`change` return for the test
    images under each kind of damage, a list over its amounts."""
    embedded = evaluation.embed_both(trained.network, source, precision)
    train, (clean, labels) = embedded
    classes = range(len(source.classes))
    means = torch.stack([train[0][train[1] == k].mean(dim=0) for k in classes])

    def found(kind: str, amount: float) -> dict[str, float]:
        images = corrupt(source.test_images, kind, amount)
        damaged = evaluation.embed(trained.network, images, precision)
        result = nearest_mean(damaged, labels, means) | change(clean, damaged)
        return {"amount": amount} | result

    corrupted = {kind: [found(kind, x) for x in amounts] for kind, amounts in AMOUNTS.items()}
    result = outcome(trained, source, precision, views=views, embedded=embedded)
    return result | {"corrupted": corrupted}


# --- the runs -------------------------------------------------------------------------------------


class Unwhitened(arcface_cifar10.Network):
    """Random orthonormal filters in place of those that whiten."""

    @torch.no_grad()
    def set_whitening(self, images: Tensor) -> None:
        """Draw the filters, which then have the whitening ones' mean variance, nearly 1."""
        own = torch.Generator().manual_seed(0)  # the head's centres are drawn as ever
        filters = nn.init.orthogonal_(torch.empty(12, 12), generator=own).unflatten(1, (3, 2, 2))
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


def train_unwhitened(*args: Any) -> Trained:
    """The script's train() with :class:`Unwhitened`."""
    with mock.patch.object(arcface_cifar10, "Network", Unwhitened):
        return arcface_cifar10.train(*args)


def compute(folder: Path, data_folder: Path) -> None:
    """Train what has no record yet: the control on CIFAR-10, and both losses, seed by seed."""
    for dataset, setup in margin.SETUPS.items():
        measured = partial(measure, views=setup.recipe.views)
        source = data.load(setup.recipe.dataset, data_folder)
        total = len(margin.RATES) + len(LOSSES) * SEEDS[dataset]
        study = Study(folder, setup, source, total)
        tasks = margin.tasks(study, dataset)
        softmax, arcface = tasks["softmax"], tasks[ARCFACE]
        if dataset == "cifar10":
            control = Study(folder, replace(setup, train=train_unwhitened), source)
            control.run(replace(arcface, part="unwhitened"), source, measured)
        for seed in range(SEEDS[dataset]):
            for task in (arcface, softmax):
                study.run(replace(task, part="corruption", seed=seed), source, measured)
        study.bar.close()


# --- what they say --------------------------------------------------------------------------------


def records_of(folder: Path, dataset: str) -> RunsByLoss:
    """Those of the seeds that both losses have. Raises Problem if there are none."""
    return complete(folder, "corruption", dataset, LOSSES)


def draw(folder: Path, dataset: str) -> plt.Figure:
    """Accuracies, turn and change of length over the amount of each kind of damage."""
    found = records_of(folder, dataset)
    drawn = [(runs, *LOSS_STYLE[loss]) for loss, runs in found.items()]
    control = finished(load(folder, "unwhitened", dataset).get("arcface", []))
    drawn += [(control, "ArcFace without whitening", RED, "x")] if control else []
    size = (6.3, 2.5 + 0.3 * len(drawn))  # the legend has a line more with the control
    figure, axes = plt.subplots(3, len(AMOUNTS), sharex="col", sharey="row", figsize=size)
    for column, (kind, amounts) in zip(axes.T, AMOUNTS.items(), strict=True):
        for runs, label, colour, marker in drawn:
            style = {"color": colour, "marker": marker, "markersize": 3.5}
            for metric, (name, line) in METRICS.items():
                curves = 100 * values_of(runs, kind, metric)
                draw_band(column[0], amounts, curves, ls=line, label=f"{label}, {name}", **style)
            for axis, key in zip(column[1:], ("turned", "length"), strict=True):
                draw_band(axis, amounts, values_of(runs, kind, key), **style)
        column[0].set(title=kind, xticks=amounts)
        column[2].set(xlabel=UNITS[kind])
    axes[0, 0].set(ylabel="accuracy, %", ylim=(0, 102))
    axes[1, 0].set(ylabel="turn, °", ylim=(0, None))
    axes[2, 0].set(ylabel="length, ×", ylim=(0, None))
    labels = axes[0, 0].get_legend_handles_labels()
    columns = 4 if len(drawn) == 2 else 3
    figure.legend(*labels, loc="outside lower center", ncols=columns)
    title = f"{DATASETS[dataset]}: damaged test images, given to the nearest class mean"
    seeds = len(found["arcface"])
    figure.suptitle(f"{title} ({seeds} seeds{'; bands: 95%' * (seeds > 2)})")
    return figure


def values_of(runs: list[StudyRecord], kind: str, key: str) -> np.ndarray:
    """A figure of each run by the amount, runs × amounts."""
    return np.array([[found[key] for found in run["corrupted"][kind]] for run in runs])


def draw_band(axis: plt.Axes, x: Sequence[float], curves: np.ndarray, **style: Any) -> None:
    """The mean of the curves, runs × points, and of three or more runs its 95% interval."""
    mean, half = zip(*(interval(list(values)) for values in curves.T), strict=True)
    axis.plot(x, mean, **style)
    if len(curves) > 2:
        band = np.subtract(mean, half), np.add(mean, half)
        axis.fill_between(x, *band, color=style["color"], alpha=0.12, linewidth=0)


def table(folder: Path, dataset: str) -> str:
    """Without damage, and with a middle and the largest amount of each kind, in Markdown: accuracy
    by the angle, paired differences to that by the distance, turn and change of length."""
    found, lines = records_of(folder, dataset), []
    for kind, amounts in AMOUNTS.items():
        for place in (0, 2, 4):
            cells = [kind, str(amounts[place])]
            for loss in LOSSES:
                values = {key: values_of(found[loss], kind, key)[:, place] for key in COLUMNS}
                values["euclidean"] = values["cosine"] - values["euclidean"]
                cells += [
                    mean_ci(list(factor * values[key]), digits)
                    for key, (_, factor, digits) in COLUMNS.items()
                ]
            lines.append(cells)
    names = [f"{LOSS_STYLE[loss][0]}, {name}" for loss in LOSSES for name, _, _ in COLUMNS.values()]
    return markdown(["damage", "amount, %", *names], lines)


def tables(folder: Path) -> dict[str, str]:
    """The tables, by the names of their marks; those of study.margin show runs of this module."""
    made = {f"corruption-{dataset}": table(folder, dataset) for dataset in SEEDS}
    return made | margin.tables(folder.parent.parent)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run what has no record yet, then draw and fill the tables. Returns the exit status.

    Args:
        root: the folder of figures/, where records are kept and pictures go.
    """
    folder = root / "figures" / "study"
    pictures = {f"corruption-{name}.png": partial(draw, dataset=name) for name in SEEDS}
    return train_and_draw(__doc__, argv, partial(compute, folder), folder, pictures, tables)


if __name__ == "__main__":
    sys.exit(main())
