"""Functions of several tests."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiment.data import Data
from experiment.recipe import Recipe, Settings
from experiment.records import ROOT
from experiment.training import Trained

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
LOCKS = """
import sys, time
from pathlib import Path
from experiment import records
records.lock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


@contextmanager
def locked_elsewhere(folder: Path) -> Iterator[None]:
    """While the block runs, another process holds the lock of a folder."""
    command = [sys.executable, "-c", LOCKS, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout and other.stdout.readline() == b"locked\n"
        try:
            yield
        finally:
            other.kill()


def equal_weights(one: dict, other: dict) -> bool:
    """Whether two state dicts hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def settings(**changes) -> Settings:
    """The settings of a small training on the CPU."""
    values = {
        "dataset": "synthetic",
        "loss": "arcface",
        "scale": 8.0,
        "margin": 0.1,
        "embedding_size": 16,
        "epochs": 1,
        "batch_size": 60,
        "seed": 0,
        "device": "cpu",
        "precision": "float32",
        "threads": torch.get_num_threads(),
    }
    return Settings(**values | changes)


def tiny(script, name: str = "default", **changes) -> Recipe:
    """A recipe of a script with a network that trains in a second."""
    recipe = script.RECIPES[name]
    return replace(recipe, network=recipe.network | {"widths": [4, 4, 4]}, **changes)


def train(script, recipe: Recipe, data: Data, out: Path, **changes) -> Trained:
    """``script.train`` with the settings above, from the beginning."""
    return script.train(recipe, settings(**changes), data, out, resume=False)
