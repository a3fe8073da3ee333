"""experiment/cli.py: what the options mean when they are good. test_bad_input.py has the others."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from experiment import cli
from experiment.recipe import Recipe

NAMES = {
    *("data", "out", "epochs", "batch_size", "seed", "loss", "scale", "margin", "embedding_size"),
    *("device", "precision", "recipe", "resume"),
}


def parse(script, *argv):
    return cli.parse(script.RECIPES, script.__doc__, list(argv))


@pytest.mark.parametrize("name", ["default", "best"])
def test_the_recipe_gives_the_defaults_of_all_options(script, name):
    options, recipe = parse(script, "--recipe", name), script.RECIPES[name]
    for key in ("epochs", "batch_size", "embedding_size", "scale"):
        assert getattr(options, key) == getattr(recipe, key)
    assert (options.seed, options.loss, options.resume) == (0, "arcface", False)
    assert options.data is None and options.out is None
    assert options.device == options.precision == "auto"
    assert vars(options).keys() == {*NAMES, "command"}


def test_a_given_option_comes_before_the_recipe_s(script):
    options = parse(script, "--recipe=best", "--epochs", "3", "--batch-size=50", "--scale", "16")
    assert (options.recipe, options.epochs, options.batch_size) == ("best", 3, 50)
    assert options.scale == 16.0
    options = parse(script, "--data", "synthetic", "--out", "here", "--embedding-size", "8")
    assert (options.data, options.out, options.embedding_size) == (
        Path("synthetic"),
        Path("here"),
        8,
    )


@pytest.mark.parametrize(
    ("arguments", "margin"),
    [
        ([], 0.1),
        (["--loss", "cosface"], 0.1),
        (["--loss", "sphereface"], 1.1),
        (["--loss", "softmax"], None),
        (["--loss", "norm-softmax"], None),
        (["--loss", "cm1"], None),
        (["--margin", "0.5"], 0.5),
        (["--margin", "0"], 0.0),
        (["--loss", "sphereface", "--margin", "4"], 4.0),
    ],
)
def test_the_margin_s_default_is_that_of_the_loss(script, arguments, margin):
    assert parse(script, *arguments).margin == margin


def test_the_command_repeats_the_run_from_its_beginning(script):
    words = ["--out", "a folder", "--epochs", "3"]
    command = shlex.split(parse(script, *words, "--resume").command)
    assert command == ["python", Path(script.__file__).name, *words]


def test_without_a_list_the_options_come_from_the_command_line(script, monkeypatch):
    monkeypatch.setattr("sys.argv", ["script", "--seed", "7"])
    assert cli.parse(script.RECIPES, script.__doc__, None).seed == 7


def test_help_names_every_option_with_its_default(script, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(script, "--help")
    assert ended.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert script.__doc__.splitlines()[0] in printed
    entries = re.split(r" (?=--[a-z])", printed.split("options:")[1])
    documented = {entry.split()[0] for entry in entries if "(default: " in entry}
    assert documented >= {"--" + name.replace("_", "-") for name in NAMES}
    assert "radians" in printed and f"(default: {script.DEFAULT.epochs})" in printed


def test_everything_in_a_recipe_is_an_option_or_in_the_record(script):
    """What no option changes must stand in the record; the data set and margins do on their own."""
    options = vars(parse(script)).keys()
    names = {field.name for field in fields(Recipe)} - options - {"dataset", "default_margins"}
    assert script.DEFAULT.hyperparameters.keys() == names
    assert script.DEFAULT.hyperparameters["muon"] == script.DEFAULT.muon


def test_run_names():
    names = [cli.run_name(*pair) for pair in (("MNIST", "default"), ("CIFAR-10", "best"))]
    assert names == ["mnist", "cifar10-best"]
