"""Data sets on disk, checked and read into tensors: the bytes that are hashed are decoded."""

import errno
import hashlib
import http.client
import os
import pickle
import shutil
import socket
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiment.errors import Problem, reason, unwritable
from experiment.records import remove_leftovers, temporary_path

DOWNLOAD_TIMEOUT = 15.0  # seconds without a byte after which a download gives up
DISK = {errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES}  # not the network's errors
BROKEN = (  # what a bad server makes urllib, torchvision and the unpacking raise
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    zlib.error,
    http.client.HTTPException,
)


class Published(NamedTuple):
    """Size in bytes and MD5 sum of a file as its authors published it."""

    size: int
    md5: str


class Archive(NamedTuple):
    """A packed file to download, from the first of the addresses that has it.

    folder: where in the data set's root it is unpacked. file: the one that it holds; empty if it
        holds all of them.
    """

    urls: tuple[str, ...]
    md5: str
    folder: str
    file: str = ""

    def holds(self, file: str) -> bool:
        """Whether one of the data set's files is in it."""
        return self.file in ("", file)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set comes from, and how it is read.

    files: the unpacked files by their path in torchvision's layout.
    decode: what one of these files holds. collect: from all of that, by path, to the names of the
        classes, the training images and labels, and the test images and labels.
    """

    name: str
    files: dict[str, Published]
    archives: list[Archive]
    decode: Callable[[bytearray], Any]
    collect: Callable[[dict[str, Any]], tuple[list[str], Tensor, Tensor, Tensor, Tensor]]


@dataclass
class Data:
    """Images, uint8, N × height × width × channels; labels, int64, N, in [0, len(classes))."""

    name: str
    classes: list[str]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    checksums: dict[str, str]

    def __post_init__(self) -> None:
        for split, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if len(images) != len(labels) or not len(labels):
                counts = f"{len(images)} images and {len(labels)} labels"
                raise Problem(f"The {split} set of {self.name} has {counts}.")
            if not 0 <= labels.min() <= labels.max() < len(self.classes):
                allowed = f"[0, {len(self.classes) - 1}]"
                raise Problem(f"The {split} labels of {self.name} are not all in {allowed}.")

    def to(self, device: torch.device) -> "Data":
        """The same data on another device."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )

    def for_validation(self, held_out: int = 5000) -> "Data":
        """The training set without its last ``held_out`` images, with these as the test set."""
        return replace(
            self,
            train_images=self.train_images[:-held_out],
            train_labels=self.train_labels[:-held_out],
            test_images=self.train_images[-held_out:],
            test_labels=self.train_labels[-held_out:],
        )

    def select_classes(self, classes: list[int]) -> "Data":
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


def decode_idx(content: bytearray) -> Tensor:
    """The numbers, uint8, of a file in LeCun's IDX format, http://yann.lecun.com/exdb/mnist/.

    After two zeros, the type and the number of dimensions, it has each size in 4 bytes, the
    highest first.
    """
    dimensions = content[3]
    sizes = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * dimensions).view(sizes)


def collect_mnist(parts: dict[str, Tensor]) -> tuple[list[str], Tensor, Tensor, Tensor, Tensor]:
    """MNIST's tensors from those of its four files."""
    images, labels, test_images, test_labels = parts.values()
    classes = [str(digit) for digit in range(10)]
    return classes, images[..., None], labels.long(), test_images[..., None], test_labels.long()


def decode_pickle(content: bytearray) -> dict[str, Any]:
    """A file of CIFAR-10, pickled by Python 2. Only for bytes that have the published sum."""
    return pickle.loads(content, encoding="latin1")


def collect_cifar10(parts: dict[str, dict]) -> tuple[list[str], Tensor, Tensor, Tensor, Tensor]:
    """CIFAR-10's tensors from its batches, each of 10,000 rows of 3 × 32 × 32 values."""
    *batches, meta = parts.values()
    tensors = []
    for split in (batches[:-1], batches[-1:]):
        rows = np.vstack([batch["data"] for batch in split])
        images = torch.from_numpy(rows).view(-1, 3, 32, 32).permute(0, 2, 3, 1)
        tensors += [images, torch.tensor([label for batch in split for label in batch["labels"]])]
    return list(meta["label_names"]), *tensors  # type: ignore[return-value]


MNIST = Source(
    name="MNIST",
    files={
        "MNIST/raw/train-images-idx3-ubyte": Published(
            47_040_016, "6bbc9ace898e44ae57da46a324031adb"
        ),
        "MNIST/raw/train-labels-idx1-ubyte": Published(60_008, "a25bea736e30d166cdddb491f175f624"),
        "MNIST/raw/t10k-images-idx3-ubyte": Published(
            7_840_016, "2646ac647ad5339dbf082846283269ea"
        ),
        "MNIST/raw/t10k-labels-idx1-ubyte": Published(10_008, "27ae3e4e09519cfbb04c329615203637"),
    },
    archives=[
        Archive(
            tuple(
                f"{mirror}/{name}.gz"
                for mirror in (
                    "https://ossci-datasets.s3.amazonaws.com/mnist",
                    "http://yann.lecun.com/exdb/mnist",
                )
            ),
            md5,
            folder="MNIST/raw",
            file=f"MNIST/raw/{name}",
        )
        for name, md5 in (
            ("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432"),
            ("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3"),
            ("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c"),
        )
    ],
    decode=decode_idx,
    collect=collect_mnist,
)
CIFAR10 = Source(
    name="CIFAR-10",
    files={
        f"cifar-10-batches-py/{name}": Published(size, md5)
        for name, size, md5 in (
            ("data_batch_1", 31_035_704, "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", 31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", 31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", 31_035_696, "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", 31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
            ("test_batch", 31_035_526, "40351d587109b95175f43aff81a1287e"),
            ("batches.meta", 158, "5ff9c542aee3614f3951f8cda6e48888"),
        )
    },
    archives=[
        Archive(
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            "c58f30108f718f92721af3b95e74349a",
            folder="",
        )
    ],
    decode=decode_pickle,
    collect=collect_cifar10,
)
SOURCES = {source.name: source for source in (MNIST, CIFAR10)}


class DownloadFailed(Problem):
    """The data set is neither on disk nor to be had from its server."""


def load(
    name: str, folder: Path, source: Source | None = None, timeout: float = DOWNLOAD_TIMEOUT
) -> Data:
    """MNIST or CIFAR-10 from a torchvision root; what is missing is downloaded into it.

    Each file is read once into memory, compared there with the size and the MD5 sum of the
    published one, and decoded there. Nothing else in the folder is read. CIFAR-10's files are
    pickles, which can run code: only the published ones are opened.

    A file that is the beginning of the published one, as a kill or a full disk leaves it, counts
    as missing. Any other one that is not the published file is left alone.

    Args:
        source: instead of that of ``name``. timeout: seconds without a byte after which a
            download gives up.

    Raises:
        DownloadFailed: files are missing and could not be downloaded.
        Problem: a file is not the published one, or cannot be read.
    """
    source = source or SOURCES[name]
    try:
        if folder.exists() and not folder.is_dir():
            top = next(iter(source.files)).split("/")[0]
            raise Problem(f"--data {folder} is not a folder. Give the folder that holds {top}/.")
    except OSError as error:
        raise Problem(f"--data {folder} cannot be read: {reason(error)}.") from error
    remove_leftovers(folder, "download")
    parts: dict[str, Any] = dict.fromkeys(source.files)
    missing = []
    for file, published in source.files.items():
        content = read(folder / file, published)
        if content is None:
            missing.append(file)
        else:
            parts[file] = source.decode(content)
    if missing:
        download(source, folder, missing, timeout)
    for file in missing:
        content = read(folder / file, source.files[file])
        if content is None:
            raise Problem(f"{folder / file} was removed while it was read. Start again.")
        parts[file] = source.decode(content)
    checksums = {file: published.md5 for file, published in source.files.items()}
    return Data(source.name, *source.collect(parts), checksums=checksums)


def read(path: Path, published: Published) -> bytearray | None:
    """The content of a file that is the published one; None if it is missing, or too short.

    Raises Problem for any other file, and for one that cannot be read.
    """
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise Problem(f"{path} is not a file. Delete it, and the next run downloads it.")
        with open(path, "rb") as file:
            size, content = os.fstat(file.fileno()).st_size, bytearray(published.size)
            if size == published.size:
                size = file.readinto(content) + len(file.read(1))
    except OSError as error:
        check = " Check its permissions." if isinstance(error, PermissionError) else ""
        raise Problem(f"{path} cannot be read: {reason(error)}.{check}") from error
    if size < published.size:
        return None
    found, expected = f"{size} bytes", f"{published.size}"
    if size == published.size:
        found, expected = f"MD5 {md5(content)}", published.md5
        if md5(content) == published.md5:
            return content
    raise Problem(
        f"{path} is not the published file ({found}, expected {expected}). "
        "Delete it, and the next run downloads it again."
    )


def md5(content: bytes | bytearray) -> str:
    """The MD5 sum in hexadecimal digits."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def download(source: Source, folder: Path, missing: list[str], timeout: float) -> None:
    """Fetch a data set and put its missing files in their places, each whole or not at all.

    Raises:
        DownloadFailed: no server has the published files.
        Problem: ``folder`` cannot be written, or a file in it that is too short is not the
            beginning of the published one.
    """
    temporary, new = temporary_path(folder / "download"), not folder.exists()
    print(f"Downloading {source.name} to {folder} ...", flush=True)
    try:
        temporary.mkdir(parents=True)
        fetch(source, temporary, missing, timeout)
        for file in missing:
            content = read(temporary / file, source.files[file])
            if content is None:
                raise DownloadFailed(f"the archive does not hold {file}")
            path = folder / file
            if path.exists() and not content.startswith(path.read_bytes()):
                raise Problem(
                    f"{path} is not the published file, nor its beginning. "
                    "Delete it, and the next run downloads it again."
                )
        for file in missing:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / file, folder / file)
    except DownloadFailed as problem:
        raise DownloadFailed(
            f"{source.name} is not in {folder} and could not be downloaded ({problem}). "
            f"Missing or incomplete: {', '.join(missing)}. Get them on another machine from "
            f"{source.archives[0].urls[0].rsplit('/', 1)[0]}/ (unpacked) and put them under "
            f"{folder}, or name the folder that has them with --data."
        ) from problem
    except OSError as error:
        raise Problem(f"--data {folder} cannot be written: {unwritable(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if new:
            with suppress(OSError):
                folder.rmdir()  # if nothing came into it


def fetch(source: Source, root: Path, missing: list[str], timeout: float) -> None:
    """Download and unpack the archives that the missing files are in.

    Raises DownloadFailed if no server has them, OSError if ``root`` cannot be written.
    """
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        for archive in source.archives:
            if any(archive.holds(file) for file in missing):
                fetch_archive(archive, root)
    finally:
        socket.setdefaulttimeout(patience)


def fetch_archive(archive: Archive, root: Path) -> None:
    """Download an archive with torchvision and unpack it. Raises as :func:`fetch` does."""
    from torchvision.datasets.utils import download_and_extract_archive  # takes a second

    unpacked = root / archive.folder
    unpacked.mkdir(parents=True, exist_ok=True)
    for url in archive.urls:
        try:
            return download_and_extract_archive(url, str(root), str(unpacked), md5=archive.md5)
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno in DISK:
                raise
            failure = " ".join(str(error).split()) or type(error).__name__
    raise DownloadFailed(f"{os.path.basename(archive.urls[0])}: {failure}")
