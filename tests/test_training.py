"""experiment/training.py: epochs, hard images, learning rates, mirroring and what is measured."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import arcface_mnist
from arcface_loss import ArcMarginProduct
from experiment import training
from experiment.errors import Problem
from experiment.training import Batch, Classifier, Training, epoch_lengths, hardest_first
from tests.helpers import locked_elsewhere, needs_locks, settings

# --- the pure functions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "hardest", "full_epochs", "expected"),
    [
        (8, 0.3, [2, 2], [10, 10, 3, 3, 3, 3, 10, 10]),
        (3, 0.5, [1, 1], [10, 5, 10]),
        (5, 0.01, [2, 2], [10, 10, 1, 10, 10]),  # never an epoch without a step
        (4, 0.3, [2, 2], [10, 10, 10, 10]),
        (3, 0.3, [2, 1], [10, 10, 10]),
        (1, 0.3, [2, 2], [10]),
        (3, 0.3, [0, 0], [3, 3, 3]),
        (3, 1.0, [1, 1], [10, 10, 10]),
        (5, 0.3, [2, 1], [10, 10, 3, 3, 10]),
    ],
)
def test_first_and_last_epochs_are_full_and_middle_ones_shorter(
    epochs, hardest, full_epochs, expected
):
    assert epoch_lengths(epochs, 10, hardest, full_epochs) == expected


@pytest.mark.parametrize("count", [1, 7, 50])
def test_hardest_first_equals_brute_force(count):
    generator = torch.Generator().manual_seed(count)
    losses = torch.rand(50, generator=generator)
    shuffled = torch.randperm(50, generator=generator)
    hardest = sorted(range(50), key=lambda i: -losses[i].item())[:count]
    expected = [i for i in shuffled.tolist() if i in hardest]
    assert hardest_first(losses, shuffled, count).tolist() == expected


def test_images_never_seen_are_taken_before_all_others():
    losses = torch.tensor([3.0, math.inf, 2.0, math.inf])
    assert hardest_first(losses, torch.tensor([3, 2, 1, 0]), 2).tolist() == [3, 1]


def test_learning_rate_rises_and_falls_linearly():
    """Ten steps, two of them warm-up: thirds while it rises, eighths while it falls."""
    factors = [training.rate_factor(step, 10, 0.2) for step in range(10)]
    rise, fall = [1 / 3, 2 / 3], [1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert factors == pytest.approx(rise + fall)
    assert training.rate_factor(0, 10, 0.0) == 1


def test_the_margin_rises_linearly_to_all_of_it():
    """Ten steps, four of them with a rising margin."""
    shares = [training.margin_share(step, 10, 0.4) for step in range(10)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])
    for total in (1, 10):
        assert training.margin_share(0, total, 0.0) == training.margin_share(0, total, 0.1) == 1


@pytest.mark.parametrize(
    ("accuracy", "classes", "step", "total", "wrong"),
    [
        (0.19, 10, 90, 100, False),  # the limit for ten classes
        (0.18, 10, 90, 100, True),
        (0.0, 10, 19, 100, False),  # the first twenty steps are not judged
        (0.0, 10, 20, 100, True),
        (0.1, 10, 99, 1000, False),  # nor is the first tenth
        (0.56, 2, 50, 100, False),  # of two classes half are right by chance
        (0.54, 2, 50, 100, True),
    ],
)
def test_guessing_is_seen_after_a_tenth_of_the_steps(accuracy, classes, step, total, wrong):
    found = training.guessing(accuracy, classes, step, total)
    assert (f"{accuracy:.1%} after {step + 1} of {total} steps" in found) == wrong == bool(found)


def test_embeddings_that_turn_away_from_their_centres_are_seen():
    """A mean θ above 90° over fifty steps, all of them after the warm-up."""
    theta = torch.cat([torch.full((60,), 85.0), torch.full((60,), 120.0)])
    assert not training.turned_away(theta[:60], 10)
    assert not training.turned_away(theta[:67], 10)  # 43 × 85 + 7 × 120 is 4495 = 50 × 89.9
    assert "91° in steps 19 to 68" in training.turned_away(theta[:68], 10)
    assert "120° in steps 71 to 120" in training.turned_away(theta, 70)
    assert not training.turned_away(theta, 71)


# --- network and head as one module ---------------------------------------------------------------


def test_classifier_gives_logits_with_the_margin_in_float32():
    torch.manual_seed(0)
    network, head = nn.Linear(6, 4), ArcMarginProduct(4, 3, s=8.0, m=0.5)
    x, label = torch.randn(5, 6), torch.arange(5) % 3
    logits, embeddings = Classifier(network, head, "float32")(x, label)
    assert torch.equal(embeddings, network(x)) and torch.equal(logits, head(network(x), label))
    logits, rounded = Classifier(network, head, "bfloat16")(x, label)
    assert rounded.dtype == logits.dtype == torch.float32
    assert not torch.equal(rounded, embeddings) and torch.allclose(rounded, embeddings, atol=0.05)
    assert torch.equal(logits, head(rounded, label))


def test_classifier_of_plain_softmax_is_linear():
    network, head = nn.Linear(6, 4), nn.Linear(4, 3)
    x = torch.randn(5, 6)
    logits, _ = Classifier(network, head, "float32")(x, torch.zeros(5, dtype=torch.int64))
    assert torch.equal(logits, head(network(x)))


# --- Training: 600 images, ten steps in a full epoch ----------------------------------------------


def make_training(
    small_data, out, epochs=1, hardest=1.0, peaks=(0.5,), head=None, resume=False, **changes
):
    """A Training around one linear layer. Nothing trains it but the test's own loop."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 16))
    head = head or ArcMarginProduct(16, 10, s=8.0, m=0.1)
    groups = zip(head.parameters(), peaks, strict=True)
    optimizers = [torch.optim.SGD([parameter], lr=peak) for parameter, peak in groups]
    recipe = replace(arcface_mnist.DEFAULT, hardest=hardest, full_epochs=[2, 2], warm_up=0.2)
    given = settings(epochs=epochs, **changes)
    return Training(network, head, optimizers, recipe, given, small_data["MNIST"], out, resume)


@needs_locks
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_into_which_another_process_trains_is_refused(resume, small_data, tmp_path):
    refused = "Another process is training into"
    with locked_elsewhere(tmp_path), pytest.raises(Problem, match=refused):
        make_training(small_data, tmp_path, resume=resume)
    assert list(tmp_path.iterdir()) == []


def run(made: Training, losses: torch.Tensor, see: Callable[[int, Batch], None] = lambda *_: None):
    """Go through all steps. The image i has the loss losses[i], and its embedding is its centre."""
    centres = made.classifier.head.weight.detach()
    for epoch in made.epochs():
        for batch in made.batches(epoch):
            see(epoch, batch)
            logits = F.one_hot(batch.label, 10).float()
            made.measure(batch, losses[batch.index], logits, centres[batch.label])


def test_middle_epochs_consist_of_the_images_with_the_largest_losses(small_data, tmp_path):
    """All images are drawn in the first two and the last two epochs, 30% in those between."""
    seen: dict[int, list[int]] = {}
    source, losses = small_data["MNIST"], torch.rand(600)

    def see(epoch, batch):
        seen.setdefault(epoch, []).extend(batch.index.tolist())
        assert torch.equal(batch.images, source.train_images[batch.index])
        assert torch.equal(batch.label, source.train_labels[batch.index])

    run(make_training(small_data, tmp_path, epochs=8, hardest=0.3), losses, see)
    hardest = sorted(losses.argsort(descending=True)[:180].tolist())
    for epoch in range(8):
        expected = hardest if 2 <= epoch < 6 else list(range(600))
        assert sorted(seen[epoch]) == expected
    assert seen[0] != seen[1] and seen[2] != seen[3]  # each time in another order


def test_each_image_is_mirrored_every_second_time_that_it_is_drawn(small_data, tmp_path):
    flips: dict[int, list[bool]] = {}

    def see(epoch, batch):
        for image, flip in zip(batch.index.tolist(), batch.flip.tolist(), strict=True):
            flips.setdefault(image, []).append(flip)

    run(make_training(small_data, tmp_path, epochs=8, hardest=0.3), torch.rand(600), see)
    assert {len(of_one) for of_one in flips.values()} == {4, 8}
    for of_one in flips.values():
        assert all(one != other for one, other in pairwise(of_one))
    assert sum(of_one[0] for of_one in flips.values()) == 300


def test_progress_and_learning_rates_follow_the_steps(small_data, tmp_path):
    made = make_training(small_data, tmp_path, epochs=2, peaks=(0.5, 3.0), head=nn.Linear(16, 10))
    rates, progress = [], []

    def see(epoch, batch):
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in made.optimizers])
        progress.append((batch.step, batch.progress))

    run(made, torch.rand(600), see)
    assert progress == [(step, step / 20) for step in range(20)]
    factors = [min((step + 1) / 5, (20 - step) / 16) for step in range(20)]  # four warm-up steps
    assert np.array(rates) == pytest.approx(np.outer(factors, [0.5, 3.0]))


def cross() -> ArcMarginProduct:
    """A head with four centres in the plane, 90° apart and of different lengths."""
    head = ArcMarginProduct(2, 4, s=8.0, m=0.1)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -1.0]]))
    return head


def test_history_and_snapshots_are_means_and_angles_of_what_was_measured(small_data, tmp_path):
    """Each image's angle to its own centre is known, and with it the nearest other and the answer.

    The centres are 90° apart: an image at θ < 90° from its own is 90° − θ from the nearest other,
    and is right if θ < 45°. The logits say the opposite, as a margin could make them.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (600,), generator=generator)
    losses, theta = torch.rand(600, generator=generator), torch.rand(600, generator=generator)
    theta = theta * math.radians(88) + math.radians(1)
    at = labels * math.pi / 2 + theta
    embeddings = torch.stack([at.cos(), at.sin()], dim=1) * 5
    network = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 2))
    recipe = replace(arcface_mnist.DEFAULT, hardest=1.0)
    source, given = small_data["MNIST"], settings(epochs=4, embedding_size=2)
    test_labels = source.test_labels % 4
    source = replace(source, classes=[*"abcd"], train_labels=labels, test_labels=test_labels)
    made = Training(network, cross(), [], recipe, given, source, tmp_path, False)
    steps = []
    for epoch in made.epochs():
        for batch in made.batches(epoch):
            steps.append(batch.index)
            wrong = F.one_hot((batch.label + 1) % 4, 4).float()
            made.measure(batch, losses[batch.index], wrong, embeddings[batch.index])
    result = made.result()
    for entry in result.history:
        assert entry["train_loss"] == pytest.approx(losses.double().mean().item(), abs=1e-6)
        right = (theta < math.pi / 4).double().mean().item()
        assert entry["train_accuracy"] == pytest.approx(right, abs=1e-6)
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4]
    assert result.seconds == pytest.approx(sum(entry["seconds"] for entry in result.history))

    assert result.snapshots.shape == (3, 10 * 60, 2)  # ten steps of sixty images, three times
    for kept, first in zip(result.snapshots, (0, 15, 30), strict=True):
        index = torch.cat(steps[first : first + 10])
        expected = torch.stack([theta[index], math.pi / 2 - theta[index]], dim=1)
        assert torch.allclose(kept, expected, atol=1e-3)


def test_answers_of_plain_softmax_are_those_of_its_logits(small_data, tmp_path):
    made = make_training(small_data, tmp_path, peaks=(0.5, 0.5), head=nn.Linear(16, 10))
    for epoch in made.epochs():
        for batch in made.batches(epoch):
            said = torch.where(batch.index < 150, (batch.label + 1) % 10, batch.label)
            logits, embeddings = F.one_hot(said, 10).float(), torch.randn(60, 16)
            made.measure(batch, torch.ones(60), logits, embeddings)
    assert made.history[0]["train_accuracy"] == pytest.approx(0.75)


def test_the_test_figures_are_the_objective_and_the_plain_accuracy(small_data, tmp_path):
    made = make_training(small_data, tmp_path)
    run(made, torch.rand(600))
    source, network, head = small_data["MNIST"], made.classifier.network, made.classifier.head
    with torch.no_grad():
        embeddings = network(source.test_images.permute(0, 3, 1, 2) / 255)
        cosines = F.normalize(embeddings) @ F.normalize(head.weight).T
        own = F.one_hot(source.test_labels, 10).bool()
        logits = 8 * torch.where(own, (cosines.arccos() + 0.1).cos(), cosines)
        expected = F.cross_entropy(logits, source.test_labels).item()
    right = (cosines.argmax(dim=1) == source.test_labels).double().mean().item()
    entry = made.history[0]
    assert entry["test_loss"] == pytest.approx(expected, rel=1e-4)
    assert entry["test_accuracy"] == pytest.approx(right)


def test_the_test_set_is_evaluated_every_fourth_epoch_and_after_the_last(small_data, tmp_path):
    made = make_training(small_data, tmp_path, epochs=6)
    run(made, torch.rand(600))
    for entry in made.history:
        measured = entry["epoch"] in (4, 6)
        assert (entry["test_loss"] is not None) == (entry["test_accuracy"] is not None) == measured


def test_a_training_that_fails_is_stopped_or_noted(small_data, tmp_path):
    """Every image's embedding is opposite to its centre: θ is 180°, and no answer is right."""

    def fail(made: Training) -> None:
        centres = made.classifier.head.weight.detach()
        for epoch in made.epochs():
            for batch in made.batches(epoch):
                logits = torch.zeros(len(batch.label), 10)
                made.measure(batch, torch.ones(60), logits, -centres[batch.label])

    with pytest.raises(training.Diverged, match=r"accuracy is 0\.0% after 30 of 100.*margin 0\.1"):
        fail(make_training(small_data, tmp_path, epochs=10))
    shutil.rmtree(tmp_path)
    made = make_training(small_data, tmp_path, epochs=10, stop_if_diverged=False)
    fail(made)
    result = made.result()
    assert "nothing is learnt" in result.diverged and len(result.history) == 10
    assert result.mean_theta.rad2deg() == pytest.approx(torch.full((100,), 180.0), abs=0.1)


def test_the_mean_angle_of_each_step_is_kept(small_data, tmp_path):
    """In epoch e all embeddings are at 10e° + 5° from their centres."""
    made = make_training(small_data, tmp_path, epochs=3)
    centres = F.normalize(made.classifier.head.weight.detach())
    across = F.normalize(torch.randn(16) - centres * (centres @ torch.randn(16))[:, None])
    across = F.normalize(across - centres * (across * centres).sum(dim=1, keepdim=True))
    for epoch in made.epochs():
        theta = math.radians(10 * epoch + 5)
        for batch in made.batches(epoch):
            u, v = centres[batch.label], across[batch.label]
            x = 3 * (math.cos(theta) * u + math.sin(theta) * v)
            made.measure(batch, torch.ones(60), F.one_hot(batch.label, 10).float(), x)
    expected = torch.tensor([5.0, 15.0, 25.0]).repeat_interleave(10)
    assert made.result().mean_theta.rad2deg() == pytest.approx(expected, abs=0.01)


def test_a_loss_that_is_not_finite_ends_the_training_unsaved(small_data, tmp_path):
    losses = torch.ones(600)
    losses[17] = math.nan
    with pytest.raises(training.Diverged, match="The loss is nan at step 10 of 10"):
        run(make_training(small_data, tmp_path), losses)
    assert not list(tmp_path.iterdir())


def test_an_epoch_that_ends_early_is_not_saved(small_data, tmp_path):
    def see(epoch, batch):
        if batch.step == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_training(small_data, tmp_path, epochs=3), torch.rand(600), see)
    again = make_training(small_data, tmp_path, epochs=3, resume=True)
    assert len(again.history) == 1 and again.seen.tolist() == [1] * 600


def test_a_batch_larger_than_the_training_set_is_refused(small_data, tmp_path):
    arguments = nn.Flatten(), nn.Linear(784, 10), [], arcface_mnist.DEFAULT
    data = small_data["MNIST"]
    Training(*arguments, settings(batch_size=600), data, tmp_path, False)
    with pytest.raises(Problem, match="--batch-size 601 must be from 1 to 600"):
        Training(*arguments, settings(batch_size=601), data, tmp_path, False)
