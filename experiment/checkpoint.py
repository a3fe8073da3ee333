"""A checkpoint is checked before a run goes on from it: readable, of this run, and whole."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiment import records
from experiment.errors import Problem
from experiment.recipe import Recipe, Settings
from experiment.records import Epoch


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict:
    """What a checkpoint holds, of whatever settings. Raises Problem if it cannot be read."""
    state = records.load_torch(path, device, "Delete it to start again, or move it away.")
    kinds = {"settings": dict, "hyperparameters": dict, "history": list}
    for key, kind in kinds.items():
        if not isinstance(state, dict) or not isinstance(state.get(key), kind):
            raise Problem(f"{path} is not a checkpoint of this program. Delete it or move it away.")
    return state


def load_checkpoint(path: Path, settings: Settings, recipe: Recipe, device: torch.device) -> dict:
    """The state of an interrupted run. Raises Problem unless it was started with equal settings."""
    state = read_checkpoint(path, device)
    if changed := differing(state, settings, recipe):
        raise Problem(
            f"{path} is of another run: {changed}. Repeat its options (threads: OMP_NUM_THREADS), "
            "or delete it to start again."
        )
    return state


def differing(saved: dict, settings: Settings, recipe: Recipe) -> str:
    """What differs between a saved run and the one that is wanted, as text: its data set alone if
    that is another one. Empty if nothing differs.

    Args:
        saved: a checkpoint or a model, with its ``settings`` and ``hyperparameters``.
    """
    before = saved["settings"] | saved["hyperparameters"]
    wanted = asdict(settings) | recipe.hyperparameters
    if before.get("dataset") != settings.dataset:
        wanted = {"dataset": settings.dataset}
    return ", ".join(
        f"{key} {before.get(key)} (now {value})"
        for key, value in wanted.items()
        if type(before.get(key)) is not type(value) or before[key] != value
    )


def check_history(history: list, epochs: int) -> None:
    """Raise ValueError unless this is the history of between 1 and ``epochs`` epochs."""
    numbers = [entry["epoch"] for entry in history]
    values = [entry[key] for entry in history for key in Epoch.__annotations__]
    values = [value for value in values if value is not None]
    if numbers != [*range(1, len(history) + 1)] or not 1 <= len(history) <= epochs:
        raise ValueError(f"the history has {len(history)} epochs")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError("the history has entries that are not numbers")


def check_kind(name: str, saved: Any, own: Any) -> None:
    """Raise ValueError, which says where, unless ``saved`` can take the place of ``own``.

    Keys, types and shapes must be equal, and numbers finite, but for losses of images that were
    not seen yet, which are infinite. What an optimizer holds is checked when it is loaded.
    """
    if isinstance(own, dict) and isinstance(saved, dict):
        if saved.keys() != own.keys():
            raise ValueError(f"{name or 'the whole'} has the wrong keys")
        for key in saved.keys() - {"settings", "hyperparameters", "optimizers"}:
            check_kind(key, saved[key], own[key])
    elif type(saved) is not type(own):
        raise ValueError(f"{name} is of the wrong type")
    elif isinstance(own, Tensor):
        if saved.shape != own.shape or saved.dtype != own.dtype:
            raise ValueError(f"{name} has the wrong shape or type")
        finite = ~saved.isnan() if name == "last_loss" else saved.isfinite()
        if not finite.all():
            raise ValueError(f"{name} has entries that are not numbers")
    elif isinstance(own, float) and not 0 <= saved < math.inf:
        raise ValueError(f"{name} is not a finite number, 0 or more")


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load an optimizer's state. Raises ValueError if it is not of these weights and settings."""
    groups = optimizer.state_dict()["param_groups"], saved["param_groups"]
    one, other = ([group | {"lr": None} for group in found] for found in groups)
    if one != other:
        raise ValueError("an optimizer has other settings")
    optimizer.load_state_dict(saved)
    for group in optimizer.param_groups:
        for weight in group["params"]:
            moments = optimizer.state[weight].values()
            if group["momentum"] and not moments:
                raise ValueError("a momentum is missing")
            if not all(m.shape == weight.shape and m.isfinite().all() for m in moments):
                raise ValueError("a momentum has the wrong shape, or is not a number")
