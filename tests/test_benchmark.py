"""The benchmark: what it measures is the same loss, and its tables are those of its records."""

import json

import pytest
import torch

from experiment import benchmark, records


@pytest.mark.parametrize("method", benchmark.HEADS)
def test_each_head_makes_a_pass(method):
    found = benchmark.measure(benchmark.head_pass(method, 10), 0)
    assert found["seconds"] > 0 and found["peak_bytes"] > 1e7


def test_the_plain_network_has_the_recipe_s_layers():
    ours, plain = benchmark.arcface_cifar10.Network(256), benchmark.Plain()
    shapes = [[tuple(network(torch.rand(2, 3, 32, 32)).shape)] for network in (ours, plain)]
    assert shapes[0] == shapes[1] == [(2, 256)]
    count = [sum(p.numel() for p in network.parameters() if p.ndim > 1) for network in (ours, plain)]
    assert count[0] == count[1]


def test_the_tables_are_those_of_the_records():
    text = (benchmark.FOLDER / "README.md").read_text(encoding="utf-8")
    for name, table in (("head", benchmark.head_table), ("step", benchmark.step_table)):
        record = json.loads((benchmark.FOLDER / f"{name}.json").read_text())
        assert records.fill(text, name, table(record)) == text
        if name == "head":
            front = benchmark.README.read_text(encoding="utf-8")
            assert records.fill(front, name, table(record)) == front


def test_a_missing_mark_is_named():
    with pytest.raises(records.Problem, match="<!-- nothing -->"):
        records.fill("text", "nothing", "content")


def test_figures_are_drawn_from_the_records(tmp_path, monkeypatch):
    for name in ("README.md", "head.json", "step.json"):
        (tmp_path / name).write_bytes((benchmark.FOLDER / name).read_bytes())
    (tmp_path / "front.md").write_text("<!-- head -->\n<!-- /head -->\n", encoding="utf-8")
    monkeypatch.setattr(benchmark, "FOLDER", tmp_path)
    monkeypatch.setattr(benchmark, "README", tmp_path / "front.md")
    assert benchmark.main(["figures"]) == 0
    assert (tmp_path / "head.png").stat().st_size > 10_000 and (tmp_path / "accuracy.png").stat().st_size > 10_000
    assert "pytorch-metric-learning" in (tmp_path / "front.md").read_text(encoding="utf-8")
    (tmp_path / "head.json").unlink()
    assert benchmark.main(["figures"]) == 1


@pytest.mark.parametrize("method", benchmark.STEPS)
def test_each_step_moves_the_network(method, monkeypatch):
    monkeypatch.setattr(benchmark, "BATCH", 8)
    assert benchmark.measure_step(method)["seconds"] > 0
    shares = benchmark.profile(method)
    assert shares["convolution"] > 0 and shares.keys() == {*benchmark.KINDS, "the rest"}


def test_the_operations_of_a_step_are_those_of_its_convolutions(monkeypatch):
    monkeypatch.setattr(benchmark, "BATCH", 1)
    monkeypatch.setattr(benchmark, "measure", lambda once, seconds: {"seconds": 1.0})
    layers = [
        (24, 3, 2, 31),
        (64, 24, 3, 31),
        *2 * [(64, 64, 3, 15)],
        (256, 64, 3, 15),
        *3 * [(256, 256, 3, 7)],
        *2 * [(256, 256, 3, 3)],
    ]
    forward = [2 * out * into * kernel**2 * size**2 for out, into, kernel, size in layers]
    expected = forward[0] + 3 * sum(forward[1:]) + 3 * 2 * 256 * 256  # the whitening layer is not trained
    assert benchmark.arithmetic()["step_operations"] == pytest.approx(expected, rel=0.02)


def test_methods_take_turns_in_processes_of_their_own(monkeypatch):
    calls = []
    monkeypatch.setattr(benchmark, "in_process", lambda function, *task: calls.append(task) or function(*task))
    found = benchmark.alternate(lambda name, value: {"seconds": value * len(calls)}, [("a", 1.0), ("b", 10.0)], 3)
    assert [task[0] for task in calls] == ["a", "b"] * 3
    assert [run["seconds"] for run in found] == [3.0, 40.0]
    monkeypatch.undo()
    assert benchmark.in_process(max, 1, 2) == 2
