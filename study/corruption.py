"""Corrupted test images, and their accuracy by the nearest class mean."""

import torch
from torch import Tensor

from experiment.augment import random_squares
from experiment.evaluation import angles_to_centres

CORRUPTIONS = ("noise", "occlusion", "contrast", "brightness")
STRENGTHS = range(6)


def corrupt(images: Tensor, kind: str, strength: int, seed: int = 0) -> Tensor:
    """Damaged copies of images, uint8 N × H × W × C.

    Args:
        kind: one of CORRUPTIONS. noise: Gaussian, of standard deviation 0.08·strength of the range;
            occlusion: a grey square at random that hides (0.15·strength)² of the image; contrast:
            shrunk towards the image's mean, to 1 − 0.18·strength of it; brightness: 0.12·strength
            of the range is added.
        strength: one of STRENGTHS; 0 changes nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    x = images.float().cpu() / 255
    match kind:
        case "noise":
            x += 0.08 * strength * torch.randn(x.shape, generator=generator)
        case "occlusion":
            side = round(0.15 * strength * images.shape[1])
            x[random_squares(x.shape, side, generator)] = 0.5
        case "contrast":
            mean = x.mean(dim=(1, 2, 3), keepdim=True)
            x = mean + (1 - 0.18 * strength) * (x - mean)
        case "brightness":
            x += 0.12 * strength
        case _:
            raise ValueError(f"kind is {kind!r}; it must be one of {CORRUPTIONS}")
    return (255 * x.clamp(0, 1)).round().to(torch.uint8).to(images.device)


@torch.no_grad()
def nearest_mean(embeddings: Tensor, labels: Tensor, means: Tensor) -> dict[str, float]:
    """Accuracy of the nearest class mean: by the angle ("cosine"), and by the straight distance
    ("euclidean").

    Args:
        embeddings: N × d, as the network gives them. labels: N.
        means: n × d, of such embeddings.
    """
    distances = {
        "cosine": angles_to_centres(embeddings, means),
        "euclidean": torch.cdist(embeddings, means),
    }
    return {
        name: (d.argmin(dim=1) == labels).double().mean().item() for name, d in distances.items()
    }
