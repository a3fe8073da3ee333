"""Functions of several tests."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiment.data import Data
from experiment.recipe import Recipe, Settings
from experiment.training import Trained

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


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
