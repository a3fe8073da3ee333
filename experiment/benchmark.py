"""Speed and memory, measured: python -m experiment.benchmark [head | step | figures]

``head``: one forward and backward pass of the loss over C classes, beside the floor and beside
pytorch-metric-learning (in tests/requirements.txt). ``step``: one training step of CIFAR-10's default recipe beside
a plain PyTorch loop, and where its time goes. Every measurement is a process of its own, so that its peak memory is
its own; the methods take turns, and tables give medians, because machines are noisy. Records, pictures and the
tables of figures/benchmarks/README.md and of the README are written at the end; ``figures`` writes them from the records alone.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from statistics import median

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import arcface_cifar10
from arcface_loss import ArcMarginProduct
from experiment import figures, records
from experiment.data import to_float
from experiment.evaluation import autocast
from experiment.figures import BLUE, GREEN, GREY, ORANGE, STYLE
from experiment.layers import Conv, Residual
from experiment.records import ROOT, Problem
from experiment.training import choose_precision, keep_memory, make_optimizers

FOLDER = ROOT / "figures" / "benchmarks"
README = ROOT / "README.md"  # which quotes the head's table
N, D = 512, 512  # batch and embedding size of the head's benchmark, the paper's
CLASSES = (10, 1_000, 10_000, 100_000, 1_000_000)
HEADS = {"floor": "floor", "plain": "ours", "chunked": "ours, head.loss()", "library": "pytorch-metric-learning"}
STEPS = {
    "recipe": "ours",
    "unkept": "ours, memory not kept",  # without training.keep_memory()
    "recipe32": "ours, float32",
    "loop": "plain loop, float32",
}
BATCH = 500
RUNS = {"mnist": "MNIST", "mnist-best": "MNIST, best", "cifar10": "CIFAR-10", "cifar10-best": "CIFAR-10, best"}


# --- what is measured ----------------------------------------------------------------------------


def head_pass(method: str, classes: int) -> Callable[[], None]:
    """One forward and backward pass: loss and both gradients, in float32, of N random embeddings of length D."""
    torch.manual_seed(0)
    x, label = torch.randn(N, D, requires_grad=True), torch.randint(classes, (N,))
    if method == "library":
        from pytorch_metric_learning.losses import ArcFaceLoss

        module = ArcFaceLoss(classes, D, margin=28.6, scale=64)  # its margin is in degrees
        compute = lambda: module(x, label)  # noqa: E731
    else:
        module = ArcMarginProduct(D, classes, s=64.0, m=0.5)
        compute = {
            "floor": lambda: F.cross_entropy(F.linear(64 * F.normalize(x), F.normalize(module.weight)), label),
            "plain": lambda: F.cross_entropy(module(x, label), label),
            "chunked": lambda: module.loss(x, label),
        }[method]

    def once() -> None:
        compute().backward()
        x.grad = None
        module.zero_grad(set_to_none=True)

    return once


class Plain(nn.Module):
    """CIFAR-10's network as it would be written without a thought for speed: the same layers and shapes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 24, 2), nn.GELU(), *map(self.plain, arcface_cifar10.Network(256).features))
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


def training_step(method: str) -> Callable[[], None]:
    """One training step on BATCH random images: forward, backward, optimizers."""
    torch.manual_seed(0)
    if method in ("recipe", "recipe32"):
        keep_memory()
    images, label = torch.randint(256, (BATCH, 32, 32, 3), dtype=torch.uint8), torch.randint(10, (BATCH,))
    head = ArcMarginProduct(256, 10, s=8.0, m=0.1)
    if method == "loop":
        network, precision = Plain(), "float32"
        x = to_float(images).contiguous()
        optimizers = [torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.1, momentum=0.9, nesterov=True)]
    else:
        network = arcface_cifar10.Network(256).to(memory_format=torch.channels_last)
        precision = "float32" if method == "recipe32" else choose_precision("auto", torch.device("cpu"))
        x = to_float(images)
        optimizers = make_optimizers(arcface_cifar10.DEFAULT.learning_rates, network, head)

    def once() -> None:
        with autocast(x.device, precision):
            embeddings = network(x)
        F.cross_entropy(head(embeddings.float(), label), label).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return once


def measure_head(method: str, classes: int) -> dict:
    """Seconds and peak memory of :func:`head_pass`."""
    return measure(head_pass(method, classes), 1)


def measure_step(method: str) -> dict:
    """Seconds and peak memory of :func:`training_step`."""
    return measure(training_step(method), 5)


def measure(once: Callable[[], None], seconds: float) -> dict:
    """Median seconds of a call over at least two calls and about so many seconds, and this process's peak memory."""
    for _ in range(2):  # the first ones allocate
        once()
    times = []
    while len(times) < 2 or sum(times) < seconds:
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    return {"seconds": median(times), "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


KINDS = {  # of the operations of a step, in the order in which a name is looked up
    "convolution": ("convolution",),
    "BatchNorm": ("batch_norm",),
    "max-pool": ("max_pool", "fill_", "amax"),
    "GELU": ("gelu",),
    "Muon and SGD": ("addmm", "aten::mm", "lerp", "add_", "mul_", "vector_norm"),
}


def profile(method: str) -> dict[str, float]:
    """Seconds of one training step by kind of operation."""
    once = training_step(method)
    for _ in range(3):
        once()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        once()
    shares = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "the rest")
        shares[kind] += event.self_cpu_time_total / 1e6
    return shares


def arithmetic() -> dict[str, float]:
    """Operations of the convolutions of one training step, and the machine's rates in operations a second."""
    network = arcface_cifar10.Network(256)
    with FlopCounterMode(display=False) as counter:
        network(torch.rand(1, 3, 32, 32)).sum().backward()
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(4096, 4096).to(dtype) for _ in range(2))
        rates[str(dtype).removeprefix("torch.")] = 2 * 4096**3 / measure(lambda a=a, b=b: a @ b, 3)["seconds"]
    return {"step_operations": BATCH * counter.get_total_flops(), "matrix_rate": rates}


# --- running, recording --------------------------------------------------------------------------


def in_process(function: Callable, *arguments) -> object:
    """function(*arguments), called in a new process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise Problem(f"{arguments} was killed: too little memory? The other figures stay as they were.") from error


def alternate(function: Callable, tasks: list[tuple], rounds: int) -> list[dict]:
    """function(*task) for each task by turns; medians over the rounds."""
    found = {task: [] for task in tasks}
    for task in tqdm(tasks * rounds, unit="run", disable=not sys.stderr.isatty()):
        found[task].append(in_process(function, *task))
    return [
        {"task": task, "rounds": rounds} | {k: median(run[k] for run in runs) for k in runs[0]} for task, runs in found.items()
    ]


def head(rounds: int) -> dict:
    """The head at every number of classes."""
    return {"runs": alternate(measure_head, [(method, classes) for classes in CLASSES for method in HEADS], rounds)}


def step(rounds: int) -> dict:
    """The training step, its profile, and the machine's own rates."""
    runs = alternate(measure_step, [(method,) for method in STEPS], rounds)
    profiles = {method: in_process(profile, method) for method in STEPS}
    precision = choose_precision("auto", torch.device("cpu"))
    return {"runs": runs, "profile": profiles, "precision": precision} | in_process(arithmetic)


# --- records to tables and pictures ---------------------------------------------------------------


def head_table(record: dict) -> str:
    """Milliseconds and peak memory against the number of classes, and the ratio to the floor."""
    found = {tuple(run["task"]): run for run in record["runs"]}
    lines = []
    for classes in CLASSES:
        floor = found["floor", classes]["seconds"]
        cells = []
        for method in HEADS:
            run = found[method, classes]
            ratio = "" if method == "floor" else f" ({run['seconds'] / floor:.2f}×)"
            cells.append(f"{1000 * run['seconds']:,.1f} ms{ratio}, {run['peak_bytes'] / 2**30:.2f} GiB")
        lines.append([f"{classes:,}", *cells])
    return records.markdown(["C", *HEADS.values()], lines)


def step_table(record: dict) -> str:
    """Milliseconds of a training step by kind of operation, and the rate of its convolutions."""
    found = {run["task"][0]: run["seconds"] for run in record["runs"]}
    lines = [[f"**a step of {BATCH} images**", *(f"**{1000 * found[method]:,.0f} ms**" for method in STEPS)]]
    profiles = [record["profile"][method] for method in STEPS]
    lines += [[kind, *(f"{1000 * shares[kind]:,.0f} ms" for shares in profiles)] for kind in profiles[0]]
    rates = [record["step_operations"] / shares["convolution"] / 1e12 for shares in profiles]
    lines.append(["rate of the convolutions", *(f"{rate:.2f} TFLOP/s" for rate in rates)])
    peaks = [record["matrix_rate"]["float32" if "float32" in name else record["precision"]] / 1e12 for name in STEPS.values()]
    shares = [f"{rate / peak:.0%} of {peak:.2f} TFLOP/s" for rate, peak in zip(rates, peaks, strict=True)]
    lines.append(["of the rate of a 4096 × 4096 matrix product", *shares])
    return records.markdown(["", *STEPS.values()], lines)


def draw_head(record: dict) -> plt.Figure:
    """Time, as a ratio to the floor's, and peak memory of the head against the number of classes."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.8))
    found = {tuple(run["task"]): run for run in record["runs"]}
    for (method, name), colour, marker in zip(HEADS.items(), (GREY, BLUE, GREEN, ORANGE), "os^D", strict=True):
        ratios = [found[method, classes]["seconds"] / found["floor", classes]["seconds"] for classes in CLASSES]
        memory = [found[method, classes]["peak_bytes"] / 2**30 for classes in CLASSES]
        axes[0].semilogx(CLASSES, ratios, marker=marker, color=colour, label=name)
        axes[1].loglog(CLASSES, memory, marker=marker, color=colour)
    most = CLASSES[-1]
    saved = 1 - found["chunked", most]["peak_bytes"] / found["plain", most]["peak_bytes"]
    axes[0].set(title="Time of a forward and backward pass", ylabel="times the floor's", ylim=(0, None))
    axes[1].set(title=f"Memory at C = 10⁶: {saved:.0%} less by head.loss()", ylabel="peak of the process, GiB")
    for axis in axes:
        axis.set(xlabel="classes C", xticks=CLASSES)
        axis.xaxis.set_minor_locator(NullLocator())
    axes[1].yaxis.set_major_locator(FixedLocator((1, 2, 4, 8, 16)))
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].yaxis.set_minor_locator(NullLocator())
    axes[0].legend()
    return figure


def draw_accuracy() -> plt.Figure:
    """Test accuracy against seconds of training, for the runs on disk."""
    figure, axes = plt.subplots()
    for (folder, name), colour, marker in zip(RUNS.items(), (BLUE, BLUE, ORANGE, ORANGE), "o^s^", strict=True):
        path = ROOT / "figures" / folder / "run.json"
        if path.exists():
            history = records.load_json(path)["history"]
            seconds = torch.tensor([entry["seconds"] for entry in history]).cumsum(0)
            error = [100 * (1 - entry["test_accuracy"]) for entry in history]
            line = {"color": colour, "linestyle": "--" if folder.endswith("best") else "-", "marker": marker, "markersize": 4}
            axes.loglog(seconds, error, label=f"{name}: {100 - error[-1]:.2f}%", **line)
    axes.set(xlabel="seconds of training", ylabel="test error in %", title="Test error against time, seed 0")
    for axis, ticks in (
        (axes.xaxis, (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)),
        (axes.yaxis, (0.2, 0.5, 1, 2, 5, 10, 20, 50)),
    ):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.legend(title="accuracy at the end", loc="center left", bbox_to_anchor=(0, 0.6))
    return figure


def write() -> None:
    """Draw the pictures and fill the tables of the README beside them, from the records alone."""
    heads, steps = (records.load_json(FOLDER / f"{name}.json") for name in ("head", "step"))
    records.fill_file(FOLDER / "README.md", {"head": head_table(heads), "step": step_table(steps)})
    records.fill_file(README, {"head": head_table(heads)})
    with plt.rc_context(STYLE):
        figures.save(draw_head(heads), FOLDER / "head.png")
        figures.save(draw_accuracy(), FOLDER / "accuracy.png")


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked for, then draw. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("head", "step", "all", "figures"), default="all", help="default: all")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each method (default: 3)")
    options = parser.parse_args(argv)
    machine = {"device_name": records.device_name(torch.device("cpu")), "versions": records.versions()}

    def work() -> None:
        for part in (head, step):
            if options.what in (part.__name__, "all"):
                records.save_json(FOLDER / f"{part.__name__}.json", machine | part(options.rounds))
        write()

    return records.exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
