"""arcface_loss.py against float64 autograd, other libraries and the geometry it promises."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses
from torch.utils._python_dispatch import TorchDispatchMode

from arcface_loss import ArcMarginProduct, angle, unit

SEAM_CLEARANCE, POLE_CLEARANCE = 0.01, 0.02


def reference_logits(x, W, label, s, m=0.0, m1=1.0, m3=0.0):
    """Eq. 4 from its definition, in the dtype of its arguments, with arccos over everything."""
    theta = (F.normalize(x) @ F.normalize(W).T).arccos()
    psi = m1 * theta + m
    if m1 == 1:
        phi = torch.where(psi <= math.pi, psi.cos(), theta.cos() - m * math.sin(m))
    else:
        phi = torch.where(psi <= math.pi, psi.cos(), -2 - psi.cos())
    own = F.one_hot(label, len(W)).bool()
    return s * torch.where(own, phi - m3, theta.cos())


def batch_at_angles(theta, n_classes, d=32, seed=0):
    """float64 embeddings at angles theta from the centres of their labels, 0.1 to 10 long."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(n_classes, d, generator=g, dtype=torch.float64)
    label = torch.randint(n_classes, theta.shape, generator=g)
    centre = F.normalize(W)[label]
    side = torch.randn(len(theta), d, generator=g, dtype=torch.float64)
    side = F.normalize(side - (side * centre).sum(1, keepdim=True) * centre)
    x = theta.cos()[:, None] * centre + theta.sin()[:, None] * side
    return x * 10 ** (2 * torch.rand(len(theta), 1, generator=g, dtype=torch.float64) - 1), W, label


def head_with(W, **arguments):
    head = ArcMarginProduct(W.shape[1], W.shape[0], **arguments).to(W.dtype)
    with torch.no_grad():
        head.weight.copy_(W)
    return head


def loss_and_gradients(head, x, label, block=None):
    """By :meth:`loss` in such blocks; without, by forward."""
    x = x.clone().requires_grad_()
    loss = (
        F.cross_entropy(head(x, label), label)
        if block is None
        else head.loss(x, label, block=block)
    )
    return [loss.detach(), *torch.autograd.grad(loss, [x, head.weight])]


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("path", ["forward", "loss"])
@pytest.mark.parametrize("n_classes", [2, 10, 1000])
@pytest.mark.parametrize("m", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("s", [1.0, 16.0, 30.0, 64.0])
def test_float32_agrees_with_float64_autograd(s, m, n_classes, path):
    theta = torch.linspace(POLE_CLEARANCE, math.pi - POLE_CLEARANCE, 512, dtype=torch.float64)
    theta = theta[(theta - (math.pi - m)).abs() > SEAM_CLEARANCE]
    x, W, label = batch_at_angles(theta, n_classes)
    x, W = x.float(), W.float()
    found = loss_and_gradients(head_with(W, s=s, m=m), x, label, None if path == "forward" else 64)

    x, W = x.double().requires_grad_(), W.double().requires_grad_()
    loss = F.cross_entropy(reference_logits(x, W, label, s, m), label)
    for value, expected in zip(
        found, [loss.detach(), *torch.autograd.grad(loss, [x, W])], strict=True
    ):
        assert relative(value, expected) < 1e-5


@pytest.mark.parametrize(
    "margins",
    [
        {"m": 0.0, "m1": 1.35},
        {"m": 0.4, "m1": 0.9, "m3": 0.15},
        {"m": 0.3, "m3": 0.2},
        {"m": 0.0, "m3": 0.35},
    ],
)
def test_the_other_margins_agree_too(margins):
    theta = torch.linspace(POLE_CLEARANCE, math.pi - POLE_CLEARANCE, 512, dtype=torch.float64)
    seam = (math.pi - margins["m"]) / margins.get("m1", 1)
    x, W, label = batch_at_angles(theta[(theta - seam).abs() > SEAM_CLEARANCE], 10)
    x, W = x.float(), W.float()
    found = head_with(W, s=30.0, **margins)(x, label)
    assert torch.allclose(
        found.double(), reference_logits(x.double(), W.double(), label, 30.0, **margins), atol=2e-5
    )


def test_gradcheck():
    theta = torch.linspace(0.05, 3.0, 12, dtype=torch.float64)
    x, W, label = batch_at_angles(theta, 5, d=4)
    head = head_with(W, s=8.0, m=0.5)
    for function in (
        lambda x: head(x, label),
        lambda x: head(x),
        lambda x: head.loss(x, label, block=5),
    ):
        assert torch.autograd.gradcheck(function, x.requires_grad_())


AWKWARD = {
    "on its centre": lambda w: w,
    "opposite": lambda w: -w,
    "zero": lambda w: 0 * w,
    "very long": lambda w: w / w.abs().max() * torch.finfo(w.dtype).max,
    "very short": lambda w: w / w.abs().max() * torch.finfo(w.dtype).tiny,
    "subnormal": lambda w: w / w.abs().max() * torch.finfo(w.dtype).smallest_normal / 64,
    "one entry": lambda w: F.one_hot(torch.tensor(1), len(w)).to(w.dtype),
}


@pytest.mark.parametrize("path", ["forward", "loss"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", AWKWARD)
@pytest.mark.parametrize(
    "margins",
    [{"m": 0.5}, {"m": 1.5, "easy_margin": True}, {"m": 0.0, "m1": 4.0}, {"m": 0.3, "m3": 0.2}],
)
def test_finite_everywhere(case, dtype, autocast, path, margins):
    torch.manual_seed(0)
    head = ArcMarginProduct(8, 4, s=64.0, **margins)
    x = torch.stack([AWKWARD[case](w.to(dtype)) for w in head.weight.detach()])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = loss_and_gradients(head, x, torch.arange(4), None if path == "forward" else 3)
    assert values[1].dtype == dtype
    if dtype != torch.float16:  # where a gradient that is too large becomes infinite
        assert all(value.isfinite().all() for value in values)
    assert not any(value.isnan().any() for value in values)


@pytest.mark.parametrize(
    "margins",
    [{"m": m} for m in (0.0, 0.1, 0.5, 1.0, math.pi / 2)]
    + [{"m": 0.0, "m1": k} for k in (1.35, 2.0, 4.0)]
    + [{"m": 0.4, "m1": 0.9, "m3": 0.15}, {"m": 0.0, "m3": 0.35}],
)
def test_target_logit_never_rises_with_theta(margins):
    theta = torch.linspace(0, math.pi, 20001, dtype=torch.float64)
    x = torch.stack([theta.cos(), theta.sin()], dim=1)
    head = head_with(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64), s=1.0, **margins)
    label = torch.zeros(len(theta), dtype=torch.int64)
    assert head(x, label)[:, 0].diff().max() <= 1e-12
    assert head.float()(x.float(), label)[:, 0].diff().max() <= 5e-7


def test_past_the_seam_it_has_the_published_values():
    """cos θ − m·sin m for ArcFace beyond π − m, and −2 − cos(m1·θ) for SphereFace beyond π/m1."""
    x = torch.tensor([[math.cos(3.0), math.sin(3.0)]], dtype=torch.float64)
    W, label = torch.eye(2, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    assert head_with(W, s=1.0, m=0.5)(x, label)[0, 0].item() == pytest.approx(
        math.cos(3.0) - 0.5 * math.sin(0.5)
    )
    assert head_with(W, s=1.0, m=0.0, m1=1.35)(x, label)[0, 0].item() == pytest.approx(
        -2 - math.cos(1.35 * 3.0)
    )


def test_easy_margin_leaves_the_far_half_alone():
    theta = torch.tensor([0.3, 1.5, 1.6, 3.0], dtype=torch.float64)
    x, W = torch.stack([theta.cos(), theta.sin()], dim=1), torch.eye(2, dtype=torch.float64)
    found = head_with(W, s=1.0, m=0.5, easy_margin=True)(x, torch.zeros(4, dtype=torch.int64))[:, 0]
    assert torch.allclose(found, torch.cat([(theta[:2] + 0.5).cos(), theta[2:].cos()]))


def test_only_the_target_logit_is_changed():
    torch.manual_seed(0)
    head, x, label = ArcMarginProduct(16, 7), torch.randn(9, 16), torch.randint(7, (9,))
    changed = head(x, label) != head(x)
    assert (changed == F.one_hot(label, 7).bool()).all()


def test_norm_softmax_is_cross_entropy_of_scaled_cosines():
    x, W = torch.randn(50, 16, dtype=torch.float64), torch.randn(7, 16, dtype=torch.float64)
    label = torch.arange(50) % 7
    head = head_with(W, s=20.0, m=0.0)
    cosines = F.cosine_similarity(x[:, None], W[None], dim=2)
    assert torch.allclose(head(x, label), 20 * cosines)
    assert torch.equal(head(x, label), head(x))


def test_blocks_give_the_plain_path():
    torch.manual_seed(0)
    head, x, label = (
        ArcMarginProduct(24, 1003, s=64.0),
        torch.randn(65, 24),
        torch.randint(1003, (65,)),
    )
    plain = loss_and_gradients(head, x, label)
    for block in (1, 16, 65, 5000):
        for value, expected in zip(loss_and_gradients(head, x, label, block), plain, strict=True):
            assert relative(value, expected.double()) < 1e-5


@pytest.mark.parametrize("block", [None, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_taken_in_chunks(dtype, block):
    """More than 2²⁰ numbers: three chunks, the last one smaller, and lengths that differ."""
    torch.manual_seed(0)
    lengths = 10 ** (20 * torch.rand(5000, 1) - 10)
    W, x, label = (
        (lengths * torch.randn(5000, 512)).to(dtype),
        torch.randn(20, 512),
        torch.randint(5000, (20,)),
    )
    found = loss_and_gradients(head_with(W, s=64.0, m=0.3), x, label, block)
    expected = loss_and_gradients(head_with(W.double(), s=64.0, m=0.3), x.double(), label)
    for value, right in zip(found, expected, strict=True):
        assert relative(value, right) < max(1e-5, torch.finfo(value.dtype).eps)
    assert torch.allclose(
        head_with(W, s=64.0)(x).double(), head_with(W.double(), s=64.0)(x.double()), atol=1e-4
    )


def test_angle_is_exact_where_arccos_is_not():
    for theta in (0.0, 1e-6, 1e-3, 1.0, math.pi - 1e-6, math.pi):
        u, v = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(theta), math.sin(theta)]])
        assert angle(u, v).item() == pytest.approx(theta, rel=1e-6, abs=1e-12)


def test_the_handouts_example():
    """(5, 2) and (7, 4) are 7.94° apart, and so are (5, 2) and 1.5·(7, 4)."""
    a, b = torch.tensor([[5.0, 2.0]]), torch.tensor([[7.0, 4.0]])
    assert torch.rad2deg(angle(unit(a), unit(b))).item() == pytest.approx(7.94, abs=0.005)
    assert torch.rad2deg(angle(unit(a), unit(1.5 * b))).item() == pytest.approx(7.94, abs=0.005)
    assert (b - a).norm().item() == pytest.approx(2.83, abs=0.005)
    assert (1.5 * b - a).norm().item() == pytest.approx(6.80, abs=0.005)


def test_equals_pytorch_metric_learning_where_the_formulas_coincide():
    """But at θ = 0 and π, where the gradient of their arccos is infinite; their m is in degrees."""
    x, W, label = batch_at_angles(torch.linspace(0.1, 3.0, 60, dtype=torch.float64), 10)
    for theirs, ours in (
        (losses.ArcFaceLoss(10, 32, margin=math.degrees(0.5), scale=30), {"m": 0.5}),
        (losses.CosFaceLoss(10, 32, margin=0.35, scale=30), {"m": 0.0, "m3": 0.35}),
    ):
        theirs = theirs.double()
        with torch.no_grad():
            theirs.W.copy_(W.T)
        expected = theirs(x, label)
        found = F.cross_entropy(head_with(W, s=30.0, **ours)(x, label), label)
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)


BAD_ARGUMENTS = {
    "s": [0, -1, math.inf, math.nan],
    "m": [-0.1, 1.6, math.nan, 30],
    "m1": [0, -1, math.inf],
    "m3": [-0.1, math.inf],
    "in_features": [0],
    "out_features": [0, 1],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD_ARGUMENTS.items() for value in values]
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is {value}; it must be"):
        ArcMarginProduct(**{"in_features": 4, "out_features": 3, name: value})


@pytest.mark.parametrize("call", ["forward", "loss"])
@pytest.mark.parametrize(
    ("x", "label", "error", "message"),
    [
        (
            torch.randn(5, 3),
            torch.zeros(5).long(),
            ValueError,
            r"input has shape \(5, 3\); it must be \(N, 4\)",
        ),
        (torch.randn(4), torch.zeros(4).long(), ValueError, r"input has shape \(4,\)"),
        (torch.ones(5, 4).long(), torch.zeros(5).long(), TypeError, "input is torch.int64"),
        (
            torch.randn(5, 4),
            torch.zeros(4).long(),
            ValueError,
            r"label has shape \(4,\); it must be \(5,\)",
        ),
        (torch.randn(5, 4), torch.zeros(5, 1).long(), ValueError, r"label has shape \(5, 1\)"),
        (
            torch.randn(5, 4),
            torch.zeros(5),
            TypeError,
            r"label is torch.float32; it must be torch.int64: label.long\(\)",
        ),
        (
            torch.randn(2, 4),
            torch.tensor([0, 3]),
            ValueError,
            r"label contains 3; labels must be in \[0, 2\]",
        ),
        (torch.randn(2, 4), torch.tensor([-1, 0]), ValueError, "label contains -1"),
        (torch.randn(2, 4), torch.zeros(2, device="meta").long(), ValueError, "on cpu like input"),
        (torch.ones(2, 4).to(torch.float8_e4m3fn), torch.zeros(2).long(), TypeError, "16 bits"),
    ],
)
def test_bad_input_is_named(call, x, label, error, message):
    with pytest.raises(error, match=message):
        getattr(ArcMarginProduct(4, 3), call)(x, label)


def test_an_existing_checkpoint_loads():
    head = ArcMarginProduct(4, 3)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "weight": (3, 4)
    }


# --- gradients in every direction, of every length, in every dtype --------------------------------

MARGINS = [
    {"m": 0.2},
    {"m": 0.5, "m3": 0.1},
    {"m": 0.0, "m1": 1.35},
    {"m": 0.4, "m1": 0.9, "m3": 0.15},
]
MARGINS += [{"m": 0.3, "easy_margin": True}, {"m": 0.0}]


@pytest.mark.parametrize("path", ["forward", "plain", "loss", "none"])
@pytest.mark.parametrize("scale", [1.0, -1.0, 3.0, -1e-3])
@pytest.mark.parametrize("d", [1, 2, 3, 8, pytest.param(16, marks=pytest.mark.slow)])
def test_gradcheck_along_the_axes(d, scale, path):
    torch.manual_seed(d)
    x = (scale * torch.eye(d, dtype=torch.float64)).requires_grad_()
    head, label = ArcMarginProduct(d, 4, s=16.0, m=0.2, dtype=torch.float64), torch.arange(d) % 4
    call = {
        "forward": lambda x: head(x, label),
        "plain": lambda x: head(x),
        "loss": lambda x: head.loss(x, label, block=3),
        "none": lambda x: head.loss(x, label, reduction="none", block=2),
    }[path]
    assert torch.autograd.gradcheck(call, x, eps=1e-6 * abs(scale), atol=1e-5 / abs(scale))


@pytest.mark.parametrize("path", ["forward", "loss", "none"])
@pytest.mark.parametrize("margins", MARGINS)
def test_gradcheck_of_centres_along_the_axes(margins, path):
    torch.manual_seed(0)
    head = ArcMarginProduct(3, 5, s=8.0, dtype=torch.float64, **margins)
    x, label = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 5
    for W in (torch.eye(5, 3).double(), -2 * torch.eye(5, 3).double()):
        W[3:] = torch.randn(2, 3)
        assert torch.autograd.gradcheck(
            lambda W: functional(head, path, x, W, label), W.requires_grad_()
        )


def functional(head, path, x, W, label, **options):
    """head's forward or loss with W in the place of its weight."""
    names = {"forward": {}, "loss": {}, "none": {"reduction": "none"}}[path]
    owner = Caller(head, path != "forward", names | options)
    return torch.func.functional_call(owner, {"head.weight": W}, (x, label))


class Caller(torch.nn.Module):
    """A larger system: it calls loss inside its own forward."""

    def __init__(self, head, loss=True, options=None):
        super().__init__()
        self.head, self.of_loss, self.options = head, loss, options or {}

    def forward(self, x, label):
        return self.head.loss(x, label, **self.options) if self.of_loss else self.head(x, label)


@pytest.mark.parametrize("margins", MARGINS)
def test_gradgradcheck_of_forward(margins):
    torch.manual_seed(1)
    head = ArcMarginProduct(4, 3, s=4.0, dtype=torch.float64, **margins)
    x = torch.cat([torch.randn(3, 4), 2 * torch.eye(4)]).double().requires_grad_()
    W, label = head.weight.detach().clone().requires_grad_(), torch.arange(7) % 3
    assert torch.autograd.gradgradcheck(
        lambda x, W: functional(head, "forward", x, W, label), (x, W)
    )


def exact(x, W, label, s, m, weights=None):
    """Loss and gradients in 60 digits, by the paper's closed form; m1 = 1 and θ ≤ π − m."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        exact_rows = lambda t: [[mpmath.mpf(v) for v in row] for row in t.double().tolist()]  # noqa: E731
        length = lambda v: mpmath.sqrt(mpmath.fsum(a * a for a in v))  # noqa: E731
        xs, Ws = exact_rows(x), exact_rows(W)
        lx, lW = [length(v) for v in xs], [length(v) for v in Ws]
        ux = [[a / k for a in v] for v, k in zip(xs, lx, strict=True)]
        uW = [[a / k for a in v] for v, k in zip(Ws, lW, strict=True)]
        N, n, d = len(xs), len(Ws), len(xs[0])
        total, gx, gW = (
            mpmath.mpf(0),
            [[mpmath.mpf(0)] * d for _ in xs],
            [[mpmath.mpf(0)] * d for _ in Ws],
        )
        for i, y in enumerate(label.tolist()):
            cos = [mpmath.fsum(a * b for a, b in zip(ux[i], u, strict=True)) for u in uW]
            theta = mpmath.acos(cos[y])
            assert theta < mpmath.pi - m
            z = [s * c for c in cos]
            z[y] = s * mpmath.cos(theta + m)
            e = [mpmath.exp(v) for v in z]
            rest = mpmath.fsum(v for j, v in enumerate(e) if j != y)
            total += mpmath.log1p(rest / e[y]) / N
            p = [v / (rest + e[y]) for v in e]
            for j in range(n):
                g = (
                    s * p[j] / N
                    if j != y
                    else -s * (rest / (rest + e[y])) * mpmath.sin(theta + m) / mpmath.sin(theta) / N
                )
                for k in range(d):
                    gx[i][k] += g * (uW[j][k] - cos[j] * ux[i][k]) / lx[i]
                    gW[j][k] += g * (ux[i][k] - cos[j] * uW[j][k]) / lW[j]
        to_tensor = lambda rows, lengths: torch.tensor(  # noqa: E731
            [[float(v * k) for v in row] for row, k in zip(rows, lengths, strict=True)],
            dtype=torch.float64,
        )
        # as gradients in the unit vectors, whose size does not depend on the lengths
        return float(total), to_tensor(gx, lx), to_tensor(gW, lW), lx, lW


@pytest.mark.parametrize("path", ["forward", "loss"])
@pytest.mark.parametrize(
    ("x_exponents", "W_exponents"),
    [
        ((0, 0), (0, 0)),
        ((-38, 38), (-1, 1)),
        ((-1, 1), (-38, 38)),
        ((-36, -30), (30, 38)),
        ((-25, 25), (-25, 25)),
    ],
)
def test_rows_of_every_length_agree_with_exact_arithmetic(x_exponents, W_exponents, path):
    g = torch.Generator().manual_seed(0)
    spread = lambda rows, low, high: 10 ** torch.linspace(low, high, rows)[:, None]  # noqa: E731
    x = F.normalize(torch.randn(6, 8, generator=g)) * spread(6, *x_exponents)
    W = F.normalize(torch.randn(4, 8, generator=g)) * spread(4, *W_exponents)
    label = torch.arange(6) % 4
    loss, gx, gW, lx, lW = exact(x, W, label, 16.0, 0.4)
    values = loss_and_gradients(
        head_with(W, s=16.0, m=0.4), x, label, None if path == "forward" else 4
    )
    assert values[0].item() == pytest.approx(loss, rel=1e-6)
    for found, expected, lengths in ((values[1], gx, lx), (values[2], gW, lW)):
        scaled = (
            found.double() * torch.tensor([float(k) for k in lengths], dtype=torch.float64)[:, None]
        )
        assert relative(scaled, expected) < 1e-5


@pytest.mark.parametrize("path", ["forward", "loss"])
def test_subnormal_and_zero_rows(path):
    """A row of 1e-45 has a direction; a zero row is at 90° and has a finite gradient."""
    x = torch.tensor([[1e-45, 0, 0], [0, -1e-45, 1e-45], [0, 0, 0], [3e38, 3e38, 3e38]])
    W = torch.tensor([[3e38, -3e38, 0], [0, 1e-45, 0], [0, 0, 0], [1e-40, 0, 0]])
    label = torch.tensor([3, 1, 0, 2])
    head = head_with(W, s=8.0, m=0.3)
    r = math.sqrt(0.5)
    cosines = torch.tensor([[r, 0, 0, 1], [0.5, -r, 0, 0], [0, 0, 0, 0], [0, 3**-0.5, 0, 3**-0.5]])
    assert torch.allclose(head(x), 8 * cosines, atol=1e-6)
    target = head(x, label).gather(1, label[:, None])[:, 0] / 8
    angles = cosines.gather(1, label[:, None])[:, 0].double().clamp(-1, 1).arccos()
    assert torch.allclose(
        target.double(), (angles + 0.3).cos().where(angles < math.pi - 0.3, 0), atol=1e-6
    )
    assert all(
        v.isfinite().all()
        for v in loss_and_gradients(head, x, label, None if path == "forward" else 2)
    )
    x.requires_grad_()
    (0.0 * (head.loss(x, label) if path == "loss" else head(x, label).sum())).backward()
    assert x.grad.abs().max() == 0 == head.weight.grad.abs().max()
    x = x.detach()
    both_zero = head(torch.zeros(1, 3), torch.tensor([2]))
    assert both_zero[0, 2].item() == pytest.approx(-8 * math.sin(0.3), rel=1e-6)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("W_dtype", DTYPES)
def test_every_pair_of_dtypes(x_dtype, W_dtype):
    """loss is as exact as forward for the rounded numbers; gradients have their tensors' dtypes."""
    torch.manual_seed(0)
    x, W, label = (
        torch.randn(40, 12).to(x_dtype),
        torch.randn(9, 12).to(W_dtype),
        torch.arange(40) % 9,
    )
    W[4] = 0
    head = head_with(W, s=64.0, m=0.3)
    expected = loss_and_gradients(head_with(W.double(), s=64.0, m=0.3), x.double(), label)
    for block in (None, 16):
        found = loss_and_gradients(head, x, label, block)
        assert [v.dtype for v in found[1:]] == [x_dtype, W_dtype]
        assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-6)
        for value, right in zip(found[1:], expected[1:], strict=True):
            assert relative(value, right) < max(3e-6, torch.finfo(value.dtype).eps)
    each = head.loss(x, label, reduction="none")
    assert torch.allclose(each, F.cross_entropy(head(x, label), label, reduction="none"), atol=1e-5)
    assert each.min() >= 0


@pytest.mark.parametrize("theta", [0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("path", ["forward", "loss"])
def test_gradient_near_the_own_centre(theta, path):
    """c_y grows as 1/θ, what it multiplies vanishes: the product is right to x̂'s rounding / θ."""
    x, W, label = batch_at_angles(torch.full((60,), theta, dtype=torch.float64), 4)
    x, W = x.float(), W.float()
    found = loss_and_gradients(
        head_with(W, s=4.0, m=0.5), x, label, None if path == "forward" else 25
    )
    expected = loss_and_gradients(head_with(W.double(), s=4.0, m=0.5), x.double(), label)
    for value, right in zip(found[1:], expected[1:], strict=True):
        assert value.isfinite().all() and value.norm() < 3 * right.norm() + 1
        if theta >= 1e-5:
            assert relative(value, right) < 1e-5 + 4e-7 / theta


@pytest.mark.parametrize("m1", [1.0, 1.35])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("d", [8, 64, 512])
def test_a_multiple_of_the_own_centre_is_not_turned_by_rounding(d, sign, m1):
    """There the angle's direction is rounding alone, of which c_y ≈ 1/θ would make a full pull."""
    generator = torch.Generator().manual_seed(d)
    W, label = torch.randn(300, d, generator=generator), torch.arange(300)
    x = (sign * (0.1 + torch.rand(300, 1, generator=generator)) * W).requires_grad_()
    own = head_with(W, s=4.0, m=0.5, m1=m1)(x, label)[label, label]
    (gradient,) = torch.autograd.grad(own.sum(), x)
    pull = gradient.norm(dim=1) * x.detach().norm(dim=1)
    assert pull.max() < 4e-6  # a full pull is s·sin 0.5, about 2


@pytest.mark.parametrize("s", [16.0, 64.0, 1000.0])
def test_converged_samples(s):
    """A loss near 0 is never negative, and as exact as its logits: s times their rounding."""
    x, W, label = batch_at_angles(torch.linspace(0, 0.4, 64, dtype=torch.float64), 30)
    found = head_with(W.float(), s=s, m=0.5).loss(x.float(), label, reduction="none")
    expected = head_with(W, s=s, m=0.5).loss(x, label, reduction="none")
    assert found.min() >= 0
    ordinary = expected > 1e-36
    assert torch.allclose(found[ordinary].double(), expected[ordinary], rtol=4e-7 * s, atol=0)
    assert s < 64 or expected.min() < 1e-8


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_incoming_gradients(reduction):
    torch.manual_seed(0)
    head, x, label = (
        ArcMarginProduct(8, 5),
        torch.randn(11, 8, requires_grad=True),
        torch.arange(11) % 5,
    )
    w = torch.randn(11) if reduction == "none" else 3.0
    right = (w * F.cross_entropy(head(x, label), label, reduction=reduction)).sum()
    found = (w * head.loss(x, label, reduction=reduction, block=4)).sum()
    assert torch.allclose(found, right, rtol=1e-6)
    expected = torch.autograd.grad(right, (x, head.weight))
    for _ in range(3):  # a retained graph gives the same again
        gradients = torch.autograd.grad(found, (x, head.weight), retain_graph=True)
        assert all(
            torch.allclose(*pair, rtol=1e-5, atol=1e-5)
            for pair in zip(gradients, expected, strict=True)
        )
    found.backward()
    assert torch.allclose(x.grad, expected[0], rtol=1e-5, atol=1e-5)


def test_only_what_is_needed_is_made():
    """No gradient of what is frozen, and none without grad mode; the values stay."""
    torch.manual_seed(0)
    head, x, label = (
        ArcMarginProduct(8, 5),
        torch.randn(6, 8, requires_grad=True),
        torch.arange(6) % 5,
    )
    whole = torch.autograd.grad(head.loss(x, label), (x, head.weight))
    head.weight.requires_grad_(False)
    assert torch.equal(torch.autograd.grad(head.loss(x, label), x)[0], whole[0])
    assert torch.allclose(
        torch.autograd.grad(F.cross_entropy(head(x, label), label), x)[0], whole[0], atol=1e-6
    )
    head.weight.requires_grad_()
    assert torch.equal(torch.autograd.grad(head.loss(x.detach(), label), head.weight)[0], whole[1])
    loss = head.loss(x, label)
    with torch.no_grad():
        assert head.loss(x, label) == loss and not head.loss(x, label).requires_grad
        assert torch.equal(head(x, label), head(x, label))


class Products(TorchDispatchMode):
    """Counts the products that accumulate a gradient of any size."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten.addmm_.default and args[0].numel() > 0
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("x_needs", "W_needs"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_products_of_frozen_gradients_are_not_made(x_needs, W_needs):
    head, label = ArcMarginProduct(8, 5), torch.arange(6) % 5
    head.weight.requires_grad_(W_needs)
    x = torch.randn(6, 8, requires_grad=x_needs)
    for call in (head.loss, lambda x, y: F.cross_entropy(head(x, y), y)):
        with Products() as products:
            loss = call(x, label)
            if loss.requires_grad:
                loss.backward()
        assert products.count == x_needs + W_needs


def test_nothing_of_the_callers_is_overwritten():
    torch.manual_seed(0)
    head, x, label = (
        ArcMarginProduct(8, 5),
        torch.randn(6, 8, requires_grad=True),
        torch.arange(6) % 5,
    )
    incoming = torch.randn(6, 5)
    before = incoming.clone()
    torch.autograd.grad(head(x, label), x, incoming)
    assert torch.equal(incoming, before)
    losses = head.loss(x, label, reduction="none")
    doubled = losses.detach().clone() * 2
    losses.detach().mul_(2)
    losses.sum().backward()
    assert torch.equal(losses, doubled)


def test_empty_batch():
    head, x, label = (
        ArcMarginProduct(8, 5),
        torch.zeros(0, 8, requires_grad=True),
        torch.zeros(0).long(),
    )
    assert head(x, label).shape == (0, 5) and head(x).shape == (0, 5)
    assert head.loss(x, label).isnan() and head.loss(x, label, reduction="none").shape == (0,)
    head.loss(x, label, reduction="sum").backward()
    assert head.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("margins", [*MARGINS, {"m": 0.0, "m1": 4.0}, {"m": math.pi / 2}])
def test_the_slope_is_that_of_the_target_cosine(margins):
    """By differences of the target logit, away from seams and poles."""
    theta = torch.linspace(0.02, 3.1, 500, dtype=torch.float64)
    head = head_with(torch.eye(2, dtype=torch.float64), s=1.0, **margins)
    x = torch.stack([theta.cos(), theta.sin()], dim=1).requires_grad_()
    label = torch.zeros(len(theta), dtype=torch.int64)
    (gradient,) = torch.autograd.grad(head(x, label)[:, 0].sum(), x)
    slope = (gradient * torch.stack([-theta.sin(), theta.cos()], dim=1)).sum(1)

    def phi(theta):
        return head(torch.stack([theta.cos(), theta.sin()], dim=1), label)[:, 0].detach()

    numeric = (phi(theta + 1e-6) - phi(theta - 1e-6)) / 2e-6
    smooth = (numeric - slope).abs() < 1e-6
    assert smooth.sum() >= len(theta) - 4 and slope.max() <= 1e-12


def test_second_derivatives_are_those_of_forward():
    """A gradient penalty; with create_graph=True the first derivative is the same as without."""
    torch.manual_seed(0)
    head, label = ArcMarginProduct(6, 4, s=8.0, dtype=torch.float64), torch.arange(9) % 4
    x = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    found = []
    for loss in (F.cross_entropy(head(x, label), label), head.loss(x, label)):
        plain = torch.autograd.grad(loss, (x, head.weight), retain_graph=True)
        first = torch.autograd.grad(loss, (x, head.weight), create_graph=True)
        assert all(torch.allclose(*pair) for pair in zip(first, plain, strict=True))
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), (x, head.weight)))
    assert all(torch.allclose(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("path", ["forward", "loss"])
def test_overflow_in_float16_is_infinite_and_elsewhere_finite(path):
    """For a GradScaler to see it: nothing is cut before the scale has been multiplied in."""
    torch.manual_seed(0)
    label = torch.arange(8) % 4
    for dtype in DTYPES:
        x, W = (1e-2 * torch.randn(8, 6)).to(dtype), (1e-2 * torch.randn(4, 6)).to(dtype)
        head = head_with(W, s=64.0)
        x.requires_grad_()
        loss = F.cross_entropy(head(x, label), label) if path == "forward" else head.loss(x, label)
        (65536.0 * loss).backward()
        for grad in (x.grad, head.weight.grad):
            assert bool(grad.isinf().any()) == (dtype == torch.float16) and not grad.isnan().any()
        tiny = torch.full((8, 6), torch.finfo(dtype).smallest_normal).to(dtype).requires_grad_()
        loss = (
            F.cross_entropy(head(tiny, label), label)
            if path == "forward"
            else head.loss(tiny, label)
        )
        (65536.0 * loss).backward()
        assert dtype == torch.float16 or tiny.grad.isfinite().all()


@pytest.mark.parametrize("name", ["s", "m", "m1", "m3"])
def test_later_settings_are_checked_and_used(name):
    head, x, label = ArcMarginProduct(4, 3), torch.randn(5, 4), torch.arange(5) % 3
    for bad in (-1.0, math.nan, math.inf, "0.5", None):
        setattr(head, name, bad)
        for call in (head, head.loss):
            with pytest.raises(ValueError, match=rf"^{name} is {bad!r}; it must be"):
                call(x, label)
    before = ArcMarginProduct(4, 3)(x, label)
    setattr(head, name, 0.25)
    assert not torch.equal(head(x, label), before)
    assert f"{name}=0.25" in repr(head)


@pytest.mark.parametrize("name", ["s", "m", "m1", "m3"])
def test_no_number_is_named(name):
    with pytest.raises(ValueError, match=f"^{name} is '64'; it must be"):
        ArcMarginProduct(4, 3, **{name: "64"})


def test_bad_calls_of_loss_are_named():
    head, x, label = ArcMarginProduct(4, 3), torch.randn(2, 4), torch.zeros(2).long()
    with pytest.raises(ValueError, match="reduction is 'avg'; it must be 'mean', 'sum' or 'none'"):
        head.loss(x, label, reduction="avg")
    with pytest.raises(ValueError, match="block is 0; it must be at least 1"):
        head.loss(x, label, block=0)
    with pytest.raises(TypeError, match=r"label is None; it must be torch\.int64"):
        head.loss(x, None)
    with pytest.raises(TypeError, match=r"label is \[0, 0\]; it must be torch.int64"):
        head(x, [0, 0])
    with pytest.raises(TypeError, match=r"input is \[\[1.0\]\]; it must be floating point"):
        head([[1.0]])
    with pytest.raises(
        TypeError, match=r"input is array\(\[\[1\.\]\]\); it must be floating point"
    ):
        head(np.ones((1, 1)))
    with pytest.raises(TypeError, match=r"label is array\(\[0, 0\]\); it must be torch\.int64"):
        head(x, np.zeros(2, dtype=int))
    for call in (lambda: ArcMarginProduct(4.0, 3), lambda: ArcMarginProduct(4, 3.0)):
        with pytest.raises(ValueError, match=r"_features is [34]\.0; it must be at least [12], an"):
            call()
    with pytest.raises(ValueError, match=r"block is 2\.0; it must be at least 1, an int"):
        head.loss(x, label, block=2.0)
    assert ArcMarginProduct(np.int64(4), np.int64(3)).loss(x, label, block=np.int64(1)).isfinite()


def test_it_is_a_layer_like_others():
    head = ArcMarginProduct(4, 3, 16.0, 0.3, False, 1.2, 0.1, device="cpu", dtype=torch.float64)
    assert head.weight.dtype == torch.float64
    assert repr(head) == (
        "ArcMarginProduct(in_features=4, out_features=3, s=16.0, m=0.3, m1=1.2, m3=0.1, "
        "easy_margin=False)"
    )
    before = head.weight.detach().clone()
    head.reset_parameters()
    assert not torch.equal(head.weight, before)
    head.load_state_dict({"weight": before})
    assert torch.equal(head.weight, before)


# --- properties ----------------------------------------------------------------------------------

many = settings(max_examples=200, deadline=None)
seeds = st.integers(0, 2**32 - 1)
scales = st.floats(0.5, 64)
margin_sets = st.one_of(
    st.builds(lambda m: {"m": m}, st.floats(0, 1.5)),
    st.builds(lambda m1: {"m": 0.0, "m1": m1}, st.floats(0.5, 4)),
    st.builds(lambda m, m3: {"m": m, "m3": m3}, st.floats(0, 1), st.floats(0, 0.5)),
)


def random_case(seed, s, margins, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    d, n, batch = (int(torch.randint(2, high, (), generator=g)) for high in (9, 7, 6))
    x = torch.randn(batch, d, generator=g, dtype=dtype)
    return (
        x,
        head_with(torch.randn(n, d, generator=g, dtype=dtype), s=s, **margins),
        torch.randint(n, (batch,), generator=g),
    )


@many
@given(
    seeds,
    scales,
    margin_sets,
    st.integers(-40, 38),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_property_finite(seed, s, margins, exponent, dtype):
    x, head, label = random_case(seed, s, margins, torch.float32)
    x = (x / x.abs().max() * 10.0**exponent).to(dtype)
    if x.isfinite().all():
        values = loss_and_gradients(head, x, label)
        assert not any(value.isnan().any() for value in values)
        assert dtype == torch.float16 or all(value.isfinite().all() for value in values)


@many
@given(scales, margin_sets, st.floats(0, math.pi), st.floats(0, math.pi))
def test_property_monotone(s, margins, one, other):
    theta = torch.tensor(sorted([one, other]), dtype=torch.float64)
    head = head_with(torch.eye(2, dtype=torch.float64), s=s, **margins)
    logits = head(
        torch.stack([theta.cos(), theta.sin()], dim=1), torch.zeros(2, dtype=torch.int64)
    )[:, 0]
    assert logits[1] <= logits[0] + 1e-12 * s


@many
@given(seeds, scales, margin_sets, st.floats(-6, 6), st.floats(-6, 6))
def test_property_lengths_do_not_matter(seed, s, margins, longer_x, longer_w):
    x, head, label = random_case(seed, s, margins)
    scaled = head_with(head.weight.detach() * 10**longer_w, s=s, **margins)
    assert torch.allclose(scaled(x * 10**longer_x, label), head(x, label), atol=1e-9 * s)


@many
@given(seeds, scales, margin_sets)
def test_property_rotation_of_both_changes_nothing(seed, s, margins):
    x, head, label = random_case(seed, s, margins)
    rotation, _ = torch.linalg.qr(
        torch.randn(
            x.shape[1], x.shape[1], generator=torch.Generator().manual_seed(seed), dtype=x.dtype
        )
    )
    turned = head_with(head.weight.detach() @ rotation, s=s, **margins)
    assert torch.allclose(turned(x @ rotation, label), head(x, label), atol=1e-9 * s)


@many
@given(seeds, scales)
def test_property_without_margin_it_is_l2(seed, s):
    x, head, label = random_case(seed, s, {"m": 0.0})
    expected = F.cross_entropy(s * F.cosine_similarity(x[:, None], head.weight[None], dim=2), label)
    assert torch.allclose(F.cross_entropy(head(x, label), label), expected)


@many
@given(seeds, scales, margin_sets)
def test_property_permutation_of_classes(seed, s, margins):
    x, head, label = random_case(seed, s, margins)
    order = torch.randperm(len(head.weight), generator=torch.Generator().manual_seed(seed))
    permuted = head_with(head.weight.detach()[order], s=s, **margins)
    assert torch.allclose(permuted(x, order.argsort()[label]), head(x, label)[:, order])


@many
@given(seeds, scales, margin_sets)
def test_property_float32_agrees_with_float64(seed, s, margins):
    x, head, label = random_case(seed, s, margins, torch.float32)
    psi = head.m1 * angle(unit(x.double()), unit(head.weight.detach().double()[label])) + head.m
    if ((psi - math.pi).abs() > 1e-4).all():  # away from the seam
        double = head_with(head.weight.detach().double(), s=s, **margins)
        assert torch.allclose(head(x, label).double(), double(x.double(), label), atol=3e-6 * s)
