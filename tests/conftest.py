"""What several tests share: the real data's folder, and a recipe small enough to train in a second."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import arcface_cifar10
import arcface_mnist
from experiment import data, figures, run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A torchvision root with both data sets; the test is skipped where there is none."""
    for folder in (os.environ.get("ARCFACE_DATA"), run.ROOT / "data"):
        if folder and (Path(folder) / "MNIST").is_dir():
            return Path(folder)
    pytest.skip("no real data: set ARCFACE_DATA to a torchvision root")


@pytest.fixture
def small(monkeypatch):
    """The synthetic stand-in with 600 training images, and no pictures: for tests of what happens around the training."""
    monkeypatch.setattr(figures, "draw_run", lambda folder: None)
    made = {name: data.synthetic(name, train=600, test=200) for name in ("MNIST", "CIFAR-10")}
    monkeypatch.setattr(data, "synthetic", lambda name: replace(made[name]))


@pytest.fixture(params=[arcface_mnist, arcface_cifar10], ids=["mnist", "cifar10"])
def script(request):
    """Each of the two scripts."""
    return request.param


def same(one: dict, other: dict) -> bool:
    """Whether two state dicts hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
