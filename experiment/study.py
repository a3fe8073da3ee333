"""What does the margin do? The comparison of losses: python -m experiment.study [mnist | cifar10]

A finished run leaves its record in figures/study/ and is never computed twice; an interrupted one is resumed.
``--figures-only`` draws the pictures and fills the tables again from the records alone.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import arcface_cifar10
import arcface_mnist
from experiment import data, evaluation, paper_figures, records, study_figures, training
from experiment.data import Data
from experiment.records import ROOT
from experiment.training import LOSSES, Diverged, Recipe, Settings, Trained

FOLDER = ROOT / "figures" / "study"
RECIPES = {  # shorter than those of the scripts, of whole epochs, and for CIFAR-10 with a smaller network
    "mnist": replace(arcface_mnist.DEFAULT, augment=partial(arcface_mnist.augment, full=1.0), epochs=6, hardest=1.0),
    "cifar10": replace(
        arcface_cifar10.DEFAULT,
        network=partial(arcface_cifar10.Network, residual=False),
        augment=partial(arcface_cifar10.augment, shift=2, hidden=0, sizes=(20, 24, 28)),
        learning_rates={"filters": 0.12, "others": 0.2, "head": 0.5, "linear head": 0.02},
        epochs=12,
        batch_size=500,
        hardest=1.0,
    ),
}
MARGINS = {"arcface": (0.1, 0.3), "cosface": (0.1, 0.2), "sphereface": (1.1, 1.35)}  # tried at two scales each
SEEDS = {"mnist": 5, "cifar10": 3}  # of the losses compared
SPLITS, UNSEEN_SEEDS, SEEN = 2, 2, 6  # of the unseen classes: splits, seeds, classes that are trained on
SCALES, GRID_MARGINS, GRID_EPOCHS = (4, 8, 16, 32, 64), [k / 10 for k in range(9)], 1
STRENGTHS = range(6)
PLANE = {"softmax": (None, None), "arcface": (16.0, 0.2)}  # s and m of the two-dimensional embeddings
PLANE_CLASSES = list(range(8))  # as many as in the paper's Fig. 3


@dataclass(frozen=True)
class Task:
    """One training run of the study. head_lr: the peak learning rate of the last layer."""

    part: str
    dataset: str
    loss: str
    scale: float | None
    margin: float | None
    head_lr: float
    epochs: int
    seed: int = 0
    split: int | None = None
    embedding_size: int | None = None  # the recipe's

    @property
    def name(self) -> str:
        """Of its record, below FOLDER."""
        named = {"s": self.scale, "m": self.margin, "lr": self.head_lr}
        if self.part not in ("tuning", "grid"):
            named = {"split": self.split, "seed": self.seed}
        which = "-".join(f"{key}{value:g}" for key, value in named.items() if value is not None)
        return f"{self.part}-{self.dataset}-{self.loss}-{which}"


class Study:
    """Runs tasks that have no record yet, and shows how far the whole has come."""

    def __init__(self, sources: dict[str, Data], total: int):
        self.sources = sources
        self.device = training.choose_device("auto")
        self.precision = training.choose_precision("auto", self.device)
        self.bar = tqdm(total=total, unit="run", disable=not sys.stderr.isatty())

    def run(self, task: Task) -> dict:
        """The record of a task: from the disk, or from a run."""
        path = FOLDER / f"{task.name}.json"
        self.bar.set_postfix_str(task.name)
        if not path.exists():
            checkpoint = path.with_suffix(".checkpoint.pt")
            with redirect_stdout(io.StringIO()):
                record, arrays = measure(task, self.sources[task.dataset], checkpoint, self.device, self.precision)
            if arrays:
                records.save_arrays(path.with_suffix(".npz"), **arrays)
            records.save_json(path, record)
            checkpoint.unlink(missing_ok=True)
            tqdm.write(f"{task.name}: " + (record.get("collapsed") or f"{record['test_accuracy']:.2%}"))
            sys.stdout.flush()
        self.bar.update()
        return records.load_json(path)


def measure(task: Task, source: Data, checkpoint: Path, device: torch.device, precision: str) -> tuple[dict, dict]:
    """Train as the task says; its record, and the arrays that pictures need beyond it.

    Tuning and the grid hold out the last 5,000 training images, and their "test_accuracy" is that on these.
    """
    recipe = RECIPES[task.dataset]
    recipe = replace(recipe, learning_rates=recipe.learning_rates | {"head": task.head_lr, "linear head": task.head_lr})
    seen = list(range(len(source.classes)))
    if task.part in ("tuning", "grid"):
        source = source.for_validation()
    elif task.part == "plane":
        seen = PLANE_CLASSES
    elif task.part == "unseen":
        seen = classes_seen(task.split)
    whole, source = source, source.only(seen).to(device)
    settings = Settings(
        source.name,
        task.loss,
        task.scale,
        task.margin,
        task.embedding_size or recipe.embedding_size,
        task.epochs,
        recipe.batch_size,
        task.seed,
        device.type,
        precision,
    )
    record = vars(task) | {"dataset": source.name, "name": task.name, "device_name": records.device_name(device)}
    record |= {"precision": precision, "versions": records.versions()}
    try:
        trained = training.train(recipe, settings, source, checkpoint, resume=checkpoint.exists())
    except Diverged as problem:
        return record | {"collapsed": str(problem), "test_accuracy": None}, {}
    found, arrays = evaluate(task, trained, source, whole, precision)
    return record | {"train_seconds": trained.seconds} | found, arrays


def evaluate(task: Task, trained: Trained, source: Data, whole: Data, precision: str) -> tuple[dict, dict]:
    """What a task asks of its trained network. source: what it was trained on; whole: all classes."""
    accuracy = {"test_accuracy": trained.history[-1]["test_accuracy"]}
    if task.part == "tuning":
        return accuracy, {}
    network, head = trained.network, trained.head
    train, test = (
        (evaluation.embed(network, images, precision), labels)
        for images, labels in ((source.train_images, source.train_labels), (source.test_images, source.test_labels))
    )
    record = accuracy | {"angles": evaluation.angle_statistics(head.weight, train, test)}
    arrays = {}
    if task.part == "losses" and task.loss in ("softmax", "arcface"):
        means = torch.stack([train[0][train[1] == k].mean(dim=0) for k in range(len(source.classes))])
        record["corrupted"] = {
            kind: [
                evaluation.nearest_mean(
                    evaluation.embed(network, data.corrupt(source.test_images, kind, strength), precision), test[1], means
                )
                for strength in STRENGTHS
            ]
            for kind in data.CORRUPTIONS
        }
    elif task.part == "unseen":
        others = [k for k in range(len(whole.classes)) if k not in classes_seen(task.split)]
        unseen = whole.only(others).to(source.test_images.device)
        embeddings = evaluation.embed(network, unseen.test_images, precision)
        theta, same = evaluation.all_pairs(embeddings, unseen.test_labels)
        chosen = evaluation.draw_pairs(same, seed=0)
        record["verification"] = evaluation.verification(theta, same) | {
            "unseen": unseen.classes,
            "accuracy": evaluation.fold_accuracy(theta[chosen], same[chosen]),
            "positive": np.histogram(theta[same], range(181))[0].tolist(),  # pairs by whole degrees
            "negative": np.histogram(theta[~same], range(181))[0].tolist(),
        }
    elif task.part == "plane":
        arrays = {
            "embeddings": test[0][:4000].cpu().numpy().astype(np.float32),
            "labels": test[1][:4000].cpu().numpy().astype(np.uint8),
            "centres": head.weight.detach().cpu().numpy().astype(np.float32),
        }
    return record, arrays


def classes_seen(split: int) -> list[int]:
    """The classes that a split of the unseen-classes experiment trains on."""
    return sorted(np.random.default_rng(split).permutation(10)[:SEEN].tolist())


# --- the parts -----------------------------------------------------------------------------------


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


def tune(study: Study, dataset: str, loss: str) -> Task:
    """The best of six short runs: four first guesses, then half and twice the head's learning rate of the best."""
    recipe = RECIPES[dataset]
    epochs = max(1, recipe.epochs // 3)
    tried = []

    def attempt(scale: float | None, margin: float | None, head_lr: float) -> None:
        task = Task("tuning", dataset, loss, scale, margin, head_lr, epochs)
        tried.append((study.run(task)["test_accuracy"] or 0.0, task))

    def best() -> Task:
        return max(tried, key=lambda pair: pair[0])[1]

    for guess in first_guesses(recipe, loss):
        attempt(*guess)
    centre = best()
    for factor in (0.5, 2):
        attempt(centre.scale, centre.margin, centre.head_lr * factor)
    return best()


def compare(study: Study, dataset: str) -> None:
    """Every loss tuned, then trained with several seeds on all images, then on some classes to verify the others."""
    epochs = RECIPES[dataset].epochs
    chosen = {loss: tune(study, dataset, loss) for loss in LOSSES}
    for seed in range(SEEDS[dataset]):
        for task in chosen.values():
            study.run(replace(task, part="losses", epochs=epochs, seed=seed))
        for split in range(SPLITS if seed < UNSEEN_SEEDS else 0):
            for task in chosen.values():
                study.run(replace(task, part="unseen", epochs=epochs, seed=seed, split=split))


def mnist_alone(study: Study) -> None:
    """The grid of scales and margins, and the two-dimensional embeddings."""
    recipe = RECIPES["mnist"]
    for loss, (scale, margin) in PLANE.items():
        head_lr = next(first_guesses(recipe, loss))[2]
        study.run(Task("plane", "mnist", loss, scale, margin, head_lr, recipe.epochs, embedding_size=2))
    for scale in SCALES:
        for margin in GRID_MARGINS:
            study.run(Task("grid", "mnist", "arcface", scale, margin, recipe.learning_rates["head"], GRID_EPOCHS))


def main(argv: list[str] | None = None) -> int:
    """Run what has no record yet, then draw. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="*", metavar="mnist | cifar10", help="default: both", default=[])
    parser.add_argument("--data", type=Path, default=ROOT / "data", metavar="DIR", help="as in the scripts")
    parser.add_argument("--figures-only", action="store_true", help="tables and figures from the records on disk")
    options = parser.parse_args(argv)
    datasets = options.datasets or list(RECIPES)
    if unknown := set(datasets) - set(RECIPES):
        parser.error(f"{', '.join(sorted(unknown))}: choose mnist, cifar10, or neither for both")

    def work() -> None:
        if not options.figures_only:
            training.keep_memory()
            sources = {name: data.load(RECIPES[name].dataset, options.data.resolve()) for name in datasets}
            total = sum(len(LOSSES) * (6 + SEEDS[name] + SPLITS * UNSEEN_SEEDS) for name in datasets)
            total += (len(SCALES) * len(GRID_MARGINS) + len(PLANE)) * ("mnist" in datasets)
            study = Study(sources, total)
            if "mnist" in datasets:
                mnist_alone(study)
            for name in datasets:
                compare(study, name)
            study.bar.close()
        study_figures.draw(FOLDER)
        paper_figures.draw(FOLDER, ROOT / "figures" / "paper")

    return records.exit_status(work, "The same command goes on from here.")


if __name__ == "__main__":
    sys.exit(main())
