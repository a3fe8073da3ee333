"""study/grid.py: what it trains, and the separation that its picture is read by."""

import math

import matplotlib.pyplot as plt
import pytest

import arcface_mnist
from experiment import records
from study import grid


@pytest.mark.parametrize(
    ("s", "degrees"), [(64, 26.6), (48, 30.9), (16, 54.9), (6, 96.38), (4, 96.38)]
)
def test_the_separation_has_the_published_values_and_ends_at_the_simplex(s, degrees):
    assert grid.separation(s, 0) == pytest.approx(degrees, abs=0.05)


@pytest.mark.parametrize(("s", "m", "n"), [(64, 0, 10), (16, 0.3, 10), (30, 0.5, 1000)])
def test_at_the_separation_an_image_on_its_centre_has_the_probability(s, m, n):
    theta = math.radians(grid.separation(s, m, probability=0.9, n=n))
    own, other = math.exp(s * math.cos(m)), math.exp(s * math.cos(theta))
    assert own / (own + (n - 1) * other) == pytest.approx(0.9)


def test_every_pair_is_trained_with_the_recipe_and_both_seeds(tmp_path, monkeypatch, small_data):
    made = []

    def run(study, task, source, measure):
        assert study.setup.recipe == arcface_mnist.DEFAULT
        made.append((task.name, task.scale, task.margin, task.seed, task.epochs, task.head_lr))

    monkeypatch.setattr(grid.data, "load", lambda *_: small_data["MNIST"])
    monkeypatch.setattr(grid.Study, "run", run)
    monkeypatch.setattr(type(small_data["MNIST"]), "for_validation", lambda source, _: source)
    grid.compute(tmp_path, tmp_path)
    assert len({name for name, *_ in made}) == len(made) == 90
    assert {(s, m, seed) for _, s, m, seed, *_ in made} == {
        (s, m / 10, seed) for s in (4, 8, 16, 32, 64) for m in range(9) for seed in (0, 1)
    }
    assert {(epochs, lr) for *_, epochs, lr in made} == {(3, 0.2)}


def test_the_picture_has_the_means_over_the_seeds(tmp_path):
    for s in (8, 64):
        for margin in (0.0, 0.5):
            for seed, angle in ((0, 80.0), (1, 90.0)):
                angles = {"inter_test": angle - 10 * margin, "intra_test": 10.0}
                run = {"loss": "arcface", "scale": s, "margin": margin, "seed": seed, "split": None}
                line = run | {"test_accuracy": 0.99, "angles": angles}
                records.append_line(tmp_path / "scale-margin-mnist.jsonl", line)
    left, right = grid.draw(tmp_path).axes
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines["0"].get_xdata()) == [8, 64] and list(lines["0"].get_ydata()) == [85, 85]
    assert list(lines["0.5"].get_ydata()) == [80, 80]
    assert [line.get_ydata()[0] for line in right.lines if line.get_label() == "0.5"] == [8.0]
    plt.close("all")
