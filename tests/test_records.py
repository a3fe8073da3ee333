"""experiment/records.py: whole or not at all, and damage is noticed."""

import errno
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from experiment import records
from experiment.errors import Problem
from tests.helpers import locked_elsewhere, needs_git, needs_locks
from tests.permissions import unprivileged

RECORD = {"loss": "arcface", "θ": [1.5, None, "a\u2028b"], "path": "caf\udce9"}
STATE = {"a": torch.arange(12.0).view(3, 4), "b": [1.5, {"c": torch.arange(5)}], "s": "text"}
ARRAYS = {"a": np.arange(2000, dtype=np.float16), "b": np.zeros((3, 4), np.uint8)}


def equal(one, other) -> bool:
    """Whether two saved states are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


KINDS = {
    "run.json": (lambda path: records.save_json(path, RECORD), records.load_json, RECORD),
    "arrays.npz": (
        lambda path: records.save_arrays(path, **ARRAYS),
        records.load_arrays,
        ARRAYS,
    ),
    "model.pt": (lambda path: records.save_torch(path, STATE), records.load_torch, STATE),
}


@pytest.fixture(params=KINDS)
def saved(request, tmp_path):
    """A file that was written, what reads it, and what it holds."""
    save, load, content = KINDS[request.param]
    save(tmp_path / request.param)
    return tmp_path / request.param, load, content


def test_what_is_saved_is_read_again(saved):
    path, load, content = saved
    assert equal(load(path), content)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_lines_are_added_and_read_again(tmp_path):
    path = tmp_path / "folder" / "lines.jsonl"
    for number in range(3):
        records.append_line(path, RECORD | {"number": number})
    assert records.load_lines(path) == [RECORD | {"number": number} for number in range(3)]
    assert path.read_bytes().count(b"\n") == 3


def test_a_file_that_is_missing_is_called_missing(saved):
    path, load, _ = saved
    path.unlink()
    with pytest.raises(Problem, match=f"{path.name} does not exist"):
        load(path)


def test_a_folder_in_the_place_of_a_file_is_named(saved):
    path, load, _ = saved
    path.unlink()
    path.mkdir()
    with pytest.raises(Problem, match=f"{path.name} is not a file"):
        load(path)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(saved):
    path, load, _ = saved
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Problem, match=f"{path.name} is not a file"):
        load(path)


def test_a_file_that_cannot_be_read_is_not_called_damaged(saved):
    path, load, _ = saved
    path.chmod(0)
    with unprivileged(), pytest.raises(Problem) as caught:
        load(path)
    assert "cannot be read: Permission denied. Check its permissions." in str(caught.value)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"PK\x03\x04"])
def test_a_file_that_is_something_else_is_called_damaged(saved, content):
    path, load, _ = saved
    path.write_bytes(content)
    with pytest.raises(Problem, match=f"{path.name} is damaged"):
        load(path)


@pytest.mark.parametrize("name", ["arrays.npz", "model.pt"])
def test_a_flipped_bit_is_noticed_or_changes_nothing(name, tmp_path):
    """In every 11th byte one bit, so that every part of the zip file is hit."""
    save, load, content = KINDS[name]
    save(tmp_path / name)
    whole, noticed = (tmp_path / name).read_bytes(), 0
    for place in range(0, len(whole), 11):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (tmp_path / name).write_bytes(flipped)
        try:
            assert equal(load(tmp_path / name), content), f"bit {place % 8} of byte {place}"
        except Problem:
            noticed += 1
    assert noticed > len(whole) / 11 / 3


def test_truncated_files_are_damaged(saved):
    path, load, _ = saved
    whole = path.read_bytes()
    for length in range(1, len(whole) - 2, len(whole) // 10):
        path.write_bytes(whole[:length])
        with pytest.raises(Problem, match="damaged"):
            load(path)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"name": "a"', "Line 2 of .* is not a record"),
        (b"[1]", "Line 2 of .* is not a record"),
        (b"\xff", "Line 2 of .* is not a record"),
        (b'{"name": "one"}', "Line 2 of .* is a second record of one"),
    ],
)
def test_a_bad_line_is_named(line, what, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b'{"name": "one"}\n' + line + b"\n")
    with pytest.raises(Problem, match=what):
        records.load_lines(path)


def test_a_record_begins_a_line_of_its_own(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"name": "one"}')  # an editor took the end of the line away
    records.append_line(path, {"name": "two"})
    assert [record["name"] for record in records.load_lines(path)] == ["one", "two"]


def test_record_and_arrays_of_two_runs_are_not_shown_together(tmp_path):
    arrays = {"labels": np.array([0, 1]), "predicted": np.array([0, 0])}
    records.save_arrays(tmp_path / "arrays.npz", **arrays)
    records.save_json(tmp_path / "run.json", {"test_accuracy": 0.5})
    assert records.load_run(tmp_path)[0] == {"test_accuracy": 0.5}
    for wrong in ({"test_accuracy": 0.75}, {}, []):
        records.save_json(tmp_path / "run.json", wrong)
        with pytest.raises(Problem, match=r"not of the same run|does not hold what is shown"):
            records.load_run(tmp_path)


@needs_locks
def test_a_folder_is_locked_until_the_process_ends(tmp_path):
    refused = "Another process is training into"
    with locked_elsewhere(tmp_path), pytest.raises(Problem, match=refused):
        records.lock(tmp_path)
    for _ in range(2):
        records.lock(tmp_path)  # the second time it is its own
    assert list(tmp_path.iterdir()) == []
    tmp_path.rmdir()
    with locked_elsewhere(tmp_path), pytest.raises(Problem, match=refused):
        records.lock(tmp_path)  # made anew


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(10**6))
    with open(tmp_path / "bomb.npz", "rb") as file:
        records.check_zip(file)
        with pytest.raises(zipfile.BadZipFile, match="far more"):
            records.check_zip(file, most_bytes=10**6)


class Evil:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (f"{self.folder}/evil",))


def test_a_checkpoint_never_runs_code(tmp_path):
    torch.save({"model": Evil(tmp_path)}, tmp_path / "checkpoint.pt")
    with pytest.raises(Problem, match="damaged, or not a file that this program wrote"):
        records.load_torch(tmp_path / "checkpoint.pt")
    np.savez(tmp_path / "arrays.npz", a=np.array([Evil(tmp_path)], dtype=object))
    with pytest.raises(Problem, match="damaged, or not a file that this program wrote"):
        records.load_arrays(tmp_path / "arrays.npz")
    assert not (tmp_path / "evil").exists()


LIMITED = """
import resource, signal, sys
from pathlib import Path
from experiment import records
from experiment.errors import exit_status
import torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
sys.exit(exit_status(lambda: records.save_torch(Path(sys.argv[1]), {"a": torch.zeros(9000)})))
"""


@pytest.mark.slow
def test_a_file_that_cannot_grow_leaves_the_earlier_one(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"earlier")
    command = [sys.executable, "-c", LIMITED, tmp_path / "model.pt"]
    # Its coverage could not be written either, and would be told of on stderr.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=records.ROOT, env=environment, timeout=120
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "model.pt could not be written: File too large" in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"model.pt": b"earlier"}


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOSPC, "Free some space"), (errno.EIO, "Choose another folder")],
)
def test_a_failed_write_leaves_the_earlier_file(saved, number, text):
    path, _, _ = saved
    before = path.read_bytes()
    with (
        pytest.raises(Problem, match=f"could not be written: {os.strerror(number)}.*{text}"),
        records.replacing(path) as temporary,
    ):
        temporary.write_bytes(b"half")
        raise OSError(number, os.strerror(number))
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def dead_process() -> int:
    """The number of a process that has just ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path):
    dead, alive = dead_process(), os.getppid()
    own = "arcface.tmp"
    left = [
        f".checkpoint.{dead}.{own}.pt",
        f".probe.{dead}.{own}",
        f".run.{os.getpid()}.{own}.json",
    ]
    kept = [f".checkpoint.{alive}.{own}.pt", "checkpoint.pt", f"x.{dead}.tmp", f".x.{dead}.png"]
    kept += [f".thesis.{dead}.tmp.docx", f".cache.{dead}.tmp"]  # of other programs
    for name in (*left, *kept):
        (tmp_path / name).write_text("x")
    records.check_writable(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@needs_git
def test_temporary_files_are_ignored_by_git(tmp_path):
    written = ("checkpoint.pt", "accuracy.png", "probe", "run.json")
    names = [str(records.temporary_path(tmp_path / "figures/mnist" / name)) for name in written]
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_bytes((records.ROOT / ".gitignore").read_bytes())
    command = ["git", "-C", tmp_path, "check-ignore", *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == names
