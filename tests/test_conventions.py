"""Rules of the project that no linter checks: short functions, docstrings, and who imports whom."""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from experiment.records import ROOT

FOLDERS = ("experiment", "study", "report", "tests")
SCRIPTS = {"arcface_mnist", "arcface_cifar10"}
FILES = sorted([*ROOT.glob("*.py"), *(f for name in FOLDERS for f in (ROOT / name).glob("*.py"))])
CODE = [path for path in FILES if path.parent.name != "tests"]


def name(path: Path) -> str:
    """A file's path below the project's folder: the name of its test."""
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def definitions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """All functions and classes of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node


def imports(nodes: Iterable[ast.AST]) -> set[str]:
    """The modules that statements import; ``from a import b`` counts as a and as a.b."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages(path: Path) -> set[str]:
    """The first parts of the names of all modules that a file imports, anywhere in it."""
    return {module.split(".")[0] for module in imports(ast.walk(parse(path)))}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_functions_have_at_most_sixty_lines(path):
    for node in definitions(parse(path)):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_each_file_says_in_its_first_line_what_it_is_for(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith('"""') and len(first.split()) > 3


@pytest.mark.parametrize("path", CODE, ids=name)
def test_public_functions_and_classes_have_a_docstring(path):
    """And methods of public classes, but those that override one of torch's."""
    tree = parse(path)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for scope in (tree, *(node for node in classes if not node.name.startswith("_"))):
        for node in scope.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                overriding = scope is not tree and node.name in (
                    "forward",
                    "backward",
                    "extra_repr",
                )
                private = node.name.startswith("_")
                assert private or overriding or ast.get_docstring(node), node.name


def test_the_loss_needs_torch_alone():
    assert packages(ROOT / "arcface_loss.py") <= {"torch", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", sorted((ROOT / "experiment").glob("*.py")), ids=name)
def test_what_one_run_needs_imports_neither_the_scripts_nor_the_study(path):
    assert not packages(path) & {*SCRIPTS, "study", "report", "tests"}


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_scripts_do_not_import_the_study_or_each_other(script):
    assert not packages(ROOT / f"{script}.py") & {*SCRIPTS - {script}, "study", "report", "tests"}


@pytest.mark.parametrize(("script", "lines"), [("arcface_mnist", 150), ("arcface_cifar10", 200)])
def test_a_script_is_short_and_shows_the_head_and_the_loop(script, lines):
    text = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    assert text.count("\n") <= lines
    for shown in ("ArcMarginProduct(", "class Network(", "torch.optim.", ".backward()"):
        assert shown in text


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/figures.py")), ids=name)
def test_pictures_are_drawn_from_records_without_the_training_code(path):
    """Nor do the modules that they import at their top, directly or through others."""
    left, seen = [path], set()
    while left:
        for module in imports(parse(left.pop()).body) - seen:
            seen.add(module)
            file = ROOT / (module.replace(".", "/") + ".py")
            if file.exists():
                left.append(file)
    assert not seen & {"experiment.training", "experiment.run", *SCRIPTS}
