"""A promise: bad input ends with one line that names the problem, before the first step.

The status is 2 for what argparse refuses and 1 for anything else.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import arcface_mnist
from experiment import data, figures, records, run
from experiment.errors import Problem
from experiment.records import ROOT
from tests.permissions import unprivileged

SHORT = ["--data", "synthetic", "--epochs", "2", "--batch-size", "100", "--device", "cpu"]

USAGE = [
    *(["--epochs", bad] for bad in ("0", "-1", "10001", "1.5", "many", "")),
    *(["--batch-size", bad] for bad in ("1", "0", "-5", "60001", "2.5", "all")),
    *(["--seed", bad] for bad in ("-1", "1048576", "0.5", "x", "9" * 5000)),
    *(["--scale", bad] for bad in ("0", "-1", "1001", "nan", "inf", "big")),
    *(["--margin", bad] for bad in ("-0.1", "1.58", "4.1", "nan", "30", "wide")),
    *(["--embedding-size", bad] for bad in ("1", "0", "-2", "4097", "1.5", "d")),
    *(["--loss", bad] for bad in ("", "triplet", "ArcFace")),
    *(["--device", bad] for bad in ("gpu", "tpu", "")),
    *(["--recipe", bad] for bad in ("fast", "")),
    *(["--precision", bad] for bad in ("float16", "16", "")),
    *(["--loss", loss, "--margin", "0.2"] for loss in ("softmax", "norm-softmax", "cm1")),
    ["--loss", "sphereface", "--margin", "0"],
    *([option] for option in ("--data", "--out", "--epochs", "--recipe", "--epoch", "mnist")),
    *(
        [option, bad]
        for option in ("--data", "--out")
        for bad in ("", "caf\udce9", "a\0b", "~no-such-user/x")
    ),
]


@pytest.mark.parametrize("arguments", USAGE, ids=lambda words: ascii(" ".join(words))[:40])
def test_bad_usage_ends_with_status_2(arguments, tmp_path, monkeypatch, capsys, script):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        script.main(["--data", "synthetic", *arguments])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2 and "error: " in last
    assert not list(tmp_path.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def problem(capsys, arguments) -> str:
    """The one line that a run with these arguments ends with."""
    assert arcface_mnist.main([*SHORT, "--precision", "float32", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


PROBLEMS = {
    "out is a file": (["--out", "a-file"], "--out a-file is a file"),
    "out below a file": (["--out", "a-file/run"], "--out a-file/run cannot be written"),
    "out too long": (["--out", "x" * 300], "cannot be written: File name too long"),
    "out far too long": (["--out", "x/" * 5000], "cannot be written: File name too long"),
    "out is a loop of links": (["--out", "loop"], "--out loop cannot be written"),
    "data is a file": (["--data", "a-file"], "a-file is not a folder"),
    "data below a file": (["--data", "a-file/data"], "a-file/data"),
    "data is empty": (["--data", "no-data"], "could not be downloaded"),
    "data too long": (["--data", "x" * 300], "File name too long"),
    "batch too large": (["--batch-size", "601"], "--batch-size 601"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch, small):
    """A working directory with what PROBLEMS names, and no network."""

    def refuse(archive, root):
        raise data.DownloadFailed("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "fetch_archive", refuse)
    Path("a-file").write_text("here")
    Path("loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_end_with_one_line_and_status_1(name, folder, capsys):
    arguments, message = PROBLEMS[name]
    before = contents(folder)
    assert message in problem(capsys, ["--out", "run", *arguments])
    assert contents(folder) == before


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="a machine with MPS")
def test_a_device_that_is_not_there(folder, capsys):
    assert "--device mps is not available" in problem(capsys, ["--device", "mps"])


@pytest.mark.parametrize("option", ["--out", "--data"])
def test_a_folder_that_may_not_be_searched(option, folder, capsys):
    (folder / "closed/run").mkdir(parents=True)
    (folder / "closed").chmod(0)
    arguments = ["--out", "/tmp", option, str(folder / "closed/run")]
    with unprivileged():
        line = problem(capsys, arguments)
    (folder / "closed").chmod(0o700)
    assert f"{option} {folder}/closed/run" in line and "Permission denied" in line


def test_a_working_directory_that_was_deleted(folder, monkeypatch, capsys):
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    for arguments in ([], ["--out", "run"], ["--out", str(folder / "run")]):
        assert "working directory has been removed" in problem(capsys, arguments)
    monkeypatch.chdir(folder)
    assert not (folder / "run").exists()


@pytest.mark.parametrize("option", ["--out=~/run", "--out=~"])
def test_a_tilde_is_the_user_s_folder(option, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "home"))
    assert arcface_mnist.main([*SHORT, "--epochs", "1", option]) == 0
    (found,) = folder.rglob("run.json")
    assert found.is_relative_to(folder / "home") and not (folder / "~").exists()


def test_a_tilde_in_data_is_the_user_s_folder(folder, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(folder / "home"))
    line = problem(capsys, ["--data=~/data", "--out", "run"])
    assert str(folder / "home/data") in line


def test_half_of_torchrun_s_environment(folder, monkeypatch, capsys):
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    assert "RANK is set" in problem(capsys, ["--out", "run"])


def test_out_of_memory(folder, capsys, monkeypatch):
    """PyTorch's own error, from a batch that no machine has the memory for."""
    monkeypatch.setattr(arcface_mnist, "to_float", lambda images: torch.empty(2**46).fill_(0))
    assert "Lower --batch-size" in problem(capsys, ["--out", "run"])


# --- models and records --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_data):
    """A saved model, one epoch old, as torch.load gives it."""
    out = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_run", lambda folder: None)
        patch.setattr(run.synthetic, "make", lambda name: small_data[name])
        assert arcface_mnist.main([*SHORT, "--epochs", "1", "--out", str(out)]) == 0
    return torch.load(out / "model.pt")


def test_a_good_model_is_loaded(model, tmp_path):
    records.save_torch(tmp_path / "model.pt", model)
    network, head, classes = run.load_model(tmp_path / "model.pt", arcface_mnist.Network)
    assert classes == list("0123456789") and not network.training
    assert torch.equal(head.weight, model["head"]["weight"])


def test_a_missing_model_is_called_missing(tmp_path):
    with pytest.raises(Problem, match=r"model.pt does not exist. Give the .* arcface_mnist.py"):
        run.load_model(tmp_path / "model.pt", arcface_mnist.Network)


WRONG_MODELS = {
    "a list": lambda model: [1, 2],
    "empty": lambda model: {},
    "no head": lambda model: {key: model[key] for key in model if key != "head"},
    "of another size": lambda model: model | {"settings": model["settings"] | {"scale": "x"}},
    "settings are a list": lambda model: model | {"settings": [1]},
    "weights are a list": lambda model: model | {"head": [1]},
    "a shape": lambda model: model | {"head": {"weight": torch.zeros(3, 4)}},
    "nan": lambda model: model | {"head": {"weight": model["head"]["weight"] * torch.nan}},
    "no classes": lambda model: model | {"classes": 3},
    "a class less": lambda model: model | {"classes": model["classes"][1:]},
    "of another network": lambda model: model | {"hyperparameters": {"network": {"depth": 3}}},
}


@pytest.mark.parametrize("name", WRONG_MODELS)
def test_a_model_with_wrong_content_is_named(name, model, tmp_path):
    torch.save(WRONG_MODELS[name](model), tmp_path / "model.pt")
    with pytest.raises(Problem, match="does not hold a model of arcface_mnist"):
        run.load_model(tmp_path / "model.pt", arcface_mnist.Network)


def drawing(capsys, *arguments):
    """Status and stderr of python -m experiment.figures."""
    try:
        status = figures.main([*map(str, arguments)])
    except SystemExit as error:
        status = error.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--folder"], [""], ["caf\udce9"]])
def test_usage_of_the_figures_command(arguments, capsys):
    status, err = drawing(capsys, *arguments)
    assert status == 2 and "error: " in err.splitlines()[-1]


def test_help_of_the_figures_command(capsys):
    assert drawing(capsys, "--help") == (0, "")


@pytest.mark.parametrize(
    ("record", "arrays", "message"),
    [
        (None, None, "run.json does not exist"),
        ("{", None, "run.json is damaged"),
        ("{}", None, "arrays.npz does not exist"),
        ("{}", {}, "does not hold what is shown"),
        ("[1, 2]", {}, "does not hold what is shown"),
        (
            '{"dataset": 3, "loss": null, "history": [], "epochs": "x"}',
            {},
            "does not hold what is shown",
        ),
    ],
)
def test_a_folder_without_a_record_s_content(record, arrays, message, tmp_path, capsys):
    if record is not None:
        (tmp_path / "run.json").write_text(record)
    if arrays is not None:
        records.save_arrays(tmp_path / "arrays.npz", **arrays)
    status, err = drawing(capsys, tmp_path)
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1 and message in err


# --- the user's own settings ---------------------------------------------------------------------

DRAW = """
import sys
from pathlib import Path
from experiment import figures, records
record = records.load_json(Path("figures/mnist/run.json").resolve())
with figures.plt.rc_context(figures.STYLE):
    figures.save(figures.loss(record, {}), Path(sys.argv[1]))
"""
STRANGE = "font.size: 40\nsavefig.transparent: True\ntext.usetex: True\nbackend: nonsense\n"
STRANGE += "# B\udcfccher\n{{{\n"  # a letter in Latin-1


@pytest.mark.slow
def test_matplotlib_s_settings_of_the_user_change_nothing(tmp_path):
    (tmp_path / "matplotlibrc").write_text(STRANGE, errors="surrogateescape")  # not UTF-8 either
    (tmp_path / "figures").symlink_to(ROOT / "figures")
    plain = {key: value for key, value in os.environ.items() if not key.startswith("M")}
    strange = {"MPLBACKEND": "module://no_such_notebook", "MATPLOTLIBRC": str(tmp_path)}
    pictures = []
    for folder, environment in ((ROOT, {}), (tmp_path, strange)):
        path = tmp_path / f"{len(pictures)}.png"
        done = subprocess.run(
            [sys.executable, "-c", DRAW, path],
            cwd=folder,
            env=plain | environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]
    assert json.loads((ROOT / "figures/mnist/run.json").read_text())["dataset"] == "MNIST"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--epochs", "x"], 2), (["--help"], 0), (["--out", "/dev/null"], 1)],
)
def test_the_real_command_line(arguments, status):
    command = [sys.executable, arcface_mnist.__file__, "--data", "synthetic", *arguments]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == status and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1:]
    assert "--embedding-size" in done.stdout if status == 0 else last[0].count("error: ") == 1
