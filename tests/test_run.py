"""Whole runs: end to end, repeated, killed and resumed, on a full disk, with bad input, and diverging."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import arcface_mnist
from experiment import data, figures, records, run, training
from experiment.layers import Conv
from tests.conftest import same

PICTURES = ["accuracy", "loss", "angles", "embedding", "centres", "confusion", "mistakes"]
SHORT = ["--data", "synthetic", "--epochs", "2", "--batch-size", "100", "--device", "cpu"]
KEYS = {
    *("dataset", "loss", "scale", "margin", "embedding_size", "epochs", "batch_size", "seed", "device", "precision"),
    *("parameters", "hardest", "train_seconds", "total_seconds", "test_accuracy", "test_accuracy_tta", "history", "angles"),
    *("versions", "command", "data_md5"),
}


def start(script, *arguments, **keywords):
    """The script as a process of its own, in another working directory."""
    command = [sys.executable, script.__file__, *map(str, arguments)]
    return subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords)


def without_times(record):
    """A record without what may differ between equal runs."""
    record = {key: value for key, value in record.items() if key not in ("train_seconds", "total_seconds", "command")}
    return record | {"history": [{k: v for k, v in entry.items() if k != "seconds"} for entry in record["history"]]}


# --- end to end ----------------------------------------------------------------------------------


def test_default_recipe_learns_the_stand_in(script, tmp_path):
    process = start(script, "--data", "synthetic", "--out", tmp_path / "run")
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert output.count("THIS IS NOT") == 2 and "SYNTHETIC" in output and str(tmp_path) in output
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record.keys() >= KEYS
    assert record["dataset"] == "synthetic" and record["test_accuracy"] > 0.9
    assert record["test_accuracy"] == record["history"][-1]["test_accuracy"]
    assert len(record["history"]) == record["epochs"]
    assert record["train_seconds"] == pytest.approx(sum(entry["seconds"] for entry in record["history"]))
    for name in PICTURES:
        with Image.open(tmp_path / f"run/{name}.png") as picture:
            assert picture.width >= 900 and np.asarray(picture.convert("L")).std() > 5
    assert (tmp_path / "run/arrays.npz").stat().st_size < 2e6
    assert (tmp_path / "run/model.pt").stat().st_size < 2e7
    assert not (tmp_path / "run/checkpoint.pt").exists()

    network, head = run.load_model(tmp_path / "run/model.pt", script.RECIPES)
    found = data.synthetic("MNIST" if script is arcface_mnist else "CIFAR-10")
    with torch.no_grad():
        right = head(network(data.to_float(found.test_images))).argmax(dim=1) == found.test_labels
    assert right.float().mean().item() == pytest.approx(record["test_accuracy"], abs=0.01)  # float32 here


def test_real_mnist_in_one_epoch(real_data, tmp_path, capsys):
    assert arcface_mnist.main(["--data", str(real_data), "--epochs", "1", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["test_accuracy"] > 0.98


@pytest.mark.parametrize("loss", training.LOSSES)
def test_every_loss_trains(small, tmp_path, loss):
    assert arcface_mnist.main([*SHORT, "--epochs", "4", "--loss", loss, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["loss"] == loss and record["test_accuracy"] > 0.6


def test_the_best_recipe_has_its_own_network_and_folder(small, tmp_path, monkeypatch, script):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert script.main(["--recipe", "best", *SHORT, "--epochs", "1"]) == 0
    (out,) = (tmp_path / "figures").iterdir()
    assert out.name == f"synthetic-{script.__name__.removeprefix('arcface_')}-best"
    record = json.loads((out / "run.json").read_text())
    network, head = run.load_model(out / "model.pt", script.RECIPES)
    assert record["recipe"] == "best" and record["parameters"] == sum(p.numel() for m in (network, head) for p in m.parameters())
    plain = script.Network(record["embedding_size"], residual=False)
    assert record["parameters"] > 4 * sum(p.numel() for p in plain.parameters())


def test_no_data_and_no_network_show_the_stand_in(small, tmp_path, monkeypatch, capsys):
    def fail(name, folder, missing):
        raise data.DownloadFailed("no network")

    monkeypatch.setattr(data, "download", fail)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert arcface_mnist.main(SHORT[2:]) == 0
    printed = capsys.readouterr().out
    assert "THIS IS NOT MNIST" in printed and printed.endswith("are in figures/synthetic-mnist\n")
    assert (tmp_path / "figures/synthetic-mnist/run.json").exists() and not (tmp_path / "figures/mnist").exists()
    assert arcface_mnist.main([*SHORT[2:], "--data", str(tmp_path / "nothing")]) == 1


GRADIENTS = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.functional import cross_entropy
from arcface_loss import ArcMarginProduct
from experiment.training import Classifier
torch.manual_seed(0)
model = Classifier(torch.nn.Linear(6, 4), ArcMarginProduct(4, 3, s=8.0))
x, label = torch.randn(10, 6), torch.arange(10) % 3
cross_entropy(model(x, label, "float32")[0], label).backward()
alone = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
dist.init_process_group("gloo")
rank = dist.get_rank()
parallel = DistributedDataParallel(model)
logits, _ = parallel(x[rank::2], label[rank::2], "float32")
cross_entropy(logits, label[rank::2]).backward()
assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in zip(alone, model.parameters(), strict=True))
assert all(a.abs().max() > 1e-3 for a in alone)
del parallel, logits  # DistributedDataParallel holds the group; its threads must be joined before Python ends
dist.barrier()
dist.destroy_process_group()
"""


def test_the_gradients_of_two_processes_average_to_those_of_one(tmp_path):
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(run.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, tmp_path / "gradients.py"], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr


def test_two_processes_train_like_one(tmp_path):
    """torchrun with two gloo processes: the record is written once and the accuracy is that of one process."""
    arguments = ["--data", "synthetic", "--epochs", "3", "--batch-size", "200", "--device", "cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, arcface_mnist.__file__, *arguments, "--out", tmp_path / "two"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch   1/3") == 1
    assert arcface_mnist.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / name / "run.json").read_text())["test_accuracy"] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=0.03)


# --- the hardest images --------------------------------------------------------------------------


class Flat(torch.nn.Module):
    """An embedding without BatchNorm: what it makes of an image does not depend on the rest of the batch."""

    def __init__(self, embedding_size):
        super().__init__()
        self.embedding = torch.nn.Linear(28 * 28, embedding_size)
        self.filter = Conv(1, 1)  # not used in the forward pass: Muon wants a matrix

    def forward(self, x):
        return self.embedding(x.flatten(1)) + 0 * self.filter.weight.sum()

    def prepare(self, images):
        pass


def hard_recipe(**changes):
    """A recipe whose third to sixth epochs are the hardest third of the images; and its settings, for 8 epochs."""
    recipe = replace(arcface_mnist.DEFAULT, augment=lambda images, *_: data.to_float(images), hardest=1 / 3, **changes)
    return recipe, training.Settings("synthetic", "arcface", 8.0, 0.3, 16, 8, 60, 0, "cpu", "float32")


def test_middle_epochs_consist_of_the_images_with_the_largest_losses(tmp_path, monkeypatch):
    """The learning rates are 0, so that each image's loss stays what the first weights make of it."""
    recipe, settings = hard_recipe(network=Flat, learning_rates=dict.fromkeys(arcface_mnist.DEFAULT.learning_rates, 0.0))
    monkeypatch.setattr(training, "watch", lambda *_: None)
    source, batches = data.synthetic("MNIST", train=600, test=200), []
    augment = lambda images, *rest: batches.append(images) or recipe.augment(images, *rest)  # noqa: E731
    trained = training.train(replace(recipe, augment=augment), settings, source, tmp_path / "checkpoint.pt", False)
    assert len(batches) == 10 + 10 + 4 * 3 + 10 + 10
    with torch.no_grad():
        embeddings = trained.network(data.to_float(source.train_images))
        logits = trained.head(embeddings, source.train_labels)
        losses = torch.nn.functional.cross_entropy(logits, source.train_labels, reduction="none")
    hardest = source.train_images[losses.argsort(descending=True)[:180]]

    def ordered(images):
        return sorted(image.numpy().tobytes() for image in images)

    for first in (0, 10, 32, 42):
        assert ordered(torch.cat(batches[first : first + 10])) == ordered(source.train_images)
    for epoch in range(4):
        assert ordered(torch.cat(batches[20 + 3 * epoch : 23 + 3 * epoch])) == ordered(hardest)
    assert not torch.equal(batches[20], batches[23])


def test_each_time_an_image_is_seen_it_is_mirrored_the_other_way(tmp_path):
    recipe, settings = hard_recipe()
    source, seen = data.synthetic("MNIST", train=600, test=200), {}

    def augment(images, flip, progress, generator):
        for image, mirrored in zip(images, flip.tolist(), strict=True):
            seen.setdefault(image.numpy().tobytes(), []).append(mirrored)
        return recipe.augment(images)

    training.train(replace(recipe, augment=augment), settings, source, tmp_path / "checkpoint.pt", False)
    assert all(one != other for flips in seen.values() for one, other in pairwise(flips))
    assert {len(flips) for flips in seen.values()} > {4, 5}  # the easy images wait, and their turn comes
    assert 250 < sum(flips[0] for flips in seen.values()) < 350


# --- reproducible, resumable ---------------------------------------------------------------------


def test_same_seed_same_record_and_another_seed_another(small, tmp_path):
    def run_with(name, *more):
        assert arcface_mnist.main([*SHORT, "--out", str(tmp_path / name), *more]) == 0
        return without_times(json.loads((tmp_path / name / "run.json").read_text())), torch.load(tmp_path / name / "model.pt")

    (one, weights), (two, again), (_, other) = run_with("one"), run_with("two"), run_with("three", "--seed", "1")
    assert one == two and same(weights["network"], again["network"])
    assert not same(weights["network"], other["network"])


def test_killed_at_any_moment_it_resumes_to_the_same_end(tmp_path):
    arguments = ["--data", "synthetic", "--epochs", "3", "--batch-size", "200", "--device", "cpu", "--out"]
    process = start(arcface_mnist, *arguments, tmp_path / "whole")
    began = time.monotonic()
    assert process.wait(200) == 0
    whole = time.monotonic() - began
    moments = random.Random(0)
    for attempt in range(3):
        process = start(arcface_mnist, *arguments, tmp_path / "cut", *(["--resume"] if attempt else []))
        time.sleep(moments.uniform(0.3, 0.9) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(arcface_mnist, *arguments, tmp_path / "cut", "--resume").wait(200) == 0
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "cut"))
    assert without_times(one) == without_times(two)
    one, two = (torch.load(tmp_path / name / "model.pt") for name in ("whole", "cut"))
    assert same(one["network"], two["network"]) and same(one["head"], two["head"])


def test_a_resumed_run_goes_on_with_the_same_hardest_images(tmp_path):
    recipe, settings = hard_recipe()
    source, calls = data.synthetic("MNIST", train=600, test=200), []

    def cut(*arguments):
        calls.append(1)
        if len(calls) > 10 + 10 + 3 + 2:  # in the fourth epoch
            raise KeyboardInterrupt
        return recipe.augment(*arguments)

    whole = training.train(recipe, settings, source, tmp_path / "whole.pt", False)
    with pytest.raises(KeyboardInterrupt):
        training.train(replace(recipe, augment=cut), settings, source, tmp_path / "cut.pt", False)
    resumed = training.train(recipe, settings, source, tmp_path / "cut.pt", True)
    assert same(whole.network.state_dict(), resumed.network.state_dict())


def test_ctrl_c_says_how_to_resume(small, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "loss_and_correct", interrupted)
    assert arcface_mnist.main([*SHORT, "--out", str(tmp_path)]) == 130
    assert "--resume" in capsys.readouterr().err


# --- nothing half-written ------------------------------------------------------------------------


def limited():
    """In the child: no file may grow beyond 150 kB, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))


def test_a_full_disk_leaves_what_was_there(tmp_path):
    earlier = {name: f"earlier {name}".encode() for name in ("run.json", "model.pt", "checkpoint.pt", "accuracy.png")}
    for name, content in earlier.items():
        (tmp_path / name).write_bytes(content)
    process = start(arcface_mnist, *SHORT, "--out", tmp_path, preexec_fn=limited)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert errors.startswith("error: ") and errors.count("\n") == 1 and "could not be written" in errors
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == earlier


@pytest.mark.parametrize("failing", ["save_json", "save_arrays", "save_torch"])
def test_a_failed_write_leaves_the_earlier_file(tmp_path, failing, monkeypatch):
    path = tmp_path / "file.npz"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    arguments = {"save_json": ({},), "save_torch": ({},)}.get(failing, ())
    with pytest.raises(records.Problem, match="No space left on device"):
        getattr(records, failing)(path, *arguments)
    assert path.read_bytes() == b"earlier" and len(list(tmp_path.iterdir())) == 1


def test_the_folder_is_checked_before_the_first_epoch(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("it trained"))
    assert arcface_mnist.main([*SHORT, "--out", str(tmp_path)]) == 1
    assert "--out" in capsys.readouterr().err


# --- divergence ----------------------------------------------------------------------------------


def test_training_that_does_not_learn_is_stopped(small, tmp_path, monkeypatch, capsys):
    recipe = arcface_mnist.DEFAULT
    frozen = replace(recipe, learning_rates=dict.fromkeys(recipe.learning_rates, 0.0))
    monkeypatch.setattr(arcface_mnist, "RECIPES", {"default": frozen})
    arguments = [*SHORT, "--epochs", "10", "--scale", "64", "--margin", "1", "--out", str(tmp_path)]
    assert arcface_mnist.main(arguments) == 1
    error = capsys.readouterr().err
    assert "nothing is learnt" in error and "scale 64.0, margin 1.0" in error and "--scale" in error
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_loss_that_is_not_finite_is_named():
    settings = training.Settings("MNIST", "arcface", 64, 1.0, 8, 1, 2, 0, "cpu", "float32")
    with pytest.raises(training.Diverged, match="The loss is nan at step 1 of 10"):
        training.watch(float("nan"), 0.5, 10, 0, 10, settings)
    training.watch(1.0, 0.5, 10, 90, 100, settings)
    with pytest.raises(training.Diverged, match=r"accuracy is 19.0% after 91 of 100 steps"):
        training.watch(1.0, 0.19, 10, 90, 100, settings)


# --- bad input -----------------------------------------------------------------------------------

USAGE = [
    *(["--epochs", bad] for bad in ("0", "-1", "10001", "1.5", "many", "")),
    *(["--batch-size", bad] for bad in ("1", "0", "-5", "60001", "2.5", "all")),
    *(["--seed", bad] for bad in ("-1", "1048576", "0.5", "x")),
    *(["--scale", bad] for bad in ("0", "-1", "1001", "nan", "inf", "big")),
    *(["--margin", bad] for bad in ("-0.1", "1.58", "4.1", "nan", "30", "wide")),
    *(["--embedding-size", bad] for bad in ("1", "0", "-2", "4097", "1.5", "d")),
    *(["--loss", bad] for bad in ("", "triplet", "ArcFace")),
    *(["--device", bad] for bad in ("gpu", "tpu", "")),
    *(["--recipe", bad] for bad in ("fast", "")),
    *(["--precision", bad] for bad in ("float16", "16", "")),
    *(["--loss", loss, "--margin", "0.2"] for loss in ("softmax", "norm-softmax", "cm1")),
    ["--loss", "sphereface", "--margin", "0"],
    *([option] for option in ("--data", "--out", "--epochs", "--recipe", "--recipe-file", "--epoch", "mnist")),
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_bad_usage_ends_with_status_2(arguments, tmp_path, monkeypatch, capsys, script):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        script.main(["--data", "synthetic", *arguments])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2 and "error: " in last
    assert not list(tmp_path.iterdir())


def checkpoint_of(settings):
    empty = {"model": {}, "optimizers": [], "history": [], "snapshots": [], "last_loss": torch.zeros(600)}
    return {"settings": settings, **empty, "seen": torch.zeros(600, dtype=torch.int64), "seconds": 0.0}


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


SETTINGS = {
    **{"dataset": "synthetic", "loss": "arcface", "scale": 8.0, "margin": 0.1, "embedding_size": 128, "epochs": 2},
    **{"batch_size": 100, "seed": 0, "device": "cpu", "precision": "float32", "recipe": "default"},
}
PROBLEMS = {
    "out is a file": (["--out", "a-file"], "a-file is a file"),
    "out below a file": (["--out", "a-file/run"], "cannot be written"),
    "data is a file": (["--data", "a-file"], "a-file is not a folder"),
    "data is empty": (["--data", "no-data"], "could not be downloaded"),
    "batch too large": (["--batch-size", "601"], "--batch-size 601"),
    "no such device": (["--device", "mps"], "--device mps is not available"),
    "checkpoint of another data set": (["--resume", "--out", "dataset"], "dataset MNIST (now synthetic)"),
    "checkpoint of another embedding size": (["--resume", "--out", "size"], "embedding_size 64 (now 128)"),
    "checkpoint of another loss": (["--resume", "--out", "loss"], "loss cosface (now arcface)"),
    "checkpoint of another recipe": (["--resume", "--out", "recipe"], "recipe best (now default)"),
    "checkpoint of an older version": (["--resume", "--out", "older"], "another version"),
    "checkpoint of another network": (["--resume", "--out", "network"], "another version"),
    "checkpoint truncated": (["--resume", "--out", "truncated"], "checkpoint.pt"),
    "checkpoint empty": (["--resume", "--out", "empty"], "checkpoint.pt"),
    "checkpoint is text": (["--resume", "--out", "text"], "checkpoint.pt"),
    "checkpoint is malicious": (["--resume", "--out", "malicious"], "checkpoint.pt"),
    "checkpoint is something else": (["--resume", "--out", "other"], "not a checkpoint"),
}


@pytest.fixture
def bad_files(tmp_path, monkeypatch, small):
    """A working directory with what PROBLEMS names."""
    monkeypatch.chdir(tmp_path)

    def refuse(name, folder, missing):
        raise data.DownloadFailed(f"{name} could not be downloaded")

    monkeypatch.setattr(data, "download", refuse)
    Path("a-file").write_text("here")
    states = {
        "dataset": checkpoint_of(SETTINGS | {"dataset": "MNIST"}),
        "size": checkpoint_of(SETTINGS | {"embedding_size": 64}),
        "loss": checkpoint_of(SETTINGS | {"loss": "cosface"}),
        "recipe": checkpoint_of(SETTINGS | {"recipe": "best"}),
        "older": {key: value for key, value in checkpoint_of(SETTINGS).items() if key != "seen"},
        "network": checkpoint_of(SETTINGS),
        "truncated": checkpoint_of(SETTINGS),
        "malicious": {"settings": SETTINGS, "model": Evil()},
        "other": {"weights": torch.zeros(3)},
    }
    for name in (*states, "empty", "text"):
        Path(name).mkdir()
        if name in states:
            torch.save(states[name], f"{name}/checkpoint.pt")
    Path("empty/checkpoint.pt").touch()
    Path("text/checkpoint.pt").write_text("not a checkpoint")
    whole = Path("truncated/checkpoint.pt").read_bytes()
    Path("truncated/checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_end_with_one_line_and_status_1(name, bad_files, capsys):
    arguments, message = PROBLEMS[name]
    before = contents(bad_files)
    assert arcface_mnist.main([*SHORT, "--precision", "float32", "--out", "run", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert contents(bad_files) == before and not Path("evil").exists()


def test_bad_models_and_records_are_named(tmp_path):
    torch.save({"settings": SETTINGS, "network": {}, "head": {}}, tmp_path / "model.pt")
    with pytest.raises(records.Problem, match="does not hold a model of arcface_mnist"):
        run.load_model(tmp_path / "model.pt", arcface_mnist.RECIPES)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(records.Problem, match=r"run\.json cannot be read"):
        figures.draw_run(tmp_path)
    with pytest.raises(records.Problem, match=r"arrays\.npz cannot be read"):
        records.load_arrays(tmp_path / "arrays.npz")


@pytest.mark.parametrize(("arguments", "status"), [(["--epochs", "x"], 2), (["--help"], 0), (["--out", "/dev/null"], 1)])
def test_the_real_command_line(script, arguments, status):
    process = start(script, "--data", "synthetic", *arguments)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in errors
    assert "--embedding-size" in output or errors.strip().splitlines()[-1].count("error: ") == 1


def test_the_card_s_files_stand_at_the_top():
    for name in ("arcface_mnist.py", "arcface_cifar10.py", "arcface_loss.py", "requirements.txt", "README.md"):
        assert (run.ROOT / name).is_file()
    assert shutil.which("make")
