"""Speed and memory, measured: python -m study.benchmark [head | step | muon | all | figures]

``head``: one forward and backward pass of the loss over C classes, beside the floor and beside
pytorch-metric-learning (in tests/requirements.txt). ``step``: one training step of CIFAR-10's
default recipe beside a plain PyTorch loop, and where its time goes. ``muon``: a step of PyTorch's
Muon and of ours, which need not be in bfloat16. Peak memory is that of a process of its own. The
methods take turns, and tables give medians, because machines are noisy. Whole trainings are timed
beside published ones by study/seeds.py.
Records, pictures and the tables of figures/benchmarks/README.md are written at the end; ``figures``
writes them from the records alone.
"""

import argparse
import io
import math
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import accumulate, product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor, nn
from tqdm import tqdm

import arcface_cifar10
from arcface_loss import ArcMarginProduct
from experiment import cli, errors, figures, machine, records
from experiment.augment import to_float
from experiment.data import Data
from experiment.errors import Problem
from experiment.figures import BLUE, GREEN, GREY, ORANGE, STYLE
from experiment.layers import Conv, Residual
from experiment.muon import Muon
from experiment.recipe import Recipe
from experiment.records import ROOT
from study.runs import arcface_settings
from study.seeds import machines
from study.tables import fill_file, markdown, mean_ci, paired_ratio
from study.tuning import operations
from study.yardstick import SKIPPED, YARDSTICKS

N, D = 512, 512  # batch and embedding size of the head's benchmark, the paper's
ROUNDS = {"head": 9, "step": 3, "muon": 3}
CLASSES = (10, 1_000, 10_000, 100_000, 1_000_000)
SIZES = [(classes, False) for classes in CLASSES]
SIZES.insert(1, (CLASSES[0], True))  # with memory kept, as in the scripts
HEADS = {
    "floor": "floor",
    "forward": "ours",
    "loss": "ours, head.loss()",
    "library": "pytorch-metric-learning",
}
BASELINES = ("floor", "library")  # that the others are compared with, round by round
STEPS = {
    "recipe": "ours",
    "unkept": "ours, memory not kept",  # without machine.keep_malloc_arenas()
    "recipe32": "ours, float32",
    "loop": "plain loop, float32",
}
STEP_IMAGES = 500  # in one of these steps
MUONS = {
    "torch": "torch.optim.Muon",
    "bfloat16": "ours, bfloat16",
    "float32": "ours, float32",
}
RUN_LABELS = {
    "mnist": "MNIST",
    "mnist-best": "MNIST, best",
    "cifar10": "CIFAR-10",
    "cifar10-best": "CIFAR-10, best",
}


# --- what is measured ----------------------------------------------------------------------------


def head_pass(method: str, classes: int, m: float = 0.5) -> Callable[[], Tensor]:
    """A forward and backward pass in float32, of N random embeddings of length D.

    Args:
        method: one of HEADS. m: the margin in radians, which the floor leaves out.

    Returns:
        A function that makes the loss and both gradients, and returns the loss.
    """
    torch.manual_seed(0)
    x, label = torch.randn(N, D, requires_grad=True), torch.randint(classes, (N,))
    head = ArcMarginProduct(D, classes, s=64.0, m=m)
    module: nn.Module = head
    compute: Callable[[], Tensor] = {
        "floor": lambda: F.cross_entropy(
            F.linear(64 * F.normalize(x), F.normalize(head.weight)), label
        ),
        "forward": lambda: F.cross_entropy(head(x, label), label),
        "loss": lambda: head.loss(x, label),
        "library": lambda: module(x, label),
    }[method]
    if method == "library":
        from pytorch_metric_learning.losses import ArcFaceLoss

        module = ArcFaceLoss(classes, D, margin=math.degrees(m), scale=64)
        module.W.data = head.weight.detach().T.contiguous()

    def once() -> Tensor:
        value = compute()
        value.backward()
        x.grad = None
        module.zero_grad(set_to_none=True)
        return value.detach()

    return once


class Plain(nn.Module):
    """CIFAR-10's network as it would be written without a thought for speed: the same layers and
    shapes."""

    def __init__(self) -> None:
        super().__init__()
        features = default_network().features
        assert isinstance(features, nn.Sequential)
        self.layers = nn.Sequential(nn.Conv2d(3, 24, 2), *map(self.plain, features))
        self.embedding = nn.Linear(256, 256)

    def plain(self, module: nn.Module) -> nn.Module:
        """PyTorch's own layer in place of one of experiment/layers.py."""
        match module:
            case Conv():
                return nn.Conv2d(module.in_channels, len(module.weight), 3, padding=1, bias=False)
            case nn.BatchNorm2d():
                return nn.BatchNorm2d(module.num_features)
            case Residual():
                return Residual(*map(self.plain, module))
        return module

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(self.layers(x).amax(dim=(2, 3)))


def default_network() -> arcface_cifar10.Network:
    """The network of CIFAR-10's default recipe."""
    recipe = arcface_cifar10.DEFAULT
    return arcface_cifar10.Network(recipe.embedding_size, **recipe.network)


def train_steps(method: str, steps: int, images: int = STEP_IMAGES) -> list[float]:
    """Seconds of each of the steps of a training on ``images`` random images of 32 × 32.

    Args:
        method: one of STEPS. steps: 20 at the most, as nothing can be learnt from such images.
    """
    torch.manual_seed(0)
    pixels = torch.randint(256, (images, 32, 32, 3), dtype=torch.uint8)
    label = torch.randint(10, (images,))
    if method == "loop":
        return plain_loop(pixels, label, steps)
    if method != "unkept":
        machine.keep_malloc_arenas()
    recipe = arcface_cifar10.DEFAULT
    recipe = replace(recipe, augmentation=recipe.augmentation | {"sizes": [32]})
    precision = "float32" if method == "recipe32" else "auto"
    return script_steps(recipe, pixels, label, steps, precision)


def script_steps(
    recipe: Recipe, pixels: Tensor, label: Tensor, steps: int, precision: str
) -> list[float]:
    """Seconds of each step of the script's train(), all of the given images in each: choice of
    images, augmentation, measurement and learning rates are part of it.

    An epoch has one step, so that the script's own clock, which stands still while the network is
    evaluated and saved, gives the time of a step.

    Args:
        steps: 20 at the most where the images are random, as nothing can be learnt from them.
    """
    names = [str(k) for k in range(10)]
    few = pixels[:10], label[:10]  # for the evaluation
    settings = arcface_settings(
        recipe,
        dataset="random",
        epochs=steps,
        batch_size=len(pixels),
        device="cpu",
        precision=machine.choose_precision(precision, torch.device("cpu")),
    )
    with TemporaryDirectory() as scratch, redirect_stdout(io.StringIO()):
        source = Data("random", names, pixels, label, *few, checksums={})
        trained = arcface_cifar10.train(recipe, settings, source, Path(scratch), False)
    return [epoch["seconds"] for epoch in trained.history]


def plain_loop(pixels: Tensor, label: Tensor, steps: int) -> list[float]:
    """Seconds of each step of the loop that most people would write, in float32."""
    network, head = Plain(), ArcMarginProduct(256, 10, s=8.0, m=0.1)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
    x = to_float(pixels).contiguous()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        F.cross_entropy(head(network(x), label), label).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return seconds


def head_memory(method: str, classes: int, kept: bool) -> int:
    """Peak memory, in bytes, of a process that makes two passes of :func:`head_pass`; with memory
    kept as in the scripts, or not."""
    if kept:
        machine.keep_malloc_arenas()
    once = head_pass(method, classes)
    once()
    once()
    return peak_bytes()


def head_rounds(classes: int, kept: bool, rounds: int) -> dict[str, list[float]]:
    """Seconds of a pass of each method in each round; with memory kept as in the scripts, or not.

    The methods take turns in one process, so that the times of a round are paired.
    """
    if kept:
        machine.keep_malloc_arenas()
    passes = {method: head_pass(method, classes) for method in HEADS}
    seconds: dict[str, list[float]] = {method: [] for method in HEADS}
    for number in range(-1, rounds):  # the first round allocates
        for method, once in passes.items():
            began, calls = time.perf_counter(), 0
            while calls < 1 or time.perf_counter() - began < 1:
                once()
                calls += 1
            if number >= 0:
                seconds[method].append((time.perf_counter() - began) / calls)
    return seconds


def measure_step(method: str, steps: int = 8, images: int = STEP_IMAGES) -> dict[str, float]:
    """Median seconds of a step over so many, and this process's peak memory in bytes."""
    seconds = train_steps(method, SKIPPED + steps, images)[SKIPPED:]
    return {"seconds": median(seconds), "peak_bytes": peak_bytes()}


def measure_muon(method: str, name: str) -> dict[str, float]:
    """Median seconds of a step of Muon on the filters of a default recipe, with random gradients.

    Args:
        method: one of MUONS. name: one of YARDSTICKS.
    """
    machine.keep_malloc_arenas()
    torch.manual_seed(0)
    script = YARDSTICKS[name].script
    recipe = script.DEFAULT
    network = script.Network(recipe.embedding_size, **recipe.network)
    filters = [module.weight for module in network.modules() if isinstance(module, Conv)]
    for matrix in filters:
        matrix.grad = torch.randn_like(matrix)
    rate = recipe.learning_rates["filters"]
    optimizer: torch.optim.Optimizer
    if method == "torch":
        optimizer = torch.optim.Muon(filters, lr=rate, **recipe.muon)
    else:
        optimizer = Muon(filters, lr=rate, precision=method, **recipe.muon)
    return {"seconds": measure(optimizer.step, 1)}


def measure(once: Callable[[], object], seconds: float) -> float:
    """Median seconds of a call over at least two calls and about so many seconds."""
    for _ in range(2):  # the first ones allocate
        once()
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    return median(times)


def peak_bytes() -> int:
    """The largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


KINDS = {  # of the operations of a step, in the order in which a name is looked up
    "convolution": ("convolution",),
    "BatchNorm": ("batch_norm",),
    "max-pool": ("max_pool", "fill_", "amax"),
    "GELU": ("gelu",),
    "Muon and SGD": ("addmm", "aten::mm", "lerp", "add_", "mul_", "vector_norm"),
}


def profile(method: str, steps: int = 3, images: int = STEP_IMAGES) -> dict[str, float]:
    """Seconds of one training step by kind of operation: the mean of so many steps.

    SGD's step is the last operation of each training step, so the time between two of them is that
    of one whole training step.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        train_steps(method, SKIPPED + steps, images)
    events = profiler.events() or []
    ends = [e.time_range.end for e in events if e.name == "Optimizer.step#SGD.step"]
    first, last = sorted(ends)[SKIPPED - 1], max(ends)
    shares = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in events:
        if first < event.time_range.end <= last:
            shares[kind_of(event.name)] += event.self_cpu_time_total / 1e6 / steps
    return shares


def kind_of(operation: str) -> str:
    """Which of KINDS an operation of the profiler belongs to."""
    for kind, names in KINDS.items():
        if any(name in operation for name in names):
            return kind
    return "the rest"


def arithmetic() -> dict[str, Any]:
    """Operations of the convolutions of one training step, and the machine's rates in operations a
    second."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(4096, 4096).to(dtype) for _ in range(2))
        seconds = measure(lambda a=a, b=b: a @ b, 3)  # type: ignore[misc]
        rates[str(dtype).removeprefix("torch.")] = 2 * 4096**3 / seconds
    of_an_image = operations(arcface_cifar10.DEFAULT, 32)
    return {"step_operations": STEP_IMAGES * of_an_image, "matrix_rate": rates}


# --- running, recording --------------------------------------------------------------------------


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), called in a new process, so that its peak memory is its own.

    Raises Problem if the process is killed.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise Problem(
                f"{arguments} was killed: too little memory? The other figures stay as they were."
            ) from error


def alternate(function: Callable, tasks: list[tuple], rounds: int) -> list[dict]:
    """function(*task) for each task by turns; medians over the rounds."""
    found: dict[tuple, list[dict[str, float]]] = {task: [] for task in tasks}
    for task in tqdm(tasks * rounds, unit="run", disable=not sys.stderr.isatty()):
        found[task].append(in_process(function, *task))
    return [
        {"task": task, "rounds": rounds} | {k: median(run[k] for run in runs) for k in runs[0]}
        for task, runs in found.items()
    ]


def head(rounds: int) -> dict[str, Any]:
    """The head at every number of classes.

    Times are taken by turns in one process, peak memory in a process for each method.
    """
    runs = []
    for size in tqdm(SIZES, unit="size", disable=not sys.stderr.isatty()):
        seconds = in_process(head_rounds, *size, rounds)
        for method in HEADS:
            memory = in_process(head_memory, method, *size)
            ratios = {other: paired_ratio(seconds[method], seconds[other]) for other in BASELINES}
            run = {"task": (method, *size), "rounds": rounds, "peak_bytes": memory}
            runs.append(run | {"seconds": median(seconds[method]), "ratios": ratios})
    return {"runs": runs}


def step(rounds: int) -> dict[str, Any]:
    """The training step, its profile, and the machine's own rates."""
    runs = alternate(measure_step, [(method,) for method in STEPS], rounds)
    profiles = {method: in_process(profile, method) for method in STEPS}
    precision = machine.choose_precision("auto", torch.device("cpu"))
    return {"runs": runs, "profile": profiles, "precision": precision} | in_process(arithmetic)


def muon(rounds: int) -> dict[str, Any]:
    """Steps of Muon, on the filters of both default recipes; what the scripts would compute in."""
    precision = machine.choose_precision("auto", torch.device("cpu"))
    runs = alternate(measure_muon, list(product(MUONS, YARDSTICKS)), rounds)
    return {"runs": runs, "precision": precision}


# --- records to tables and pictures ---------------------------------------------------------------


def head_table(record: dict) -> str:
    """Milliseconds and peak memory against the number of classes, and the paired ratio to the
    floor's time with its interval."""
    found = {tuple(run["task"]): run for run in record["runs"]}
    lines = []
    for classes, kept in SIZES:
        cells = []
        for method in HEADS:
            run = found[method, classes, kept]
            middle, low, high = run["ratios"]["floor"]
            ratio = "" if method == "floor" else f" ({middle:.2f}×, {low:.2f} to {high:.2f})"
            memory = run["peak_bytes"] / 2**30
            cells.append(f"{1000 * run['seconds']:,.1f} ms{ratio}, {memory:.2f} GiB")
        lines.append([f"{classes:,}, memory kept" if kept else f"{classes:,}", *cells])
    return markdown(["C", *HEADS.values()], lines)


def step_table(record: dict) -> str:
    """Milliseconds of a training step by kind of operation, and the rate of its convolutions."""
    found = {run["task"][0]: run["seconds"] for run in record["runs"]}
    profiles = [record["profile"][method] for method in STEPS]
    total = [f"**{1000 * found[method]:,.0f} ms**" for method in STEPS]
    lines = [[f"**a step of {STEP_IMAGES} images**", *total]]
    for kind in profiles[0]:
        lines.append([kind, *(f"{1000 * shares[kind]:,.0f} ms" for shares in profiles)])
    rates = [record["step_operations"] / shares["convolution"] / 1e12 for shares in profiles]
    lines.append(["rate of the convolutions", *(f"{rate:.2f} TFLOP/s" for rate in rates)])
    shares = []
    for rate, name in zip(rates, STEPS.values(), strict=True):
        precision = "float32" if "float32" in name else record["precision"]
        peak = record["matrix_rate"][precision] / 1e12
        shares.append(f"{rate / peak:.0%} of {peak:.2f} TFLOP/s")
    lines.append(["of the rate of a 4096 × 4096 matrix product", *shares])
    return markdown(["", *STEPS.values()], lines)


def muon_table(record: dict) -> str:
    """Milliseconds of a step of Muon."""
    found = {tuple(run["task"]): run["seconds"] for run in record["runs"]}
    lines = [
        [RUN_LABELS[name], *(f"{1000 * found[method, name]:,.1f} ms" for method in MUONS)]
        for name in YARDSTICKS
    ]
    return markdown(["", *MUONS.values()], lines)


def yardstick_table(root: Path) -> str:
    """Seconds of our trainings, from the records of their seeds, and of the published ones."""
    lines = []
    for file, (name, published) in product(("seeds", "float32"), YARDSTICKS.items()):
        runs = records.load_json(root / "figures" / name / f"{file}.json")
        timed = [run for run in runs if "yardstick_seconds" in run]
        theirs = [run["yardstick_seconds"] for run in timed]
        ratios = [run["train_seconds"] / run["yardstick_seconds"] for run in timed]
        line = [f"{RUN_LABELS[name]}, n = {len(runs)}"]
        line += [f"{mean_ci([run['train_seconds'] for run in runs], 0)} s"]
        line += [f"{published.name}, {published.steps:,} steps", f"{mean_ci(theirs, 0)} s"]
        lines.append([*line, mean_ci(ratios, 2), machines(runs)])
    head = ["", "our default recipe", "the published training", "its time here", "ratio"]
    return markdown([*head, "machine, our precision"], lines)


def draw_head(record: dict) -> plt.Figure:
    """Time, as a ratio to the floor's (with memory kept where that was measured), and peak memory
    of the head against the number of classes."""
    figure, axes = plt.subplots(1, 2, figsize=(6.3, 2.7))
    found = {tuple(run["task"]): run for run in record["runs"]}
    for (method, name), colour, marker in zip(
        HEADS.items(), (GREY, BLUE, GREEN, ORANGE), "os^D", strict=True
    ):
        sizes = [(classes, (classes, True) in SIZES) for classes in CLASSES]
        ratios = [found[method, *size]["ratios"]["floor"][0] for size in sizes]
        memory = [found[method, classes, False]["peak_bytes"] / 2**30 for classes in CLASSES]
        axes[0].semilogx(CLASSES, ratios, marker=marker, color=colour, label=name)
        axes[1].loglog(CLASSES, memory, marker=marker, color=colour)
    loss, forward = (found[name, CLASSES[-1], False]["peak_bytes"] for name in ("loss", "forward"))
    axes[0].set(
        title="Time of a forward and backward pass", ylabel="times the floor's", ylim=(0, None)
    )
    axes[1].set(
        title=f"Memory at C = 10⁶: {1 - loss / forward:.0%} less by head.loss()",
        ylabel="peak of the process, GiB",
    )
    for axis in axes:
        axis.set(xlabel="classes C", xticks=CLASSES)
        axis.xaxis.set_minor_locator(NullLocator())
    axes[1].yaxis.set_major_locator(FixedLocator((1, 2, 4, 8, 16)))
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].yaxis.set_minor_locator(NullLocator())
    axes[0].legend()
    return figure


def draw_accuracy(runs: Path) -> plt.Figure:
    """Test error against seconds of training, for the runs whose folders are in ``runs``."""
    figure, axes = plt.subplots(figsize=(6.3, 3.6))
    colours = (BLUE, BLUE, ORANGE, ORANGE)
    for (name, label), colour, marker in zip(RUN_LABELS.items(), colours, "o^s^", strict=True):
        path = runs / name / "run.json"
        if path.exists():
            history = records.load_json(path)["history"]
            times = accumulate(epoch["seconds"] for epoch in history)
            tested = [
                (time, 100 * (1 - epoch["test_accuracy"]))
                for time, epoch in zip(times, history, strict=True)
                if epoch["test_accuracy"] is not None
            ]
            seconds, error = zip(*tested, strict=True)
            line = "--" if name.endswith("best") else "-"
            style = {"color": colour, "marker": marker}
            text = f"{label}: {100 - error[-1]:.2f}%"
            axes.loglog(seconds, error, label=text, linestyle=line, **style)
    axes.set(xlabel="seconds of training", ylabel="test error in %")
    axes.set(title="Test error against time, seed 0")
    for axis, ticks in (
        (axes.xaxis, (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)),
        (axes.yaxis, (0.2, 0.5, 1, 2, 5, 10, 20, 50)),
    ):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.legend(title="accuracy at the end", loc="center left", bbox_to_anchor=(0, 0.6))
    return figure


def write(root: Path) -> None:
    """Draw the pictures and fill the tables of the README beside the records, from these alone.

    Raises:
        Problem: a record or a table's place is missing, or a file cannot be written.
    """
    folder = root / "figures" / "benchmarks"
    heads, steps, muons = (records.load_json(folder / f"{name}.json") for name in ROUNDS)
    with records.showing(folder), plt.rc_context(STYLE):
        tables = {"head": head_table(heads), "step": step_table(steps), "muon": muon_table(muons)}
        fill_file(folder / "README.md", tables | {"yardstick": yardstick_table(root)})
        figures.save(draw_head(heads), folder / "head.png")
        figures.save(draw_accuracy(root / "figures"), folder / "accuracy.png")


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Measure what is asked for, then draw. Returns the exit status.

    Args:
        root: the folder of figures/.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("what", nargs="?", choices=(*ROUNDS, "all", "figures"), default="all")
    usual = ", ".join(f"{value} for {part}" for part, value in ROUNDS.items())
    add("--rounds", type=cli.number(int, 1, 1000), metavar="N", help=f"turns (default: {usual})")

    def work() -> None:
        options = parser.parse_args(argv)
        about = {"device_name": machine.device_name(torch.device("cpu"))}
        for part in (head, step, muon):
            name = part.__name__
            if options.what in (name, "all"):
                found = part(options.rounds or ROUNDS[name])
                record = about | {"versions": machine.versions()} | found
                records.save_json(root / f"figures/benchmarks/{name}.json", record)
        write(root)

    return errors.exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
