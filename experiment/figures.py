"""Pictures of a run from its record and arrays alone: python -m experiment.figures figures/mnist"""

import argparse
import os
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np

from experiment import cli, label_errors, records
from experiment.errors import exit_status, protect_streams
from experiment.recipe import margins

# The user's own settings must change nothing. A notebook's backend stops matplotlib's import
# elsewhere, and so does a broken matplotlibrc in the working directory.
os.environ["MPLBACKEND"] = "agg"
os.environ["MATPLOTLIBRC"] = os.devnull
with chdir(Path(__file__).parent):
    import matplotlib
    import matplotlib.pyplot as plt
matplotlib.use("agg")
matplotlib.rcdefaults()

# Okabe and Ito's colours, which the colour-blind tell apart; markers tell ten classes apart
# without colour.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
CLASS_COLOURS = [
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#B8A800",
    "#000000",
    "#7F3C8D",
    "#8C6D4F",
]
CLASS_MARKERS = "osv^DPX*<>"
LOSS_STYLE = {  # name, colour, marker: the same everywhere
    "softmax": ("softmax", "#777777", "o"),
    "norm-softmax": ("normalised softmax", "#56B4E9", "s"),
    "sphereface": ("SphereFace", "#009E73", "^"),
    "cosface": ("CosFace", "#E69F00", "D"),
    "arcface": ("ArcFace", "#0072B2", "P"),
    "cm1": ("CM1", "#CC79A7", "X"),
}
# Pictures are drawn at the size of print: 3.2 in wide where two stand side by side, else 6.3 in.
STYLE: Any = {  # its keys have a type of their own in matplotlib
    "figure.figsize": (3.2, 2.1),
    "figure.dpi": 300,
    "figure.constrained_layout.use": True,
    "font.size": 7.5,
    "axes.titlesize": 8,
    "figure.titlesize": 8,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def draw_run(folder: Path) -> None:
    """Draw the seven pictures of a run from ``run.json`` and ``arrays.npz`` in its folder.

    Raises:
        Problem: a record is missing or damaged, or a picture cannot be written.
    """
    record, arrays = records.load_run(folder)
    drawn = {}
    with plt.rc_context(STYLE):
        for draw in (accuracy, loss, angles, embedding, centres, confusion, mistakes):
            drawn[draw.__name__] = figure = draw(record, arrays)
            if record["dataset"] == "synthetic":
                figure.suptitle(
                    "SYNTHETIC stand-in, not the real data", color=RED, fontweight="bold"
                )
        for name, figure in drawn.items():
            save(figure, folder / f"{name}.png")


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    with records.replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    plt.close(figure)


def accuracy(record: dict, arrays: dict) -> plt.Figure:
    """Training and test accuracy in % against epochs."""
    title = f"{100 * record['test_accuracy']:.2f}% of the test images are right"
    figure = _draw_history(record, "accuracy", 100, title, ylabel="accuracy in %")
    figure.axes[0].legend(loc="lower right")
    return figure


def loss(record: dict, arrays: dict) -> plt.Figure:
    """Training objective, margin included, on training and test images, against epochs."""
    title = "the loss, margin included"
    return _draw_history(record, "loss", 1, title, ylabel="loss (nats)", ylim=(0, None))


def _draw_history(record: dict, key: str, factor: float, title: str, **axis: Any) -> plt.Figure:
    """Training and test values of ``key``, times ``factor``, against epochs."""
    figure, axes = plt.subplots()
    for split, label, colour, marker in (
        ("train", _training_label(record), BLUE, "o"),
        ("test", "test", ORANGE, "s"),
    ):
        curve = _curve(record, f"{split}_{key}", factor)
        axes.plot(*curve, color=colour, marker=marker, label=label)
    axes.set(xlabel="epoch", title=f"{_title(record)}:\n{title}", **axis)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlim(0.5 if record["epochs"] > 1 else 0, record["epochs"] + 0.5)
    axes.legend()
    return figure


def angles(record: dict, arrays: dict) -> plt.Figure:
    """Distributions of θ to the own and to the nearest other centre, at three times."""
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(3.2, 2.6))
    bins = np.arange(0, 181, 2)
    for axis, theta, when in zip(
        axes, arrays["snapshots"].astype(float), _times(record), strict=True
    ):
        for column, (name, colour, hatch) in enumerate(
            (("own centre", BLUE, None), ("nearest other", ORANGE, "///"))
        ):
            axis.hist(
                theta[:, column],
                bins,
                density=True,
                color=colour,
                alpha=0.65,
                label=name,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.3,
            )
            axis.axvline(
                theta[:, column].mean(),
                color=colour,
                linewidth=1.5,
                linestyle="-" if column == 0 else "--",
            )
        axis.set_title(
            f"{when}: own {theta[:, 0].mean():.0f}°, nearest other {theta[:, 1].mean():.0f}°",
            fontsize=7.5,
        )
        axis.set(yticks=[], ylabel="density")
    axes[0].legend(loc="upper left")
    axes[-1].set(
        xlabel="θ, training embedding to class centre, in °",
        xlim=(0, 140),
        xticks=range(0, 141, 20),
    )
    figure.suptitle(f"{_title(record)}:\nembeddings turn towards their own centre")
    return figure


def embedding(record: dict, arrays: dict) -> plt.Figure:
    """Every test image by its angles to the own and to the nearest other centre, and the margin.

    On the diagonal both are equal. Above the dashed line the own logit is the largest even with the
    margin. Images with a validated label error are ringed.
    """
    figure, axes = plt.subplots(figsize=(3.2, 2.7))
    own, other = (arrays[key].astype(float) for key in ("theta_own", "theta_other"))
    wrong, known = arrays["predicted"] != arrays["labels"], np.isfinite(own)
    rejected = np.isin(np.arange(len(own)), list(label_errors.validated(record["dataset"])))
    clouds: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("right", ~wrong, {"s": 2, "color": BLUE, "alpha": 0.3, "linewidths": 0}),
        ("wrong", wrong, {"s": 6, "color": RED, "marker": "x", "linewidths": 0.6}),
        ("label rejected by people", rejected, {"s": 25, "color": "none", "edgecolors": "black"}),
    ]
    for name, chosen, style in clouds:
        shown = chosen & known
        axes.scatter(own[shown], other[shown], label=f"{name}: {shown.sum():,}", **style)
    end = 5 * np.ceil(np.nanmax([own, other]) / 5)
    axes.plot([0, end], [0, end], color=GREY, linewidth=1, label="equal angles")
    asked = {"m1": 1.0, "m": 0.0, "m3": 0.0} | margins(record["loss"], record["margin"])
    theta = np.radians(np.linspace(0, end, 200))
    phi = np.cos(np.minimum(asked["m1"] * theta + asked["m"], np.pi)) - asked["m3"]
    if record["loss"] not in ("softmax", "norm-softmax"):
        line = np.degrees(np.arccos(np.clip(phi, -1, 1)))
        axes.plot(
            np.degrees(theta), line, "--", color="black", linewidth=1, label="with the margin"
        )
    axes.set(xlim=(0, end), ylim=(0, end), aspect="equal")
    axes.set(xlabel="θ to the own centre in °", ylabel="θ to the nearest other in °")
    share = (~wrong[known]).mean()
    axes.set_title(f"{_title(record)}:\n{share:.1%} of {known.sum():,} test images are right")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def centres(record: dict, arrays: dict) -> plt.Figure:
    """Angles between every two class centres, and their distance from the simplex limit."""
    centre = arrays["centres"].astype(float)
    theta = np.degrees(np.arccos(np.clip(centre @ centre.T, -1, 1)))
    limit = np.degrees(np.arccos(-1 / (len(centre) - 1)))
    np.fill_diagonal(theta, np.nan)
    nearest = np.nanmin(theta, axis=1).mean()
    figure, axes = plt.subplots(figsize=(3.2, 3.1))
    spread = max(5.0, np.nanmax(np.abs(theta - limit)))
    axes.imshow(theta, cmap="RdBu", vmin=limit - spread, vmax=limit + spread)
    for (i, j), angle in np.ndenumerate(theta):
        if i != j:
            _write_cell(axes, i, j, f"{angle:.0f}", white=abs(angle - limit) > 0.6 * spread)
    _label_classes(axes, arrays["classes"])
    axes.set_title(
        f"{_title(record)}: nearest other centre\n{nearest:.1f}° on average (simplex: {limit:.1f}°)"
    )
    axes.set_xlabel("angles between class centres, in °")
    return figure


def confusion(record: dict, arrays: dict) -> plt.Figure:
    """Confusion matrix of the test images, counts."""
    figure, axes = plt.subplots(figsize=(3.2, 3.3))
    n = len(arrays["classes"])
    matrix = np.zeros((n, n), dtype=int)
    np.add.at(matrix, (arrays["labels"], arrays["predicted"]), 1)
    wrong = matrix - np.diag(matrix.diagonal())
    axes.imshow(wrong, cmap="Blues", vmin=0, vmax=max(1, wrong.max()))
    for (i, j), count in np.ndenumerate(matrix):
        style = {"weight": "bold" if i == j else "normal", "alpha": 1 if count else 0.25}
        _write_cell(axes, i, j, str(count), white=i != j and count > 0.6 * wrong.max(), **style)
    _label_classes(axes, arrays["classes"])
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"{_title(record)}:\n{wrong.sum()} of {matrix.sum():,} test images are wrong")
    return figure


def _write_cell(axes: plt.Axes, i: int, j: int, text: str, white: bool, **style: Any) -> None:
    """Text in the middle of row i, column j of a matrix that imshow has drawn."""
    colour = "white" if white else "black"
    axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour, **style)


def _label_classes(axes: plt.Axes, classes: list[str]) -> None:
    """Name rows and columns of a matrix after the classes; long names are rotated by 45°."""
    rotated: dict[str, Any] = {}
    if max(map(len, classes)) > 2:
        rotated = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(classes)), classes, **rotated)
    axes.set_yticks(range(len(classes)), classes)
    axes.grid(False)


def mistakes(record: dict, arrays: dict) -> plt.Figure:
    """The most confidently wrong test images, with θ to the true and to the predicted centre.

    Images whose label people reject are framed.
    """
    figure, axes = plt.subplots(2, 6, figsize=(6.3, 2.8))
    for axis in axes.flat:
        axis.axis("off")
    classes, rejected = arrays["classes"], label_errors.validated(record["dataset"])
    framed = [at in rejected for at in arrays["mistakes_at"].tolist()]
    for axis, image, at, theta in zip(
        axes.flat, arrays["mistakes"], arrays["mistakes_at"], arrays["mistakes_theta"], strict=False
    ):
        true, predicted = arrays["labels"][at], arrays["predicted"][at]
        axis.imshow(image.squeeze(), cmap="gray")
        if at in rejected:
            axis.axis("on")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(visible=True, color=RED, linewidth=2)
        axis.set_title(
            f"is {classes[true]}, {theta[true]:.0f}°\n"
            f"said {classes[predicted]}, {theta[predicted]:.0f}°",
            fontsize=7,
        )
    figure.suptitle(
        f"{_title(record)}: the most confident mistakes, with the angles to both centres"
        + ("; framed: people reject the label" if any(framed) else "")
    )
    return figure


def _times(record: dict) -> tuple[str, str, str]:
    """Names for the three times of the training whose angles are kept."""
    hardest = _hardest(record)
    return "first steps", f"middle steps ({hardest})" if hardest else "middle steps", "last steps"


def _hardest(record: dict) -> str:
    """Which part of the training images the middle epochs consist of; empty if of all."""
    part, full = (record["hyperparameters"][key] for key in ("hardest", "full_epochs"))
    return f"hardest {part:.0%}" if part < 1 and record["epochs"] > sum(full) else ""


def _training_label(record: dict) -> str:
    hardest = _hardest(record)
    first, last = record["hyperparameters"]["full_epochs"]
    middle = f"{first + 1}–{record['epochs'] - last}"
    return f"training ({middle}: {hardest})" if hardest else "training"


def _curve(record: dict, key: str, factor: float) -> tuple[list[int], list[float]]:
    measured = [entry for entry in record["history"] if entry[key] is not None]
    return [entry["epoch"] for entry in measured], [factor * entry[key] for entry in measured]


def _title(record: dict) -> str:
    name = "Synthetic images" if record["dataset"] == "synthetic" else record["dataset"]
    return f"{name}, {LOSS_STYLE[record['loss']][0]}"


def main(argv: list[str] | None = None) -> int:
    """Redraw the pictures of runs. Returns the exit status: 0, 1 (a problem), 130 (Ctrl-C)."""
    protect_streams()
    parser = argparse.ArgumentParser(
        prog="python -m experiment.figures",
        description="Redraw the pictures of runs from their run.json and arrays.npz.",
        allow_abbrev=False,
    )
    text = "of a run, such as figures/mnist"
    parser.add_argument("folders", nargs="+", type=cli.path, metavar="FOLDER", help=text)
    options = parser.parse_args(argv)

    def work() -> None:
        for folder in options.folders:
            with records.showing(folder):
                draw_run(folder)
            print(f"The pictures in {folder} are drawn.")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
