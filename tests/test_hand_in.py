"""The hand-in is complete: what its README tells the reader to do works in it, without git."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pypdf
import pytest

from experiment.errors import Problem
from experiment.records import ROOT
from report import submission
from tests.helpers import needs_git

AUTHOR = submission.Author("mark", "philip", "0123456")
NAMES = ["--last", "mark", "--first", "philip", "--id", "0123456"]
TOP = "mark_philip_0123456_Project1"


# --- what belongs to it ---------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with a few of the project's files, whose git knows no settings of the user."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    root = tmp_path / "around" / "project"
    for name in ("README.md", "report/submission.py", "report/report.pdf", "figures/a.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def git(folder: Path, *arguments: str) -> None:
    """Run git in a folder."""
    subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True)


def problem_of(root: Path) -> str:
    """The error of asking for the project's files: one line."""
    with pytest.raises(Problem) as caught:
        submission.read_files(root, submission.project_files(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@needs_git
def test_a_clone_packs_what_git_tracks_whatever_surrounds_it(project, monkeypatch):
    git(project, "init")
    git(project, "add", "README.md", "report", "figures")
    (project / "untracked.txt").write_text("private")
    git(project.parent, "init")
    (project.parent / "other.txt").write_text("of another repository")
    git(project.parent, "add", "other.txt")
    monkeypatch.setenv("GIT_DIR", str(project.parent / ".git"))  # as in a hook of that one
    packed = {"README.md", "report/submission.py", "figures/a.png"}
    assert submission.project_files(project) == dict.fromkeys(packed)


@needs_git
def test_a_folder_in_another_repository_is_refused_with_its_name(project):
    git(project.parent, "init")
    git(project.parent, "add", ".")
    assert f"around it, {project.parent}, is another one" in problem_of(project)


@needs_git
def test_a_broken_repository_in_another_one_is_refused(project):
    git(project.parent, "init")
    git(project.parent, "add", ".")
    (project / ".git").mkdir()
    assert "git cannot list the files of the project: not a git repo" in problem_of(project)


@needs_git
def test_a_repository_that_does_not_track_the_project_is_refused(project):
    git(project, "init")
    assert "neither a git clone of this project nor an unpacked hand-in" in problem_of(project)


@needs_git
def test_files_that_are_tracked_and_missing_are_named(project):
    git(project, "init")
    git(project, "add", ".")
    (project / "figures/a.png").unlink()
    assert "missing: figures/a.png." in problem_of(project)


@needs_git
def test_the_owner_that_git_doubts_is_named_with_the_remedy(project, monkeypatch):
    git(project, "init")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    problem = problem_of(project)
    assert "dubious ownership" in problem and "git config --global --add safe.dir" in problem


def test_a_clone_without_git_installed_says_so(project, monkeypatch):
    (project / ".git").mkdir()
    monkeypatch.setenv("PATH", str(project))
    assert "git, which lists the files of a clone, cannot be started" in problem_of(project)


def test_without_git_and_manifest_nothing_is_packed(project):
    assert "neither a git clone" in problem_of(project)


def add_manifest(root: Path) -> str:
    """Write the MANIFEST of the folder's files. Returns its text."""
    files = [path for path in root.rglob("*") if path.is_file()]
    contents = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
    text = submission.manifest(contents)
    (root / "MANIFEST").write_text(text, encoding="utf-8")
    return text


def test_a_manifest_says_what_belongs_to_an_unpacked_hand_in(project):
    add_manifest(project)
    (project / "untracked.txt").write_text("private")
    expected = {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("README.md", "report/submission.py", "figures/a.png")
    }
    assert submission.project_files(project) == expected
    (project / "README.md").unlink()
    assert "missing: README.md." in problem_of(project)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: b"\xff\xfe\x00",
        lambda text: "".join(text.splitlines(keepends=True)[:-3]).encode(),
        lambda text: "".join(text.splitlines(keepends=True)[1:]).encode(),
        lambda text: text.replace("figures/a.png", "../../outside.png").encode(),
        lambda text: text.replace("figures/a.png", "/etc/hostname").encode(),
        lambda text: text.replace("report/submission.py", "report/other.py").encode(),
        lambda text: text.replace("  README.md", " README.md").encode(),
    ],
    ids=["empty", "binary", "cut", "headless", "parent", "absolute", "foreign", "shape"],
)
def test_a_damaged_manifest_is_refused(project, damage):
    (project / "MANIFEST").write_bytes(damage(add_manifest(project)))
    assert "MANIFEST is damaged. Unpack the hand-in again." in problem_of(project)


# --- the names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--last", "--first", "--id"])
@pytest.mark.parametrize(
    "value",
    [
        *("", "a/b", "..", "\\", "_", "-a", " a", "a..b", "a\nb", "a\0b", "*a*", "#sys", "a\udcff"),
        *("W" * 41, "ab " * 100, "李明", "กขค", "😀"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(option, value, capsys):
    names = [*NAMES, f"{option}={value}"]
    with pytest.raises(SystemExit) as ended:
        submission.main(["zip", *names])
    assert ended.value.code == 2
    assert re.search(rf"error: {option} (is|has) .*\.\n$", capsys.readouterr().err)


@pytest.mark.parametrize(
    "value", ["O'Brien", "García Márquez", "Nguyễn", "Żółć", "Владимир", "Jean-Luc"]
)
def test_a_name_that_the_font_can_show_is_accepted(value):
    submission.check(submission.Author(value, value, "0123456"), required=True)


def test_three_names_that_do_not_fit_into_the_name_of_a_file_are_refused():
    with pytest.raises(Problem, match="too long for the name of a file"):
        submission.check(submission.Author("Ж" * 40, "Ж" * 40, "Ж" * 40), required=True)


# --- the hand-in itself ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packable() -> None:
    """Skips the test in a mere copy of the files, where nothing says which belong to it."""
    if not any((ROOT / name).exists() for name in (".git", "MANIFEST")):
        pytest.skip("neither a git clone nor an unpacked hand-in")


@pytest.fixture(scope="module")
def unpacked(packable, tmp_path_factory) -> Path:
    """The folder of the project's hand-in, unpacked outside any repository."""
    folder = tmp_path_factory.mktemp("hand-in")
    with zipfile.ZipFile(submission.pack(AUTHOR, folder=folder)) as archive:
        assert archive.testzip() is None
        assert all(name.startswith(f"{TOP}/") for name in archive.namelist())
        archive.extractall(folder)
    return folder / TOP


@pytest.fixture(scope="module")
def start(unpacked, tmp_path_factory):
    """Starts the tests' own Python, or another program, in the hand-in, with git out of sight."""
    programs = tmp_path_factory.mktemp("bin")
    for name in ("sh", "make"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    ours = ("PYTHONPATH", "COV")  # the second: what measures the coverage of other processes
    environment = {key: os.environ[key] for key in os.environ if not key.startswith(ours)}
    environment |= {"PATH": str(programs), "OMP_NUM_THREADS": "1", "TZ": "Pacific/Auckland"}

    def started(*arguments: str, program: str = sys.executable) -> subprocess.Popen:
        command, pipe = [program, *arguments], subprocess.PIPE
        return subprocess.Popen(
            command, cwd=unpacked, env=environment, stdout=pipe, stderr=pipe, text=True
        )

    return started


def ended_well(process: subprocess.Popen) -> str:
    """What the process printed on stderr and stdout, once it has ended with status 0."""
    out, error = process.communicate()
    assert process.returncode == 0, error + out
    return error + out


@pytest.mark.slow
def test_it_holds_every_tracked_file_and_the_report_with_the_name(unpacked):
    packed = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")}
    packed = {name for name in packed if (unpacked / name).is_file()}
    expected = set(submission.project_files(ROOT)) | {"MANIFEST", "report/report.pdf"}
    assert packed == expected
    assert {"Makefile", "requirements.txt", "LICENSE", "figures/mnist/run.json"} <= packed
    lines = (unpacked / "MANIFEST").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(packed)  # each file but itself, and the count
    for line in lines[:-1]:
        known, path = line.split("  ")
        assert hashlib.sha256((unpacked / path).read_bytes()).hexdigest() == known, path
    pdf = pypdf.PdfReader(unpacked / "report/report.pdf")
    assert pdf.metadata.author == "philip mark" and "philip mark" in pdf.pages[0].extract_text()


@pytest.mark.slow
def test_the_report_is_rebuilt_byte_for_byte_and_the_hand_in_packed_again(unpacked, start):
    pdf = unpacked / "report/report.pdf"
    before = pdf.read_bytes()
    pdf.unlink()
    ended_well(start("report/submission.py", "report", *NAMES))
    assert pdf.read_bytes() == before
    (unpacked / "private.txt").write_text("not in the MANIFEST")
    readme = unpacked / "README.md"
    text = readme.read_bytes()
    readme.write_bytes(text + b"changed")
    said = ended_well(start("report/submission.py", "zip", *NAMES))
    readme.write_bytes(text)
    assert "note: packed as they are now, not as MANIFEST has them: README.md\n" in said
    with zipfile.ZipFile(unpacked / f"{TOP}.zip") as again:
        names = {name.removeprefix(f"{TOP}/") for name in again.namelist()}
        assert again.read(f"{TOP}/README.md") == text + b"changed"
    assert names == set(submission.project_files(unpacked)) | {"MANIFEST", "report/report.pdf"}


@pytest.mark.slow
def test_a_record_that_is_not_one_is_an_error_of_one_line(unpacked, start):
    record = unpacked / "figures/mnist/run.json"
    before = record.read_text(encoding="utf-8")
    record.write_text("[]")
    process = start("report/submission.py", "report")
    out, error = process.communicate()
    record.write_text(before, encoding="utf-8")
    assert process.returncode == 1 and not out
    assert error.startswith("error: A record in ") and "figures/mnist" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_it_trains_and_draws(unpacked, start):
    picture = unpacked / "figures/mnist/accuracy.png"
    before = picture.read_bytes()
    picture.unlink()
    script = start("arcface_mnist.py", "--data", "synthetic", "--epochs", "1", "--device", "cpu")
    drawing = start("-m", "experiment.figures", "figures/mnist")
    ended_well(script)
    ended_well(drawing)
    assert picture.read_bytes()[:8] == before[:8] == b"\x89PNG\r\n\x1a\n"
    assert (unpacked / "figures/synthetic-mnist/run.json").exists()
    assert (unpacked / "figures/synthetic-mnist/accuracy.png").exists()


@pytest.mark.slow
def test_its_tests_are_found_and_a_sample_of_those_of_the_loss_pass(start):
    quick = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    collected = ended_well(start(*quick, "--collect-only"))
    assert re.search(r"^\d{3,} tests collected", collected, re.MULTILINE)
    of_loss = re.findall(r"^tests/test_loss.*::.*", collected, re.MULTILINE)
    passed = ended_well(start(*quick, "-m", "not slow", *of_loss[::25]))
    assert re.search(r"\d{2,} passed", passed)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_every_target_of_its_makefile_resolves(unpacked, start):
    makefile = (unpacked / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z0-9]+):", makefile, re.MULTILINE)
    assert {"mnist", "cifar10", "seeds", "check", "test", "report", "submission"} <= set(targets)
    commands = ended_well(start("-n", "-B", *targets, program="make"))
    for script in re.findall(r"\S+\.(?:py|txt)\b", commands):
        assert (unpacked / script).exists(), script
    for module in set(re.findall(r"-m ((?:study|experiment)\.\w+)", commands)):
        assert (unpacked / f"{module.replace('.', '/')}.py").exists(), module


@pytest.mark.slow
def test_it_is_written_whole_or_not_at_all(packable, tmp_path):
    (tmp_path / f"{TOP}.zip").mkdir()  # in the way
    with pytest.raises(Problem, match="could not be written"):
        submission.pack(AUTHOR, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{TOP}.zip"]
