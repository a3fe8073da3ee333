"""The seeds' records, and the README's table of them."""

import importlib
import json
from dataclasses import replace

import pytest
import torch

import arcface_mnist
from experiment import data, records, run, seeds


def test_the_readme_s_table_is_that_of_the_records():
    readme = (run.ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split("<!-- results -->")[1].split("<!-- /results -->")[0].strip()
    assert shown == seeds.table()
    assert f"<!-- headline -->\n{seeds.headline()}\n<!-- /headline -->" in readme
    for folder in seeds.DATASETS:
        found = json.loads((run.ROOT / "figures" / folder / "seeds.json").read_text())
        mean = sum(100 * record["test_accuracy"] for record in found) / len(found)
        assert f"**{mean:.2f} ± " in shown and f"**{mean:.2f} ± " in seeds.headline()


@pytest.mark.parametrize("folder", seeds.DATASETS)
def test_the_scripts_state_what_the_records_say(folder):
    found = json.loads((run.ROOT / "figures" / folder / "seeds.json").read_text())
    stated = " ".join(importlib.import_module(f"arcface_{folder}").__doc__.split())
    accuracy = records.cell([100 * record["test_accuracy"] for record in found], 2)
    seconds = records.cell([record["train_seconds"] for record in found], 0)
    assert f"Test accuracy {accuracy}%" in stated and f"in {seconds} s of training: means of {len(found)} seeds" in stated


@pytest.mark.parametrize("folder", seeds.DATASETS)
def test_seed_0_is_the_run_in_the_pictures(folder):
    record = json.loads((run.ROOT / "figures" / folder / "run.json").read_text())
    found = json.loads((run.ROOT / "figures" / folder / "seeds.json").read_text())
    assert len(record.pop("history")) == record["epochs"]
    assert record == found[0] and [entry["seed"] for entry in found] == list(range(len(found)))
    name = {"mnist": "MNIST", "cifar10": "CIFAR-10"}[folder]
    assert record["dataset"] == name and record["data_md5"] == data.PUBLISHED[name][1]


def test_seeds_of_the_stand_in_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seeds, "ROOT", tmp_path)
    monkeypatch.setattr(seeds.subprocess, "run", finished(tmp_path))
    assert seeds.main(["mnist"]) == 1
    assert "synthetic" in capsys.readouterr().err


def test_each_seed_is_run_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seeds, "ROOT", tmp_path)
    run_script = finished(tmp_path, dataset="MNIST")
    monkeypatch.setattr(seeds.subprocess, "run", run_script)
    assert seeds.main(["mnist", "--seeds", "2"]) == seeds.main(["mnist", "--seeds", "3"]) == 0
    assert run_script.seeds == [0, 1, 2]
    found = json.loads((tmp_path / "figures/mnist/seeds.json").read_text())
    assert [record["seed"] for record in found] == [0, 1, 2] and "history" not in found[0]
    assert not (tmp_path / "figures/mnist/seed-1").exists() and (tmp_path / "figures/mnist/run.json").exists()
    assert "| MNIST | 3 | **99.00 ± 0.00** |" in capsys.readouterr().out


def test_the_best_recipe_has_a_folder_and_a_row_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seeds, "ROOT", tmp_path)
    monkeypatch.setattr(seeds.subprocess, "run", finished(tmp_path, dataset="CIFAR-10", folder="cifar10-best"))
    assert seeds.main(["cifar10-best", "--seeds", "2"]) == 0
    assert [record["seed"] for record in records.load_json(tmp_path / "figures/cifar10-best/seeds.json")] == [0, 1]
    assert "| CIFAR-10, --recipe best | 2 | **99.00 ± 0.00** |" in capsys.readouterr().out


def test_seeds_in_turn_are_those_of_the_script(tmp_path, monkeypatch):
    source = data.synthetic("MNIST", 600, 200)
    monkeypatch.setattr(seeds, "ROOT", tmp_path)
    monkeypatch.setattr(data, "load", lambda name, folder: source)
    monkeypatch.setattr(run.figures, "draw_run", lambda folder: None)
    recipes = {"default": replace(arcface_mnist.DEFAULT, epochs=3, batch_size=100)}
    monkeypatch.setattr(arcface_mnist, "RECIPES", recipes)
    seeds.run_in_turn("mnist", 2, None, torch.device("cpu"))
    found = records.load_json(tmp_path / "figures/mnist/gpu.json")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["gpu.json"]
    for seed, record in enumerate(found):
        assert run.main(recipes, "a script", ["--device", "cpu", "--seed", str(seed), "--out", str(tmp_path / "run")]) == 0
        expected = records.load_json(tmp_path / "run/run.json")
        differing = {key for key in expected if record.get(key) != expected[key]}
        assert differing == {"history", "train_seconds", "total_seconds", "command", "data_md5"} and record["seed"] == seed


def test_a_missing_gpu_is_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert seeds.main(["mnist", "--gpu"]) == 1
    assert "no GPU" in capsys.readouterr().err


def test_the_records_of_a_gpu_have_rows_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "ROOT", tmp_path)
    record = {"dataset": "MNIST", "test_accuracy": 0.9, "test_accuracy_tta": None, "train_seconds": 3.0}
    record |= {"angles": {"intra_test": 10.0}, "precision": "bfloat16"}
    records.save_json(tmp_path / "figures/mnist/gpu.json", [record | {"device_name": "a GPU"}])
    records.save_json(tmp_path / "figures/mnist-best/seeds.json", [record | {"device_name": "a CPU"}])
    assert [line.split(" | ")[-1] for line in seeds.table().splitlines()[2:]] == ["a CPU, bfloat16 |", "a GPU, bfloat16 |"]


def finished(root, dataset="synthetic", folder="mnist"):
    """Stands in for subprocess.run: leaves the record that a script would leave."""

    def run_script(command, cwd):
        assert ("--recipe best" in " ".join(map(str, command))) == folder.endswith("-best")
        seed = int(command[command.index("--seed") + 1]) if "--seed" in command else 0
        out = root / (command[command.index("--out") + 1] if "--out" in command else f"figures/{folder}")
        out.mkdir(parents=True, exist_ok=True)
        record = {"dataset": dataset, "seed": seed, "history": [], "test_accuracy": 0.99, "test_accuracy_tta": None}
        record |= {"train_seconds": 1.0, "angles": {"intra_test": 10.0}, "device_name": "a CPU", "precision": "float32"}
        (out / "run.json").write_text(json.dumps(record))
        run_script.seeds.append(seed)
        return type("Done", (), {"returncode": 0})

    run_script.seeds = []
    return run_script


def test_the_extreme_setting_in_the_readme_is_that_of_its_record():
    record = json.loads((run.ROOT / "figures/study/extreme-mnist-arcface-seed0.json").read_text())
    assert (record["dataset"], record["scale"], record["margin"], record["epochs"]) == ("MNIST", 64.0, 1.0, 1)
    assert f"{100 * record['test_accuracy']:.2f}% ([record]" in (run.ROOT / "README.md").read_text(encoding="utf-8")
