"""experiment/evaluation.py: logits, views and angles against NumPy and explicit loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from arcface_loss import ArcMarginProduct
from experiment import evaluation


class Small(nn.Module):
    """Images, N × 3 × 6 × 6, to embeddings, N × 8. BatchNorm tells the two modes apart."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.BatchNorm1d(8))
        self.layers[2].running_mean.normal_()

    def forward(self, x):
        return self.layers(x)


def images(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 6, 6, 3), dtype=torch.uint8)


@torch.no_grad()
def by_hand(network: Small, image: np.ndarray) -> torch.Tensor:
    """The embedding of one uint8 image, H × W × C, on its own."""
    x = torch.tensor(image.transpose(2, 0, 1)[None] / 255, dtype=torch.float32)
    return network.eval()(x)[0]


def test_embeddings_do_not_depend_on_the_batches_or_the_mode():
    torch.manual_seed(0)
    network, given = Small(), images(1003)  # one batch of 1000 images and one of 3
    found = evaluation.embed(network.train(), given, "float32")
    assert found.shape == (1003, 8) and found.dtype == torch.float32 and not found.requires_grad
    for i in (0, 999, 1000, 1002):
        assert torch.allclose(found[i], by_hand(network, given[i].numpy()), atol=1e-5)


def test_embeddings_in_bfloat16_are_returned_as_float32():
    torch.manual_seed(0)
    network, given = Small(), images(20)
    exact, rounded = (evaluation.embed(network, given, p) for p in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, atol=0.05)


def cosines_by_hand(network, head, image):
    embedding = by_hand(network, image)
    return (F.normalize(embedding, dim=0) @ F.normalize(head.weight).T).detach()


def test_tta_logits_are_the_weighted_sum_over_six_views():
    """Three moves, each with its mirror image, by an explicit loop over images and views."""
    torch.manual_seed(0)
    network, head, given = Small(), ArcMarginProduct(8, 10, s=6.0), images(5)
    views = [[0, 0.25], [1, 0.125], [-2, 0.125]]
    plain = torch.stack([6 * cosines_by_hand(network, head, image) for image in given.numpy()])
    found = evaluation.tta_logits(network, head, given, "float32", views, plain)
    for image, logits in zip(given.numpy(), found, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        expected = torch.zeros(10)
        for k, weight in views:
            moved = padded[2 - k : 8 - k, 2 - k : 8 - k]  # its pixels now k rows and columns later
            for view in (moved, moved[:, ::-1]):
                expected += weight * 6.0 * cosines_by_hand(network, head, view)
        assert torch.allclose(logits, expected, atol=1e-4)


def test_accuracy_counts():
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert evaluation.accuracy(logits, torch.tensor([1, 0, 0])) == 2 / 3


def test_the_objective_has_the_margin_and_the_accuracy_does_not():
    """With m = π/2 every target logit is so low that all answers with the margin are wrong."""
    torch.manual_seed(0)
    head, label = ArcMarginProduct(8, 4, s=5.0, m=math.pi / 2), torch.arange(20) % 4
    x = head.weight.detach()[label] * 3 + 0.05 * torch.randn(20, 8)
    loss, accuracy = evaluation.loss_and_accuracy(head, x, label)
    assert accuracy == 1
    cosines = (F.normalize(x) @ F.normalize(head.weight).T).detach().double()
    target = 5 * (cosines.gather(1, label[:, None]).arccos() + math.pi / 2).cos()
    logits = (5 * cosines).scatter(1, label[:, None], target)
    expected = (logits.exp().sum(dim=1).log() - target[:, 0]).mean().item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert (logits.argmax(dim=1) != label).all()


def test_the_objective_of_plain_softmax_is_its_cross_entropy():
    torch.manual_seed(0)
    head, x, label = nn.Linear(8, 4), torch.randn(20, 8), torch.arange(20) % 4
    loss, accuracy = evaluation.loss_and_accuracy(head, x, label)
    logits = (x @ head.weight.T + head.bias).detach()
    expected = -logits.softmax(dim=1).log().gather(1, label[:, None]).mean().item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert accuracy == (logits.argmax(dim=1) == label).double().mean().item()


def test_angles_do_not_depend_on_lengths():
    x, W = torch.tensor([[1e-30, 0.0], [0.0, 1e30]]), torch.tensor([[3.0, 0.0], [-1.0, 0.0]])
    found = evaluation.angles_to_centres(x, W)
    assert torch.allclose(found.rad2deg(), torch.tensor([[0.0, 180.0], [90.0, 90.0]]))


def test_angles_to_centres_equal_numpy():
    rng = np.random.default_rng(0)
    x, W = rng.normal(size=(30, 5)), rng.normal(size=(4, 5))
    found = evaluation.angles_to_centres(torch.tensor(x), torch.tensor(W)).numpy()
    for i, j in np.ndindex(30, 4):
        cosine = x[i] @ W[j] / (np.linalg.norm(x[i]) * np.linalg.norm(W[j]))
        assert found[i, j] == pytest.approx(np.arccos(cosine))


def test_own_and_other_equal_brute_force():
    rng = np.random.default_rng(0)
    theta, labels = rng.uniform(0, np.pi, (50, 6)), rng.integers(6, size=50)
    own, other = evaluation.own_and_other(torch.tensor(theta), torch.tensor(labels))
    for i, row in enumerate(theta):
        assert own[i] == row[labels[i]]
        assert other[i] == min(row[j] for j in range(6) if j != labels[i])


def numpy_statistics(W, x, y):
    """W-EC, W-Inter, Intra and Inter, in degrees, from their definitions in the paper."""

    def norm(v):
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    def degrees(a, b):
        return np.degrees(np.arccos(a @ b))

    def nearest(c):
        others = ([degrees(a, b) for k, b in enumerate(c) if k != j] for j, a in enumerate(c))
        return np.mean([min(angles) for angles in others])

    W, x = norm(W), norm(x)
    means = norm(np.stack([x[y == j].mean(axis=0) for j in range(len(W))]))
    w_ec = np.mean([degrees(W[j], means[j]) for j in range(len(W))])
    intra = np.mean([degrees(v, means[j]) for v, j in zip(x, y, strict=True)])
    return w_ec, nearest(W), intra, nearest(means)


def test_angle_statistics_equal_numpy():
    rng = np.random.default_rng(0)
    W, y = rng.normal(size=(5, 8)), np.arange(200) % 5
    train, test = (W[y] + rng.normal(size=(200, 8)) for _ in range(2))
    labelled = [(torch.tensor(x), torch.tensor(y)) for x in (train, test)]
    found = evaluation.angle_statistics(torch.tensor(W), *labelled)
    w_ec, w_inter, intra, inter = numpy_statistics(W, train, y)
    expected = {"w_ec": w_ec, "w_inter": w_inter, "intra_train": intra, "inter_train": inter}
    _, _, expected["intra_test"], expected["inter_test"] = numpy_statistics(W, test, y)
    assert found == pytest.approx(expected, rel=1e-6)


def test_centres_of_a_simplex_are_at_the_limit():
    """Ten vertices of a regular simplex are arccos(−1/9) = 96.38° apart."""
    simplex = torch.eye(10, dtype=torch.float64) - 0.1
    labels = torch.arange(10)
    found = evaluation.angle_statistics(simplex, (simplex, labels), (simplex, labels))
    assert found["w_inter"] == pytest.approx(96.38, abs=0.005)
    assert found["w_ec"] == pytest.approx(0, abs=1e-4)
