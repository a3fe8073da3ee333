"""Intervals against published values, tables against their records."""

import math

import pytest

from experiment.errors import Problem
from study import tables


def run(accuracy, **values):
    """A record of a run, as the tables read it."""
    found = {"seed": 0, "test_accuracy": accuracy, "accuracy": accuracy, "accuracy_tta": None}
    return found | values


def test_the_interval_is_student_s():
    """t(0.975) is 4.303 with 2 degrees of freedom and 2.776 with 4, in any table."""
    assert tables.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5), abs=1e-3)
    values = [1.0, 2.0, 3.0, 4.0, 5.0]  # of variance 2.5
    assert tables.interval(values) == pytest.approx((3.0, 2.776 * 0.5**0.5), abs=1e-3)


def test_a_mean_has_an_interval_unless_it_is_a_single_value():
    assert tables.mean_ci([1.0, 2.0, 3.0], 2) == "2.00 ± 2.48"
    assert tables.mean_ci([1.25], 1) == "1.2" and tables.mean_ci([], 1) == "–"
    assert tables.mean_ci([1.25, -1.0], 1) == "1.2, −1.0"
    assert tables.mean_ci([-0.04, -0.04], 1) == "0.0, 0.0"
    assert tables.mean_ci([-0.04, -0.04, -0.04], 1) == "0.0 ± 0.0"


def test_marks_are_filled_and_missing_ones_are_named(tmp_path):
    path, text = tmp_path / "README.md", "a <!-- x -->old<!-- /x --> b"
    path.write_text(text, encoding="utf-8")
    tables.fill_file(path, {"x": tables.markdown(["p", "q"], [["1", "2"]])})
    filled = "a <!-- x -->\n| p | q |\n| --- | --- |\n| 1 | 2 |\n<!-- /x --> b"
    assert path.read_text(encoding="utf-8") == filled
    with pytest.raises(Problem, match="<!-- y --> and <!-- /y -->"):
        tables.fill_file(path, {"x": "lost", "y": "content"})
    assert path.read_text(encoding="utf-8") == filled
    path.write_text(f"{text}, filled between <!-- x --> and its end", encoding="utf-8")
    with pytest.raises(Problem, match="<!-- x --> and <!-- /x --> must be there, once and in"):
        tables.fill_file(path, {"x": "content"})
    path.write_text("a <!-- /x --> b <!-- x --> c", encoding="utf-8")
    with pytest.raises(Problem, match="in this order"):
        tables.fill_file(path, {"x": "content"})
    path.write_bytes(b"caf\xe9 <!-- x --><!-- /x -->")
    with pytest.raises(Problem, match=r"README.md is damaged"):
        tables.fill_file(path, {"x": "content"})


def test_accuracies_and_paired_differences():
    cosface = [run(0.92), run(0.94, seed=1), run(None, seed=2)]
    arcface = [run(0.90), run(0.93, seed=1), run(0.9, seed=2)]
    made = {"CosFace": cosface, "ArcFace": arcface}
    cells = tables.accuracy_cells(made, "CosFace")
    assert cells == ["2", "92.00, 94.00", "2.00, 1.00", "–", "–"]
    of_itself = tables.accuracy_cells(made, "ArcFace")
    assert of_itself[1].startswith("91.00 ± ") and of_itself[2:] == ["–", "–", "–"]
    with_tta = {name: [run(0.9, accuracy_tta=0.95)] for name in made}
    with_tta["CosFace"][0]["accuracy_tta"] = 0.96
    cells = tables.accuracy_cells(with_tta, "CosFace")
    assert cells == ["1", "90.00", "0.00", "96.00", "1.00"]


def test_angles_stand_beside_the_paper_s():
    angles = dict(zip(tables.ANGLES, range(10, 70, 10), strict=True))
    shown = tables.angles_table({"ArcFace": [run(0.9, angles=angles)]}).splitlines()
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
