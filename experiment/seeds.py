"""A recipe over several seeds: python -m experiment.seeds mnist | cifar10 | mnist-best | cifar10-best [--seeds 3] [--gpu]

Seed 0 leaves its pictures and ``run.json`` in the folder of that name below figures/; every seed leaves its record, without the
history, in ``seeds.json`` there. A seed that has a record is not run again, and an interrupted one is resumed. With ``--gpu``
there are no pictures, and the records go to ``gpu.json``.
"""

import argparse
import importlib
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from experiment import data, records, run, training
from experiment.records import ROOT, Problem, cell

DATASETS = ("mnist", "cifar10")
RUNS = (*DATASETS, *(f"{dataset}-best" for dataset in DATASETS))  # those of the default recipes, and of the best


def means(runs: list[dict]) -> dict[str, str]:
    """Means over seeds with their intervals: accuracies in %, seconds, angles in degrees; a dash where nothing was measured."""
    seconds = [record["train_seconds"] for record in runs]
    views = [100 * record["test_accuracy_tta"] for record in runs if record["test_accuracy_tta"] is not None]
    return {
        "mean": cell([100 * record["test_accuracy"] for record in runs], 2),
        "mean_tta": cell(views, 2) if views else "–",
        "seconds": cell(seconds, 0 if min(seconds) >= 10 else 1),
        **{key: cell([record["angles"][key] for record in runs], 1) for key in runs[0]["angles"]},
    }


def table() -> str:
    """The README's table of results, in Markdown, from the records of all seeds."""
    head = ["", "seeds", "test accuracy, %", "with TTA, %", "training, s", "angle to own embedding centre (test)", "machine"]
    lines = []
    for file, folder in product(("seeds.json", "gpu.json"), RUNS):
        path = ROOT / "figures" / folder / file
        if path.exists():
            found = records.load_json(path)
            shown = means(found)
            name = found[0]["dataset"] + (", --recipe best" if folder not in DATASETS else "")
            line = [name, str(len(found)), f"**{shown['mean']}**", shown["mean_tta"], shown["seconds"]]
            line += [f"{shown['intra_test']}°", f"{found[0]['device_name']}, {found[0]['precision']}"]
            lines.append(line)
    return records.markdown(head, lines)


def headline() -> str:
    """The result in one line, for the top of the README, from the same records."""
    parts = []
    for folder in DATASETS:
        found = records.load_json(ROOT / "figures" / folder / "seeds.json")
        minutes = records.interval([record["train_seconds"] / 60 for record in found])[0]
        accuracy, name = means(found)["mean"], found[0]["dataset"]
        parts.append(f"**{accuracy}%** on {name} after {minutes:.1f} minutes of training (n = {len(found)})")
    return f"{' and '.join(parts)}: mean test accuracy of n seeds with 95% intervals, on two CPU cores."


def run_seeds(name: str, seeds: int, source: Path | None) -> int:
    """Run the seeds, of one of RUNS, that have no record yet. Returns the exit status of the first that fails, else 0."""
    dataset, _, recipe = name.partition("-")
    folder = ROOT / "figures" / name
    path = folder / "seeds.json"
    found = records.load_json(path) if path.exists() else []
    for seed in range(seeds):
        if seed in [record["seed"] for record in found]:
            continue
        out = folder if seed == 0 else folder / f"seed-{seed}"
        command = [sys.executable, f"arcface_{dataset}.py", "--resume"]
        command += ["--recipe", recipe] if recipe else []
        command += ["--seed", str(seed), "--out", out.relative_to(ROOT)] if seed else []
        command += ["--data", source.resolve()] if source else []
        status = subprocess.run(command, cwd=ROOT).returncode
        if status:
            return status
        record = records.load_json(out / "run.json")
        if record["dataset"] == "synthetic":
            raise Problem(f"{out} is of the synthetic stand-in. Name the folder with the real data with --data.")
        del record["history"]
        found = sorted([*found, record], key=lambda record: record["seed"])
        records.save_json(path, found)
        if seed:
            shutil.rmtree(out)
    print(table())
    return 0


def run_in_turn(name: str, seeds: int, folder: Path | None, device: torch.device) -> None:
    """Run the seeds, of one of RUNS, in this process one after the other; at the end their records replace ``gpu.json``.

    A short training goes before them, uncounted: with it the GPU's kernels are loaded.
    """
    dataset, _, choice = name.partition("-")
    recipes = importlib.import_module(f"arcface_{dataset}").RECIPES
    recipe = recipes[choice or "default"]
    source = data.load(recipe.dataset, folder or ROOT / "data").to(device)

    def train(*words: str) -> tuple[training.Settings, training.Trained]:
        options = run.parse(recipes, __doc__, ["--recipe", choice or "default", *words])
        settings = run.settings_of(options, source.name, device)
        with TemporaryDirectory() as scratch:
            return settings, training.train(recipe, settings, source, Path(scratch) / "checkpoint.pt", resume=False)

    train("--epochs", "4")
    machine = {"device_name": records.device_name(device), "versions": records.versions()}
    found = []
    for seed in range(seeds):
        settings, trained = train("--seed", str(seed))
        record, _ = run.evaluate(recipe, settings, source, trained)
        del record["history"]
        found.append(record | machine)
    records.save_json(ROOT / "figures" / name / "gpu.json", found)


def gpu() -> torch.device:
    """This machine's GPU. Raises Problem if there is none."""
    if not torch.cuda.is_available():
        raise Problem("--gpu: PyTorch sees no GPU on this machine. Leave it out to train on the CPU.")
    return torch.device("cuda")


def main(argv: list[str] | None = None) -> int:
    """Run seeds, or write the table. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=(*RUNS, "table"), help="or 'table': write the README's table of results")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N − 1 (default: 3)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="as in the scripts")
    parser.add_argument("--gpu", action="store_true", help="on a GPU, all seeds in one process, without pictures")
    options = parser.parse_args(argv)
    if options.dataset == "table":
        return records.exit_status(lambda: records.fill_file(ROOT / "README.md", {"headline": headline(), "results": table()}))
    if options.gpu:
        return records.exit_status(lambda: run_in_turn(options.dataset, options.seeds, options.data, gpu()))
    go_on = "The same command goes on from the last finished epoch."
    return records.exit_status(lambda: run_seeds(options.dataset, options.seeds, options.data), go_on)


if __name__ == "__main__":
    sys.exit(main())
