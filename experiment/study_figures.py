"""The study's records to pictures and tables; called by experiment.study."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from experiment import records
from experiment.data import CORRUPTIONS
from experiment.evaluation import FALSE_ACCEPT
from experiment.figures import BLUE, GREY, LOSSES, ORANGE, RED, STYLE, save
from experiment.records import cell, interval

NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
LEARNT = 0.5  # the accuracy below which a run counts as collapsed
SIMPLEX = float(np.degrees(np.arccos(-1 / 9)))  # ten directions cannot all be further apart
ANGLES = {  # of the paper's Table 3: what is measured, and its values there for normalised softmax and ArcFace
    "w_ec": ("W-EC", 44.26, 14.29),
    "w_inter": ("W-Inter", 69.66, 71.61),
    "intra_train": ("Intra, train", 50.50, 38.45),
    "inter_train": ("Inter, train", 59.23, 65.83),
    "intra_test": ("Intra, test", 33.97, 28.05),
    "inter_test": ("Inter, test", 65.60, 66.55),
}


def load(folder: Path, part: str, dataset: str) -> dict[str, list[dict]]:
    """The records of a part of the study, by loss, in the order of their seeds and splits."""
    found = {loss: [] for loss in LOSSES}
    for path in sorted(folder.glob(f"{part}-{dataset}-*.json")):
        record = records.load_json(path)
        found[record["loss"]].append(record)
    for runs in found.values():
        runs.sort(key=lambda record: (record["seed"], record["split"] or 0))
    return {loss: runs for loss, runs in found.items() if runs}


def compared(folder: Path, part: str, dataset: str) -> dict[str, list[dict]]:
    """Of these records those whose seed and split every loss has been run with, so that like is compared with like."""
    runs = load(folder, part, dataset)
    done = [{(record["seed"], record["split"]) for record in runs.get(loss, [])} for loss in LOSSES]
    common = set.intersection(*done)
    return {loss: [r for r in runs[loss] if (r["seed"], r["split"]) in common] for loss in LOSSES} if common else {}


def learnt_by_all(runs: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Of these records those of the splits on which no run collapsed: to leave out one run alone would compare unlike splits."""
    lost = {record["split"] for records in runs.values() for record in records if collapsed(record)}
    return {loss: left for loss, records in runs.items() if (left := [r for r in records if r["split"] not in lost])}


def draw(folder: Path) -> None:
    """Draw every picture whose records are there, and fill the tables of the README beside them."""
    with plt.rc_context(STYLE):
        for dataset, name in NAMES.items():
            if losses := compared(folder, "losses", dataset):
                save(draw_accuracy(losses, name), folder / f"accuracy-{dataset}.png")
                save(draw_angles(losses, name), folder / f"angles-{dataset}.png")
                save(draw_noise(losses, name), folder / f"noise-{dataset}.png")
            if unseen := learnt_by_all(compared(folder, "unseen", dataset)):
                save(draw_roc(unseen, name), folder / f"roc-{dataset}.png")
                save(draw_pairs(unseen, name), folder / f"pairs-{dataset}.png")
        if grid := load(folder, "grid", "mnist"):
            save(draw_grid(grid["arcface"]), folder / "scale-margin.png")
    records.fill_file(folder / "README.md", tables(folder))


# --- tables --------------------------------------------------------------------------------------


def tables(folder: Path) -> dict[str, str]:
    """The tables whose records are there, in Markdown, named after the part of the study and the data set."""
    found = {}
    for dataset in NAMES:
        if tuning := load(folder, "tuning", dataset):
            found[f"tuning-{dataset}"] = tuning_table(tuning)
        if losses := compared(folder, "losses", dataset):
            found[f"losses-{dataset}"] = losses_table(losses)
            found[f"angles-{dataset}"] = angles_table(losses)
            found[f"noise-{dataset}"] = noise_table(losses)
        if unseen := compared(folder, "unseen", dataset):
            found[f"unseen-{dataset}"] = unseen_table(unseen)
    return found


def shown(value: float | None) -> str:
    """A setting, or a dash where the loss has none."""
    return "–" if value is None else f"{value:g}"


def settings(record: dict) -> list[str]:
    """s, margin and head learning rate of a run."""
    return [shown(record[key]) for key in ("scale", "margin", "head_lr")]


def tuning_table(tuning: dict[str, list[dict]]) -> str:
    """All short runs, the chosen one of a loss in bold once as many have been made for it as for any other."""
    rows, budget = [], max(map(len, tuning.values()))
    for loss, runs in tuning.items():
        best = max(runs, key=lambda record: record["test_accuracy"] or 0)
        cells = []
        for record in sorted(runs, key=lambda r: (r["scale"] or 0, r["margin"] or 0, r["head_lr"])):
            result = "collapsed" if collapsed(record) else f"{100 * record['test_accuracy']:.2f}"
            text = f"{' / '.join(settings(record))}: {result}"
            cells.append(f"**{text}**" if record is best and len(runs) == budget else text)
        rows.append([LOSSES[loss][0], *cells])
    return records.markdown(["s / margin / head learning rate: validation accuracy, %", *[""] * budget], rows)


def differences(losses: dict[str, list[dict]], loss: str) -> list[float]:
    """Test accuracy minus ArcFace's of the same seed, in percentage points, over the seeds that both have."""
    arcface = {record["seed"]: record["test_accuracy"] for record in finished(losses["arcface"])}
    return [100 * (r["test_accuracy"] - arcface[r["seed"]]) for r in finished(losses[loss]) if r["seed"] in arcface]


def collapsed(record: dict) -> bool:
    """Whether the training loop stopped the run, or it ended below LEARNT on its own classes."""
    return record["test_accuracy"] is None or record["test_accuracy"] < LEARNT


def finished(runs: list[dict]) -> list[dict]:
    """The runs that did not collapse."""
    return [record for record in runs if not collapsed(record)]


def losses_table(losses: dict[str, list[dict]]) -> str:
    """Test accuracy with its interval, and the paired difference to ArcFace."""
    rows = []
    for loss, runs in losses.items():
        values = [100 * record["test_accuracy"] for record in finished(runs)]
        difference = "–" if loss == "arcface" else cell(differences(losses, loss), 2)
        rows.append([LOSSES[loss][0], *settings(runs[0]), str(len(values)), cell(values, 2), difference])
    head = ["loss", "s", "margin", "head learning rate", "seeds", "test accuracy, %", "minus ArcFace, points"]
    return records.markdown(head, rows)


def angles_table(losses: dict[str, list[dict]]) -> str:
    """The paper's Table 3 for our data, in degrees, beside its own numbers."""
    rows = []
    for loss, runs in losses.items():
        rows.append([LOSSES[loss][0], *(cell([r["angles"][key] for r in finished(runs)], 1) for key in ANGLES)])
    for column, name in ((1, "paper, normalised softmax"), (2, "paper, ArcFace")):
        rows.append([f"*{name}*", *(f"*{ANGLES[key][column]:.2f}*" for key in ANGLES)])
    return records.markdown(["degrees", *(name for name, _, _ in ANGLES.values())], rows)


def unseen_table(unseen: dict[str, list[dict]]) -> str:
    """Verification of pairs of unseen classes, in %, for each split of the classes: means over seeds."""
    splits = sorted({record["split"] for runs in unseen.values() for record in runs})
    figures = {"accuracy": "10-fold accuracy", "eer": "EER", "tar_1": "TAR at FAR 1%", "tar_01": "TAR at FAR 0.1%"}
    rows = []
    for loss, runs in unseen.items():
        cells = []
        for key in figures:
            for split in splits:
                of_split = [record for record in runs if record["split"] == split]
                left = finished(of_split)
                lost = f" ({len(of_split) - len(left)} collapsed)" if len(left) < len(of_split) else ""
                cells.append(cell(percent(left, key), 1) + lost if left else "collapsed")
        rows.append([LOSSES[loss][0], *cells])
    return records.markdown(["%", *(f"{name}, split {split + 1}" for name in figures.values() for split in splits)], rows)


def percent(runs: list[dict], key: str) -> list[float]:
    """A verification figure of each run, in %."""
    return [100 * record["verification"][key] for record in runs]


def noise_table(losses: dict[str, list[dict]]) -> str:
    """Accuracy of the nearest class mean at the middle and the largest strength."""
    rows = []
    for kind in CORRUPTIONS:
        for strength in (0, 3, 5):
            cells = [
                cell([100 * record["corrupted"][kind][strength][metric] for record in finished(losses[loss])], 1)
                for loss in ("softmax", "arcface")
                for metric in ("cosine", "euclidean")
            ]
            rows.append([kind, str(strength), *cells])
    head = ["corruption", "strength", "softmax, cosine", "softmax, Euclidean", "ArcFace, cosine", "ArcFace, Euclidean"]
    return records.markdown(head, rows)


# --- pictures ------------------------------------------------------------------------------------


def draw_accuracy(losses: dict[str, list[dict]], name: str) -> plt.Figure:
    """Test accuracy of each loss, and its difference to ArcFace with the same seed."""
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(8.4, 3.6), width_ratios=(1.2, 1))
    for place, (loss, runs) in enumerate(losses.items()):
        _, colour, marker = LOSSES[loss]
        values = [100 * record["test_accuracy"] for record in finished(runs)]
        _draw_interval(axes[0], values, place, colour, marker)
        if loss != "arcface":
            _draw_interval(axes[1], differences(losses, loss), place, colour, marker)
    axes[0].set(yticks=range(len(losses)), yticklabels=[LOSSES[loss][0] for loss in losses], xlabel="test accuracy in %")
    axes[0].invert_yaxis()
    axes[1].axvline(0, color=LOSSES["arcface"][1], linewidth=1.5)
    axes[1].set(xlabel="minus ArcFace with the same seed, points")
    for side, words in (("right", "ArcFace better ← "), ("left", " → ArcFace worse")):
        axes[1].text(0, 1.0, words, ha=side, va="bottom", transform=axes[1].get_xaxis_transform(), fontsize=8, color=GREY)
    count = len(losses["arcface"])
    seeds = f"{count} seed" + "s" * (count > 1)
    figure.suptitle(f"{name}: test accuracy of six losses ({seeds} each; bars: 95% intervals)", fontsize=11)
    return figure


def _draw_interval(axis: plt.Axes, values: list[float], place: float, colour: str, marker: str) -> None:
    mean, half = interval(values)
    axis.plot(values, [place + 0.22] * len(values), "|", color=colour, alpha=0.7, markersize=7)
    axis.errorbar(mean, place, xerr=0 if np.isnan(half) else half, color=colour, marker=marker, markersize=8, capsize=4)


def draw_angles(losses: dict[str, list[dict]], name: str) -> plt.Figure:
    """The six angles of Table 3 for each loss, the paper's beside them."""
    figure, axes = plt.subplots(figsize=(8.4, 4.4))
    for place, key in enumerate(ANGLES):
        for offset, (loss, runs) in enumerate(losses.items()):
            _, colour, marker = LOSSES[loss]
            mean, half = interval([record["angles"][key] for record in finished(runs)])
            x = place + 0.12 * (offset - (len(losses) - 1) / 2)
            half = 0 if np.isnan(half) else half
            axes.errorbar(x, mean, yerr=half, color=colour, marker=marker, markersize=7, capsize=2, linestyle="none")
        for column, (colour, style) in {1: ("#2b7fa8", ":"), 2: ("black", "-")}.items():
            axes.plot([place - 0.4, place + 0.4], [ANGLES[key][column]] * 2, color=colour, linewidth=1, linestyle=style)
    axes.axhline(SIMPLEX, color=RED, linewidth=1, linestyle="--")
    axes.text(-0.45, SIMPLEX + 1, f"simplex limit {SIMPLEX:.2f}°", color=RED, fontsize=9)
    axes.set(
        xticks=range(len(ANGLES)),
        xticklabels=[label for label, _, _ in ANGLES.values()],
        ylabel="angle in degrees",
        ylim=(0, 106),
    )
    handles = [plt.Line2D([], [], color=LOSSES[x][1], marker=LOSSES[x][2], linestyle="none", label=LOSSES[x][0]) for x in losses]
    handles += [plt.Line2D([], [], color="#2b7fa8", linewidth=1, linestyle=":", label="paper, norm. softmax")]
    handles += [plt.Line2D([], [], color="black", linewidth=1, label="paper, ArcFace")]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(f"{name}: within a class (W-EC, Intra) small is good, between classes (Inter) large is")
    return figure


def runs_shown(unseen: dict[str, list[dict]]) -> str:
    """How many runs of each loss a picture shows, of which splits."""
    runs = next(iter(unseen.values()))
    splits = sorted({record["split"] + 1 for record in runs})
    return f"{len(runs)} runs each, split{'s' * (len(splits) > 1)} {' and '.join(map(str, splits))}"


def draw_roc(unseen: dict[str, list[dict]], name: str) -> plt.Figure:
    """ROC of pairs of unseen classes: the mean over splits and seeds."""
    figure, axes = plt.subplots(figsize=(6.8, 4.6))
    for loss, runs in unseen.items():
        label, colour, marker = LOSSES[loss]
        curves = 100 * np.array([record["verification"]["roc"] for record in runs])
        axes.plot(
            *(FALSE_ACCEPT * 100, curves.mean(axis=0)),
            color=colour,
            marker=marker,
            markevery=10,
            markersize=5,
            label=f"{label}: EER {np.mean(percent(runs, 'eer')):.1f}%",
        )
    axes.plot(FALSE_ACCEPT * 100, FALSE_ACCEPT * 100, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes.set(xscale="log", xlabel="false accept rate in %", ylabel="true accept rate in %", xlim=(0.01, 100), ylim=(0, 100))
    axes.legend(fontsize=9)
    axes.set_title(f"{name}: are two images of one class?\nFour classes that training never saw; {runs_shown(unseen)}")
    return figure


def draw_pairs(unseen: dict[str, list[dict]], name: str) -> plt.Figure:
    """Angles of positive and negative pairs of unseen classes, after the paper's Fig. 6."""
    figure, axes = plt.subplots(len(unseen), 1, sharex=True, figsize=(6.8, 1.25 * len(unseen) + 1))
    for axis, (loss, runs) in zip(np.atleast_1d(axes), unseen.items(), strict=True):
        for kind, colour, hatch in (("positive", BLUE, None), ("negative", ORANGE, "///")):
            counts = np.sum([record["verification"][kind] for record in runs], axis=0)
            share = 100 * counts / counts.sum()
            axis.bar(
                np.arange(180) + 0.5, share, 1, color=colour, alpha=0.6, hatch=hatch, edgecolor="white", linewidth=0, label=kind
            )
        axis.set(yticks=[], ylabel="share")
        axis.set_title(f"{LOSSES[loss][0]}: EER {np.mean(percent(runs, 'eer')):.1f}%", fontsize=9, loc="left")
    axis.set(xlabel="angle between two embeddings, in degrees", xlim=(0, 140), xticks=range(0, 141, 20))
    np.atleast_1d(axes)[0].legend(title="pairs", fontsize=8, title_fontsize=8)
    figure.suptitle(f"{name}: pairs of unseen classes; the less overlap, the better\n({runs_shown(unseen)})", fontsize=11)
    return figure


def draw_grid(runs: list[dict]) -> plt.Figure:
    """Validation accuracy and W-EC over scale and margin; crosses where training collapsed."""
    scales, margins = (sorted({record[key] for record in runs}) for key in ("scale", "margin"))
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.4))
    for axis, title, value, digits in (
        (axes[0], "validation accuracy, %", lambda r: 100 * r["test_accuracy"], 1),
        (axes[1], "W-EC, degrees", lambda r: r["angles"]["w_ec"], 0),
    ):
        table = np.full((len(scales), len(margins)), np.nan)
        for record in finished(runs):
            table[scales.index(record["scale"]), margins.index(record["margin"])] = value(record)
        low = np.nanquantile(table, 0.1) if digits else None  # so that the good ones can be told apart
        image = axis.imshow(table, cmap="viridis", aspect="auto", origin="lower", vmin=low)
        for (i, j), number in np.ndenumerate(table):
            text = "×" if np.isnan(number) else f"{number:.{digits}f}"
            dark = not np.isnan(number) and image.norm(number) < 0.6
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axis.set(xticks=range(len(margins)), xticklabels=[f"{m:g}" for m in margins], xlabel="margin m in radians")
        axis.set(yticks=range(len(scales)), yticklabels=[f"{s:g}" for s in scales], ylabel="scale s", title=title)
        axis.grid(False)
    lost = "; ×: training collapsed" if len(finished(runs)) < len(runs) else ""
    epochs = f"{runs[0]['epochs']} epoch" + "s" * (runs[0]["epochs"] > 1)
    figure.suptitle(f"MNIST, ArcFace after {epochs}: what scale and margin do{lost}", fontsize=11)
    return figure


def draw_noise(losses: dict[str, list[dict]], name: str) -> plt.Figure:
    """Accuracy of the nearest class mean under cosine and Euclidean distance while test images are corrupted."""
    figure, axes = plt.subplots(1, len(CORRUPTIONS), sharey=True, figsize=(9.6, 3.4))
    for axis, kind in zip(axes, CORRUPTIONS, strict=True):
        for loss in ("softmax", "arcface"):
            label, colour, marker = LOSSES[loss]
            for metric, style in (("cosine", "-"), ("euclidean", "--")):
                curves = 100 * np.array([[s[metric] for s in r["corrupted"][kind]] for r in finished(losses[loss])])
                mean, half = zip(*(interval(list(column)) for column in curves.T), strict=True)
                axis.plot(
                    mean,
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linestyle=style,
                    label=f"{label}, {metric.replace('euc', 'Euc')}",
                )
                axis.fill_between(range(len(mean)), np.subtract(mean, half), np.add(mean, half), color=colour, alpha=0.12)
        axis.set(title=kind, xlabel="strength", xticks=range(curves.shape[1]))
    axes[0].set(ylabel="accuracy in %", ylim=(0, 102))
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{name}: nearest class mean on corrupted test images (bands: 95% over seeds)", fontsize=11)
    return figure
