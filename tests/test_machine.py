"""experiment/machine.py: device, precision, git commit, and the environment that torchrun sets."""

import os
import re
import subprocess
import sys

import pytest
import torch

from experiment import cli, machine
from experiment.errors import Problem
from experiment.records import ROOT
from tests.helpers import needs_git

TORCHRUN = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def environment(monkeypatch):
    """Sets what torchrun would have set, and nothing else of it."""

    def put(values):
        for name in (*TORCHRUN, "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A git repository with one commit, and a folder in it."""
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "first")
    (tmp_path / "inner").mkdir()
    return tmp_path


@needs_git
def test_the_commit_is_that_of_the_folder_s_own_repository(repository):
    assert machine.git_commit(repository) == git(repository, "rev-parse", "HEAD")


@needs_git
def test_the_commit_of_a_repository_around_the_folder_is_not_taken(repository):
    assert machine.git_commit(repository / "inner") is None


@needs_git
def test_git_s_environment_does_not_name_another_repository(repository, tmp_path, monkeypatch):
    other = tmp_path / "inner"
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert machine.git_commit(other) is None


@needs_git
def test_without_git_or_commits_there_is_no_commit(tmp_path, monkeypatch):
    assert machine.git_commit(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert machine.git_commit(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.git_commit(ROOT) is None


def test_versions_name_what_is_installed():
    versions = machine.versions()
    assert versions["torch"] == torch.__version__
    assert all(re.match(r"\d+\.\d+", versions[name]) for name in ("python", "numpy", "matplotlib"))
    assert machine.version_of("no-such-package") is None


def test_a_device_that_is_not_there_is_named():
    assert machine.choose_device("cpu") == torch.device("cpu")
    if not torch.backends.mps.is_available():
        with pytest.raises(Problem, match="--device mps is not available"):
            machine.choose_device("mps")


def test_precision_is_as_wanted_or_what_the_machine_is_good_at():
    cpu = torch.device("cpu")
    assert machine.choose_precision("float32", cpu) == "float32"
    assert machine.choose_precision("bfloat16", cpu) == "bfloat16"
    flags = set()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    fast = bool(flags & {"avx512_bf16", "amx_tile"})
    if flags:
        assert machine.choose_precision("auto", cpu) == ("bfloat16" if fast else "float32")


@pytest.mark.parametrize("missing", [["WORLD_SIZE"], ["MASTER_ADDR", "MASTER_PORT"]])
def test_half_of_torchrun_s_environment_is_refused(environment, missing):
    environment({name: value for name, value in TORCHRUN.items() if name not in missing})
    with pytest.raises(Problem, match=f"RANK is set.*but not {', '.join(missing)}.*unset RANK"):
        machine.join_processes(gpu=False)


@pytest.mark.parametrize(
    "wrong", [{"WORLD_SIZE": "two"}, {"RANK": "-1"}, {"RANK": "1"}, {"MASTER_PORT": "70000"}]
)
def test_values_that_torchrun_would_not_set_are_refused(environment, wrong):
    environment(TORCHRUN | wrong)
    with pytest.raises(Problem, match="torchrun"):
        machine.join_processes(gpu=False)


def test_without_torchrun_a_process_is_alone(environment):
    environment({})
    machine.join_processes(gpu=False)
    assert machine.rank_and_processes() == (0, 1)
    assert machine.first_on_rank_0(lambda: "value") == machine.from_rank_0("value") == "value"


@pytest.mark.parametrize(
    ("world", "local", "expected"),
    [
        (None, None, "python "),
        ("2", "2", "torchrun --nproc-per-node=2 "),
        ("8", "4", "torchrun --nnodes=2 --nproc-per-node=4 "),
    ],
)
def test_the_command_of_a_record_names_torchrun(environment, world, local, expected, script):
    given = {"RANK": "0", "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": local} if world else {}
    environment(given)
    options = cli.parse(script.RECIPES, script.__doc__, ["--resume", "--out=a b", "--seed", "3"])
    assert options.command == f"{expected}{script.__name__}.py '--out=a b' --seed 3"


RANKS = """
import os, time
from experiment import machine
from experiment.errors import ReportedElsewhere, Problem
machine.join_processes(gpu=False)
rank, world = machine.rank_and_processes()
assert world == 2

def work():
    if rank == 0:
        time.sleep(1)
        open("first", "x").close()
    assert os.path.exists("first")
    return rank

def fail():
    assert rank == 0
    raise Problem("no data")

assert machine.first_on_rank_0(work) == rank
assert machine.from_rank_0(f"value of {rank}") == "value of 0"
try:
    machine.first_on_rank_0(fail)
except Problem as problem:
    assert isinstance(problem, ReportedElsewhere) == (rank == 1)
else:
    raise AssertionError("no problem")
machine.dist.barrier()
machine.dist.destroy_process_group()
"""


@pytest.mark.slow
def test_rank_0_goes_first_and_its_problem_ends_all(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", "ranks.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
