"""Data sets on disk, checked and read into tensors; augmentation; the synthetic stand-in."""

import hashlib
import http.client
import socket
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision import datasets

from experiment.records import Problem

VALIDATION = 5000  # the last images of the training set, on which hyperparameters are chosen
SILENCE = 15.0  # seconds without a byte after which a download gives up

MNIST_MD5 = {  # of the unpacked files; torchvision only knows those of the archives
    "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
CIFAR10_MD5 = {
    f"{datasets.CIFAR10.base_folder}/{name}": md5
    for name, md5 in [
        *datasets.CIFAR10.train_list,
        *datasets.CIFAR10.test_list,
        (datasets.CIFAR10.meta["filename"], datasets.CIFAR10.meta["md5"]),
    ]
}
PUBLISHED = {"MNIST": (datasets.MNIST, MNIST_MD5), "CIFAR-10": (datasets.CIFAR10, CIFAR10_MD5)}
SOURCE = {
    "MNIST": datasets.MNIST.mirrors[0],
    "CIFAR-10": datasets.CIFAR10.url,
}


@dataclass
class Data:
    """Images as uint8, N × height × width × channels, and labels as int64, N, in [0, len(classes))."""

    name: str
    classes: list[str]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    checksums: dict[str, str]

    def __post_init__(self):
        for split, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if len(images) != len(labels) or not len(labels):
                raise Problem(f"The {split} set of {self.name} has {len(images)} images and {len(labels)} labels.")
            if not 0 <= labels.min() <= labels.max() < len(self.classes):
                raise Problem(f"The {split} labels of {self.name} are not all in [0, {len(self.classes) - 1}].")

    def to(self, device: torch.device) -> "Data":
        """The same data on another device."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})

    def for_validation(self) -> "Data":
        """The training set without its last 5,000 images, with these as the test set."""
        return replace(
            self,
            train_images=self.train_images[:-VALIDATION],
            train_labels=self.train_labels[:-VALIDATION],
            test_images=self.train_images[-VALIDATION:],
            test_labels=self.train_labels[-VALIDATION:],
        )

    def only(self, classes: list[int]) -> "Data":
        """The images of these classes, which are numbered anew in this order."""
        number = torch.full((len(self.classes),), -1)
        number[classes] = torch.arange(len(classes))
        train, test = (number[labels] >= 0 for labels in (self.train_labels, self.test_labels))
        return replace(
            self,
            classes=[self.classes[k] for k in classes],
            train_images=self.train_images[train],
            train_labels=number[self.train_labels[train]],
            test_images=self.test_images[test],
            test_labels=number[self.test_labels[test]],
        )


def load(name: str, folder: Path) -> Data:
    """MNIST or CIFAR-10 from a torchvision root; what is missing is downloaded into it.

    Every file is compared with the MD5 sum of the published one before anything in it is read
    (CIFAR-10's files are pickles, which can run code).

    Raises:
        DownloadFailed: files are missing and could not be downloaded.
        Problem: a file is not the published one, or cannot be read.
    """
    dataset, published = PUBLISHED[name]
    if folder.exists() and not folder.is_dir():
        raise Problem(f"--data {folder} is not a folder. Give the folder that holds {top(name)}/.")
    missing = [file for file in published if not (folder / file).is_file()]
    check(name, folder, [file for file in published if file not in missing])
    if missing:
        download(name, folder, missing)
        check(name, folder, missing)
    train, test = dataset(folder, train=True), dataset(folder, train=False)
    return Data(
        name,
        list(train.classes) if name == "CIFAR-10" else [str(digit) for digit in range(10)],
        *(tensor for split in (train, test) for tensor in (_pixels(split.data), torch.as_tensor(split.targets))),
        checksums=dict(published),
    )


class DownloadFailed(Problem):
    """The data set is neither on disk nor to be had from its server."""


def download(name: str, folder: Path, missing: list[str]) -> None:
    """Let torchvision fetch a data set into its root; give up after some seconds of silence."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    print(f"Downloading {name} to {folder} ...", flush=True)
    try:
        PUBLISHED[name][0](folder, download=True)
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DownloadFailed(
            f"{name} is not in {folder} and could not be downloaded ({reason}). Missing: {', '.join(missing)}. "
            f"Get them on another machine from {SOURCE[name]} (unpacked) and put them under {folder}, "
            "name the folder that has them with --data, or try --data synthetic."
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def check(name: str, folder: Path, files: list[str]) -> None:
    """Raise Problem unless each of the files is, byte for byte, the published one."""
    for file in files:
        path = folder / file
        try:
            with open(path, "rb") as handle:
                md5 = hashlib.file_digest(handle, "md5").hexdigest()
        except OSError as error:
            raise Problem(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
        if md5 != PUBLISHED[name][1][file]:
            raise Problem(
                f"{path} is not the published file (MD5 {md5}, expected {PUBLISHED[name][1][file]}). "
                "Delete it, and the next run downloads it again."
            )


def top(name: str) -> str:
    """The folder of a data set inside a torchvision root."""
    return next(iter(PUBLISHED[name][1])).split("/")[0]


def _pixels(images: np.ndarray | Tensor) -> Tensor:
    images = torch.as_tensor(images)
    return images if images.ndim == 4 else images[..., None]


# --- augmentation: batches of uint8 images in, float images in [0, 1] out ------------------------


def to_float(images: Tensor) -> Tensor:
    """uint8 N × H × W × C to float N × C × H × W in [0, 1], in channels_last order without a copy."""
    return images.permute(0, 3, 1, 2).float() / 255


def fade(progress: float, full: float) -> float:
    """The strength of an augmentation: 1 until the part ``full`` of the training is done, then linearly down to 0."""
    return 1.0 if progress < full else (1 - progress) / (1 - full)


def shift_and_flip(images: Tensor, pixels: int, flip: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to ``pixels`` in x and y, its border reflected, and mirrored where ``flip`` says.

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
    return images[torch.arange(n, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def random_squares(shape: tuple, side: int, generator: torch.Generator) -> Tensor:
    """One square of ``side`` pixels in each image, wholly inside it, as a mask: bool, N × H × W.

    Args:
        shape: of the images, N × H × W and anything beyond.
    """
    inside = []
    for size in shape[1:3]:
        place = torch.arange(size, device=generator.device)
        start = (torch.rand(shape[0], 1, generator=generator, device=generator.device) * (size - side + 1)).long()
        inside.append((place >= start) & (place < start + side))
    return inside[0][:, :, None] & inside[1][:, None, :]


def random_affine(images: Tensor, degrees: float, scale: float, shear: float, shift: float, generator: torch.Generator) -> Tensor:
    """Each image rotated, scaled, sheared and moved at random; black comes in at the border.

    Args:
        images: float, N × C × H × W.
        degrees: the largest rotation. scale: the largest relative change of size.
        shear: the largest shear. shift: the largest move, as a fraction of the image.
    """
    n = len(images)
    u = 2 * torch.rand((6, n), generator=generator, device=images.device) - 1
    angle = torch.deg2rad(degrees * u[0])
    cos, sin = torch.cos(angle), torch.sin(angle)
    wide, high = 1 + scale * u[1], 1 + scale * u[2]
    skew = shear * u[3]
    matrix = torch.stack(
        [cos * wide, (skew * cos - sin) * high, 2 * shift * u[4], sin * wide, (skew * sin + cos) * high, 2 * shift * u[5]]
    )
    grid = F.affine_grid(matrix.T.reshape(n, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def random_light(images: Tensor, contrast: float, brightness: float, tint: float, generator: torch.Generator) -> Tensor:
    """Each image with another contrast, brightness and colour, at random; values may leave [0, 1].

    Args:
        images: float, N × C × H × W.
        contrast: the largest relative change of the distance from mid-grey.
        brightness: the largest amount added to an image. tint: the largest amount added to one of its channels.
    """
    n, channels = images.shape[:2]
    u = 2 * torch.rand((2 + channels, n), generator=generator, device=images.device) - 1
    added = brightness * u[1] + tint * u[2:]
    return (images - 0.5) * (1 + contrast * u[0])[:, None, None, None] + 0.5 + added.T[:, :, None, None]


# --- corruption: uint8 images in and out ---------------------------------------------------------

CORRUPTIONS = ("noise", "occlusion", "contrast", "brightness")


def corrupt(images: Tensor, kind: str, strength: int, seed: int = 0) -> Tensor:
    """Damaged copies of images, uint8 N × H × W × C.

    Args:
        kind: one of CORRUPTIONS. noise: Gaussian, of standard deviation 0.08·strength of the range; occlusion: a
            grey square at random that hides (0.15·strength)² of the image; contrast: shrunk towards the image's
            mean, to 1 − 0.18·strength of it; brightness: 0.12·strength of the range is added.
        strength: 0 (unchanged) to 5.
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


# --- the synthetic stand-in ----------------------------------------------------------------------

SHAPES = ["circle", "square", "triangle", "diamond", "cross", "ring", "bar", "pillar", "frame", "star"]


def synthetic(name: str, train: int = 4000, test: int = 1000) -> Data:
    """Stands in for MNIST (rendered digits) or CIFAR-10 (coloured shapes): no download, always the same."""
    rng = np.random.default_rng(20190616)
    draw, classes = (_digit, [str(digit) for digit in range(10)]) if name == "MNIST" else (_shape, SHAPES)
    labels = rng.integers(10, size=train + test)
    images = torch.from_numpy(np.stack([draw(label, rng) for label in labels]))
    labels = torch.from_numpy(labels)
    return Data("synthetic", classes, images[:train], labels[:train], images[train:], labels[train:], {})


def _digit(label: int, rng: np.random.Generator) -> np.ndarray:
    picture = Image.new("L", (56, 56))
    font = ImageFont.load_default(size=rng.uniform(34, 46))
    ImageDraw.Draw(picture).text((28 + rng.uniform(-5, 5), 28 + rng.uniform(-5, 5)), str(label), 255, font, anchor="mm")
    picture = picture.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR).resize((28, 28), Image.Resampling.BOX)
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
            draw.polygon(np.stack([x + reach * np.sin(turn), y - reach * np.cos(turn)], axis=1).ravel().tolist(), fill=ink)
    return _noisy(np.asarray(picture.resize((32, 32), Image.Resampling.BOX)), rng)


def _noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
