"""experiment/figures.py: pictures of one run, from a record and arrays that no training made."""

import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from experiment import figures, records
from experiment.errors import Problem

PICTURES = ["accuracy", "loss", "angles", "embedding", "centres", "confusion", "mistakes"]
CLASSES = ["cat", "dog", "frog", "ship"]


def make_record(**changes) -> dict:
    """The part of a run's record that pictures are drawn from."""
    history = [
        {
            "epoch": epoch,
            "train_loss": 2 / epoch,
            "train_accuracy": 1 - 0.3 / epoch,
            "test_loss": 3 / epoch,
            "test_accuracy": 1 - 0.6 / epoch,
        }
        for epoch in range(1, 7)
    ]
    record = {
        "dataset": "CIFAR-10",
        "loss": "arcface",
        "margin": 0.1,
        "epochs": 6,
        "history": history,
        "test_accuracy": history[-1]["test_accuracy"],
        "hyperparameters": {"hardest": 0.5, "full_epochs": [2, 2]},
    }
    return record | changes


def make_arrays() -> dict[str, np.ndarray]:
    """Two hundred test images of four classes, one in ten of them mistaken for the next class."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    predicted = np.where(np.arange(200) % 10 == 0, (labels + 1) % 4, labels)
    centres = np.eye(4) - 0.25
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    near, far = rng.uniform(10, 40, size=200), rng.uniform(50, 90, size=200)
    mistakes = np.flatnonzero(predicted != labels)[:18]
    return {
        "snapshots": rng.uniform(10, 100, size=(3, 50, 2)).astype(np.float16),
        "theta_own": np.where(predicted == labels, near, far).astype(np.float16),
        "theta_other": np.where(predicted == labels, far, near).astype(np.float16),
        "labels": labels.astype(np.uint8),
        "predicted": predicted.astype(np.uint8),
        "centres": centres,
        "mistakes": rng.integers(256, size=(len(mistakes), 32, 32, 3), dtype=np.uint8),
        "mistakes_at": mistakes,
        "mistakes_theta": rng.uniform(10, 100, size=(len(mistakes), 4)).astype(np.float16),
        "classes": np.array(CLASSES),
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with a record, its arrays and their pictures."""
    folder = tmp_path_factory.mktemp("run")
    records.save_json(folder / "run.json", make_record())
    records.save_arrays(folder / "arrays.npz", **make_arrays())
    figures.draw_run(folder)
    return folder


@pytest.fixture
def draw():
    """Draws one picture and closes it at the end of the test."""
    yield lambda name, **changes: getattr(figures, name)(make_record(**changes), make_arrays())
    plt.close("all")


def texts(figure) -> str:
    """All words and numbers of a figure."""
    figure.canvas.draw()
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return "\n".join(artist.get_text() for artist in found)


def test_every_picture_is_drawn_with_something_in_it(drawn):
    assert {path.stem for path in drawn.glob("*.png")} == set(PICTURES)
    for name in PICTURES:
        with Image.open(drawn / f"{name}.png") as picture:
            assert picture.format == "PNG" and picture.width >= 900
            ink = np.asarray(picture.convert("L")) < 200
            assert 0.005 < ink.mean() < 0.8
    assert not plt.get_fignums()  # closed


def test_drawing_again_gives_the_same_pictures(drawn, tmp_path):
    for name in ("run.json", "arrays.npz"):
        shutil.copy(drawn / name, tmp_path)
    figures.draw_run(tmp_path)
    for name in PICTURES:
        one, two = (folder / f"{name}.png" for folder in (drawn, tmp_path))
        assert one.read_bytes() == two.read_bytes()


def test_a_picture_of_the_stand_in_says_so(monkeypatch, tmp_path):
    titles = []
    monkeypatch.setattr(figures, "save", lambda figure, path: titles.append(texts(figure)))
    records.save_json(tmp_path / "run.json", make_record(dataset="synthetic"))
    records.save_arrays(tmp_path / "arrays.npz", **make_arrays())
    figures.draw_run(tmp_path)
    plt.close("all")
    assert len(titles) == 7
    for title in titles:
        assert "SYNTHETIC" in title and "CIFAR-10" not in title


@pytest.mark.parametrize(("name", "unit"), [("accuracy", 100), ("loss", 1)])
def test_curves_hold_the_history(draw, name, unit):
    axes = draw(name).axes[0]
    curves = {line.get_label(): line.get_xydata() for line in axes.lines}
    history = make_record()["history"]
    for label, key in (("training", f"train_{name}"), ("test", f"test_{name}")):
        (curve,) = (xy for text, xy in curves.items() if text.startswith(label))
        assert curve[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
        assert curve[:, 1] == pytest.approx([unit * entry[key] for entry in history])
    assert any("(3–4: hardest 50%)" in label for label in curves)
    assert axes.get_xlabel() == "epoch" and axes.get_ylabel() in ("accuracy in %", "loss (nats)")


def test_without_hard_images_no_picture_speaks_of_them(draw):
    for hyperparameters in (
        {"hardest": 1.0, "full_epochs": [2, 2]},
        {"hardest": 0.5, "full_epochs": [3, 3]},
    ):
        for name in ("accuracy", "angles"):
            assert "hardest" not in texts(draw(name, hyperparameters=hyperparameters))
    assert "middle steps (hardest 50%)" in texts(draw("angles"))


def test_histograms_hold_every_angle(draw):
    figure, arrays = draw("angles"), make_arrays()
    assert len(figure.axes) == 3
    for axes, theta in zip(figure.axes, arrays["snapshots"].astype(float), strict=True):
        for bars, column, line in zip(axes.containers, theta.T, axes.lines, strict=True):
            counts, _ = np.histogram(column, np.arange(0, 181, 2))
            assert [bar.get_height() for bar in bars] == pytest.approx(counts / len(column) / 2)
            assert line.get_xdata()[0] == pytest.approx(column.mean())
    assert figure.axes[-1].get_xlabel().endswith("in °")


def test_every_image_lies_at_its_two_angles(draw, monkeypatch):
    """Right ones, wrong ones and those with a label error, each once; m = 0.1 is 5.73°."""
    monkeypatch.setattr(figures.label_errors, "validated", lambda dataset: {0: 1, 7: None})
    arrays, axes = make_arrays(), draw("embedding").axes[0]
    right, wrong, rejected = (np.asarray(cloud.get_offsets()) for cloud in axes.collections)
    points = np.stack([arrays["theta_own"], arrays["theta_other"]], axis=1).astype(float)
    mistaken = arrays["predicted"] != arrays["labels"]
    assert np.array_equal(right, points[~mistaken]) and np.array_equal(wrong, points[mistaken])
    assert np.array_equal(rejected, points[[0, 7]])
    diagonal, margin = (line.get_xydata() for line in axes.lines)
    assert np.array_equal(diagonal[:, 0], diagonal[:, 1])
    assert margin[:, 1] - margin[:, 0] == pytest.approx(np.degrees(0.1), abs=1e-6)


def test_the_line_of_the_margin_is_that_of_the_loss(draw):
    """CosFace: cos θ − m3 is the cosine of the other angle. Without a margin there is no line."""
    _, margin = (line.get_xydata() for line in draw("embedding", loss="cosface").axes[0].lines)
    cosines = np.cos(np.radians(margin))
    assert cosines[:, 0] - cosines[:, 1] == pytest.approx(0.1, abs=1e-6)
    for loss in ("softmax", "norm-softmax"):
        assert len(draw("embedding", loss=loss, margin=None).axes[0].lines) == 1


def test_centres_of_a_simplex_are_shown_at_its_limit(draw):
    figure = draw("centres")
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["109"] * 12  # arccos(−1/3) = 109.47° between any two of four
    title = figure.axes[0].get_title()
    assert "109.5° on average" in title and "simplex: 109.5°" in title


def test_the_confusion_matrix_counts_every_test_image(draw):
    axes, arrays = draw("confusion").axes[0], make_arrays()
    shown = {}
    for text in axes.texts:
        column, row = text.get_position()
        shown[int(row), int(column)] = int(text.get_text())
    for true, predicted in np.ndindex(4, 4):
        both = (arrays["labels"] == true) & (arrays["predicted"] == predicted)
        assert shown[true, predicted] == both.sum()
    assert "20 of 200 test images are wrong" in axes.get_title()
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == CLASSES


def test_mistakes_are_shown_with_their_images_classes_and_angles(draw):
    figure, arrays = draw("mistakes"), make_arrays()
    for i, at in enumerate(arrays["mistakes_at"][:12]):
        true, predicted = arrays["labels"][at], arrays["predicted"][at]
        theta = arrays["mistakes_theta"][i]
        first = f"is {CLASSES[true]}, {theta[true]:.0f}°"
        second = f"said {CLASSES[predicted]}, {theta[predicted]:.0f}°"
        assert figure.axes[i].get_title() == f"{first}\n{second}"
        assert np.array_equal(figure.axes[i].images[0].get_array(), arrays["mistakes"][i])


def test_mistakes_on_images_with_label_errors_are_framed(draw, monkeypatch):
    at = make_arrays()["mistakes_at"].tolist()
    monkeypatch.setattr(figures.label_errors, "validated", lambda dataset: {at[2]: 1, at[5]: None})
    figure = draw("mistakes")
    framed = [axes.axison and axes.spines["top"].get_visible() for axes in figure.axes]
    assert [i for i, shown in enumerate(framed) if shown] == [2, 5]
    assert "framed: people reject the label" in figure._suptitle.get_text()


def test_a_run_without_mistakes_can_be_drawn():
    arrays = make_arrays()
    arrays["predicted"] = arrays["labels"]
    for key in ("mistakes", "mistakes_at", "mistakes_theta"):
        arrays[key] = arrays[key][:0]
    figures.mistakes(make_record(), arrays)
    confusion = figures.confusion(make_record(), arrays)
    assert "0 of 200 test images are wrong" in texts(confusion)
    plt.close("all")


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(Problem, match=r"run\.json"):
        figures.draw_run(tmp_path)
