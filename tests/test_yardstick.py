"""study/yardstick.py: the published trainings that the default recipes are timed against."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from study import yardstick


def test_the_cifar_10_network_is_of_the_published_size():
    """118 million multiply-adds for an image, and 200 steps are eight epochs."""
    network = yardstick.cifar10_network()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() / 2 == pytest.approx(118e6, rel=0.01)
    assert yardstick.YARDSTICKS["cifar10"].steps * 2000 == 8 * 50_000


def test_the_mnist_network_is_that_of_the_example():
    """1,199,882 parameters, and its batches of 64 are 938 in an epoch."""
    network = yardstick.mnist_network()
    assert sum(p.numel() for p in network.parameters()) == 1_199_882
    assert yardstick.YARDSTICKS["mnist"].steps == 14 * -(-60_000 // 64)


@pytest.mark.slow
def test_a_step_trains_every_weight(monkeypatch):
    made = []
    for name in ("cifar10_network", "mnist_network"):
        make = getattr(yardstick, name)
        monkeypatch.setattr(yardstick, name, lambda make=make: made.append(make()) or made[-1])
    for name, entry in yardstick.YARDSTICKS.items():
        step = entry.make_step("float32")
        before = [p.detach().clone() for p in made[-1].parameters() if p.requires_grad]
        step()
        after = [p for p in made[-1].parameters() if p.requires_grad]
        assert not any(map(torch.equal, before, after)), name


def test_a_whole_training_is_the_median_step_times_their_number(monkeypatch):
    """The first two steps allocate, and are left out."""
    taken = iter([100, 100, 3, 5, 4])
    now = [0.0]
    made = []

    def step():
        now[0] += next(taken)

    monkeypatch.setattr(yardstick.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(yardstick.machine, "keep_malloc_arenas", lambda: None)
    entry = yardstick.YARDSTICKS["cifar10"]
    changed = {"cifar10": replace(entry, timed=3, make_step=lambda p: made.append(p) or step)}
    monkeypatch.setattr(yardstick, "YARDSTICKS", changed)
    assert yardstick.yardstick_seconds("cifar10", "float32") == 200 * 4
    assert made == ["float32"]


def test_the_published_muon_computes_in_the_precision_asked_for(monkeypatch):
    made, muon = [], yardstick.Muon
    monkeypatch.setattr(yardstick, "Muon", lambda *a, **b: made.append(muon(*a, **b)) or made[-1])
    dtypes = [torch.float32, torch.bfloat16]
    for dtype in dtypes:
        yardstick.cifar10_step(str(dtype).removeprefix("torch."))
    assert [optimizer.dtype for optimizer in made] == dtypes
