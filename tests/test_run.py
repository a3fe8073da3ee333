"""experiment/run.py: what happens before and after a training, and whole runs of the scripts."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import arcface_cifar10
import arcface_mnist
from arcface_loss import ArcMarginProduct
from experiment import cli, data, records, run, synthetic
from experiment.errors import Problem
from experiment.records import Epoch, Record
from experiment.training import Trained
from tests.helpers import settings, tiny

PICTURES = ["accuracy", "loss", "angles", "embedding", "centres", "confusion", "mistakes"]
SHORT = ["--data", "synthetic", "--epochs", "2", "--batch-size", "100", "--device", "cpu"]
SHORT += ["--precision", "float32"]
NAMES = {arcface_mnist: "MNIST", arcface_cifar10: "CIFAR-10"}


def options(*argv):
    return cli.parse(arcface_mnist.RECIPES, arcface_mnist.__doc__, list(argv))


# --- before ---------------------------------------------------------------------------------------


def test_start_prepares_what_the_options_say(small, tmp_path, capsys):
    given = options(*SHORT, "--out", str(tmp_path / "new"), "--scale", "12", "--seed", "4")
    task = run.start(arcface_mnist.DEFAULT, given)
    assert task.out == tmp_path / "new" and task.out.is_dir() and not list(task.out.iterdir())
    assert len(task.data.train_labels) == 600 and task.recipe is arcface_mnist.DEFAULT
    found = task.settings
    assert (found.dataset, found.loss, found.margin) == ("synthetic", "arcface", 0.1)
    assert (found.scale, found.seed, found.epochs, found.batch_size) == (12.0, 4, 2, 100)
    assert (found.device, found.processes) == ("cpu", 1)
    assert found.precision in ("float32", "bfloat16")
    printed = capsys.readouterr().out
    assert "THIS IS NOT MNIST" in printed and "600 training and 200 test images" in printed
    assert "loss arcface, s = 12.0, margin = 0.1" in printed and found.precision in printed


def test_plain_softmax_has_no_scale():
    given = options(*SHORT, "--loss", "softmax")
    assert run.settings_of(given, "synthetic", torch.device("cpu")).scale is None


def test_a_resumption_without_a_checkpoint_says_that_it_begins(small, tmp_path, capsys):
    run.start(arcface_mnist.DEFAULT, options(*SHORT, "--out", str(tmp_path), "--resume"))
    assert f"Nothing to resume in {tmp_path}" in capsys.readouterr().out


def test_the_stand_in_replaces_data_that_cannot_be_had_unless_a_folder_was_named(
    small_data, tmp_path, monkeypatch, capsys
):
    def fail(*_):
        raise data.DownloadFailed("no network")

    monkeypatch.setattr(data, "load", fail)
    monkeypatch.setattr(synthetic, "make", small_data.get)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert run.load_data("MNIST", None) is small_data["MNIST"]
    assert "no network" in capsys.readouterr().out
    assert run.load_data("CIFAR-10", Path("synthetic")) is small_data["CIFAR-10"]
    with pytest.raises(data.DownloadFailed):
        run.load_data("MNIST", tmp_path)
    part = tmp_path / "data" / next(iter(data.MNIST.files))
    part.parent.mkdir(parents=True)
    part.write_bytes(b"its beginning")
    with pytest.raises(data.DownloadFailed):  # some of the data are there
        run.load_data("MNIST", None)


def test_the_banner_is_a_box_of_eighty_columns():
    lines = run.synthetic_banner("CIFAR-10").strip("\n").splitlines()
    assert {len(line) for line in lines} == {80} and all(line[-1] == "*" for line in lines)
    assert "THIS IS NOT CIFAR-10" in lines[1] and "SYNTHETIC" in lines[1]


# --- after ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(small_data):
    """A task and its record and arrays, of an untrained network."""
    torch.manual_seed(0)
    recipe, source = arcface_mnist.DEFAULT, small_data["MNIST"]
    recipe = replace(recipe, views=[[0, 0.5]])
    network = arcface_mnist.Network(16, **recipe.network).eval()
    head = ArcMarginProduct(16, 10, s=8.0, m=0.1)
    history = [{"epoch": 1, "seconds": 3.0}]
    snapshots = torch.rand(3, 20, 2)
    trained = Trained(
        network=network,
        head=head,
        history=history,
        snapshots=snapshots,
        mean_theta=torch.rand(30),
        seconds=3.0,
    )
    task = run.PreparedRun(
        recipe=recipe,
        settings=settings(),
        data=source,
        out=Path(),
        command="python arcface_mnist.py",
        began=0.0,
    )
    return task, trained, *run.evaluate(task, trained)


def test_the_record_is_complete_and_can_be_written(evaluated):
    task, trained, record, _ = evaluated
    assert record.keys() == Record.__annotations__.keys()
    assert json.loads(json.dumps(record)) == record
    assert record["hyperparameters"] == task.recipe.hyperparameters
    assert record["train_seconds"] == 3.0 < record["total_seconds"]
    assert record["command"] == "python arcface_mnist.py"
    modules = nn.ModuleList([trained.network, trained.head])
    assert record["parameters"] == sum(p.numel() for p in modules.parameters())


def test_the_arrays_describe_every_test_image(evaluated):
    """Each image's own and nearest other angle, by NumPy; its label, and what was predicted."""
    task, trained, record, arrays = evaluated
    labels = task.data.test_labels.numpy()
    with torch.no_grad():
        x = trained.network(task.data.test_images.permute(0, 3, 1, 2) / 255)
    cosines = (F.normalize(x) @ F.normalize(trained.head.weight).T).detach().double().numpy()
    theta = np.degrees(np.arccos(cosines))
    predicted = cosines.argmax(axis=1)
    own = theta[np.arange(200), labels]
    others = theta.copy()
    others[np.arange(200), labels] = np.inf
    assert np.array_equal(arrays["labels"], labels)
    assert np.array_equal(arrays["predicted"], predicted)
    assert arrays["theta_own"] == pytest.approx(own, abs=0.1)  # float16
    assert arrays["theta_other"] == pytest.approx(others.min(axis=1), abs=0.1)
    assert record["test_accuracy"] == (predicted == labels).mean()
    assert arrays["mean_theta"] == pytest.approx(np.degrees(trained.mean_theta.numpy()), abs=0.1)
    assert arrays["snapshots"] == pytest.approx(np.degrees(trained.snapshots.numpy()), abs=0.1)
    assert np.linalg.norm(arrays["centres"].astype(float), axis=1) == pytest.approx(1, abs=2e-3)


def test_the_mistakes_kept_are_the_most_confident(evaluated):
    task, trained, _, arrays = evaluated
    with torch.no_grad():
        logits = trained.head(trained.network(task.data.test_images.permute(0, 3, 1, 2) / 255))
    share = logits.softmax(dim=1).amax(dim=1).numpy()
    wrong = np.flatnonzero(arrays["predicted"] != arrays["labels"])
    kept = arrays["mistakes_at"]
    assert len(kept) == 18 and set(kept) <= set(wrong)
    left_out = np.setdiff1d(wrong, kept)
    assert share[kept].min() >= share[left_out].max() - 1e-6
    assert (np.diff(share[kept]) <= 1e-6).all()
    assert np.array_equal(arrays["mistakes"], task.data.test_images.numpy()[kept])


def test_test_time_augmentation_is_recorded_where_the_recipe_has_views(evaluated):
    """One view of weight ½ and its mirror image: the mean of the two logits."""
    task, trained, record, _ = evaluated
    x = task.data.test_images.permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = sum(trained.head(trained.network(view)) for view in (x, x.flip(3)))
    right = (logits.argmax(dim=1) == task.data.test_labels).double().mean().item()
    assert record["test_accuracy_tta"] == pytest.approx(right, abs=0.011)


# --- whole runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["arcface", "softmax"])
def test_a_run_leaves_its_record_and_a_model_that_loads(
    script, small, small_data, tmp_path, monkeypatch, loss
):
    monkeypatch.setitem(script.RECIPES, "default", tiny(script))
    arguments = [*SHORT, "--epochs", "1", "--loss", loss, "--out", str(tmp_path / "run")]
    assert script.main(arguments) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "run.json",
        "arrays.npz",
        "model.pt",
    }
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record.keys() == Record.__annotations__.keys()
    assert record["dataset"] == "synthetic" and record["loss"] == loss
    (entry,) = record["history"]
    assert entry.keys() == Epoch.__annotations__.keys()
    assert entry["test_accuracy"] == record["test_accuracy"]
    assert record["train_seconds"] == entry["seconds"] < record["total_seconds"]

    network, head, classes = run.load_model(tmp_path / "run/model.pt", script.Network)
    source = small_data[NAMES[script]]
    assert classes == source.classes
    with torch.no_grad():
        logits = head(network(source.test_images.permute(0, 3, 1, 2) / 255))
    right = (logits.argmax(dim=1) == source.test_labels).double().mean().item()
    assert right == pytest.approx(record["test_accuracy"], abs=0.02)  # float32 here


def test_a_model_of_the_other_script_is_named(tmp_path):
    network, head = arcface_mnist.Network(16, **arcface_mnist.DEFAULT.network), nn.Linear(16, 10)
    model = {"settings": vars(settings(loss="softmax")), "classes": ["a"] * 10}
    model |= {"hyperparameters": arcface_mnist.DEFAULT.hyperparameters}
    model |= {"network": network.state_dict(), "head": head.state_dict()}
    records.save_torch(tmp_path / "model.pt", model)
    run.load_model(tmp_path / "model.pt", arcface_mnist.Network)
    with pytest.raises(Problem, match=r"does not hold a model of arcface_cifar10\.py"):
        run.load_model(tmp_path / "model.pt", arcface_cifar10.Network)


def test_the_best_recipe_has_a_folder_of_its_own(script, small, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setitem(script.RECIPES, "best", tiny(script, "best"))
    assert script.main(["--recipe", "best", *SHORT, "--epochs", "1"]) == 0
    (out,) = (tmp_path / "figures").iterdir()
    assert out.name == f"synthetic-{script.__name__.removeprefix('arcface_')}-best"
    record = records.load_json(out / "run.json")
    expected = script.RECIPES["best"].hyperparameters
    assert record["recipe"] == "best" and record["hyperparameters"] == expected


def test_training_that_does_not_learn_is_stopped(small, tmp_path, monkeypatch, capsys):
    frozen = dict.fromkeys(arcface_mnist.DEFAULT.learning_rates, 0.0)
    recipe = replace(arcface_mnist.DEFAULT, learning_rates=frozen)
    monkeypatch.setitem(arcface_mnist.RECIPES, "default", recipe)
    arguments = [*SHORT, "--epochs", "10", "--scale", "64", "--margin", "1", "--out", str(tmp_path)]
    assert arcface_mnist.main(arguments) == 1
    error = capsys.readouterr().err
    assert "nothing is learnt" in error and "scale 64.0, margin 1.0" in error
    assert "--scale" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "epochs", "size"), [("arcface_mnist.py", 6, 250), ("arcface_cifar10.py", 2, 250)]
)
def test_the_default_recipe_learns_the_stand_in_and_draws(name, epochs, size, tmp_path):
    """Started in another directory, as a person would start it; no picture is compared here."""
    arguments = ["--data", "synthetic", "--epochs", str(epochs), "--batch-size", str(size)]
    arguments += ["--out", str(tmp_path / "run")]
    command = [sys.executable, str(records.ROOT / name), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("THIS IS NOT") == 2 and "Test accuracy " in done.stdout
    record = records.load_json(tmp_path / "run/run.json")
    assert record["test_accuracy"] > 0.9 and len(record["history"]) == epochs
    seconds = sum(entry["seconds"] for entry in record["history"])
    assert record["train_seconds"] == pytest.approx(seconds)
    for picture in PICTURES:
        with Image.open(tmp_path / f"run/{picture}.png") as image:
            assert image.width >= 900
    assert (tmp_path / "run/arrays.npz").stat().st_size < 2e6
    assert not (tmp_path / "run/checkpoint.pt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
