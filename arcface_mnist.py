"""MNIST with the ArcFace loss: python arcface_mnist.py [--help]

Test accuracy 99.70 ± 0.04% in 83 ± 4 s of training: means of 5 seeds with 95% intervals, on two cores of an
AMD EPYC in bfloat16 (figures/mnist/seeds.json).
"""

import sys
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from experiment import run
from experiment.data import fade, random_affine, to_float
from experiment.layers import Conv, batch_norm, block
from experiment.training import Recipe

# --- the embedding CNN ---------------------------------------------------------------------------


class Network(nn.Module):
    """Images, N × 1 × H × W in [0, 1], to embeddings, N × d: a convolution, then two blocks of two, or of three."""

    def __init__(self, embedding_size: int, widths: tuple[int, int, int] = (32, 64, 128), residual: bool = False):
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.1307))
        self.register_buffer("std", torch.tensor(0.3081))
        a, b, c = widths
        first = [Conv(1, a), nn.MaxPool2d(2), batch_norm(a), nn.GELU()]
        self.features = nn.Sequential(*first, *block(a, b, residual), *block(b, c, residual))
        self.embedding = nn.Linear(c, embedding_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(self.features((x - self.mean) / self.std).amax(dim=(2, 3)))

    def prepare(self, images: Tensor) -> None:
        """Nothing is taken from the data."""


# --- the recipe, tuned on the last 5,000 training images -----------------------------------------


def augment(images: Tensor, flip: Tensor, progress: float, generator: torch.Generator, full: float = 0.6) -> Tensor:
    """Rotate by up to 15°, scale and shear by up to 15%, move by up to 7% (2 pixels).

    full: the part of the training after which these fall, linearly, so that it ends with the images as they are.
    """
    k = fade(progress, full)
    return random_affine(to_float(images), degrees=15 * k, scale=0.15 * k, shear=0.15 * k, shift=0.07 * k, generator=generator)


DEFAULT = Recipe(
    dataset="MNIST",
    network=Network,
    augment=augment,
    learning_rates={"filters": 0.08, "others": 0.05, "head": 0.2, "linear head": 0.02},
    epochs=20,
    batch_size=500,
    embedding_size=128,
    scale=8.0,
    margins={"arcface": 0.1, "cosface": 0.1, "sphereface": 1.1},
    views_at_test=False,
    hardest=0.3,
)
# The default's settings in a larger network, for longer; not tuned.
BEST = replace(DEFAULT, network=partial(Network, widths=(64, 128, 256), residual=True), epochs=80)
RECIPES = {"default": DEFAULT, "best": BEST}


def main(argv: list[str] | None = None) -> int:
    """Train, evaluate, record and draw. Returns the exit status."""
    return run.main(RECIPES, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
