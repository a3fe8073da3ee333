"""Fixtures of several tests: the real data's folder, each of the scripts, small synthetic data."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

# One thread in each process: the tests' tensors are small, and threads that wait for each other
# beside other work took up to ten times as long. OpenMP reads it when it is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import arcface_cifar10
import arcface_mnist
from experiment import figures, records, synthetic


@pytest.fixture(autouse=True)
def seed():
    """Every test begins with the same random numbers, alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A torchvision root with both data sets; the test is skipped where there is none."""
    for folder in (os.environ.get("ARCFACE_DATA"), records.ROOT / "data"):
        if folder and (Path(folder) / "MNIST").is_dir():
            return Path(folder)
    pytest.skip("no real data: set ARCFACE_DATA to a torchvision root")


@pytest.fixture(scope="session")
def small_data():
    """The synthetic stand-ins, by data set, with 600 training and 200 test images."""
    return {name: synthetic.make(name, train=600, test=200) for name in ("MNIST", "CIFAR-10")}


@pytest.fixture
def small(small_data, monkeypatch):
    """Makes ``main()`` train on ``small_data`` and draw nothing: for tests of what surrounds it."""
    monkeypatch.setattr(figures, "draw_run", lambda folder: None)
    monkeypatch.setattr(synthetic, "make", lambda name: replace(small_data[name]))


@pytest.fixture(params=[arcface_mnist, arcface_cifar10], ids=["mnist", "cifar10"])
def script(request):
    """Each of the two scripts."""
    return request.param
