"""arcface_loss.py against float64 autograd, other libraries and the geometry it promises."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses

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
    """Embeddings at the angles theta from the centres of their labels, with lengths from 0.1 to 10; float64."""
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


def loss_and_gradients(head, x, label, chunk=None):
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(head(x, label), label) if chunk is None else head.loss(x, label, chunk)
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
    for value, expected in zip(found, [loss.detach(), *torch.autograd.grad(loss, [x, W])], strict=True):
        assert relative(value, expected) < 1e-5


@pytest.mark.parametrize(
    "margins", [{"m": 0.0, "m1": 1.35}, {"m": 0.4, "m1": 0.9, "m3": 0.15}, {"m": 0.3, "m3": 0.2}, {"m": 0.0, "m3": 0.35}]
)
def test_the_other_margins_agree_too(margins):
    theta = torch.linspace(POLE_CLEARANCE, math.pi - POLE_CLEARANCE, 512, dtype=torch.float64)
    seam = (math.pi - margins["m"]) / margins.get("m1", 1)
    x, W, label = batch_at_angles(theta[(theta - seam).abs() > SEAM_CLEARANCE], 10)
    x, W = x.float(), W.float()
    found = head_with(W, s=30.0, **margins)(x, label)
    assert torch.allclose(found.double(), reference_logits(x.double(), W.double(), label, 30.0, **margins), atol=2e-5)


def test_gradcheck():
    theta = torch.linspace(0.05, 3.0, 12, dtype=torch.float64)
    x, W, label = batch_at_angles(theta, 5, d=4)
    head = head_with(W, s=8.0, m=0.5)
    for function in (lambda x: head(x, label), lambda x: head.loss(x, label, 2)):
        assert torch.autograd.gradcheck(function, x.requires_grad_(), check_undefined_grad=False)


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
@pytest.mark.parametrize("margins", [{"m": 0.5}, {"m": 1.5, "easy_margin": True}, {"m": 0.0, "m1": 4.0}, {"m": 0.3, "m3": 0.2}])
def test_finite_everywhere(case, dtype, autocast, path, margins):
    torch.manual_seed(0)
    head = ArcMarginProduct(8, 4, s=64.0, **margins)
    x = torch.stack([AWKWARD[case](w.to(dtype)) for w in head.weight.detach()])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = loss_and_gradients(head, x, torch.arange(4), None if path == "forward" else 3)
    assert values[1].dtype == dtype
    assert all(value.isfinite().all() for value in values)


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
    assert head_with(W, s=1.0, m=0.5)(x, label)[0, 0].item() == pytest.approx(math.cos(3.0) - 0.5 * math.sin(0.5))
    assert head_with(W, s=1.0, m=0.0, m1=1.35)(x, label)[0, 0].item() == pytest.approx(-2 - math.cos(1.35 * 3.0))


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


def test_chunks_give_the_plain_path():
    torch.manual_seed(0)
    head, x, label = ArcMarginProduct(24, 1003, s=64.0), torch.randn(65, 24), torch.randint(1003, (65,))
    plain = loss_and_gradients(head, x, label)
    for chunk in (1, 100, 1003, 5000):
        for value, expected in zip(loss_and_gradients(head, x, label, chunk), plain, strict=True):
            assert relative(value, expected.double()) < 1e-5


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
    """Everywhere but at θ = 0 and π, where the gradient of their arccos is infinite; their m is in degrees."""
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


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_ARGUMENTS.items() for value in values])
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is {value}; it must be"):
        ArcMarginProduct(**{"in_features": 4, "out_features": 3, name: value})


@pytest.mark.parametrize("call", ["forward", "loss"])
@pytest.mark.parametrize(
    ("x", "label", "error", "message"),
    [
        (torch.randn(5, 3), torch.zeros(5).long(), ValueError, r"input has shape \(5, 3\); it must be \(N, 4\)"),
        (torch.randn(4), torch.zeros(4).long(), ValueError, r"input has shape \(4,\)"),
        (torch.ones(5, 4).long(), torch.zeros(5).long(), TypeError, "input is torch.int64"),
        (torch.randn(5, 4), torch.zeros(4).long(), ValueError, r"label has shape \(4,\); it must be \(5,\)"),
        (torch.randn(5, 4), torch.zeros(5, 1).long(), ValueError, r"label has shape \(5, 1\)"),
        (torch.randn(5, 4), torch.zeros(5), TypeError, r"label is torch.float32; it must be torch.int64: label.long\(\)"),
        (torch.randn(2, 4), torch.tensor([0, 3]), ValueError, r"label contains 3; labels must be in \[0, 2\]"),
        (torch.randn(2, 4), torch.tensor([-1, 0]), ValueError, "label contains -1"),
    ],
)
def test_bad_input_is_named(call, x, label, error, message):
    with pytest.raises(error, match=message):
        getattr(ArcMarginProduct(4, 3), call)(x, label)


def test_an_existing_checkpoint_loads():
    head = ArcMarginProduct(4, 3)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {"weight": (3, 4)}


# --- properties ----------------------------------------------------------------------------------

many = settings(max_examples=1500, deadline=None)
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
    return x, head_with(torch.randn(n, d, generator=g, dtype=dtype), s=s, **margins), torch.randint(n, (batch,), generator=g)


@many
@given(seeds, scales, margin_sets, st.integers(-40, 38), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_property_finite(seed, s, margins, exponent, dtype):
    x, head, label = random_case(seed, s, margins, torch.float32)
    x = (x / x.abs().max() * 10.0**exponent).to(dtype)
    if x.isfinite().all():
        assert all(value.isfinite().all() for value in loss_and_gradients(head, x, label))


@many
@given(scales, margin_sets, st.floats(0, math.pi), st.floats(0, math.pi))
def test_property_monotone(s, margins, one, other):
    theta = torch.tensor(sorted([one, other]), dtype=torch.float64)
    head = head_with(torch.eye(2, dtype=torch.float64), s=s, **margins)
    logits = head(torch.stack([theta.cos(), theta.sin()], dim=1), torch.zeros(2, dtype=torch.int64))[:, 0]
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
        torch.randn(x.shape[1], x.shape[1], generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
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
