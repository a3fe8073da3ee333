"""study/best.py: how each loss's settings are searched, and what is trained with them."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from experiment import records
from study import best, margin, tables
from study.selection import ARCFACE, load

FOLDER = records.ROOT / "figures" / "study"
RECIPE = margin.SETUPS["mnist"].recipe


class FakeStudy:
    """Writes records without training; ``accuracy`` is called with a task."""

    def __init__(self, folder, accuracy=lambda task: 0.9, seeds=2, dataset="mnist"):
        setup = replace(margin.SETUPS[dataset], seeds=seeds)
        self.folder, self.setup, self.accuracy = folder, setup, accuracy
        self.source, self.bar, self.tasks = self, self, []

    def for_validation(self, count):
        return f"the last {count}"

    def run(self, task, source, measure):
        self.tasks.append((task, source))
        value = self.accuracy(task)
        found = asdict(task) | {"name": task.name, "accuracy": value, "test_accuracy": value}
        found["plain_loss"] = 0.1
        angles = {key: 10.0 * k for k, key in enumerate(tables.ANGLES)}
        found |= {"accuracy_tta": None, "angles": angles}
        records.append_line(self.folder / f"{task.part}-mnist.jsonl", found)
        return found

    def update(self):
        pass

    def close(self):
        pass


def closeness(task):
    """Highest at s = 16, with the largest margin and twice the recipe's rate."""
    rate = task.head_lr / RECIPE.learning_rates["linear head" if task.scale is None else "head"]
    return 0.9 - abs((task.scale or 16) - 16) / 1e3 + (task.margin or 0) / 1e3 - abs(rate - 2) / 1e3


def test_every_loss_has_nine_trials_and_the_paper_three(tmp_path):
    study = FakeStudy(tmp_path, closeness)
    chosen = best.choose(study, "mnist")
    assert {source for _, source in study.tasks} == {"the last 10000"}
    of_paper = [task for task, _ in study.tasks if task.scale == 64 and task.margin == 0.5]
    assert len(of_paper) == len({task.head_lr for task in of_paper}) == 3
    for loss in best.COMPARED["mnist"]:
        made = [t for t, _ in study.tasks if t.loss == loss and t not in of_paper]
        assert len(made) == len({task.name for task in made}) == 9
    small = chosen.pop()
    assert (small.loss, small.scale, small.margin, small.head_lr) == ("arcface", 4.0, 0.1, 0.2)
    found = {task.loss: task for task in chosen[:-1]}
    rates = RECIPE.learning_rates
    assert found["softmax"].head_lr == 2 * rates["linear head"]
    assert {task.scale for task in chosen} == {None, 16.0, 64.0}
    assert all(found[loss].head_lr == 2 * rates["head"] for loss in ("cm1", "arcface", "cosface"))
    margins = [found[loss].margin for loss in ("norm-softmax", "sphereface", "cosface", "arcface")]
    assert margins == [None, 1.35, 0.2, 0.3]


def test_on_cifar10_arcface_has_the_scales_of_normalised_softmax():
    recipe = margin.SETUPS["cifar10"].recipe
    without, arcface = (best.rounds(recipe, loss) for loss in ("norm-softmax", "arcface"))
    assert arcface[0] == without[0] and {"scale": recipe.scale} in arcface[0]
    assert sum(map(len, arcface)) == sum(map(len, without)) == best.BUDGET
    assert arcface[1] == [{"margin": 0.3}]


def test_the_search_begins_with_the_recipes_own_settings(tmp_path):
    """So what it chooses is never less accurate on the held-out images than these."""
    study = FakeStudy(tmp_path)
    best.choose(study, "mnist")
    for loss in best.COMPARED["mnist"]:
        own = RECIPE.learning_rates["linear head" if loss == "softmax" else "head"]
        made = [(t.scale, t.margin, t.head_lr) for t, _ in study.tasks if t.loss == loss]
        scale = None if loss == "softmax" else RECIPE.scale
        assert (scale, RECIPE.default_margins.get(loss), own) in made


def test_of_equal_trials_that_with_the_lowest_loss_is_chosen():
    runs = [
        {"test_accuracy": accuracy, "plain_loss": loss}
        for accuracy, loss in ((0.9, 0.3), (0.9, 0.2), (0.9, 0.4), (0.8, 0.1))
    ]
    stopped = {"test_accuracy": None}
    assert best.best([stopped, *runs]) is runs[1]
    assert best.best([stopped]) is stopped


def test_what_is_chosen_is_trained_with_every_seed_and_nothing_twice(tmp_path):
    chosen = best.choose(FakeStudy(tmp_path / "search", closeness), "mnist")
    arcface = replace(chosen[4], part="margin", seed=1, named_by=("seed",))
    assert arcface.loss == "arcface"
    other = replace(arcface, margin=0.1, seed=0)
    before = FakeStudy(tmp_path, closeness)
    for task in (arcface, other):  # of study.margin: one with the chosen setting, one without
        before.run(task, None, None)
    study = FakeStudy(tmp_path, closeness)
    best.compare(study, "mnist")
    made = [task for task, source in study.tasks if source is study]
    assert len(made) == 2 * 8 - 1
    assert {(t.scale, t.margin, t.head_lr) for t in made} == {
        (t.scale, t.margin, t.head_lr) for t in chosen
    }
    assert [t.seed for t in made] == [0] * 8 + [1] * 7
    found = best.runs(tmp_path, "mnist")
    assert list(found) == [
        *(best.LOSS_STYLE[loss][0] for loss in best.LOSSES),
        best.PAPER_SETTING,
        best.SMALL,
    ]
    assert [[run["seed"] for run in of] for of in found.values()] == [[0, 1]] * 8
    assert found[ARCFACE][1]["part"] == "margin"
    rows = best.table(found).splitlines()
    cells = "2 | 90.00, 90.00 | −0.03, −0.03 | – | – |"
    assert rows[2] == f"| softmax | – | – | 0.04 | {cells}"
    marked = best.tables(tmp_path)
    assert list(marked) == ["best-search-mnist", "best-mnist", "angles-mnist"]
    assert "| softmax | 0.0, 0.0 | 10.0, 10.0 |" in marked["angles-mnist"]
    assert marked["best-search-mnist"].count("**") == 2 * 7
    assert "**16 / 0.3 / 0.4: 90.03**" in marked["best-search-mnist"]


def test_an_unfinished_search_is_neither_shown_nor_compared(tmp_path):
    study = FakeStudy(tmp_path, closeness)
    best.compare(study, "mnist")
    path = tmp_path / "margin-tuning-mnist.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert best.runs(tmp_path, "mnist") == {}
    assert best.PAPER_SETTING not in best.tried(tmp_path, "mnist")
    assert list(best.tables(tmp_path)) == ["best-search-mnist"]
    assert best.tables(Path("/nowhere")) == {}


def test_pictures_are_drawn_of_what_has_records(tmp_path):
    folder = tmp_path / "figures" / "study"
    best.compare(FakeStudy(folder, closeness), "mnist")
    names = best.tables(folder)
    marks = "\n".join(f"<!-- {name} --><!-- /{name} -->" for name in names)
    (folder / "README.md").write_text(marks, encoding="utf-8")
    assert best.main(["--figures-only"], tmp_path) == 0
    drawn = sorted(path.name for path in folder.glob("*.png"))
    assert drawn == ["accuracy-mnist.png", "angles-mnist.png"]
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert all(content in page for content in names.values())


def test_a_setting_that_always_collapses_is_shown_as_such(tmp_path):
    study = FakeStudy(tmp_path, lambda task: 0.1 if task.scale == 64 else closeness(task))
    best.compare(study, "mnist")
    marked = best.tables(tmp_path)
    assert (
        f"| {best.PAPER_SETTING} | **64 / 0.5 / 0.05: collapsed** |" in marked["best-search-mnist"]
    )
    assert f"| {best.PAPER_SETTING} | 64 | 0.5 | 0.05 | 0 | – | – | – | – |" in marked["best-mnist"]


def test_arcface_with_a_smaller_scale_had_the_highest_accuracy_on_held_out_images():
    """In the trials of the recipe; with the same images, and more than any trial here."""
    setting = best.SMALLER["mnist"]
    runs = records.load_lines(FOLDER.parent / "tuning/mnist.jsonl")
    (small, *_) = [run for run in runs if run["trial"] == "s = 4"]
    rate, margins = (small["recipe"][key] for key in ("learning_rates", "default_margins"))
    found = {"scale": small["recipe"]["scale"], "margin": margins["arcface"]}
    assert found | {"head_lr": rate["head"]} == setting
    assert small["held_out"] == margin.SETUPS["mnist"].held_out and small["seed"] == 0
    tried = [run for of in load(FOLDER, "margin-tuning", "mnist").values() for run in of]
    assert small["accuracy"] > max(run["test_accuracy"] for run in tried)


@pytest.mark.parametrize("dataset", best.COMPARED)
def test_the_records_on_disk_are_those_of_the_whole_comparison(dataset, monkeypatch):
    """Each choice follows from the trials, and what was chosen has every seed."""
    study = FakeStudy(FOLDER, seeds=margin.SETUPS[dataset].seeds, dataset=dataset)
    trials = load(FOLDER, "margin-tuning", dataset).values()
    known = {run["name"]: run for of in trials for run in of}
    monkeypatch.setattr(study, "run", lambda task, source, measure: known.pop(task.name))
    best.compare(study, dataset)  # anything else that it would train is a KeyError
    assert not known
    made = best.runs(FOLDER, dataset)
    assert {len(of) for of in made.values()} == {study.setup.seeds}
    assert (best.PAPER_SETTING in made) == (dataset == "mnist")


@pytest.mark.parametrize("dataset", best.COMPARED)
def test_the_page_has_the_tables_of_the_records(dataset):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, content in best.tables(FOLDER).items():
        assert tables.fill(text, name, content) == text
    for name in (f"best-search-{dataset}", f"best-{dataset}", f"angles-{dataset}"):
        assert f"<!-- {name} -->" in text and f"<!-- /{name} -->" in text
    found = load(FOLDER, "margin-tuning", dataset)
    names = [run["name"] for of in found.values() for run in of]
    assert len(names) == len(set(names))
