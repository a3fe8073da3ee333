"""A promise: no terminal, pipe or full disk behind stdout and stderr stops a command."""

import io
import os
import subprocess
import sys

import pytest

import arcface_mnist
from experiment import errors
from experiment.records import ROOT

# A command that is quick to start: what it does last stands for saving.
COMMAND = """
import sys
from pathlib import Path
from experiment.errors import exit_status
from tqdm import tqdm

def work():
    for number in range(200):
        print("θ 12.3°, π/2", "x" * 100, flush=number % 2)
        tqdm.write("m²")
    bar = tqdm(total=3)
    bar.update()
    print("θ", file=sys.stderr)
    Path(sys.argv[1]).write_text("saved")

sys.exit(exit_status(work))
"""


def run(redirection, program, arguments, environment=None):
    """A Python program, started by a shell with these redirections."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", sys.executable, *program, *map(str, arguments)],
        capture_output=True,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        timeout=200,
    )


STREAMS = {
    "as usual": ("", {}),
    "ascii": ("", {"PYTHONIOENCODING": "ascii:strict"}),
    "a Windows pipe": ("", {"PYTHONIOENCODING": "cp1252:strict"}),
    "the reader goes away": ("| true", {}),
    "both readers go away": ("2>&1 | true", {}),
    "stdout closed": (">&-", {}),
    "stderr closed": ("2>&-", {}),
    "both closed": (">&- 2>&-", {}),
    "all closed": ("<&- >&- 2>&-", {}),
    "stdout full": (">/dev/full", {}),
    "both full": (">/dev/full 2>/dev/full", {}),
    "stdout only for reading": ("1</dev/null", {}),
}


@pytest.mark.parametrize("name", STREAMS)
def test_any_stream_lets_a_command_end(name, tmp_path):
    redirection, environment = STREAMS[name]
    status = f'{redirection}; echo "status $?" >{tmp_path}/status'
    if "|" in redirection:  # of the command, not of the pipe's end
        status = redirection
    done = run(status, ["-c", COMMAND], [tmp_path / "file"], environment)
    assert (tmp_path / "file").read_text() == "saved"
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    if "|" not in redirection:
        assert (tmp_path / "status").read_text() == "status 0\n"


def test_characters_that_cannot_be_shown_are_replaced(tmp_path):
    done = run("", ["-c", COMMAND], [tmp_path / "file"], {"PYTHONIOENCODING": "ascii:strict"})
    assert done.stdout.startswith(b"? 12.3?, ?/2 xxx") and b"m?" in done.stdout


def test_a_broken_pipe_does_not_change_the_status(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", COMMAND, tmp_path / "file"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, timeout=60)
    os.close(writer)
    assert done.returncode == 0 and (tmp_path / "file").exists()
    assert b"Broken pipe" not in done.stderr and b"Traceback" not in done.stderr


class Failing(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        self.write("")


@pytest.mark.parametrize("stream", [None, Failing(), io.StringIO()], ids=["none", "full", "closed"])
def test_a_stream_inside_python_may_fail_too(stream, monkeypatch):
    """As in a notebook or a program without a console, where no descriptor is behind it."""
    if type(stream) is io.StringIO:
        stream.close()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    errors.protect_streams()
    print("θ", flush=True)
    print("θ", file=sys.stderr, flush=True)
    assert errors.exit_status(lambda: print("again")) == 0


def test_protecting_twice_wraps_once(capsys):
    errors.protect_streams()
    first = sys.stdout
    errors.protect_streams()
    assert sys.stdout is first
    print("shown")
    assert capsys.readouterr().out == "shown\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_is_shown_in_any_encoding(encoding, script, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding))
    with pytest.raises(SystemExit) as caught:
        script.main(["--help"])
    sys.stdout.flush()
    assert not caught.value.code and b"up to ?/2" in shown.getvalue()


@pytest.mark.slow
def test_a_training_is_saved_though_nothing_can_be_printed(tmp_path):
    arguments = ["--data", "synthetic", "--epochs", "1", "--batch-size", "1000", "--out", tmp_path]
    encoding = {"PYTHONIOENCODING": "cp1252:strict"}
    done = run(">/dev/full 2>&-", [arcface_mnist.__file__], arguments, encoding)
    assert done.returncode == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"run.json", "model.pt", "arrays.npz", "mistakes.png"}
    assert "checkpoint.pt" not in names


@pytest.mark.slow
def test_help_into_a_pipe_that_is_closed_early():
    done = run("--help | head -1", [arcface_mnist.__file__], [])
    assert done.stdout.count(b"\n") == 1 and done.stderr == b""
