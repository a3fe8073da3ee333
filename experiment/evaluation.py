"""Evaluation: embeddings, accuracy, test-time augmentation, the angles of the paper's Table 3."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcface_loss import ArcMarginProduct, angle, unit
from experiment.augment import to_float
from experiment.data import Data
from experiment.machine import autocast

EVALUATION_BATCH = 1000

Head = nn.Linear | ArcMarginProduct  # plain softmax has a linear layer
Labelled = tuple[Tensor, Tensor]  # embeddings, N × d, and their labels, N


@torch.no_grad()
def embed(network: nn.Module, images: Tensor, precision: str) -> Tensor:
    """Raw embeddings, N × d in float32, of images (uint8, N × H × W × C) in evaluation mode, in
    which the network stays."""
    network.eval()
    with autocast(images.device, precision):
        batches = images.split(EVALUATION_BATCH)
        return torch.cat([network(to_float(batch)).float() for batch in batches])


def embed_both(network: nn.Module, data: Data, precision: str) -> tuple[Labelled, Labelled]:
    """Embeddings and labels of the training images and of the test images."""
    return (
        (embed(network, data.train_images, precision), data.train_labels),
        (embed(network, data.test_images, precision), data.test_labels),
    )


@torch.no_grad()
def tta_logits(
    network: nn.Module,
    head: Head,
    images: Tensor,
    precision: str,
    views: list[list[float]],
    plain: Tensor,
) -> Tensor:
    """Test-time augmentation: the weighted sum of the logits of several views of each image, N × n.

    Args:
        images: uint8, N × H × H × C.
        views: pairs of k and a weight: the image moved by (k, k) pixels, its border reflected,
            and the mirror image of that, have this weight each.
        plain: the logits of the images themselves, N × n, which are not made again.
    """
    size, edge = images.shape[1], int(max(abs(k) for k, _ in views))
    nchw = images.permute(0, 3, 1, 2).float()
    padded = F.pad(nchw, (edge,) * 4, mode="reflect").to(torch.uint8).permute(0, 2, 3, 1)
    logits = []
    for k, weight in views:
        start = edge - int(k)
        moved = padded[:, start : start + size, start : start + size]
        for mirrored in (False, True):
            if k == 0 and not mirrored:
                logits.append(weight * plain)
                continue
            view = moved.flip(2) if mirrored else moved
            logits.append(weight * head(embed(network, view, precision)))
    return torch.stack(logits).sum(dim=0)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Correct / total, both counted as integers."""
    return (logits.argmax(dim=1) == labels).sum().item() / len(labels)


@torch.no_grad()
def loss_and_accuracy(head: Head, embeddings: Tensor, labels: Tensor) -> tuple[float, float]:
    """The training objective, margin included, and the accuracy by the plain logits."""
    plain = head(embeddings)
    logits = plain if isinstance(head, nn.Linear) else head(embeddings, labels)
    return F.cross_entropy(logits, labels).item(), accuracy(plain, labels)


@torch.no_grad()
def angles_to_centres(embeddings: Tensor, weight: Tensor) -> Tensor:
    """Angles in radians, N × n, of embeddings, N × d, to class centres, n × d, of any length."""
    return (unit(embeddings) @ unit(weight).T).clamp(-1, 1).arccos()


def own_and_other(theta: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of angles to all centres, N × n, that to the own and to the nearest other one, N each."""
    own = theta.gather(1, labels[:, None])
    other = theta.scatter(1, labels[:, None], math.inf).amin(dim=1)
    return own[:, 0], other


def class_means(embeddings: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Embedding centres, n × d: the normalised mean of each class's unit embeddings (N × d)."""
    sums = embeddings.new_zeros(classes, embeddings.shape[1])
    return unit(sums.index_add_(0, labels, unit(embeddings)))


@torch.no_grad()
def angle_statistics(weight: Tensor, train: Labelled, test: Labelled) -> dict[str, float]:
    """The angles of the paper's Table 3, in degrees.

    Args:
        weight: class centres of the head, n × d.
        train, test: of the plain images, network in evaluation mode.

    Returns:
        w_ec: mean angle between W_j and the embedding centre of class j (training images).
        w_inter: mean over j of the smallest angle from W_j to another W_k.
        intra_train, intra_test: mean angle between an embedding and its class's embedding centre.
        inter_train, inter_test: mean over j of the smallest angle between embedding centres.
    """
    weight = unit(weight.cpu().double())
    pairs = [(unit(x.cpu().double()), labels.cpu()) for x, labels in (train, test)]
    train_means, test_means = (class_means(x, labels, len(weight)) for x, labels in pairs)

    def nearest(centres: Tensor) -> Tensor:
        return angles_to_centres(centres, centres).fill_diagonal_(math.inf).amin(dim=1)

    found = {"w_ec": angle(weight, train_means), "w_inter": nearest(weight)}
    means = (train_means, test_means)
    for split, (x, labels), centres in zip(("train", "test"), pairs, means, strict=True):
        found[f"intra_{split}"] = angle(x, centres[labels])
        found[f"inter_{split}"] = nearest(centres)
    return {key: value.rad2deg().mean().item() for key, value in found.items()}
