"""The angle statistics against plain NumPy, the intervals against a published table."""

import numpy as np
import pytest
import torch

from experiment.evaluation import angle_statistics, angles_to_centres
from experiment.records import interval


def numpy_statistics(W, x, y):
    """W-EC, W-Inter, Intra and Inter, in degrees, from their definitions."""

    def norm(v):
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    def nearest(c):
        return np.mean([min(np.degrees(np.arccos(c[j] @ c[k])) for k in range(len(c)) if k != j) for j in range(len(c))])

    W, x = norm(W), norm(x)
    means = norm(np.stack([x[y == j].mean(axis=0) for j in range(len(W))]))
    w_ec = np.mean([np.degrees(np.arccos(W[j] @ means[j])) for j in range(len(W))])
    intra = np.mean([np.degrees(np.arccos(v @ means[j])) for v, j in zip(x, y, strict=True)])
    return w_ec, nearest(W), intra, nearest(means)


def test_angle_statistics_equal_numpy():
    rng = np.random.default_rng(0)
    W, y = rng.normal(size=(5, 8)), np.arange(200) % 5
    train, test = (W[y] + rng.normal(size=(200, 8)) for _ in range(2))
    found = angle_statistics(
        *map(torch.tensor, (W,)), (torch.tensor(train), torch.tensor(y)), (torch.tensor(test), torch.tensor(y))
    )
    w_ec, w_inter, intra, inter = numpy_statistics(W, train, y)
    expected = {"w_ec": w_ec, "w_inter": w_inter, "intra_train": intra, "inter_train": inter}
    _, _, expected["intra_test"], expected["inter_test"] = numpy_statistics(W, test, y)
    assert found == pytest.approx(expected, rel=1e-6)


def test_centres_of_a_simplex_are_at_the_limit():
    simplex = torch.eye(10, dtype=torch.float64) - 0.1
    labels = torch.arange(10)
    found = angle_statistics(simplex, (simplex, labels), (simplex, labels))
    assert found["w_inter"] == pytest.approx(96.38, abs=0.005)
    assert found["w_ec"] == pytest.approx(0, abs=1e-4)


def test_angles_do_not_depend_on_lengths():
    found = angles_to_centres(torch.tensor([[1e-30, 0.0], [0.0, 1e30]]), torch.tensor([[3.0, 0.0], [-1.0, 0.0]]))
    assert torch.allclose(found.rad2deg(), torch.tensor([[0.0, 180.0], [90.0, 90.0]]))


def test_interval_uses_student_t():
    """Half-width 4.303·s/√3 for three values: t(0.975, 2 degrees of freedom) = 4.303 in any table."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5), abs=1e-3)
