"""experiment/layers.py: each layer against the formula of its docstring, written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiment import layers
from experiment.layers import Conv, Residual, SmallConvolution, batch_norm, block


def random_conv(in_channels: int, out_channels: int) -> Conv:
    """A Conv with random filters in place of its first ones."""
    conv = Conv(in_channels, out_channels)
    nn.init.normal_(conv.weight)
    return conv


@torch.no_grad()
def convolution(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What Conv documents, pixel by pixel: a filter's numbers are ordered by row, column, channel.

    Args:
        x: images, N × C × H × W. weight: filters × 9·C.
    """
    n, channels, height, width = x.shape
    padded = torch.zeros(n, channels, height + 2, width + 2)
    padded[:, :, 1:-1, 1:-1] = x
    out = torch.empty(n, len(weight), height, width)
    for row in range(height):
        for column in range(width):
            patch = padded[:, :, row : row + 3, column : column + 3]  # N × C × 3 × 3
            out[:, :, row, column] = patch.permute(0, 2, 3, 1).flatten(1) @ weight.T
    return out


def test_conv_equals_the_sum_over_each_patch():
    torch.manual_seed(0)
    conv, x = random_conv(3, 5), torch.randn(2, 3, 6, 7)
    assert torch.allclose(conv(x), convolution(x, conv.weight), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (3, 2)])
def test_the_gradients_for_small_images_are_the_derivatives(height, width):
    torch.manual_seed(0)
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    filters = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SmallConvolution.apply, (x, filters))


def test_a_cpu_with_amx_gets_the_same_gradient_for_small_images(monkeypatch):
    """As another one, but for bfloat16's rounding; on large images nothing differs."""
    torch.manual_seed(0)
    conv, used = random_conv(3, 5), []

    class Watched(SmallConvolution):
        @staticmethod
        def backward(ctx, gradient):
            used.append(gradient.shape[2])
            return SmallConvolution.backward(ctx, gradient)

    monkeypatch.setattr(layers, "SmallConvolution", Watched)

    def gradient(side: int, amx: bool) -> torch.Tensor:
        monkeypatch.setattr(layers, "AMX", amx)
        x = torch.linspace(-1, 1, 6 * side * side).view(2, 3, side, side).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        (found,) = torch.autograd.grad(y.float().square().sum(), conv.weight)
        return found

    assert torch.allclose(gradient(4, True), gradient(4, False), rtol=0.02, atol=0.02)
    assert torch.equal(gradient(6, True), gradient(6, False))
    assert used == [4]


@pytest.mark.parametrize(("channels", "filters"), [(3, 5), (5, 3)])
def test_the_first_filters_pass_their_channel_through(channels, filters):
    torch.manual_seed(0)
    conv, x = Conv(channels, filters), torch.randn(2, channels, 6, 6)
    same = min(channels, filters)
    scale = conv.weight[0].abs().sum()
    assert torch.allclose(conv(x)[:, :same], x[:, :same] * scale, atol=1e-6)


def test_renormalise_scales_all_filters_by_one_factor():
    torch.manual_seed(0)
    conv = random_conv(3, 5)
    before = conv.weight.detach().clone()
    conv.renormalise()
    lengths = conv.weight.square().sum(dim=1).sqrt()
    assert lengths.square().mean().item() == pytest.approx(1, abs=1e-6)
    factors = conv.weight / before
    assert torch.allclose(factors, factors[0, 0].expand_as(factors), rtol=1e-5)
    assert lengths.max() - lengths.min() > 0.1  # it is the mean that is 1, not each length


def test_a_new_conv_is_normalised():
    lengths = Conv(3, 16).weight.square().sum(dim=1)
    assert lengths.mean().item() == pytest.approx(1, abs=1e-6)


def test_batch_norm_shifts_but_has_no_learnt_scale():
    torch.manual_seed(0)
    norm, x = batch_norm(3, momentum=0.4), torch.randn(8, 3, 5, 5) * 4 + 2
    nn.init.constant_(norm.bias, 0.5)
    pixels = x.transpose(0, 1).flatten(1)
    mean, variance = pixels.mean(dim=1), pixels.var(dim=1, unbiased=False)
    expected = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt() + 0.5
    assert torch.allclose(norm(x), expected, atol=1e-5)
    assert torch.allclose(norm.running_mean, 0.4 * mean)
    assert torch.allclose(norm.running_var, 0.6 + 0.4 * pixels.var(dim=1))
    assert [name for name, p in norm.named_parameters() if p.requires_grad] == ["bias"]


def test_residual_adds_its_input():
    x = torch.randn(4, 3)
    double, square = nn.Linear(3, 3, bias=False), nn.ReLU()
    with torch.no_grad():
        double.weight.copy_(2 * torch.eye(3))
    assert torch.allclose(Residual(double, square)(x), x + (2 * x).clamp(min=0))


@pytest.mark.parametrize("residual", [False, True])
def test_a_block_is_its_layers_one_after_the_other(residual):
    """In evaluation mode, where BatchNorm is the division by √(1 + ε)."""
    torch.manual_seed(0)
    layers = nn.Sequential(*block(3, 5, bn_momentum=0.4, residual=residual)).eval()
    convolutions = [module for module in layers.modules() if isinstance(module, Conv)]
    for conv in convolutions:
        nn.init.normal_(conv.weight)
    first, second, *third = (conv.weight for conv in convolutions)
    assert len(third) == residual
    norm = (1 + 1e-5) ** -0.5
    x = torch.randn(2, 3, 8, 8)
    halved = F.gelu(F.max_pool2d(convolution(x, first), 2) * norm)
    expected = F.gelu(convolution(halved, second) * norm)
    if residual:
        expected = F.gelu(halved + convolution(expected, third[0]) * norm)
    assert layers(x).shape == (2, 5, 4, 4)
    assert torch.allclose(layers(x), expected, atol=1e-4)
