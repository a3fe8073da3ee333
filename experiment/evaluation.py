"""What a trained network is worth: accuracy, the angles of the paper's Table 3, verification of pairs."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_curve
from torch import Tensor, nn

from arcface_loss import unit
from experiment.data import to_float

BATCH = 1000


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which the network runs: bfloat16 arithmetic, or plain float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@torch.no_grad()
def embed(network: nn.Module, images: Tensor, precision: str) -> Tensor:
    """Raw embeddings, N × d in float32, of images (uint8, N × H × W × C) in evaluation mode."""
    network.eval()
    with autocast(images.device, precision):
        return torch.cat([network(to_float(batch)).float() for batch in images.split(BATCH)])


@torch.no_grad()
def embed_views(network: nn.Module, images: Tensor, precision: str) -> list[tuple[float, Tensor]]:
    """Weighted embeddings of six views: each image and its mirror image, as it is and moved by (±1, ±1) pixels."""
    size = images.shape[1]
    padded = F.pad(images.permute(0, 3, 1, 2).float(), (1, 1, 1, 1), mode="reflect").to(torch.uint8).permute(0, 2, 3, 1)
    views = [(0.25, images), (0.125, padded[:, :size, :size]), (0.125, padded[:, 2:, 2:])]
    return [(weight, embed(network, v, precision)) for weight, view in views for v in (view, view.flip(2))]


@torch.no_grad()
def loss_and_correct(head: nn.Module, embeddings: Tensor, labels: Tensor) -> tuple[float, int]:
    """The training objective, margin included, and how many are right by the plain logits."""
    plain = head(embeddings)
    logits = plain if isinstance(head, nn.Linear) else head(embeddings, labels)
    return F.cross_entropy(logits, labels).item(), (plain.argmax(dim=1) == labels).sum().item()


@torch.no_grad()
def angles_to_centres(embeddings: Tensor, weight: Tensor) -> Tensor:
    """Angles in radians, N × n, between embeddings (N × d) and class centres (n × d), whatever their lengths."""
    return (unit(embeddings) @ unit(weight).T).clamp(-1, 1).arccos()


def class_means(embeddings: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Embedding centres, n × d: the normalised mean of each class's unit embeddings (N × d)."""
    sums = torch.zeros(classes, embeddings.shape[1], dtype=embeddings.dtype, device=embeddings.device)
    return unit(sums.index_add_(0, labels, unit(embeddings)))


@torch.no_grad()
def angle_statistics(weight: Tensor, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The angles of the paper's Table 3, in degrees.

    Args:
        weight: class centres of the head, n × d.
        train, test: embeddings (N × d) and labels (N) of the plain images, network in evaluation mode.

    Returns:
        w_ec: mean angle between W_j and the embedding centre of class j (training images).
        w_inter: mean over j of the smallest angle from W_j to another W_k.
        intra_train, intra_test: mean angle between an embedding and its class's embedding centre.
        inter_train, inter_test: mean over j of the smallest angle between embedding centres.
    """
    weight = unit(weight.cpu().double())
    pairs = [(unit(embeddings.cpu().double()), labels.cpu()) for embeddings, labels in (train, test)]
    train_means, test_means = (class_means(e, y, len(weight)) for e, y in pairs)

    def between(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=1).clamp(-1, 1).arccos().rad2deg()

    def nearest(centres: Tensor) -> Tensor:
        angles = (centres @ centres.T).clamp(-1, 1).arccos().rad2deg()
        return angles.fill_diagonal_(math.inf).amin(dim=1)

    result = {"w_ec": between(weight, train_means), "w_inter": nearest(weight)}
    for split, (embeddings, labels), means in zip(("train", "test"), pairs, (train_means, test_means), strict=True):
        result[f"intra_{split}"] = between(embeddings, means[labels])
        result[f"inter_{split}"] = nearest(means)
    return {key: value.mean().item() for key, value in result.items()}


# --- verification: do two images show the same class, which training never saw? -------------------

FALSE_ACCEPT = np.logspace(-4, 0, 81)  # the rates at which a ROC curve is kept
PAIRS, FOLDS = 6000, 10  # as on LFW, http://vis-www.cs.umass.edu/lfw/: half of the pairs are of one class, in each fold


def all_pairs(embeddings: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of all pairs of N embeddings (N × d): the angle in degrees, and whether the labels (N) are equal."""
    rows, columns = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
    theta = angles_to_centres(embeddings, embeddings)[rows, columns].rad2deg()
    return theta.cpu().numpy(), (labels[rows] == labels[columns]).cpu().numpy()


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
    at = lambda rate: np.interp(rate, false_accept, true_accept).tolist()  # noqa: E731
    excess = false_accept + true_accept - 1  # false accepts minus false rejects; it rises from -1 to 1
    eer = float(np.interp(0, excess, false_accept))
    return {"eer": eer, "tar_1": at(0.01), "tar_01": at(0.001), "roc": at(FALSE_ACCEPT)}


def draw_pairs(same: np.ndarray, seed: int) -> np.ndarray:
    """Indices of PAIRS different pairs in FOLDS folds, FOLDS × (PAIRS / FOLDS), half of each fold of one class."""
    rng, half = np.random.default_rng(seed), PAIRS // FOLDS // 2
    kinds = [rng.choice(np.flatnonzero(same == kind), (FOLDS, half), replace=False) for kind in (True, False)]
    return np.concatenate(kinds, axis=1)


def fold_accuracy(theta: np.ndarray, same: np.ndarray) -> float:
    """Verification accuracy as on LFW: each fold is judged by the threshold that is best on the other folds.

    Args:
        theta, same: angles of the pairs, and whether they are of one class, both folds × pairs.
    """
    right = []
    for fold in range(len(theta)):
        angle, truth = (np.delete(values, fold, axis=0).ravel() for values in (theta, same))
        order = np.argsort(angle)
        accepted = np.concatenate([[0], np.cumsum(np.where(truth[order], 1, -1))])  # right answers, up to a constant
        best = accepted.argmax()
        limits = np.concatenate([[-np.inf], angle[order], [np.inf]])
        threshold = (limits[best] + limits[best + 1]) / 2
        right.append(((theta[fold] <= threshold) == same[fold]).mean())
    return float(np.mean(right))


@torch.no_grad()
def nearest_mean(embeddings: Tensor, labels: Tensor, means: Tensor) -> dict[str, float]:
    """Accuracy of the nearest class mean, by the angle ("cosine") and by the straight distance ("euclidean").

    Args:
        embeddings: N × d, as the network gives them. labels: N. means: n × d, means of such embeddings.
    """
    distances = {"cosine": angles_to_centres(embeddings, means), "euclidean": torch.cdist(embeddings, means)}
    return {name: (d.argmin(dim=1) == labels).double().mean().item() for name, d in distances.items()}
