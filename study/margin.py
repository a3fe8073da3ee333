"""Does the margin help in the scripts' own recipes? python -m study.margin mnist | cifar10 | table

The default recipe with plain softmax, with normalised softmax (m = 0) and with a margin of 0.3,
all else as it is; but for the learning rate of softmax's last layer, which is chosen from three on
held-out training images. ArcFace's runs with the recipe's own margin are those of
figures/*/seeds.json, which may be of another machine: beside them stand those of study.corruption.
Records are in figures/study/, none is computed twice, and an interrupted one is resumed. ``table``
writes the tables of figures/study/README.md.
"""

import argparse
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import arcface_cifar10
import arcface_mnist
from experiment import cli, data, errors, machine, records
from experiment.records import ROOT
from study.runs import Setup, Study, Task, outcome
from study.seeds import is_made_by, load_runs
from study.selection import ARCFACE, RunsByLoss, finished, load
from study.tables import ACCURACY_HEAD, accuracy_cells, fill_file, markdown, mean_ci

SETUPS = {
    "mnist": Setup(
        train=arcface_mnist.train, recipe=arcface_mnist.DEFAULT, seeds=10, held_out=10_000
    ),
    "cifar10": Setup(train=arcface_cifar10.train, recipe=arcface_cifar10.DEFAULT, seeds=5),
}
RATES = (0.25, 1.0, 4.0)  # of softmax's last layer, times that of the recipe
LARGER = 0.3  # the other margin, in radians
AGAIN = "ArcFace, trained again"
OTHERS = {
    "softmax": "softmax",
    "normalised softmax": "norm-softmax",
    f"ArcFace, m = {LARGER}": "arcface",
}

# --- the runs -------------------------------------------------------------------------------------


def softmax_rate(study: Study, dataset: str) -> float:
    """Of RATES that with which softmax has the lowest loss on held-out training images."""
    setup = study.setup
    held_out = study.source.for_validation(setup.held_out)
    found = {}
    for factor in RATES:
        rate = factor * setup.recipe.learning_rates["linear head"]
        task = Task(
            part="margin-tuning",
            dataset=dataset,
            loss="softmax",
            scale=None,
            margin=None,
            head_lr=rate,
            epochs=setup.recipe.epochs,
            named_by=("head_lr",),
        )
        record = study.run(task, held_out, partial(outcome, views=setup.recipe.views))
        found[rate] = record.get("plain_loss", math.inf)
    return min(found, key=lambda rate: found[rate])


def tasks(study: Study, dataset: str) -> dict[str, Task]:
    """The tasks to be compared, with seed 0: the recipe with either loss without a margin, with the
    larger margin, and, as ARCFACE, with its own. Trains softmax with each of RATES first, where
    that has no record."""
    setup = study.setup
    rate, scale = setup.recipe.learning_rates["head"], setup.recipe.scale
    usual: dict[str, Any] = {"part": "margin", "dataset": dataset, "epochs": setup.recipe.epochs}
    head = usual | {"scale": scale, "head_lr": rate}
    softmax = {"scale": None, "head_lr": softmax_rate(study, dataset)}
    return {
        "softmax": Task(loss="softmax", margin=None, **usual | softmax),
        "normalised softmax": Task(loss="norm-softmax", margin=None, **head),
        f"ArcFace, m = {LARGER}": Task(loss="arcface", margin=LARGER, **head),
        ARCFACE: Task(loss="arcface", margin=setup.recipe.default_margins["arcface"], **head),
    }


def compare(study: Study, dataset: str) -> None:
    """Train what ArcFace with the recipe's own margin is compared with, seed by seed: first both
    losses without a margin, then the larger margin."""
    setup = study.setup
    softmax, without, larger, _ = tasks(study, dataset).values()
    for of_these in ((softmax, without), (larger,)):
        for seed in range(setup.seeds):
            for task in of_these:
                measure = partial(outcome, views=setup.recipe.views)
                study.run(replace(task, seed=seed), study.source, measure)


# --- what they say --------------------------------------------------------------------------------


def runs(dataset: str, root: Path = ROOT) -> RunsByLoss:
    """The records by what was trained, in the order of their seeds; ArcFace with the recipe's own
    margin first, of the others those that have been run."""
    recipe = SETUPS[dataset].recipe
    own = load_runs(root / "figures" / dataset / "seeds.json", recipe.dataset)
    names = {"test_accuracy": "accuracy", "test_accuracy_tta": "accuracy_tta"}
    own = [record | {new: record[old] for old, new in names.items()} for record in own]
    found = {ARCFACE: [record for record in own if is_made_by(recipe, record)]}
    folder = root / "figures" / "study"
    found[AGAIN] = load(folder, "corruption", dataset).get("arcface", [])
    made = load(folder, "margin", dataset)
    found |= {name: made.get(loss, []) for name, loss in OTHERS.items()}
    found = {name: finished(group) for name, group in found.items()}
    return {
        name: sorted(group, key=lambda run: run["seed"]) for name, group in found.items() if group
    }


def table(dataset: str, root: Path = ROOT) -> str:
    """Accuracies and angles with the margin and without, in Markdown."""
    found, lines = runs(dataset, root), []
    for name, group in found.items():
        cells = [name, *accuracy_cells(found, name)]
        for key in ("intra_test", "inter_test"):
            cells.append(mean_ci([run["angles"][key] for run in group], 1))
        lines.append(cells)
    return markdown(["loss", *ACCURACY_HEAD, "Intra, test, °", "Inter, test, °"], lines)


def tables(root: Path = ROOT) -> dict[str, str]:
    """The tables of the data sets that have records, by the names of their marks."""
    return {f"margin-{name}": table(name, root) for name in SETUPS if len(runs(name, root)) > 1}


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run what has no record yet. Returns the exit status.

    Args:
        root: the folder of figures/, where records are kept.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("dataset", choices=(*SETUPS, "table"), help="or 'table': write the tables")
    add("--data", type=cli.path, default=ROOT / "data", metavar="DIR", help="as in the scripts")
    folder = root / "figures" / "study"

    def work() -> None:
        options = parser.parse_args(argv)
        if options.dataset != "table":
            machine.keep_malloc_arenas()
            setup = SETUPS[options.dataset]
            source = data.load(setup.recipe.dataset, options.data)
            total = len(RATES) + len(OTHERS) * setup.seeds
            study = Study(folder, setup, source, total)
            compare(study, options.dataset)
            study.bar.close()
        with records.showing(folder):
            made = tables(root)
        fill_file(folder / "README.md", made)

    return errors.exit_status(work, "The same command goes on from here.")


if __name__ == "__main__":
    sys.exit(main())
