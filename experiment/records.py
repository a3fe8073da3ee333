"""What a run leaves on disk: JSON records, arrays and checkpoints, each written whole or not at all."""

import json
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torchvision
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent


class Problem(Exception):
    """Something the user can mend. Its text, one line, names the problem and the remedy."""


def exit_status(work: Callable[[], int | None], go_on: str = "Nothing is half-written; start it again.") -> int:
    """Call work(). Returns its status, 0 for None; after a line on stderr 1 for a Problem, 130 for Ctrl-C.

    Args:
        go_on: what the line after Ctrl-C adds, for the user to know how the work continues.
    """
    try:
        return work() or 0
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nInterrupted. {go_on}", file=sys.stderr)
        return 130


@contextmanager
def replacing(path: Path):
    """A temporary path beside ``path`` that takes its place once the block has written it without an error.

    Raises Problem where the file cannot be written (a full disk, no permission); ``path`` is then as it was.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise Problem(
            f"{path} could not be written: {error.strerror or error}. Free some space or choose another --out."
        ) from error
    except RuntimeError as error:  # what torch.save raises when its writer fails
        raise Problem(f"{path} could not be written: {str(error).splitlines()[0]}. Is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise Problem unless files can be made in ``folder``; it is created if need be."""
    if folder.exists() and not folder.is_dir():
        raise Problem(f"--out {folder} is a file. Give a folder for the run's pictures and records.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}.tmp"
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise Problem(f"--out {folder} cannot be written: {error.strerror}. Choose another folder with --out.") from error


def save_json(path: Path, record: dict | list) -> None:
    """Write a record, indented, with one line for each entry of a list of plain records."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_json(path: Path) -> dict | list:
    """Read a record. Raises Problem if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problem(f"{path} cannot be read ({error}). Run the experiment that writes it again.") from error


def interval(values: list[float]) -> tuple[float, float]:
    """Mean of the values, and half the width of its 95% confidence interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return float(np.mean(values)), float(half)


def cell(values: list[float], digits: int) -> str:
    """A mean with its interval, to so many digits; a single value has none."""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def fill(text: str, name: str, content: str) -> str:
    """The text with ``content`` between its marks <!-- name --> and <!-- /name -->. Raises Problem without them."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in text or end not in text:
        raise Problem(f"The marks {start} and {end} are missing. Restore the file from git.")
    return f"{text.split(start)[0]}{start}\n{content}\n{end}{text.split(end)[1]}"


def fill_file(path: Path, tables: dict[str, str]) -> None:
    """Put each table between its marks in a Markdown file. Raises Problem, the file as it was, where that fails."""
    text = path.read_text(encoding="utf-8")
    for name, content in tables.items():
        text = fill(text, name, content)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write what the pictures need, compressed."""
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what :func:`save_arrays` wrote. Raises Problem if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise Problem(f"{path} cannot be read ({error}). Run the script again.") from error


def save_torch(path: Path, state: dict) -> None:
    """Write a checkpoint or a model: tensors, numbers, strings, lists and dictionaries."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_torch(path: Path, map_location: str | torch.device = "cpu") -> dict:
    """Read a checkpoint or a model; never runs code from it. Raises Problem if it is damaged or no such file."""
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged file can make the reader raise almost anything
        raise Problem(f"{path} is damaged, or not a file that this program wrote. Delete it and train again.") from error


def versions() -> dict[str, str | None]:
    """What it would take to repeat a run beside its settings: versions, machine, git commit where there is one."""
    try:
        git = subprocess.run(
            ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        git = None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "matplotlib": matplotlib.__version__,
        "git_commit": git,
    }


def device_name(device: torch.device) -> str:
    """The name of the device as a person would say it, with the number of threads on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU ({cpu_model()}), {torch.get_num_threads()} threads"
    return device.type


def cpu_model() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
