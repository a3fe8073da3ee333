"""experiment/recipe.py: the margin of each loss, and what of a recipe stands in a record."""

import json
import math

import pytest
import torch

from arcface_loss import ArcMarginProduct
from experiment import recipe


@pytest.mark.parametrize(
    ("loss", "margin", "expected"),
    [
        ("norm-softmax", None, math.cos(0.3)),
        ("sphereface", 1.2, math.cos(1.2 * 0.3)),
        ("cosface", 0.1, math.cos(0.3) - 0.1),
        ("arcface", 0.1, math.cos(0.3 + 0.1)),
        ("cm1", None, math.cos(0.3 + 0.3) - 0.2),
    ],
)
def test_each_loss_has_the_margin_of_its_paper(loss, margin, expected):
    head = ArcMarginProduct(2, 2, s=1.0, **recipe.margins(loss, margin))
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
    x = torch.tensor([[math.cos(0.3), math.sin(0.3)]])
    logits = head(x, torch.tensor([0]))
    assert logits[0].tolist() == pytest.approx([expected, math.sin(0.3)], abs=1e-6)


def test_every_loss_but_softmax_has_margins():
    for loss in recipe.LOSSES:
        assert bool(recipe.margins(loss, 1.0)) == (loss != "softmax")
        ArcMarginProduct(2, 2, **recipe.margins(loss, 1.0))
    with pytest.raises(KeyError):
        recipe.margins("centre loss", None)


@pytest.mark.parametrize("loss", recipe.LOSSES)
def test_a_margin_rises_from_none(loss):
    """At a share of 0 every loss is normalised softmax, and half-way each number is."""
    none = {"m": 0.0, "m1": 1.0, "m3": 0.0}
    start, half, whole = (recipe.margins(loss, 1.2, share) for share in (0.0, 0.5, 1.0))
    assert start == {key: none[key] for key in start}
    assert half == {key: pytest.approx((none[key] + whole[key]) / 2) for key in start}


def test_what_no_option_changes_is_plain_data(script):
    for chosen in script.RECIPES.values():
        found = chosen.hyperparameters
        assert json.loads(json.dumps(found)) == found
        assert not found.keys() & {"epochs", "batch_size", "scale", "embedding_size"}
