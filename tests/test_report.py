"""The report's numbers are the records', and the hand-in holds what was asked for and runs."""

import json
import subprocess
import sys
import zipfile

import pypdf
import pytest

from experiment.records import ROOT
from report import submission, terminal


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """The text of a report that is built anew, in one line."""
    pdf = tmp_path_factory.mktemp("report") / "report.pdf"
    submission.build(pdf, "Mark", "Philip", "0123456")
    reader = pypdf.PdfReader(pdf)
    assert 12 <= len(reader.pages) <= 18 and reader.metadata.author == "Philip Mark"
    return " ".join(" ".join(page.extract_text() for page in reader.pages).split())


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_the_headline_accuracies_are_those_of_the_records(text, dataset):
    run = json.loads((ROOT / f"figures/{dataset}/run.json").read_text())
    seeds = json.loads((ROOT / f"figures/{dataset}/seeds.json").read_text())
    mean = sum(100 * record["test_accuracy"] for record in seeds) / len(seeds)
    assert f"{100 * run['test_accuracy']:.2f}%" in text and f"{mean:.2f} ±" in text


def test_nothing_is_left_open_in_the_report(text):
    assert "Philip Mark" in text and "0123456" in text
    for mark in ("First Last", "FINDING", "TODO", "??", "nan"):
        assert mark not in text


def test_every_picture_of_the_report_exists():
    source = (submission.HERE / "report.typ").read_text(encoding="utf-8")
    paths = [part.split('"')[0] for part in source.split('picture("')[1:]]
    whole = [path for path in paths if path.endswith(".png")]
    assert len(whole) > 15
    for path in whole:
        assert (ROOT / "figures" / path).exists(), path


def test_the_hand_in_holds_code_pictures_and_report_and_runs(tmp_path, monkeypatch, capsys):
    assert submission.main(["zip", "--last", "mark", "--first", "philip", "--id", "0123456"]) == 0
    path = ROOT / "mark_philip_0123456_Project1.zip"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            archive.extractall(tmp_path)
    finally:
        path.unlink()
    top = "mark_philip_0123456_Project1/"
    assert all(name.startswith(top) for name in names)
    names = {name.removeprefix(top) for name in names}
    assert {name.rsplit(".", 1)[1] for name in names} == {"py", "png", "pdf", "md", "txt"}
    assert {"arcface_loss.py", "arcface_mnist.py", "arcface_cifar10.py", "report/report.pdf", "README.md"} <= names
    assert {f"figures/{folder}/accuracy.png" for folder in ("mnist", "cifar10")} <= names
    command = [sys.executable, "arcface_mnist.py", "--data", "synthetic", "--epochs", "1", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path / top, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / top / "figures/synthetic-mnist/accuracy.png").exists()


@pytest.mark.parametrize("last", ["", "a/b", "..", "\\", "_"])
def test_a_bad_name_is_refused(last, capsys):
    assert submission.main(["zip", "--last", last, "--first", "philip", "--id", "1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: LAST is") and error.count("\n") == 1
    assert not list(ROOT.glob("*philip_1_Project1.zip"))


def test_a_terminal_is_recorded_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "FOLDER", tmp_path)
    (tmp_path / "hello.py").write_text("print('one\\rtwo', flush=True)")
    monkeypatch.chdir(tmp_path)
    code = "import sys, pathlib; from report import terminal; terminal.FOLDER = pathlib.Path(); "
    code += "sys.exit(terminal.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "record", "hello.py"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "hello.log").read_bytes().endswith(b"one\rtwo\r\n")
    assert terminal.main(["draw"]) == 0 and terminal.main([]) == 2
    assert (tmp_path / "hello.png").stat().st_size > 1000
