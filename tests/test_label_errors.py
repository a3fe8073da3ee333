"""experiment/label_errors.py: the published table, and accuracies on corrected labels."""

import pytest
import torch

from experiment import label_errors
from experiment.errors import Problem


@pytest.mark.parametrize(("dataset", "count"), [("MNIST", 15), ("CIFAR-10", 54)])
def test_the_validated_errors_are_as_many_as_published(dataset, count):
    errors = label_errors.validated(dataset)
    assert len(errors) == count
    assert all(0 <= index < 10_000 for index in errors)
    assert all(label is None or 0 <= label < 10 for label in errors.values())


def test_known_examples():
    """An MNIST 8 that five of five read as 9, and CIFAR-10's frog that is labelled cat."""
    assert label_errors.validated("MNIST")[947] == 9
    assert label_errors.validated("CIFAR-10")[2405] == 6


def test_answers_are_judged_with_and_without_the_errors(monkeypatch):
    """Six images; the label of image 1 should be 2, and image 4 has no right label."""
    monkeypatch.setattr(label_errors, "validated", lambda dataset: {1: 2, 4: None})
    monkeypatch.setattr(label_errors, "IMAGES", 6)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    predicted = torch.tensor([0, 2, 2, 1, 0, 2])  # wrong: 1, 3, 4; with the right labels: 3
    found = label_errors.on_corrected_labels("MNIST", labels, predicted)
    assert found == {"mistakes_on_label_errors": 2, "test_accuracy_corrected": 4 / 5}


@pytest.mark.parametrize(("dataset", "count"), [("synthetic", 10_000), ("MNIST", 5_000)])
def test_other_images_have_none(dataset, count):
    labels = torch.zeros(count, dtype=torch.int64)
    found = label_errors.on_corrected_labels(dataset, labels, labels)
    assert set(found.values()) == {None}


def test_a_damaged_table_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(label_errors, "__file__", str(tmp_path / "label_errors.py"))
    with pytest.raises(Problem, match=r"mnist\.csv cannot be read"):
        label_errors.validated("MNIST")
    (tmp_path / "label-errors").mkdir()
    (tmp_path / "label-errors/mnist.csv").write_text("index,given\n1,x\n")
    with pytest.raises(Problem, match=r"mnist\.csv cannot be read.*Restore it"):
        label_errors.validated("MNIST")
