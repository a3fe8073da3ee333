"""What the report prints: its numbers, from the records, and its listings, from the sources."""

import ast
import textwrap
from dataclasses import asdict
from typing import Any

import numpy as np

from experiment import records
from experiment.errors import Problem
from experiment.records import ROOT
from report import claims
from study import best, corruption, margin, seeds, seen, sphere, tables, unseen
from study.selection import angle_of, differences


def numbers() -> dict[str, Any]:
    """Every number of the report, as it is printed there, from the records on disk.

    Returns:
        mnist, cifar10: of the default recipe's runs. recipes: a table of all hyperparameters, but
        for those that are the same in all recipes, which in_all lists.
        grid, unseen, seen, sphere, damage: of these parts of the study.
        again: differences of CIFAR-10's other losses to ArcFace, trained again. larger: of the
            larger margin to none.
        random: W-Inter of ten random centres, in 128 and in 256 dimensions.
        torch_gpu: the version behind the GPU's runs.
        tables: those of the README files, as lists of rows.

    Raises:
        Problem: a record is missing or damaged.
    """
    with records.showing(ROOT / "figures"):
        found: dict[str, Any] = {name: run_numbers(name) for name in seeds.SCRIPTS}
        markdown = {"results": seeds.table(), **margin.tables()}
        markdown |= best.tables(claims.STUDY) | unseen.tables(claims.STUDY)
        claims.check((ROOT / "report/report.typ").read_text(encoding="utf-8"))
        found["recipes"], found["in_all"] = recipe_rows()
        found |= {"grid": grid_numbers(), "unseen": unseen_numbers(), "seen": seen_numbers()}
        cifar = margin.runs("cifar10")
        found["again"] = [
            tables.mean_ci(differences(cifar, name, margin.AGAIN), 2) for name in margin.OTHERS
        ]
        _, without, larger = margin.OTHERS
        found["larger"] = tables.mean_ci(differences(cifar, larger, without), 2)
        found["sphere"], found["damage"] = sphere_numbers(), damage_numbers()
        found["random"] = [f"{claims.random_centres(d):.1f}°" for d in (128, 256)]
        on_gpu = records.load_json(ROOT / "figures/cifar10/gpu.json")
        found |= {"torch_gpu": on_gpu[0]["versions"]["torch"].partition("+")[0]}
        return found | {"tables": {name: rows(table) for name, table in markdown.items()}}


def run_numbers(name: str) -> dict[str, Any]:
    """The numbers of a data set's default recipe: of seed 0, and means over all seeds."""
    folder = ROOT / "figures" / name
    (first, arrays), (runs, slow) = records.load_run(folder), seeds.both_precisions(name)
    wrong = arrays["predicted"] != arrays["labels"]
    by_class = {
        name: np.mean([100 * run["class_accuracy"][name] for run in runs])
        for name in first["class_accuracy"]
    }
    low = [name for name in ("cat", "dog", "bird") if name in by_class]
    settings = ("scale", "margin", "epochs", "embedding_size", "precision")
    # When the first seeds were run, the yardstick's steps were timed while the first one's clock
    # went on.
    whole = [run["total_seconds"] for run in runs if run["seed"] != 0]
    tta = first["test_accuracy_tta"]
    return {
        **{key: first[key] for key in settings},
        "hardest": f"{100 * first['hyperparameters']['hardest']:.0f}%",
        "parameters": f"{first['parameters']:,}",
        "run": f"{100 * first['test_accuracy']:.2f}",
        "run_tta": None if tta is None else f"{100 * tta:.2f}",
        "wrong": int(wrong.sum()),
        "cat_dog": int((wrong & cats_and_dogs(arrays)).sum()),
        "on_errors": first["mistakes_on_label_errors"],
        "corrected": tables.mean_ci([100 * run["test_accuracy_corrected"] for run in runs], 2),
        "lowest": [f"{by_class[name]:.1f}%" for name in low],
        "others": f"{min(by_class[name] for name in by_class if name not in low):.1f}",
        "torch": first["versions"]["torch"].partition("+")[0],
        "total_seconds": tables.mean_ci(whole, 0),
        "float32": timed(slow),
        "precision_gap": tables.mean_ci(seeds.precision_gaps(name), 2),
        **timed(runs),
    }


def timed(runs: list[Any]) -> dict[str, Any]:
    """Means over runs, and their time beside that of the published training."""
    ratios = [run["train_seconds"] / run["yardstick_seconds"] for run in runs]
    return {
        "yardstick": tables.mean_ci([run["yardstick_seconds"] for run in runs], 0),
        "ratio": tables.mean_ci(ratios, 2),
        "seeds": len(runs),
        **seeds.means(runs),
    }


def cats_and_dogs(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Which test images are of one of these two classes, and taken for one of them."""
    pair = [k for k, name in enumerate(arrays["classes"]) if name in ("cat", "dog")]
    return np.isin(arrays["labels"], pair) & np.isin(arrays["predicted"], pair)


def recipe_rows() -> tuple[list[list[str]], str]:
    """All hyperparameters of both scripts' recipes: a column for each with what differs, and a list
    of what is the same in all."""
    recipes = [recipe for script in seeds.SCRIPTS.values() for recipe in script.RECIPES.values()]
    flat: list[dict[str, Any]] = []
    for recipe in recipes:
        values: dict[str, Any] = {}
        for key, value in asdict(recipe).items():
            nested = value.items() if isinstance(value, dict) else [("", value)]
            values |= {" ".join(filter(None, (key, inner))): entry for inner, entry in nested}
        flat.append(values)
    names = list(dict.fromkeys(key for values in flat for key in values if key != "dataset"))
    head = ["", "MNIST", "MNIST, best", "CIFAR-10", "CIFAR-10, best"]
    cells = [[name, *(shown(values.get(name)) for values in flat)] for name in names]
    cells = [[line[0].replace("_", " "), *line[1:]] for line in cells]
    equal = [f"{name} {value}" for name, value, *rest in cells if {*rest} == {value}]
    return [head, *(line for line in cells if len({*line[1:]}) > 1)], ", ".join(equal)


def shown(value: Any) -> str:
    """A hyperparameter as the report prints it; a dash where a recipe has none."""
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "–"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return str(value).replace("-", "−")


def grid_numbers() -> dict[str, Any]:
    """Of MNIST's short runs over scale and margin: Inter by scale without a margin, and with the
    largest; the ends of the accuracies. Of the whole recipe longer: Inter without a margin at
    s = 16, 32 and 64; narrower: Intra at s = 32 for m = 0, 0.1 and 0.3."""
    between = claims.scale_and_margin(angle_of("inter_test"))
    accuracy = claims.scale_and_margin(lambda run: 100 * run["accuracy"])
    every = [value for values in accuracy.values() for value in values]
    longer, narrower = claims.after_the_whole_recipe()
    return {
        "inter": {str(s): f"{values[0]:.1f}°" for s, values in between.items()},
        "inter_largest": {str(s): f"{values[-1]:.1f}°" for s, values in between.items()},
        "ends": [f"{min(every):.2f}", f"{max(every):.2f}"],
        "longer": [f"{angle:.1f}" for angle in longer.values()],
        "narrower": [f"{angle:.1f}" for angle in narrower],
    }


def unseen_numbers() -> dict[str, Any]:
    """Of unseen digits: the correlation of Inter/Intra of the seen ones with the error rate on each
    choice of the classes; of heads: without softmax. cosface: m3."""
    digits = unseen.records_of(claims.STUDY, "mnist")
    of_all, of_heads = (
        rounded(claims.correlations_by_split("mnist", heads)["Inter/Intra"])
        for heads in (False, True)
    )
    return {"cosface": f"{digits['cosface'][0]['margin']:g}", "ratio": of_all, "heads": of_heads}


def seen_numbers() -> dict[str, list[str]]:
    """Equal error rates on unseen two-digit numbers, in %: the mean over the seeds for each loss,
    by the number of numbers seen; the same of digits, as digits_….

    lower: by how many points either margin's is lower than none's after 80 numbers. intra: the
    correlation of Intra of the seen numbers with the error rate, from the smallest number to the
    largest; digits_inter: of Inter of the seen digits; heads: of Intra, without plain softmax."""
    found = {}
    for name, start in (("numbers", ""), ("digits", "digits_")):
        eer = claims.by_seen("eer", name)
        for n in seen.KINDS[name].seen:
            found[f"{start}{n}"] = [f"{np.mean(rates[n]):.1f}" for rates in eer.values()]
    found["intra"] = rounded(claims.correlations_by_seen("numbers")["Intra"])
    found["heads"] = rounded(claims.correlations_by_seen("numbers", heads=True)["Intra"])
    found["digits_inter"] = rounded(claims.correlations_by_seen("digits")["Inter"])
    _, without, *margins = claims.by_seen("eer", "numbers").values()
    found["lower"] = [
        tables.mean_ci([a - b for a, b in zip(without[80], rates[80], strict=True)], 2)
        for rates in margins
    ]
    return found


def rounded(correlations: list[tuple[float, float]]) -> list[str]:
    """Each ρ as the report prints it."""
    return [f"{rho:.2f}".replace("-", "−") for rho, _ in correlations]


def damage_numbers() -> dict[str, Any]:
    """Of damaged images: on MNIST what half the contrast and 30% more brightness do to ArcFace's
    embeddings, and by how many points the angle leads under it, or the distance with softmax under
    noise; on CIFAR-10 by how many degrees weak noise turns ArcFace's embeddings, and the accuracy
    by the angle in %; the same without whitening, and the accuracy without damage there."""
    keys = {"turned": (1, "°"), "length": (2, " times")}
    runs = [corruption.records_of(claims.STUDY, dataset)["arcface"] for dataset in corruption.SEEDS]
    found: dict[str, Any] = {"seeds": list(map(len, runs))}
    for key, (digits, unit) in keys.items():
        values = (
            np.mean(claims.damage("mnist", "arcface", *what, key))
            for what in (("contrast", 50), ("brightness", 30))
        )
        found[key] = [f"{value:.{digits}f}{unit}" for value in values]
    ahead = {  # by the angle; the sign is that of the one that is ahead
        "contrast": (claims.lead("mnist", "arcface", "contrast", 50), 1),
        "noise": (claims.lead("mnist", "softmax", "noise", 32), -1),
        "brightness": (claims.lead("mnist", "softmax", "brightness", 45), -1),
        "square": (claims.lead("mnist", "softmax", "occlusion", 60), 1),
        "half": (claims.lead("mnist", "softmax", "contrast", 50), 1),
    }
    found["lead"] = {
        name: tables.mean_ci([side * value for value in values], 0)
        for name, (values, side) in ahead.items()
    }
    found["lead"]["none"] = f"{np.mean(claims.lead('mnist', 'arcface', 'noise', 0)):.1f}"
    found["lead"]["cifar"] = " and ".join(
        f"{np.mean(claims.lead('cifar10', loss, 'noise', 0)):.1f}" for loss in corruption.LOSSES
    )
    weak = [claims.damage("cifar10", "arcface", "noise", 4, key) for key in ("turned", "cosine")]
    control = claims.control("noise", 4)
    accuracy = 100 * claims.control("noise", 0)["cosine"]
    found["noise"] = [f"{np.mean(weak[0]):.0f}", f"{100 * np.mean(weak[1]):.0f}"]
    found["control"] = [
        f"{control['turned']:.0f}",
        f"{100 * control['cosine']:.0f}",
        f"{accuracy:.1f}",
    ]
    return found


def sphere_numbers() -> dict[str, str]:
    """How many steps the trainings with three-dimensional embeddings had, and their angles on test
    images, those of softmax first."""
    runs = {
        run["loss"]: run for run in records.load_lines(ROOT / "figures/study/sphere-mnist.jsonl")
    }
    found = {"steps": str(runs["arcface"]["epochs"] * 60_000 // sphere.RECIPE.batch_size)}
    for key, name in {"w_ec": "w_ec", "intra": "intra_test", "inter": "inter_test"}.items():
        values = [runs[loss]["angles"][name] for loss in ("softmax", "arcface")]
        found[key] = " and ".join(f"{value:.1f}" for value in values)
    return found


def rows(table: str) -> list[list[str]]:
    """The cells of a table in Markdown, without its line of dashes, without emphasis, and without
    the columns that hold nothing but dashes."""
    lines = [line.strip("|").split("|") for line in table.splitlines()]
    cells = [[cell.strip().replace("*", "") for cell in line] for line in lines]
    head, *body = cells[0], *cells[2:]
    kept = [k for k in range(len(head)) if {line[k] for line in body} != {"–"}]
    return [[line[k] for k in kept] for line in (head, *body)]


def listings() -> dict[str, dict[str, str]]:
    """The functions of the loss and of both scripts by file and name, methods as Class.method.

    Each is whole, without its docstring and without the indentation of its first line.
    """
    found: dict[str, dict[str, str]] = {}
    for path in (ROOT / f"arcface_{name}.py" for name in ("loss", "mnist", "cifar10")):
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except SyntaxError as error:
            raise Problem(f"{path.name} is not Python ({error}). Restore it.") from error
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for owner in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            methods = [node for node in owner.body if isinstance(node, ast.FunctionDef)]
            functions |= {f"{owner.name}.{node.name}": node for node in methods}
        lines = source.splitlines()
        found[path.name] = {name: listing(node, lines) for name, node in functions.items()}
    return found


def listing(function: ast.FunctionDef, lines: list[str]) -> str:
    """The lines of a function, of those of its file, without its docstring."""
    shown = range(function.lineno - 1, function.end_lineno or 0)
    docstring = range(0)
    if ast.get_docstring(function) is not None:
        docstring = range(function.body[0].lineno - 1, function.body[0].end_lineno or 0)
    return textwrap.dedent("\n".join(lines[i] for i in shown if i not in docstring))
