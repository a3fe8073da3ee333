"""The study's pictures show what its records say."""

import matplotlib.pyplot as plt
import pytest

from study import figures, tables


@pytest.fixture(autouse=True)
def close_figures():
    """Figures stay open until the test ends."""
    yield
    plt.close("all")


def run(accuracy, seed=0, **values):
    """A record of a run, as the pictures read it."""
    defaults = {"split": None, "scale": 8.0, "margin": 0.1, "head_lr": 0.2, "epochs": 1}
    return defaults | {"test_accuracy": accuracy, "seed": seed} | values


def test_accuracies_and_paired_differences_are_where_the_records_say():
    losses = {"cosface": [run(0.93), run(0.95, 1)], "arcface": [run(0.90), run(0.91, 1)]}
    left, right = figures.draw_accuracy(losses, "MNIST").axes
    means = [container.lines[0].get_xydata()[0].tolist() for container in left.containers]
    assert means == [pytest.approx([94, 0]), pytest.approx([90.5, 1])]
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["CosFace", "ArcFace"]
    (difference,) = right.containers
    assert difference.lines[0].get_xydata()[0].tolist() == pytest.approx([3.5, 0])
    bar = difference.lines[2][0].get_segments()[0][:, 0]
    assert bar == pytest.approx([3.5 - 6.353, 3.5 + 6.353], abs=1e-3)  # 12.706·0.5


def test_angles_stand_beside_the_paper_s_and_the_simplex_limit():
    angles = {key: 10.0 * k for k, key in enumerate(tables.ANGLES)}
    axes = figures.draw_angles({"arcface": [run(0.9, angles=angles)]}, "MNIST").axes[0]
    drawn = [container.lines[0].get_ydata()[0] for container in axes.containers]
    assert drawn == pytest.approx([0, 10, 20, 30, 40, 50])
    levels = {float(line.get_ydata()[0]) for line in axes.lines if len(line.get_ydata()) == 2}
    assert {44.26, 14.29, 65.60, 66.55} <= levels
    assert any(level == pytest.approx(96.379, abs=1e-3) for level in levels)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["ArcFace", "paper, norm. softmax", "paper, ArcFace"]


def test_without_records_nothing_is_drawn(tmp_path):
    (tmp_path / "README.md").write_text("text\n", encoding="utf-8")
    figures.draw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "text\n"
