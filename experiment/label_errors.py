"""Test images whose published label people reject, and the accuracy on corrected labels.

C. Northcutt, A. Athalye, J. Mueller, "Pervasive label errors in test sets destabilize machine
learning benchmarks", 2021, https://arxiv.org/abs/2103.14749; their table is in label-errors/.
"""

import csv
from pathlib import Path
from typing import Any

from torch import Tensor

from experiment.errors import Problem

FILES = {"MNIST": "mnist.csv", "CIFAR-10": "cifar10.csv"}
IMAGES = 10_000  # in each of both test sets
MAJORITY = 3  # of five people


def validated(dataset: str) -> dict[int, int | None]:
    """The validated label errors of a test set: an image's index → the right label, None if none.

    Empty for other data sets than MNIST and CIFAR-10. Raises Problem if the table cannot be read.
    """
    if dataset not in FILES:
        return {}
    path = Path(__file__).parent / "label-errors" / FILES[dataset]
    try:
        with path.open(encoding="ascii", newline="") as file:
            rows = [{key: int(value) for key, value in row.items()} for row in csv.DictReader(file)]
        return {
            row["index"]: row["proposed"] if row["votes_proposed"] >= MAJORITY else None
            for row in rows
            if row["votes_given"] < MAJORITY
        }
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise Problem(f"{path} cannot be read ({error}). Restore it.") from error


def on_corrected_labels(dataset: str, labels: Tensor, predicted: Tensor) -> dict[str, Any]:
    """Mistakes on images with a validated label error, and the accuracy on corrected labels.

    Args:
        labels, predicted: of all test images in the published order, N each.

    Returns:
        mistakes_on_label_errors: how many of the wrong answers are for images with a validated
        label error. test_accuracy_corrected: the accuracy with the right labels, without the
        images that have none. Both are None for other images.
    """
    errors = validated(dataset)
    if not errors or len(labels) != IMAGES:
        return {"mistakes_on_label_errors": None, "test_accuracy_corrected": None}
    index = list(errors)
    right = labels.clone()
    right[[k for k in index if errors[k] is not None]] = labels.new_tensor(
        [label for label in errors.values() if label is not None]
    )
    kept = labels.new_ones(len(labels)).bool()
    kept[[k for k in index if errors[k] is None]] = False
    return {
        "mistakes_on_label_errors": int((predicted[index] != labels[index]).sum()),
        "test_accuracy_corrected": (predicted == right)[kept].sum().item() / int(kept.sum()),
    }
