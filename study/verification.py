"""Verification: do two images show the same class, which training never saw?"""

import numpy as np
import torch
from sklearn.metrics import roc_curve
from torch import Tensor, nn

from experiment.data import Data
from experiment.evaluation import angles_to_centres, embed

FALSE_ACCEPT = np.logspace(-4, 0, 81)  # the rates at which a ROC curve is kept
# As on LFW, http://vis-www.cs.umass.edu/lfw/: half of the pairs are of one class, in each fold.
PAIRS, FOLDS = 6000, 10


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
