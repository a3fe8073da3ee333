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


def test_an_unknown_data_set_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        study.main(["imagenet"])
    assert stop.value.code == 2 and "imagenet" in capsys.readouterr().err
