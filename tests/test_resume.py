"""A promise: an interrupted run goes on to the same end, bit for bit, and no work is lost silently.

What a damaged file does is in test_records.py too.
"""

import copy
import json
import math
import signal
import subprocess
import sys

import pytest
import torch

import arcface_mnist
from experiment import figures, records, synthetic
from tests.helpers import equal_weights

EPOCHS = 5
SHORT = ["--data", "synthetic", "--batch-size", "60", "--device", "cpu", "--seed", "3"]
SHORT += ["--precision", "float32", "--epochs", str(EPOCHS)]
FEW_STEPS = ["--batch-size", "1000", "--epochs", "2", "--precision", "auto"]
STEPS = 10  # of a whole epoch; the third, in the middle, has 3


class Interrupted:
    """A script's augmentation that Ctrl-C meets at its n-th call."""

    def __init__(self, script, call):
        self.augment, self.left = script.augment, call

    def __call__(self, *arguments, **keywords):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.augment(*arguments, **keywords)


def run(out, *more):
    return arcface_mnist.main([*SHORT, "--out", str(out), *more])


def interrupt(out, call, *more):
    """A run that ends at its n-th step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arcface_mnist, "augment", Interrupted(arcface_mnist, call))
        assert run(out, *more) == 130


def without_times(record: dict) -> dict:
    """A record without what may differ between equal runs."""
    record = {key: record[key] for key in record if not key.endswith("_seconds")}
    history = [{key: e[key] for key in e if key != "seconds"} for e in record["history"]]
    return record | {"history": history, "command": ""}


def same_end(one, other) -> bool:
    """Whether two runs left the same weights and the same record, apart from times."""
    models = [torch.load(out / "model.pt") for out in (one, other)]
    found = [without_times(json.loads((out / "run.json").read_text())) for out in (one, other)]
    arrays = [records.load_arrays(out / "arrays.npz") for out in (one, other)]
    return (
        all(equal_weights(models[0][part], models[1][part]) for part in ("network", "head"))
        and found[0] == found[1]
        and all((arrays[0][key] == arrays[1][key]).all() for key in arrays[0])
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_data):
    """A folder with a run to the end, ``whole``, and one that ended in its third epoch, ``cut``."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_run", lambda folder: None)
        patch.setattr(synthetic, "make", lambda name: small_data[name])
        assert run(folder / "whole") == 0
        interrupt(folder / "cut", 2 * STEPS + 2)
    return folder


@pytest.fixture
def cut(runs, tmp_path, small):
    """A copy of the folder of the run that was interrupted."""
    (tmp_path / "checkpoint.pt").write_bytes((runs / "cut/checkpoint.pt").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "call", [STEPS + 1, *(pytest.param(2 * STEPS + k, marks=pytest.mark.slow) for k in (0, 3))]
)
def test_an_interrupted_run_ends_as_the_whole_one(runs, call, tmp_path, small, capsys):
    """At the first step of an epoch, at its last one, in the middle, and twice."""
    interrupt(tmp_path, call)
    assert "--resume goes on" in capsys.readouterr().err
    interrupt(tmp_path, 2, "--resume")
    assert run(tmp_path, "--resume") == 0
    assert same_end(runs / "whole", tmp_path)


def test_the_record_s_command_begins_anew(runs):
    command = json.loads((runs / "whole/run.json").read_text())["command"]
    assert command.startswith("python arcface_mnist.py --data synthetic --batch-size 60 ")


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_end(tmp_path):
    """Killed as soon as the first epoch has been saved, with what a kill may leave half-written."""

    def start(name, *more):
        arguments = [*SHORT, *FEW_STEPS, "--out", tmp_path / name, *more]
        command = [sys.executable, arcface_mnist.__file__, *map(str, arguments)]
        return subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, text=True)

    process = start("cut")
    assert any(line.startswith("epoch   1/") for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "cut/checkpoint.pt").exists() and not (tmp_path / "cut/run.json").exists()
    left = tmp_path / f"cut/.checkpoint.{process.pid}.arcface.tmp.pt"
    left.write_bytes(b"half")
    for name, more, epochs in (("cut", ["--resume"], 1), ("whole", [], 2)):
        process = start(name, *more)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0 and output.count("epoch ") == epochs
    assert not left.exists()
    assert same_end(tmp_path / "whole", tmp_path / "cut")


# --- nothing is lost silently --------------------------------------------------------------------


def refused(out, capsys, *more) -> str:
    """The one line with which a run in this folder is refused; nothing in it changes."""
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert run(out, *more) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    return error


@pytest.mark.parametrize("more", [[], ["--seed", "1"], ["--loss", "cosface", "--epochs", "9"]])
def test_a_checkpoint_is_not_overwritten_without_resume(cut, capsys, more):
    line = refused(cut, capsys, *more)
    assert f"{cut}/checkpoint.pt holds epoch 2 of 5: add --resume, or delete it" in line


@pytest.fixture
def finished(runs, tmp_path, small):
    """A copy of the folder of the finished run."""
    for path in (runs / "whole").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_finished_run_is_not_trained_again(finished, capsys):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    assert run(finished, "--resume") == 0
    assert "is finished" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_finished_run_of_other_settings_is_not_overwritten_by_resume(finished, capsys):
    line = refused(finished, capsys, "--resume", "--scale", "16")
    assert "finished run of other settings: scale 8.0 (now 16.0)" in line


@pytest.mark.parametrize("damage", ["no model", "other model", "other record"])
def test_a_record_alone_is_not_a_finished_run(finished, damage, capsys):
    """As it comes with the project, or where two runs were mixed."""
    if damage == "no model":
        (finished / "model.pt").unlink()
    elif damage == "other model":
        state = torch.load(finished / "model.pt")
        state["settings"]["seed"] = 9
        torch.save(state, finished / "model.pt")
    else:
        record = json.loads((finished / "run.json").read_text())
        (finished / "run.json").write_text(json.dumps(record | {"margin": 0.3}))
    interrupt(finished, 2, "--resume")
    assert "Nothing to resume" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.pt", "run.json"])
def test_a_finished_run_with_a_damaged_file_is_not_trained_again_by_resume(finished, name, capsys):
    (finished / name).write_bytes(b"PK")
    assert f"{name} is damaged" in refused(finished, capsys, "--resume")


@pytest.mark.slow
def test_a_run_that_ended_while_it_drew_goes_on_there(runs, tmp_path, small, monkeypatch):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "draw_run", interrupted)
    assert run(tmp_path) == 130 and (tmp_path / "checkpoint.pt").exists()
    drawn = []
    monkeypatch.setattr(figures, "draw_run", drawn.append)
    assert run(tmp_path, "--resume") == 0
    assert drawn == [tmp_path] and not (tmp_path / "checkpoint.pt").exists()
    assert same_end(runs / "whole", tmp_path)


# --- a checkpoint of something else --------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("dataset", "MNIST", "dataset MNIST (now synthetic)"),
        ("embedding_size", 64, "embedding_size 64 (now 128)"),
        ("loss", "cosface", "loss cosface (now arcface)"),
        ("recipe", "best", "recipe best (now default)"),
        ("precision", "bfloat16", "precision bfloat16 (now float32)"),
        ("processes", 2, "processes 2 (now 1)"),
        ("threads", 77, "threads 77 (now "),
        ("seed", torch.zeros(2), "seed tensor([0., 0.]) (now 3)"),
    ],
)
def test_other_settings_are_named(cut, capsys, key, value, text):
    state = torch.load(cut / "checkpoint.pt")
    state["settings"][key] = value
    torch.save(state, cut / "checkpoint.pt")
    line = refused(cut, capsys, "--resume")
    assert f"is of another run: {text}" in line


def test_another_version_s_hyperparameters_are_named(cut, capsys):
    state = torch.load(cut / "checkpoint.pt")
    state["hyperparameters"]["warm_up"] = 0.2
    del state["hyperparameters"]["hardest"]
    torch.save(state, cut / "checkpoint.pt")
    line = refused(cut, capsys, "--resume")
    assert "warm_up 0.2 (now 0.1)" in line and "hardest None (now 0.3)" in line


def first(state: dict) -> str:
    return next(iter(state["model"]))


def momentum(state: dict) -> dict:
    return state["optimizers"][0]["state"][0]


CHANGES = {
    "no settings": lambda s: s.pop("settings"),
    "hyperparameters are a list": lambda s: s.update(hyperparameters=[]),
    "no seen": lambda s: s.pop("seen"),
    "one key more": lambda s: s.update(more=1),
    "no epochs": lambda s: s.update(history=[]),
    "more epochs than there are": lambda s: s.update(history=s["history"] * 9),
    "an epoch is missing": lambda s: s["history"].pop(0),
    "the history is text": lambda s: s.update(history="abc"),
    "epochs are text": lambda s: s.update(history=["abc"]),
    "a loss is NaN": lambda s: s["history"][0].update(train_loss=math.nan),
    "a loss is text": lambda s: s["history"][0].update(train_loss="low"),
    "seconds are text": lambda s: s.update(seconds="long"),
    "a loss is too large": lambda s: s["history"][0].update(train_loss=10**400),
    "seconds are NaN": lambda s: s.update(seconds=math.nan),
    "seconds are negative": lambda s: s.update(seconds=-1e300),
    "losses are NaN": lambda s: s["last_loss"].fill_(math.nan),
    "losses are of fewer images": lambda s: s.update(last_loss=s["last_loss"][1:]),
    "losses are of another type": lambda s: s.update(last_loss=s["last_loss"].double()),
    "seen is a list": lambda s: s.update(seen=s["seen"].tolist()),
    "snapshots have another shape": lambda s: s.update(snapshots=s["snapshots"][:2]),
    "a weight is infinite": lambda s: s["model"][first(s)].view(-1)[0].fill_(math.inf),
    "a weight is NaN": lambda s: s["model"][first(s)].view(-1)[0].fill_(math.nan),
    "a weight is missing": lambda s: s["model"].pop(first(s)),
    "a weight has another shape": lambda s: s["model"].update({first(s): torch.zeros(2)}),
    "a weight is text": lambda s: s["model"].update({first(s): "heavy"}),
    "weights are a list": lambda s: s.update(model=[]),
    "no optimizers": lambda s: s.update(optimizers=[]),
    "optimizers are text": lambda s: s.update(optimizers=["a", "b"]),
    "an optimizer is empty": lambda s: s["optimizers"].__setitem__(0, {}),
    "a momentum is NaN": lambda s: momentum(s)["momentum_buffer"].fill_(math.nan),
    "a momentum has another shape": lambda s: momentum(s).update(momentum_buffer=torch.zeros(3)),
    "a momentum is missing": lambda s: s["optimizers"][0]["state"].pop(0),
    "a momentum is text": lambda s: momentum(s).update(momentum_buffer="fast"),
    "another rate": lambda s: s["optimizers"][1]["param_groups"][0].update(peak=9.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_right_settings_with_wrong_content_are_refused(cut, capsys, name):
    state = copy.deepcopy(torch.load(cut / "checkpoint.pt"))
    CHANGES[name](state)
    torch.save(state, cut / "checkpoint.pt")
    line = refused(cut, capsys, "--resume")
    assert f"{cut}/checkpoint.pt is" in line and "elete it" in line


@pytest.mark.parametrize("state", [[1, 2], "text", torch.zeros(3), {"weights": 1}, None])
@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_what_is_no_checkpoint_is_refused(cut, capsys, state, more):
    torch.save(state, cut / "checkpoint.pt")
    assert "checkpoint.pt is not a checkpoint of this program" in refused(cut, capsys, *more)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "text", "half"])
@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_damaged_checkpoint_is_refused(cut, capsys, content, more):
    whole = (cut / "checkpoint.pt").read_bytes()
    half = whole[: len(whole) // 2]
    (cut / "checkpoint.pt").write_bytes(half if content is None else content)
    assert "checkpoint.pt is damaged" in refused(cut, capsys, *more)


def test_a_flipped_bit_never_ends_with_other_weights(runs, cut, capsys):
    """Bits spread over the whole file: each is noticed, or the end is the same."""
    whole = (cut / "checkpoint.pt").read_bytes()
    noticed = 0
    for part in range(1, 16):
        flipped = bytearray(whole)
        flipped[part * len(whole) // 16] ^= 1 << part % 8
        (cut / "checkpoint.pt").write_bytes(flipped)
        try:
            records.load_torch(cut / "checkpoint.pt")
        except records.Problem:
            noticed += 1
            continue
        assert run(cut, "--resume") == 0 and same_end(runs / "whole", cut)
    assert noticed
    (cut / "checkpoint.pt").write_bytes(flipped)
    assert "damaged" in refused(cut, capsys, "--resume")
