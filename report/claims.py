"""What the report says in words, as expressions over the records.

What its abstract, results and conclusion compare stands in ``#claim("name")[…]``. The report is not
built if a claim is false, is not known here, or is not used.
"""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from experiment import records
from experiment.errors import Problem
from experiment.figures import LOSS_STYLE
from experiment.records import ROOT
from study import best, corruption, margin, seeds, seen, tuning, unseen, verification
from study.selection import (
    ARCFACE,
    RunsByLoss,
    StudyRecord,
    angle_of,
    differences,
    finished,
    load,
    ratio,
)
from study.tables import interval
from study.verification import without_softmax

STUDY = ROOT / "figures" / "study"
NORMALISED = LOSS_STYLE["norm-softmax"][0]


def sign(values: list[float]) -> int:
    """The sign of the values' mean, or 0 if its interval contains 0."""
    mean, half = interval(values)
    return int(np.sign(mean)) if abs(mean) > half else 0


def mean_angle(runs: RunsByLoss, key: str) -> dict[str, float]:
    """Mean of an angle of Table 3 over the runs of each loss, in degrees."""
    return {
        loss: float(np.mean([run["angles"][key] for run in finished(of_loss)]))
        for loss, of_loss in runs.items()
    }


def claims_on_best() -> dict[str, bool]:
    """Of each loss with the best of its settings, on MNIST."""
    found, searches = best.runs(STUDY, "mnist"), best.tried(STUDY, "mnist")
    gaps = {name: differences(found, name) for name in found if name != ARCFACE}
    means = {
        name: float(np.mean([run["accuracy"] for run in group])) for name, group in found.items()
    }
    images = {
        name: [10_000 * run["test_accuracy"] for run in group] for name, group in searches.items()
    }
    apart = {name: round(float(np.ptp(group))) for name, group in images.items()}
    compact = {
        name: [run["angles"]["intra_test"] for run in group] for name, group in found.items()
    }

    def extreme(key: str, choose: Callable[[list[float]], float]) -> set[str]:
        """The losses, without ArcFace's other settings, that have the smallest or largest angle
        with one of the seeds."""
        angles = {
            name: [run["angles"][key] for run in group]
            for name, group in found.items()
            if name not in (best.PAPER_SETTING, best.SMALL)
        }
        ends = [choose(list(group)) for group in zip(*angles.values(), strict=True)]
        return {name for name, group in angles.items() if any(map(np.equal, group, ends))}

    return {
        "each at its best: no loss can be told from ArcFace": len(gaps) == 7
        and all(map(cannot_be_told, gaps.values())),
        "each at its best: differences of more than a tenth of a point are excluded": (
            bool(gaps)
            and max(abs(mean) + half for mean, half in map(interval, gaps.values())) < 0.1
        ),
        "each at its best: three pairs of 28 can be told": {
            pair for pair in itertools.combinations(found, 2) if sign(differences(found, *pair))
        }
        == {(NORMALISED, name) for name in (LOSS_STYLE["cosface"][0], "CM1", best.PAPER_SETTING)},
        "each at its best: normalised softmax has the highest mean": (
            bool(gaps) and max(means, key=lambda name: means[name]) == NORMALISED
        ),
        "each at its best: ArcFace's trials differ by six images, normalised softmax's by 21": (
            (apart.get(ARCFACE), apart.get(NORMALISED)) == (6, 21)
        ),
        "each at its best: normalised softmax has the most compact classes, furthest apart": (
            extreme("intra_test", min) == extreme("inter_test", max) == {NORMALISED}
        ),
        "each at its best: with s = 4 and a margin classes are more compact still": bool(found)
        and all(map(np.less, compact[best.SMALL], compact[NORMALISED])),
        "each at its best: ArcFace has the closest classes": (
            extreme("inter_test", min) == {ARCFACE}
        ),
        "trials: at one scale and rate margins make classes compact, at s = 32 further apart": (
            bool(searches)
            and all(trials_agree(s, "intra_test", np.less) for s in (8, 16))
            and trials_agree(32, "inter_test", np.greater)
        ),
    }


def claims_on_best_of_objects() -> dict[str, bool]:
    """Of three losses with the best of their settings, on CIFAR-10."""
    found = best.runs(STUDY, "cifar10")
    gaps = [  # of each two losses, plain and with test-time augmentation
        (other, differences(found, one, other, key))
        for one, other in itertools.combinations(found, 2)
        for key in ("accuracy", "accuracy_tta")
    ]
    to_arcface = [interval(values) for other, values in gaps if other == ARCFACE]
    plain = LOSS_STYLE["softmax"][0]

    def order(key: Callable[[StudyRecord], float]) -> set[tuple[str, ...]]:
        """The losses from the smallest to the largest, with each seed."""
        values = {name: [key(run) for run in group] for name, group in found.items()}
        seeds = range(min(map(len, values.values()), default=0))
        return {tuple(sorted(values, key=lambda name: values[name][k])) for k in seeds}

    return {
        "CIFAR-10 at its best: no two losses can be told apart, plain or with TTA": (
            len(gaps) == 6 and all(len(values) == 5 and not sign(values) for _, values in gaps)
        ),
        "CIFAR-10 at its best: differences of more than half a point are excluded": (
            len(to_arcface) == 4 and all(abs(mean) + half < 0.5 for mean, half in to_arcface)
        ),
        "CIFAR-10 at its best: normalised softmax has the most compact and closest classes": (
            order(angle_of("intra_test")) == {(NORMALISED, ARCFACE, plain)}
            and order(angle_of("inter_test")) == {(NORMALISED, ARCFACE, plain)}
        ),
        "CIFAR-10 at its best: ArcFace has the largest ratio": (
            {losses[-1] for losses in order(ratio)} == {ARCFACE}
        ),
    }


def claims_on_trials_of_objects() -> dict[str, bool]:
    """Of the trials that chose these settings."""
    searches = best.tried(STUDY, "cifar10").values()
    on_sphere = without_softmax([run for group in searches for run in group])

    def ahead(scale: float) -> bool:
        """Whether ArcFace is the more accurate with the recipe's margin than with none."""
        with_margin, without = (
            whole_recipe("cifar10", *which)["accuracy"]
            for which in (("arcface", scale, 0.1), ("norm-softmax", scale, None))
        )
        return bool(with_margin > without)

    def settings(key: str, holds: Callable[[float], bool]) -> list[list[Any]]:
        """Of the trials of which an angle holds."""
        chosen = [run for run in on_sphere if holds(run["angles"][key])]
        return [[run[name] for name in best.SETTINGS] for run in chosen]

    return {
        "CIFAR-10's trials: the margin was ahead at three of five scales": (
            [ahead(s) for s in (3, 6, 12, 24, 48)] == [False, True, True, True, False]
        ),
        "CIFAR-10's trials: three ended with all centres in one direction, two away from them": (
            settings("w_inter", lambda angle: angle < 0.1)
            == [[24, 0.3, 1], [64, 0.5, 0.25], [64, 0.5, 1]]
            and settings("w_ec", lambda angle: angle > 90) == [[24, 0.1, 2], [64, 0.5, 4]]
        ),
    }


def whole_recipe(dataset: str, loss: str, scale: float, m: float | None) -> StudyRecord:
    """The trial of study.best with these, and the recipe's learning rate."""
    wanted = (scale, m, margin.SETUPS[dataset].recipe.learning_rates["head"])
    runs = load(STUDY, "margin-tuning", dataset)[loss]
    (found,) = (run for run in runs if tuple(run[key] for key in best.SETTINGS) == wanted)
    return found


def trials_agree(scale: float, key: str, compare: Callable[[float, float], bool]) -> bool:
    """Whether in the trials of study.best with a scale and the recipe's learning rate an angle of
    every loss with a margin compares like this with that of normalised softmax."""
    every = [run for group in load(STUDY, "margin-tuning", "mnist").values() for run in group]
    rate = margin.SETUPS["mnist"].recipe.learning_rates["head"]
    runs = [run for run in every if (run["scale"], run["head_lr"]) == (scale, rate)]
    without = whole_recipe("mnist", "norm-softmax", scale, None)["angles"][key]
    others = [run["angles"][key] for run in runs if run["loss"] != "norm-softmax"]
    return len(others) > 5 and all(compare(angle, without) for angle in others)


def cannot_be_told(values: list[float]) -> bool:
    """Whether the interval of these differences contains 0; it needs three values."""
    return len(values) > 2 and not sign(values)


def claims_on_sphere() -> dict[str, bool]:
    """Of three-dimensional embeddings."""
    runs = load(STUDY, "sphere", "mnist")
    w_ec, apart = (mean_angle(runs, key) for key in ("w_ec", "inter_test"))
    return {
        "on the sphere ArcFace's centres are nearer to their classes, which are further apart": (
            w_ec["arcface"] < w_ec["softmax"] and apart["arcface"] > apart["softmax"]
        ),
    }


def random_centres(d: int, draws: int = 1000) -> float:
    """The mean angle, in degrees, from one of ten random directions in d dimensions to the nearest
    other one."""
    centres = np.random.default_rng(0).normal(size=(draws, 10, d))
    centres /= np.linalg.norm(centres, axis=2, keepdims=True)
    cosines = centres @ centres.transpose(0, 2, 1) - 2 * np.eye(10)
    return float(np.degrees(np.arccos(cosines.max(axis=2))).mean())


def scale_and_margin(key: Callable[[dict[str, Any]], float]) -> dict[float, list[float]]:
    """A figure of MNIST's short runs over scale and margin, the mean over their seeds: for each
    scale a value for each margin, from the smallest to the largest."""
    found: dict[float, dict[float, list[float]]] = {}
    for run in records.load_lines(STUDY / "scale-margin-mnist.jsonl"):
        found.setdefault(run["scale"], {}).setdefault(run["margin"], []).append(key(run))
    return {
        s: [float(np.mean(by_margin[m])) for m in sorted(by_margin)]
        for s, by_margin in sorted(found.items())
    }


def after_the_whole_recipe() -> tuple[dict[float, float], list[float]]:
    """Of trials on MNIST, beside these short runs: Inter without a margin by scale; and Intra at
    s = 32 with m = 0, 0.1 and 0.3."""
    without = {s: whole_recipe("mnist", "norm-softmax", s, None) for s in (16.0, 32.0, 64.0)}
    at_32 = [without[32], *(whole_recipe("mnist", "arcface", 32, m) for m in (0.1, 0.3))]
    inter, intra = angle_of("inter_test"), angle_of("intra_test")
    return {s: inter(run) for s, run in without.items()}, list(map(intra, at_32))


def claims_on_scale_and_margin() -> dict[str, bool]:
    """Of ArcFace on MNIST with every pair of a scale and a margin, m = 0 first."""
    within, between, w_ec = (
        scale_and_margin(angle_of(key)) for key in ("intra_test", "inter_test", "w_ec")
    )
    by_margin = scale_and_margin(ratio)
    accuracy = scale_and_margin(lambda run: 100 * run["accuracy"])
    at_0 = [values[0] for values in between.values()]
    narrower = {s: bool((np.diff(values) < 0).all()) for s, values in within.items()}
    longer, at_32 = after_the_whole_recipe()
    return {
        "without a margin, classes are closer the larger the scale": bool(
            (np.diff(at_0) < 0).all()
        ),
        "a margin moves classes apart at large scales": all(
            values[-1] - values[0] > 15 if s >= 16 else abs(values[-1] - values[0]) < 5
            for s, values in between.items()
        ),
        "the ratio of Inter to Intra rises with the margin at every scale": all(
            (np.diff(values) > 0).all() for values in by_margin.values()
        ),
        "up to s = 16 every step of the margin makes classes more compact": (
            narrower == {s: s <= 16 for s in within}
        ),
        "at s = 32 and 64 a small margin makes them wider": all(
            max(within[s]) == max(within[s][1:4]) > within[s][0] for s in (32, 64)
        ),
        "three epochs are not the end: apart without a margin, and narrower with one at s = 32": (
            all(longer[s] > between[s][0] + 5 for s in longer) and bool((np.diff(at_32) < 0).all())
        ),
        "no setting ends beyond 90° from the centres": max(map(max, w_ec.values())) < 90,
        "the accuracies over scale and margin lie within a quarter of a point": bool(
            np.ptp(list(accuracy.values())) < 0.25
        ),
    }


def claims_on_unseen_classes() -> dict[str, bool]:
    """Of the verification of classes that training never saw."""
    digits, objects = (unseen.records_of(STUDY, name) for name in unseen.SEEDS)
    vehicles = [unseen.by_seed(runs, 0, "eer") for runs in objects.values()]
    plain, *heads = unseen.LOSSES
    without = correlations_by_split("mnist", heads=True)

    def signs(to: str) -> list[int]:
        """Of the differences of softmax to another loss, choice by choice."""
        splits = range(unseen.SPLITS)
        return [sign(unseen.difference(digits, plain, split, to)) for split in splits]

    def behind(head: str) -> int:
        """How often a loss has more errors than normalised softmax on CIFAR-10's choices."""
        pairs = [unseen.difference(objects, head, k, "norm-softmax") for k in range(unseen.SPLITS)]
        return sum(value > 0 for values in pairs for value in values)

    return {
        "unseen digits: in the mean softmax has fewer errors than all others": all(
            sign(unseen.difference(digits, plain, None, to=head)) == -1 for head in heads
        ),
        "unseen digits: by choice, to ArcFace on two and to normalised softmax on one": (
            [signs("arcface"), signs("norm-softmax")] == [[0, -1, -1], [0, -1, 0]]
        ),
        "unseen digits: CosFace accepts fewer pairs than the other heads at 1%": all(
            sign(unseen.difference(digits, "cosface", None, to=head, key="tar_1")) == -1
            for head in ("norm-softmax", "arcface")
        ),
        "unseen digits: no error rate tells the three heads on the sphere apart": not any(
            sign(unseen.difference(digits, one, split, to=other))
            for one, other in itertools.combinations(heads, 2)
            for split in (*range(unseen.SPLITS), None)
        ),
        "a network of animals tells vehicles apart hardly better than by chance": all(
            list(rates) == [0, 1] and 40 < min(rates.values()) <= max(rates.values()) < 50
            for rates in vehicles
        ),
        "on CIFAR-10 softmax has the lowest error rate in the mean, with both seeds": all(
            max(unseen.difference(objects, plain, None, to=head)) < 0 for head in heads
        ),
        "on CIFAR-10 ArcFace is behind normalised softmax six times of six, CosFace three": (
            [behind(head) for head in ("arcface", "cosface")] == [6, 3]
        ),
        "on CIFAR-10 softmax accepts the fewest pairs on two choices, with both seeds": all(
            max(unseen.difference(objects, plain, split, to=head, key=key)) < 0
            for split in (1, 2)
            for head in heads
            for key in ("tar_1", "tar_01")
        ),
        "errors on unseen digits go with the ratio and W-EC": (
            signs_of(correlations_by_split("mnist")["Inter/Intra"]) == [1, 1, 1]
            and signs_of(correlations_by_split("mnist")["W-EC"]) == [-1, -1, -1]
        ),
        "without softmax the ratio goes with the errors on two choices, no angle on all": (
            signs_of(without["Inter/Intra"]) == [0, 1, 1]
            and all(0 in signs_of(found) for found in without.values())
        ),
    }


def signs_of(correlations: list[tuple[float, float]]) -> list[int]:
    """Of those that can be told from 0 (p < 0.05); 0 for the others."""
    return [int(np.sign(rho)) * (p < 0.05) for rho, p in correlations]


def by_seen(key: str, kind: str) -> dict[tuple[str, float | None], dict[int, list[float]]]:
    """A figure of the verification of unseen classes, in %, by the seed: for each loss and margin,
    by the number of classes seen.

    Args:
        kind: of seen.KINDS.
    """
    found: dict[tuple[str, float | None], dict[int, list[float]]] = {
        variant: {} for variant in seen.VARIANTS
    }
    for run in sorted(seen.load(STUDY, kind), key=lambda run: run["seed"]):
        of_loss = found[run["loss"], run["margin"]]
        of_loss.setdefault(run["seen"], []).append(100 * run["verification"][key])
    return found


def correlations_by_seen(kind: str, heads: bool = False) -> dict[str, list[tuple[float, float]]]:
    """verification.correlations for each number of seen classes, from the smallest to the largest.

    Args:
        kind: of seen.KINDS. heads: without plain softmax.
    """
    return correlations(seen.by_seen(STUDY, kind), heads)


def correlations_by_split(
    dataset: str, heads: bool = False
) -> dict[str, list[tuple[float, float]]]:
    """verification.correlations for each choice of the classes; without softmax for ``heads``."""
    return correlations(unseen.by_split(STUDY, dataset), heads)


def correlations(
    groups: dict[int, list[StudyRecord]], heads: bool
) -> dict[str, list[tuple[float, float]]]:
    """verification.correlations of groups of runs; without plain softmax for ``heads``."""
    every = list(groups.values())
    return verification.correlations(list(map(without_softmax, every)) if heads else every)


def claims_on_more_seen_classes() -> dict[str, bool]:
    """Of two-digit numbers that training never saw, after 10 to 80 others, and of two digits."""
    eer, accepted = by_seen("eer", "numbers"), by_seen("tar_01", "numbers")
    digits, at_1 = by_seen("eer", "digits"), by_seen("tar_1", "numbers")
    plain, without, smaller, larger = seen.VARIANTS
    heads = seen.VARIANTS[1:]

    def below(one: dict[int, list[float]], other: dict[int, list[float]], n: int) -> bool:
        """Whether a figure is the lower one with every seed."""
        return all(a < b for a, b in zip(one[n], other[n], strict=True))

    def to_none(variant: tuple[str, float | None], n: int, rates: Any = eer) -> int:
        """The sign of the paired difference to no margin; 0 if its interval contains 0."""
        return sign([a - b for a, b in zip(rates[variant][n], rates[without][n], strict=True)])

    return {
        "the more numbers are seen, the lower the error rate on others, for every loss": all(
            (np.diff([np.mean(rates[n]) for n in sorted(rates)]) < 0).all()
            for rates in eer.values()
        ),
        "after 10 numbers softmax has the lowest error rate, with every seed": all(
            below(eer[plain], eer[head], 10) for head in heads
        ),
        "after 80 numbers it has the highest, with every seed": all(
            below(eer[head], eer[plain], 80) for head in heads
        ),
        "both margins have a lower one than none after 80 numbers, and not before": (
            [to_none(larger, n) for n in (10, 20, 40, 80)] == [0, 0, 0, -1]
            and [to_none(smaller, n) for n in (10, 20, 40, 80)] == [0, 0, 1, -1]
        ),
        "at 1% no margin is ahead of none after 80 numbers, and both are behind after 40": (
            [to_none(which, 80, at_1) for which in (smaller, larger)] == [0, 0]
            and [to_none(which, 40, at_1) for which in (smaller, larger)] == [-1, -1]
            and [to_none(which, 80, accepted) for which in (smaller, larger)] == [1, 1]
        ),
        "from 4 digits on softmax has the lowest error rate, with every seed": all(
            below(digits[plain], digits[head], n) for head in heads for n in (4, 6, 8)
        ),
        "after 8 digits every loss has more errors than after 6, with every seed": all(
            a < b for rates in digits.values() for a, b in zip(rates[6], rates[8], strict=True)
        ),
        "from 20 numbers on softmax accepts the fewest pairs at few false ones": all(
            below(accepted[plain], accepted[head], n) for head in heads for n in (20, 40, 80)
        ),
    }


def claims_on_angles_of_the_seen() -> dict[str, bool]:
    """Of the angles of seen classes and the errors on unseen ones, over the runs of study.seen."""
    signs, on_sphere = (
        {name: signs_of(rho) for name, rho in correlations_by_seen("numbers", heads).items()}
        for heads in (False, True)
    )
    of_digits = correlations_by_seen("digits", heads=True)
    return {
        "no angle of the seen numbers goes with the errors at all four": (
            signs["Intra"] == [1, 1, 0, 0]
            and signs["Inter"] == [0, 0, 0, -1]
            and signs["W-EC"] == [0, 0, 0, 1]
            and signs["Inter/Intra"] == [0, 0, 0, 0]
        ),
        "after 80 numbers compact classes go with fewer errors on the sphere, before not": (
            on_sphere["Intra"] == [0, 0, 0, 1] and on_sphere["Inter/Intra"] == [0, 0, 0, -1]
        ),
        "on digits the errors rise with Inter up to 6, without softmax with no angle": (
            signs_of(correlations_by_seen("digits")["Inter"]) == [1, 1, 1, 0]
            and not any(any(signs_of(rho)) for rho in of_digits.values())
        ),
    }


def claims_on_collapse() -> dict[str, bool]:
    """Of trainings with the margin whole from the first step, and of those where it rises."""
    runs = records.load_lines(STUDY / "collapse-cifar10.jsonl")

    def away(loss: str, margin: float, rate: float, rise: float) -> list[bool]:
        """Whether the last thirty steps of each training had a mean θ above 90°."""
        wanted = (loss, margin, rate, rise)
        keys = ("loss", "margin", "head_lr", "margin_warm_up")
        chosen = [run for run in runs if tuple(run[key] for key in keys) == wanted]
        return [bool(np.mean(run["mean_theta"][-30:]) > 90) for run in chosen]

    whole = [run for run in runs if run["loss"] == "arcface" and not run["margin_warm_up"]]

    def below(run: dict[str, Any]) -> list[int]:
        """The steps in which θ is below 90° − m/2."""
        limit = 90 - math.degrees(run["margin"]) / 2
        return [step for step, theta in enumerate(run["mean_theta"], start=1) if theta < limit]

    return {
        "with m = 0.3 θ does not fall below 90° − m/2 before it rises": not any(
            below(run) for run in whole if run["margin"] == 0.3
        ),
        "with m = 0.1 and 0.2 it falls below in the first steps": all(
            below(run) and below(run)[0] <= 15 for run in whole if run["margin"] < 0.3
        ),
        "ten of ten turn away, none of ten where the margin rises": (
            away("arcface", 0.3, 0.25, 0.0) == [True] * 10
            and away("arcface", 0.3, 0.25, 0.6) == [False] * 10
        ),
        "smaller margins and CosFace do not turn away": not any(
            away("arcface", 0.1, 0.25, 0.0)
            + away("arcface", 0.2, 0.25, 0.0)
            + away("cosface", 0.3, 0.25, 0.0)
        ),
        "neither a lower nor a higher learning rate of the head prevents it": all(
            away("arcface", 0.3, 0.0625, 0.0) + away("arcface", 0.3, 1.0, 0.0)
        ),
        "with the rise m = 0.5 does not turn away": not any(away("arcface", 0.5, 0.25, 0.6)),
    }


def lead(dataset: str, loss: str, kind: str, amount: int) -> list[float]:
    """Of the nearest class mean on damaged images: accuracy by the angle minus that by the
    distance, in points, for each seed."""
    angle, distance = (damage(dataset, loss, kind, amount, key) for key in corruption.METRICS)
    return [100 * (a - b) for a, b in zip(angle, distance, strict=True)]


def damage(dataset: str, loss: str, kind: str, amount: int, key: str) -> list[float]:
    """A measured value on damaged images, for each seed."""
    runs = corruption.records_of(STUDY, dataset)[loss]
    place = corruption.AMOUNTS[kind].index(amount)
    return [float(value) for value in corruption.values_of(runs, kind, key)[:, place]]


def control(kind: str, amount: int) -> dict[str, float]:
    """The figures of the run on CIFAR-10 without whitening."""
    (run,) = load(STUDY, "unwhitened", "cifar10")["arcface"]
    found: dict[str, float] = run["corrupted"][kind][corruption.AMOUNTS[kind].index(amount)]
    return found


def claims_on_damage() -> dict[str, bool]:
    """Of the nearest class mean on damaged images, by angle and by distance."""
    amounts = corruption.AMOUNTS
    half, brighter = (
        {key: damage("mnist", "arcface", *what, key) for key in ("turned", "length")}
        for what in (("contrast", 50), ("brightness", 30))
    )
    return {
        "with ArcFace on MNIST the angle is ahead under all four": all(
            sign(lead("mnist", "arcface", kind, of_kind[2])) == 1
            for kind, of_kind in amounts.items()
        ),
        "for ArcFace the distance is behind without damage too": all(
            min(lead(name, "arcface", "noise", 0)) > 0 for name in corruption.SEEDS
        ),
        "on CIFAR-10 weak noise turns ArcFace's embeddings, and without whitening far less": (
            min(damage("cifar10", "arcface", "noise", 4, "turned")) > 60
            and control("noise", 4)["turned"] < 30
            and max(damage("cifar10", "arcface", "noise", 4, "cosine")) < 0.5
            and control("noise", 4)["cosine"] > 0.8
        ),
        "on CIFAR-10 the angle is ahead under all four": all(
            min(lead("cifar10", loss, kind, amount)) > 0
            for loss in corruption.LOSSES
            for kind, of_kind in amounts.items()
            for amount in of_kind
            if np.mean(damage("cifar10", loss, kind, amount, "cosine")) > 0.2
        ),
        "with softmax on MNIST either is ahead under some damage": [
            sign(lead("mnist", "softmax", *what))
            for what in (("noise", 32), ("brightness", 45), ("occlusion", 60), ("contrast", 50))
        ]
        == [-1, -1, 1, 1],
        "half the contrast shortens more than brightness that turns as far": (
            max(half["length"]) < min(brighter["length"])
            and bool(abs(np.mean(half["turned"]) - np.mean(brighter["turned"])) < 5)
        ),
        "on MNIST all damage shortens ArcFace's embeddings more than softmax's": all(
            np.mean(damage("mnist", "arcface", kind, amount, "length"))
            < np.mean(damage("mnist", "softmax", kind, amount, "length"))
            for kind, of_kind in amounts.items()
            for amount in of_kind[1:]
        ),
    }


def costs(*classes: int, kept: bool = False) -> list[int]:
    """1 where forward takes longer than the floor, −1 where it takes less time, 0 where the
    interval of the ratio contains 1."""
    runs = records.load_json(ROOT / "figures/benchmarks/head.json")["runs"]
    ratios = {tuple(run["task"]): run["ratios"]["floor"] for run in runs}
    intervals = [ratios["forward", number, kept][1:] for number in classes]
    return [int(low > 1) - int(high < 1) for low, high in intervals]


def claims_on_recipes() -> dict[str, bool]:
    """Of the scripts' own runs, and of the trials that chose their settings."""
    runs = [records.load_json(ROOT / f"figures/{name}/seeds.json") for name in seeds.SCRIPTS]
    within = [np.mean([run["angles"]["intra_test"] for run in group]) for group in runs]
    trials = records.load_lines(ROOT / "figures/tuning/cifar10.jsonl")
    ours, whole = (
        [run["accuracy"] for run in trials if run["trial"] == name]
        for name in ("two convolutions, to 32 px", "as airbench94")
    )
    cost = [
        tuning.arithmetic(tuning.recipe_of("cifar10", name), 50_000)
        for name in ("two convolutions, to 32 px", "as airbench94")
    ]
    return {
        "CIFAR-10's classes are wider": within[1] > within[0],
        "CIFAR-10's recipe takes less time than the published one": all(
            run["train_seconds"] < run["yardstick_seconds"] for run in runs[1]
        ),
        "neither precision is more accurate on MNIST": sign(seeds.precision_gaps("mnist")) == 0,
        "the head's cost depends on the number of classes": costs(10, kept=True) == [1]
        and costs(1_000) == [0]
        and costs(10_000, 100_000, 1_000_000) == [-1, -1, -1],
        "all images at 32 px are less accurate and cost more": (
            len(ours) == 2 and max(whole) < min(ours) and round(cost[1] / cost[0], 1) == 1.4
        ),
    }


def claims_on_margin_alone() -> dict[str, bool]:
    """Of the scripts' own recipes with the margin and without."""
    mnist, cifar = (margin.runs(name) for name in margin.SETUPS)
    others = tuple(margin.OTHERS)
    softmax, without, larger = others
    one_machine = (*others, margin.AGAIN)

    def by_seed(found: RunsByLoss, name: str, key: str) -> dict[int, float]:
        return {run["seed"]: run["angles"][key] for run in found[name]}

    def wider(found: RunsByLoss, name: str, than: str) -> bool:
        """Whether the classes of a loss are the wider ones with every seed that both have."""
        one, other = (by_seed(found, which, "intra_test") for which in (name, than))
        common = one.keys() & other.keys()
        return bool(common) and all(one[seed] > other[seed] for seed in common)

    def closest(found: RunsByLoss) -> bool:
        apart = {name: by_seed(found, name, "inter_test").values() for name in found}
        rest = [min(values) for name, values in apart.items() if name != softmax]
        return max(apart[softmax]) < min(rest)

    def to_arcface(name: str) -> list[float]:
        return differences(mnist, name)

    keys = ("accuracy", "accuracy_tta")

    def equal(name: str, to: str) -> bool:
        """Whether on CIFAR-10 no paired difference can be told from 0, plain or with TTA."""
        return not any(sign(differences(cifar, name, to, key)) for key in keys)

    pairs = [*((name, margin.AGAIN) for name in others), (larger, without), (larger, softmax)]
    softmax_is_equal = equal(softmax, ARCFACE)
    return {
        "MNIST's own recipe: no loss is ahead": not any(sign(to_arcface(name)) for name in others),
        "MNIST's own recipe: not by a tenth of a point": all(
            abs(mean) + half < 0.1 for mean, half in (interval(to_arcface(name)) for name in others)
        ),
        "MNIST's own recipe: the margin makes classes more compact": (
            wider(mnist, without, ARCFACE) and wider(mnist, ARCFACE, larger)
        ),
        "both own recipes: softmax cannot be told from ArcFace": (
            softmax_is_equal and not sign(to_arcface(softmax))
        ),
        "CIFAR-10's own recipe: softmax and m = 0.3 cannot be told from ArcFace": (
            softmax_is_equal and equal(larger, ARCFACE)
        ),
        "CIFAR-10's own recipe: on one machine none can be told from another": (
            len({run["device_name"] for which in one_machine for run in cifar[which]}) == 1
            and all(equal(*pair) for pair in (*pairs, (softmax, without)))
        ),
        "CIFAR-10's own recipe: the margin makes classes more compact": all(
            wider(cifar, without, which) and wider(cifar, which, larger)
            for which in (ARCFACE, margin.AGAIN)
        ),
        "both own recipes: softmax leaves the classes closest together": (
            closest(mnist) and closest(cifar)
        ),
    }


def all_claims() -> dict[str, bool]:
    """Whether the records bear each claim out."""
    parts: list[Callable[[], dict[str, Any]]] = [
        claims_on_best,
        claims_on_best_of_objects,
        claims_on_trials_of_objects,
        claims_on_scale_and_margin,
        claims_on_sphere,
        claims_on_unseen_classes,
        claims_on_more_seen_classes,
        claims_on_angles_of_the_seen,
        claims_on_collapse,
        claims_on_damage,
        claims_on_recipes,
        claims_on_margin_alone,
    ]
    return {name: bool(holds) for part in parts for name, holds in part().items()}


def check(report: str) -> None:
    """Compare the claims that a report uses with those that hold.

    Args:
        report: its source.

    Raises:
        Problem: it uses a claim that is false or not known, or leaves one out.
    """
    known, used = all_claims(), set(re.findall(r'#claim\("([^"]+)"\)', report))
    for name in sorted(used | known.keys()):
        wrong = ""
        if name not in known:
            wrong = "is not known"
        elif not known[name]:
            wrong = "is refuted by the records"
        elif name not in used:
            wrong = "is used by no sentence"
        if wrong:
            what = f"The claim {name!r} {wrong}."
            raise Problem(f"{what} Correct report.typ, or report/claims.py.")
