"""Intervals against published values, tables against their records."""

import math

import pytest

from experiment import records
from experiment.errors import Problem
from study import tables

FOLDER = records.ROOT / "figures" / "study"


def run(accuracy, **values):
    """A record of a run, as the tables read it."""
    defaults = {"seed": 0, "split": None, "scale": 8.0, "margin": 0.1, "head_lr": 0.2}
    return defaults | {"test_accuracy": accuracy} | values


def test_the_interval_is_student_s():
    """t(0.975) is 4.303 with 2 degrees of freedom and 2.776 with 4, in any table."""
    assert tables.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5), abs=1e-3)
    values = [1.0, 2.0, 3.0, 4.0, 5.0]  # of variance 2.5
    assert tables.interval(values) == pytest.approx((3.0, 2.776 * 0.5**0.5), abs=1e-3)


def test_a_mean_has_an_interval_unless_it_is_a_single_value():
    assert tables.mean_ci([1.0, 2.0, 3.0], 2) == "2.00 ± 2.48"
    assert tables.mean_ci([1.25], 1) == "1.2" and tables.mean_ci([], 1) == "–"
    assert tables.mean_ci([1.25, -1.0], 1) == "1.2, −1.0"


def test_marks_are_filled_and_missing_ones_are_named(tmp_path):
    path, text = tmp_path / "README.md", "a <!-- x -->old<!-- /x --> b"
    path.write_text(text, encoding="utf-8")
    tables.fill_file(path, {"x": tables.markdown(["p", "q"], [["1", "2"]])})
    filled = "a <!-- x -->\n| p | q |\n| --- | --- |\n| 1 | 2 |\n<!-- /x --> b"
    assert path.read_text(encoding="utf-8") == filled
    with pytest.raises(Problem, match="<!-- y --> and <!-- /y -->"):
        tables.fill_file(path, {"x": "lost", "y": "content"})
    assert path.read_text(encoding="utf-8") == filled


def test_the_study_s_readme_has_the_tables_of_its_records():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    found = tables.study_tables(FOLDER)
    kinds = ("tuning", "losses", "angles")
    assert set(found) == {f"{kind}-{dataset}" for kind in kinds for dataset in ("mnist", "cifar10")}
    for name, content in found.items():
        assert tables.fill(text, name, content) == text
    losses = records.load_lines(FOLDER / "losses-mnist.jsonl")
    arcface = [100 * r["test_accuracy"] for r in losses if r["loss"] == "arcface"]
    row = next(r for r in found["losses-mnist"].splitlines() if r.startswith("| ArcFace |"))
    assert f"| {len(arcface)} | {sum(arcface) / len(arcface):.2f} ± " in row


def test_there_are_no_tables_without_records(tmp_path):
    assert tables.study_tables(tmp_path) == {}


def test_the_tuned_setting_is_bold_once_all_have_been_tried():
    two = [run(0.8), run(0.9, margin=None, head_lr=0.4)]
    shown = tables.tuning_table({"softmax": [run(0.9)], "arcface": two}).splitlines()[2:]
    assert shown[0] == "| softmax | 8 / 0.1 / 0.2: 90.00 |"
    assert shown[1] == "| ArcFace | **8 / – / 0.4: 90.00** | 8 / 0.1 / 0.2: 80.00 |"
    assert "8 / 0.1 / 0.2: collapsed" in tables.tuning_table({"arcface": [run(None)]})


def test_accuracies_and_paired_differences():
    cosface = [run(0.92), run(0.94, seed=1), run(None, seed=2)]
    arcface = [run(0.90), run(0.93, seed=1), run(0.9, seed=2)]
    rows = tables.losses_table({"cosface": cosface, "arcface": arcface}).splitlines()[2:]
    assert rows[0] == "| CosFace | 8 | 0.1 | 0.2 | 2 | 92.00, 94.00 | 2.00, 1.00 |"
    assert rows[1].startswith("| ArcFace | 8 | 0.1 | 0.2 | 3 | 91.00 ± ") and rows[1].endswith(
        "| – |"
    )


def test_angles_stand_beside_the_paper_s():
    angles = dict(zip(tables.ANGLES, range(10, 70, 10), strict=True))
    shown = tables.angles_table({"arcface": [run(0.9, angles=angles)]}).splitlines()
    assert shown[2] == "| ArcFace | 10.0 | 20.0 | 30.0 | 40.0 | 50.0 | 60.0 |"
    assert (
        shown[4]
        == "| *paper, ArcFace* | *14.29* | *71.61* | *38.45* | *65.83* | *28.05* | *66.55* |"
    )


def test_the_interval_of_a_median_of_nine_pairs_is_from_the_second_to_the_eighth():
    """By the binomial distribution: 1 − 2·(1 + 9)/2⁹ = 96.1% for these two, 82.0% for the next."""
    ours, theirs = [k * 10.0 for k in (5, 1, 9, 2, 8, 3, 7, 4, 6)], [10.0] * 9
    assert tables.paired_ratio(ours, theirs) == (5.0, 2.0, 8.0)
    median, low, high = tables.paired_ratio([1.0, 2.0, 3.0], [1.0] * 3)
    assert median == 2 and math.isnan(low) and math.isnan(high)
