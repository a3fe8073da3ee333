"""experiment/errors.py: how commands end. What a terminal can do is in test_terminal_output.py."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from experiment import errors
from experiment.errors import Finished, Problem, ReportedElsewhere, exit_status
from experiment.records import ROOT


def ending(work, capsys):
    """Exit status, stdout and stderr of a command that does this work."""
    status = exit_status(work)
    return status, *capsys.readouterr()


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "out", "err"),
    [
        (Problem("Bad\nvalue."), 1, "", "error: Bad value.\n"),
        (ReportedElsewhere("Rank 0 says it."), 1, "", ""),
        (Finished("Nothing to do."), 0, "Nothing to do.\n", ""),
        (
            KeyboardInterrupt(),
            130,
            "",
            "Interrupted. Nothing is half-written; start it again.\n",
        ),
        (
            PermissionError(13, "Permission denied", "x/y"),
            1,
            "",
            "error: x/y: Permission denied.\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "x"),
            1,
            "",
            "error: x: No space left on device. Free some space.\n",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_user_s_is_one_line(error, status, out, err, capsys):
    assert ending(raising(error), capsys) == (status, out, err)


def test_the_status_is_that_of_the_work(capsys):
    assert ending(lambda: None, capsys) == (0, "", "")
    assert ending(lambda: 3, capsys) == (3, "", "")


@pytest.mark.parametrize("error", [ZeroDivisionError("a defect"), RuntimeError("disk, or not?")])
def test_a_defect_of_the_program_is_not_hidden(error, capsys):
    with pytest.raises(type(error)):
        exit_status(raising(error))


@pytest.mark.parametrize(
    "work",
    [
        raising(MemoryError()),
        raising(OSError(errno.ENOMEM, "Cannot allocate memory")),
        raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")),
        lambda: torch.empty(2**46).fill_(0) and None,  # what PyTorch's CPU allocator raises itself
    ],
    ids=["Python", "system", "GPU", "CPU"],
)
def test_out_of_memory_says_what_to_lower(work, capsys):
    status, _, err = ending(work, capsys)
    assert status == 1 and err.count("\n") == 1 and err.startswith("error: Out of memory.")
    assert "--batch-size" in err and "--embedding-size" in err


def test_only_a_full_disk_is_called_full():
    full, denied = OSError(errno.ENOSPC, "No space left"), OSError(errno.EACCES, "Denied")
    assert "Free some space" in errors.unwritable(full)
    assert errors.unwritable(denied) == "Denied. Choose another folder."


INTERRUPTED = """
import os, signal, sys
from experiment import errors
os.kill(os.getpid(), {number})
import time; time.sleep(60)
"""


def test_ctrl_c_during_the_imports_is_one_line():
    program = INTERRUPTED.format(number=int(signal.SIGINT))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_other_errors_during_the_imports_keep_their_traceback():
    program = "from experiment import errors\nraise ValueError('a defect')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 1 and "Traceback" in done.stderr and "a defect" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "command"),
    [
        ("torch", ["arcface_mnist.py"]),
        ("numpy", ["arcface_cifar10.py"]),
        ("matplotlib", ["-m", "experiment.figures"]),
    ],
)
def test_a_missing_library_is_one_line(library, command, tmp_path):
    missing = f"raise ModuleNotFoundError('No module named {library}', name='{library}')"
    (tmp_path / f"{library}.py").write_text(missing)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=60,
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"error: {library} is not installed. ")
    assert "python -m pip install -r requirements.txt" in last
    assert "Traceback" not in done.stderr and not done.stdout
