"""Several processes under torchrun: together they train, measure and record as one does."""

import os
import subprocess
import sys

import pytest
import torch

from experiment import records

pytestmark = pytest.mark.slow

# A linear embedding without BatchNorm, whose statistics each process has for itself: what is left
# is the same computation as in one process, summed in another order.
PROGRAM = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
import arcface_mnist
from arcface_loss import ArcMarginProduct
from experiment import synthetic
from experiment.recipe import Settings
from experiment.training import Training

if "RANK" in os.environ:
    dist.init_process_group("gloo")
torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 16))
head = ArcMarginProduct(16, 10, s=8.0, m=0.1)
optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.05, momentum=0.85)
recipe = replace(arcface_mnist.DEFAULT, hardest=0.5, full_epochs=[1, 1])
settings = Settings(dataset="synthetic", loss="arcface", scale=8.0, margin=0.1, embedding_size=16,
                    epochs=3, batch_size=60, seed=0, device="cpu", precision="float32", threads=1)
data = synthetic.make("MNIST", train=600, test=200)
training = Training(network, head, [optimizer], recipe, settings, data, Path(sys.argv[1]), False)
for epoch in training.epochs():
    for batch in training.batches(epoch):
        logits, embeddings = training.model(batch.images.permute(0, 3, 1, 2) / 255, batch.label)
        losses = F.cross_entropy(logits, batch.label, reduction="none")
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        training.measure(batch, losses, logits, embeddings)
rank = training.rank
name = "result" if rank == 0 else f"result-{rank}"
own = {"seen": training.seen, "last_loss": training.last_loss, "model": network.state_dict()}
torch.save(own | {"snapshots": training.result().snapshots}, Path(sys.argv[1]) / f"{name}.pt")
if training.world > 1:
    del training, logits, losses  # they hold the process group
    dist.barrier()
    dist.destroy_process_group()
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def start(*command) -> str:
    """Run a command to its end with one thread a process; what it printed."""
    environment = os.environ | {"PYTHONPATH": str(records.ROOT), "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_train_and_measure_as_one_does(tmp_path):
    """Weights, figures, snapshots and the losses that choose the images, of one process and two."""
    program, one, two = (tmp_path / name for name in ("program.py", "one", "two"))
    program.write_text(PROGRAM)
    for folder in (one, two):
        folder.mkdir()
    assert start(sys.executable, program, one).count("epoch   1/3") == 1
    assert start(*TORCHRUN, program, two).count("epoch   1/3") == 1  # only rank 0 prints

    histories = [records.load_torch(folder / "checkpoint.pt")["history"] for folder in (one, two)]
    for single, several in zip(*histories, strict=True):
        assert single.keys() == several.keys()
        for key in single.keys() - {"seconds"}:
            assert several[key] == pytest.approx(single[key], abs=2e-5)
    assert histories[0][0]["train_loss"] > histories[0][2]["train_loss"] + 0.05

    alone, first, second = (
        records.load_torch(path)
        for path in (one / "result.pt", two / "result.pt", two / "result-1.pt")
    )
    assert alone["snapshots"].shape == (3, 8 * 60, 2)
    assert set(alone["seen"].tolist()) == {2, 3}  # half the images were left out once
    for found in (first, second):
        for key, weight in alone["model"].items():
            assert torch.allclose(found["model"][key], weight, atol=1e-4)
        assert torch.allclose(found["snapshots"], alone["snapshots"], atol=1e-3)
        assert torch.allclose(found["last_loss"], alone["last_loss"], atol=1e-3)
        assert torch.equal(found["seen"], alone["seen"])
    for key in ("last_loss", "snapshots"):  # the processes choose by the very same numbers
        assert torch.equal(first[key], second[key])


def test_the_script_trains_with_two_processes_and_records_once(tmp_path):
    arguments = ["--data", "synthetic", "--epochs", "3", "--batch-size", "200", "--device", "cpu"]
    script = records.ROOT / "arcface_mnist.py"
    printed = start(*TORCHRUN, script, *arguments, "--out", tmp_path)
    assert printed.count("epoch   1/3") == printed.count("Test accuracy ") == 1
    record = records.load_json(tmp_path / "run.json")
    assert record["processes"] == 2 and record["test_accuracy"] > 0.8
    assert len(record["history"]) == 3 and not (tmp_path / "checkpoint.pt").exists()
    again = start(*TORCHRUN, script, *arguments, "--out", tmp_path, "--resume")
    assert again.count("is finished") == 1
