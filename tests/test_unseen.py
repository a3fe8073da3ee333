"""Unseen classes are never trained on, and the tables and pictures say what the records do."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from experiment import records, synthetic
from experiment.errors import Problem
from experiment.training import Trained
from study import margin, unseen
from study.runs import Setup, Study, Task
from study.verification import FALSE_ACCEPT

STUDY = records.ROOT / "figures" / "study"


@pytest.fixture(autouse=True)
def close_figures():
    """Figures stay open until the test ends."""
    yield
    plt.close("all")


class Pixels(nn.Module):
    """The pixels, less their mean over some images."""

    def __init__(self, images):
        super().__init__()
        self.mean = images.flatten(1).float().mean(dim=0) / 255

    def forward(self, x):
        return x.flatten(1) - self.mean


def run(seed, split, eer, **values):
    """A record, with a flat ROC curve and pairs at one angle each."""
    counts = {"positive": [0] * 180, "negative": [0] * 180}
    counts["positive"][20 + seed], counts["negative"][80 + seed] = 30, 60
    found = {"eer": eer, "accuracy": 0.9, "tar_1": 0.5, "tar_01": 0.25}
    found |= {"roc": [eer] * len(FALSE_ACCEPT), "unseen": [str(split), "9"]} | counts
    record = {"seed": seed, "split": split, "test_accuracy": 0.99, "verification": found}
    return record | values


@pytest.fixture
def folder(tmp_path):
    """Three splits, and two seeds, but for the last run of CosFace; ArcFace is one point worse on
    split 1 and two on split 2, with the second seed one more."""
    with (tmp_path / "unseen-mnist.jsonl").open("w", encoding="utf-8") as file:
        for loss in unseen.LOSSES:
            for seed in (0, 1):
                for split in range(3):
                    worse = split + seed if loss == "arcface" else 0
                    record = run(seed, split, 0.10 + 0.01 * worse, loss=loss)
                    if (loss, seed, split) != ("cosface", 1, 2):
                        file.write(json.dumps(record) + "\n")
    return tmp_path


def test_a_network_is_judged_on_the_classes_that_it_was_not_trained_on(tmp_path):
    digits = synthetic.make("MNIST", train=200, test=800)
    shown = []

    def train(recipe, settings, data, out, resume):
        shown.append(data)
        head = nn.Linear(28 * 28, len(data.classes), bias=False)
        unused = {"snapshots": torch.zeros(3, 1, 2), "mean_theta": torch.zeros(3), "seconds": 1.0}
        history = [{"test_accuracy": 0.9}]
        network = Pixels(data.train_images)
        return Trained(network=network, head=head, history=history, **unused)

    setup = Setup(train=train, recipe=margin.SETUPS["mnist"].recipe, seeds=1)
    study = Study(tmp_path, setup, digits)
    usual = {"scale": 8.0, "margin": 0.1, "head_lr": 0.1, "epochs": 1}
    for split in range(unseen.SPLITS):
        task = Task(part="unseen", dataset="mnist", loss="arcface", split=split, **usual)
        found = unseen.train_and_verify(study, task)["verification"]
        seen = {str(k) for k in unseen.classes_seen(split)}
        assert set(shown[-1].classes) == seen and len(seen) == 6
        assert set(found["unseen"]) == set(digits.classes) - seen
        n = sum(int((digits.test_labels == int(k)).sum()) for k in found["unseen"])
        assert sum(found["positive"]) + sum(found["negative"]) == n * (n - 1) / 2
        centres = np.arange(180) + 0.5
        mean = {kind: np.average(centres, weights=found[kind]) for kind in ("positive", "negative")}
        assert mean["positive"] < mean["negative"] and found["eer"] < 0.5 < found["accuracy"]
    assert len({tuple(data.classes) for data in shown}) == unseen.SPLITS


CLASSES = {  # as published, in this order
    "mnist": list("0123456789"),
    "cifar10": [
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ],
}


@pytest.mark.parametrize("dataset", CLASSES)
def test_the_records_are_of_the_default_recipe(dataset):
    recipe = margin.SETUPS[dataset].recipe
    with_margin = {"arcface": recipe.default_margins["arcface"]}
    with_margin["cosface"] = recipe.default_margins["cosface"]
    for loss, runs in unseen.records_of(STUDY, dataset).items():
        for of in runs:
            assert of["epochs"] == recipe.epochs and of["margin"] == with_margin.get(loss)
            assert of["scale"] == (None if loss == "softmax" else recipe.scale)
            seen = {CLASSES[dataset][k] for k in unseen.classes_seen(of["split"])}
            assert not seen & set(of["verification"]["unseen"])


def test_differences_are_paired_by_seed_and_the_mean_needs_all_splits(folder):
    lines = unseen.table(folder, "mnist").splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in cells[::4]] == ["0, 9", "1, 9", "2, 9", "mean over the choices"]
    softmax = {row[0]: row[1:] for row in cells if row[1] == "softmax"}
    assert softmax["1, 9"][1:4] == ["2", "10.0, 10.0", "−1.0, −2.0"]
    assert softmax["2, 9"][1:4] == ["1", "10.0", "−2.0"]  # CosFace has the first seed only
    assert softmax["mean over the choices"][1:4] == ["1", "10.0", "−1.0"]
    arcface = next(row for row in cells if row[:2] == ["1, 9", "ArcFace"])
    assert arcface[2:] == ["2", "11.0, 12.0", "–", "90.0, 90.0", "50.0, 50.0", "25.0, 25.0"]


def test_a_run_that_collapsed_is_left_out(folder):
    path = folder / "unseen-mnist.jsonl"
    runs = records.load_lines(path)
    for record in runs:
        if (record["loss"], record["seed"], record["split"]) == ("softmax", 0, 1):
            record["test_accuracy"] = 0.2
    path.write_text("".join(json.dumps(record) + "\n" for record in runs), encoding="utf-8")
    row = next(line for line in unseen.table(folder, "mnist").splitlines() if "1, 9" in line)
    assert row.startswith("| 1, 9 | softmax | 1 | 10.0 | −2.0 |")


def test_roc_is_the_mean_over_runs(folder):
    axes = unseen.draw_roc(folder, "mnist").axes[0]
    arcface = axes.lines[3]
    mean = 100 * np.mean([0.10, 0.11, 0.12, 0.11, 0.12])
    assert arcface.get_ydata() == pytest.approx(np.full(len(FALSE_ACCEPT), mean))
    assert arcface.get_label() == "ArcFace: EER 11.2%"
    assert "5 runs of each loss, on 3 choices of the classes" in axes.get_title()


def test_pairs_are_shares_of_all_of_a_kind(folder):
    positive, negative = unseen.draw_pairs(folder, "mnist").axes[0].containers
    heights = [[bar.get_height() for bar in bars] for bars in (positive, negative)]
    assert heights[0][20:22] == heights[1][80:82] == pytest.approx([60, 40])
    assert [sum(of) for of in heights] == pytest.approx([100, 100])


def test_without_records_one_line_says_what_to_do(tmp_path):
    with pytest.raises(Problem, match=r"study.unseen has no seed yet, on MNIST"):
        unseen.table(tmp_path, "mnist")
