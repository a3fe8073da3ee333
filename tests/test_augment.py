"""experiment/augment.py: each augmentation against brute force or its closed form."""

import numpy as np
import pytest
import torch

from experiment import augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_to_float_divides_by_255_and_puts_channels_second():
    images = torch.arange(256, dtype=torch.uint8).view(2, 8, 8, 2)
    x = augment.to_float(images)
    assert np.array_equal(x.numpy(), images.numpy().transpose(0, 3, 1, 2) / np.float32(255))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_fade_is_one_and_then_falls_linearly_to_nothing():
    factors = [augment.fade(progress, full=0.6) for progress in (0.0, 0.59, 0.6, 0.8, 0.9, 1.0)]
    assert factors == pytest.approx([1, 1, 1, 0.5, 0.25, 0])


def test_shift_and_flip_without_shift_only_mirrors():
    images = torch.randint(256, (2, 6, 6, 3), dtype=torch.uint8)
    found = augment.shift_and_flip(images, 0, torch.tensor([False, True]), generator())
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[1], images[1, :, [5, 4, 3, 2, 1, 0]])


@pytest.mark.parametrize("mirrored", [False, True])
def test_shifts_are_crops_of_the_reflected_image(mirrored):
    """Each of the 25 shifts by up to two pixels occurs, and nothing else."""
    images = torch.randint(256, (300, 6, 6, 3), dtype=torch.uint8)
    flip = torch.full((300,), mirrored)
    found = augment.shift_and_flip(images, 2, flip, generator(1)).numpy()
    padded = np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    crops = [padded[:, y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
    step = -1 if mirrored else 1
    equal = [(found == crop[:, :, ::step]).all(axis=(1, 2, 3)) for crop in crops]
    assert (np.sum(equal, axis=0) == 1).all() and np.any(equal, axis=1).all()


def test_squares_lie_inside_the_image_and_everywhere_in_it():
    mask = augment.random_squares((2000, 8, 9, 3), 3, generator()).numpy()
    assert mask.shape == (2000, 8, 9)
    corners = set()
    for hidden in mask:
        row, column = np.argwhere(hidden)[0].tolist()
        expected = np.zeros((8, 9), dtype=bool)
        expected[row : row + 3, column : column + 3] = True
        assert np.array_equal(hidden, expected) and hidden.sum() == 9
        corners.add((row, column))
    assert corners == {(row, column) for row in range(6) for column in range(7)}


def test_affine_without_freedom_changes_nothing():
    images = torch.rand(4, 1, 9, 9)
    found = augment.random_affine(images, generator(), degrees=0, scale=0, shear=0, shift=0)
    assert torch.allclose(found, images, atol=1e-6)


BOUNDS = {"degrees": 15.0, "scale": 0.15, "shear": 0.2, "shift": 0.07}


def decomposed(**largest: float) -> dict[str, np.ndarray]:
    """The moves that random_affine made, N of each, from images whose pixels are their own places.

    Bilinear sampling is exact for a linear function: an image that holds its coordinates x and y,
    in [−1, 1], is turned into one that holds M·(x, y, 1). Least squares gives M, and the matrix
    R·[[1, k], [0, 1]]·diag(w, h) the rotation R, the shear k and the scales w and h.
    """
    place = (2 * torch.arange(28) + 1) / 28 - 1
    image = torch.stack([place.expand(28, 28), place.expand(28, 28).T])
    images = image.expand(500, 2, 28, 28)
    found = augment.random_affine(images, generator(), **largest)[:, :, 9:19, 9:19]
    x, y = image[:, 9:19, 9:19].flatten(1).double().numpy()
    inputs = np.stack([x, y, np.ones(100)], axis=1)
    targets = found.double().flatten(2).numpy().reshape(1000, 100).T
    matrix, residuals, *_ = np.linalg.lstsq(inputs, targets, rcond=None)
    assert residuals.max() < 1e-8  # the map is affine
    matrix = matrix.T.reshape(500, 2, 3)
    turned = np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0])
    wide = np.hypot(matrix[:, 0, 0], matrix[:, 1, 0])
    cos, sin = np.cos(turned), np.sin(turned)
    high = cos * matrix[:, 1, 1] - sin * matrix[:, 0, 1]
    skew = (cos * matrix[:, 0, 1] + sin * matrix[:, 1, 1]) / high
    moved = matrix[:, :, 2] / 2  # the coordinates span 2
    values = {"degrees": np.degrees(turned), "wide": wide - 1, "high": high - 1, "shear": skew}
    return values | {"x": moved[:, 0], "y": moved[:, 1]}


@pytest.mark.parametrize("only", BOUNDS)
def test_each_affine_move_has_its_bound_and_moves_nothing_else(only):
    found = decomposed(**(dict.fromkeys(BOUNDS, 0.0) | {only: BOUNDS[only]}))
    mine = {"scale": ("wide", "high"), "shift": ("x", "y")}.get(only, (only,))
    for name, values in found.items():
        if name in mine:
            assert 0.97 * BOUNDS[only] < np.abs(values).max() <= BOUNDS[only] + 1e-5
            assert abs(values.mean()) < 0.1 * BOUNDS[only]  # as far one way as the other
        else:
            assert np.abs(values).max() < 1e-4


def test_affine_moves_are_independent_of_each_other():
    found = np.stack(list(decomposed(**BOUNDS).values()))
    correlation = np.corrcoef(found) - np.eye(len(found))
    assert np.abs(correlation).max() < 0.2  # 500 images: a standard error of 0.045


def test_black_comes_in_at_the_border():
    """A shift leaves behind it a black band as wide as the shift, on one side in x and in y."""
    white = torch.ones(50, 1, 28, 28)
    found = augment.random_affine(white, generator(), degrees=0, scale=0, shear=0, shift=0.2)
    lost = 1 - found.mean(dim=(1, 2, 3))
    assert found[:, :, 13:15, 13:15].min() > 0.99
    for axis in (2, 3):
        band = 1 - found[:, :, 14, :] if axis == 3 else 1 - found[:, :, :, 14]
        width = band.sum(dim=-1) / 28  # a half of a pixel at the most is lost by interpolation
        assert 0.18 < width.max() < 0.2 + 0.5 / 28
    assert lost.max() < 1 - (0.8 - 0.5 / 28) ** 2


def test_light_is_a_straight_line_per_channel_within_its_bounds():
    """Fitted to each channel: one slope for an image (contrast), one intercept for a channel."""
    images = torch.rand(200, 3, 4, 4)
    found = augment.random_light(images, 0.4, 0.2, 0.1, generator())
    before, after = (x.double().numpy().reshape(600, 16) - 0.5 for x in (images, found))
    lines = [np.polyfit(x, y, 1, full=True)[:2] for x, y in zip(before, after, strict=True)]
    assert max(float(residual[0]) for _, residual in lines) < 1e-10
    slope, added = np.array([line for line, _ in lines]).reshape(200, 3, 2).transpose(2, 0, 1)
    assert 0.38 < np.abs(slope - 1).max() < 0.4001 and np.ptp(slope, axis=1).max() < 1e-5
    assert 0.25 < np.abs(added).max() < 0.3001  # brightness and tint together
    assert 0.15 < np.ptp(added, axis=1).max() < 0.2001  # the tint, twice
    assert 0.15 < np.abs(added.mean(axis=1)).max() < 0.3001


def test_equal_seeds_give_equal_images_and_others_do_not():
    images = torch.rand(20, 3, 8, 8)
    one, two, other = (
        augment.random_affine(images, generator(seed), **BOUNDS) for seed in (0, 0, 1)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)
