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

from experiment.errors import Problem, out_of_memory, reason, unwritable

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 2**30  # that a file read here is decompressed to
TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.tmp(\..+)?")  # the number is that of the process


class Epoch(TypedDict):
    """One epoch in a record's history. Losses include the margin; the accuracies do not.

    The test figures are None where the test set was not evaluated.
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place once the block has written it without
    an error.

    Raises Problem where the file cannot be written (a full disk, no permission); ``path`` is then
    as it was.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
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


def check_writable(folder: Path, option: str = "--out") -> None:
    """Raise Problem unless files can be made in ``folder``; it is created if need be.

    What an earlier process that was killed left half-written in it is removed.

    Args:
        option: how the user named the folder.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise Problem(f"{option} {folder} is a file. Give a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        probe = folder / f".probe.{os.getpid()}.tmp"
        try:
            probe.write_bytes(b"\0" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise Problem(f"{option} {folder} cannot be written: {unwritable(error)}") from error


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
            raise Problem(f"{path} is not a file. Delete it. {remedy}")
        yield
    except Problem:
        raise
    except FileNotFoundError as error:
        raise Problem(f"{path} does not exist. {remedy}") from error
    except OSError as error:
        check = " Check its permissions." if isinstance(error, PermissionError) else ""
        raise Problem(f"{path} cannot be read: {reason(error)}.{check}") from error
    except Exception as error:  # a damaged file can make a reader raise almost anything
        if out_of_memory(error):
            raise Problem(f"{path} does not fit into memory.") from error
        raise Problem(
            f"{path} is damaged, or not a file that this program wrote. Delete it. {remedy}"
        ) from error


def save_json(path: Path, record: object) -> None:
    """Write a record, or a list of them, indented."""
    write(path, _encode(json.dumps(record, indent=1, ensure_ascii=False)))


def load_json(path: Path) -> Any:
    """Read what :func:`save_json` wrote. Raises Problem if it is missing or damaged."""
    with reading(path, "Run the command that writes it again."):
        return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to a JSON Lines file, which is made if need be."""
    before = path.read_bytes() if path.exists() else b""
    write(path, before + _encode(json.dumps(record, ensure_ascii=False)))


def load_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON Lines file. Raises Problem if it is missing or damaged."""
    with reading(path, "Run the command that writes it again."):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


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
    with reading(path, "Run the script again."), open(path, "rb") as file:
        check_zip(file)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)


def save_torch(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint or a model: tensors, numbers, strings, lists and dictionaries."""
    content = io.BytesIO()  # PyTorch's own writer does not tell a full disk from other errors
    torch.save(state, content)
    write(path, content.getbuffer())


def load_torch(path: Path, map_location: str | torch.device = "cpu") -> Any:
    """Read a checkpoint or a model, never running code from it.

    Raises Problem if it is missing, unreadable or damaged: the checksums in the file are compared.
    """
    with reading(path, "Then train again."), open(path, "rb") as file:
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
