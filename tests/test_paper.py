"""The paper's pictures: curves against closed forms, angles of the assignment's vectors."""

import math
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from arcface_loss import ArcMarginProduct
from experiment import evaluation, records, synthetic
from experiment.training import Trained
from study import paper
from study.runs import Setup, Study
from study.tables import ANGLES

STUDY = records.ROOT / "figures" / "study"
NONE = {"seed": 0, "split": None}


@pytest.fixture(autouse=True)
def close_figures():
    """Figures stay open until the test ends."""
    yield
    plt.close("all")


@pytest.mark.parametrize("name", paper.PAPER_MARGINS)
def test_target_logits_are_the_paper_s_formula(name):
    """cos(m1·θ + m2) − m3 (eq. 4), where m1·θ + m2 is at most π."""
    margins = {"m1": 1.0, "m": 0.0, "m3": 0.0} | paper.PAPER_MARGINS[name][0]
    theta = np.linspace(0.01, 2.2, 50)
    inside = margins["m1"] * theta + margins["m"] <= math.pi
    expected = np.cos(margins["m1"] * theta + margins["m"]) - margins["m3"]
    found = paper.target_logit(theta, **margins)
    assert inside.sum() > 40 and found[inside] == pytest.approx(expected[inside], abs=1e-6)


def test_the_curves_of_fig_4b_are_those_of_the_paper():
    axes = paper.fig4b().axes[0]
    curves = {line.get_label(): line for line in axes.lines}
    degrees, logit = curves["ArcFace (1, 0.5, 0)"].get_data()
    assert np.interp(60, degrees, logit) == pytest.approx(math.cos(math.pi / 3 + 0.5), abs=1e-4)
    degrees, logit = curves["CosFace (1, 0, 0.35)"].get_data()
    assert np.interp(60, degrees, logit) == pytest.approx(0.15, abs=1e-4)
    assert len(curves) == 6


def test_only_arcface_s_margin_is_of_constant_width():
    """m = 0.5 is 28.65 degrees, wherever the embedding is."""
    widths = {}
    for axis in paper.fig5().axes:
        own, other = axis.lines[0].get_data()
        widths[axis.get_title()] = (other - own)[own < 60]
    assert widths["ArcFace, m = 0.5"] == pytest.approx(28.648, abs=0.01)
    assert widths["normalised softmax"] == pytest.approx(0, abs=0.05)
    for name in ("SphereFace, m1 = 1.35", "CosFace, m3 = 0.35"):
        assert np.ptp(widths[name]) > 10


def test_a_longer_vector_changes_the_distance_but_not_the_angle():
    left = paper.geometry().axes[0]
    text = " ".join(text.get_text() for text in left.texts)
    between = math.degrees(math.atan2(4, 7) - math.atan2(2, 5))
    assert text.count(f"{between:.2f}°") == 2
    assert f"{math.dist((5, 2), (7, 4)):.2f}" in text
    assert f"{math.dist((5, 2), (10.5, 6)):.2f}" in text


def test_embeddings_in_the_plane_lie_around_their_centre_lines():
    record = records.load_lines(STUDY / "plane-mnist.jsonl")[-1]
    arrays = records.load_arrays(STUDY / f"{record['name']}.npz")
    axis = paper.fig3(STUDY).axes[1]
    assert len(axis.collections) == len(axis.lines) == 8
    points = sum(len(cloud.get_offsets()) for cloud in axis.collections)
    assert points == len(arrays["labels"])
    for cloud, line in zip(axis.collections, axis.lines, strict=True):
        end, middle = line.get_xydata()[1], cloud.get_offsets().data.mean(axis=0)
        cosine = end @ middle / np.linalg.norm(end) / np.linalg.norm(middle)
        assert cosine > 0.99
    assert f"{record['test_accuracy']:.1%} right" in axis.get_title()


class Projection(nn.Module):
    """The first two principal components of the pixels."""

    def __init__(self, images):
        super().__init__()
        pixels = images.flatten(1).float() / 255
        self.mean = pixels.mean(dim=0)
        self.weight = torch.pca_lowrank(pixels, q=2)[2]

    def forward(self, x):
        return (x.flatten(1) - self.mean) @ self.weight


def train_nothing(recipe, settings, data, out, resume):
    """Stands in for a script's train(): class means as centres."""
    network = Projection(data.train_images)
    head = ArcMarginProduct(settings.embedding_size, len(data.classes), s=8.0)
    with torch.no_grad():
        train, _ = evaluation.embed_both(network, data, "float32")
        head.weight.copy_(evaluation.class_means(*train, len(data.classes)))
    return Trained(
        network=network,
        head=head,
        history=[{"test_accuracy": 0.5}],
        snapshots=torch.zeros(3, 1, 2),
        mean_theta=torch.zeros(3),
        seconds=1.0,
    )


def test_eight_digits_are_embedded_in_the_plane_once_by_each_loss(tmp_path):
    digits, calls = synthetic.make("MNIST", train=500, test=300), []

    def train(recipe, settings, data, out, resume):
        calls.append((settings.loss, settings.scale, settings.margin, data.classes))
        return train_nothing(recipe, settings, data, out, resume)

    setup = Setup(train=train, recipe=paper.PLANE, seeds=1)
    for _ in range(2):
        paper.plane(Study(tmp_path, setup, digits))
    classes = [str(k) for k in range(8)]
    assert calls == [("softmax", None, None, classes), ("arcface", 16.0, 0.2, classes)]
    runs = records.load_lines(tmp_path / "plane-mnist.jsonl")
    assert [run["loss"] for run in runs] == ["softmax", "arcface"]
    assert all(run["angles"].keys() == ANGLES.keys() for run in runs)
    for run in runs:
        arrays = records.load_arrays(tmp_path / f"{run['name']}.npz")
        expected = digits.test_labels[digits.test_labels < 8]
        assert arrays["labels"].tolist() == expected.tolist()
        assert arrays["embeddings"].shape == (len(expected), 2)
        assert arrays["centres"].shape == (8, 2)


def test_the_records_on_disk_are_what_is_trained(tmp_path):
    """Nothing is trained where they are."""

    def train(*arguments):
        raise AssertionError("no record")

    shutil.copy(STUDY / "plane-mnist.jsonl", tmp_path)
    setup = Setup(train=train, recipe=paper.PLANE, seeds=1)
    blank = synthetic.make("MNIST", train=20, test=20)
    paper.plane(Study(tmp_path, setup, blank))
    for run in records.load_lines(STUDY / "plane-mnist.jsonl"):
        settings = (run["scale"], run["margin"], run["head_lr"])
        assert settings == paper.PLANE_SETTINGS[run["loss"]]
        assert run["epochs"] == paper.PLANE.epochs


def test_what_needs_no_records_is_drawn_without_any(tmp_path):
    records.append_line(tmp_path / "figures/study/plane-mnist.jsonl", {"loss": "softmax"} | NONE)
    assert paper.main(["--figures-only"], tmp_path) == 0
    drawn = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert drawn == ["fig4b-logits.png", "fig5-margins.png", "geometry.png"]
