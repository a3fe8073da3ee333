"""Muon, in the precision of the network, against torch.optim.Muon and the singular values."""

import copy

import pytest
import torch
from torch import nn

from experiment import muon

SETTINGS = {"lr": 0.1, "momentum": 0.6, "weight_decay": 0.05, "ns_steps": 3}
SHAPES = [(32, 9), (16, 40), (24, 24), (1, 5)]  # high, wide, square


def after_steps(make, steps=4):
    """The matrices after some steps with random gradients and changing rates."""
    generator = torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = make(matrices)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()
    return [matrix.detach() for matrix in matrices], optimizer


def ours(precision):
    return lambda matrices: muon.Muon(matrices, precision=precision, **SETTINGS)


def test_in_bfloat16_it_makes_the_same_bits_as_torch():
    expected, _ = after_steps(lambda matrices: torch.optim.Muon(matrices, **SETTINGS))
    found, _ = after_steps(ours("bfloat16"))
    assert all(map(torch.equal, found, expected))


def test_in_float32_it_differs_from_torch_by_bfloat16_s_rounding():
    expected, _ = after_steps(lambda matrices: torch.optim.Muon(matrices, **SETTINGS))
    found, _ = after_steps(ours("float32"))
    exact, _ = after_steps(ours("float64"))
    for one, other, best in zip(found, expected, exact, strict=True):
        assert 1e-5 < (one - other).norm() / best.norm() < 0.01
        assert torch.allclose(one, best, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_singular_values_change_and_singular_vectors_stay(shape, steps):
    """Each step makes of a singular value v the value 3.4445·v − 4.775·v³ + 2.0315·v⁵."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    for _ in range(steps):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    found = muon.orthogonalised(matrix, steps)
    assert torch.allclose(found, left @ values.diag() @ right, atol=1e-12)
    assert torch.allclose(muon.orthogonalised(matrix.float(), steps).double(), found, atol=1e-5)


def test_a_gradient_of_zero_moves_nothing():
    matrix = nn.Parameter(torch.ones(2, 3))
    optimizer = muon.Muon([matrix], precision="float32", **(SETTINGS | {"weight_decay": 0}))
    matrix.grad = torch.zeros(2, 3)
    optimizer.step()
    assert torch.equal(matrix, torch.ones(2, 3))


def test_a_saved_state_goes_on():
    whole, _ = after_steps(ours("float32"))
    _, first = after_steps(ours("float32"))
    saved = copy.deepcopy(first.state_dict())
    matrices = [nn.Parameter(matrix.clone()) for matrix in whole]
    second = ours("float32")(matrices)
    second.load_state_dict(saved)
    for one, other in zip(first.param_groups[0]["params"], matrices, strict=True):
        one.grad = other.grad = torch.ones_like(one)
    first.step()
    second.step()
    assert all(map(torch.equal, first.param_groups[0]["params"], matrices))
