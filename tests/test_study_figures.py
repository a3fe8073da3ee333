"""The study's pictures show what its records say."""

import shutil

import matplotlib.pyplot as plt
import pytest

from experiment import records
from study import best, collapse, corruption, figures, grid, paper, seen, sphere, tables, unseen


@pytest.fixture(autouse=True)
def close_figures():
    """Figures stay open until the test ends."""
    yield
    plt.close("all")


def run(accuracy, seed=0, **values):
    """A record of a run, as the pictures read it."""
    found = {"accuracy": accuracy, "test_accuracy": accuracy, "seed": seed}
    return found | {"loss": "arcface"} | values


def test_accuracies_and_paired_differences_are_where_the_records_say():
    made = {"CosFace": [run(0.93), run(0.95, 1)], "ArcFace": [run(0.90), run(0.91, 1)]}
    figure = figures.draw_accuracy(made, "MNIST")
    assert figure.get_suptitle() == "MNIST (2 seeds each; bars: 95% intervals)"
    left, right = figure.axes
    means = [container.lines[0].get_xydata()[0].tolist() for container in left.containers]
    assert means == [pytest.approx([94, 0]), pytest.approx([90.5, 1])]
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["CosFace", "ArcFace"]
    (difference,) = right.containers
    assert difference.lines[0].get_xydata()[0].tolist() == pytest.approx([3.5, 0])
    bar = difference.lines[2][0].get_segments()[0][:, 0]
    assert bar == pytest.approx([3.5 - 6.353, 3.5 + 6.353], abs=1e-3)  # 12.706·0.5


def test_angles_stand_beside_the_paper_s_and_the_simplex_limit():
    angles = {key: 10.0 * k for k, key in enumerate(tables.ANGLES)}
    runs = {name: [run(0.9, angles=angles)] for name in ("ArcFace", "with s = 64", "s = 4")}
    axes = figures.draw_angles(runs, "MNIST").axes[0]
    drawn = [container.lines[0].get_ydata()[0] for container in axes.containers]
    assert drawn == pytest.approx([angle for angle in range(0, 60, 10) for _ in runs])
    filled = [container.lines[0].get_markerfacecolor() for container in axes.containers]
    assert filled == ["#0072B2", "white", "white"] * 6
    levels = {float(line.get_ydata()[0]) for line in axes.lines if len(line.get_ydata()) == 2}
    assert {44.26, 14.29, 65.60, 66.55} <= levels
    assert any(level == pytest.approx(96.379, abs=1e-3) for level in levels)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [*runs, "paper, norm. softmax", "paper, ArcFace"]
    arcface, hollow, other, *_ = axes.get_legend().get_lines()
    assert (arcface.get_markerfacecolor(), hollow.get_markerfacecolor()) == ("#0072B2", "white")
    assert hollow.get_marker() != other.get_marker()
    assert hollow.get_markersize() > 4  # else its edge fills it


@pytest.mark.slow
def test_all_pictures_are_drawn_from_the_records(tmp_path):
    for name in ("mnist/seeds.json", "cifar10/seeds.json"):
        (tmp_path / "figures" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(records.ROOT / "figures" / name, tmp_path / "figures" / name)
    study = records.ROOT / "figures" / "study"
    ignored = shutil.ignore_patterns("*.png")
    shutil.copytree(study, tmp_path / "figures" / "study", ignore=ignored)
    for part in (best, collapse, corruption, grid, paper, seen, sphere, unseen):
        assert part.main(["--figures-only"], tmp_path) == 0
    for folder in ("study", "paper"):
        drawn, kept = (
            {path.name for path in (root / "figures" / folder).glob("*.png")}
            for root in (tmp_path, records.ROOT)
        )
        assert drawn == kept
    text = (tmp_path / "figures/study/README.md").read_text(encoding="utf-8")
    assert text == (study / "README.md").read_text(encoding="utf-8")


PARTS = (best, collapse, corruption, grid, seen, sphere, unseen)


@pytest.mark.parametrize("content", ["", "{}\n", "null\n", '{"loss": "arcface", "seed": 0}\n'])
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_records_that_hold_something_else_are_one_line(part, content, tmp_path, capsys):
    folder = tmp_path / "figures" / "study"
    folder.mkdir(parents=True)
    for path in (records.ROOT / "figures" / "study").glob("*.jsonl"):
        (folder / path.name).write_text(content)
    status, line = part.main(["--figures-only"], tmp_path), capsys.readouterr().err
    if status == 0:  # nothing to draw yet
        assert not line and not content and not list(folder.glob("*.png"))
    else:
        assert status == 1 and line.startswith("error: ") and line.count("\n") == 1
