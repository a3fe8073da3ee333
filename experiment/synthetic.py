"""The synthetic stand-in for a machine that has neither the data nor a network to fetch them."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from experiment.data import Data

SHAPES = [
    "circle",
    "square",
    "triangle",
    "diamond",
    "cross",
    "ring",
    "bar",
    "pillar",
    "frame",
    "star",
]


def make(name: str, train: int = 4000, test: int = 1000) -> Data:
    """Rendered digits in place of MNIST, coloured shapes in place of CIFAR-10, always the same."""
    rng = np.random.default_rng(20190616)
    draw, classes = (
        (_digit, [str(digit) for digit in range(10)]) if name == "MNIST" else (_shape, SHAPES)
    )
    labels = rng.integers(10, size=train + test)
    images = torch.from_numpy(np.stack([draw(label, rng) for label in labels]))
    numbers = torch.from_numpy(labels)
    return Data(
        "synthetic", classes, images[:train], numbers[:train], images[train:], numbers[train:], {}
    )


def _digit(label: int, rng: np.random.Generator) -> np.ndarray:
    picture = Image.new("L", (56, 56))
    font = ImageFont.load_default(size=rng.uniform(34, 46))
    ImageDraw.Draw(picture).text(
        (28 + rng.uniform(-5, 5), 28 + rng.uniform(-5, 5)), str(label), 255, font, anchor="mm"
    )
    picture = picture.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR).resize(
        (28, 28), Image.Resampling.BOX
    )
    return _noisy(np.asarray(picture)[..., None], rng)


def _shape(label: int, rng: np.random.Generator) -> np.ndarray:
    paper, ink = rng.integers(256, size=(2, 3))
    while abs(int(paper.sum()) - int(ink.sum())) < 150:
        paper, ink = rng.integers(256, size=(2, 3))
    picture = Image.new("RGB", (64, 64), tuple(paper.tolist()))
    draw, ink, r = ImageDraw.Draw(picture), tuple(ink.tolist()), rng.uniform(16, 24)
    x, y = rng.uniform(26, 38, size=2)
    box = [x - r, y - r, x + r, y + r]
    match SHAPES[label]:
        case "circle":
            draw.ellipse(box, fill=ink)
        case "square":
            draw.rectangle(box, fill=ink)
        case "triangle":
            draw.regular_polygon((x, y, r), 3, fill=ink)
        case "diamond":
            draw.regular_polygon((x, y, r), 4, rotation=45, fill=ink)
        case "cross":
            draw.line([x - r, y, x + r, y], fill=ink, width=9)
            draw.line([x, y - r, x, y + r], fill=ink, width=9)
        case "ring":
            draw.ellipse(box, outline=ink, width=7)
        case "bar":
            draw.rectangle([x - r, y - 5, x + r, y + 5], fill=ink)
        case "pillar":
            draw.rectangle([x - 5, y - r, x + 5, y + r], fill=ink)
        case "frame":
            draw.rectangle(box, outline=ink, width=7)
        case "star":
            turn, reach = np.arange(10) * np.pi / 5, r * np.tile([1, 0.4], 5)
            draw.polygon(
                np.stack([x + reach * np.sin(turn), y - reach * np.cos(turn)], axis=1)
                .ravel()
                .tolist(),
                fill=ink,
            )
    return _noisy(np.asarray(picture.resize((32, 32), Image.Resampling.BOX)), rng)


def _noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
