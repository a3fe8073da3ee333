"""The benchmark times the script's own step, and its tables are those of its records."""

import os
import shutil

import matplotlib.pyplot as plt
import pytest
import torch

import arcface_cifar10
import arcface_mnist
from experiment import muon, records
from study import benchmark, tables, tuning

FOLDER = records.ROOT / "figures" / "benchmarks"

# --- the head -------------------------------------------------------------------------------------


def test_all_heads_make_the_same_loss():
    """Without a margin the floor's too, which has none."""
    with_margin, without = (
        {name: benchmark.head_pass(name, 10, m)().item() for name in benchmark.HEADS}
        for m in (0.5, 0.0)
    )
    assert list(without.values()) == pytest.approx([without["floor"]] * 4, rel=1e-5)
    floor = with_margin.pop("floor")
    assert list(with_margin.values()) == pytest.approx([with_margin["loss"]] * 3, rel=1e-5)
    assert floor == pytest.approx(without["floor"]) and floor < min(with_margin.values())


def test_the_times_of_the_heads_are_paired_by_round():
    found = benchmark.head_rounds(10, False, 2)
    assert found.keys() == set(benchmark.HEADS) and all(len(t) == 2 for t in found.values())
    assert min(min(times) for times in found.values()) > 0


# --- the step -------------------------------------------------------------------------------------


def test_the_plain_network_has_the_recipe_s_layers():
    ours, plain = benchmark.default_network(), benchmark.Plain()
    shapes = [tuple(network(torch.rand(2, 3, 32, 32)).shape) for network in (ours, plain)]
    assert shapes == [(2, 256), (2, 256)]
    count = [sum(p.numel() for p in net.parameters() if p.ndim > 1) for net in (ours, plain)]
    assert count[0] == count[1]


def test_the_step_is_that_of_the_script(monkeypatch):
    """One call of the script's train(), with its default recipe but for the size of the images."""
    calls, train = [], benchmark.arcface_cifar10.train

    def spy(recipe, settings, data, out, resume):
        calls.append((recipe, settings, data, resume))
        return train(recipe, settings, data, out, resume)

    monkeypatch.setattr(benchmark.arcface_cifar10, "train", spy)
    seconds = benchmark.train_steps("recipe32", 2, images=8)
    assert len(seconds) == 2 and min(seconds) > 0
    ((recipe, settings, data, resume),) = calls
    default = benchmark.arcface_cifar10.DEFAULT
    changed = {key for key in vars(default) if vars(default)[key] != vars(recipe)[key]}
    assert changed == {"augmentation"} and recipe.augmentation["sizes"] == [32]
    assert (settings.precision, settings.batch_size, settings.epochs) == ("float32", 8, 2)
    assert len(data.train_images) == 8 and not resume


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("recipe", ["kept", "auto"]),
        ("unkept", ["auto"]),
        ("recipe32", ["kept", "float32"]),
        ("loop", ["plain"]),
    ],
)
def test_methods_differ_in_memory_and_precision(method, expected, monkeypatch):
    found = []
    monkeypatch.setattr(benchmark.machine, "keep_malloc_arenas", lambda: found.append("kept"))
    monkeypatch.setattr(benchmark, "script_steps", lambda *arguments: found.append(arguments[-1]))
    monkeypatch.setattr(benchmark, "plain_loop", lambda *arguments: found.append("plain"))
    benchmark.train_steps(method, 1, images=1)
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("method", benchmark.STEPS)
def test_each_step_is_measured_and_profiled(method):
    found = benchmark.measure_step(method, steps=1, images=8)
    assert found["seconds"] > 0 and found["peak_bytes"] > 1e7
    shares = benchmark.profile(method, steps=1, images=8)
    assert shares.keys() == {*benchmark.KINDS, "the rest"} and min(shares.values()) > 0


def test_the_profile_is_of_the_steps_after_the_first_two(monkeypatch):
    """The first two steps have a hundred times GELU, the others three times."""
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def steps(method, count, images):
        for step in range(count):
            for _ in range(3 if step >= 2 else 100):
                torch.nn.functional.gelu(weight.detach())
            weight.grad = torch.ones(2, 2)
            optimizer.step()

    whole = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: whole)
    monkeypatch.setattr(benchmark, "train_steps", steps)
    shares = benchmark.profile("any", steps=4)
    gelu = [event for event in whole.events() if event.name == "aten::gelu"]
    assert len(gelu) == 2 * 100 + 4 * 3
    last = sorted(gelu, key=lambda event: event.time_range.start)[-12:]
    expected = sum(event.self_cpu_time_total for event in last) / 1e6 / 4
    assert shares["GELU"] == pytest.approx(expected)
    assert shares["convolution"] == 0


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::convolution_backward", "convolution"),
        ("aten::native_batch_norm_backward", "BatchNorm"),
        ("aten::max_pool2d_with_indices", "max-pool"),
        ("aten::gelu_backward", "GELU"),
        ("aten::addmm", "Muon and SGD"),
        ("aten::index", "the rest"),
    ],
)
def test_operations_have_their_kind(operation, kind):
    assert benchmark.kind_of(operation) == kind


def test_the_operations_of_a_step_are_those_of_its_convolutions():
    layers = [
        (24, 3, 2, 31),
        (64, 24, 3, 31),
        (64, 64, 3, 15),
        (256, 64, 3, 15),
        *2 * [(256, 256, 3, 7)],
        (256, 256, 3, 3),
    ]
    forward = [2 * out * into * kernel**2 * size**2 for out, into, kernel, size in layers]
    # The whitening layer is not trained; the embedding layer is a matrix of 256 × 256.
    expected = forward[0] + 3 * sum(forward[1:]) + 3 * 2 * 256 * 256
    assert tuning.operations(arcface_cifar10.DEFAULT, 32) == pytest.approx(expected, rel=0.02)


def test_muon_is_timed_on_the_filters_of_the_script(monkeypatch):
    """Each of the methods changes them, and all by the same up to bfloat16's rounding."""
    found = {}

    def once(step, seconds):
        step()
        group = step.__self__.param_groups[0]
        found[type(step.__self__), group["lr"]] = shapes = [*map(len, group["params"])]
        matrices.append(torch.cat([matrix.detach().flatten() for matrix in group["params"]]))
        assert shapes[:2] == [32, 64]
        return 1.0

    matrices = []
    monkeypatch.setattr(benchmark, "measure", once)
    for method in benchmark.MUONS:
        assert benchmark.measure_muon(method, "mnist") == {"seconds": 1.0}
    assert found == {
        (kind, arcface_mnist.DEFAULT.learning_rates["filters"]): [32, 64, 64, 128, 128]
        for kind in (torch.optim.Muon, muon.Muon)
    }
    assert torch.equal(matrices[0], matrices[1]) and not torch.equal(matrices[1], matrices[2])
    assert (matrices[1] - matrices[2]).norm() < 0.01 * matrices[1].norm()


# --- taking turns, records ------------------------------------------------------------------------


def test_methods_take_turns(monkeypatch):
    calls = []

    def call(function, *task):
        calls.append(task)
        return function(*task)

    monkeypatch.setattr(benchmark, "in_process", call)
    seconds = {("a",): [3.0, 1.0, 2.0], ("b",): [9.0, 7.0, 8.0]}
    tasks = [("a",), ("b",)]
    found = benchmark.alternate(lambda name: {"seconds": seconds[name,].pop()}, tasks, 3)
    assert calls == tasks * 3
    assert [(run["task"], run["seconds"]) for run in found] == [(("a",), 2.0), (("b",), 8.0)]


def test_a_measurement_is_a_process_of_its_own():
    assert benchmark.in_process(os.getpid) != os.getpid()


def test_the_tables_are_those_of_the_records():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert tables.fill(text, "yardstick", benchmark.yardstick_table(records.ROOT)) == text
    for name in ("head", "step", "muon"):
        table = getattr(benchmark, f"{name}_table")(records.load_json(FOLDER / f"{name}.json"))
        assert tables.fill(text, name, table) == text


def test_the_picture_of_accuracy_has_the_seconds_of_the_records(tmp_path):
    history = [{"seconds": 2.0, "test_accuracy": 0.9}, {"seconds": 3.0, "test_accuracy": 0.99}]
    records.save_json(tmp_path / "mnist/run.json", {"history": history})
    figure = benchmark.draw_accuracy(tmp_path)
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [2, 5] and line.get_ydata() == pytest.approx([10, 1])
    assert line.get_label() == "MNIST: 99.00%"
    plt.close(figure)


def test_figures_are_drawn_from_the_records_alone(tmp_path, capsys):
    folder = tmp_path / "figures" / "benchmarks"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.png"))
    history = [{"seconds": 2.0, "test_accuracy": 0.9}]
    records.save_json(tmp_path / "figures/mnist/run.json", {"history": history})
    for name in ("mnist", "cifar10"):
        about = {"device_name": "a CPU", "precision": "bfloat16"}
        runs = [{"train_seconds": 90.0, "yardstick_seconds": 360.0} | about]
        untimed = {"train_seconds": 70.0} | about
        records.save_json(tmp_path / f"figures/{name}/seeds.json", [*runs, untimed])
        records.save_json(tmp_path / f"figures/{name}/float32.json", runs)
    assert benchmark.main(["figures"], tmp_path) == 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    theirs = "PyTorch's example, 13,132 steps | 360 s | 0.25 | a CPU, bfloat16 |"
    assert f"| MNIST, n = 2 | 90, 70 s | {theirs}" in text
    assert f"| MNIST, n = 1 | 90 s | {theirs}" in text
    assert {path.name for path in folder.glob("*.png")} == {"head.png", "accuracy.png"}
    assert benchmark.head_table(records.load_json(folder / "head.json")) in text
    (folder / "head.json").unlink()
    assert benchmark.main(["figures"], tmp_path) == 1
    assert "head.json" in capsys.readouterr().err
