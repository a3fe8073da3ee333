"""JSON records, arrays and checkpoints, each written whole or not at all."""

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np
import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from experiment.errors import Problem, out_of_memory, reason, unwritable

ROOT = Path(__file__).resolve().parent.parent
AGAIN = "Restore it, or run the command that writes it again."
# What reading a value raises where a file holds something else than it should.
UNLIKE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
MOST_BYTES = 2**30  # of memory that a file may decompress to
TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.arcface\.tmp(\..+)?")  # the number is of the process
_locked: list[int] = []  # descriptors of the folders that this process trains into


class Epoch(TypedDict):
    """One epoch in a record's history. Losses include the margin; the accuracies do not.

    test_loss and test_accuracy are None where the test set was not evaluated.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    seconds: float


class Record(TypedDict):
    """What ``run.json`` holds; a record in ``seeds.json`` or ``gpu.json`` lacks the history.

    Accuracies are fractions, angles degrees. scale and margin are None where the loss has none.
    What concerns label errors is as in experiment/label_errors.py.
    """

    dataset: str
    recipe: str
    loss: str
    scale: float | None
    margin: float | None
    embedding_size: int
    epochs: int
    batch_size: int
    seed: int
    device: str
    precision: str
    processes: int
    threads: int
    stop_if_diverged: bool
    hyperparameters: dict[str, Any]
    parameters: int
    train_seconds: float
    total_seconds: float
    test_accuracy: float
    test_accuracy_tta: float | None
    mistakes_on_label_errors: int | None
    test_accuracy_corrected: float | None
    class_accuracy: dict[str, float]
    history: list[Epoch]
    angles: dict[str, float]
    device_name: str
    versions: dict[str, str | None]
    command: str
    data_md5: dict[str, str]


def temporary_path(path: Path) -> Path:
    """Where a file or folder is made before it takes its place: beside it."""
    return path.with_name(f".{path.stem}.{os.getpid()}.arcface.tmp{path.suffix}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place once the block has written it without
    an error.

    Raises Problem where the file cannot be written (a full disk, no permission); ``path`` is then
    as it was.
    """
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise Problem(f"{path} could not be written: {unwritable(error)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file, whole or not at all. Raises Problem where that is impossible."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def check_writable(folder: Path) -> None:
    """Raise Problem unless files can be made in ``folder``; it is created if need be.

    What an earlier process that was killed left half-written in it is removed.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise Problem(f"--out {folder} is a file. Give a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        probe = temporary_path(folder / "probe")
        try:
            probe.write_bytes(b"\0" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise Problem(f"--out {folder} cannot be written: {unwritable(error)}") from error


def lock(folder: Path) -> None:
    """Keep other processes from training into ``folder`` until this one ends.

    Nothing happens where the system has no such locks: Windows, some network drives. Raises Problem
    if another process trains into it.
    """
    if fcntl is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = os.stat(folder)
        if any(os.path.samestat(wanted, os.fstat(descriptor)) for descriptor in _locked):
            return
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _locked.append(descriptor)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            what = f"Another process is training into {folder}"
            raise Problem(f"{what}. Wait for its end, or choose another folder.") from error


def remove_leftovers(folder: Path, stem: str = "") -> None:
    """Remove the temporary files in ``folder`` whose processes are gone, as far as it can be done.

    Args:
        stem: of the files and folders meant; those of all files if empty.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            match = TEMPORARY.fullmatch(path.name)
            if match and stem in ("", match[1]) and gone(int(match[2])):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def gone(process: int) -> bool:
    """Whether a process, by its number, has ended. Never on Windows, where asking would end it."""
    if process == os.getpid():
        return True  # of an earlier process with the number that this one has now
    if os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn what can go wrong while ``path`` is read into a Problem that says which of it did.

    Args:
        remedy: what to do about a file that is missing or damaged.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise Problem(f"{path} is not a file. {remedy}")
        yield
    except Problem:
        raise
    except FileNotFoundError as error:
        raise Problem(f"{path} does not exist. {remedy}") from error
    except Exception as error:  # a damaged file can make a reader raise almost anything
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not a reader's
            check = " Check its permissions." if isinstance(error, PermissionError) else ""
            raise Problem(f"{path} cannot be read: {reason(error)}.{check}") from error
        if out_of_memory(error):
            raise Problem(f"{path} does not fit into memory.") from error
        what = "is damaged, or not a file that this program wrote"
        raise Problem(f"{path} {what}. {remedy}") from error


@contextmanager
def showing(where: Path) -> Iterator[None]:
    """Turn what goes wrong because records are not as expected into a Problem.

    Args:
        where: the folder, or the file, of the records that are drawn or tabulated.
    """
    try:
        yield
    except UNLIKE as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        lack = f"A record in {where} does not hold what is shown of it ({what})"
        raise Problem(f"{lack}. {AGAIN}") from error


def save_json(path: Path, record: object) -> None:
    """Write a record, or a list of them, indented."""
    write(path, _encode(json.dumps(record, indent=1, ensure_ascii=False)))


def load_json(path: Path, remedy: str = AGAIN) -> Any:
    """Read what :func:`save_json` wrote. Raises Problem, with the remedy, where it cannot."""
    with reading(path, remedy):
        return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to a JSON Lines file, which is made if need be."""
    before = path.read_bytes() if path.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    write(path, before + _encode(json.dumps(record, ensure_ascii=False)))


def load_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON Lines file.

    Raises Problem if it is missing, or a line of it is damaged or has the name of another one.
    """
    found: list[dict[str, Any]] = []
    with reading(path, AGAIN):
        lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        what = "" if isinstance(record, dict) else "is not a record"
        if not what and "name" in record and record["name"] in [old.get("name") for old in found]:
            what = f"is a second record of {record['name']}"
        if what:
            raise Problem(f"Line {number} of {path} {what}. Remove it, or restore the file.")
        found.append(record)
    return found


def _encode(text: str) -> bytes:
    """JSON as UTF-8. Bytes of a file's name that are not UTF-8 become JSON's own escapes."""
    return f"{text}\n".encode("utf-8", "backslashreplace")


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write what the pictures need, compressed."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write(path, content.getbuffer())


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what :func:`save_arrays` wrote. Raises Problem if it is missing or damaged."""
    with reading(path, AGAIN), open(path, "rb") as file:
        check_zip(file)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)


def load_run(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a run left in its folder for its pictures.

    Raises Problem if it is missing or damaged, or if the test accuracies in both files differ, as
    those of two runs do.
    """
    record, arrays = load_json(folder / "run.json"), load_arrays(folder / "arrays.npz")
    with showing(folder):
        right = (arrays["predicted"] == arrays["labels"]).mean()
        if abs(right - record["test_accuracy"]) > 1e-6:
            what = f"{folder}/run.json and arrays.npz are not of the same run"
            raise Problem(f"{what}. Restore them, or run the script again.")
    return record, arrays


def save_torch(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint or a model: tensors, numbers, strings, lists and dictionaries."""
    content = io.BytesIO()  # PyTorch's own writer does not tell a full disk from other errors
    torch.save(state, content)
    write(path, content.getbuffer())


def load_torch(
    path: Path, map_location: str | torch.device = "cpu", remedy: str = "Train again."
) -> Any:
    """Read a checkpoint or a model, never running code from it.

    Raises Problem, with the remedy, if it is missing, unreadable or damaged: the checksums in the
    file are compared.
    """
    with reading(path, remedy), open(path, "rb") as file:
        check_zip(file)
        return torch.load(file, map_location=map_location, weights_only=True)


def check_zip(file: IO[bytes], most_bytes: int = MOST_BYTES) -> None:
    """Compare all that a zip file holds with its checksums. Raises BadZipFile, among others.

    PyTorch does not do that, and NumPy does not for all of an array. What would take more than
    ``most_bytes`` in memory, and more than the file itself, is refused too.
    """
    with zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > max(most_bytes, os.fstat(file.fileno()).st_size):
            raise zipfile.BadZipFile("far more than any file of ours holds")
        if (entry := archive.testzip()) is not None:
            raise zipfile.BadZipFile(entry)
    file.seek(0)
