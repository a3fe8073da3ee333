"""Errors that a user can fix, streams that never stop a run, and how every command ends."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

OWN = re.compile(r"(experiment|study|report|arcface_\w+)\b|$")  # modules of this project
DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class Problem(Exception):
    """An error that the user can fix. Its text, one line, names the problem and the remedy."""


class ReportedElsewhere(Problem):
    """A problem that another process of the same run reports."""


class Finished(Exception):
    """There is nothing left to do, as its text says, if any. A command ends with exit status 0."""


def exit_status(
    work: Callable[[], int | None],
    go_on: str = "Nothing is half-written; start it again.",
) -> int:
    """Call work(), the whole of a command. Every command of the project ends here.

    Returns:
        What work() returned, 0 for None. After one line on stderr: 1 for a Problem, for a file
        that cannot be read or written, a library that is missing and a lack of memory, 130 for
        Ctrl-C. argparse's own SystemExit passes. Any other exception is a defect of the program and
        passes too.

    Args:
        go_on: what the line after Ctrl-C adds, for the user to know how the work continues.
    """
    protect_streams()
    line, status = "", 1
    try:
        return work() or 0
    except ReportedElsewhere:
        pass
    except Problem as problem:
        line = f"error: {problem}"
    except Finished as finished:
        status = 0
        if str(finished):
            print(finished, flush=True)
    except KeyboardInterrupt:
        line, status = f"Interrupted. {go_on}", 130
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the line after the terminal's ^C
    except Exception as error:
        if not (text := describe(error)):
            raise
        line = f"error: {text}"
    if line:
        print(" ".join(line.split("\n")), file=sys.stderr)
    return status


def describe(error: Exception) -> str | None:
    """One line for an error of the machine: a file, a library that is missing, or a lack of memory.
    None for any other one."""
    if out_of_memory(error):
        remedy = "Lower --batch-size or --embedding-size, or close other programs."
        return f"Out of memory. {remedy}"
    if isinstance(error, OSError):
        named = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        remedy = ". Free some space" if error.errno in DISK_FULL else ""
        return f"{named}{reason(error)}{remedy}."
    if isinstance(error, ModuleNotFoundError) and not OWN.match(error.name or ""):
        remedy = "python -m pip install -r requirements.txt (for the study: study/requirements.txt)"
        return f"{error.name} is not installed. Install what is needed: {remedy}"
    return None


def reason(error: OSError) -> str:
    """What went wrong with a file, in the system's words, without a full stop."""
    return str(error.strerror or error or type(error).__name__).splitlines()[0]


def unwritable(error: OSError) -> str:
    """What went wrong with a file or folder to be written, and the remedy."""
    remedy = "Choose another folder."
    if isinstance(error, IsADirectoryError):
        remedy = "Move it away."
    if error.errno in DISK_FULL:
        remedy = "Free some space, or choose another folder."
    return f"{reason(error)}. {remedy}"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that Python, PyTorch or the system had no memory left."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError):  # torch.OutOfMemoryError too
        words = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")
        return any(word in str(error) for word in (*words, "ALLOC_FAILED"))
    return False


class Stream:
    """A text stream that never fails: what cannot be written is dropped.

    The reader of a pipe may go away (``| head -1``), a log's disk may be full. A training that has
    run for hours must not end for that.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written. Returns the length of the text."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Any:
        try:
            yield
        except BlockingIOError:
            pass  # a reader that is slow for the moment
        except (OSError, ValueError):  # ValueError: closed in the meantime
            with contextlib.suppress(OSError, ValueError, AttributeError):
                descriptor = self._stream.fileno()
                nowhere = os.open(os.devnull, os.O_WRONLY)  # takes what waits in Python's buffer
                os.dup2(nowhere, descriptor)
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def protect_streams() -> None:
    """Make stdout and stderr safe to print to, whatever they are.

    Characters that they cannot encode become question marks. A stream that is closed, full or
    broken takes what is printed and drops it.
    """
    with contextlib.suppress(OSError):  # no file of ours may get the number of a closed stream
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        if not isinstance(stream, Stream):
            setattr(sys, name, Stream(stream))


def _report(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """sys.excepthook: Ctrl-C while a command still imports its libraries, or one that is missing,
    ends in one line too."""
    line, status = "Interrupted.", 130
    if not issubclass(kind, KeyboardInterrupt):
        text = describe(error) if isinstance(error, ModuleNotFoundError) else None
        if text is None:
            return _other_errors(kind, error, where)
        line, status = f"error: {text}", 1
    protect_streams()
    print(line, file=sys.stderr)
    raise SystemExit(status)


_other_errors, sys.excepthook = sys.excepthook, _report
