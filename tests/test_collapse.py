"""study/collapse.py: which trainings it makes, and the picture of their angles."""

import matplotlib.pyplot as plt
import pytest

from experiment import records
from study import collapse


def test_with_and_without_the_rise_differ_in_nothing_else():
    """Over the same ten seeds; and every training has a name of its own."""
    tasks = collapse.tasks()
    assert len({task.name for task in tasks}) == len(tasks)
    pairs = tasks[:20]
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert (one.margin_warm_up, other.margin_warm_up) == (0.0, 0.6)
        assert collapse.replace(one, margin_warm_up=0.6) == other
    assert [task.seed for task in pairs[::2]] == list(range(10))


def test_the_warm_up_is_that_of_the_longer_trainings():
    """72 steps, a tenth of twelve epochs of 30,000 images."""
    recipe = collapse.RECIPE
    steps = 30_000 // recipe.batch_size
    assert recipe.warm_up * recipe.epochs * steps == pytest.approx(72)
    assert 0.1 * 12 * steps == pytest.approx(72)


def test_every_training_is_on_record_and_no_other():
    runs = records.load_lines(records.ROOT / "figures/study/collapse-cifar10.jsonl")
    assert sorted(run["name"] for run in runs) == sorted(task.name for task in collapse.tasks())


def test_the_picture_has_a_line_for_each_seed(tmp_path):
    runs = [
        {"loss": loss, "margin": 0.3, "head_lr": rate, "margin_warm_up": rise, "mean_theta": theta}
        for loss, rate, rise, theta in (
            ("arcface", 0.25, 0.0, [90.0, 150.0]),
            ("arcface", 0.25, 0.6, [90.0, 20.0]),
            ("arcface", 0.25, 0.6, [89.0, 21.0]),
            ("cosface", 0.25, 0.0, [88.0, 30.0]),  # a control, which is not drawn
            ("arcface", 1.0, 0.0, [88.0, 30.0]),
        )
    ]
    for run in runs:
        records.append_line(tmp_path / "collapse-cifar10.jsonl", run)
    axes = collapse.draw(tmp_path).axes[0]
    drawn = [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 2]
    assert [theta for theta in drawn if theta[0] > 1 and theta[0] != theta[1]] == [
        [90.0, 150.0],
        [90.0, 20.0],
        [89.0, 21.0],
    ]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["whole m (1 seeds)", "rising m (2 seeds)"]
    plt.close("all")


def test_the_picture_is_drawn_from_the_records_alone(tmp_path):
    path = tmp_path / "figures/study/collapse-cifar10.jsonl"
    run = {"loss": "arcface", "margin": 0.3, "head_lr": 0.25, "margin_warm_up": 0.6}
    records.append_line(path, run | {"mean_theta": [80.0, 30.0]})
    assert collapse.main(["--figures-only"], tmp_path) == 0
    assert path.with_name("collapse.png").stat().st_size > 10_000
    assert collapse.main(["--figures-only"], tmp_path / "elsewhere") == 1
