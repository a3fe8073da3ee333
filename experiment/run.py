"""Before and after a training: its data, device and folder; its record, model and pictures."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from arcface_loss import ArcMarginProduct, unit
from experiment import data, errors, evaluation, label_errors, machine, records, synthetic
from experiment.checkpoint import differing
from experiment.cli import run_name
from experiment.errors import Finished, Problem
from experiment.recipe import Recipe, Settings, margins
from experiment.records import ROOT
from experiment.training import Trained

MISTAKES_KEPT = 18  # test images kept for the picture of mistakes


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """What a script is about to train, and where the outcome goes."""

    recipe: Recipe
    settings: Settings
    data: data.Data
    out: Path
    command: str
    began: float


def exit_status(work: Callable[[], None]) -> int:
    """Call work(), a script's. Returns the exit status: 0, 1 (a problem) or 130 (Ctrl-C).

    Under torchrun it ends the process at once: gloo's threads can abort a Python that is ending.
    """
    try:
        status = errors.exit_status(
            work, "The same command with --resume goes on from the last finished epoch."
        )
    finally:
        if joined := dist.is_initialized():
            dist.destroy_process_group()
    if joined:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def start(recipe: Recipe, options: argparse.Namespace) -> PreparedRun:
    """Load the data onto the device, prepare the folder, and say what will be trained.

    Raises:
        Problem: the data, the device or the folder cannot be had.
        Finished: the run is to be resumed, and is finished.
    """
    began = time.perf_counter()
    try:
        Path.cwd()
    except OSError as error:  # PyTorch needs one to load libraries
        raise Problem("The working directory has been removed. Change to another one.") from error
    machine.join_processes(torch.cuda.is_available() and options.device != "cpu")
    device = machine.choose_device(options.device)
    machine.keep_malloc_arenas()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if options.out:  # before a download
        machine.first_on_rank_0(lambda: records.check_writable(options.out))
    source = load_data(recipe.dataset, options.data)
    out = options.out or usual_folder(source.name, run_name(recipe.dataset, options.recipe))
    machine.first_on_rank_0(lambda: records.check_writable(out))
    settings = settings_of(options, source.name, device)
    if options.resume:
        machine.first_on_rank_0(lambda: end_if_finished(out, settings, recipe))
    if machine.rank_and_processes()[0] == 0:
        announce(recipe, settings, source, device)
        if options.resume and not (out / "checkpoint.pt").exists():
            print(f"Nothing to resume in {out}: starting from the beginning.", flush=True)
    return PreparedRun(
        recipe=recipe,
        settings=settings,
        data=source.to(device),
        out=out,
        command=options.command,
        began=began,
    )


def usual_folder(dataset: str, name: str) -> Path:
    """The folder of a run below figures/, relative to the working directory where it is below."""
    folder = ROOT / "figures" / (f"synthetic-{name}" if dataset == "synthetic" else name)
    try:
        return folder.relative_to(Path.cwd())
    except ValueError:
        return folder


def announce(recipe: Recipe, settings: Settings, source: data.Data, device: torch.device) -> None:
    """Print what will be trained."""
    if source.name == "synthetic":
        print(synthetic_banner(recipe.dataset))
    counts = len(source.train_labels), len(source.test_labels)
    print(f"{source.name}: {counts[0]} training and {counts[1]} test images")
    loss = f"loss {settings.loss}, s = {settings.scale}, margin = {settings.margin}"
    print(f"{loss}; device: {machine.device_name(device)}")
    print(f"precision: {settings.precision} in the network, float32 in the head", flush=True)


def end_if_finished(out: Path, settings: Settings, recipe: Recipe) -> None:
    """Look whether there is nothing left to resume in ``out``.

    A run is finished when its record and its model are there, of the same settings and
    hyperparameters, and no checkpoint is left. A record without a model came with the project.

    Raises:
        Finished: the run with these settings is finished.
        Problem: a run with other settings is; it would be overwritten. Or a file is damaged.
    """
    paths = out / "model.pt", out / "run.json"
    if (out / "checkpoint.pt").exists() or not all(path.exists() for path in paths):
        return
    remedy = "Restore it, or start without --resume to train again."
    model, record = records.load_torch(paths[0], remedy=remedy), records.load_json(paths[1], remedy)
    try:
        saved = {key: model[key] for key in ("settings", "hyperparameters")}
        recorded = {key: record[key] for key in asdict(settings)}
        recorded = {"settings": recorded, "hyperparameters": record["hyperparameters"]}
        if json.loads(json.dumps(saved)) != recorded:
            return
        changed = differing(saved, settings, recipe)
    except records.UNLIKE:
        return
    if changed:
        raise Problem(
            f"{out} holds a finished run of other settings: {changed}. "
            "Repeat its options, choose another --out, or start without --resume."
        )
    raise Finished(f"The run in {out} is finished; run.json is its record. Nothing is left to do.")


def settings_of(options: argparse.Namespace, dataset: str, device: torch.device) -> Settings:
    """The options as the settings of a run of ``dataset`` on ``device``."""
    return Settings(
        dataset=dataset,
        recipe=options.recipe,
        loss=options.loss,
        scale=None if options.loss == "softmax" else options.scale,
        margin=options.margin,
        embedding_size=options.embedding_size,
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed,
        device=device.type,
        precision=machine.choose_precision(options.precision, device),
        processes=machine.rank_and_processes()[1],
        threads=torch.get_num_threads(),
    )


def load_data(name: str, wanted: Path | None) -> data.Data:
    """The data set; the synthetic stand-in if it was asked for, or if no folder was named, none of
    the data set's files is there, and they cannot be downloaded.

    Under torchrun rank 0 loads, or downloads, before the others, and decides for all of them.
    """
    if str(wanted) == "synthetic":
        return synthetic.make(name)
    folder, rank = wanted or ROOT / "data", machine.rank_and_processes()[0]

    def load_on_rank_0() -> data.Data | None:
        if rank > 0:
            return None
        try:
            return data.load(name, folder)
        except data.DownloadFailed as problem:
            paths = (folder / file for file in data.SOURCES[name].files)
            if wanted is not None or any(path.exists() for path in paths):
                hint = f"{problem} Or see the program work with --data synthetic."
                raise data.DownloadFailed(hint) from problem
            print(problem, flush=True)
            return None

    source = machine.first_on_rank_0(load_on_rank_0)
    if machine.from_rank_0(source is None):
        return synthetic.make(name)
    return source or data.load(name, folder)


def synthetic_banner(name: str) -> str:
    """Words that nobody can miss: this is the stand-in."""
    lines = [
        f"THIS IS NOT {name}. A small SYNTHETIC stand-in takes its place, so that",
        f"you can see the program work. Its figures say nothing of {name}.",
    ]
    return "\n".join(["", "*" * 80, *(f"*  {line:<74}  *" for line in lines), "*" * 80, ""])


def finish(task: PreparedRun, trained: Trained) -> None:
    """On rank 0: evaluate, leave record, model and pictures in the run's folder, and sum up."""
    rank, world = machine.rank_and_processes()
    if world > 1:
        dist.barrier()  # no process ends while another one still waits for its last gradients
    if rank > 0:
        return
    record, arrays = evaluate(task, trained)
    out, settings = task.out, task.settings
    model = {
        "settings": asdict(settings),
        "hyperparameters": task.recipe.hyperparameters,
        "classes": task.data.classes,
        "network": trained.network.state_dict(),
        "head": trained.head.state_dict(),
    }
    records.save_torch(out / "model.pt", model)
    records.save_arrays(out / "arrays.npz", **arrays)
    records.save_json(out / "run.json", record)
    from experiment import figures  # matplotlib takes a second or two to import, and may fail

    figures.draw_run(out)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    summary(record, task.recipe.dataset, out)


def evaluate(task: PreparedRun, trained: Trained) -> tuple[dict, dict]:
    """The record of a trained network, and the arrays that its pictures are drawn from."""
    network, head, settings, source = trained.network, trained.head, task.settings, task.data
    train, test = evaluation.embed_both(network, source, settings.precision)
    embeddings, labels = test
    with torch.no_grad():
        logits = head(embeddings)
        predicted, tta = logits.argmax(dim=1), None
        if views := task.recipe.views:
            tta = evaluation.accuracy(
                evaluation.tta_logits(
                    network, head, source.test_images, settings.precision, views, logits
                ),
                labels,
            )
    device = source.test_images.device
    record = asdict(settings) | {
        "hyperparameters": task.recipe.hyperparameters,
        "parameters": sum(p.numel() for part in (network, head) for p in part.parameters()),
        "train_seconds": trained.seconds,
        "test_accuracy": evaluation.accuracy(logits, labels),
        "test_accuracy_tta": tta,
        **label_errors.on_corrected_labels(settings.dataset, labels, predicted),
        "class_accuracy": {
            name: evaluation.accuracy(logits[labels == k], labels[labels == k])
            for k, name in enumerate(source.classes)
        },
        "history": trained.history,
        "angles": evaluation.angle_statistics(head.weight, train, test),
        "device_name": machine.device_name(device),
        "total_seconds": time.perf_counter() - task.began,
        "versions": machine.versions(),
        "command": task.command,
        "data_md5": source.checksums,
    }
    theta = evaluation.angles_to_centres(embeddings, head.weight)
    own, other = evaluation.own_and_other(theta, labels)
    confidence = logits.softmax(dim=1).amax(dim=1).masked_fill(predicted == labels, -1)
    count = min(MISTAKES_KEPT, int((predicted != labels).sum()))
    worst = confidence.argsort(descending=True)[:count]
    tensors = {
        "snapshots": trained.snapshots.rad2deg().half(),
        "mean_theta": trained.mean_theta.rad2deg().half(),
        "labels": labels.byte(),
        "predicted": predicted.byte(),
        "theta_own": own.rad2deg().half(),
        "theta_other": other.rad2deg().half(),
        "centres": unit(head.weight.detach()).half(),
        "mistakes": source.test_images[worst],
        "mistakes_at": worst,
        "mistakes_theta": theta[worst].rad2deg().half(),
    }
    arrays = {key: value.cpu().numpy() for key, value in tensors.items()}
    return record, arrays | {"classes": np.array(source.classes)}


def summary(record: dict, dataset: str, out: Path) -> None:
    """What a run ends with on the screen."""
    tta = record["test_accuracy_tta"]
    augmented = f" ({tta:.2%} with test-time augmentation)" if tta else ""
    print(f"\nTest accuracy {record['test_accuracy']:.2%}{augmented}")
    print(
        f"Trained for {timedelta(seconds=round(record['train_seconds']))}. "
        "Mean angle to the class's embedding centre, test images: "
        f"{record['angles']['intra_test']:.1f}°"
    )
    if record["dataset"] == "synthetic":
        print(synthetic_banner(dataset))
    print(f"Pictures, run.json and the trained model.pt are in {out}")


def load_model(
    path: Path | str, network_class: type[nn.Module]
) -> tuple[nn.Module, nn.Module, list[str]]:
    """A trained network, its head, both in evaluation mode on the CPU, and the names of the
    classes. A picture of your own is classified by::

        import torch
        from torchvision.io import decode_image

        from arcface_cifar10 import Network
        from experiment.run import load_model

        network, head, classes = load_model("figures/cifar10/model.pt", Network)
        image = decode_image("cat.png", mode="RGB")[None] / 255  # trained on 32 × 32 pixels
        with torch.no_grad():
            print(classes[head(network(image)).argmax()])

    Args:
        path: a run's model.pt. network_class: ``Network`` of the script that wrote it.

    Raises:
        Problem: the file is missing, damaged, or of another network.
    """
    script = f"{network_class.__module__}.py"
    saved = records.load_torch(Path(path), remedy=f"Give the model.pt that {script} leaves.")
    try:
        settings, classes = Settings(**saved["settings"]), [str(name) for name in saved["classes"]]
        d, n = settings.embedding_size, len(classes)
        network = network_class(d, **saved["hyperparameters"]["network"])
        head: nn.Module = nn.Linear(d, n)
        if settings.loss != "softmax":
            assert settings.scale is not None
            margin = margins(settings.loss, settings.margin)
            head = ArcMarginProduct(d, n, s=settings.scale, **margin)
        for module, weights in ((network, saved["network"]), (head, saved["head"])):
            module.load_state_dict(weights)
            if not all(weight.isfinite().all() for weight in module.state_dict().values()):
                raise ValueError("a weight is not a number")
    except (AssertionError, RuntimeError, *records.UNLIKE) as error:
        raise Problem(f"{path} does not hold a model of {script}. Train one with it.") from error
    return network.eval(), head.eval(), classes
