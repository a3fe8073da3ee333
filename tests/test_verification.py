"""Verification against closed forms and brute force."""

import numpy as np
import pytest
import torch
from scipy import stats

from experiment import records
from study import seen, tables, unseen
from study.verification import (
    FALSE_ACCEPT,
    all_pairs,
    correlation_table,
    correlations,
    draw_pairs,
    fold_accuracy,
    verification,
)


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


def made(loss, eer, intra, inter):
    """A record of a run with an equal error rate and angles."""
    angles = {"intra_test": intra, "inter_test": inter, "w_ec": 7.0 - intra}
    return {"loss": loss, "angles": angles, "verification": {"eer": eer}}


def test_correlations_are_those_of_ranks():
    """Spearman's 1 − 6·Σd²/(n³ − n), d the differences of the ranks, where none are equal."""
    eer, intra, inter = [0.1, 0.2, 0.3, 0.4, 0.5], [1, 2, 3, 5, 4], [9.0, 50.0, 20.0, 90.0, 60.0]
    runs = [made("arcface", *values) for values in zip(eer, intra, inter, strict=True)]
    found = correlations([runs, runs[:4]])
    rho = {name: [value for value, _ in pairs] for name, pairs in found.items()}
    assert rho["Intra"] == pytest.approx([1 - 6 * 2 / 120, 1])
    assert rho["W-EC"] == pytest.approx([6 * 2 / 120 - 1, -1])
    assert rho["Inter"] == pytest.approx([1 - 6 * 4 / 120, 1 - 6 * 2 / 60])
    # Inter/Intra: 9, 25, 6.7, 18, 15, whose ranks are 2, 5, 1, 4, 3.
    assert rho["Inter/Intra"] == pytest.approx([1 - 6 * 18 / 120, 1 - 6 * 10 / 60])
    assert found["Intra"][0][1] == pytest.approx(stats.spearmanr(eer, intra).pvalue)


def test_the_table_of_correlations_is_of_all_runs_and_of_those_without_softmax():
    heads = [made("arcface", k / 10, k + 1, (k * 7) % 5 + 10) for k in range(5)]
    plain = [made("softmax", 0.9 + k / 10, 0.9 - k / 10, (k * 7) % 5 + 10) for k in range(5)]
    head, _, line = correlation_table({"ten runs": heads + plain}).splitlines()
    assert head.split(" | ")[1:4] == ["runs", "Intra", "Inter"]
    cells = line.strip("| ").split(" | ")
    of_all = stats.spearmanr(range(10), [1, 2, 3, 4, 5, 0, -1, -2, -3, -4])
    assert cells[:2] == ["ten runs", "10"] and of_all.pvalue < 0.05
    assert cells[2] == f"**{of_all.statistic:.2f}**".replace("-", "−")
    assert cells[6] == "**1.00**" and cells[7] == "0.50"


def test_the_page_has_the_tables_of_the_correlations():
    folder = records.ROOT / "figures" / "study"
    text = (folder / "README.md").read_text(encoding="utf-8")
    for name, content in (unseen.tables(folder) | seen.tables(folder)).items():
        assert tables.fill(text, name, content) == text
