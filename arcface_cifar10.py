"""CIFAR-10 with the ArcFace loss: python arcface_cifar10.py [--help]

Test accuracy 93.24 ± 0.15% (94.24 ± 0.17% with test-time augmentation) in 551 ± 22 s of training: means of 5
seeds with 95% intervals, on two cores of an AMD EPYC in bfloat16 (figures/cifar10/seeds.json).
"""

import sys
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiment import run
from experiment.data import fade, random_light, random_squares, shift_and_flip, to_float
from experiment.layers import block
from experiment.training import Recipe

# --- the embedding CNN ---------------------------------------------------------------------------


class Network(nn.Module):
    """Images, N × 3 × H × W in [0, 1], to embeddings, N × d. Any image size from 16 up to 32 and beyond.

    After K. Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024, https://arxiv.org/abs/2404.00498: a fixed
    whitening layer, then three blocks of three convolutions with a residual connection, or of two without.
    """

    def __init__(self, embedding_size: int, widths: tuple[int, int, int] = (64, 256, 256), residual: bool = True):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1))
        self.whiten = nn.Conv2d(3, 24, kernel_size=2)
        self.whiten.weight.requires_grad_(False)
        a, b, c = widths
        self.features = nn.Sequential(nn.GELU(), *block(24, a, residual), *block(a, b, residual), *block(b, c, residual))
        self.embedding = nn.Linear(c, embedding_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.whiten((x - self.mean) / self.std)
        return self.embedding(self.features(x).amax(dim=(2, 3)))

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Set the whitening filters, ± the eigenvectors of 2×2 patches, from uint8 images, N × H × W × 3."""
        patches = F.unfold((to_float(images) - self.mean) / self.std, 2).transpose(1, 2).flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.unflatten(1, (3, 2, 2)).float()
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


# --- the recipe, tuned on the last 5,000 training images -----------------------------------------


def augment(
    images: Tensor,
    flip: Tensor,
    progress: float,
    generator: torch.Generator,
    shift: int = 3,
    hidden: int = 5,
    sizes: tuple = (20, 24, 28, 32),
    light: float = 0.0,
) -> Tensor:
    """Shift by up to ``shift`` pixels, mirror each image every other time, and make them small.

    Each of ``sizes`` has an equal part of the training: the whole image, shrunk; the last one is a crop at full resolution.
    hidden: the side of a grey square that covers some of each image; 0 for none.
    light: the largest relative change of an image's contrast, and of 0.4 times as much in brightness; 0 for none. In the
    last 30% of the training it falls, linearly, to nothing.
    """
    x = to_float(shift_and_flip(images, shift, flip, generator))
    if light:
        k = light * fade(progress, full=0.7)
        x = random_light(x, contrast=k, brightness=0.4 * k, tint=0.12 * k, generator=generator)
    if hidden:
        x.permute(0, 2, 3, 1)[random_squares(images.shape, hidden, generator)] = 128 / 255
    size = sizes[int(len(sizes) * progress)]
    if size == sizes[-1]:
        edge = (x.shape[2] - size) // 2
        return x[:, :, edge : edge + size, edge : edge + size].contiguous(memory_format=torch.channels_last)
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True)


DEFAULT = Recipe(
    dataset="CIFAR-10",
    network=Network,
    augment=augment,
    learning_rates={"filters": 0.24, "others": 0.4, "head": 1.0, "linear head": 0.04},
    epochs=20,
    batch_size=2000,
    embedding_size=256,
    scale=6.0,
    margins={"arcface": 0.1, "cosface": 0.1, "sphereface": 1.1},
    views_at_test=True,
    hardest=0.5,
)
# Width, shift and hidden square after airbench96, by the author cited above; not tuned here. The light was, with the
# default's network on 12,000 of the training images, judged on 35,000 others; and so was the number of epochs, with this
# network on 25,000, judged on the other 25,000.
BEST = replace(
    DEFAULT,
    network=partial(Network, widths=(128, 384, 512)),
    augment=partial(augment, shift=4, hidden=12, sizes=(24, 28, 32), light=0.4),
    learning_rates={"filters": 0.12, "others": 0.2, "head": 0.5, "linear head": 0.02},
    epochs=80,
    batch_size=500,  # a batch of 2,000 would need more memory than many machines have
)
RECIPES = {"default": DEFAULT, "best": BEST}


def main(argv: list[str] | None = None) -> int:
    """Train, evaluate, record and draw. Returns the exit status."""
    return run.main(RECIPES, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
