"""arcface_loss.py with compilers, transforms, autocast and processes; on CUDA too where it is."""

import copy
import math
import os
import pickle
import socket
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from arcface_loss import ArcMarginProduct, angle, unit

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PATHS = ["forward", "loss", "none"]


class Net(nn.Module):
    """A larger system, which calls the head one way or the other inside its own forward."""

    def __init__(self, path, device="cpu", dtype=None, d=8, n=5, **arguments):
        super().__init__()
        self.path = path
        self.body = nn.Linear(6, d, device=device, dtype=dtype)
        self.head = ArcMarginProduct(d, n, s=8.0, m=0.3, device=device, dtype=dtype, **arguments)

    def forward(self, x, label):
        x = self.body(x)
        match self.path:
            case "forward":
                return F.cross_entropy(self.head(x, label), label)
            case "loss":
                return self.head.loss(x, label)
        return self.head.loss(x, label, reduction="none").mean()


class Calls(nn.Module):
    """A module whose forward is a method of another one."""

    def __init__(self, head, method, **options):
        super().__init__()
        self.head, self.method, self.options = head, method, options

    def forward(self, *arguments):
        return getattr(self.head, self.method)(*arguments, **self.options)


def batch(N=7, device="cpu", dtype=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 6, generator=g).to(device, dtype)
    return x, torch.randint(5, (N,), generator=g).to(device)


def gradients(net, loss):
    return torch.autograd.grad(loss, list(net.parameters()))


def close(found, expected, rtol=1e-5, atol=1e-6):
    return all(
        torch.allclose(f, e, rtol=rtol, atol=atol) for f, e in zip(found, expected, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_compiled_whole_with_changing_batches(path):
    """One graph for N = 1, and one recompilation for all the other batch sizes."""
    torch._dynamo.reset()
    net = Net(path)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for count, N in enumerate([4, 9, 1, 7, 3, 30, 2]):
        x, label = batch(N)
        found, expected = compiled(x, label), net(x, label)
        assert torch.allclose(found, expected, rtol=1e-5)
        assert close(gradients(net, found), gradients(net, expected), atol=1e-5)
        if count == 2:
            so_far = len(graphs)
    assert len(graphs) == so_far <= 3


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", PATHS)
def test_compiled_by_inductor(path, device):
    torch._dynamo.reset()
    net = Net(path, device)
    compiled = torch.compile(net, fullgraph=True)
    for N in (4, 9, 5):
        x, label = batch(N, device)
        with torch.autocast(device, torch.bfloat16):
            found = compiled(x, label)
        with torch.autocast(device, torch.bfloat16):
            expected = net(x, label)
        assert torch.allclose(found, expected, rtol=2e-2)
        assert close(gradients(net, found), gradients(net, expected), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("strict", [True, False])
def test_export_with_and_without_labels(strict):
    net = ArcMarginProduct(6, 5)
    x, label = batch(7)
    dynamic = {0: torch.export.Dim("N", min=2)}
    other, its_label = batch(11, seed=1)
    program = torch.export.export(net, (x, label), dynamic_shapes=(dynamic, dynamic), strict=strict)
    assert torch.allclose(program.module()(other, its_label), net(other, its_label), atol=1e-5)
    program = torch.export.export(net, (x,), dynamic_shapes=(dynamic,), strict=strict)
    assert torch.allclose(program.module()(other), net(other), atol=1e-5)


def test_fake_and_meta_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        for path in PATHS:
            net, (x, label) = Net(path), (torch.randn(7, 6), torch.randint(5, (7,)))
            net(x, label).backward()
            assert net.head.weight.grad.shape == (5, 8)
    for path in PATHS:
        net = Net(path, "meta", torch.float16)
        net(
            torch.empty(7, 6, device="meta", dtype=torch.float16),
            torch.empty(7, device="meta").long(),
        ).backward()
        assert net.head.weight.grad.dtype == torch.float16
        net.to_empty(device="cpu").head.reset_parameters()
        assert net.head.weight.isfinite().all()


@pytest.mark.parametrize("path", PATHS)
def test_torch_func(path):
    net, (x, label) = Net(path), batch()
    parameters = dict(net.named_parameters())

    def compute(parameters, x, label):
        return functional_call(net, parameters, (x, label))

    expected = gradients(net, net(x, label))
    assert close(grad(compute)(parameters, x, label).values(), expected)
    each = vmap(grad(lambda p, x, y: compute(p, x[None], y[None])), (None, 0, 0))(
        parameters, x, label
    )
    for i in range(len(x)):
        assert close(
            [g[i] for g in each.values()], gradients(net, net(x[i : i + 1], label[i : i + 1]))
        )
    shifted = vmap(lambda y: compute(parameters, x, y))(torch.stack([label, (label + 1) % 5]))
    assert torch.allclose(shifted[1], net(x, (label + 1) % 5))


def test_jacobian_and_hessian():
    head = ArcMarginProduct(4, 3, s=4.0, m=0.3, dtype=torch.float64)
    x, label = torch.cat([torch.randn(3, 4), torch.eye(4)]).double(), torch.arange(7) % 3
    found = jacrev(lambda x: head(x, label))(x)
    assert torch.allclose(found, torch.autograd.functional.jacobian(lambda x: head(x, label), x))
    for call in (lambda x: F.cross_entropy(head(x, label), label), lambda x: head.loss(x, label)):
        found = hessian(call)(x)
        assert torch.allclose(found, torch.autograd.functional.hessian(call, x))
        numeric = jacrev(call)(x + 1e-6 * torch.ones(7, 4)) - jacrev(call)(
            x - 1e-6 * torch.ones(7, 4)
        )
        assert torch.allclose(found.sum(dim=(2, 3)), numeric / 2e-6, atol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_activation_checkpointing(path, reentrant):
    net, (x, label) = Net(path), batch()
    expected = gradients(net, net(x, label))
    checkpoint(net, x.requires_grad_(), label, use_reentrant=reentrant).backward()
    assert close([p.grad for p in net.parameters()], expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", PATHS)
def test_autocast_round_the_head_and_its_backward(path, dtype, device):
    net, label = Net(path, device, d=64), batch(40, device)[1]
    net.body, head = nn.Identity(), net.head
    x = torch.randn(40, 64, device=device, requires_grad=True)

    def both():
        loss = net(x, label)
        return loss, *torch.autograd.grad(loss, (x, head.weight))

    expected = both()
    with torch.autocast(device, dtype):
        found = both()
    assert all(f.dtype == torch.float32 for f in found)
    assert close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", PATHS)
def test_grad_scaler_with_float16_weights(path, device):
    """The scale cancels; where it makes a gradient overflow, the scaler skips the step."""
    net, (x, label) = Net(path, device, torch.float16), batch(7, device, torch.float16)
    for scale, overflow in ((256.0, False), (2.0**24, True)):
        net.zero_grad()
        (scale * net(x, label)).backward()
        grads = [p.grad for p in net.parameters()]
        assert any(not g.isfinite().all() for g in grads) == overflow
    scaler = torch.amp.GradScaler(device, init_scale=2.0**24)
    # The scaler refuses to unscale float16 gradients, but finds infinities in float32's.
    net = net.float()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = copy.deepcopy(net.state_dict())
    with torch.autocast(device, torch.float16):
        loss = net(x.float(), label)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 2.0**24 and all(
        torch.equal(before[k], v) for k, v in net.state_dict().items()
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", PATHS)
def test_deterministic_algorithms(path, device):
    net, (x, label) = Net(path, device), batch(50, device)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (gradients(net, net(x, label)) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_parametrizations(path):
    net, (x, label) = Net(path), batch()
    parametrizations.weight_norm(net.head)
    found = gradients(net, net(x, label))
    (g,) = [p for name, p in net.named_parameters() if name.endswith("original0")]
    assert all(f.isfinite().all() for f in found) and g.shape == (5, 1)
    length = dict(zip([n for n, _ in net.named_parameters()], found, strict=True))
    radial = next(v for name, v in length.items() if name.endswith("original0"))
    assert radial.abs().max() < 1e-6  # lengths of centres do not matter


def test_copies_and_state():
    net, (x, label) = Net("loss"), batch()
    net(x, label).backward()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x, label), net(x, label))
    assert list(net.head.state_dict()) == ["weight"]
    averaged = torch.optim.swa_utils.AveragedModel(net)
    averaged.update_parameters(net)
    assert torch.equal(averaged(x, label), net(x, label))


@pytest.mark.parametrize("path", PATHS)
def test_a_weight_changed_before_the_backward_pass_is_noticed(path):
    net, (x, label) = Net(path), batch()
    loss = net(x, label)
    with torch.no_grad():
        net.head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("path", PATHS)
def test_anomaly_mode_and_undefined_gradients(path):
    net, (x, label) = Net(path), batch()
    with torch.autograd.detect_anomaly(check_nan=True):
        net(x, label).backward()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, (x,))
    v = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, v: angle(unit(x), unit(v)), (x, v))


@pytest.mark.parametrize("path", ["loss", "none"])
def test_gradients_are_of_the_labels_that_the_loss_was_made_with(path):
    """A label buffer that is used again."""
    net, (x, y) = Net(path), batch()
    expected = gradients(net, net(x, y))
    twice, again = net(x, y), net(x, y)
    twice.backward(retain_graph=True)
    y.copy_((y + 1) % 5)
    parameters = list(net.parameters())
    assert close(torch.autograd.grad(twice, parameters), expected)
    assert close(torch.autograd.grad(again, parameters, create_graph=True), expected)


@pytest.mark.parametrize("n", [5, 5000])  # few classes, whose centres are kept, and many
@pytest.mark.parametrize("what", ["weight", "label"])
@pytest.mark.parametrize("path", PATHS)
def test_hooks_that_copy_saved_tensors_and_changes_in_place(path, what, n):
    net, (x, y) = Net(path, d=256, n=n), batch()
    expected = gradients(net, net(x, y))
    for hooks in (
        torch.autograd.graph.allow_mutation_on_saved_tensors(),
        torch.autograd.graph.saved_tensors_hooks(lambda v: v.clone(), lambda v: v),
    ):
        changed, label = copy.deepcopy(net), y.clone()
        with hooks:
            loss = changed(x, label)
            with torch.no_grad():
                target = changed.head.weight if what == "weight" else label
                target.copy_(target.flip(0))
            assert close(gradients(changed, loss), expected)


@pytest.mark.parametrize("path", PATHS)
def test_a_gradient_penalty_under_hooks_of_saved_tensors(path):
    """Inside a checkpoint, with saved tensors on the CPU, and with a weight made from the input."""
    x, y = batch(dtype=torch.float64)
    torch.manual_seed(0)
    head = ArcMarginProduct(6, 5, s=8.0, m=0.3, dtype=torch.float64)

    def penalised(x, weight, logits_of=None):
        if logits_of is not None:
            loss = F.cross_entropy(logits_of(x, weight), y)
        elif path == "forward":
            loss = F.cross_entropy(functional_call(head, {"weight": weight}, (x, y)), y)
        else:
            options = {"reduction": "none"} if path == "none" else {}
            wrapped = Calls(head, "loss", **options)
            loss = functional_call(wrapped, {"head.weight": weight}, (x, y)).mean()
        (g,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + g.square().sum()

    def plain(x, weight):
        u, V = x / x.norm(dim=1, keepdim=True), weight / weight.norm(dim=1, keepdim=True)
        cos, own = u @ V.T, F.one_hot(y, 5).bool()
        return 8 * torch.where(own, torch.cos(torch.acos(cos) + 0.3), cos)

    for joined in (False, True):
        x = x.detach().requires_grad_()
        weight = (2 * x[:5]).sin() if joined else head.weight
        wanted = (x,) if joined else (x, head.weight)
        right = torch.autograd.grad(penalised(x, weight, plain), wanted, retain_graph=joined)
        for hooks in (
            torch.autograd.graph.save_on_cpu(),
            torch.autograd.graph.allow_mutation_on_saved_tensors(),
            nullcontext(),
        ):
            with hooks:
                found = torch.autograd.grad(penalised(x, weight), wanted, retain_graph=joined)
            assert close(found, right, rtol=1e-9, atol=1e-12)
        inside = checkpoint(penalised, x, weight, use_reentrant=False)
        found = torch.autograd.grad(inside, wanted, retain_graph=joined)
        assert close(found, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_selective_checkpointing_of_the_products(path):
    net, (x, y) = Net(path), batch()
    expected = gradients(net, net(x, y))
    products = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
    policy = partial(create_selective_checkpoint_contexts, products)
    loss = checkpoint(net, x, y, use_reentrant=False, context_fn=policy)
    assert close(gradients(net, loss), expected)


@pytest.mark.parametrize("path", PATHS)
def test_vmap_over_gradients(path):
    """A Jacobian row by row, as in the tutorial of torch.func."""
    head, y = ArcMarginProduct(6, 5, s=8.0, dtype=torch.float64), batch()[1]
    x = batch(dtype=torch.float64)[0].requires_grad_()

    def made(x):
        if path == "forward":
            return head(x, y)[:, :3].flatten()
        values = head.loss(x, y, reduction="none")
        return values if path == "none" else head.loss(x, y)[None]

    rows = torch.eye(len(made(x)), dtype=torch.float64)
    out = made(x)
    found = vmap(lambda v: torch.autograd.grad(out, x, v, retain_graph=True)[0])(rows)
    assert torch.allclose(found, torch.autograd.functional.jacobian(made, x))


@pytest.mark.parametrize("n", [5, 5000])
@pytest.mark.parametrize("path", PATHS)
def test_forward_mode(path, n):
    net, (x, y) = Net(path, dtype=torch.float64, d=256, n=n), batch(dtype=torch.float64)
    tangent = batch(dtype=torch.float64, seed=1)[0]

    def made(x):
        return net(x, y)

    expected = (torch.autograd.functional.jacobian(made, x) * tangent).sum()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        slopes = [torch.autograd.forward_ad.unpack_dual(made(dual)).tangent]
        with torch.no_grad():
            slopes.append(torch.autograd.forward_ad.unpack_dual(made(dual)).tangent)
    slopes.append(torch.func.linearize(made, x)[1](tangent))
    slopes.append(torch.func.jvp(made, (x,), (tangent,))[1])
    assert torch.allclose(torch.stack(slopes), expected)
    if n == 5:
        x.requires_grad_()
        assert torch.autograd.gradcheck(made, (x,), check_forward_ad=True)


@pytest.mark.parametrize("path", PATHS)
def test_zero_rows_have_one_gradient_however_it_is_made(path):
    """That of the plain product: at 90° the margin multiplies the target's by sin(π/2 + m)."""
    torch.manual_seed(0)
    head, y = ArcMarginProduct(4, 3, s=8.0, m=0.5, dtype=torch.float64), torch.arange(3)
    x = torch.randn(3, 4, dtype=torch.float64)
    x[0] = 0
    x.requires_grad_()

    def made(x):
        if path == "forward":
            return F.cross_entropy(head(x, y), y)
        return head.loss(x, y) if path == "loss" else head.loss(x, y, reduction="none").mean()

    logits = torch.tensor([-8 * math.sin(0.5), 0, 0], dtype=torch.float64)  # of the zero row
    pull = 8 * (logits.softmax(0) - torch.tensor([1.0, 0, 0])) / 3
    pull[0] *= math.cos(0.5)
    expected = pull @ F.normalize(head.weight.detach())
    with torch.no_grad():  # which leaves forward mode and later uses of a graph as they are
        forward_mode = torch.func.jacfwd(made)(x)
        exported = torch.export.export(Calls(SimpleNamespace(made=made), "made"), (x,)).module()
    first = (
        torch.autograd.grad(made(x), x)[0],
        torch.autograd.grad(made(x), x, create_graph=True)[0],
        grad(made)(x),
        torch.func.jacfwd(made)(x),
        forward_mode,
        torch.autograd.grad(exported(x), x)[0],
    )
    for found in first:
        assert torch.allclose(found[0], expected)
        assert torch.allclose(found, first[0])


@pytest.mark.parametrize("change", [{"m": 0.6}, {"s": 30.0}, {"m1": 1.35}, {"easy_margin": True}])
@pytest.mark.parametrize("path", PATHS)
def test_gradients_are_of_the_settings_that_the_loss_was_made_with(path, change):
    net, (x, y) = Net(path, dtype=torch.float64), batch(dtype=torch.float64)
    expected = gradients(net, net(x, y))
    again, twice = net(x, y), net(x, y)
    twice.backward(retain_graph=True)
    net.zero_grad()
    for key, value in change.items():
        setattr(net.head, key, value)
    parameters = list(net.parameters())
    assert close(torch.autograd.grad(again, parameters, create_graph=True), expected)
    assert close(torch.autograd.grad(twice, parameters), expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("m", [0.0, 0.3])
def test_second_derivatives_of_zero_rows_and_of_rows_on_their_centre_are_finite(path, m):
    """As after weights were set to embeddings. Without a margin they are those of F.normalize."""
    torch.manual_seed(0)
    head = ArcMarginProduct(4, 3, s=8.0, m=m, dtype=torch.float64)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        head.weight[:2] = torch.stack([x[0], -x[1]])
        x[5] = 0
    x.requires_grad_()

    def penalty(compute):
        value = compute()
        (g,) = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad(value + g[:5].square().sum(), (x, head.weight))

    def ours():
        if path == "forward":
            return F.cross_entropy(head(x, y), y)
        return head.loss(x, y, reduction="none").mean() if path == "none" else head.loss(x, y)

    found = penalty(ours)
    assert all(g.isfinite().all() for g in found)
    if m == 0:
        expected = penalty(
            lambda: F.cross_entropy(8 * F.normalize(x) @ F.normalize(head.weight).T, y)
        )
        assert close([found[0][:5], found[1]], [expected[0][:5], expected[1]])


@pytest.mark.parametrize("path", ["forward", "none"])
def test_batched_gradients(path):
    head = ArcMarginProduct(6, 5, s=8.0, m=0.3, dtype=torch.float64)
    x, y = batch(dtype=torch.float64)

    def compute(x):
        return head(x, y) if path == "forward" else head.loss(x, y, reduction="none")

    jacobian = torch.autograd.functional.jacobian
    assert torch.allclose(jacobian(compute, x, vectorize=True), jacobian(compute, x))


@pytest.mark.parametrize("path", PATHS)
def test_an_infinite_gradient_is_not_hidden(path):
    net, (x, y) = Net(path), batch()
    found = gradients(net, net(x, y) * math.inf)
    assert not any(g.isfinite().all() for g in found)


@pytest.mark.parametrize("path", PATHS)
def test_graph_of_operations(path):
    net, (x, y) = Net(path), batch()
    graph = make_fx(lambda x, y: net(x, y))(x, y)
    other = batch(seed=1)
    assert torch.allclose(graph(*other), net(*other))


@pytest.mark.parametrize("shape", [(6, 5), (512, 4096)])
def test_traced(shape):
    """Also a weight of which unit rows are made a piece at a time, and other numbers of samples."""
    head, y = ArcMarginProduct(*shape), torch.arange(12) % 5
    x = torch.randn(12, shape[0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        traced = torch.jit.trace(head, (x[:7],))
        with_labels = torch.jit.trace(head, (x[:7], y[:7]))
        for N in (3, 7, 12):
            assert torch.allclose(traced(x[:N]), head(x[:N]), atol=1e-4)
            expected = head(x[:N], y[:N])
            assert torch.allclose(with_labels(x[:N], y[:N]), expected, atol=1e-4)
    traced = torch.jit.trace(head, (x, y))  # which checks itself without grad mode
    assert torch.allclose(traced(x, y), head(x, y), atol=1e-4)


# --- processes -----------------------------------------------------------------------------------


def start(rank, world, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    torch.set_num_threads(1)


def finish():
    """Leave together: a process that is gone can abort the other one's. And at once: gloo's threads
    can abort an interpreter that is being finalized."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)


def data_parallel(rank, world, port, path, out):
    start(rank, world, port)
    torch.manual_seed(0)
    net = Net(path)
    wrapped = nn.parallel.DistributedDataParallel(net)
    x, label = batch(8)
    wrapped(x[rank::world], label[rank::world]).backward()
    if rank == 0:
        torch.save([p.grad for p in net.parameters()], out)
    finish()


def fully_sharded(rank, world, port, path, out):
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    start(rank, world, port)
    torch.manual_seed(0)
    net = Net(path)
    fully_shard(net.head)
    if path != "forward":
        register_fsdp_forward_method(net.head, "loss")
    fully_shard(net)
    x, label = batch(8)
    net(x[rank::world], label[rank::world]).backward()
    grads = [p.grad.full_tensor() for p in net.parameters()]
    if rank == 0:
        torch.save(grads, out)
    finish()


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("worker", [data_parallel, fully_sharded])
def test_two_processes(worker, path, tmp_path):
    """The gradients of two processes with half the batch each are those of one with all of it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(worker, (2, port, path, tmp_path / "grads.pt"), nprocs=2)
    torch.manual_seed(0)
    net, (x, label) = Net(path), batch(8)
    assert close(torch.load(tmp_path / "grads.pt"), gradients(net, net(x, label)))
