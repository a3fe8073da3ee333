"""The machine that a run has: device, precision, memory allocation, processes, versions."""

import ctypes
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from experiment.errors import Finished, Problem, ReportedElsewhere
from experiment.records import ROOT

JOIN_TIMEOUT = timedelta(minutes=30)  # for the other processes; rank 0 may be downloading
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun

Value = TypeVar("Value")


def join_processes(gpu: bool) -> None:
    """Under torchrun, join the other processes; nothing without it.

    Raises Problem if only a part of torchrun's environment is there, or if the processes cannot
    reach each other.

    Args:
        gpu: whether their tensors will be on GPUs.
    """
    if not os.environ.get("RANK") or dist.is_initialized():
        return
    remedy = "Start with torchrun, or unset RANK to train in one process."
    if missing := [name for name in LAUNCHER if not os.environ.get(name)]:
        raise Problem(f"RANK is set in the environment, but not {', '.join(missing)}. {remedy}")
    for name in LAUNCHER:
        if name != "MASTER_ADDR" and not os.environ[name].isdecimal():
            raise Problem(f"{name} is {os.environ[name]!r} in the environment. {remedy}")
    if int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]):
        raise Problem(f"RANK is not below WORLD_SIZE in the environment. {remedy}")
    try:
        dist.init_process_group("nccl" if gpu else "gloo", timeout=JOIN_TIMEOUT)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise Problem(f"The processes could not be joined ({text}). {remedy}") from error


def first_on_rank_0(work: Callable[[], Value]) -> Value:
    """work() on every process, but on rank 0 before the others. What it raises there, which only
    rank 0 reports, ends all of them."""
    if rank_and_processes()[0] > 0:
        if ended := from_rank_0(None):
            raise ended
        return work()
    try:
        value = work()
    except Exception as error:
        from_rank_0(Finished() if isinstance(error, Finished) else ReportedElsewhere())
        raise
    from_rank_0(None)
    return value


def from_rank_0(value: Any) -> Any:
    """Rank 0's value, on every process."""
    if rank_and_processes()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def choose_device(wanted: str) -> torch.device:
    """cuda, mps or cpu, or with "auto" the first available one; under torchrun the rank's own GPU.

    Raises Problem if the device asked for is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    name = next(n for n, there in available.items() if there) if wanted == "auto" else wanted
    if not available[name]:
        raise Problem(f"--device {name} is not available on this machine. Choose auto or cpu.")
    if name != "cuda":
        return torch.device(name)
    rank, count = 0, torch.cuda.device_count()
    if dist.is_initialized():
        rank = int(os.environ["LOCAL_RANK"])
    if rank >= count:
        raise Problem(f"There are {count} GPUs. Start as many processes, or use --device cpu.")
    return torch.device(name, rank)


def choose_precision(wanted: str, device: torch.device) -> str:
    """With "auto", bfloat16 on GPUs and CPUs that are faster with it (AMX, AVX512-BF16)."""
    if wanted != "auto":
        return wanted
    fast = False
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which the network runs: bfloat16 arithmetic, or plain float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def keep_malloc_arenas() -> None:
    """Let glibc's malloc keep freed memory for the next step instead of returning it to the system.

    A step frees and allocates some hundred megabytes; to have them mapped and zeroed anew costs up
    to a quarter of its time on a CPU. On anything but Linux with glibc nothing happens. See
    mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max, arena_max = -1, -4, -8
        for parameter, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1)):
            ctypes.CDLL(None).mallopt(parameter, value)


def rank_and_processes() -> tuple[int, int]:
    """This process's rank and the number of processes: 0 and 1 unless torchrun started it."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def versions() -> dict[str, str | None]:
    """Versions of Python and of the libraries, and the git commit where there is one."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version_of(name) for name in ("torchvision", "numpy", "matplotlib")},
        "git_commit": git_commit(ROOT),
    }


def version_of(package: str) -> str | None:
    """The version of an installed package, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit(folder: Path) -> str | None:
    """The commit of the git repository whose top is ``folder``; None if there is no such one.

    A repository around it is not meant: its commits say nothing of this program.
    """
    command = ["git", "-C", str(folder), "rev-parse", "--show-toplevel", "HEAD"]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=10, env=plain)
        top, commit = os.fsdecode(done.stdout).splitlines()
        return commit if os.path.samefile(top, folder) else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


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
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(li.split(":", 1)[1].strip() for li in lines if li.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
