"""Damage is what its description says; the nearest class mean; what becomes of embeddings."""

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import arcface_cifar10
import arcface_mnist
from arcface_loss import ArcMarginProduct
from experiment import evaluation, records, synthetic
from experiment.data import Data
from experiment.training import Trained
from study import corruption, margin
from study.corruption import AMOUNTS, change, corrupt, nearest_mean


@pytest.mark.parametrize("kind", AMOUNTS)
def test_damage_grows_with_its_amount(kind):
    images = torch.randint(40, 120, (50, 28, 28, 1), dtype=torch.uint8)
    damage = [(corrupt(images, kind, x).float() - images.float()).abs() for x in AMOUNTS[kind]]
    means = [found.mean().item() for found in damage]
    assert means[0] == 0 and means == sorted(means) and means[-1] > 10
    assert torch.equal(corrupt(images, kind, 20), corrupt(images, kind, 20))


def test_damage_is_what_its_description_says():
    grey = torch.full((200, 20, 20, 3), 102, dtype=torch.uint8)
    noise = corrupt(grey, "noise", 16).float() / 255
    assert noise.std().item() == pytest.approx(0.16, abs=0.01)
    hidden = corrupt(grey, "occlusion", 30) != 102
    assert hidden.all(dim=3).float().mean().item() == pytest.approx(0.09)
    assert corrupt(grey, "brightness", 24).unique().tolist() == [round(102 + 0.24 * 255)]
    halves = torch.tensor([50, 150], dtype=torch.uint8).repeat(1, 20, 10)[..., None]
    faint = [round(100 - 50 * (1 - 0.36)), round(100 + 50 * (1 - 0.36))]
    assert corrupt(halves, "contrast", 36).unique().tolist() == faint
    with pytest.raises(ValueError, match="kind is 'fog'"):
        corrupt(grey, "fog", 1)


def test_a_longer_embedding_changes_the_distance_but_not_the_angle():
    means, labels = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
    assert nearest_mean(means, labels, means) == {"cosine": 1.0, "euclidean": 1.0}
    assert nearest_mean(0.1 * means, labels, means) == {"cosine": 1.0, "euclidean": 0.5}


def test_a_turn_and_a_change_of_length_are_told_apart():
    clean = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # turns rows by 90°
    assert change(clean, 0.5 * clean) == pytest.approx({"turned": 0.0, "length": 0.5})
    assert change(clean, 3 * clean @ quarter) == pytest.approx({"turned": 90.0, "length": 3.0})


class Pixels(nn.Module):
    """The pixels, less their mean over some images, as the embedding."""

    def __init__(self, images):
        super().__init__()
        self.mean = images.flatten(1).float().mean(dim=0) / 255

    def forward(self, x):
        return x.flatten(1) - self.mean


def test_what_is_measured_begins_with_the_images_as_they_are(small_data):
    data, no = small_data["MNIST"], torch.zeros(0)
    network, head = Pixels(data.train_images), ArcMarginProduct(784, 10, s=8.0)
    trained = Trained(
        network=network, head=head, history=[], snapshots=no, mean_theta=no, seconds=0.0
    )
    found = corruption.measure(trained, data, "float32", views=[])
    for kind, amounts in AMOUNTS.items():
        curve = found["corrupted"][kind]
        assert [damaged["amount"] for damaged in curve] == list(amounts)
        assert curve[0] == found["corrupted"]["noise"][0]
        assert curve[0]["turned"] == 0 and curve[0]["length"] == 1 and curve[-1]["turned"] > 20
    # By scikit-learn's nearest centroid, which knows the distance only.
    neighbours = pytest.importorskip("sklearn.neighbors")
    train, test = evaluation.embed_both(network, data, "float32")
    expected = neighbours.NearestCentroid().fit(*train).score(*test)
    assert found["corrupted"]["noise"][0]["euclidean"] == pytest.approx(expected)


def test_the_control_has_orthonormal_filters_of_both_signs(small_data):
    network = corruption.Unwhitened(16, **arcface_cifar10.DEFAULT.network)
    network.set_whitening(small_data["CIFAR-10"].train_images)
    filters = network.whiten.weight.flatten(1)
    torch.testing.assert_close(filters[:12] @ filters[:12].T, torch.eye(12))
    assert torch.equal(filters[12:], -filters[:12])


def test_the_control_is_trained_with_its_filters_and_the_script_keeps_its_own(monkeypatch):
    used = []
    monkeypatch.setattr(
        arcface_cifar10, "train", lambda *args: used.append((arcface_cifar10.Network, args))
    )
    corruption.train_unwhitened(1, 2)
    assert used == [(corruption.Unwhitened, (1, 2))]
    assert arcface_cifar10.Network is not corruption.Unwhitened


def test_every_loss_and_seed_is_trained_and_the_control_once(tmp_path, monkeypatch):
    made = []

    def run(study, task, source, measure):
        made.append((task.name, task.loss, study.setup.train))
        return {"plain_loss": task.head_lr}

    monkeypatch.setattr(corruption.data, "load", lambda name, _: synthetic.make(name, 20, 10))
    monkeypatch.setattr(margin, "RATES", (1.0,))
    monkeypatch.setattr(corruption.Study, "run", run)
    monkeypatch.setattr(Data, "for_validation", lambda source, _: source)
    corruption.compute(tmp_path, tmp_path)
    names = Counter(name for name, *_ in made)
    assert len(names) == len(made) == 2 + 2 * 5 + 2 * 3 + 1
    scripts = (arcface_mnist.train, arcface_cifar10.train)
    others = [(name, loss) for name, loss, train in made if train not in scripts]
    assert others == [("unwhitened-cifar10-arcface-seed0", "arcface")]


def test_without_records_the_command_says_so(tmp_path, capsys):
    assert corruption.main(["--figures-only"], tmp_path) == 1
    assert "study.corruption has no seed yet, on MNIST" in capsys.readouterr().err


def write(folder, part, loss, seed, values):
    """A record whose damaged images all have the same ``values``."""
    made = {"loss": loss, "seed": seed, "split": None, "test_accuracy": 0.99}
    found = {kind: [values] * len(amounts) for kind, amounts in AMOUNTS.items()}
    records.append_line(folder / f"{part}-mnist.jsonl", made | {"corrupted": found})


def test_accuracies_are_paired_by_seed(tmp_path):
    for seed, accuracy in enumerate((0.9, 0.8, 0.7)):
        values = {"cosine": accuracy, "euclidean": accuracy - 0.1, "turned": 30.0, "length": 0.5}
        for loss in corruption.LOSSES:
            write(tmp_path, "corruption", loss, seed, values)
    write(tmp_path, "corruption", "softmax", 3, values)  # without its ArcFace: left out
    rows = corruption.table(tmp_path, "mnist").splitlines()
    assert rows[2].startswith("| noise | 0 | 80.0 ± 24.8 | 10.0 ± 0.0 | 30.0 ± 0.0 | 0.50 ± 0.00 |")
    assert len(rows) == 2 + 3 * len(AMOUNTS) and rows[4].startswith("| noise | 32 |")
    figure = corruption.draw(tmp_path, "mnist")
    assert [axis.get_title() for axis in figure.axes[:4]] == list(AMOUNTS)
    lines = figure.axes[0].lines
    assert len(lines) == 4 and np.allclose(lines[1].get_ydata(), 70)
    plt.close(figure)
