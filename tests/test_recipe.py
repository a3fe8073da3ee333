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
        if loss != "softmax":
            ArcMarginProduct(2, 2, **recipe.margins(loss, 1.0))
    with pytest.raises(KeyError):
        recipe.margins("softmax", None)


def test_what_no_option_changes_is_plain_data(script):
    for chosen in script.RECIPES.values():
        found = chosen.hyperparameters
        assert json.loads(json.dumps(found)) == found
        assert not found.keys() & {"epochs", "batch_size", "scale", "embedding_size"}
