"""The convolution block of both networks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

AMX = torch.cpu._is_amx_tile_supported()
SMALL = 5  # pixels: up to this side SmallConvolution is faster


class SmallConvolution(torch.autograd.Function):
    """F.conv2d(x, filters, padding=1), with the filters' gradient as one matrix product; x is
    N × C × H × W, filters C_out × C × 3 × 3.

    On a CPU with AMX oneDNN's own way to that gradient is slow for small images: for 2,000 images
    of 3 × 3 pixels and 256 channels this halves the backward pass (106 ms to 47 ms on two cores).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(x, filters)
        return F.conv2d(x, filters, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, filters = ctx.saved_tensors
        (height, width), channels = x.shape[2:], x.shape[1]
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        patches = padded.unfold(1, height, 1).unfold(2, width, 1)  # N × 3 × 3 × C × H × W
        patches = patches.permute(0, 4, 5, 1, 2, 3).reshape(-1, 9 * channels)  # a row for a pixel
        of_filters = gradient.permute(0, 2, 3, 1).flatten(0, 2).T @ patches
        of_filters = of_filters.unflatten(1, (3, 3, channels)).permute(0, 3, 1, 2)
        return conv2d_input(x.shape, filters, gradient, padding=1), of_filters


class Conv(nn.Module):
    """3×3 convolution of N × C × H × W, padding 1, no bias. Its filters are the rows of a matrix,
    as Muon needs them.

    The first filters pass one input channel through unchanged but for a factor, the others are
    random. BatchNorm follows every convolution, so only the direction of a filter matters: the
    training loop calls :meth:`renormalise` before each step, and the learning rate alone then
    says by what angle a step turns the filters.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.in_channels = in_channels
        filters = torch.randn(out_channels, 3, 3, in_channels)
        same = torch.arange(min(in_channels, out_channels))
        filters[same] = 0
        filters[same, 1, 1, same] = 1
        self.weight = nn.Parameter(filters.flatten(1))
        self.renormalise()

    def forward(self, x: Tensor) -> Tensor:
        filters = self.weight.unflatten(1, (3, 3, self.in_channels))
        filters = filters.permute(0, 3, 1, 2)  # channels_last, as x is
        if AMX and x.dtype == torch.bfloat16 and max(x.shape[2:]) <= SMALL and x.is_cpu:
            return SmallConvolution.apply(x, filters.to(x.dtype))
        return F.conv2d(x, filters, padding=1)

    @torch.no_grad()
    def renormalise(self) -> None:
        """Rescale the matrix so that the root mean square of its rows' lengths is 1."""
        self.weight.mul_(len(self.weight) ** 0.5 / torch.linalg.matrix_norm(self.weight))


def batch_norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    """BatchNorm with a bias but no learnt scale.

    Args:
        momentum: the weight of the newest batch in the running statistics.
    """
    norm = nn.BatchNorm2d(channels, momentum=momentum)
    norm.weight.requires_grad_(False)
    return norm


def block(
    in_channels: int, out_channels: int, bn_momentum: float, residual: bool = False
) -> list[nn.Module]:
    """Two convolutions with BatchNorm and GELU, three if residual; the first halves the image."""

    def norm() -> nn.BatchNorm2d:
        return batch_norm(out_channels, bn_momentum)

    first = [Conv(in_channels, out_channels), nn.MaxPool2d(2), norm(), nn.GELU()]
    second = [Conv(out_channels, out_channels), norm(), nn.GELU()]
    if residual:
        second = [Residual(*second, Conv(out_channels, out_channels), norm()), nn.GELU()]
    return [*first, *second]


class Residual(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)
