"""The study's trainings: each is computed once, and an interrupted one is resumed."""

import argparse
import io
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from tqdm import tqdm

from experiment import cli, errors, evaluation, machine, records
from experiment.data import Data
from experiment.figures import STYLE, save
from experiment.recipe import Recipe, Settings
from experiment.records import ROOT
from experiment.training import Diverged, Trained
from study.tables import fill_file

# What an experiment measures on a trained network: called with it, the data that it was trained
# on, and the precision; returns what is added to the record.
Measure = Callable[[Trained, Data, str], dict[str, Any]]

ABBREVIATIONS = {
    "scale": "s",
    "margin": "m",
    "head_lr": "lr",
    "margin_warm_up": "rise",
    "split": "split",
    "seen": "seen",
    "seed": "seed",
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a data set is trained in the study.

    train: that of the data set's script. seeds: how many, where losses are compared.
    held_out: how many training images validate where settings are chosen.
    """

    train: Callable[[Recipe, Settings, Data, Path, bool], Trained]
    recipe: Recipe
    seeds: int = 1
    held_out: int = 5000


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training.

    dataset: as in the names of files. head_lr: the peak learning rate of the last layer.
    split: which classes are trained on; None for all. seen: how many, where that is varied.
    embedding_size, margin_warm_up: None for the recipe's.
    named_by: the fields that tell the tasks of a part and a loss apart.
    """

    part: str
    dataset: str
    loss: str
    scale: float | None
    margin: float | None
    head_lr: float
    epochs: int
    seed: int = 0
    split: int | None = None
    seen: int | None = None
    embedding_size: int | None = None
    margin_warm_up: float | None = None
    named_by: tuple[str, ...] = ("split", "seed")

    @property
    def name(self) -> str:
        """Of its record: margin-mnist-arcface-seed0."""
        values = {ABBREVIATIONS[key]: getattr(self, key) for key in self.named_by}
        words = [f"{key}{value:g}" for key, value in values.items() if value is not None]
        return "-".join([self.part, self.dataset, self.loss, *words])


def arcface_settings(recipe: Recipe, **values: Any) -> Settings:
    """What a run of ArcFace by a recipe, with all its own settings and seed 0, is asked to do.

    Args:
        values: of Settings, among them dataset, device and precision; others replace the recipe's.
    """
    usual: dict[str, Any] = {
        "loss": "arcface",
        "scale": recipe.scale,
        "margin": recipe.default_margins["arcface"],
        "embedding_size": recipe.embedding_size,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "seed": 0,
        "threads": torch.get_num_threads(),
    }
    return Settings(**usual | values)


@torch.no_grad()
def outcome(
    trained: Trained,
    source: Data,
    precision: str,
    *,
    views: list[list[float]],
    embedded: tuple[evaluation.Labelled, evaluation.Labelled] | None = None,
) -> dict[str, Any]:
    """What a training on ``source`` came to on its test images.

    Args:
        embedded: what evaluation.embed_both gives, where it was made already.

    Returns:
        accuracy, accuracy_tta: the latter is None without views. loss_with_margin, plain_loss.
        angles: those of the paper's Table 3, in degrees.
    """
    network, head = trained.network, trained.head
    train, test = embedded or evaluation.embed_both(network, source, precision)
    loss, accuracy = evaluation.loss_and_accuracy(head, *test)
    plain = head(test[0])
    found: dict[str, Any] = {"accuracy": accuracy, "accuracy_tta": None, "loss_with_margin": loss}
    found["plain_loss"] = F.cross_entropy(plain, test[1]).item()
    if views:
        logits = evaluation.tta_logits(network, head, source.test_images, precision, views, plain)
        found["accuracy_tta"] = evaluation.accuracy(logits, test[1])
    angles = evaluation.angle_statistics(head.weight, train, test)
    return found | {"angles": angles}


def measure_angles(trained: Trained, source: Data, precision: str) -> dict[str, Any]:
    """The angles of the paper's Table 3, in degrees."""
    train, test = evaluation.embed_both(trained.network, source, precision)
    return {"angles": evaluation.angle_statistics(trained.head.weight, train, test)}


class Study:
    """Trains what has no record yet.

    Args:
        folder: of the records, a JSON Lines file for each part and data set.
        setup, source: of one data set.
        total: how many trainings there are in all, for the progress bar.
    """

    def __init__(self, folder: Path, setup: Setup, source: Data, total: int = 0):
        self.folder, self.setup, self.source = folder, setup, source
        self.device = machine.choose_device("auto")
        self.precision = machine.choose_precision("auto", self.device)
        self.bar = tqdm(total=total, unit="run", disable=not sys.stderr.isatty())

    def run(self, task: Task, data: Data, measure: Measure) -> dict[str, Any]:
        """The record of a task: from the disk, or from a training on ``data``.

        Its test_accuracy is that on the test images of ``data``, None if the training collapsed.

        Raises:
            Problem: a record or a checkpoint is damaged, or cannot be written.
        """
        path = self.folder / f"{task.part}-{task.dataset}.jsonl"
        done = records.load_lines(path) if path.exists() else []
        self.bar.set_postfix_str(task.name)
        found = next((record for record in done if record.get("name") == task.name), None)
        if found is None:
            found = self._compute(task, data.to(self.device), measure)
            records.append_line(path, found)
            shutil.rmtree(self.checkpoints(task), ignore_errors=True)
            result = found.get("collapsed") or f"{found['test_accuracy']:.2%}"
            tqdm.write(f"{task.name}: {result}")
            sys.stdout.flush()
        self.bar.update()
        return found

    def checkpoints(self, task: Task) -> Path:
        """The folder of an unfinished training's checkpoint."""
        return self.folder / f".running-{task.name}"

    def _compute(self, task: Task, data: Data, measure: Measure) -> dict[str, Any]:
        setup = self.setup
        rates = {"head": task.head_lr, "linear head": task.head_lr}
        recipe = replace(setup.recipe, learning_rates=setup.recipe.learning_rates | rates)
        if task.margin_warm_up is not None:
            recipe = replace(recipe, margin_warm_up=task.margin_warm_up)
        settings = Settings(
            dataset=data.name,
            loss=task.loss,
            scale=task.scale,
            margin=task.margin,
            embedding_size=task.embedding_size or recipe.embedding_size,
            epochs=task.epochs,
            batch_size=recipe.batch_size,
            seed=task.seed,
            device=self.device.type,
            precision=self.precision,
            threads=torch.get_num_threads(),
            stop_if_diverged=False,
        )
        record = {key: value for key, value in asdict(task).items() if key != "named_by"}
        record |= {"dataset": data.name, "name": task.name}
        record |= {"device_name": machine.device_name(self.device), "precision": self.precision}
        record["versions"] = machine.versions()
        try:
            with redirect_stdout(io.StringIO()):  # one line for a run, not one for each epoch
                trained = setup.train(recipe, settings, data, self.checkpoints(task), True)
        except Diverged as problem:
            return record | {"collapsed": str(problem), "test_accuracy": None}
        record["train_seconds"], record["diverged"] = trained.seconds, trained.diverged
        record["test_accuracy"] = trained.history[-1]["test_accuracy"]
        return record | measure(trained, data, self.precision)


def train_and_draw(
    doc: str | None,
    argv: list[str] | None,
    compute: Callable[[Path], None],
    folder: Path,
    draw: Mapping[str, Callable[[Path], plt.Figure | None]],
    tables: Callable[[Path], dict[str, str]] = lambda folder: {},
) -> int:
    """A command that trains what has no record yet, then draws. Returns the exit status.

    Args:
        doc: of the command's module; its first line is shown by ``--help``.
        compute: called with the folder of the data; not with ``--figures-only``.
        folder: of the pictures, and of README.md.
        draw, tables: called with it; the former by the picture's name, and None means that it
            has no records yet. The tables go into its README.md.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", type=cli.path, default=ROOT / "data", metavar="DIR", help="as in the scripts")
    add("--figures-only", action="store_true", help="pictures and tables from the records on disk")

    def work() -> None:
        options = parser.parse_args(argv)
        if not options.figures_only:
            machine.keep_malloc_arenas()
            compute(options.data)
        with records.showing(folder), plt.rc_context(STYLE):
            for name, make in draw.items():
                if (picture := make(folder)) is not None:
                    save(picture, folder / name)
            if made := tables(folder):
                fill_file(folder / "README.md", made)

    return errors.exit_status(work, "The same command goes on from here.")
