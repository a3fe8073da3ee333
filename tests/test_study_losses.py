"""The study's experiments: what each trains on and measures, small, and once for all."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from arcface_loss import ArcMarginProduct
from experiment import evaluation, records, synthetic
from experiment.data import Data
from experiment.recipe import LOSSES
from experiment.training import Diverged, Trained
from study import collapse, corruption, grid, losses, seen, sphere, unseen
from study.runs import Setup, Study

FOLDER = records.ROOT / "figures" / "study"


class Projection(nn.Module):
    """A fixed random projection of the pixels, less its mean over some images."""

    def __init__(self, size, images):
        super().__init__()
        pixels = images[0].numel()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(pixels, size, generator=generator) / pixels**0.5
        self.mean = images.flatten(1).float().mean(dim=0) / 255

    def forward(self, x):
        return (x.flatten(1) - self.mean) @ self.weight


BEST = {"softmax": (None, None, 0.04), "arcface": (16.0, 0.3, 0.4)}


class NearestMean:
    """Stands in for a script's train(): class means as centres, in no time.

    Its accuracy is lower the further the settings are from those of BEST.
    """

    def __init__(self):
        self.calls = []

    def __call__(self, recipe, settings, data, out, resume):
        self.calls.append((recipe, settings, data))
        d, n = settings.embedding_size, len(data.classes)
        network = Projection(d, data.train_images)
        train, test = evaluation.embed_both(network, data, "float32")
        head = ArcMarginProduct(d, n, s=8.0)
        if settings.loss == "softmax":
            head = nn.Linear(d, n, bias=False)
        with torch.no_grad():
            head.weight.copy_(evaluation.class_means(*train, n))
            right = evaluation.accuracy(head(test[0]), test[1])
        scale, margin, rate = BEST[settings.loss]
        away = abs(math.log2(recipe.learning_rates["head"] / rate))
        if scale:
            away += abs(math.log2(settings.scale / scale)) + 10 * abs(settings.margin - margin)
        history = [{"test_accuracy": right - 0.01 * away}]
        snapshots = torch.zeros(3, 1, 2)
        return Trained(
            network=network,
            head=head,
            history=history,
            snapshots=snapshots,
            mean_theta=torch.zeros(3),
            seconds=1.0,
        )


@pytest.fixture(scope="module")
def digits():
    """Rendered digits: enough test images for the 6,000 pairs of a verification."""
    return synthetic.make("MNIST", train=1000, test=800)


@pytest.fixture(scope="module")
def small_study(digits, tmp_path_factory):
    """A study of two losses and two seeds, and what it called."""
    train, folder = NearestMean(), tmp_path_factory.mktemp("study")
    recipe = replace(losses.MNIST, embedding_size=64)
    setup = Setup(train=train, recipe=recipe, seeds=2, held_out=300)
    study = Study(folder, {"mnist": setup}, {"mnist": digits})
    losses.plane(study)
    losses.compare(study, "mnist", ("softmax", "arcface"))
    return study, train


def load(small_study, part):
    return records.load_lines(small_study[0].folder / f"{part}-mnist.jsonl")


def test_each_part_has_its_runs_and_none_is_repeated(small_study):
    study, train = small_study
    counts = {"plane": 2, "tuning": 2 * 6, "losses": 2 * 2}
    assert {part: len(load(small_study, part)) for part in counts} == counts
    assert len(train.calls) == sum(counts.values())
    losses.plane(study)
    losses.compare(study, "mnist", ("softmax", "arcface"))
    assert len(train.calls) == sum(counts.values())


def test_each_part_trains_on_its_images(small_study, digits):
    _, train = small_study
    kinds = {}
    for _, settings, data in train.calls:
        kinds.setdefault((len(data.classes), settings.epochs), data)
    tuning = kinds[10, 2]
    assert torch.equal(tuning.test_images, digits.train_images[-300:])
    assert torch.equal(tuning.train_images, digits.train_images[:-300])
    assert torch.equal(kinds[10, 6].test_images, digits.test_images)  # losses
    assert kinds[8, 6].classes == [str(k) for k in range(8)]  # plane


def test_losses_are_compared_at_their_tuned_settings(small_study):
    for loss, best in BEST.items():
        runs = [run for run in load(small_study, "losses") if run["loss"] == loss]
        used = {(run["scale"], run["margin"], run["head_lr"]) for run in runs}
        assert used == {best} and {run["epochs"] for run in runs} == {6}
    rates = {
        settings.loss: recipe.learning_rates for recipe, settings, _ in small_study[1].calls[-4:]
    }
    assert rates["softmax"]["linear head"] == 0.04 and rates["arcface"]["head"] == 0.4


def test_the_plane_has_its_points_on_disk(small_study, digits):
    study, _ = small_study
    for run in load(small_study, "plane"):
        arrays = records.load_arrays(study.folder / f"{run['name']}.npz")
        expected = digits.test_labels[digits.test_labels < 8]
        assert arrays["labels"].tolist() == expected.tolist()
        assert arrays["embeddings"].shape == (len(expected), 2) and arrays["centres"].shape == (
            8,
            2,
        )


def test_first_guesses_are_four_for_each_loss():
    for setup in losses.SETUPS.values():
        for loss in LOSSES:
            guesses = list(losses.first_guesses(setup.recipe, loss))
            assert len(set(guesses)) == 4
            has_margin = loss in setup.recipe.default_margins
            assert all((margin is not None) == has_margin for _, margin, _ in guesses)
            assert all((scale is None) == (loss == "softmax") for scale, _, _ in guesses)


def test_every_training_that_the_study_wants_is_on_record(tmp_path):
    for path in FOLDER.glob("*.jsonl"):
        shutil.copy(path, tmp_path)

    def train(recipe, settings, *arguments):
        raise AssertionError(f"no record: {settings}")

    images, labels = torch.zeros(6000, 1, 1, 1, dtype=torch.uint8), torch.arange(6000) % 10
    blank = Data("blank", [str(k) for k in range(10)], images, labels, images, labels, {})
    setups = {name: replace(setup, train=train) for name, setup in losses.SETUPS.items()}
    study = Study(tmp_path, setups, dict.fromkeys(setups, blank))
    losses.plane(study)
    for dataset in setups:
        losses.compare(study, dataset)
    on_disk = [record for path in tmp_path.glob("*.jsonl") for record in records.load_lines(path)]
    parts = {"plane", "tuning", "losses"}
    wanted = [record for record in on_disk if record.get("part") in parts]
    assert losses.count(list(setups)) == len(wanted) == 122


def test_a_loss_that_always_collapses_is_still_tuned(tmp_path, digits):
    def collapse(*arguments):
        raise Diverged("nothing is learnt")

    setup = Setup(train=collapse, recipe=losses.MNIST, seeds=1, held_out=300)
    task = losses.tune(Study(tmp_path, {"mnist": setup}, {"mnist": digits}), "mnist", "arcface")
    first = next(losses.first_guesses(losses.MNIST, "arcface"))
    assert (task.scale, task.margin, task.head_lr) == first


def test_bad_input_ends_with_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        losses.main(["imagenet"], tmp_path)
    assert stop.value.code == 2 and "imagenet" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    assert losses.main(["mnist", "--data", str(file)], tmp_path) == 1
    assert str(file) in capsys.readouterr().err


@pytest.mark.slow
def test_all_pictures_are_drawn_from_the_records(tmp_path):
    figures = tmp_path / "figures"
    needed = ("mnist/run.json", "mnist/arrays.npz", "mnist/seeds.json", "cifar10/seeds.json")
    for name in needed:
        (figures / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(records.ROOT / "figures" / name, figures / name)
    shutil.copytree(FOLDER, figures / "study", ignore=shutil.ignore_patterns("*.png"))
    assert losses.main(["--figures-only"], tmp_path) == 0
    assert collapse.main(["--figures-only"], tmp_path) == 0
    for part in (corruption, grid, seen, sphere, unseen):
        assert part.main(["--figures-only"], tmp_path) == 0
    for folder in ("study", "paper"):
        drawn, kept = (
            {p.name for p in (root / "figures" / folder).glob("*.png")}
            for root in (tmp_path, records.ROOT)
        )
        assert drawn == kept
    text = (figures / "study/README.md").read_text(encoding="utf-8")
    assert text == (FOLDER / "README.md").read_text(encoding="utf-8")
