"""study/margin.py: what is trained beside the recipe's ArcFace, and how they are compared."""

import math
from dataclasses import fields

import pytest
import torch

import arcface_mnist
from arcface_loss import ArcMarginProduct
from experiment import records
from experiment.training import Trained
from study import margin, tables
from study.runs import Task, outcome
from study.selection import ARCFACE, differences

FOLDER = records.ROOT / "figures" / "study"


def own(seed, accuracy, **values):
    """A record of the default recipe, as study.seeds writes it."""
    recipe = margin.SETUPS["mnist"].recipe
    made = {key: getattr(recipe, key) for key in ("epochs", "batch_size", "scale")}
    made |= {"embedding_size": recipe.embedding_size, "margin": 0.1}
    made |= {"hyperparameters": recipe.hyperparameters}
    angles = {"intra_test": 10.0, "inter_test": 94.0}
    tested = {"test_accuracy": accuracy, "test_accuracy_tta": None, "angles": angles}
    return {"seed": seed} | tested | made | values


def other(loss, seed, accuracy):
    """A record of this comparison."""
    angles = {"intra_test": 12.0, "inter_test": 95.0}
    made = {"loss": loss, "seed": seed, "split": None, "angles": angles}
    return made | {"accuracy": accuracy, "accuracy_tta": None, "test_accuracy": accuracy}


@pytest.fixture
def root(tmp_path):
    """Records of three seeds, but one of ArcFace's is of an earlier recipe."""
    mine = [own(0, 0.99), own(1, 0.98), own(2, 0.97, epochs=3)]
    for name, setup in margin.SETUPS.items():
        runs = [run | {"dataset": setup.recipe.dataset} for run in mine]
        records.save_json(tmp_path / f"figures/{name}/seeds.json", runs)
    for seed in (2, 1, 0):
        for loss, accuracy in (("softmax", 0.985), ("norm-softmax", 0.99), ("arcface", 0.96)):
            path = tmp_path / "figures/study/margin-mnist.jsonl"
            records.append_line(path, other(loss, seed, accuracy))
    return tmp_path


def test_runs_with_the_same_seed_and_recipe_are_compared(root):
    found = margin.runs("mnist", root)
    assert list(found) == [ARCFACE, *margin.OTHERS]
    assert [run["seed"] for run in found[ARCFACE]] == [0, 1]
    assert [run["seed"] for run in found["softmax"]] == [0, 1, 2]
    assert differences(found, "softmax") == pytest.approx([-0.5, 0.5])
    row = margin.table("mnist", root).splitlines()[3]
    assert row == ("| softmax | 3 | 98.50 ± 0.00 | −0.50, 0.50 | – | – | 12.0 ± 0.0 | 95.0 ± 0.0 |")


def test_there_is_no_table_of_arcface_alone(root):
    assert list(margin.tables(root)) == ["margin-mnist"]
    (root / "figures/study/margin-mnist.jsonl").unlink()
    assert margin.tables(root) == {}


class FakeStudy:
    """Keeps its tasks; the second rate of softmax has the lowest loss, the third diverges."""

    def __init__(self):
        self.setup, self.tasks = margin.SETUPS["mnist"], []
        self.source = self

    def for_validation(self, count):
        return f"the last {count}"

    def run(self, task, source, measure):
        self.tasks.append((task, source))
        losses = ({"plain_loss": 0.02}, {"plain_loss": 0.01}, {"collapsed": "nan"})
        return losses[len(self.tasks) - 1] if len(self.tasks) <= len(losses) else {}


def test_only_what_is_compared_differs():
    """Softmax has the best of its rates; the others have the recipe's scale and rate."""
    study = FakeStudy()
    margin.compare(study, "mnist")
    recipe = margin.SETUPS["mnist"].recipe
    tried, made = study.tasks[:3], study.tasks[3:]
    rate = recipe.learning_rates["linear head"]
    assert [task.head_lr for task, _ in tried] == [rate / 4, rate, 4 * rate]
    assert {source for _, source in tried} == {"the last 10000"}
    assert {source for _, source in made} == {study} and len(made) == 30
    usual = {"part": "margin", "dataset": "mnist", "epochs": recipe.epochs, "seed": 9}
    head = {"scale": recipe.scale, "head_lr": recipe.learning_rates["head"]}
    own = Task(loss="arcface", margin=0.1, **head, **usual | {"seed": 0})
    assert margin.tasks(FakeStudy(), "mnist")[ARCFACE] == own
    assert [task for task, _ in (*made[18:20], made[-1])] == [
        Task(loss="softmax", scale=None, margin=None, head_lr=rate, **usual),
        Task(loss="norm-softmax", margin=None, **head, **usual),
        Task(loss="arcface", margin=0.3, **head, **usual),
    ]
    assert len({task.name for task, _ in study.tasks}) == 33
    assert math.isclose(tried[1][0].head_lr, made[0][0].head_lr)


def test_what_is_measured_replaces_nothing_of_a_task(small_data):
    network = arcface_mnist.Network(16, **arcface_mnist.DEFAULT.network)
    head, no = ArcMarginProduct(16, 10, s=8.0, m=0.1), torch.zeros(0)
    trained = Trained(
        network=network, head=head, history=[], snapshots=no, mean_theta=no, seconds=0.0
    )
    views = [[0, 0.5], [1, 0.25]]
    found = outcome(trained, small_data["MNIST"], "float32", views=views)
    assert not found.keys() & {field.name for field in fields(Task)}
    assert found["loss_with_margin"] > found["plain_loss"] > 0
    assert 0 <= found["accuracy_tta"] <= 1 and found["angles"]["intra_test"] > 0


def test_the_page_has_the_tables_of_the_records():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, content in margin.tables().items():
        assert tables.fill(text, name, content) == text
    assert all(f"<!-- margin-{name} -->" in text for name in margin.SETUPS)
