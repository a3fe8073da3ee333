"""The samples of the README and of a docstring run as written, and what the README names exists."""

import inspect
import re
import textwrap
from pathlib import Path

import pytest
from PIL import Image

import arcface_cifar10
from experiment import run, synthetic
from experiment.records import ROOT
from tests.helpers import tiny

README = (ROOT / "README.md").read_text(encoding="utf-8")
SAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LAYOUT = README.split("## Layout\n\n```\n")[1].split("```")[0]


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_samples_of_the_loss_run(sample, capsys):
    names: dict = {}
    exec(sample, names)
    assert names["prediction"].shape == (8,) and names["loss"].item() > 0
    assert 60 < float(re.findall(r"[\d.]+", capsys.readouterr().out)[0]) < 120


def test_the_sample_of_load_model_prints_the_name_of_a_class(tmp_path, small, monkeypatch, capsys):
    """It gets a picture with a fourth channel, and a model of the stand-in."""
    monkeypatch.setitem(arcface_cifar10.RECIPES, "default", tiny(arcface_cifar10, views=[]))
    arguments = ["--data", "synthetic", "--epochs", "1", "--batch-size", "60"]
    out = tmp_path / "figures" / "cifar10"
    assert arcface_cifar10.main([*arguments, "--device", "cpu", "--out", str(out)]) == 0
    Image.new("RGBA", (32, 32), (200, 30, 30, 128)).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    text = inspect.getdoc(run.load_model).split("::\n\n")[1].split("Args:")[0]
    exec(textwrap.dedent(text), {})
    assert capsys.readouterr().out.strip() in synthetic.SHAPES


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    inside = [link for link in links if not link.startswith("http")]
    assert len(inside) > 10 and all((ROOT / link).exists() for link in inside)


def test_every_guarantee_names_tests_that_exist():
    guarantees = README.split("## Guarantees")[1].split("Not promised")[0]
    named = re.findall(r"`(test_\w+\.py)`", guarantees)
    assert len(named) > 10 and all((ROOT / "tests" / name).exists() for name in named)


def test_the_layout_is_that_of_the_project():
    folder = Path()
    named = set()
    for line in LAYOUT.splitlines():
        words = line.split()
        if line.startswith("  "):
            files = re.findall(r"\b\w+\.(?:py|typ|pdf)\b", line)
            named |= {folder / name for name in files}
        else:
            folder = Path(words[0]) if words[0].endswith("/") else Path()
            if folder == Path():
                named.add(Path(words[0]))
    packages = ("experiment", "study")
    here = {path.relative_to(ROOT) for name in packages for path in (ROOT / name).glob("*.py")}
    here |= {path.relative_to(ROOT) for path in ROOT.glob("*.py")}
    assert {path for path in here if path.name != "__init__.py"} == named
