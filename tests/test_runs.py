"""A training of the study is made once, with the settings of its task, and resumed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import arcface_mnist
from experiment import records
from experiment.training import Diverged, Trained
from study.runs import Setup, Study, Task

TASK = Task(
    part="grid",
    dataset="mnist",
    loss="arcface",
    scale=16.0,
    margin=0.2,
    head_lr=0.3,
    epochs=2,
    seed=4,
    named_by=("scale", "margin", "head_lr"),
)


class Recorder:
    """Stands in for a script's train(): keeps its arguments, trains nothing."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def __call__(self, recipe, settings, data, out, resume):
        self.calls.append((recipe, settings, data, resume, (out / "checkpoint.pt").exists()))
        print("epoch 1/1")
        out.mkdir(parents=True, exist_ok=True)
        (out / "checkpoint.pt").write_bytes(b"")
        if self.error:
            raise self.error
        network, head = nn.Identity(), nn.Linear(1, 1)
        history = [{"test_accuracy": 0.5}, {"test_accuracy": 0.75}]
        snapshots = torch.zeros(3, 1, 2)
        return Trained(
            network=network,
            head=head,
            history=history,
            snapshots=snapshots,
            mean_theta=torch.zeros(3),
            seconds=1.5,
        )


def study(folder, data, train):
    """A study of MNIST alone, of one seed."""
    setup = Setup(train=train, recipe=arcface_mnist.DEFAULT, seeds=1)
    return Study(folder, setup, data)


def test_names_are_those_of_the_records_on_disk():
    names = {
        record["name"]: record
        for path in (records.ROOT / "figures/study").glob("*.jsonl")
        for record in records.load_lines(path)
        if "name" in record
    }
    assert TASK.name == "grid-mnist-arcface-s16-m0.2-lr0.3"
    no_margin = replace(TASK, part="margin-tuning", dataset="mnist", loss="softmax", scale=None)
    no_margin = replace(no_margin, margin=None, head_lr=0.02)
    seen = replace(TASK, part="unseen", split=1, seed=0, named_by=("split", "seed"))
    for task in (
        replace(TASK, part="scale-margin", seed=1, named_by=("scale", "margin", "seed")),
        no_margin,
        seen,
        replace(seen, part="margin", split=None),
    ):
        assert names[task.name]["loss"] == task.loss and names[task.name]["split"] == task.split


def test_a_task_says_what_is_trained(tmp_path, small_data, capsys):
    train = Recorder()
    made = study(tmp_path, small_data["MNIST"], train)
    task = replace(TASK, embedding_size=2)
    found = made.run(task, small_data["MNIST"], lambda trained, data, precision: {"extra": 7})
    recipe, settings, _, _, _ = train.calls[0]
    rates = arcface_mnist.DEFAULT.learning_rates
    assert recipe.learning_rates == rates | {"head": 0.3, "linear head": 0.3}
    assert recipe == replace(arcface_mnist.DEFAULT, learning_rates=recipe.learning_rates)
    values = (settings.loss, settings.scale, settings.margin, settings.epochs, settings.seed)
    assert values == ("arcface", 16.0, 0.2, 2, 4)
    assert (settings.embedding_size, settings.batch_size) == (2, recipe.batch_size)
    assert (found["test_accuracy"], found["train_seconds"], found["extra"]) == (0.75, 1.5, 7)
    assert (found["dataset"], found["name"], found["split"]) == ("synthetic", task.name, None)
    assert "named_by" not in found
    assert capsys.readouterr().out == f"{task.name}: 75.00%\n"


def test_a_finished_training_is_not_repeated(tmp_path, small_data):
    train = Recorder()
    for _ in range(2):  # a second study finds the records of the first
        made = study(tmp_path, small_data["MNIST"], train)
        first = made.run(TASK, small_data["MNIST"], lambda *arguments: {})
        other = made.run(replace(TASK, margin=0.4), small_data["MNIST"], lambda *arguments: {})
    assert len(train.calls) == 2
    assert records.load_lines(tmp_path / "grid-mnist.jsonl") == [first, other]
    assert [path.name for path in tmp_path.iterdir()] == ["grid-mnist.jsonl"]


def test_an_interrupted_training_is_resumed(tmp_path, small_data):
    train = Recorder(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, small_data["MNIST"], train).run(TASK, small_data["MNIST"], lambda *_: {})
    assert [path.name for path in tmp_path.iterdir()] == [f".running-{TASK.name}"]
    train.error = None
    study(tmp_path, small_data["MNIST"], train).run(TASK, small_data["MNIST"], lambda *_: {})
    assert [call[3:] for call in train.calls] == [(True, False), (True, True)]
    assert [path.name for path in tmp_path.iterdir()] == ["grid-mnist.jsonl"]


def test_a_collapsed_training_is_recorded_as_such(tmp_path, small_data):
    train = Recorder(Diverged("nothing is learnt"))
    for _ in range(2):
        made = study(tmp_path, small_data["MNIST"], train)
        found = made.run(TASK, small_data["MNIST"], lambda *arguments: {"extra": 7})
    assert (found["collapsed"], found["test_accuracy"]) == ("nothing is learnt", None)
    assert "extra" not in found and len(train.calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["grid-mnist.jsonl"]
