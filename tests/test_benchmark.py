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


def test_a_missing_mark_is_named():
    with pytest.raises(records.Problem, match="<!-- nothing -->"):
        records.fill("text", "nothing", "content")


def test_figures_are_drawn_from_the_records(tmp_path, monkeypatch):
    for name in ("README.md", "head.json", "step.json"):
        (tmp_path / name).write_bytes((benchmark.FOLDER / name).read_bytes())
    monkeypatch.setattr(benchmark, "FOLDER", tmp_path)
    assert benchmark.main(["figures"]) == 0
    assert (tmp_path / "head.png").stat().st_size > 10_000 and (tmp_path / "accuracy.png").stat().st_size > 10_000
    (tmp_path / "head.json").unlink()
    assert benchmark.main(["figures"]) == 1
