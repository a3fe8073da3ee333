"""The options of both scripts."""

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from experiment.errors import protect_streams
from experiment.recipe import LOSSES, Recipe


def parse(
    recipes: dict[str, Recipe], description: str | None, argv: list[str] | None
) -> argparse.Namespace:
    """The options of a script, checked; a bad one ends the program with exit status 2.

    Returns:
        The options below, None for those of data, out and margin that have no value, and
        ``command``: the command line that repeats the run from its beginning.
    """
    protect_streams()  # --help has characters that not every terminal can show
    argv = sys.argv[1:] if argv is None else argv
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument(
        "--recipe",
        choices=recipes,
        default="default",
        help="the defaults of all other options, and the network: that of best is larger and takes "
        "far longer",
    )
    chosen = chooser.parse_known_args(argv)[0].recipe
    parser = argparse.ArgumentParser(
        description=(description or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        parents=[chooser],
    )
    recipe = recipes[chosen]
    add_options(parser, recipe, run_name(recipe.dataset, chosen))
    options = parser.parse_args(argv)
    for key in ("data", "out"):
        setattr(options, key, getattr(options, key, None))
    resolve_margin(parser, options, recipe.default_margins.get(options.loss))
    words = [f"arcface_{slug(recipe.dataset)}.py", *(word for word in argv if word != "--resume")]
    options.command = shlex.join([*launcher(), *words])
    return options


def launcher() -> list[str]:
    """What stands before the script's name in the command that started it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    try:
        _, world, local = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError):
        return ["python"]
    nodes = [f"--nnodes={world // local}"] if world > local > 0 else []
    return ["torchrun", *nodes, f"--nproc-per-node={local}"]


def add_options(parser: argparse.ArgumentParser, recipe: Recipe, name: str) -> None:
    """All options but --recipe, with the recipe's defaults. name: of the run's folder."""
    add, margin = parser.add_argument, recipe.default_margins
    add(
        "--data",
        type=path,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="torchvision root that holds, or will hold, the data set (default: data/ beside the "
        "script), or 'synthetic' for the built-in stand-in",
    )
    add(
        "--out",
        type=path,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help=f"folder of the run (default: figures/{name}/ beside the script)",
    )
    for option, low, high, metavar, default, text in (
        ("--epochs", 1, 10_000, "N", recipe.epochs, "length of the training"),
        ("--batch-size", 2, 60_000, "N", recipe.batch_size, "images in a step"),
        ("--seed", 0, 2**20 - 1, "N", 0, "of all random numbers"),
        ("--embedding-size", 2, 4096, "D", recipe.embedding_size, "numbers in an embedding"),
    ):
        add(option, type=number(int, low, high), metavar=metavar, default=default, help=text)
    add("--loss", choices=LOSSES, default="arcface", help="the loss")
    add(
        "--scale",
        type=number(float, 0, 1000),
        metavar="S",
        default=recipe.scale,
        help="s, the radius of the hypersphere",
    )
    add(
        "--margin",
        type=number(float, 0, 4),
        metavar="M",
        default=argparse.SUPPRESS,
        help=f"arcface: m in radians, up to π/2 (default: {margin['arcface']}); cosface: of the "
        f"cosine (default: {margin['cosface']}); sphereface: factor on the angle (default: "
        f"{margin['sphereface']}); it rises over the first steps",
    )
    for option, choices, text in (
        ("--device", ("auto", "cuda", "mps", "cpu"), "where to compute"),
        ("--precision", ("auto", "float32", "bfloat16"), "of the network's arithmetic; auto takes "
         "what is faster on the machine"),
    ):  # fmt: skip
        add(option, choices=choices, default="auto", help=text)
    add(
        "--resume",
        action="store_true",
        help="go on after an interrupted run with the same options",
    )


def resolve_margin(
    parser: argparse.ArgumentParser, options: argparse.Namespace, default: float | None
) -> None:
    """Set the margin to its default unless one was given; refuse a scale or margin out of range."""
    if hasattr(options, "margin") and default is None:
        parser.error(f"argument --margin: {options.loss} has no margin to choose; leave it out")
    options.margin = getattr(options, "margin", default)
    if options.scale == 0:
        parser.error("argument --scale: 0 is not allowed; give a scale above 0, such as 8")
    if options.loss == "arcface" and options.margin > math.pi / 2:
        given = f"argument --margin: {options.margin}"
        parser.error(f"{given} is more than π/2; give radians, such as 0.5")
    if options.loss == "sphereface" and options.margin == 0:
        text = "sphereface multiplies the angle by it; give a number above 0, such as 1.35"
        parser.error(f"argument --margin: {text}")


def path(text: str) -> Path:
    """The argparse type of every option that names a file or folder; ~ is the user's folder.

    Whether the folder can be used is for :func:`experiment.records.check_writable` to say.
    """
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file or folder")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8; rename it") from error
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such user") from error


def number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    """An argparse type: an int or a float, as ``kind`` says, in [low, high]."""
    name = "an integer" if kind is int else "a number"

    def parse_number(text: str) -> float:
        try:
            if low <= (value := kind(text)) <= high:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not {name} from {low:.7g} to {high:.7g}")

    return parse_number


def slug(dataset: str) -> str:
    """A data set's name in those of files: mnist, cifar10."""
    return dataset.lower().replace("-", "")


def run_name(dataset: str, recipe: str) -> str:
    """The name of a run's folder below figures/: mnist, cifar10-best and so on."""
    return slug(dataset) + ("" if recipe == "default" else f"-{recipe}")
