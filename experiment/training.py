"""The training loop: recipe, schedule, precision, data-parallel training, checkpoints, resume."""

import ctypes
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from arcface_loss import ArcMarginProduct
from experiment import records
from experiment.data import Data
from experiment.evaluation import angles_to_centres, autocast, embed, loss_and_correct
from experiment.layers import Conv
from experiment.records import Problem

WARM_UP = 0.1  # of all steps; the learning rates rise linearly until then, and fall linearly to 0 after
WHOLE = 2  # epochs at the start, and at the end, that consist of all images, whatever the recipe's ``hardest``
SNAPSHOT = 10  # steps at the start, in the middle and at the end whose angles are kept
SHOW = 10  # steps between two updates of the progress bar, the only times that the device is waited for


@dataclass(frozen=True)
class Recipe:
    """What a script brings to a run: its network, augmentation and tuned settings.

    ``augment(images, flip, progress, generator)`` turns a batch of uint8 images, N × H × W × C, into floats,
    N × C × H × W in [0, 1]. flip (bool, N) names those to mirror, if any are: about half, each of them every
    other time that it is seen; progress, in [0, 1), is the part of the training that is done.
    learning_rates: the peaks, as :func:`make_optimizers` names them.
    hardest: the part of the training images that an epoch, other than the first and last two, consists of: those whose
    loss was largest when they were last trained on. The others wait until their loss is among the largest.
    """

    dataset: str
    network: Callable[[int], nn.Module]
    augment: Callable[[Tensor, Tensor, float, torch.Generator], Tensor]
    learning_rates: dict[str, float]
    epochs: int
    batch_size: int
    embedding_size: int
    scale: float
    margins: dict[str, float]
    views_at_test: bool
    hardest: float = 1.0


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do. Two runs with equal settings on one machine end with equal weights."""

    dataset: str
    loss: str
    scale: float | None
    margin: float | None
    embedding_size: int
    epochs: int
    batch_size: int
    seed: int
    device: str
    precision: str
    recipe: str = "default"


@dataclass
class Trained:
    """The outcome of :func:`train`.

    snapshots: θ in radians to the own and to the nearest other centre, 3 × M × 2, for the samples of the first,
    the middle and the last steps of the training.
    """

    network: nn.Module
    head: nn.Module
    history: list[dict]
    snapshots: Tensor
    seconds: float


class Diverged(Problem):
    """The loss is not finite, or the network does not learn."""


LOSSES = ("softmax", "norm-softmax", "sphereface", "cosface", "arcface", "cm1")


def make_head(settings: Settings, classes: int) -> nn.Module:
    """The last layer for one of LOSSES: a linear layer for softmax, otherwise an ArcMarginProduct."""
    margins = {
        "norm-softmax": {"m": 0.0},
        "sphereface": {"m": 0.0, "m1": settings.margin},
        "cosface": {"m": 0.0, "m3": settings.margin},
        "arcface": {"m": settings.margin},
        "cm1": {"m": 0.3, "m3": 0.2},
    }
    if settings.loss == "softmax":
        return nn.Linear(settings.embedding_size, classes)
    head = ArcMarginProduct(settings.embedding_size, classes, s=settings.scale, **margins[settings.loss])
    with torch.no_grad():  # unit rows: the length of a row divides its gradient, so the learning rate depends on it
        head.weight.copy_(F.normalize(head.weight))
    return head


def make_optimizers(rates: dict[str, float], network: nn.Module, head: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon turns the filters; SGD moves biases, the embedding matrix and the head.

    Args:
        rates: peak learning rates of the network's "filters" and "others", of a cosine "head" and of a "linear head":
            plain softmax has one of its own, because its gradient grows with the embedding's length.
    """
    filters = [module.weight for module in network.modules() if isinstance(module, Conv)]
    matrices = {id(parameter) for parameter in filters}
    others = [p for p in network.parameters() if p.requires_grad and id(p) not in matrices]
    head_lr = rates["linear head" if isinstance(head, nn.Linear) else "head"]
    return [
        torch.optim.Muon(filters, lr=rates["filters"], momentum=0.6, weight_decay=0, ns_steps=3),
        torch.optim.SGD(
            [{"params": others, "lr": rates["others"]}, {"params": head.parameters(), "lr": head_lr}],
            momentum=0.85,
            nesterov=True,
        ),
    ]


class Classifier(nn.Module):
    """Network and head as one module, which is what DistributedDataParallel wraps."""

    def __init__(self, network: nn.Module, head: nn.Module):
        super().__init__()
        self.network, self.head = network, head

    def forward(self, images: Tensor, label: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        """Logits (margin included) and embeddings, both float32."""
        with autocast(images.device, precision):
            embeddings = self.network(images)
        embeddings = embeddings.float()
        plain = isinstance(self.head, nn.Linear)
        return self.head(embeddings) if plain else self.head(embeddings, label), embeddings


def train(recipe: Recipe, settings: Settings, data: Data, checkpoint: Path, resume: bool) -> Trained:
    """Train network and head, with a checkpoint after every epoch.

    Under torchrun each process takes its share of every batch; gradients are averaged, BatchNorm's
    statistics are each process's own, and only rank 0 prints and writes.

    Args:
        data: already on the device that ``settings`` names.
        checkpoint: the file to write after each epoch, and with ``resume`` to start from.

    Raises:
        Diverged: training fails; the last epoch's checkpoint stays on disk.
        Problem: the checkpoint is damaged or belongs to other settings, or cannot be written.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device, classes = data.train_images.device, len(data.classes)
    images, labels, batch_size = data.train_images, data.train_labels, settings.batch_size
    if not world <= batch_size <= len(images) or batch_size % world:
        raise Problem(f"--batch-size {batch_size} must be from {world} to {len(images)} and divisible by {world}.")

    torch.manual_seed(settings.seed)
    network = recipe.network(settings.embedding_size)
    network.prepare(images[:5000].cpu())
    model = Classifier(network, make_head(settings, classes)).to(device, memory_format=torch.channels_last)
    network, head = model.network, model.head
    convolutions = [module for module in network.modules() if isinstance(module, Conv)]
    optimizers = make_optimizers(recipe.learning_rates, network, head)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    parallel = DistributedDataParallel(model) if world > 1 else model

    history, snapshots, seconds = [], [[], [], []], 0.0
    last_loss = torch.full((len(images),), math.inf, device=device)  # of each image, when it was last trained on
    seen = torch.zeros(len(images), dtype=torch.int64, device=device)  # how often that was
    if resume and checkpoint.exists():
        state = load_checkpoint(checkpoint, settings, device)
        try:
            history, snapshots, seconds = state["history"], state["snapshots"], state["seconds"]
            last_loss, seen = state["last_loss"], state["seen"]
            model.load_state_dict(state["model"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (KeyError, RuntimeError, ValueError) as error:
            raise Problem(f"{checkpoint} is of another version of this program. Start without --resume.") from error

    steps = len(images) // batch_size
    lengths = [steps] * settings.epochs
    lengths[WHOLE:-WHOLE] = [max(1, round(recipe.hardest * steps))] * len(lengths[WHOLE:-WHOLE])
    first_steps = [0, *accumulate(lengths)]
    total = first_steps[-1]
    window = max(1, min(SNAPSHOT, total // 3))
    windows = [range(first, first + window) for first in (0, (total - window) // 2, total - window)]
    quiet = rank > 0 or not sys.stderr.isatty()
    bar = tqdm(total=total, initial=first_steps[len(history)], unit="step", disable=quiet, leave=False)
    for epoch in range(len(history), settings.epochs):
        # All randomness of an epoch follows from the seed and the epoch, so that a resumed run repeats it.
        order, noise = torch.Generator(device), torch.Generator(device)
        order.manual_seed((settings.seed << 20) + epoch)
        noise.manual_seed((settings.seed << 20) + epoch + ((rank + 1) << 40))
        shuffled = torch.randperm(len(images), generator=order, device=device)
        hardest = last_loss[shuffled].topk(lengths[epoch] * batch_size).indices
        batches = shuffled[hardest.sort().values].view(-1, batch_size)
        losses = torch.zeros_like(last_loss)
        sums = torch.zeros(3, device=device)  # loss, correct answers, θ to the own centre
        began, shown, right = time.perf_counter(), 0, 0.0
        model.train()
        for step, batch in enumerate(batches, start=first_steps[epoch]):
            index = batch[rank::world]
            flip = (index + seen[index]) % 2 == 0
            x, label = recipe.augment(images[index], flip, step / total, noise), labels[index]
            logits, embeddings = parallel(x, label, settings.precision)
            loss = F.cross_entropy(logits, label)
            loss.backward()
            rate = learning_rate(step, total)
            for conv in convolutions:
                conv.renormalise()
            for optimizer, initial in zip(optimizers, peaks, strict=True):
                for group, peak in zip(optimizer.param_groups, initial, strict=True):
                    group["lr"] = peak * rate
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            with torch.no_grad():
                losses[index] = F.cross_entropy(logits, label, reduction="none")
                embeddings = embeddings.detach()
                theta = angles_to_centres(embeddings, head.weight)
                own = theta.gather(1, label[:, None])
                plain = logits if isinstance(head, nn.Linear) else -theta
                sums += torch.stack([loss.detach(), (plain.argmax(dim=1) == label).float().mean(), own.mean()])
                for steps_kept, kept in zip(windows, snapshots, strict=True):
                    if step in steps_kept:
                        other = theta.scatter(1, label[:, None], math.inf).amin(dim=1, keepdim=True)
                        kept.append(torch.cat([own, other], dim=1))
            done = step + 1 - first_steps[epoch]
            if (step + 1) % SHOW == 0 or done == len(batches):
                mean_loss, accuracy, angle = (sums / done).tolist()
                recent = (sums[1].item() - right) / (done - shown)
                watch(mean_loss, recent, classes, step, total, settings)
                right = sums[1].item()
                bar.set_postfix_str(f"loss {mean_loss:.3f}, accuracy {accuracy:.2%}, θ {math.degrees(angle):.1f}°", refresh=False)
                bar.update(done - shown)
                shown = done
        elapsed = time.perf_counter() - began
        seconds += elapsed
        if world > 1:
            dist.all_reduce(losses)  # each process has those of its own images, and 0 for the others
        last_loss[batches] = losses[batches]
        seen[batches] += 1

        if rank == 0:
            test = embed(network, data.test_images, settings.precision)
            test_loss, correct = loss_and_correct(head, test, data.test_labels)
            history.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": mean_loss,
                    "train_accuracy": accuracy,
                    "test_loss": test_loss,
                    "test_accuracy": correct / len(data.test_labels),
                    "seconds": elapsed,
                }
            )
            tqdm.write(
                f"epoch {epoch + 1:3d}/{settings.epochs}  loss {mean_loss:.4f}  train {accuracy:.2%}  "
                f"test {correct / len(data.test_labels):.2%}  θ {math.degrees(angle):.1f}°  {elapsed:.1f} s"
            )
            sys.stdout.flush()
            records.save_torch(
                checkpoint,
                {
                    "settings": asdict(settings),
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "history": history,
                    "snapshots": snapshots,
                    "seconds": seconds,
                    "last_loss": last_loss,
                    "seen": seen,
                },
            )
    bar.close()
    return Trained(network, head, history, torch.stack([torch.cat(kept) for kept in snapshots]), seconds)


def learning_rate(step: int, total: int) -> float:
    """The factor on the learning rates at a step: a linear rise, then a linear fall to 0."""
    return min((step + 1) / (WARM_UP * total + 1), (total - step) / ((1 - WARM_UP) * total))


def watch(loss: float, accuracy: float, classes: int, step: int, total: int, settings: Settings) -> None:
    """Raise Diverged if the loss is not finite, or if after a tenth of the steps (20 at least) it still guesses."""
    cause = f"scale {settings.scale}, margin {settings.margin}"
    remedy = f"Likely causes: {cause}, or the learning rates. Try a smaller --scale or --margin."
    if not math.isfinite(loss):
        raise Diverged(f"The loss is {loss} at step {step + 1} of {total}. {remedy}")
    if step >= max(total / 10, 20) and accuracy < 2 / classes:
        raise Diverged(f"The training accuracy is {accuracy:.1%} after {step + 1} of {total} steps: nothing is learnt. {remedy}")


def load_checkpoint(path: Path, settings: Settings, device: torch.device) -> dict:
    """The state of an interrupted run. Raises Problem unless it was started with the same settings."""
    state = records.load_torch(path, device)
    if not isinstance(state.get("settings"), dict):
        raise Problem(f"{path} is not a checkpoint of this program. Delete it and train again.")
    saved, wanted = state["settings"], asdict(settings)
    differing = [f"{key} {saved.get(key)} (now {value})" for key, value in wanted.items() if saved.get(key) != value]
    if differing:
        raise Problem(f"{path} is of another run: {', '.join(differing)}. Repeat its options, or start without --resume.")
    return state


def keep_memory() -> None:
    """Let glibc's malloc keep freed memory and hand it out again, instead of returning every large block to the system.

    A step frees and allocates some hundred megabytes; to have them mapped and zeroed anew costs up to a quarter of it on
    a CPU. Elsewhere than on Linux with glibc nothing happens. See mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max, arena_max = -1, -4, -8
        for parameter, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1)):
            ctypes.CDLL(None).mallopt(parameter, value)


def choose_device(wanted: str) -> torch.device:
    """cuda, mps or cpu, or with "auto" the first of these that is there; under torchrun the rank's own GPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(name for name, there in available.items() if there) if wanted == "auto" else wanted
    if not available[name]:
        raise Problem(f"--device {name} is not available on this machine. Choose auto or cpu.")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)


def choose_precision(wanted: str, device: torch.device) -> str:
    """bfloat16 where the machine multiplies it faster than float32: recent GPUs, CPUs with AMX or AVX512-BF16."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return "bfloat16" if fast else "float32"
