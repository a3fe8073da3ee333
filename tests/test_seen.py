"""study/seen.py: what its images show, which classes are kept apart, and its picture."""

from collections import Counter
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import arcface_mnist
from experiment import data as datasets
from experiment import records
from study import seen
from study.margin import RATES, SETUPS
from tests.helpers import tiny, train


def shades(count):
    """Images of one pixel that tells the digit and, in its tens, which of its images it is."""
    labels = torch.arange(count) % 10
    values = 10 * (torch.arange(count) // 10) + labels
    return values.to(torch.uint8).reshape(-1, 1, 1, 1), labels


def test_images_show_their_classes_in_turn_and_each_digit_is_drawn_evenly():
    images, labels = shades(200)
    classes = [(1, 2), (2, 1), (0, 0)]
    shown, label = seen.compose(images, labels, classes, 90, seed=3)
    assert shown.shape == (90, 1, 2, 1) and label.tolist() == [0, 1, 2] * 30
    read = [tuple(int(v) % 10 for v in image.flatten()) for image in shown]
    assert read == [classes[k] for k in label]
    left = Counter(int(image[0, 0]) // 10 for image in shown[label == 0])
    assert len(left) == 20 and set(left.values()) == {1, 2}  # 20 images of a 1 for 30 places
    again, other = (seen.compose(images, labels, classes, 90, seed=k)[0] for k in (3, 4))
    assert torch.equal(shown, again) and not torch.equal(shown, other)


@pytest.mark.parametrize("name", seen.KINDS)
def test_unseen_classes_are_never_trained_on(name):
    kind = seen.KINDS[name]
    order = kind.order
    assert len(order) == len(set(order)) == 10**kind.digits == kind.unseen + max(kind.seen)
    assert kind.order == order
    images, labels = shades(250)
    training = datasets.Data(
        "MNIST",
        [str(k) for k in range(10)],
        images[:200],
        labels[:200],
        images[200:],
        labels[200:],
        {},
    )
    shown = seen.make_data(training, kind, order[kind.unseen :][: kind.seen[0]])
    verified = seen.make_data(training, kind, order[: kind.unseen])
    assert not set(shown.classes) & set(verified.classes)
    assert len(shown.train_labels) == kind.images
    assert np.ptp(np.bincount(shown.train_labels)) <= 1
    assert shown.train_images.max() < 200 <= verified.test_images.min()  # their digits, too


def test_every_loss_has_every_number_of_classes_and_seed(tmp_path, monkeypatch):
    made = []

    def run(study, task, source, measure):
        made.append((task.name, len(source.classes), task.seen, task.loss, task.seed))

    images, labels = shades(250)
    digits = datasets.Data("MNIST", [str(k) for k in range(10)], *(images, labels) * 2, {})
    monkeypatch.setattr(seen.data, "load", lambda *_: digits)
    monkeypatch.setattr(seen.Study, "run", run)
    seen.compute(tmp_path, tmp_path)
    assert len({name for name, *_ in made}) == len(made) == 96
    assert all(classes == task_seen for _, classes, task_seen, *_ in made)
    assert Counter(seed for *_, seed in made) == {0: 32, 1: 32, 2: 32}


def test_unseen_classes_are_verified_by_the_network(small_data, tmp_path, monkeypatch):
    """The error rates of a network whose embeddings tell nothing are those of chance."""
    monkeypatch.setattr(seen, "TEST_IMAGES", 100)
    kind = replace(seen.KINDS["numbers"], images=600)
    shown, verified = (
        seen.make_data(small_data["MNIST"], kind, kind.order[k : k + 5]) for k in (20, 0)
    )
    trained = train(arcface_mnist, tiny(arcface_mnist, hardest=1.0), shown, tmp_path)
    found = seen.measure(trained, shown, "float32", unseen=verified)
    assert {"eer", "tar_1", "tar_01"} == set(found["verification"])
    assert 0 <= found["verification"]["eer"] <= 0.6
    assert found["angles"]["inter_test"] > 0
    trained.network.embedding.weight.data.zero_()
    found = seen.measure(trained, shown, "float32", unseen=verified)
    assert found["verification"]["eer"] == pytest.approx(0.5, abs=0.01)


def test_the_picture_has_the_means_over_the_seeds(tmp_path):
    for n in (10, 80):
        for loss, margin in seen.VARIANTS:
            for seed, eer in ((0, 0.02), (1, 0.04)):
                run = {"loss": loss, "margin": margin, "seed": seed, "seen": n}
                run |= {"test_accuracy": 0.99, "verification": {"eer": eer / n * 10}}
                records.append_line(tmp_path / "seen-numbers-mnist.jsonl", run)
    (axis,) = seen.draw(tmp_path).axes
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines["softmax"].get_xdata()) == [10, 80]
    assert lines["ArcFace, m = 0.3"].get_ydata() == pytest.approx([3, 0.375])
    plt.close("all")


def test_softmax_has_the_learning_rate_that_its_tuning_chose():
    runs = records.load_lines(records.ROOT / "figures/study/margin-tuning-mnist.jsonl")
    usual = SETUPS["mnist"].recipe.learning_rates["linear head"]
    rates = [usual * factor for factor in RATES]
    tried = [run for run in runs if run["loss"] == "softmax" and run["head_lr"] in rates]
    assert len(tried) == 3
    assert min(tried, key=lambda run: run["plain_loss"])["head_lr"] == seen.SOFTMAX_RATE


def test_without_records_it_ends_in_one_line(tmp_path, capsys):
    assert seen.main(["--figures-only"], tmp_path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no records of study.seen" in line
