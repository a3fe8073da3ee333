"""The study's records, read from disk, and which of them are compared with each other."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiment import records
from experiment.errors import Problem
from experiment.figures import LOSS_STYLE

DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10"}  # the name in those of files, and in print
ARCFACE = LOSS_STYLE["arcface"][0]
LEARNT = 0.5  # the accuracy below which a run counts as collapsed

StudyRecord = dict[str, Any]
RunsByLoss = dict[str, list[StudyRecord]]  # by the loss, or by the name that is printed of it


def load(folder: Path, part: str, dataset: str) -> RunsByLoss:
    """The records of a part of the study, by loss, in the order of their seeds and splits, else as
    they were made.

    Returns an empty dictionary where the part has no records. Raises Problem if they are damaged.
    """
    path = folder / f"{part}-{dataset}.jsonl"
    found = records.load_lines(path) if path.exists() else []
    found.sort(key=lambda record: [record[key] or 0 for key in ("seed", "split")])
    by_loss = {loss: [r for r in found if r["loss"] == loss] for loss in LOSS_STYLE}
    return {loss: runs for loss, runs in by_loss.items() if runs}


def common_seeds(runs: RunsByLoss, losses: Iterable[str]) -> RunsByLoss:
    """Of these runs those whose seed and split every one of the losses has been run with."""
    done = [{(r["seed"], r["split"]) for r in runs.get(loss, [])} for loss in losses]
    common = set.intersection(*done)
    if not common:
        return {}
    return {loss: [r for r in runs[loss] if (r["seed"], r["split"]) in common] for loss in losses}


def complete(folder: Path, part: str, dataset: str, losses: Iterable[str]) -> RunsByLoss:
    """The runs of a part that did not collapse, of the seeds and splits that all losses have.

    Raises Problem if there are none.
    """
    found = common_seeds(load(folder, part, dataset), losses)
    if not found:
        what = f"study.{part} has no seed yet, on {DATASETS[dataset]}, that all its losses have"
        raise Problem(f"{what}. Run it without options.")
    return {loss: finished(runs) for loss, runs in found.items()}


def collapsed(record: StudyRecord) -> bool:
    """Whether the training was stopped, or ended below LEARNT on its own classes."""
    return record["test_accuracy"] is None or record["test_accuracy"] < LEARNT


def finished(runs: list[StudyRecord]) -> list[StudyRecord]:
    """The runs that did not collapse."""
    return [record for record in runs if not collapsed(record)]


def differences(
    runs: RunsByLoss, name: str, to: str = ARCFACE, key: str = "accuracy"
) -> list[float]:
    """An accuracy minus that of other runs with the same seed, in percentage points, of the seeds
    with which neither collapsed."""
    others = {record["seed"]: record[key] for record in finished(runs[to])}
    return [
        100 * (record[key] - others[record["seed"]])
        for record in finished(runs[name])
        if record["seed"] in others
    ]


def angle_of(key: str) -> Callable[[StudyRecord], float]:
    """A run's angle of the paper's Table 3, in degrees."""
    return lambda run: float(run["angles"][key])


def ratio(run: StudyRecord) -> float:
    """Inter over Intra, of test images."""
    return angle_of("inter_test")(run) / angle_of("intra_test")(run)
