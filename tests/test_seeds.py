"""Seeds are trained once, as the script trains them, and tables are those of their records."""

import importlib
from dataclasses import replace

import pytest
import torch

import arcface_mnist
from experiment import data, machine, records
from study import seeds, tables

FIGURES = records.ROOT / "figures"
README = (records.ROOT / "README.md").read_text(encoding="utf-8")


def load(name, file="seeds.json"):
    return records.load_json(FIGURES / name / file)


def record(seed=0, **values):
    """A record, as the table reads it."""
    defaults = {"dataset": "MNIST", "seed": seed, "test_accuracy": 0.99, "test_accuracy_tta": None}
    defaults |= {"train_seconds": 3.0, "angles": {"intra_test": 10.0}}
    recipe = arcface_mnist.DEFAULT
    defaults |= {key: getattr(recipe, key) for key in ("epochs", "batch_size", "scale")}
    defaults |= {"embedding_size": 128, "margin": 0.1, "hyperparameters": recipe.hyperparameters}
    return defaults | {"device_name": "a CPU", "precision": "bfloat16"} | values


# --- the records on disk --------------------------------------------------------------------------


def test_the_readme_has_the_table_and_the_headline_of_the_records():
    assert tables.fill(README, "results", seeds.table()) == README
    assert tables.fill(README, "headline", seeds.headline()) == README
    for name in seeds.SCRIPTS:
        runs = load(name)
        mean = sum(100 * run["test_accuracy"] for run in runs) / len(runs)
        assert f"**{mean:.2f} ± " in seeds.table() and f"**{mean:.2f} ± " in seeds.headline()


@pytest.mark.parametrize("name", seeds.SCRIPTS)
def test_the_scripts_state_what_the_records_say(name):
    runs = load(name)
    stated = " ".join((importlib.import_module(f"arcface_{name}").__doc__ or "").split())
    accuracy = tables.mean_ci([100 * run["test_accuracy"] for run in runs], 2)
    seconds = tables.mean_ci([run["train_seconds"] for run in runs], 0)
    assert f"Test accuracy {accuracy}%" in stated
    assert f"in {seconds} s of training: means of {len(runs)} seeds" in stated


@pytest.mark.parametrize("name", seeds.RECIPES)
def test_seed_0_is_the_run_in_the_pictures(name):
    first, runs = load(name, "run.json"), load(name)
    assert len(first.pop("history")) == first["epochs"]
    runs[0].pop("yardstick_seconds", None)
    assert first == runs[0] and [run["seed"] for run in runs] == list(range(len(runs)))
    dataset = {"mnist": "MNIST", "cifar10": "CIFAR-10"}[name.removesuffix("-best")]
    assert {run["dataset"] for run in runs} == {dataset}
    assert {run["recipe"] for run in runs} == {"best" if name.endswith("-best") else "default"}


# --- tables ---------------------------------------------------------------------------------------


def test_means_have_a_dash_for_what_was_not_measured():
    runs = [record(k, test_accuracy=0.99 - k / 100, train_seconds=8.0 + k) for k in range(3)]
    found = seeds.means(runs)
    assert found["mean"] == "98.00 ± 2.48" and found["mean_tta"] == "–"  # 4.303/√3
    assert found["seconds"] == "9.0 ± 2.5" and found["intra_test"] == "10.0 ± 0.0"
    assert seeds.means([record(test_accuracy_tta=0.995, train_seconds=83.4)]) == {
        "mean": "99.00",
        "mean_tta": "99.50",
        "seconds": "83",
        "intra_test": "10.0",
    }


def test_recipes_and_machines_have_rows_of_their_own(tmp_path):
    figures = tmp_path / "figures"
    records.save_json(figures / "mnist/gpu.json", [record(device_name="a GPU")])
    records.save_json(figures / "mnist/float32.json", [record(precision="float32")])
    records.save_json(figures / "mnist/seeds.json", [record()])
    records.save_json(figures / "mnist-best/seeds.json", [record(k) for k in range(3)])
    rows = seeds.table(tmp_path).splitlines()[2:]
    assert rows == [
        "| MNIST | 1 | **99.00** | – | 3.0 | 10.0° | a CPU, bfloat16 |",
        "| MNIST, --recipe best, an earlier version | 3 | **99.00 ± 0.00** | – | 3.0 ± 0.0 "
        "| 10.0 ± 0.0° | a CPU, bfloat16 |",
        "| MNIST | 1 | **99.00** | – | 3.0 | 10.0° | a CPU, float32 |",
        "| MNIST | 1 | **99.00** | – | 3.0 | 10.0° | a GPU, bfloat16 |",
    ]


def test_precisions_are_compared_over_the_seeds_of_both(tmp_path):
    for file, first, step in (("seeds", 0, 0.001), ("float32", 2, 0.003)):
        runs = [record(seed, test_accuracy=0.99 + step * seed) for seed in range(first, first + 4)]
        records.save_json(tmp_path / f"figures/mnist/{file}.json", runs)
    assert seeds.precision_gaps("mnist", tmp_path) == pytest.approx([0.4, 0.6])  # seeds 2 and 3


def test_the_table_is_written_into_the_readme(tmp_path):
    for name in seeds.SCRIPTS:
        of = {"dataset": seeds.SCRIPTS[name].DEFAULT.dataset, "train_seconds": 90.0}
        runs = [record(seed, **of) for seed in range(3)]
        records.save_json(tmp_path / f"figures/{name}/seeds.json", runs)
        slow = {"train_seconds": 420.0, "precision": "float32", "device_name": "an old CPU"}
        records.save_json(tmp_path / f"figures/{name}/float32.json", [record(**(of | slow))])
    marks = "<!-- headline -->\n<!-- /headline -->\n<!-- results -->\n<!-- /results -->\n"
    (tmp_path / "README.md").write_text(marks, encoding="utf-8")
    assert seeds.main(["table"], tmp_path) == 0
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "**99.00 ± 0.00%** on MNIST after 1.5 minutes of training (n = 3; " in text
    assert "(n = 3; in float32 7.0, n = 1)" in text
    assert seeds.table(tmp_path) in text


@pytest.mark.parametrize(
    "runs", [[], [1], None, [{}], [record(), record()], [record(dataset="CIFAR-10")]]
)
def test_records_that_are_not_of_this_recipe_s_seeds_are_refused(runs, tmp_path, capsys):
    records.save_json(tmp_path / "figures/mnist/seeds.json", runs)
    assert seeds.main(["table"], tmp_path) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and "seeds.json" in line


# --- trainings ------------------------------------------------------------------------------------


class Script:
    """arcface_mnist with a recipe of two short epochs; keeps what its train() is called with."""

    __doc__ = arcface_mnist.__doc__

    def __init__(self):
        recipe = replace(arcface_mnist.DEFAULT, epochs=2, batch_size=100, embedding_size=16)
        self.RECIPES = {"default": recipe, "best": replace(recipe, epochs=1)}
        self.calls, self.interrupt = [], False

    def train(self, recipe, settings, source, out, resume):
        self.calls.append((settings.seed, settings.recipe, resume))
        trained = arcface_mnist.train(recipe, settings, source, out, resume)
        if self.interrupt:
            raise KeyboardInterrupt
        return trained


@pytest.fixture
def script(small, small_data, monkeypatch):
    """The script above; what it finds on disk is a small data set."""
    source = replace(small_data["MNIST"], name="MNIST")
    monkeypatch.setattr(data, "load", lambda name, folder: source)
    return Script()


@pytest.mark.parametrize("change", [{"epochs": 3}, {"margin": 0.2}, {"hyperparameters": {}}])
def test_an_earlier_version_of_a_recipe_is_run_again(change, script, tmp_path):
    before = run_seeds(script, 2, tmp_path)
    records.save_json(tmp_path / "seeds.json", [before[0] | change, before[1]])
    script.calls.clear()
    found = run_seeds(script, 2, tmp_path)
    assert [run["epochs"] for run in found] == [2, 2] and len(script.calls) == 1


def run_seeds(script, seeds_wanted, folder, recipe="default"):
    seeds.run_seeds(script, recipe, seeds_wanted, None, folder, "seeds")
    return records.load_json(folder / "seeds.json")


def test_each_seed_is_trained_once(script, tmp_path):
    first = run_seeds(script, 1, tmp_path)
    assert (tmp_path / "run.json").exists() and (tmp_path / "model.pt").exists()
    found = run_seeds(script, 2, tmp_path)
    assert script.calls == [(0, "default", False), (1, "default", False)]
    assert [run["seed"] for run in found] == [0, 1] and found[:1] == first
    shown = records.load_json(tmp_path / "run.json")
    assert len(shown.pop("history")) == 2 and shown == found[0]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_each_seed_is_timed_beside_a_published_training(script, tmp_path, monkeypatch):
    """Before and after it, not while its own clock runs: 100, 200 and 400 seconds."""
    order, times, prepare = [], iter([100.0, 200.0, 400.0]), seeds.prepare
    monkeypatch.setattr(seeds, "prepare", lambda *args: order.append("seed") or prepare(*args))

    def published():
        order.append("published")
        return next(times)

    seeds.run_seeds(script, "default", 2, None, tmp_path, "seeds", published)
    assert order == ["published", "seed", "published", "seed", "published"]
    found = records.load_json(tmp_path / "seeds.json")
    assert [run["yardstick_seconds"] for run in found] == [150, 300]
    assert "yardstick_seconds" not in records.load_json(tmp_path / "run.json")


@pytest.mark.slow
def test_a_seed_is_the_script_s_own_run(script, tmp_path):
    found = run_seeds(script, 2, tmp_path / "seeds")
    words = ["--device", "cpu", "--seed", "1"]
    task = seeds.prepare(script, words, None, tmp_path / "alone")
    trained = seeds.train(script, task)
    assert found[1]["command"] == "python arcface_mnist.py --device cpu --seed 1"
    assert found[1]["test_accuracy"] == trained.history[-1]["test_accuracy"]
    settings = {key: found[1][key] for key in vars(task.settings)}
    assert settings == vars(task.settings)
    assert found[1].keys() == found[0].keys() and "history" not in found[1]
    assert found[0]["angles"] != found[1]["angles"]


def test_the_best_recipe_is_trained_where_it_was_asked_for(script, tmp_path):
    (found,) = run_seeds(script, 1, tmp_path, "best")
    assert (found["recipe"], found["epochs"]) == ("best", 1)
    assert found["command"] == "python arcface_mnist.py --recipe best --device cpu --seed 0"


def test_an_interrupted_seed_is_resumed(script, tmp_path):
    run_seeds(script, 1, tmp_path)
    script.calls.clear()
    script.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        run_seeds(script, 2, tmp_path)
    assert (tmp_path / "seed-1-seeds/checkpoint.pt").exists()
    script.interrupt = False
    found = run_seeds(script, 2, tmp_path)
    assert script.calls == [(1, "default", False), (1, "default", True)]
    assert [run["seed"] for run in found] == [0, 1] and not (tmp_path / "seed-1-seeds").exists()


def test_the_stand_in_has_no_seeds(small, tmp_path, capsys):
    assert seeds.main(["mnist", "--data", "synthetic"], tmp_path) == 1
    assert "synthetic" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(("file", "precision"), [("seeds", "auto"), ("float32", "float32")])
def test_float32_has_a_file_of_its_own(file, precision, script, tmp_path, monkeypatch):
    """And is timed beside a published training in float32."""
    timed = []
    monkeypatch.setitem(seeds.SCRIPTS, "mnist", script)
    monkeypatch.setattr(seeds, "yardstick_seconds", lambda *given: timed.append(given) or 1.0)
    monkeypatch.setattr(seeds, "table", lambda root: "")
    options = ["--float32"] if file == "float32" else []
    assert seeds.main(["mnist", "--seeds", "1", *options], tmp_path) == 0
    folder = tmp_path / "figures/mnist"
    (found,) = records.load_json(folder / f"{file}.json")
    assert timed == [("mnist", precision)] * 2
    wanted = machine.choose_precision(precision, torch.device("cpu"))
    assert found["precision"] == wanted and found["yardstick_seconds"] == 1
    assert ("--precision float32" in found["command"]) == (file == "float32")
    assert (folder / "run.json").exists() == (file == "seeds")


def test_one_file_at_a_time(tmp_path):
    with pytest.raises(SystemExit) as stop:
        seeds.main(["mnist", "--gpu", "--float32"], tmp_path)
    assert stop.value.code == 2


def test_a_missing_gpu_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert seeds.main(["mnist", "--gpu"], tmp_path) == 1
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_s_seeds_have_a_file_of_their_own(script, tmp_path):
    seeds.run_seeds(script, "default", 2, None, tmp_path, "gpu")
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
    found = records.load_json(tmp_path / "gpu.json")
    assert [run["device"] for run in found] == ["cuda", "cuda"]
    assert [seed for seed, _, _ in script.calls] == [0, 0, 1]  # the first one is not counted


@pytest.mark.parametrize("words", [["imagenet"], ["mnist", "--seeds", "0"]])
def test_bad_options_end_with_status_2(words, tmp_path):
    with pytest.raises(SystemExit) as stop:
        seeds.main(words, tmp_path)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("device", "short"),
    [
        ("CPU (Intel(R) Xeon(R) Processor), 2 threads", "Intel Xeon, 2 threads, float32"),
        ("CPU (AMD EPYC), 2 threads", "AMD EPYC, 2 threads, float32"),
        ("NVIDIA H200", "NVIDIA H200, float32"),
    ],
)
def test_the_table_has_short_names_of_devices(device, short):
    """Each once, where runs were made on several."""
    run = {"device_name": device, "precision": "float32"}
    assert seeds.machines([run, run]) == short
    other = {"device_name": "a CPU", "precision": "bfloat16"}
    assert seeds.machines([run, other, run]) == f"{short}; a CPU, bfloat16"
