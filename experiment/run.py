"""A whole run of either script: options, data, training, evaluation, record, pictures."""

import argparse
import math
import os
import shlex
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from experiment import data, evaluation, figures, records, training
from experiment.records import ROOT, Problem
from experiment.training import LOSSES, Recipe, Settings, Trained

PICTURED = 2000  # test embeddings kept for the map of the sphere
MISTAKES = 18  # test images kept for the picture of mistakes


def main(recipes: dict[str, Recipe], description: str, argv: list[str] | None = None) -> int:
    """Run a script with command-line arguments. Returns the exit status: 0, 1 (a problem) or 130 (Ctrl-C)."""
    options = parse(recipes, description, argv)
    recipe = recipes[options.recipe]

    def work() -> None:
        if "RANK" in os.environ:  # started by torchrun
            dist.init_process_group("nccl" if torch.cuda.is_available() and options.device != "cpu" else "gloo")
        run(recipe, options, command(recipe, sys.argv[1:] if argv is None else argv))

    try:
        return records.exit_status(work, "The same command with --resume goes on from the last finished epoch.")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run(recipe: Recipe, options: argparse.Namespace, command_line: str) -> None:
    """Train on the data set that the options ask for, and leave its record and pictures in the run's folder."""
    began = time.perf_counter()
    device = training.choose_device(options.device)
    training.keep_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    given = options.data is not None
    source = load_data(recipe.dataset, options.data or ROOT / "data", given)
    usual = ROOT / "figures" / folder(recipe.dataset, source.name, options.recipe)
    out = options.out or (usual.relative_to(Path.cwd()) if usual.is_relative_to(Path.cwd()) else usual)
    records.check_writable(out)
    settings = settings_of(options, source.name, device)
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        if source.name == "synthetic":
            print(not_real(recipe.dataset))
        print(f"{source.name}: {len(source.train_labels)} training and {len(source.test_labels)} test images")
        print(f"loss {settings.loss}, s = {settings.scale}, margin = {settings.margin}; device: {records.device_name(device)}")
        print(f"precision: {settings.precision} in the network, float32 in the head", flush=True)

    source = source.to(device)
    checkpoint = out / "checkpoint.pt"
    if first and options.resume and not checkpoint.exists():
        print(f"Nothing to resume in {out}: starting from the beginning.", flush=True)
    trained = training.train(recipe, settings, source, checkpoint, options.resume)
    if dist.is_initialized():
        dist.barrier()  # no process ends while another one still waits for its last gradients
    if not first:
        return

    record, arrays = evaluate(recipe, settings, source, trained)
    record |= {
        "device_name": records.device_name(device),
        "total_seconds": time.perf_counter() - began,
        "versions": records.versions(),
        "command": command_line,
        "data_md5": source.checksums,
    }
    records.save_torch(
        out / "model.pt",
        {"settings": asdict(settings), "network": trained.network.state_dict(), "head": trained.head.state_dict()},
    )
    records.save_arrays(out / "arrays.npz", **arrays)
    records.save_json(out / "run.json", record)
    figures.draw_run(out)
    checkpoint.unlink(missing_ok=True)
    summary(record, recipe.dataset, out)


def settings_of(options: argparse.Namespace, dataset: str, device: torch.device) -> Settings:
    """What :func:`parse` read, as the settings of a run of ``dataset`` on ``device``."""
    return Settings(
        dataset,
        options.loss,
        None if options.loss == "softmax" else options.scale,
        options.margin,
        options.embedding_size,
        options.epochs,
        options.batch_size,
        options.seed,
        device.type,
        training.choose_precision(options.precision, device),
        options.recipe,
    )


def load_data(name: str, folder: Path, given: bool) -> data.Data:
    """The data set; the synthetic stand-in if that was asked for, or if none was named and none can be had."""
    if str(folder) == "synthetic":
        return data.synthetic(name)
    try:
        return data.load(name, folder.expanduser().resolve())
    except data.DownloadFailed as problem:
        if given:
            raise
        print(problem, flush=True)
        return data.synthetic(name)


def not_real(name: str) -> str:
    """Words that nobody can miss: this is the stand-in."""
    lines = [
        f"THIS IS NOT {name}. A small SYNTHETIC stand-in takes its place, so that",
        f"you can see the program work. Its figures say nothing of {name}.",
    ]
    return "\n".join(["", "*" * 80, *(f"*  {line:<74}  *" for line in lines), "*" * 80, ""])


def folder(dataset: str, source: str, recipe: str) -> str:
    """The name of a run's folder below figures/: mnist, cifar10, cifar10-best, synthetic-mnist and so on."""
    name = short(dataset) + ("" if recipe == "default" else f"-{recipe}")
    return f"synthetic-{name}" if source == "synthetic" else name


def short(dataset: str) -> str:
    """A data set's name in those of files: mnist, cifar10."""
    return dataset.lower().replace("-", "")


def evaluate(recipe: Recipe, settings: Settings, source: data.Data, trained: Trained) -> tuple[dict, dict]:
    """The record of a trained network, and the arrays that its pictures are drawn from."""
    network, head = trained.network, trained.head
    train, test = (
        (evaluation.embed(network, images, settings.precision), labels)
        for images, labels in (
            (source.train_images, source.train_labels),
            (source.test_images, source.test_labels),
        )
    )
    embeddings, labels = test
    with torch.no_grad():
        logits = head(embeddings)
        views = None
        if recipe.views_at_test:
            embedded = evaluation.embed_views(network, source.test_images, settings.precision)
            views = accuracy(sum(weight * head(view) for weight, view in embedded), labels)
    record = asdict(settings) | {
        "parameters": sum(p.numel() for module in (network, head) for p in module.parameters()),
        "hardest": recipe.hardest,
        "train_seconds": trained.seconds,
        "test_accuracy": accuracy(logits, labels),
        "test_accuracy_tta": views,
        "history": trained.history,
        "angles": evaluation.angle_statistics(head.weight, train, test),
    }
    theta = evaluation.angles_to_centres(embeddings, head.weight)
    predicted = logits.argmax(dim=1)
    sure = logits.softmax(dim=1).amax(dim=1).masked_fill(predicted == labels, -1)
    worst = sure.argsort(descending=True)[: min(MISTAKES, int((predicted != labels).sum()))]
    arrays = {
        "snapshots": trained.snapshots.rad2deg().half(),
        "embeddings": evaluation.unit(embeddings[:PICTURED]).half(),
        "labels": labels.byte(),
        "predicted": predicted.byte(),
        "centres": evaluation.unit(head.weight.detach()).half(),
        "mistakes": source.test_images[worst],
        "mistakes_at": worst,
        "mistakes_theta": theta[worst].rad2deg().half(),
        "classes": np.array(source.classes),
    }
    return record, {key: value.cpu().numpy() if isinstance(value, Tensor) else value for key, value in arrays.items()}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Correct / total, both counted as integers."""
    return (logits.argmax(dim=1) == labels).sum().item() / len(labels)


def summary(record: dict, name: str, out: Path) -> None:
    """What a run ends with on the screen."""
    views = record["test_accuracy_tta"]
    print(f"\nTest accuracy {record['test_accuracy']:.2%}" + (f" ({views:.2%} with test-time augmentation)" if views else ""))
    print(
        f"Trained for {timedelta(seconds=round(record['train_seconds']))}. "
        f"Mean angle to the class's embedding centre, test images: {record['angles']['intra_test']:.1f}°"
    )
    if record["dataset"] == "synthetic":
        print(not_real(name))
    print(f"Pictures, run.json and the trained model.pt are in {out}")


def load_model(path: Path | str, recipes: dict[str, Recipe]) -> tuple[nn.Module, nn.Module]:
    """A trained network and its head, in evaluation mode on the CPU, from a run's model.pt.

    Args:
        path: the file. recipes: ``RECIPES`` of the script that wrote it.

    Raises:
        Problem: it is damaged, or not such a file.
    """
    saved = records.load_torch(Path(path))
    try:
        settings = Settings(**saved["settings"])
        model, head = recipes[settings.recipe].network(settings.embedding_size), training.make_head(settings, 10)
        model.load_state_dict(saved["network"])
        head.load_state_dict(saved["head"])
    except (KeyError, TypeError, RuntimeError) as error:
        script = f"arcface_{short(recipes['default'].dataset)}.py"
        raise Problem(f"{path} does not hold a model of {script}. Train one with it.") from error
    return model.eval(), head.eval()


# --- the command line ----------------------------------------------------------------------------


def parse(recipes: dict[str, Recipe], description: str, argv: list[str] | None) -> argparse.Namespace:
    """The options of both scripts, checked; a bad one ends the program with exit status 2."""
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--recipe", choices=recipes, default="default", help="the defaults of all other options, and the "
        "network: that of best is larger and takes far longer")  # fmt: skip
    chosen = chooser.parse_known_args(argv)[0].recipe
    recipe = recipes[chosen]
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        parents=[chooser],
    )
    add = parser.add_argument
    name = folder(recipe.dataset, recipe.dataset, chosen)
    add("--data", type=Path, metavar="DIR", help="torchvision root that holds, or will hold, the data set (default: data/ "
        "beside the script), or 'synthetic' for the built-in stand-in", default=argparse.SUPPRESS)  # fmt: skip
    add("--out", type=Path, metavar="DIR", help=f"folder of the run (default: figures/{name}/ beside the script)",
        default=argparse.SUPPRESS)  # fmt: skip
    add("--epochs", type=integer(1, 10_000), metavar="N", default=recipe.epochs, help="length of the training")
    add("--batch-size", type=integer(2, 60_000), metavar="N", default=recipe.batch_size, help="images in a step")
    add("--seed", type=integer(0, 2**20 - 1), metavar="N", default=0, help="of all random numbers")
    add("--loss", choices=LOSSES, default="arcface", help="the loss")
    add("--scale", type=real(0, 1000), metavar="S", default=recipe.scale, help="s, the radius of the hypersphere")
    add("--margin", type=real(0, 4), metavar="M", default=argparse.SUPPRESS,
        help=f"arcface: m in radians, up to π/2 (default: {recipe.margins['arcface']}); cosface: of the cosine "
        f"(default: {recipe.margins['cosface']}); sphereface: factor on the angle (default: {recipe.margins['sphereface']})",
    )  # fmt: skip
    add("--embedding-size", type=integer(2, 4096), metavar="D", default=recipe.embedding_size, help="numbers in an embedding")
    add("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="where to compute")
    add("--precision", choices=("auto", "float32", "bfloat16"), default="auto",
        help="of the network's arithmetic; auto takes what is faster on the machine")  # fmt: skip
    add("--resume", action="store_true", help="go on after an interrupted run with the same options")
    options = parser.parse_args(argv)
    options.data, options.out = (getattr(options, key, None) for key in ("data", "out"))
    default = recipe.margins.get(options.loss)
    if hasattr(options, "margin") and default is None:
        parser.error(f"argument --margin: {options.loss} has no margin to choose; leave it out")
    options.margin = getattr(options, "margin", default)
    if options.scale == 0:
        parser.error("argument --scale: 0 is not allowed; give a scale above 0, such as 8")
    if options.loss == "arcface" and options.margin > math.pi / 2:
        parser.error(f"argument --margin: {options.margin} is more than π/2; give radians, such as 0.5")
    if options.loss == "sphereface" and options.margin == 0:
        parser.error("argument --margin: sphereface multiplies the angle by it; give a number above 0, such as 1.35")
    return options


def integer(low: int, high: int):
    """An argparse type: an integer in [low, high]."""

    def parse_integer(text: str) -> int:
        try:
            if low <= int(text) <= high:
                return int(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from {low} to {high}")

    return parse_integer


def real(low: float, high: float):
    """An argparse type: a number in [low, high]."""

    def parse_real(text: str) -> float:
        try:
            if low <= float(text) <= high:
                return float(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")

    return parse_real


def command(recipe: Recipe, argv: list[str]) -> str:
    """The command line that repeats this run from its beginning."""
    argv = [word for word in argv if word != "--resume"]
    return shlex.join(["python", f"arcface_{short(recipe.dataset)}.py", *argv])
