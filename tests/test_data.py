"""Data on disk, damaged data, and the download, against a mirror on loopback."""

import gzip
import hashlib
import http.server
import pickle
import threading
import time

import numpy as np
import pytest
import torch
from torchvision import datasets

import arcface_cifar10
import arcface_mnist
from experiment import data, study
from experiment.records import Problem

IMAGES, LABELS = 3, 3


def idx(values: bytes, *sizes: int) -> bytes:
    """A file in LeCun's IDX format."""
    return bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes) + values


@pytest.fixture
def mirror(monkeypatch):
    """A small MNIST on an HTTP server of our own; ``behaviour`` maps a file to what goes wrong with it."""
    files = {}
    for kind in ("train", "t10k"):
        files[f"{kind}-images-idx3-ubyte"] = idx(bytes(range(IMAGES)) * 28 * 28, IMAGES, 28, 28)
        files[f"{kind}-labels-idx1-ubyte"] = idx(bytes(range(LABELS)), LABELS)
    packed = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    behaviour = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            name = self.path.rsplit("/", 1)[-1]
            content, wrong = packed[name], behaviour.get(name)
            if wrong == "missing":
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "HEAD":
                return None
            if wrong == "silent":
                time.sleep(3)
            elif wrong == "broken":
                self.wfile.write(content[: len(content) // 2])
            elif wrong == "corrupted":
                self.wfile.write(bytes(len(content)))
            else:
                self.wfile.write(content)
            return None

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in (files | packed).items()}
    monkeypatch.setattr(datasets.MNIST, "resources", [(name, md5[name]) for name in packed])
    monkeypatch.setitem(data.PUBLISHED, "MNIST", (datasets.MNIST, {f"MNIST/raw/{name}": md5[name] for name in files}))
    yield behaviour
    server.shutdown()


def test_downloads_what_is_missing(mirror, tmp_path):
    found = data.load("MNIST", tmp_path)
    assert found.train_images.shape == (IMAGES, 28, 28, 1)
    assert found.test_labels.tolist() == [0, 1, 2]
    mirror["train-images-idx3-ubyte.gz"] = "missing"
    assert torch.equal(data.load("MNIST", tmp_path).train_images, found.train_images)


@pytest.mark.parametrize("wrong", ["missing", "silent", "broken", "corrupted"])
def test_a_bad_transfer_ends_with_one_message_and_can_be_repeated(mirror, tmp_path, wrong, monkeypatch):
    monkeypatch.setattr(data, "SILENCE", 0.5)
    mirror["t10k-labels-idx1-ubyte.gz"] = wrong
    began = time.monotonic()
    with pytest.raises(data.DownloadFailed) as caught:
        data.load("MNIST", tmp_path)
    assert time.monotonic() - began < 2.5
    message = str(caught.value)
    assert "\n" not in message and "t10k-labels-idx1-ubyte" in message and "--data" in message and str(tmp_path) in message
    mirror.clear()
    assert data.load("MNIST", tmp_path).test_labels.tolist() == [0, 1, 2]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def swap(path):
    path.write_bytes((path.parent / "train-labels-idx1-ubyte").read_bytes())


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, swap])
def test_a_damaged_file_is_named_and_left_alone(mirror, tmp_path, damage):
    data.load("MNIST", tmp_path)
    victim = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    damage(victim)
    before = victim.read_bytes()
    with pytest.raises(Problem, match=r"t10k-images-idx3-ubyte is not the published file.*Delete it"):
        data.load("MNIST", tmp_path)
    assert victim.read_bytes() == before


def test_an_unreadable_file_is_named(mirror, tmp_path, monkeypatch):
    """The error is injected: root may read everything."""
    data.load("MNIST", tmp_path)
    refuse = PermissionError(13, "Permission denied")
    monkeypatch.setattr(data.hashlib, "file_digest", lambda *_: (_ for _ in ()).throw(refuse))
    with pytest.raises(Problem, match=r"train-images-idx3-ubyte cannot be read: Permission denied"):
        data.load("MNIST", tmp_path)


def test_a_renamed_file_is_fetched_again(mirror, tmp_path):
    labels = data.load("MNIST", tmp_path).test_labels
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").rename(tmp_path / "MNIST/raw/t10k-labels")
    assert torch.equal(data.load("MNIST", tmp_path).test_labels, labels)


def test_an_altered_pickle_is_never_opened(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(Problem, match="data_batch_1 is not the published file"):
        data.load("CIFAR-10", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_labels_and_lengths_are_checked():
    images, labels = torch.zeros(4, 8, 8, 1, dtype=torch.uint8), torch.tensor([0, 1, 2, 1])
    data.Data("x", ["a", "b", "c"], images, labels, images, labels, {})
    with pytest.raises(Problem, match="4 images and 3 labels"):
        data.Data("x", ["a", "b", "c"], images, labels[:3], images, labels, {})
    with pytest.raises(Problem, match=r"test labels of x are not all in \[0, 1\]"):
        data.Data("x", ["a", "b"], images, labels.clamp(max=1), images, labels, {})


def test_the_real_files_are_read_as_torchvision_reads_them(real_data):
    found, theirs = data.load("CIFAR-10", real_data), datasets.CIFAR10(real_data, train=False)
    image, label = theirs[17]
    assert found.test_labels[17] == label and found.classes[label] == theirs.classes[label]
    assert torch.equal(found.test_images[17], torch.from_numpy(np.array(image)))
    held_out = found.for_validation()
    assert torch.equal(held_out.test_images, found.train_images[45000:]) and len(held_out.train_labels) == 45000


@pytest.mark.parametrize("name", ["MNIST", "CIFAR-10"])
def test_the_stand_in_is_always_the_same(name):
    one, two = data.synthetic(name, 30, 10), data.synthetic(name, 30, 10)
    assert torch.equal(one.train_images, two.train_images) and torch.equal(one.test_labels, two.test_labels)
    assert one.train_images.shape[1:] == ((28, 28, 1) if name == "MNIST" else (32, 32, 3))


def test_shift_and_flip_without_shift_only_mirrors():
    images = torch.randint(256, (2, 6, 6, 3), dtype=torch.uint8)
    flip = torch.tensor([False, True])
    found = data.shift_and_flip(images, 0, flip, torch.Generator())
    assert torch.equal(found[0], images[0]) and torch.equal(found[1], images[1].flip(1))


def test_shifts_are_crops_of_the_reflected_image():
    images = torch.randint(256, (200, 6, 6, 1), dtype=torch.uint8)
    found = data.shift_and_flip(images, 2, torch.zeros(200, dtype=torch.bool), torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(images[..., 0].float(), (2, 2, 2, 2), mode="reflect").byte()
    crops = [padded[:, y : y + 6, x : x + 6, None] for y in range(5) for x in range(5)]
    which = torch.stack([(found == crop).flatten(1).all(dim=1) for crop in crops])
    assert which.any(dim=0).all() and which.any(dim=1).all()


def test_affine_without_freedom_changes_nothing():
    images = torch.rand(4, 1, 9, 9)
    assert torch.allclose(data.random_affine(images, 0, 0, 0, 0, torch.Generator()), images, atol=1e-6)


def test_light_is_a_straight_line_per_channel_within_its_bounds():
    images = torch.rand(200, 3, 4, 4)
    found = data.random_light(images, contrast=0.4, brightness=0.2, tint=0.1, generator=torch.Generator().manual_seed(0))
    lines = [
        np.polyfit(x - 0.5, y - 0.5, 1)
        for x, y in zip(images.flatten(0, 1).flatten(1), found.flatten(0, 1).flatten(1), strict=True)
    ]
    slope, added = torch.tensor(np.array(lines)).view(200, 3, 2).unbind(2)
    assert torch.allclose(
        found, (slope * (images - 0.5).permute(2, 3, 0, 1) + added + 0.5).permute(2, 3, 0, 1).float(), atol=1e-5
    )
    assert 0.35 < (slope - 1).abs().max() < 0.4001 and (slope.amax(dim=1) - slope.amin(dim=1)).max() < 1e-5
    assert 0.25 < added.abs().max() < 0.3001 and 0.15 < (added.amax(dim=1) - added.amin(dim=1)).max() < 0.2001


def test_cifar10_s_best_recipe_ends_in_the_light_of_the_images():
    images, flip = torch.randint(256, (50, 32, 32, 3), dtype=torch.uint8), torch.zeros(50, dtype=torch.bool)
    augment = lambda progress, light: arcface_cifar10.BEST.augment(  # noqa: E731
        images, flip, progress, torch.Generator().manual_seed(0), hidden=0, shift=0, light=light
    )
    full, half, end = ((augment(progress, 0.4) - augment(progress, 0)).abs().mean().item() for progress in (0.7, 0.85, 0.9999))
    assert full == pytest.approx(2 * half, rel=1e-3) and end < 1e-3 * full and full > 0.02


def distance(augment, images: torch.Tensor, progress: float) -> float:
    """How far augment takes digits from what they were, with the same random numbers each time."""
    x = augment(images, None, progress, torch.Generator().manual_seed(0))
    return (x - data.to_float(images)).abs().mean().item()


def test_mnist_ends_with_the_images_as_they_are_and_the_study_s_does_not():
    images = data.synthetic("MNIST", train=50, test=10).train_images
    start, full, later, end = (distance(arcface_mnist.augment, images, progress) for progress in (0.0, 0.6, 0.9, 1.0))
    assert start == full > later > 100 * end
    assert distance(study.RECIPES["mnist"].augment, images, 0.99) == start


def test_cifar10_images_are_shrunk_and_end_at_full_size():
    images = torch.randint(256, (6, 32, 32, 3), dtype=torch.uint8)
    flip, generator = torch.zeros(6, dtype=torch.bool), torch.Generator()
    sizes = [arcface_cifar10.augment(images, flip, progress, generator).shape[2] for progress in (0.0, 0.25, 0.5, 0.99)]
    assert sizes == [20, 24, 28, 32]
    last = arcface_cifar10.augment(images, flip, 0.99, generator.manual_seed(0), hidden=0)
    assert torch.equal(last, data.to_float(data.shift_and_flip(images, 3, flip, generator.manual_seed(0))))


@pytest.mark.parametrize(("recipe", "side"), [("default", 5), ("best", 12)])
def test_cifar10_hides_a_grey_square_of_each_image(recipe, side):
    images, flip = torch.full((50, 32, 32, 3), 7, dtype=torch.uint8), torch.zeros(50, dtype=torch.bool)
    x = arcface_cifar10.RECIPES[recipe].augment(images, flip, 0.99, torch.Generator().manual_seed(0), light=0)
    assert x.shape == (50, 3, 32, 32) and set(x.unique().tolist()) == set((torch.tensor([7.0, 128.0]) / 255).tolist())
    hidden = (x > 0.1).all(dim=1)
    assert (hidden.sum(dim=(1, 2)) == side * side).all()
    for axis in (1, 2):  # a square: as many rows as columns, side by side, and not always the same ones
        line = hidden.any(dim=axis)
        first = line.int().argmax(dim=1)
        assert (line.sum(dim=1) == side).all() and line[torch.arange(50), first + side - 1].all() and len(first.unique()) > 5


def test_the_study_s_cifar10_images_are_shrunk_and_then_cropped():
    images = torch.randint(256, (6, 32, 32, 3), dtype=torch.uint8)
    flip, generator = torch.zeros(6, dtype=torch.bool), torch.Generator()
    augment = study.RECIPES["cifar10"].augment
    sizes = [augment(images, flip, progress, generator).shape[2] for progress in (0.0, 0.5, 0.99)]
    assert sizes == [20, 24, 28]
    cropped = augment(images, flip, 0.99, generator.manual_seed(0))
    whole = data.to_float(data.shift_and_flip(images, 2, flip, generator.manual_seed(0)))
    assert torch.equal(cropped, whole[:, :, 2:30, 2:30])
