"""How the settings of the default recipes were chosen: python -m study.tuning [mnist | cifar10]

Every trial changes a few settings of another one, trains on the training images but the last
10,000 (MNIST) or 5,000 (CIFAR-10), and is judged on those; the test images are not looked at.
Records are in figures/tuning/, a line for each run; none is computed twice, and an interrupted one
is resumed. ``table`` writes the tables of figures/tuning/README.md from the records.
"""

import argparse
import io
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiment import cli, data, errors, machine, records
from experiment.data import Data
from experiment.recipe import Recipe, Settings
from experiment.records import ROOT
from experiment.training import Diverged, epoch_lengths
from study.margin import SETUPS
from study.runs import arcface_settings, outcome
from study.seeds import SCRIPTS
from study.tables import fill_file, markdown, mean_ci
from study.trials import START, TRIALS
from study.yardstick import YARDSTICKS


def recipe_of(dataset: str, name: str) -> Recipe:
    """The recipe that a trial trains: that of the trial it changes, with its changes."""
    before, changes, _ = TRIALS[dataset][name]
    return changed(recipe_of(dataset, before) if before else START[dataset], changes)


def changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with other values; of a field that is a dictionary only the named keys change."""
    now = asdict(recipe)
    return replace(
        recipe,
        **{
            key: now[key] | value if isinstance(value, dict) else value
            for key, value in changes.items()
        },
    )


def run(dataset: str, name: str, seed: int, held_out: Data, folder: Path) -> dict[str, Any]:
    """The record of a trial with a seed: from the disk, or from a training.

    Raises Problem if a record or a checkpoint is damaged, or cannot be written.
    """
    path, recipe = folder / f"{dataset}.jsonl", recipe_of(dataset, name)
    done = records.load_lines(path) if path.exists() else []
    for record in done:
        if (record["trial"], record["seed"]) == (name, seed):
            return record
    device = machine.choose_device("auto")
    settings = arcface_settings(
        recipe,
        dataset=held_out.name,
        seed=seed,
        device=device.type,
        precision=machine.choose_precision("auto", device),
        stop_if_diverged=False,
    )
    record = {
        "trial": name,
        "seed": seed,
        "held_out": len(held_out.test_labels),
        "recipe": asdict(recipe),
    }
    record |= {"device_name": machine.device_name(device), "precision": settings.precision}
    record["versions"] = machine.versions()
    checkpoints = folder / f".running-{dataset}-{name}-{seed}"
    record |= judge(SCRIPTS[dataset], recipe, settings, held_out.to(device), checkpoints)
    records.append_line(path, record)
    shutil.rmtree(checkpoints, ignore_errors=True)
    print(summary(record), flush=True)
    return record


def judge(
    script: ModuleType, recipe: Recipe, settings: Settings, source: Data, checkpoints: Path
) -> dict[str, Any]:
    """Train, and measure on the held-out images."""
    try:
        with redirect_stdout(io.StringIO()):
            trained = script.train(recipe, settings, source, checkpoints, True)
    except Diverged as problem:
        return {"diverged": str(problem)}
    found = outcome(trained, source, settings.precision, views=recipe.views)
    return found | {"train_seconds": trained.seconds, "diverged": trained.diverged}


def operations(recipe: Recipe, size: int) -> int:
    """Of forward and backward pass of a recipe's network, on one image of size × size pixels,
    multiplications and additions counted apart."""
    script = SCRIPTS["mnist" if recipe.dataset == "MNIST" else "cifar10"]
    network = script.Network(recipe.embedding_size, **recipe.network)
    channels = 1 if recipe.dataset == "MNIST" else 3
    with FlopCounterMode(display=False) as counter:
        network(torch.rand(2, channels, size, size)).sum().backward()
    return counter.get_total_flops() // 2


def arithmetic(recipe: Recipe, images: int) -> float:
    """Operations, in 10¹⁵, of a training by a recipe on so many images."""
    steps = images // recipe.batch_size
    lengths = epoch_lengths(recipe.epochs, steps, recipe.hardest, recipe.full_epochs)
    sizes = recipe.augmentation.get("sizes", [28])  # each has an equal part of the steps
    mean = sum(operations(recipe, size) for size in sizes) / len(sizes)
    return sum(lengths) * recipe.batch_size * mean / 1e15


def summary(record: dict[str, Any]) -> str:
    """A finished run in one line."""
    if "accuracy" not in record:
        return f"{record['trial']}, seed {record['seed']}: {record['diverged']}"
    tta = record["accuracy_tta"]
    return (
        f"{record['trial']}, seed {record['seed']}: {record['accuracy']:.2%}"
        + (f", TTA {tta:.2%}" if tta else "")
        + f", loss {record['plain_loss']:.4f}, {record['train_seconds']:.0f} s"
    )


def table(dataset: str, folder: Path) -> str:
    """The trials of a data set in Markdown, each with what it changed and what came of it."""
    done = records.load_lines(folder / f"{dataset}.jsonl")
    lines = []
    for name, (before, changes, _) in TRIALS[dataset].items():
        runs = [run for run in done if run["trial"] == name and "accuracy" in run]
        if not runs:
            continue
        tta = [100 * run["accuracy_tta"] for run in runs if run["accuracy_tta"]]
        lines.append(
            [
                name,
                ": ".join(text for text in (before, written(changes)) if text),
                str(len(runs)),
                mean_ci([100 * run["accuracy"] for run in runs], 2),
                mean_ci(tta, 2),
                mean_ci([run["plain_loss"] for run in runs], 4),
                mean_ci([run["angles"]["intra_test"] for run in runs], 1),
                mean_ci([run["angles"]["inter_test"] for run in runs], 1),
                f"{arithmetic(recipe_of(dataset, name), YARDSTICKS[dataset].images):.3f}",
            ]
        )
    head = ["trial", "what it changes", "seeds", "accuracy, %", "with TTA, %"]
    head += ["loss without m", "Intra, °", "Inter, °", "10¹⁵ operations"]
    return markdown(head, lines)


def written(changes: dict[str, Any]) -> str:
    """Changes in words: ``epochs 16, sizes [16, 20]``."""
    flat: dict[str, Any] = {}
    for key, value in changes.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return ", ".join(f"{key} {value}" for key, value in flat.items())


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run the trials that have no record yet. Returns the exit status.

    Args:
        root: the folder of figures/, where records are kept.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("dataset", choices=(*SCRIPTS, "table"), help="or 'table': write the tables")
    add("--data", type=cli.path, default=ROOT / "data", metavar="DIR", help="as in the scripts")
    folder = root / "figures" / "tuning"

    def work() -> None:
        options = parser.parse_args(argv)
        if options.dataset == "table":
            with records.showing(folder):
                made = {name: table(name, folder) for name in SCRIPTS}
            fill_file(folder / "README.md", made)
            return
        dataset = options.dataset
        machine.keep_malloc_arenas()
        source = data.load(START[dataset].dataset, options.data)
        held_out = source.for_validation(SETUPS[dataset].held_out)
        most = max(seeds for _, _, seeds in TRIALS[dataset].values())
        for seed in range(most):
            for name, (_, _, seeds) in TRIALS[dataset].items():
                if seed < seeds:
                    run(dataset, name, seed, held_out, folder)

    return errors.exit_status(work, "The same command goes on from the last finished epoch.")


if __name__ == "__main__":
    sys.exit(main())
