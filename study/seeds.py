"""A recipe over several seeds: python -m study.seeds mnist | cifar10 | mnist-best | cifar10-best

Seed 0 leaves its pictures and ``run.json`` in the folder of that name below figures/; every seed
leaves its record, without the history, in ``seeds.json`` there. A seed that has a record is not run
again, and an interrupted one is resumed. With ``--float32`` or ``--gpu`` there are no pictures, and
the records go to ``float32.json`` or ``gpu.json``. Before and after each seed of a default recipe
the steps of a published training are timed on a CPU (study/yardstick.py): machines differ, and the
ratio less so. ``table`` in place of a recipe writes the README's table of results.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

import torch

import arcface_cifar10
import arcface_mnist
from experiment import cli, errors, records, run
from experiment.errors import Problem
from experiment.recipe import CHANGEABLE, Recipe
from experiment.records import ROOT, Record
from study.tables import fill_file, markdown, mean_ci
from study.yardstick import yardstick_seconds

SCRIPTS = {"mnist": arcface_mnist, "cifar10": arcface_cifar10}
RECIPES = (*SCRIPTS, *(f"{dataset}-best" for dataset in SCRIPTS))  # each a folder of figures/
OPTIONS = {  # of the scripts, for the records of a file
    "seeds": ["--device", "cpu"],
    "float32": ["--device", "cpu", "--precision", "float32"],
    "gpu": ["--device", "cuda"],
}
WARM_UP_EPOCHS = 4  # of the training that loads a GPU's kernels: with it every size of image occurs


# --- tables ---------------------------------------------------------------------------------------


def means(runs: list[Record]) -> dict[str, str]:
    """Means over seeds with their intervals: accuracies in %, seconds, angles in degrees.

    A dash stands where nothing was measured.
    """
    seconds = [record["train_seconds"] for record in runs]
    tta = [record["test_accuracy_tta"] for record in runs]
    angles = {key: [record["angles"][key] for record in runs] for key in runs[0]["angles"]}
    return {
        "mean": mean_ci([100 * record["test_accuracy"] for record in runs], 2),
        "mean_tta": mean_ci([100 * value for value in tta if value is not None], 2),
        "seconds": mean_ci(seconds, 0 if min(seconds) >= 10 else 1),
        **{key: mean_ci(values, 1) for key, values in angles.items()},
    }


def is_made_by(recipe: Recipe, record: Record) -> bool:
    """Whether a record is of a training by this recipe, as it is now, with its own margin."""
    used = {key: getattr(recipe, key) for key in ("hyperparameters", *CHANGEABLE)}
    return record.items() >= (used | {"margin": recipe.default_margins["arcface"]}).items()


def load_runs(path: Path, dataset: str) -> list[Any]:
    """The records of a recipe's seeds.

    Raises Problem if the file is missing or damaged, is empty, or holds a record of another data
    set than this one, such as "CIFAR-10", or two of one seed.
    """
    runs = records.load_json(path)
    with records.showing(path):
        numbers = [run["seed"] for run in runs if run["dataset"] == dataset]
        if not runs or len({*numbers}) < len(runs):
            what = f"{path} must hold records of {dataset} alone, and one of each seed"
            raise Problem(f"{what}. {records.AGAIN}")
    return runs


def table(root: Path = ROOT) -> str:
    """The README's table of results, in Markdown, from the records of all seeds below ``root``.

    Records that another version of a recipe made are called so.
    """
    lines = []
    for file, name in product(OPTIONS, RECIPES):
        path = root / "figures" / name / f"{file}.json"
        if path.exists():
            dataset, _, best = name.partition("-")
            recipe = SCRIPTS[dataset].RECIPES[best or "default"]
            runs = load_runs(path, recipe.dataset)
            text, first = means(runs), runs[0]
            what = first["dataset"] + (", --recipe best" if best else "")
            what += "" if all(is_made_by(recipe, run) for run in runs) else ", an earlier version"
            line = [what, str(len(runs)), f"**{text['mean']}**"]
            line += [text["mean_tta"], text["seconds"], f"{text['intra_test']}°"]
            lines.append([*line, machines(runs)])
    head = ["", "seeds", "test accuracy, %", "with TTA, %", "training, s"]
    return markdown([*head, "angle to own embedding centre (test)", "machine"], lines)


def machines(runs: list[Record]) -> str:
    """The runs' devices and precisions, as a table has room for them: "Intel Xeon, 2 threads,
    bfloat16"."""
    names = [f"{run['device_name']}, {run['precision']}" for run in runs]
    found = "; ".join(dict.fromkeys(names))
    for word, instead in {"CPU (": "", "),": ",", "(R)": "", " Processor": ""}.items():
        found = found.replace(word, instead)
    return found


def headline(root: Path = ROOT) -> str:
    """The result in one line, for the top of the README, from the same records."""
    parts = []
    for name in SCRIPTS:
        runs, slow = both_precisions(name, root)
        time = f"{minutes(runs)} minutes of training (n = {len(runs)}; "
        time += f"in float32 {minutes(slow)}, n = {len(slow)})"
        parts.append(f"**{means(runs)['mean']}%** on {runs[0]['dataset']} after {time}")
    what = "mean test accuracy of n seeds with 95% intervals, on two CPU cores, in bfloat16"
    return f"{' and '.join(parts)}: {what}; the times in float32 are of another, slower machine."


def both_precisions(name: str, root: Path = ROOT) -> list[list[Any]]:
    """The records of a default recipe, of SCRIPTS, on a CPU: as the machine chose, and in
    float32. Raises Problem as :func:`load_runs` does."""
    folder, dataset = root / "figures" / name, SCRIPTS[name].DEFAULT.dataset
    return [load_runs(folder / f"{file}.json", dataset) for file in ("seeds", "float32")]


def precision_gaps(name: str, root: Path = ROOT) -> list[float]:
    """How much more accurate a default recipe, of SCRIPTS, is in float32 than in bfloat16: in
    points of test accuracy, for each seed that was run in both, each on a processor of its own."""
    brief, full = (
        {run["seed"]: run["test_accuracy"] for run in runs} for runs in both_precisions(name, root)
    )
    return [100 * (full[seed] - brief[seed]) for seed in sorted(full.keys() & brief.keys())]


def minutes(runs: list[Record]) -> str:
    """Minutes of training, the mean over the runs."""
    return f"{mean(record['train_seconds'] for record in runs) / 60:.1f}"


# --- runs -----------------------------------------------------------------------------------------


def run_seeds(
    script: ModuleType,
    recipe: str,
    seeds: int,
    source: Path | None,
    folder: Path,
    file: str,
    published: Callable[[], float] | None = None,
) -> None:
    """Run the seeds that have no record by this recipe in ``folder`` yet.

    On a GPU a short training goes before them, uncounted, which loads its kernels.

    Args:
        script: one of SCRIPTS. recipe: "default" or "best". source: see the scripts' --data.
        file: one of OPTIONS, where the records go. Only the runs of "seeds" leave pictures.
        published: times a published training, in seconds. A record gets the mean of before and
            after as ``yardstick_seconds``.

    Raises:
        Problem: the data cannot be had or the device is not there, or a file cannot be written.
    """
    path = folder / f"{file}.json"
    found = load_runs(path, script.RECIPES[recipe].dataset) if path.exists() else []
    found = [record for record in found if is_made_by(script.RECIPES[recipe], record)]
    missing = sorted(set(range(seeds)) - {record["seed"] for record in found})
    words = ["--recipe", recipe] if recipe != "default" else []
    words += OPTIONS[file]
    scratch = folder / "seed-warm-up"
    if file == "gpu" and missing:
        train(script, prepare(script, [*words, "--epochs", str(WARM_UP_EPOCHS)], source, scratch))
        shutil.rmtree(scratch)
    before = None
    for seed in missing:
        pictures = seed == 0 and file == "seeds"
        out = folder if pictures else folder / f"seed-{seed}-{file}"
        if published and before is None:
            before = published()
        task = prepare(script, [*words, "--seed", str(seed)], source, out)  # its clock starts
        trained = train(script, task)
        if pictures:
            run.finish(task, trained)
            record = records.load_json(out / "run.json")
        else:
            record, _ = run.evaluate(task, trained)
        del record["history"]
        if published and before is not None:
            after = published()
            record["yardstick_seconds"], before = (before + after) / 2, after
        found = sorted([*found, record], key=lambda record: record["seed"])
        records.save_json(path, found)
        if not pictures:
            shutil.rmtree(out)


def prepare(
    script: ModuleType, words: list[str], source: Path | None, out: Path
) -> run.PreparedRun:
    """What is to be trained, as ``words`` on a script's command line say.

    Raises Problem if the data would be the synthetic stand-in.
    """
    options = cli.parse(script.RECIPES, script.__doc__, words)
    options.data, options.out = source, out
    options.resume = (out / "checkpoint.pt").exists()
    task = run.start(script.RECIPES[options.recipe], options)
    if task.data.name == "synthetic":
        raise Problem(
            "Seeds are not run on the synthetic stand-in. "
            "Name the folder with the real data with --data."
        )
    return task


def train(script: ModuleType, task: run.PreparedRun) -> run.Trained:
    """Train; go on from the checkpoint in the task's folder, where there is one."""
    resume = (task.out / "checkpoint.pt").exists()
    return script.train(task.recipe, task.settings, task.data, task.out, resume)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run seeds, or write the table. Returns the exit status.

    Args:
        root: the folder of README.md and figures/.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("recipe", choices=(*RECIPES, "table"), help="or 'table': write the README's results")
    kind = cli.number(int, 1, 1000)
    add("--seeds", type=kind, default=3, metavar="N", help="seeds 0 to N − 1 (default: 3)")
    add("--data", type=cli.path, metavar="DIR", help="as in the scripts")
    kinds = parser.add_mutually_exclusive_group()
    slow = "in float32, as on a processor without fast bfloat16; without pictures"
    kinds.add_argument("--float32", dest="file", action="store_const", const="float32", help=slow)
    gpu = "on a GPU, without pictures"
    kinds.add_argument("--gpu", dest="file", action="store_const", const="gpu", help=gpu)
    parser.set_defaults(file="seeds")

    def work() -> None:
        options = parser.parse_args(argv)
        if options.recipe == "table":
            with records.showing(root / "figures"):
                tables = {"headline": headline(root), "results": table(root)}
            fill_file(root / "README.md", tables)
            return
        if options.file == "gpu" and not torch.cuda.is_available():
            remedy = "Leave it out to train on the CPU."
            raise Problem(f"--gpu: PyTorch sees no GPU on this machine. {remedy}")
        dataset, _, recipe = options.recipe.partition("-")
        folder, script = root / "figures" / options.recipe, SCRIPTS[dataset]
        timed = options.file != "gpu" and not recipe
        precision = "float32" if options.file == "float32" else "auto"
        run_seeds(
            script,
            recipe or "default",
            options.seeds,
            options.data,
            folder,
            options.file,
            partial(yardstick_seconds, dataset, precision) if timed else None,
        )
        print(table(root))

    return errors.exit_status(work, "The same command goes on from the last finished epoch.")


if __name__ == "__main__":
    sys.exit(main())
