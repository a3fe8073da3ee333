"""What surrounds a training step: the choice of images, measurements, checkpoint, resume."""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from arcface_loss import ArcMarginProduct
from experiment import records
from experiment.checkpoint import (
    check_history,
    check_kind,
    load_checkpoint,
    read_checkpoint,
    restore_optimizer,
)
from experiment.data import Data
from experiment.errors import Problem
from experiment.evaluation import Head, angles_to_centres, embed, loss_and_accuracy, own_and_other
from experiment.machine import autocast, first_on_rank_0, rank_and_processes
from experiment.recipe import Recipe, Settings

TEST_EVERY = 4  # epochs from one evaluation on the test set to the next; the last always has one
SNAPSHOT_STEPS = 10  # at the start, in the middle and at the end: their angles are kept
AWAY_STEPS = 50  # with a mean θ above 90° after the warm-up: the training has collapsed
LOG_EVERY = 10  # steps between two updates of the progress bar; only then is the device waited for


@dataclass(kw_only=True)
class Trained:
    """The outcome of a training.

    snapshots: θ in radians to the own and to the nearest other centre, 3 × M × 2, for the images
    of the first, the middle and the last steps.
    mean_theta: θ in radians to the own centre, the mean of each step's images, as many as steps.
    diverged: what the training would have been stopped for, had settings said so; else empty.
    """

    network: nn.Module
    head: Head
    history: list[dict]
    snapshots: Tensor
    mean_theta: Tensor
    seconds: float
    diverged: str = ""


class Diverged(Problem):
    """The loss is not finite, or the network does not learn."""


@dataclass(frozen=True)
class Batch:
    """The images of one step, or this process's share of them.

    index (int64, N) numbers them among the training images. flip (bool, N): alternating flip,
    i.e. each image is mirrored every second time it is drawn. progress, in [0, 1): the fraction of
    the training that is done. margin_share, in (0, 1]: how much of the margin applies.
    """

    step: int
    index: Tensor
    images: Tensor
    label: Tensor
    flip: Tensor
    progress: float
    margin_share: float


class Classifier(nn.Module):
    """Network and head as one module, which DistributedDataParallel can wrap."""

    def __init__(self, network: nn.Module, head: Head, precision: str):
        super().__init__()
        self.network, self.head, self.precision = network, head, precision

    def forward(self, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (margin included), N × n, and embeddings, N × d, both float32."""
        with autocast(images.device, self.precision):
            embeddings = self.network(images)
        embeddings = embeddings.float()
        if isinstance(self.head, nn.Linear):
            return self.head(embeddings), embeddings
        return self.head(embeddings, label), embeddings


class Training:
    """Everything about a training but the step itself, which the script shows.

    Under torchrun each process takes its share of every batch. The gradients, the losses by which
    images are chosen and all training measurements are those of all processes together; BatchNorm's
    statistics are each process's own. Only rank 0 evaluates, prints and writes.

    Args:
        network, head, optimizers: on the CPU; the parameters are moved to the device of the data.
        data: on the device that ``settings`` names.
        out: the folder of the checkpoint, which is written after each epoch.
        resume: whether to go on from that checkpoint, where there is one.

    Raises:
        Problem: the batch size does not fit; there is a checkpoint and ``resume`` is False; the
            checkpoint is damaged or of other settings; or another process trains into ``out``.
    """

    def __init__(
        self,
        network: nn.Module,
        head: Head,
        optimizers: list[torch.optim.Optimizer],
        recipe: Recipe,
        settings: Settings,
        data: Data,
        out: Path,
        resume: bool,
    ):
        images, size = data.train_images, settings.batch_size
        self.rank, self.world = rank_and_processes()
        if not self.world <= size <= len(images) or size % self.world:
            allowed = f"from {self.world} to {len(images)} and divisible by {self.world}"
            raise Problem(f"--batch-size {size} must be {allowed}.")
        self.recipe, self.settings, self.data = recipe, settings, data
        self.checkpoint = out / "checkpoint.pt"
        self.classifier = Classifier(network, head, settings.precision)
        self.classifier.to(images.device).to(memory_format=torch.channels_last)
        self.model = DistributedDataParallel(self.classifier) if self.world > 1 else self.classifier
        self.optimizers = optimizers
        for group in self._groups():
            group["peak"] = group["lr"]

        steps = len(images) // size
        self.lengths = epoch_lengths(settings.epochs, steps, recipe.hardest, recipe.full_epochs)
        self.first_steps = [0, *accumulate(self.lengths)]
        self.total = self.first_steps[-1]
        window = max(1, min(SNAPSHOT_STEPS, self.total // 3))
        firsts = (0, (self.total - window) // 2, self.total - window)
        self.windows = [range(first, first + window) for first in firsts]

        device = images.device
        self.history: list[dict] = []
        self.seconds = 0.0
        self.snapshots = torch.zeros(3, window, size, 2, device=device)
        self.mean_theta = torch.zeros(self.total, device=device)
        self.diverged = ""
        self.last_loss = torch.full((len(images),), math.inf, device=device)  # when last seen
        self.seen = torch.zeros(len(images), dtype=torch.int64, device=device)  # how often
        first_on_rank_0(self._restore if resume else self._refuse_to_overwrite)
        quiet = self.rank > 0 or not sys.stderr.isatty()
        done = self.first_steps[len(self.history)]
        self.bar = tqdm(total=self.total, initial=done, unit="step", disable=quiet, leave=False)

    def epochs(self) -> Iterator[int]:
        """The epochs that are left. After the caller's work on one it is evaluated and saved."""
        for epoch in range(len(self.history), self.settings.epochs):
            self._start(epoch)
            yield epoch
            self._finish(epoch)  # not in a ``finally``: an unfinished epoch must not be saved
        self.bar.close()

    def _start(self, epoch: int) -> None:
        """Choose the epoch's images. All its randomness follows from the seed and its number."""
        self.began = time.perf_counter()
        device, seed = self.last_loss.device, (self.settings.seed << 20) + epoch
        order = torch.Generator(device).manual_seed(seed)
        self.noise = torch.Generator(device).manual_seed(seed + ((self.rank + 1) << 40))
        shuffled = torch.randperm(len(self.last_loss), generator=order, device=device)
        size = self.settings.batch_size
        hardest = hardest_first(self.last_loss, shuffled, self.lengths[epoch] * size)
        self.chosen = hardest.view(-1, size)
        self.losses = torch.zeros_like(self.last_loss)  # of this epoch, by image
        self.angles = torch.zeros_like(self.snapshots)
        self.theta = torch.zeros_like(self.mean_theta)
        self.sums = torch.zeros(3, device=device)  # losses, correct answers, θ to the own centre
        self.count, self.logged = 0, (0, 0.0)  # images so far; images and correct when last logged
        self.model.train()

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, each with the learning rates of its step set."""
        for step, batch in enumerate(self.chosen, start=self.first_steps[epoch]):
            factor = rate_factor(step, self.total, self.recipe.warm_up)
            for group in self._groups():
                group["lr"] = group["peak"] * factor
            index = batch[self.rank :: self.world]
            images, label = self.data.train_images[index], self.data.train_labels[index]
            flip = (index + self.seen[index]) % 2 == 0
            share = margin_share(step, self.total, self.recipe.margin_warm_up)
            yield Batch(step, index, images, label, flip, step / self.total, share)

    @torch.no_grad()
    def measure(self, batch: Batch, losses: Tensor, logits: Tensor, embeddings: Tensor) -> None:
        """Add a step to the epoch's figures; every LOG_EVERY steps show them.

        Args:
            losses: cross-entropy of each image, N. logits: N × n, with the margin. embeddings: N
            × d.

        Raises:
            Diverged: the loss is not finite, or nothing is learnt.
        """
        head = self.classifier.head
        theta = angles_to_centres(embeddings.detach(), head.weight)
        scores = logits if isinstance(head, nn.Linear) else -theta  # plain: without the margin
        own, other = own_and_other(theta, batch.label)
        correct = (scores.argmax(dim=1) == batch.label).sum()
        self.losses[batch.index] = losses.detach()
        self.sums += torch.stack([losses.detach().sum(), correct.float(), own.sum()])
        self.theta[batch.step] = own.mean()
        self.count += len(own)
        for window, kept in zip(self.windows, self.angles, strict=True):
            if batch.step in window:
                row = kept[batch.step - window.start]
                row[self.rank :: self.world] = torch.stack([own, other], dim=1)
        if (batch.step + 1) % LOG_EVERY == 0 or batch.step + 1 in self.first_steps:
            self._log(batch.step)

    def _log(self, step: int) -> None:
        loss, correct, angle = self.sums.tolist()
        count, before = self.logged
        self._judge(loss / self.count, (correct - before) / (self.count - count), step)
        self.logged = self.count, correct
        angle = math.degrees(angle / self.count)
        text = f"loss {loss / self.count:.3f}, accuracy {correct / self.count:.2%}, θ {angle:.1f}°"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(step + 1 - self.bar.n)

    def _judge(self, loss: float, accuracy: float, step: int) -> None:
        """Raise Diverged if the training has failed, or note it where settings say so."""
        if not math.isfinite(loss):
            raise Diverged(f"The loss is {loss} at step {step + 1} of {self.total}. {self._remedy}")
        failed = guessing(accuracy, len(self.data.classes), step, self.total)
        if isinstance(self.classifier.head, ArcMarginProduct):
            theta = (self.mean_theta + self.theta)[: step + 1].rad2deg()
            failed = failed or turned_away(theta, self.recipe.warm_up * self.total)
        if failed and self.settings.stop_if_diverged:
            raise Diverged(f"{failed} {self._remedy}")
        self.diverged = self.diverged or failed

    @property
    def _remedy(self) -> str:
        """What may have made a training fail, and what to do."""
        cause = f"scale {self.settings.scale}, margin {self.settings.margin}"
        return f"Likely causes: {cause}, or the learning rates. Try a smaller --scale or --margin."

    def _finish(self, epoch: int) -> None:
        elapsed = time.perf_counter() - self.began
        self.seconds += elapsed
        if self.world > 1:  # each process has the figures of its own images, and 0 for the others
            self.theta /= self.world
            for own in (self.losses, self.angles, self.theta, self.sums):
                dist.all_reduce(own)
        self.last_loss[self.chosen] = self.losses[self.chosen]
        self.seen[self.chosen] += 1
        self.snapshots += self.angles
        self.mean_theta += self.theta
        if self.rank > 0:
            return
        loss, correct, angle = (self.sums / (self.count * self.world)).tolist()
        test: tuple[float, float] | tuple[None, None] = (None, None)
        if (epoch + 1) % TEST_EVERY == 0 or epoch + 1 == self.settings.epochs:
            data = self.data
            embeddings = embed(self.classifier.network, data.test_images, self.settings.precision)
            test = loss_and_accuracy(self.classifier.head, embeddings, data.test_labels)
        figures = {"train_loss": loss, "train_accuracy": correct}
        figures |= {"test_loss": test[0], "test_accuracy": test[1], "seconds": elapsed}
        self.history.append({"epoch": epoch + 1} | figures)
        records.save_torch(self.checkpoint, self._state())
        tested = "" if test[1] is None else f"test {test[1]:.2%}"
        tqdm.write(
            f"epoch {epoch + 1:3d}/{self.settings.epochs}  loss {loss:.4f}  train {correct:7.2%}  "
            f"{tested:12}  θ {math.degrees(angle):.1f}°  {elapsed:.1f} s"
        )
        sys.stdout.flush()

    def result(self) -> Trained:
        """The trained network and head, in evaluation mode, with what was measured on the way."""
        return Trained(
            network=self.classifier.network.eval(),
            head=self.classifier.head.eval(),
            history=self.history,
            snapshots=self.snapshots.flatten(1, 2),
            mean_theta=self.mean_theta,
            seconds=self.seconds,
            diverged=self.diverged,
        )

    def _groups(self) -> Iterator[dict]:
        for optimizer in self.optimizers:
            yield from optimizer.param_groups

    def _state(self) -> dict:
        return {
            "settings": asdict(self.settings),
            "hyperparameters": self.recipe.hyperparameters,
            "model": self.classifier.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "history": self.history,
            "snapshots": self.snapshots,
            "mean_theta": self.mean_theta,
            "diverged": self.diverged,
            "seconds": self.seconds,
            "last_loss": self.last_loss,
            "seen": self.seen,
        }

    def _lock(self) -> None:
        if self.rank == 0:
            records.lock(self.checkpoint.parent)

    def _refuse_to_overwrite(self) -> None:
        """Raise Problem if there is a checkpoint: it would be overwritten."""
        self._lock()
        if self.checkpoint.exists():
            state = read_checkpoint(self.checkpoint)
            raise Problem(
                f"{self.checkpoint} holds epoch {len(state['history'])} of "
                f"{state['settings'].get('epochs')}: add --resume, or delete it to start again."
            )

    def _restore(self) -> None:
        """Go on from the checkpoint, where there is one."""
        self._lock()
        if not self.checkpoint.exists():
            return
        state = load_checkpoint(self.checkpoint, self.settings, self.recipe, self.last_loss.device)
        try:
            check_history(state["history"], self.settings.epochs)
            check_kind("", state | {"history": []}, self._state())
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                restore_optimizer(optimizer, saved)
            self.classifier.load_state_dict(state["model"])
        except (*records.UNLIKE, RuntimeError) as error:
            wrong = str(error).splitlines()[0]
            raise Problem(
                f"{self.checkpoint} is damaged, or of another version of this program ({wrong}). "
                "Delete it to start again."
            ) from error
        self.history, self.seconds = state["history"], state["seconds"]
        self.snapshots, self.last_loss = state["snapshots"], state["last_loss"]
        self.mean_theta, self.seen = state["mean_theta"], state["seen"]
        self.diverged = state["diverged"]


def epoch_lengths(epochs: int, steps: int, hardest: float, full_epochs: list[int]) -> list[int]:
    """Steps in each epoch: ``steps`` in the first and last epochs, fewer in the middle ones."""
    first, last = full_epochs
    middle = max(0, epochs - first - last)
    fewer = max(1, round(hardest * steps))
    return [*[steps] * first, *[fewer] * middle, *[steps] * last][:epochs]


def hardest_first(last_loss: Tensor, shuffled: Tensor, count: int) -> Tensor:
    """The ``count`` images with the largest losses, in the order that they have in ``shuffled``.

    Args:
        last_loss: of each image, N. shuffled: a permutation of their numbers, int64, N.
    """
    hardest = last_loss[shuffled].topk(count).indices
    return shuffled[hardest.sort().values]


def rate_factor(step: int, total: int, warm_up: float) -> float:
    """The factor on the learning rates at a step: a linear rise, then a linear fall to 0."""
    return min((step + 1) / (warm_up * total + 1), (total - step) / ((1 - warm_up) * total))


def margin_share(step: int, total: int, warm_up: float) -> float:
    """How much of the margin applies at a step: a linear rise to 1, which then stays."""
    return min(1.0, (step + 1) / max(1.0, warm_up * total))


def guessing(accuracy: float, classes: int, step: int, total: int) -> str:
    """The text of an error if, after a tenth of the steps (20 at least), the accuracy is hardly
    above chance; else an empty string.

    Args:
        accuracy: of the last steps, in [0, 1]; the limit is a tenth of the way from chance to 1.
    """
    chance = 1 / classes
    if step < max(total / 10, 20) or accuracy >= chance + 0.1 * (1 - chance):
        return ""
    reached = f"{accuracy:.1%} after {step + 1} of {total} steps"
    return f"The training accuracy is {reached}: nothing is learnt."


def turned_away(theta: Tensor, warm_up: float) -> str:
    """The text of an error if the mean angle to the own centre was above 90° in the last steps,
    all of them after the warm-up; else an empty string.

    Args:
        theta: mean angle to the own centre in each step so far, in degrees. warm_up: steps of it.
    """
    last = theta[max(0, len(theta) - AWAY_STEPS) :]
    if len(theta) < warm_up + AWAY_STEPS or last.mean() <= 90:
        return ""
    steps = f"steps {len(theta) - AWAY_STEPS + 1} to {len(theta)}"
    return (
        f"The mean angle to the own centre is {last.mean():.0f}° in {steps}: "
        "the embeddings turn away from their centres."
    )
