"""Corruptions are what their description says; the nearest class mean by angle and by distance."""

import pytest
import torch

from study.corruption import CORRUPTIONS, STRENGTHS, corrupt, nearest_mean


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_grows_with_its_strength(kind):
    images = torch.randint(40, 120, (50, 28, 28, 1), dtype=torch.uint8)
    change = [(corrupt(images, kind, k).float() - images.float()).abs().mean() for k in STRENGTHS]
    assert change[0] == 0 and change == sorted(change) and change[5] > 10
    assert torch.equal(corrupt(images, kind, 3), corrupt(images, kind, 3))


def test_corruptions_are_what_their_description_says():
    grey = torch.full((200, 20, 20, 3), 102, dtype=torch.uint8)
    noise = corrupt(grey, "noise", 2).float() / 255
    assert noise.std().item() == pytest.approx(0.16, abs=0.01)
    hidden = corrupt(grey, "occlusion", 2) != 102
    assert hidden.all(dim=3).float().mean().item() == pytest.approx(0.09)
    assert corrupt(grey, "brightness", 2).unique().tolist() == [round(102 + 0.24 * 255)]
    halves = torch.tensor([50, 150], dtype=torch.uint8).repeat(1, 20, 10)[..., None]
    faint = [round(100 - 50 * (1 - 0.36)), round(100 + 50 * (1 - 0.36))]
    assert corrupt(halves, "contrast", 2).unique().tolist() == faint
    with pytest.raises(ValueError, match="kind is 'fog'"):
        corrupt(grey, "fog", 1)


def test_a_longer_embedding_changes_the_distance_but_not_the_angle():
    means, labels = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
    assert nearest_mean(means, labels, means) == {"cosine": 1.0, "euclidean": 1.0}
    assert nearest_mean(0.1 * means, labels, means) == {"cosine": 1.0, "euclidean": 0.5}
