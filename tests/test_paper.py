"""The paper's pictures: curves against closed forms, angles of the assignment's vectors."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiment import records
from study import paper

STUDY = records.ROOT / "figures" / "study"


@pytest.fixture(autouse=True)
def close_figures():
    """Figures stay open until the test ends."""
    yield
    plt.close("all")


@pytest.mark.parametrize("name", paper.PAPER)
def test_target_logits_are_the_paper_s_formula(name):
    """cos(m1·θ + m2) − m3 (eq. 4), where m1·θ + m2 is at most π."""
    margins = {"m1": 1.0, "m": 0.0, "m3": 0.0} | paper.PAPER[name][0]
    theta = np.linspace(0.01, 2.2, 50)
    inside = margins["m1"] * theta + margins["m"] <= math.pi
    expected = np.cos(margins["m1"] * theta + margins["m"]) - margins["m3"]
    found = paper.target_logit(theta, **margins)
    assert inside.sum() > 40 and found[inside] == pytest.approx(expected[inside], abs=1e-6)


def test_the_curves_of_fig_4b_are_those_of_the_paper():
    axes = paper.fig4b().axes[0]
    curves = {line.get_label(): line for line in axes.lines}
    degrees, logit = curves["ArcFace (1, 0.5, 0)"].get_data()
    assert np.interp(60, degrees, logit) == pytest.approx(math.cos(math.pi / 3 + 0.5), abs=1e-4)
    degrees, logit = curves["CosFace (1, 0, 0.35)"].get_data()
    assert np.interp(60, degrees, logit) == pytest.approx(0.15, abs=1e-4)
    assert len(curves) == 6


def test_only_arcface_s_margin_is_of_constant_width():
    """m = 0.5 is 28.65 degrees, wherever the embedding is."""
    widths = {}
    for axis in paper.fig5().axes:
        own, other = axis.lines[0].get_data()
        widths[axis.get_title()] = (other - own)[own < 60]
    assert widths["ArcFace, m = 0.5"] == pytest.approx(28.648, abs=0.01)
    assert widths["normalised softmax"] == pytest.approx(0, abs=0.05)
    for name in ("SphereFace, m1 = 1.35", "CosFace, m3 = 0.35"):
        assert np.ptp(widths[name]) > 10


def test_a_longer_vector_changes_the_distance_but_not_the_angle():
    left = paper.geometry().axes[0]
    text = " ".join(text.get_text() for text in left.texts)
    between = math.degrees(math.atan2(4, 7) - math.atan2(2, 5))
    assert text.count(f"{between:.2f}°") == 2
    assert f"{math.dist((5, 2), (7, 4)):.2f}" in text
    assert f"{math.dist((5, 2), (10.5, 6)):.2f}" in text


def test_embeddings_in_the_plane_lie_around_their_centre_lines():
    record = records.load_lines(STUDY / "plane-mnist.jsonl")[-1]
    arrays = records.load_arrays(STUDY / f"{record['name']}.npz")
    figure = paper.fig3({"softmax": (record, arrays), "arcface": (record, arrays)})
    axis = figure.axes[1]
    assert len(axis.collections) == len(axis.lines) == 8
    points = sum(len(cloud.get_offsets()) for cloud in axis.collections)
    assert points == len(arrays["labels"])
    for cloud, line in zip(axis.collections, axis.lines, strict=True):
        end, middle = line.get_xydata()[1], cloud.get_offsets().data.mean(axis=0)
        cosine = end @ middle / np.linalg.norm(end) / np.linalg.norm(middle)
        assert cosine > 0.99
    assert f"{record['test_accuracy']:.1%} right" in axis.get_title()


def test_fig_4a_has_a_density_for_each_time():
    folder = records.ROOT / "figures" / "mnist"
    record, arrays = (
        records.load_json(folder / "run.json"),
        records.load_arrays(folder / "arrays.npz"),
    )
    axis = paper.fig4a(record, arrays).axes[0]
    for line, theta in zip(axis.lines, arrays["snapshots"].astype(float), strict=True):
        degrees, density = line.get_data()
        assert 2 * density.sum() == pytest.approx(1)
        assert (degrees * density).sum() * 2 == pytest.approx(theta[:, 0].mean(), abs=0.2)
        assert f"{theta[:, 0].mean():.0f}°" in line.get_label()


def test_what_needs_no_records_is_drawn_without_any(tmp_path):
    paper.draw(tmp_path)
    drawn = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert drawn == ["fig4b-logits.png", "fig5-margins.png", "geometry.png"]
