"""study/tuning.py: trials change each other, are judged on training images, and run once."""

from dataclasses import asdict, replace

import pytest
import torch

import arcface_mnist
from experiment import records
from study import tables, trials, tuning
from tests.helpers import tiny

FOLDER = records.ROOT / "figures" / "tuning"


def test_a_trial_has_its_own_changes_and_those_of_the_one_it_changes(monkeypatch):
    found = {
        "a": ("", {"network": {"residual": True}, "epochs": 3}, 1),
        "b": ("a", {"network": {"bn_momentum": 0.5}, "hardest": 0.2}, 1),
    }
    monkeypatch.setitem(tuning.TRIALS, "mnist", found)
    start, b = trials.START["mnist"], tuning.recipe_of("mnist", "b")
    network = {"widths": [32, 64, 128], "residual": True, "bn_momentum": 0.5}
    assert b == replace(start, network=network, epochs=3, hardest=0.2)


@pytest.mark.parametrize("dataset", tuning.SCRIPTS)
def test_the_records_are_of_the_trials(dataset):
    """Each recorded run has its trial, and the recipe that this trial stands for today."""
    path = FOLDER / f"{dataset}.jsonl"
    for record in records.load_lines(path) if path.exists() else []:
        assert record["recipe"] == asdict(tuning.recipe_of(dataset, record["trial"]))
        assert record["held_out"] == tuning.SETUPS[dataset].held_out


@pytest.mark.parametrize("dataset", tuning.SCRIPTS)
def test_the_page_has_the_tables_of_the_records(dataset):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert tables.fill(text, dataset, tuning.table(dataset, FOLDER)) == text


@pytest.fixture
def small(small_data, monkeypatch):
    """A tiny recipe as the start of a search with one trial, and 600 images, 100 of them held
    out."""
    recipe = tiny(arcface_mnist, epochs=1, batch_size=100, embedding_size=8, views=[[0, 0.5]])
    monkeypatch.setitem(trials.START, "mnist", recipe)
    monkeypatch.setitem(
        tuning.TRIALS, "mnist", {"wide m": ("", {"default_margins": {"arcface": 0.3}}, 2)}
    )
    return small_data["MNIST"].for_validation(100)


def test_a_run_is_judged_on_the_images_held_out_and_never_computed_twice(
    small, tmp_path, monkeypatch
):
    calls, train = [], arcface_mnist.train

    def spy(recipe, settings, data, out, resume):
        calls.append((settings.seed, settings.margin, len(data.train_images)))
        return train(recipe, settings, data, out, resume)

    monkeypatch.setattr(arcface_mnist, "train", spy)
    for _ in range(2):
        for seed in range(2):
            record = tuning.run("mnist", "wide m", seed, small, tmp_path)
    assert calls == [(0, 0.3, 500), (1, 0.3, 500)]
    assert record == records.load_lines(tmp_path / "mnist.jsonl")[1]
    assert 0 <= record["accuracy"] <= 1 and round(100 * record["accuracy"], 6) % 1 == 0
    assert (
        record["loss_with_margin"] > record["plain_loss"] > 0 and record["accuracy_tta"] is not None
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mnist.jsonl"]
    line = tuning.table("mnist", tmp_path).splitlines()[2]
    assert line.startswith("| wide m | arcface 0.3 | 2 |")


def test_an_interrupted_run_is_resumed(small, tmp_path, monkeypatch):
    def interrupted(recipe, settings, data, out, resume):
        out.mkdir(parents=True)
        (out / "checkpoint.pt").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(arcface_mnist, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuning.run("mnist", "wide m", 0, small, tmp_path)
    seen = []

    def train(recipe, settings, data, out, resume):
        seen.append((resume, (out / "checkpoint.pt").exists()))
        raise tuning.Diverged("The loss is nan")

    monkeypatch.setattr(arcface_mnist, "train", train)
    assert tuning.run("mnist", "wide m", 0, small, tmp_path)["diverged"] == "The loss is nan"
    assert seen == [(True, True)]


def test_the_arithmetic_is_that_of_the_images_drawn():
    """Two whole epochs and ten halves of 1,000 images, on a network of which the cost is known."""
    recipe = replace(
        tiny(arcface_mnist), epochs=12, hardest=0.5, full_epochs=[1, 1], batch_size=100
    )
    per_image = tuning.operations(recipe, 28)
    assert tuning.arithmetic(recipe, 1000) == pytest.approx(7 * 1000 * per_image / 1e15)
    torch.manual_seed(0)
    larger = replace(recipe, network=recipe.network | {"widths": [8, 8, 8]})
    assert tuning.operations(larger, 28) > 2 * per_image
