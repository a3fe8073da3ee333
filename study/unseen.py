"""Which loss tells classes apart that training never saw? python -m study.unseen [--data DIR]

The scripts' default recipes on six of the ten classes, with plain softmax, normalised softmax,
CosFace and ArcFace. All pairs of test images of the four other classes are then judged by the angle
between their embeddings. Records are in figures/study/, the pictures are roc-*.png and pairs-*.png
there; ``--figures-only`` draws them from the records alone.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiment import data
from experiment.data import Data
from experiment.figures import BLUE, LOSS_STYLE, ORANGE
from experiment.records import ROOT
from experiment.training import Trained
from study import margin, verification
from study.runs import Study, Task, measure_angles, train_and_draw
from study.selection import ARCFACE, DATASETS, RunsByLoss, StudyRecord, complete
from study.tables import markdown, mean_ci

SEEDS = {"mnist": 5, "cifar10": 2}
LOSSES = ("softmax", "norm-softmax", "cosface", "arcface")
SPLITS, SEEN = 3, 6  # choices of the classes, and how many of them are trained on
COLUMNS = {  # of the tables
    "eer": "EER, %",
    "accuracy": "10-fold accuracy, %",
    "tar_1": "TAR at FAR 1%, %",
    "tar_01": "TAR at FAR 0.1%, %",
}

# --- the runs -------------------------------------------------------------------------------------


def classes_seen(split: int) -> list[int]:
    """The classes that a split trains on."""
    return sorted(np.random.default_rng(split).permutation(10)[:SEEN].tolist())


def tasks(study: Study, dataset: str) -> list[Task]:
    """Each of LOSSES in the default recipe: as in study.margin, and CosFace with its own margin."""
    usual = margin.tasks(study, dataset)
    arcface, own = usual[ARCFACE], study.setup.recipe.default_margins
    cosface = replace(arcface, loss="cosface", margin=own["cosface"])
    chosen = (usual["softmax"], usual["normalised softmax"], cosface, arcface)
    return [replace(task, part="unseen") for task in chosen]


def compute(folder: Path, data_folder: Path) -> None:
    """Train what has no record yet: each loss on each split, one seed after the other."""
    for dataset, seeds in SEEDS.items():
        setup = margin.SETUPS[dataset]
        source = data.load(setup.recipe.dataset, data_folder)
        total = len(margin.RATES) + seeds * SPLITS * len(LOSSES)
        study = Study(folder, setup, source, total)
        chosen = tasks(study, dataset)
        for seed in range(seeds):
            for split in range(SPLITS):
                for task in chosen:
                    train_and_verify(study, replace(task, seed=seed, split=split))
        study.bar.close()


def train_and_verify(study: Study, task: Task) -> dict[str, Any]:
    """The record of a task: trained on the classes of its split, judged on the others."""
    source, seen = study.source, classes_seen(task.split or 0)
    unseen = source.select_classes([k for k in range(len(source.classes)) if k not in seen])
    return study.run(task, source.select_classes(seen), partial(measure, unseen=unseen))


def measure(trained: Trained, source: Data, precision: str, *, unseen: Data) -> dict[str, Any]:
    """The angles, and verification on all pairs of test images of the classes of ``unseen``.

    positive, negative: pairs of one class and of two, counted by whole degrees from 0 to 179.
    """
    unseen = unseen.to(source.test_images.device)
    theta, same = verification.pairs_of_test_images(trained.network, unseen, precision)
    chosen = verification.draw_pairs(same, seed=0)
    found = verification.verification(theta, same) | {
        "unseen": unseen.classes,
        "accuracy": verification.fold_accuracy(theta[chosen], same[chosen]),
        "positive": np.histogram(theta[same], range(181))[0].tolist(),
        "negative": np.histogram(theta[~same], range(181))[0].tolist(),
    }
    return measure_angles(trained, source, precision) | {"verification": found}


# --- what they say --------------------------------------------------------------------------------


def records_of(folder: Path, dataset: str) -> RunsByLoss:
    """Those of the seeds and splits that every loss has. Raises Problem if there are none."""
    return complete(folder, "unseen", dataset, LOSSES)


def by_seed(runs: list[StudyRecord], split: int | None, key: str) -> dict[int, float]:
    """A verification figure in % by the seed: of a split, or, for None, the mean over the splits
    of the seeds that have them all."""
    found: dict[int, list[float]] = {}
    for run in runs:
        if split in (None, run["split"]):
            found.setdefault(run["seed"], []).append(100 * run["verification"][key])
    wanted = SPLITS if split is None else 1
    return {seed: float(np.mean(values)) for seed, values in found.items() if len(values) == wanted}


def difference(
    found: RunsByLoss, loss: str, split: int | None, to: str = "arcface", key: str = "eer"
) -> list[float]:
    """A figure of a loss minus another's with the same seed, in points; as in :func:`by_seed`."""
    mine, other = (by_seed(found[name], split, key) for name in (loss, to))
    return [value - other[seed] for seed, value in mine.items() if seed in other]


def table(folder: Path, dataset: str) -> str:
    """Verification of pairs of unseen classes for each split, and in the mean over the splits, in
    Markdown."""
    found, lines = records_of(folder, dataset), []
    names = {run["split"]: run["verification"]["unseen"] for run in found["arcface"]}
    for split in (*sorted(names), None):
        for loss, runs in found.items():
            label = "mean over the choices" if split is None else ", ".join(names[split])
            values = {key: list(by_seed(runs, split, key).values()) for key in COLUMNS}
            cells = [mean_ci(rates, 1) for rates in values.values()]
            own = loss == "arcface"
            cells.insert(1, "–" if own else mean_ci(difference(found, loss, split), 1))
            lines.append([label, LOSS_STYLE[loss][0], str(len(values["eer"])), *cells])
    eer, *others = COLUMNS.values()
    head = ["unseen classes", "loss", "seeds", eer, "EER minus ArcFace's, points", *others]
    return markdown(head, lines)


def angles_table(folder: Path) -> str:
    """How the errors go with angles of the seen classes, on each split of each data set, in
    Markdown."""
    groups = {}
    for dataset in SEEDS:
        for runs in by_split(folder, dataset).values():
            classes = ", ".join(runs[0]["verification"]["unseen"])
            groups[f"{DATASETS[dataset]}: {classes}"] = runs
    return verification.correlation_table(groups)


def by_split(folder: Path, dataset: str) -> dict[int, list[StudyRecord]]:
    """The runs of all losses on each split."""
    every = [run for runs in records_of(folder, dataset).values() for run in runs]
    return {k: [run for run in every if run["split"] == k] for k in range(SPLITS)}


def describe_runs(found: RunsByLoss) -> str:
    """How many runs of each loss a picture shows, of how many splits."""
    runs = found["arcface"]
    counts = {"run": len(runs), "choice": len({run["split"] for run in runs})}
    made, splits = (f"{n} {name}{'s' * (n > 1)}" for name, n in counts.items())
    return f"{made} of each loss, on {splits} of the classes"


def label_of(loss: str, runs: list[StudyRecord]) -> str:
    """Its name and mean equal error rate."""
    eer = np.mean([100 * run["verification"]["eer"] for run in runs])
    return f"{LOSS_STYLE[loss][0]}: EER {eer:.1f}%"


def draw_roc(folder: Path, dataset: str) -> plt.Figure:
    """ROC of pairs of unseen classes: the mean over splits and seeds."""
    found = records_of(folder, dataset)
    figure, axes = plt.subplots(figsize=(6.3, 3.6))
    rates = verification.FALSE_ACCEPT * 100
    for loss, runs in found.items():
        _, colour, marker = LOSS_STYLE[loss]
        curve = 100 * np.mean([run["verification"]["roc"] for run in runs], axis=0)
        style: dict[str, Any] = {"color": colour, "marker": marker, "markevery": 10}
        axes.plot(rates, curve, markersize=3, label=label_of(loss, runs), **style)
    axes.plot(rates, rates, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes.set(xscale="log", xlabel="false accept rate in %", ylabel="true accept rate in %")
    axes.set(xlim=(0.01, 100), ylim=(0, 100))
    axes.legend()
    what = f"{DATASETS[dataset]}: are two images of one class, which training never saw?"
    axes.set_title(f"{what}\n{describe_runs(found)}")
    return figure


def draw_pairs(folder: Path, dataset: str) -> plt.Figure:
    """Angles of positive and negative pairs of unseen classes, after the paper's Fig. 6."""
    found = records_of(folder, dataset)
    size = (6.3, 1.1 * len(found) + 0.8)
    figure, axes = plt.subplots(len(found), 1, sharex=True, squeeze=False, figsize=size)
    for axis, (loss, runs) in zip(axes[:, 0], found.items(), strict=True):
        for kind, colour, hatch in (("positive", BLUE, None), ("negative", ORANGE, "///")):
            counts = np.sum([run["verification"][kind] for run in runs], axis=0)
            share = 100 * counts / counts.sum()
            style = {"color": colour, "alpha": 0.6, "hatch": hatch, "edgecolor": "white"}
            axis.bar(np.arange(180) + 0.5, share, 1, linewidth=0, label=kind, **style)
        axis.set(yticks=[], ylabel="share")
        axis.set_title(label_of(loss, runs), loc="left")
    last = axes[-1, 0]
    last.set(xlabel="angle between two embeddings, in degrees")
    last.set(xlim=(0, 180), xticks=range(0, 181, 20))
    axes[0, 0].legend(title="pairs")
    title = f"{DATASETS[dataset]}: pairs of unseen classes; the less overlap, the better"
    figure.suptitle(f"{title}\n({describe_runs(found)})")
    return figure


def tables(folder: Path) -> dict[str, str]:
    """The tables, by the names of their marks."""
    found = {f"unseen-{dataset}": table(folder, dataset) for dataset in SEEDS}
    return found | {"unseen-angles": angles_table(folder)}


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run what has no record yet, then draw and fill the tables. Returns the exit status.

    Args:
        root: the folder of figures/, where records are kept and pictures go.
    """
    folder, pictures = root / "figures" / "study", {}
    for dataset in SEEDS:
        pictures[f"roc-{dataset}.png"] = partial(draw_roc, dataset=dataset)
        pictures[f"pairs-{dataset}.png"] = partial(draw_pairs, dataset=dataset)
    return train_and_draw(__doc__, argv, partial(compute, folder), folder, pictures, tables)


if __name__ == "__main__":
    sys.exit(main())
