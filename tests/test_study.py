"""The study: verification against closed forms and brute force, and a whole small study, resumed and drawn."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from experiment import data, evaluation, paper_figures, study, study_figures, training


def test_verification_of_two_normal_distributions_is_the_closed_form():
    rng = np.random.default_rng(0)
    theta = np.concatenate([rng.normal(0, 1, 200_000), rng.normal(2, 1, 200_000)])
    found = evaluation.verification(theta, np.arange(400_000) < 200_000)
    assert found["eer"] == pytest.approx(stats.norm.cdf(-1), abs=2e-3)
    for key, rate in (("tar_1", 0.01), ("tar_01", 0.001)):
        assert found[key] == pytest.approx(stats.norm.cdf(2 + stats.norm.ppf(rate)), abs=0.01)
    assert found["roc"][-1] == 1 and np.all(np.diff(found["roc"]) >= 0)


def test_fold_accuracy_equals_a_search_over_all_thresholds():
    rng = np.random.default_rng(1)
    same = np.tile(np.arange(20) < 10, (5, 1))
    theta = rng.normal(np.where(same, 40, 55), 10)
    expected = []
    for fold in range(5):
        others = [k for k in range(5) if k != fold]
        cuts = np.sort(theta[others].ravel())
        cuts = np.concatenate([[-1e9], (cuts[:-1] + cuts[1:]) / 2, [1e9]])
        best = max(cuts, key=lambda cut: ((theta[others] <= cut) == same[others]).mean())
        expected.append(((theta[fold] <= best) == same[fold]).mean())
    assert evaluation.fold_accuracy(theta, same) == pytest.approx(np.mean(expected))


def test_all_pairs_and_the_drawn_ones(monkeypatch):
    monkeypatch.setattr(evaluation, "PAIRS", 40)
    embeddings, labels = torch.randn(30, 5), torch.arange(30) % 3
    theta, same = evaluation.all_pairs(embeddings, labels)
    pairs = [(i, j) for i in range(30) for j in range(i + 1, 30)]
    for k in (0, 100, 434):
        i, j = pairs[k]
        cosine = torch.nn.functional.cosine_similarity(embeddings[i], embeddings[j], dim=0)
        assert theta[k] == pytest.approx(cosine.arccos().rad2deg().item(), abs=0.01)
        assert same[k] == (labels[i] == labels[j])
    drawn = evaluation.draw_pairs(same, seed=0)
    assert drawn.shape == (10, 4) and len(np.unique(drawn)) == 40 and np.all(same[drawn].sum(axis=1) == 2)


def test_a_longer_embedding_changes_the_distance_but_not_the_angle():
    means, labels = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
    assert evaluation.nearest_mean(means, labels, means) == {"cosine": 1.0, "euclidean": 1.0}
    assert evaluation.nearest_mean(0.1 * means, labels, means) == {"cosine": 1.0, "euclidean": 0.5}


def test_some_classes_only():
    whole = data.synthetic("MNIST", train=200, test=100)
    part = whole.only([7, 2])
    assert part.classes == ["7", "2"]
    assert torch.equal(part.train_images, whole.train_images[(whole.train_labels == 7) | (whole.train_labels == 2)])
    assert (part.test_labels == 0).sum() == (whole.test_labels == 7).sum()


@pytest.mark.parametrize("kind", data.CORRUPTIONS)
def test_corruption_grows_with_its_strength(kind):
    images = torch.randint(40, 120, (50, 28, 28, 1), dtype=torch.uint8)
    change = [(data.corrupt(images, kind, strength).float() - images.float()).abs().mean() for strength in range(6)]
    assert change[0] == 0 and change == sorted(change) and change[5] > 10
    assert torch.equal(data.corrupt(images, kind, 3), data.corrupt(images, kind, 3))


def test_corruptions_are_what_their_description_says():
    grey = torch.full((200, 20, 20, 3), 102, dtype=torch.uint8)
    assert (data.corrupt(grey, "noise", 2).float() / 255).std().item() == pytest.approx(0.16, abs=0.01)
    hidden = data.corrupt(grey, "occlusion", 2) != 102
    assert hidden.all(dim=3).float().mean().item() == pytest.approx(0.09)
    assert data.corrupt(grey, "brightness", 2).unique().tolist() == [round(102 + 0.24 * 255)]
    with pytest.raises(ValueError, match="kind is 'fog'"):
        data.corrupt(grey, "fog", 1)


def test_a_small_study_is_run_once_and_drawn(tmp_path, monkeypatch, capsys):
    shutil.copy(study.FOLDER / "README.md", tmp_path)
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "LOSSES", ("softmax", "arcface"))
    monkeypatch.setattr(study_figures, "LOSSES", {loss: study_figures.LOSSES[loss] for loss in study.LOSSES})
    monkeypatch.setattr(study, "RECIPES", {"mnist": replace(study.RECIPES["mnist"], epochs=1, batch_size=100)})
    monkeypatch.setattr(study, "SEEDS", {"mnist": 2})
    monkeypatch.setattr(study_figures, "LEARNT", 0.0)
    monkeypatch.setattr(study, "SCALES", (8, 64))
    monkeypatch.setattr(study, "GRID_MARGINS", [0.0])
    monkeypatch.setattr(data, "VALIDATION", 100)
    monkeypatch.setattr(evaluation, "PAIRS", 400)
    made = data.synthetic("MNIST", train=500, test=200)
    monkeypatch.setattr(data, "load", lambda name, folder: made)
    draw_paper = paper_figures.draw
    monkeypatch.setattr(paper_figures, "draw", lambda records, folder: draw_paper(records, tmp_path / "paper"))
    assert study.main(["mnist"]) == 0
    names = sorted(path.stem for path in tmp_path.glob("*.json"))
    assert len(names) == 2 * 6 + 2 * 2 + 2 * 4 + 2 + 2
    record = json.loads((tmp_path / "losses-mnist-arcface-seed1.json").read_text())
    assert (record["loss"], record["seed"]) == ("arcface", 1) and 0 <= record["test_accuracy"] <= 1
    tried = [json.loads(path.read_text()) for path in tmp_path.glob("tuning-mnist-arcface-*.json")]
    best = max(run["test_accuracy"] for run in tried)
    keys = ("scale", "margin", "head_lr")
    assert [record[key] for key in keys] in [[run[key] for key in keys] for run in tried if run["test_accuracy"] == best]
    unseen = json.loads((tmp_path / "unseen-mnist-arcface-split1-seed0.json").read_text())["verification"]
    assert len(unseen["unseen"]) == 4 and not set(unseen["unseen"]) & {str(k) for k in study.classes_seen(1)}

    def fail(*arguments, **keywords):
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr(training, "train", fail)
    assert study.main(["mnist"]) == 0
    for picture in ("accuracy-mnist", "angles-mnist", "roc-mnist", "pairs-mnist", "noise-mnist", "scale-margin"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 10_000
    for picture in ("fig3-embeddings", "fig4a-angles", "fig4b-logits", "fig5-margins", "geometry"):
        assert (tmp_path / f"paper/{picture}.png").stat().st_size > 10_000
    assert "| ArcFace |" in (tmp_path / "README.md").read_text().split("<!-- losses-mnist -->")[1]


def test_a_collapsed_run_is_recorded_as_such(tmp_path, monkeypatch):
    def collapse(*arguments, **keywords):
        raise training.Diverged("nothing is learnt")

    monkeypatch.setattr(training, "train", collapse)
    task = study.Task("grid", "mnist", "arcface", 64.0, 0.8, 0.2, 1)
    source = data.synthetic("MNIST", train=6000, test=100)
    record, arrays = study.measure(task, source, tmp_path / "c.pt", torch.device("cpu"), "float32")
    assert record["collapsed"] == "nothing is learnt" and record["test_accuracy"] is None and not arrays
    whole = record | {"test_accuracy": 0.5, "angles": {"w_ec": 10.0}, "margin": 0.0}
    assert "collapsed" in study_figures.draw_grid([record, whole])._suptitle.get_text()
    assert "collapsed" in study_figures.tuning_table({"arcface": [record, whole]})


def test_a_split_on_which_a_run_collapsed_is_named_and_not_drawn():
    def run(split, seed, accuracy):
        figures = dict.fromkeys(("accuracy", "eer", "tar_1", "tar_01"), 0.25 * (1 + split + seed))
        return {"split": split, "seed": seed, "test_accuracy": accuracy} | ({"verification": figures} if accuracy else {})

    fine = [run(split, seed, 0.9) for seed in (0, 1) for split in (0, 1)]
    unseen = {"softmax": fine, "arcface": [run(0, 0, 0.4), *fine[1:]], "cm1": [run(0, 0, None), fine[1], run(0, 1, 0.2), fine[3]]}
    drawn = study_figures.learnt_by_all(unseen)
    assert list(drawn) == list(unseen) and all([record["split"] for record in runs] == [1, 1] for runs in drawn.values())
    softmax, arcface, cm1 = study_figures.unseen_table(unseen).splitlines()[2:]
    assert softmax.startswith("| softmax | 37.5 ± 158.8 | 62.5 ± 158.8 |")
    assert arcface.startswith("| ArcFace | 50.0 (1 collapsed) | 62.5 ± 158.8 |") and cm1.startswith("| CM1 | collapsed | 62.5 ±")


def test_only_seeds_that_every_loss_has_are_compared(tmp_path):
    for loss in study_figures.LOSSES:
        for seed in range(1 if loss == "cosface" else 2):
            record = {"loss": loss, "seed": seed, "split": None}
            (tmp_path / f"losses-cifar10-{loss}-seed{seed}.json").write_text(json.dumps(record))
    found = study_figures.compared(tmp_path, "losses", "cifar10")
    assert {loss: [run["seed"] for run in runs] for loss, runs in found.items()} == {loss: [0] for loss in study_figures.LOSSES}
    (tmp_path / "losses-cifar10-cosface-seed0.json").unlink()
    assert not study_figures.compared(tmp_path, "losses", "cifar10")


def test_an_unknown_data_set_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        study.main(["imagenet"])
    assert stop.value.code == 2 and "imagenet" in capsys.readouterr().err
