"""study/sphere.py: what it keeps of a training, and the picture of it."""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import arcface_mnist
from experiment import records
from study import sphere
from tests.helpers import settings, tiny, train


def test_watching_changes_nothing_and_keeps_the_moments(small_data, tmp_path, monkeypatch):
    """The weights are those of a training that nobody watched; the last moment is the end."""
    monkeypatch.setattr(sphere, "STEPS", (1, 3))
    small, recipe = small_data["MNIST"], tiny(arcface_mnist, hardest=1.0)
    alone = train(arcface_mnist, recipe, small, tmp_path / "alone", embedding_size=3)
    watched = sphere.Watched()
    run = partial(watched.train, recipe, settings(embedding_size=3), small, tmp_path / "watched")
    for _ in range(2):  # the second time over the first one's checkpoint
        trained = run(True)
    for name, weight in alone.network.state_dict().items():
        assert torch.equal(weight, trained.network.state_dict()[name])
    path = tmp_path / "moments.npz"
    watched.measure(path, trained, small, "float32")
    arrays = records.load_arrays(path)
    count = min(sphere.SHOWN, len(small.test_labels))
    assert arrays["points"].shape == (3, count, 3)
    assert arrays["centres"].shape == (3, len(small.classes), 3)
    weight = trained.head.weight.detach().numpy()
    expected = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    assert arrays["centres"][-1] == pytest.approx(expected, abs=1e-3)
    assert np.abs(arrays["centres"][0] - expected).max() > 1e-3


def test_each_test_image_is_on_one_half_of_the_sphere(tmp_path):
    """Grey is what lies nearer than m to the middle between two centres."""
    points = np.eye(3)[[0, 1, 2]].repeat(2, axis=0) * np.array([[1], [-1]] * 3) * 1.0
    points[2:, 0] += 0.1
    centres = np.concatenate([np.eye(3), -np.eye(3)]) + np.array([1e-4, 0, 0])
    arrays = {"points": [points] * 4, "centres": [centres] * 4, "labels": np.arange(6)}
    for loss, margin in (("softmax", None), ("arcface", 0.2)):
        run = {"name": loss, "loss": loss, "scale": margin and 16.0, "margin": margin}
        run["angles"] = {"intra_test": 5.0, "inter_test": 60.0}
        records.append_line(tmp_path / "sphere-mnist.jsonl", run)
        records.save_arrays(tmp_path / f"{loss}.npz", **{k: np.array(v) for k, v in arrays.items()})
    axes = sphere.draw(tmp_path).axes
    drawn = [sum(len(cloud.get_offsets()) for cloud in axis.collections) for axis in axes]
    assert drawn[3] + drawn[4] == drawn[8] + drawn[9] == 6
    assert len(axes[8].texts) + len(axes[9].texts) == 6
    shade = axes[8].images[0].get_array()[..., 3]
    y = np.linspace(-1, 1, shade.shape[1])
    grey = y[shade[len(shade) // 2] > 0.1]  # on the equator, between the centres at 0° and ± 90°
    turn = np.degrees(np.arcsin(grey[grey > 0]))
    assert np.ptp(turn) == pytest.approx(np.degrees(0.2), abs=1.2)  # two pixels
    assert turn.mean() == pytest.approx(45, abs=0.5)
    plt.close("all")
