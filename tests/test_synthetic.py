"""experiment/synthetic.py: the stand-in is always the same, and it can be learnt."""

import hashlib

import pytest
import torch

from experiment import synthetic

SHAPES = {"MNIST": (28, 28, 1), "CIFAR-10": (32, 32, 3)}


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_made_like_the_real_data_and_says_that_it_is_not(name):
    found = synthetic.make(name, 300, 100)
    assert found.name == "synthetic" and found.checksums == {} and len(found.classes) == 10
    for images, labels, count in (
        (found.train_images, found.train_labels, 300),
        (found.test_images, found.test_labels, 100),
    ):
        assert images.shape == (count, *SHAPES[name]) and images.dtype == torch.uint8
        assert labels.shape == (count,) and labels.dtype == torch.int64
        assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_always_the_same_and_no_image_is_twice_in_it(name):
    one, two = synthetic.make(name, 200, 50), synthetic.make(name, 200, 50)
    for key, value in vars(one).items():
        other = getattr(two, key)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    images = torch.cat([one.train_images, one.test_images])
    assert len({hashlib.md5(image.numpy().tobytes()).digest() for image in images}) == 250


def test_digits_resemble_the_mean_of_their_class():
    """Nearest class mean in the pixels, fitted on the training images: chance is 10%."""
    found = synthetic.make("MNIST", 1000, 300)
    train, test = (images.float().flatten(1) for images in (found.train_images, found.test_images))
    means = torch.stack([train[found.train_labels == k].mean(dim=0) for k in range(10)])
    nearest = torch.cdist(test, means).argmin(dim=1)
    assert (nearest == found.test_labels).float().mean() > 0.4
