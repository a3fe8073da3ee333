"""The yardsticks of the default recipes' speed: steps of published recipes, written anew.

CIFAR-10: a training of the class of airbench94 with Muon, https://arxiv.org/abs/2404.00498 and
https://github.com/KellerJordan/cifar10-airbench, which reaches 94% with 200 steps of 2,000 images
of 32 px. MNIST: PyTorch's example, https://github.com/pytorch/examples/tree/main/mnist: 14 epochs
of 938 steps. Accuracy is not measured here, only what a step of such a network costs.
study/seeds.py times them before and after each training of our own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

import arcface_cifar10
import arcface_mnist
from experiment import machine
from experiment.augment import shift_and_flip, to_float
from experiment.layers import Conv
from experiment.muon import Muon

SKIPPED = 2  # steps before those that are measured: they allocate


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """A published training, and our own of the same data set.

    images: how many training images there are.
    steps: how many the published training makes. timed: how many of them are measured at a time.
    make_step: takes a precision, and returns a function that makes one step on random images.
    """

    name: str
    script: ModuleType
    images: int
    steps: int
    timed: int
    make_step: Callable[[str], Callable[[], None]]


def cifar10_network() -> arcface_cifar10.Network:
    """Whitening, three blocks of two convolutions, a linear layer to the ten classes."""
    return arcface_cifar10.Network(10, [64, 256, 256], residual=False, bn_momentum=0.4)


def cifar10_step(precision: str) -> Callable[[], None]:
    """A step of 2,000 images, with Muon and SGD.

    Args:
        precision: of the network, as in the scripts' --precision.
    """
    torch.manual_seed(0)
    network = cifar10_network()
    pixels = torch.randint(256, (2000, 32, 32, 3), dtype=torch.uint8)
    label, flip = torch.randint(10, (2000,)), torch.rand(2000) < 0.5
    network.set_whitening(pixels)
    network.to(memory_format=torch.channels_last).train()
    convolutions = [module for module in network.modules() if isinstance(module, Conv)]
    filters = [conv.weight for conv in convolutions]
    others = [p for p in network.parameters() if p.requires_grad and p not in set(filters)]
    precision = machine.choose_precision(precision, torch.device("cpu"))
    optimizers: list[torch.optim.Optimizer] = [
        Muon(filters, 0.24, momentum=0.6, weight_decay=0, ns_steps=3, precision=precision),
        torch.optim.SGD(others, lr=0.1, momentum=0.85, nesterov=True),
    ]
    noise = torch.Generator().manual_seed(0)

    def step() -> None:
        x = to_float(shift_and_flip(pixels, 2, flip, noise))
        with machine.autocast(torch.device("cpu"), precision):
            logits = network(x)
        F.cross_entropy(logits.float(), label, label_smoothing=0.2).backward()
        for conv in convolutions:
            conv.renormalise()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def mnist_network() -> nn.Module:
    """Two convolutions and two linear layers, with dropout."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten()),
        *(nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
    )


def mnist_step(_precision: str) -> Callable[[], None]:
    """A step of 64 images, with Adadelta, always in float32."""
    torch.manual_seed(0)
    network = mnist_network()
    x, label = torch.rand(64, 1, 28, 28), torch.randint(10, (64,))
    optimizer = torch.optim.Adadelta(network.parameters(), lr=1.0)

    def step() -> None:
        F.cross_entropy(network(x), label).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


YARDSTICKS = {
    "mnist": Yardstick(
        name="PyTorch's example",
        script=arcface_mnist,
        images=60_000,
        steps=14 * 938,
        timed=300,
        make_step=mnist_step,
    ),
    "cifar10": Yardstick(
        name="airbench94 with Muon",
        script=arcface_cifar10,
        images=50_000,
        steps=200,
        timed=6,
        make_step=cifar10_step,
    ),
}


def yardstick_seconds(name: str, precision: str) -> float:
    """Seconds of a whole published training: the median of some steps, times the number of all."""
    machine.keep_malloc_arenas()
    step = YARDSTICKS[name].make_step(precision)
    seconds = []
    for _ in range(SKIPPED + YARDSTICKS[name].timed):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return YARDSTICKS[name].steps * median(seconds[SKIPPED:])
