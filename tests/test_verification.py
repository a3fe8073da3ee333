"""Verification against closed forms and brute force."""

import numpy as np
import pytest
import torch
from scipy import stats

from study.verification import FALSE_ACCEPT, all_pairs, draw_pairs, fold_accuracy, verification


def test_verification_of_two_normal_distributions_is_the_closed_form():
    """Angles of mean 0 and 2 and deviation 1: EER Φ(−1), true accepts Φ(2 + Φ⁻¹(false accepts))."""
    rng, half = np.random.default_rng(0), 100_000
    theta = np.concatenate([rng.normal(0, 1, half), rng.normal(2, 1, half)])
    found = verification(theta, np.arange(2 * half) < half)
    assert found["eer"] == pytest.approx(stats.norm.cdf(-1), abs=4e-3)
    for key, rate in (("tar_1", 0.01), ("tar_01", 0.001)):
        expected = stats.norm.cdf(2 + stats.norm.ppf(rate))
        assert found[key] == pytest.approx(expected, abs=0.02)
    middle = slice(20, -1)  # below, too few pairs are accepted
    expected = stats.norm.cdf(2 + stats.norm.ppf(FALSE_ACCEPT[middle]))
    assert found["roc"][middle] == pytest.approx(expected, abs=0.02)
    assert found["roc"][-1] == 1 and np.all(np.diff(found["roc"]) >= 0)


def test_fold_accuracy_equals_a_search_over_all_thresholds():
    rng = np.random.default_rng(1)
    same = np.tile(np.arange(20) < 10, (5, 1))
    theta = rng.normal(np.where(same, 40, 55), 10)
    expected = []
    for fold in range(5):
        others = [k for k in range(5) if k != fold]
        cuts = np.sort(theta[others].ravel())
        cuts = np.concatenate([[-1e9], (cuts[:-1] + cuts[1:]) / 2, [1e9]])
        best = max(cuts, key=lambda cut: ((theta[others] <= cut) == same[others]).mean())
        expected.append(((theta[fold] <= best) == same[fold]).mean())
    assert fold_accuracy(theta, same) == pytest.approx(np.mean(expected))


def test_all_pairs_are_those_of_two_loops():
    embeddings, labels = torch.randn(30, 5), torch.arange(30) % 3
    theta, same = all_pairs(embeddings, labels)
    pairs = [(i, j) for i in range(30) for j in range(i + 1, 30)]
    first, second = (embeddings[list(index)] for index in zip(*pairs, strict=True))
    cosine = torch.nn.functional.cosine_similarity(first, second)
    assert theta == pytest.approx(cosine.arccos().rad2deg().numpy(), abs=0.01)
    assert same.tolist() == [bool(labels[i] == labels[j]) for i, j in pairs]


def test_half_of_the_drawn_pairs_of_each_fold_are_of_one_class():
    same = np.arange(435) % 3 == 0
    for seed in range(20):
        drawn = draw_pairs(same, seed, pairs=100)
        assert drawn.shape == (10, 10) and len(np.unique(drawn)) == 100
        assert np.all(same[drawn].sum(axis=1) == 5)
    assert np.array_equal(drawn, draw_pairs(same, seed, pairs=100))
    assert not np.array_equal(drawn, draw_pairs(same, seed + 1, pairs=100))
