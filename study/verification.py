"""Verification: do two images show the same class, which training never saw?"""

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import roc_curve
from torch import Tensor, nn

from experiment.data import Data
from experiment.evaluation import angles_to_centres, embed
from study.selection import StudyRecord, angle_of, ratio
from study.tables import markdown

FALSE_ACCEPT = np.logspace(-4, 0, 81)  # the rates at which a ROC curve is kept
# As on LFW, http://vis-www.cs.umass.edu/lfw/: half of the pairs are of one class, in each fold.
PAIRS, FOLDS = 6000, 10
# Of the seen classes: what may go with the errors on unseen ones.
ANGLES: dict[str, Callable[[StudyRecord], float]] = {
    "Intra": angle_of("intra_test"),
    "Inter": angle_of("inter_test"),
    "Inter/Intra": ratio,
    "W-EC": angle_of("w_ec"),
}


def all_pairs(embeddings: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of all pairs of N embeddings (N × d): the angle in degrees, and whether the labels (N) are
    equal."""
    rows, columns = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
    theta = angles_to_centres(embeddings, embeddings)[rows, columns].rad2deg()
    return theta.cpu().numpy(), (labels[rows] == labels[columns]).cpu().numpy()


def pairs_of_test_images(
    network: nn.Module, data: Data, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`all_pairs` of the embeddings of the test images."""
    return all_pairs(embed(network, data.test_images, precision), data.test_labels)


def verification(theta: np.ndarray, same: np.ndarray) -> dict:
    """How well a threshold on the angle tells pairs of one class from pairs of two.

    Args:
        theta: angles of the pairs, P; any unit.
        same: whether a pair is of one class, bool, P; both kinds must occur.

    Returns:
        roc: the rate of true accepts at each of FALSE_ACCEPT.
        tar_1, tar_01: that rate at a false accept rate of 1% and of 0.1%.
        eer: the equal error rate, where false accepts are as frequent as false rejects.
    """
    false_accept, true_accept, _ = roc_curve(same, -theta)
    # False accepts minus false rejects: it rises from -1 to 1.
    excess = false_accept + true_accept - 1
    rates = np.concatenate([[0.01, 0.001], FALSE_ACCEPT])
    tar_1, tar_01, *roc = np.interp(rates, false_accept, true_accept).tolist()
    eer = float(np.interp(0, excess, false_accept))
    return {"eer": eer, "tar_1": tar_1, "tar_01": tar_01, "roc": roc}


def draw_pairs(same: np.ndarray, seed: int, pairs: int = PAIRS) -> np.ndarray:
    """Indices of so many different pairs, FOLDS × (pairs / FOLDS); half of each fold are of one
    class."""
    rng, half = np.random.default_rng(seed), pairs // FOLDS // 2
    kinds = [
        rng.choice(np.flatnonzero(same == kind), (FOLDS, half), replace=False)
        for kind in (True, False)
    ]
    return np.concatenate(kinds, axis=1)


def fold_accuracy(theta: np.ndarray, same: np.ndarray) -> float:
    """Verification accuracy as on LFW: each fold is judged by the threshold that is best on the
    other folds.

    Args:
        theta, same: angles of the pairs, and whether they are of one class, both folds × pairs.
    """
    right = []
    for fold in range(len(theta)):
        angle, truth = (np.delete(values, fold, axis=0).ravel() for values in (theta, same))
        order = np.argsort(angle)
        # Right answers, up to a constant, when the first 0, 1, 2 … pairs are accepted.
        accepted = np.concatenate([[0], np.cumsum(np.where(truth[order], 1, -1))])
        best = accepted.argmax()
        limits = np.concatenate([[-np.inf], angle[order], [np.inf]])
        threshold = (limits[best] + limits[best + 1]) / 2
        right.append(((theta[fold] <= threshold) == same[fold]).mean())
    return float(np.mean(right))


# --- do the angles of the seen classes tell the errors on unseen ones? ----------------------------


def correlations(groups: list[list[StudyRecord]]) -> dict[str, list[tuple[float, float]]]:
    """Spearman's ρ, and its p, of the equal error rate with each of ANGLES, by group of runs."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ANGLES}
    for runs in groups:
        errors = [run["verification"]["eer"] for run in runs]
        for name, key in ANGLES.items():
            found[name].append(tuple(stats.spearmanr(errors, [key(run) for run in runs])))
    return found


def without_softmax(runs: list[StudyRecord]) -> list[StudyRecord]:
    """The runs of heads on the sphere."""
    return [run for run in runs if run["loss"] != "softmax"]


def correlation_table(groups: dict[str, list[StudyRecord]]) -> str:
    """:func:`correlations` in Markdown, a line for each group: of all its runs, then of those
    without plain softmax. Bold: p < 0.05."""
    every = list(groups.values())
    columns = [
        *correlations(every).values(),
        *correlations(list(map(without_softmax, every))).values(),
    ]
    lines = []
    for name, runs, *cells in zip(groups, every, *columns, strict=True):
        texts = [f"**{rho:.2f}**" if p < 0.05 else f"{rho:.2f}" for rho, p in cells]
        lines.append([name, str(len(runs)), *(text.replace("-", "−") for text in texts)])
    head = ["ρ of EER with", "runs", *ANGLES, *(f"{name}, no softmax" for name in ANGLES)]
    return markdown(head, lines)
