"""Batched augmentation on tensors: uint8 images in, float images in [0, 1] out."""

import torch
import torch.nn.functional as F
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 N × H × W × C to float N × C × H × W in [0, 1], in channels_last order."""
    return images.permute(0, 3, 1, 2).float() / 255


def fade(progress: float, full: float) -> float:
    """An augmentation's strength: 1 until the fraction ``full`` of the training, then down to 0."""
    return 1.0 if progress < full else (1 - progress) / (1 - full)


def shift_and_flip(images: Tensor, pixels: int, flip: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to ``pixels`` in x and y, its border reflected, and mirrored where
    flipped.

    Args:
        images: uint8, N × H × H × C.
        pixels: the largest shift.
        flip: bool, N.
    """
    n, size = images.shape[:2]
    place = torch.arange(size, device=images.device)
    shift = torch.randint(-pixels, pixels + 1, (2, n, 1), generator=generator, device=images.device)
    rows, columns = (size - 1) - ((size - 1) - (place + shift).abs()).abs()
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    image = torch.arange(n, device=images.device)[:, None, None]
    return images[image, rows[:, :, None], columns[:, None, :]]


def random_squares(shape: tuple[int, ...], side: int, generator: torch.Generator) -> Tensor:
    """One square of ``side`` pixels in each image, wholly inside it, as a mask: bool, N × H × W.

    Args:
        shape: of the images, N × H × W and anything beyond.
    """
    inside = []
    for size in shape[1:3]:
        place = torch.arange(size, device=generator.device)
        where = torch.rand(shape[0], 1, generator=generator, device=generator.device)
        start = (where * (size - side + 1)).long()
        inside.append((place >= start) & (place < start + side))
    return inside[0][:, :, None] & inside[1][:, None, :]


def random_affine(
    images: Tensor,
    generator: torch.Generator,
    degrees: float,
    scale: float,
    shear: float,
    shift: float,
) -> Tensor:
    """Each image rotated, scaled, sheared and moved at random; black comes in at the border.

    Args:
        images: float, N × C × H × W.
        degrees: the largest rotation. scale: the largest relative change of width and of height,
        each drawn for itself. shear: the largest change of x per unit of y. shift: the largest
        move, as a fraction of the image.
    """
    n = len(images)
    u = 2 * torch.rand((6, n), generator=generator, device=images.device) - 1
    angle = torch.deg2rad(degrees * u[0])
    cos, sin = torch.cos(angle), torch.sin(angle)
    wide, high = 1 + scale * u[1], 1 + scale * u[2]
    skew = shear * u[3]
    rows = [cos * wide, (skew * cos - sin) * high, 2 * shift * u[4]]
    rows += [sin * wide, (skew * sin + cos) * high, 2 * shift * u[5]]
    matrix = torch.stack(rows).T.reshape(n, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def random_light(
    images: Tensor, contrast: float, brightness: float, tint: float, generator: torch.Generator
) -> Tensor:
    """Each image with another contrast, brightness and colour, at random; values may leave [0, 1].

    Args:
        images: float, N × C × H × W.
        contrast: the largest relative change of the distance from mid-grey.
        brightness: the largest amount added to an image. tint: to one of its channels.
    """
    n, channels = images.shape[:2]
    u = 2 * torch.rand((2 + channels, n), generator=generator, device=images.device) - 1
    added = brightness * u[1] + tint * u[2:]
    contrasted = (images - 0.5) * (1 + contrast * u[0])[:, None, None, None]
    return contrasted + 0.5 + added.T[:, :, None, None]
