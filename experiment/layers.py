"""The convolution block that both networks are made of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    """3×3 convolution, padding 1, no bias. Its filters are the rows of a matrix, which is what Muon updates.

    The first filters pass one input channel through unchanged, the others are random; all have length 1.
    BatchNorm follows every convolution, so that only the direction of a filter matters: the training
    loop calls :meth:`renormalise` before each step, and the learning rate alone says by what angle a
    step turns the filters.
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
        return F.conv2d(x, filters.permute(0, 3, 1, 2), padding=1)  # channels_last, as x is

    @torch.no_grad()
    def renormalise(self) -> None:
        """Rescale the matrix so that its rows have length 1 in the root mean square."""
        self.weight *= len(self.weight) ** 0.5 / torch.linalg.matrix_norm(self.weight)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with a bias but no learnt scale, and statistics over about the last three batches."""
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def block(in_channels: int, out_channels: int, residual: bool = False) -> list[nn.Module]:
    """Two convolutions, each with BatchNorm and GELU; the first one halves the image. Three with ``residual``."""
    first = [Conv(in_channels, out_channels), nn.MaxPool2d(2), batch_norm(out_channels), nn.GELU()]
    second = [Conv(out_channels, out_channels), batch_norm(out_channels), nn.GELU()]
    if residual:
        second = [Residual(*second, Conv(out_channels, out_channels), batch_norm(out_channels)), nn.GELU()]
    return [*first, *second]


class Residual(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)
