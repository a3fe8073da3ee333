"""The report's numbers are the records', its listings the code's, and its bytes always the same."""

import ast
import datetime
import importlib.util
import inspect
import io
import json
import re

import pypdf
import pytest

import arcface_mnist
from experiment import records
from experiment.errors import Problem
from experiment.records import ROOT
from report import claims, contents, submission

AUTHOR = submission.Author("O'Brien", "Anna_Maria_B--C", "0123456")  # markup, were it not inert
SOURCE = (ROOT / "report/report.typ").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pdf() -> bytes:
    """A report that is built anew."""
    return submission.compile_report(AUTHOR)


@pytest.fixture(scope="module")
def reader(pdf) -> pypdf.PdfReader:
    return pypdf.PdfReader(io.BytesIO(pdf))


@pytest.fixture(scope="module")
def lines(reader) -> list[str]:
    """The lines of its text, without spaces, which the PDF does not hold as they were."""
    text = "\n".join(page.extract_text() for page in reader.pages)
    return ["".join(line.split()) for line in text.splitlines()]


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_the_headline_accuracies_are_those_of_the_records(lines, dataset):
    text = "".join(lines)
    run = json.loads((ROOT / f"figures/{dataset}/run.json").read_text())
    seeds = json.loads((ROOT / f"figures/{dataset}/seeds.json").read_text())
    mean = sum(100 * record["test_accuracy"] for record in seeds) / len(seeds)
    assert f"{100 * run['test_accuracy']:.2f}%" in text and f"{mean:.2f}±" in text


def test_the_names_are_printed_as_they_were_given(reader, lines):
    assert reader.metadata.author == "Anna_Maria_B--C O'Brien"
    assert any("Anna_Maria_B--CO'Brien·studentID0123456" in line for line in lines)


def test_it_has_a_sensible_length_and_nothing_is_left_open(reader):
    assert 12 <= len(reader.pages) <= 15
    for page in reader.pages:
        assert not re.search(r"First Last|TODO|\?\?|\bnan\b", page.extract_text())


def test_without_a_name_a_placeholder_stands_on_the_title_page():
    text = pypdf.PdfReader(io.BytesIO(submission.compile_report(submission.Author()))).pages[0]
    assert "First Last · student ID 0000000" in " ".join(text.extract_text().split())


def test_its_date_is_the_line_in_report_typ_or_the_one_given(pdf, reader, lines):
    written = re.search(r'default: "(\d{4})-(\d\d)-(\d\d)"', SOURCE).groups()
    assert any("-".join(written) in line for line in lines)
    for key in ("/CreationDate", "/ModDate"):
        assert reader.metadata[key] == f"D:{''.join(written)}000000Z"
    given = submission.compile_report(AUTHOR, datetime.date(2031, 2, 3))
    other = pypdf.PdfReader(io.BytesIO(given))
    assert "2031-02-03" in other.pages[0].extract_text()
    assert other.metadata["/CreationDate"] == other.metadata["/ModDate"] == "D:20310203000000Z"
    assert b"<xmp:CreateDate>2031-02-03T00:00:00Z" in given


def test_built_twice_it_is_the_same_byte_for_byte(pdf):
    assert submission.compile_report(AUTHOR) == pdf


def test_its_listings_stand_in_it_line_by_line_and_none_is_wrapped(lines):
    shown = re.findall(r'#listing\("(.+)", "(.+)"\)', SOURCE)
    assert ("arcface_mnist.py", "train") in shown
    for file, name in shown:
        for line in contents.listings()[file][name].splitlines():
            assert not line.strip() or "".join(line.split()) in lines, line


def test_a_listing_is_the_whole_function_without_its_docstring():
    tree = ast.parse(inspect.getsource(arcface_mnist.train))
    assert ast.get_docstring(tree.body[0]) is not None
    del tree.body[0].body[0]
    assert ast.unparse(ast.parse(contents.listings()["arcface_mnist.py"]["train"])) == (
        ast.unparse(tree)
    )
    method = contents.listings()["arcface_mnist.py"]["Network.forward"]
    assert method.startswith("def forward(") and ast.parse(method)


def test_the_files_and_commands_that_it_names_exist():
    for module in re.findall(r"python -m ([\w.]+)", SOURCE):
        assert importlib.util.find_spec(module), module
    for path in re.findall(r"`(?:python )?((?:[\w-]+/)*[\w-]+(?:/|\.py|\.typ))", SOURCE):
        assert (ROOT / path).exists() or (ROOT / "report" / path).exists(), path


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (b'\n#image("/figures/missing.png")', "file not found"),
        (b"#unknown", "unknown variable"),
        (ROOT / "report/missing.typ", "No such file"),
    ],
)
def test_a_report_that_cannot_be_compiled_is_a_problem_of_one_line(source, cause):
    with pytest.raises(Problem, match=cause) as caught:
        submission.compile_report(AUTHOR, source=source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("date", ["2026-13-01", "20261201", "tomorrow", "", "2026-W49-2"])
def test_a_date_that_is_none_is_refused(date, capsys):
    with pytest.raises(SystemExit) as ended:
        submission.main(["report", f"--date={date}"])
    assert ended.value.code == 2
    assert "is not a date such as 2026-12-01\n" in capsys.readouterr().err


def test_a_table_in_markdown_becomes_its_cells():
    table = "| a | **b** |\n| --- | --- |\n| 1 ± 2 | *x* |"
    assert contents.rows(table) == [["a", "b"], ["1 ± 2", "x"]]


# --- claims ---------------------------------------------------------------------------------------


def test_every_claim_of_the_report_holds_and_is_used():
    """Also that each is about something: with other records some of them are false."""
    found = claims.all_claims()
    assert len(found) > 20 and all(found.values())
    claims.check((records.ROOT / "report/report.typ").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"one": True, "two": False}, "'two' is refuted by the records"),
        ({"one": True}, "'two' is not known"),
        ({"one": True, "two": True, "three": True}, "'three' is used by no sentence"),
    ],
)
def test_a_report_with_a_wrong_claim_is_not_built(known, message, monkeypatch):
    monkeypatch.setattr(claims, "all_claims", lambda: known)
    with pytest.raises(Problem, match=message):
        claims.check('#claim("one")[It is so.] And #claim("two")[that too.]')


def test_a_damaged_picture_is_named(tmp_path, monkeypatch):
    whole = (ROOT / "figures/mnist/loss.png").read_bytes()
    (tmp_path / "figures").symlink_to(ROOT / "figures")
    monkeypatch.setattr(submission, "ROOT", tmp_path)
    submission.check_pictures()
    (tmp_path / "figures").unlink()
    for name in re.findall(r'"([\w/-]+\.png)"', SOURCE):
        (tmp_path / "figures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "figures" / name).write_bytes(whole[:-2000] if "sphere" in name else whole)
    with pytest.raises(Problem, match=r"sphere.png is damaged"):
        submission.check_pictures()


def test_claims_follow_the_records(tmp_path, monkeypatch):
    """With CosFace's angles in the place of ArcFace's nothing turns away, and the claims say so."""
    folder = records.ROOT / "figures/study"
    runs = records.load_lines(folder / "collapse-cifar10.jsonl")
    calm = next(run["mean_theta"] for run in runs if run["loss"] == "cosface")
    for run in runs:
        records.append_line(tmp_path / "collapse-cifar10.jsonl", run | {"mean_theta": calm})
    monkeypatch.setattr(claims, "STUDY", tmp_path)
    found = claims.claims_on_collapse()
    assert not found["ten of ten turn away, none of ten where the margin rises"]
    assert not found["neither a lower nor a higher learning rate of the head prevents it"]
    assert found["with the rise m = 0.5 does not turn away"]


def test_a_loss_that_is_ahead_on_cifar10_is_not_equal(tmp_path, monkeypatch):
    """With two points more for each run of normalised softmax with its best setting."""
    monkeypatch.setattr(claims, "STUDY", tmp_path)
    for part in ("best", "margin", "corruption", "margin-tuning"):
        for run in records.load_lines(ROOT / f"figures/study/{part}-cifar10.jsonl"):
            more = 0.02 * (run["loss"] == "norm-softmax" and part == "best")
            accuracy = {key: run[key] + more for key in ("accuracy", "accuracy_tta") if key in run}
            records.append_line(tmp_path / f"{part}-cifar10.jsonl", run | accuracy)
    found = claims.claims_on_best_of_objects()
    names = [
        "CIFAR-10 at its best: no two losses can be told apart, plain or with TTA",
        "CIFAR-10 at its best: differences of more than half a point are excluded",
    ]
    assert [claim for claim, holds in found.items() if not holds] == names


def test_nothing_is_claimed_of_losses_without_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "STUDY", tmp_path)
    found = claims.claims_on_best()
    assert len(found) > 5 and not any(found.values())
    assert not claims.cannot_be_told([]) and not claims.cannot_be_told([0.1, -0.1])
    assert claims.cannot_be_told([0.1, -0.1, 0.05]) and not claims.cannot_be_told([1, 1.1, 1])
