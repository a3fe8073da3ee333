"""Which of the study's records are compared with each other."""

from collections import Counter

import pytest

from experiment import records
from experiment.figures import LOSS_STYLE
from study import selection

FOLDER = records.ROOT / "figures" / "study"
PARTS = {
    "unseen": 60,
    "scale-margin": 90,
    "plane": 2,
    "seen-numbers": 48,
    "seen-digits": 48,
    "margin": 30,
    "margin-tuning": 57,
    "best": 70,
    "corruption": 10,
}
CIFAR10_PARTS = {
    "unseen": 24,
    "margin": 15,
    "margin-tuning": 30,
    "best": 10,
    "corruption": 6,
    "unwhitened": 1,
}


def write(folder, part, lines):
    """A file of records of a part, of MNIST."""
    defaults = {"seed": 0, "split": None, "scale": 8.0, "margin": None, "head_lr": 0.2}
    for line in lines:
        records.append_line(folder / f"{part}-mnist.jsonl", defaults | line)


@pytest.mark.parametrize(("dataset", "parts"), [("mnist", PARTS), ("cifar10", CIFAR10_PARTS)])
def test_the_records_on_disk_are_complete_and_none_is_double(dataset, parts):
    for part, count in parts.items():
        runs = [run for of in selection.load(FOLDER, part, dataset).values() for run in of]
        names = Counter(run["name"] for run in runs)
        assert len(runs) == count and names.most_common(1)[0][1] == 1
        assert {run["part"] for run in runs} == {part}
        assert {run["dataset"] for run in runs} == {selection.DATASETS[dataset]}


def test_records_are_in_the_order_of_losses_seeds_and_splits(tmp_path):
    kinds = [
        (loss, seed, split)
        for loss in ("arcface", "softmax")
        for split in (1, 0)
        for seed in (1, 0)
    ]
    write(tmp_path, "unseen", [{"loss": a, "seed": b, "split": c} for a, b, c in kinds])
    found = selection.load(tmp_path, "unseen", "mnist")
    assert list(found) == ["softmax", "arcface"]
    order = [(run["seed"], run["split"]) for run in found["arcface"]]
    assert order == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert selection.load(tmp_path, "margin", "mnist") == {}


def test_only_seeds_that_every_loss_has_are_compared(tmp_path):
    kinds = [(loss, seed) for loss in LOSS_STYLE for seed in (0, 1)]
    kinds.remove(("cosface", 1))
    write(tmp_path, "margin", [{"loss": loss, "seed": seed} for loss, seed in kinds])
    runs = selection.load(tmp_path, "margin", "mnist")
    found = selection.common_seeds(runs, LOSS_STYLE)
    assert {loss: [run["seed"] for run in of] for loss, of in found.items()} == {
        loss: [0] for loss in LOSS_STYLE
    }
    assert len(selection.common_seeds(runs, ["softmax", "cm1"])["cm1"]) == 2
    del runs["cosface"]
    assert selection.common_seeds(runs, LOSS_STYLE) == {}


def test_runs_that_collapsed_are_left_out():
    fine, stopped, low = ({"test_accuracy": accuracy} for accuracy in (0.9, None, 0.4))
    assert selection.finished([stopped, fine, low]) == [fine]


def test_differences_are_paired_by_seed():
    def runs(*accuracies):
        return [
            {"seed": k, "test_accuracy": value, "accuracy": value and value + 0.01 * k}
            for k, value in enumerate(accuracies)
        ]

    made = {"ArcFace": runs(0.90, None, 0.80, 0.7), "CosFace": runs(0.91, 0.95, 0.78, 0.2)}
    assert selection.differences(made, "CosFace") == pytest.approx([1, -2])
    assert selection.differences(made, "CosFace", key="test_accuracy") == pytest.approx([1, -2])
    other = {"ArcFace": runs(0.9), "CosFace": [{"seed": 0, "test_accuracy": 0.9, "accuracy": 0.8}]}
    assert selection.differences(other, "CosFace") == pytest.approx([-10])
