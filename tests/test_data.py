"""Data on disk, damaged data, and the download, against a mirror on loopback."""

import errno
import gzip
import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiment import data
from experiment.data import Archive, Data, Published
from experiment.errors import Problem
from tests.permissions import unprivileged
from tests.test_records import dead_process

COUNT = 3  # images and labels of the small data sets


def idx(values: bytes, *sizes: int) -> bytes:
    """A file in LeCun's IDX format."""
    header = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    return header + values


def small_mnist() -> dict[str, bytes]:
    files = {}
    for kind in ("train", "t10k"):
        pixels = bytes(range(COUNT)) * 28 * 28
        files[f"MNIST/raw/{kind}-images-idx3-ubyte"] = idx(pixels, COUNT, 28, 28)
        files[f"MNIST/raw/{kind}-labels-idx1-ubyte"] = idx(bytes(range(COUNT)), COUNT)
    return files


def small_cifar10() -> dict[str, bytes]:
    rows = np.arange(COUNT * 3072).astype(np.uint8).reshape(COUNT, 3072)
    batch = pickle.dumps({"data": rows, "labels": list(range(COUNT))}, protocol=2)
    meta = pickle.dumps({"label_names": list("abcdefghij")}, protocol=2)
    names = [f"cifar-10-batches-py/{file.split('/')[1]}" for file in data.CIFAR10.files]
    return {name: meta if name.endswith("meta") else batch for name in names}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Mirror:
    """Small data sets on an HTTP server of our own. wrong: what goes wrong, by archive."""

    def __init__(self):
        self.wrong: dict[str, str] = {}
        self.asked: list[str] = []
        self.packed: dict[str, bytes] = {}
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.answer(self, self.path.rsplit("/", 1)[-1])

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.done = threading.Event()
        self.mnist = self.source(data.MNIST, small_mnist())
        self.cifar10 = self.source(data.CIFAR10, small_cifar10())

    def source(self, source: data.Source, files: dict[str, bytes]) -> data.Source:
        """A source with small files, which this server has."""
        archives = []
        if source is data.MNIST:
            for file, content in files.items():
                name = f"{os.path.basename(file)}.gz"
                self.packed[name] = gzip.compress(content)
                archives.append((name, "MNIST/raw", file))
        else:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w:gz") as archive:
                for file, content in files.items():
                    entry = tarfile.TarInfo(file)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
            self.packed["cifar.tar.gz"] = packed.getvalue()
            archives.append(("cifar.tar.gz", "", ""))
        return replace(
            source,
            files={file: Published(len(c), md5(c)) for file, c in files.items()},
            archives=[
                Archive((f"{self.address}/{name}",), md5(self.packed[name]), folder, file)
                for name, folder, file in archives
            ],
        )

    def answer(self, request, name):
        content, wrong = self.packed[name], self.wrong.get(name)
        self.asked.append(name)
        if wrong == "missing":
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if wrong == "silent":
            self.done.wait(30)
        elif wrong == "broken":
            request.wfile.write(content[: len(content) // 2])
        elif wrong == "corrupted":
            request.wfile.write(bytes(len(content)))
        else:
            request.wfile.write(content)


@pytest.fixture
def mirror():
    mirror = Mirror()
    yield mirror
    mirror.done.set()
    mirror.server.shutdown()
    mirror.server.server_close()


def files(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_mnist_is_downloaded_once(mirror, tmp_path):
    loaded = data.load("MNIST", tmp_path, mirror.mnist)
    assert loaded.train_images.shape == (COUNT, 28, 28, 1)
    assert loaded.train_images.flatten().tolist() == list(range(COUNT)) * 28 * 28
    assert loaded.test_labels.tolist() == [0, 1, 2] and loaded.test_labels.dtype == torch.int64
    assert files(tmp_path) == small_mnist()  # and no archive or temporary file
    mirror.asked.clear()
    again = data.load("MNIST", tmp_path, mirror.mnist)
    assert torch.equal(again.train_images, loaded.train_images) and not mirror.asked
    assert loaded.checksums == {file: md5(content) for file, content in small_mnist().items()}


def test_cifar10_is_downloaded_and_put_in_order(mirror, tmp_path):
    loaded = data.load("CIFAR-10", tmp_path, mirror.cifar10)
    assert loaded.train_images.shape == (5 * COUNT, 32, 32, 3) and loaded.classes[2] == "c"
    planes = np.arange(3072).astype(np.uint8).reshape(3, 32, 32)  # of the first row: R, G, B
    assert np.array_equal(loaded.test_images[0].numpy(), planes.transpose(1, 2, 0))
    assert loaded.train_labels.tolist() == [0, 1, 2] * 5
    assert files(tmp_path) == small_cifar10()


def test_only_what_is_missing_is_downloaded(mirror, tmp_path):
    data.load("MNIST", tmp_path, mirror.mnist)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").rename(tmp_path / "MNIST/raw/t10k-labels")
    mirror.asked.clear()
    data.load("MNIST", tmp_path, mirror.mnist)
    assert set(mirror.asked) == {"t10k-labels-idx1-ubyte.gz"}


@pytest.mark.parametrize("wrong", ["missing", "silent", "broken", "corrupted"])
def test_a_bad_transfer_is_one_message_and_can_be_repeated(mirror, tmp_path, wrong):
    mirror.wrong["t10k-labels-idx1-ubyte.gz"] = wrong
    with pytest.raises(data.DownloadFailed) as caught:
        data.load("MNIST", tmp_path, mirror.mnist, timeout=0.5)
    message = str(caught.value)
    assert "\n" not in message and "t10k-labels-idx1-ubyte" in message
    assert "--data" in message and str(tmp_path) in message
    assert files(tmp_path) == {}
    with pytest.raises(data.DownloadFailed):
        data.load("MNIST", tmp_path / "mistyped", mirror.mnist, timeout=0.5)
    assert not (tmp_path / "mistyped").exists()
    mirror.wrong.clear()
    assert data.load("MNIST", tmp_path, mirror.mnist).test_labels.tolist() == [0, 1, 2]


def test_the_next_address_is_tried(mirror, tmp_path):
    archives = [
        archive._replace(urls=(f"{mirror.address[:-1]}1/nowhere", *archive.urls))
        for archive in mirror.mnist.archives
    ]
    source = replace(mirror.mnist, archives=archives)
    mirror.packed["nowhere"] = b""
    assert data.load("MNIST", tmp_path, source).test_labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("length", [0, 5, -1])
def test_the_beginning_of_a_file_is_replaced(mirror, tmp_path, length):
    """As it is left by a kill while another program unpacks, or by a full disk."""
    data.load("MNIST", tmp_path, mirror.mnist)
    victim = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    victim.write_bytes(victim.read_bytes()[:length])
    data.load("MNIST", tmp_path, mirror.mnist)
    assert files(tmp_path) == small_mnist()


def test_an_incomplete_file_without_a_network_is_named(mirror, tmp_path):
    data.load("MNIST", tmp_path, mirror.mnist)
    (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte").write_bytes(b"")
    mirror.wrong["t10k-images-idx3-ubyte.gz"] = "missing"
    with pytest.raises(data.DownloadFailed, match="incomplete: MNIST/raw/t10k-images-idx3-ubyte"):
        data.load("MNIST", tmp_path, mirror.mnist)


def flip_a_bit(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda content: content + b"x",
        lambda content: flip_a_bit(content)[:-1],
        lambda content: bytes(len(content)),
        lambda content: small_mnist()["MNIST/raw/train-labels-idx1-ubyte"],
    ],
    ids=["flipped", "longer", "flipped and shorter", "zeros", "another file"],
)
def test_any_other_file_is_named_and_left_alone(mirror, tmp_path, damage):
    data.load("MNIST", tmp_path, mirror.mnist)
    victim = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    victim.write_bytes(damage(victim.read_bytes()))
    before = files(tmp_path)
    with pytest.raises(Problem, match=r"t10k-images-idx3-ubyte is not the published.*Delete it"):
        data.load("MNIST", tmp_path, mirror.mnist)
    assert files(tmp_path) == before


def test_a_huge_file_is_refused_by_its_size_alone(tmp_path):
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    with open(path, "wb") as file:
        file.truncate(2**40)  # takes no space
    with pytest.raises(Problem, match=r"\(1099511627776 bytes, expected 47040016\)"):
        data.load("MNIST", tmp_path)


def test_an_old_cache_of_torchvision_is_not_read(mirror, tmp_path):
    loaded = data.load("MNIST", tmp_path, mirror.mnist)
    processed = tmp_path / "MNIST/processed"
    processed.mkdir()
    black = torch.zeros(100, 28, 28, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64)
    for name in ("training.pt", "test.pt"):
        torch.save(black, processed / name)
    again = data.load("MNIST", tmp_path, mirror.mnist)
    assert torch.equal(again.train_images, loaded.train_images)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (self.path.touch, ())


def test_an_altered_pickle_is_never_opened(mirror, tmp_path):
    data.load("CIFAR-10", tmp_path, mirror.cifar10)
    victim = tmp_path / "cifar-10-batches-py/data_batch_1"
    size, evil = victim.stat().st_size, pickle.dumps(Evil(tmp_path / "ran"))
    victim.write_bytes(evil.ljust(size, b"\0"))
    with pytest.raises(Problem, match="data_batch_1 is not the published file"):
        data.load("CIFAR-10", tmp_path, mirror.cifar10)
    assert not (tmp_path / "ran").exists()


def test_a_file_swapped_after_it_was_hashed_is_not_opened(mirror, tmp_path):
    """What is decoded is in memory: at that moment the files are already others."""
    data.load("CIFAR-10", tmp_path, mirror.cifar10)
    evil = pickle.dumps(Evil(tmp_path / "ran"))

    def swap_and_decode(content):
        for file in mirror.cifar10.files:
            (tmp_path / file).write_bytes(evil)
        return data.decode_pickle(content)

    small = replace(mirror.cifar10, files=dict([next(iter(mirror.cifar10.files.items()))]))
    collected = []
    source = replace(
        small,
        decode=swap_and_decode,
        collect=lambda parts: collected.append(parts) or mirror.mnist.collect(tensors()),
    )
    data.load("CIFAR-10", tmp_path, source)
    assert next(iter(collected[0].values()))["labels"] == [0, 1, 2]
    assert not (tmp_path / "ran").exists()


def tensors():
    return {file: data.decode_idx(bytearray(content)) for file, content in small_mnist().items()}


def test_a_file_that_cannot_be_read_is_named(mirror, tmp_path):
    data.load("MNIST", tmp_path, mirror.mnist)
    (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte").chmod(0)
    with (
        unprivileged(),
        pytest.raises(Problem, match=r"cannot be read: Permission denied"),
    ):
        data.load("MNIST", tmp_path, mirror.mnist)


def test_a_pipe_or_folder_in_the_place_of_a_file_is_named(mirror, tmp_path):
    data.load("MNIST", tmp_path, mirror.mnist)
    victim = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    for make in (os.mkfifo, os.mkdir):
        victim.unlink()
        make(victim)
        with pytest.raises(Problem, match="t10k-images-idx3-ubyte is not a file"):
            data.load("MNIST", tmp_path, mirror.mnist)


def test_a_full_disk_is_not_called_a_bad_network(mirror, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Problem, match=r"cannot be written: No space left.*Free some") as caught:
        data.load("MNIST", tmp_path, mirror.mnist)
    assert not isinstance(caught.value, data.DownloadFailed) and files(tmp_path) == {}


def test_what_a_killed_download_left_is_removed(mirror, tmp_path):
    left = tmp_path / f".download.{dead_process()}.arcface.tmp"
    (left / "MNIST/raw").mkdir(parents=True)
    (left / "MNIST/raw/t10k").write_text("half")
    data.load("MNIST", tmp_path, mirror.mnist)
    assert not left.exists() and files(tmp_path) == small_mnist()


@pytest.mark.slow
def test_a_kill_leaves_no_partial_file_under_its_final_name(mirror, tmp_path):
    """The process is killed when three of the four archives are unpacked."""
    mirror.wrong["t10k-labels-idx1-ubyte.gz"] = "silent"
    child = os.fork()
    if child == 0:  # pragma: no cover: it is killed
        try:
            data.load("MNIST", tmp_path, mirror.mnist)
        finally:
            os._exit(1)
    for _ in range(600):
        if "t10k-labels-idx1-ubyte.gz" in mirror.asked:
            break
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert "t10k-labels-idx1-ubyte.gz" in mirror.asked
    assert not (tmp_path / "MNIST").exists() and len(list(tmp_path.iterdir())) == 1
    mirror.wrong.clear()
    mirror.done.set()
    data.load("MNIST", tmp_path, mirror.mnist)
    assert files(tmp_path) == small_mnist()


def test_labels_and_lengths_are_checked():
    images, labels = torch.zeros(4, 8, 8, 1, dtype=torch.uint8), torch.tensor([0, 1, 2, 1])
    Data("x", ["a", "b", "c"], images, labels, images, labels, {})
    with pytest.raises(Problem, match="4 images and 3 labels"):
        Data("x", ["a", "b", "c"], images, labels[:3], images, labels, {})
    with pytest.raises(Problem, match=r"test labels of x are not all in \[0, 1\]"):
        Data("x", ["a", "b"], images, labels.clamp(max=1), images, labels, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MNIST", "CIFAR-10"])
def test_the_real_files_are_read_as_torchvision_reads_them(real_data, name):
    from torchvision import datasets

    loaded = data.load(name, real_data)
    kind = {"MNIST": datasets.MNIST, "CIFAR-10": datasets.CIFAR10}[name]
    for train, images, labels in (
        (True, loaded.train_images, loaded.train_labels),
        (False, loaded.test_images, loaded.test_labels),
    ):
        theirs = kind(real_data, train=train)
        pixels = torch.as_tensor(theirs.data)
        assert torch.equal(images, pixels.view(images.shape) if name == "MNIST" else pixels)
        assert torch.equal(labels, torch.as_tensor(theirs.targets))
    assert loaded.classes == (
        theirs.classes if name == "CIFAR-10" else [str(digit) for digit in range(10)]
    )


def test_the_sums_are_those_that_torchvision_knows():
    from torchvision import datasets

    theirs = {*datasets.MNIST.resources}
    names = [(os.path.basename(a.urls[0]), a.md5) for a in data.MNIST.archives]
    assert {*names} == theirs
    assert data.MNIST.archives[0].urls[0].startswith(datasets.MNIST.mirrors[0])
    cifar = datasets.CIFAR10
    (archive,) = data.CIFAR10.archives
    assert (archive.urls, archive.md5) == ((cifar.url,), cifar.tgz_md5)
    lists = [*cifar.train_list, *cifar.test_list, [cifar.meta["filename"], cifar.meta["md5"]]]
    assert {file: p.md5 for file, p in data.CIFAR10.files.items()} == {
        f"{cifar.base_folder}/{name}": md5 for name, md5 in lists
    }


def numbered() -> Data:
    """Each image's only pixel is its number, each label its number modulo 3."""
    images, labels = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1), torch.arange(12) % 3
    return Data("x", ["a", "b", "c"], images, labels, images, labels, {})


def test_for_validation_holds_out_the_last_training_images():
    held = numbered().for_validation(held_out=4)
    assert held.train_images.flatten().tolist() == [*range(8)]
    assert held.test_images.flatten().tolist() == [8, 9, 10, 11]
    assert held.test_labels.tolist() == [2, 0, 1, 2]


def test_select_classes_numbers_them_anew():
    some = numbered().select_classes([2, 0])
    assert some.classes == ["c", "a"]
    assert some.train_images.flatten().tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
    assert some.train_labels.tolist() == [1, 0] * 4
