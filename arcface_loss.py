"""ArcFace (Deng et al., CVPR 2019) and its family of angular margins, as one PyTorch module.

head = ArcMarginProduct(in_features=512, out_features=1000, s=64.0, m=0.5)
loss = F.cross_entropy(head(embeddings, label), label)   # training: the margin needs the label
loss = head.loss(embeddings, label)                      # the same without the logits' memory
prediction = head(embeddings).argmax(dim=1)              # inference: plain s·cos θ, no margin"""

import math
from functools import partial
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import _C, Tensor, nn


class ArcMarginProduct(nn.Module):
    """Cosine classifier with the combined angular margin of the paper's eq. 4.

    With x̂ and Ŵ_j the unit vectors of an embedding and of the centre of class j, and θ_j the angle
    between them, the logits are s·cos θ_j, but for the sample's own class y it is s·φ(θ_y):

        φ(θ) = cos(m1·θ + m) − m3

    ==========================  ====  ====  =====
    loss                        m1    m     m3
    ==========================  ====  ====  =====
    normalised softmax, eq. 2   1     0     0
    SphereFace                  1.35  0     0
    **ArcFace, eq. 3**          1     0.5   0
    CosFace                     1     0     0.35
    CM1                         1     0.3   0.2
    CM2                         0.9   0.4   0.15
    ==========================  ====  ====  =====

    Where ψ = m1·θ + m exceeds π, the cosine would rise again. There φ goes on falling: for m1 = 1,
    as in common use, as cos θ − m·sin m − m3, with a drop at θ = π − m; else as SphereFace's
    (−1)^k·cos ψ − 2k − m3 with k = ⌊ψ/π⌋, without one (https://arxiv.org/abs/1704.08063, eq. 7).

    Args:
        in_features, out_features: d, the length of an embedding, and n, the number of classes.
        s: the scale of the logits, > 0: the radius of the hypersphere.
        m: the additive angular margin in radians (the paper's m2), in [0, π/2].
        easy_margin: the margin only for θ_y < 90°; at 90° ArcFace's logit then jumps by s·sin m.
        m1, m3: the multiplicative angular margin, > 0, and the additive cosine margin, ≥ 0.
        device, dtype: of ``weight``, the state dict's only entry: n × d, a row for each centre.

    A setting out of its range raises ValueError. All is computed in float32 (float64 if x or
    ``weight`` is), under autocast too, for rows of any length; a zero row is at 90° to everything.
    Gradients grow as 1/length, up to the largest number; in float16 to ∞, for a GradScaler to see.

    ``loss`` runs no module hooks (parametrizations work). Under DDP call it in the wrapped module's
    forward; FSDP2 needs register_fsdp_forward_method. torch.compile (first order), export,
    torch.func, forward AD and ``create_graph=True`` differentiate the plain formula: ``loss`` holds
    all logits, gradients may overflow, autocast reaches their products, traced labels unchecked."""

    def __init__(self, in_features: int, out_features: int, s: float = 30.0, m: float = 0.50,
        easy_margin: bool = False, m1: float = 1.0, m3: float = 0.0, *,
        device: torch.types.Device = None, dtype: torch.dtype | None = None) -> None:  # fmt: skip
        super().__init__()
        self.in_features, self.out_features = d, n = in_features, out_features
        self.s, self.m, self.m1, self.m3, self.easy_margin = s, m, m1, m3, easy_margin
        self._check_settings()
        self.weight = nn.Parameter(torch.empty(n, d, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the class centres anew."""
        nn.init.xavier_uniform_(self.weight)

    def forward(self, input: Tensor, label: Tensor | None = None) -> Tensor:
        """N × n logits, for ``CrossEntropyLoss`` (with labels) or for prediction (without).
        input is N × d, of 16 bits or more; label N, int64 (no ignore_index), or None: no margin.
        TypeError or ValueError if they do not fit, or a label is not in [0, n) (GPU: asserts)."""
        self._check(input, label, optional=True)
        return _differentiable(self, label, None, 1, input, self.weight)

    def loss(self, input: Tensor, label: Tensor, *,
        reduction: str = "mean", block: int | None = None) -> Tensor:  # fmt: skip
        """``F.cross_entropy(self(input, label), label, reduction=reduction)`` in less memory: the
        weight, its gradient unless frozen, and the logits of ``block`` samples (None: as many as
        have 2²⁷ logits, at least 64), which "none" and a second backward pass make again."""
        self._check(input, label, optional=False)
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}; it must be 'mean', 'sum' or 'none'")
        block = max(64, 2**27 // self.out_features) if block is None else block
        _require("block", block, lambda block: block > 0, "at least 1, an int", Integral)
        return _differentiable(self, label, reduction, block, input, self.weight)

    def target_cosine(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """φ(θ) and −φ′(θ), for θ in radians, of any shape. Parameters in it get no gradient."""
        psi, cos, sin = self.m1 * theta + self.m, torch.cos(theta), torch.sin(theta)
        if self.m1 == 1:
            falling = psi < math.pi
            phi = torch.cos(psi).where(falling, cos - self.m * math.sin(self.m)) - self.m3
            slope = torch.sin(psi).where(falling, sin)
        else:
            k = (psi.detach() / math.pi).floor()
            sign = 1 - 2 * (k % 2)
            phi, slope = sign * torch.cos(psi) - 2 * k - self.m3, self.m1 * sign * torch.sin(psi)
        if self.easy_margin:
            near = theta < math.pi / 2
            phi, slope = phi.where(near, cos), slope.where(near, sin)
        return phi, slope

    def extra_repr(self) -> str:
        names = ("in_features", "out_features", "s", "m", "m1", "m3", "easy_margin")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _check_settings(self) -> None:
        _require("in_features", self.in_features, lambda d: d > 0, "at least 1, an int", Integral)
        _require("out_features", self.out_features, lambda n: n > 1, "at least 2, an int", Integral)
        _require("s", self.s, lambda s: 0 < s < math.inf, "a finite number above 0")
        _require("m", self.m, lambda m: 0 <= m <= math.pi / 2, "a number of radians, 0 to π/2")
        _require("m1", self.m1, lambda m1: 0 < m1 < math.inf, "a finite number above 0")
        _require("m3", self.m3, lambda m3: 0 <= m3 < math.inf, "a finite number, at least 0")

    def _check(self, x: Tensor, label: Tensor | None, optional: bool) -> None:
        self._check_settings()  # they may have been set anew
        given = [v.dtype if isinstance(v, Tensor) else f"{v!r:.60}" for v in (x, label)]
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.itemsize > 1):
            raise TypeError(f"input is {given[0]}; it must be floating point, of 16 bits or more")
        if x.shape[1:] != ((d := self.in_features),):
            raise ValueError(f"input has shape {tuple(x.shape)}; it must be (N, {d})")
        if optional and label is None:
            return
        if not (isinstance(label, Tensor) and label.dtype == torch.int64):
            raise TypeError(f"label is {given[1]}; it must be torch.int64: label.long()")
        if (label.shape, label.device) != (x.shape[:1], x.device):
            needed = f"{tuple(x.shape[:1])}, on {x.device} like input"
            raise ValueError(f"label has shape {tuple(label.shape)}; it must be {needed}")
        if label.device.type == "cpu" and type(label) is Tensor and _eager() and len(label):
            for y in map(int, label.aminmax()):
                if not (n := self.out_features) > y >= 0:
                    raise ValueError(f"label contains {y}; labels must be in [0, {n - 1}]")


def unit(x: Tensor) -> Tensor:
    """The rows of x, N × d, over their lengths, of any size: float32 (float64 for float64)."""
    return _unit(x.to(torch.promote_types(x.dtype, torch.float32)))[0]


def angle(u: Tensor, v: Tensor) -> Tensor:
    """The angle in radians, in [0, π], between the rows of u and v, N × d, of length 1 (or 0: 90°).
    2·atan2(‖u − v‖, ‖u + v‖) is accurate near 0 and π too, its gradient finite, unlike that of
    arccos(u·v) (W. Kahan, "How Futile are Mindless Assessments of Roundoff", 2006, section 12)."""
    p, q = _length(u - v)[:, 0], _length(u + v)[:, 0]
    half = torch.atan2(p + (both_zero := p + q == 0), q + both_zero)
    return half + half.where(p * p + q * q > 3, half.detach())  # u or v is 0: dθ = −d(u·v)


def _formula(head: ArcMarginProduct, label: Any, reduction: Any, x: Tensor, W: Tensor) -> Tensor:
    """The loss, or with no reduction the logits, for autograd to differentiate, to any order."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, W.dtype), torch.float32)
    x_hat, W_hat = unit(x.to(dtype)), unit(W.to(dtype))
    z = F.linear(head.s * x_hat, W_hat)
    if label is not None:
        theta = angle(x_hat, F.embedding(label, W_hat))
        excess = head.s * (head.target_cosine(theta)[0] - torch.cos(theta))
        z = z.scatter_add(1, label[:, None], excess[:, None])
    return z if reduction is None else F.cross_entropy(z, label, reduction=reduction)


def _sphere(head: ArcMarginProduct, label: Any, needs: Any, x: Tensor, W: Tensor) -> Any:
    """x̂; the map from samples to their logits; and that from pairs of samples and a gradient in
    their logits, which it overwrites, to the gradients in x and W."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, W.dtype), torch.float32)
    size = max(1, 2**20 // W.shape[1])  # rows of W that fit into a cache
    x_hat, *length = _unit(x.to(dtype))
    first, rest = _unit(W[:size].to(dtype)), range(size, len(W), size)
    kept, known = x_hat.new_empty(2, len(W), 1), set[int]()  # of the rest, the lengths alone
    s, d_x, d_W = head.s, *(x.shape[1] * need for need in needs)  # no columns: no gradient
    if label is not None:
        W_y = unit(F.embedding(label, W).to(dtype)) if rest else F.embedding(label, first[0])
        theta = angle(x_hat, W_y)[:, None]
        (phi, slope), sin = head.target_cosine(theta), torch.sin(theta)
        c_y = (slope / sin).where(sin > 4 * torch.finfo(dtype).eps, 1)  # ∂φ/∂cos θ_y; idle at 0, π
        excess = s * (phi - torch.cos(theta))

    def centres() -> Any:
        yield slice(size), first
        for j in rest:
            rows, (peak, norm) = W[part := slice(j, j + size)], kept[:, part]
            V = [(rows / peak).div_(norm), peak, norm] if j in known else _unit(rows.to(dtype))
            _, peak[:], norm[:] = V
            known.add(j)
            yield part, V

    def logits(rows: slice) -> Tensor:
        z = x_hat.new_empty(len(e := s * x_hat[rows]), len(W))
        for part, (V, *_) in centres():
            torch.mm(e, V.T, out=z[:, part])  # in place: parts to be joined would scatter the heap
        return z if label is None else z.scatter_add_(1, label[rows, None], excess[rows])

    def pull(blocks: Any) -> tuple[Tensor, Tensor]:
        dx, dW = torch.zeros_like(x_hat[:, :d_x]), torch.zeros_like(W[:, :d_W], dtype=dtype)
        for rows, G in blocks:
            if label is not None:
                G.scatter_(1, y := label[rows, None], G.gather(1, y) * c_y[rows])
            for part, (V, *lengths) in centres():
                dx[rows].addmm_(G[:, part], V[:, :d_x])
                dW[part].addmm_(G[:, part].T, x_hat[rows, :d_W])
                if (rows.stop or len(x)) >= len(x):  # the last block
                    _through_unit(s, dW[part], V[:, :d_W], *lengths)
        _through_unit(s, dx, x_hat[:, :d_x], *length)
        return dx, dW

    return x_hat, logits, pull


def _closed(head: Any, label: Any, reduction: Any, block: int, needs: Any, x: Any, W: Any) -> Any:
    """What _formula returns, and the map from its gradient to those in x and W."""
    x_hat, logits, pull = _sphere(head, label, needs, x, W)
    if reduction is None:
        return logits(slice(None)), lambda grad: pull([(slice(None), grad.clone())])
    share = (losses := x_hat.new_ones(len(x)))[:, None] / (len(x) if reduction == "mean" else 1)
    now = any(needs) and reduction != "none"  # gradients now; later times G, NaN for ∞

    def blocks(share: Tensor) -> Any:
        for rows in (slice(i, i + block) for i in range(0, len(x), block)):
            z, y = logits(rows), label[rows, None]
            target, peak = z.gather(1, y), z.scatter_(1, y, -math.inf).amax(dim=1, keepdim=True)
            total = z.sub_(peak).exp_().sum(dim=1, keepdim=True)
            gap = peak + total.log() - target  # log Σ_{j≠y} e^{z_j} − z_y
            losses[rows] = F.softplus(gap, threshold=40)[:, 0]
            wrong = share[rows] * torch.sigmoid(gap)  # share·(1 − p_y)
            yield rows, z.mul_(wrong / total).scatter_(1, y, -wrong)

    made = pull(blocks(share)) if now else [share for _ in blocks(share)]  # the losses alone
    value = losses.clone() if reduction == "none" else getattr(losses, reduction)()
    return value, lambda G: [g.mul_(G - G + G) for g in made] if now else pull(blocks(G[:, None]))


def _unit(v: Tensor) -> list[Tensor]:
    """v̂ and two factors of the rows' lengths, which may overflow: v = peak·norm·v̂."""
    peak = v.detach().abs().amax(dim=1, keepdim=True)  # which the direction does not depend on
    v = v / (peak := peak.masked_fill(zero := peak == 0, 1))
    norm = _length(v).masked_fill(zero, 1)
    return [v / norm, peak, norm]


def _length(v: Tensor) -> Any:
    if _eager() and not torch.is_grad_enabled():  # nobody needs derivatives: in one operation
        return torch.linalg.vector_norm(v, dim=1, keepdim=True)
    square = v.square().sum(dim=1, keepdim=True)  # whose root gets derivatives of 0 at 0, not NaN
    return square.masked_fill(square == 0, 1).sqrt().masked_fill(square == 0, 0)


def _through_unit(s: float, g: Tensor, u: Tensor, peak: Tensor, norm: Tensor) -> None:
    """In place: s·g, a gradient in û, becomes that in peak·norm·û: tangential, over the length."""
    g.addcmul_(u, torch.linalg.vecdot(g, u)[:, None], value=-1).mul_(s / norm).div_(peak)
    g.nan_to_num_(math.nan)  # ±inf to the largest number, so that no gradient of 0 makes it NaN


def _differentiable(head: Any, label: Any, reduction: Any, block: int, x: Any, W: Any) -> Tensor:
    """The loss, or with no reduction the logits: in closed form where that will do."""
    needs = [torch.is_grad_enabled() and v.requires_grad for v in (x, W)]
    if eager := _eager():  # copies: they may change before the backward pass
        vars(twin := object.__new__(type(head))).update(vars(head))  # copy.copy can fail
        head, label = twin, label if label is None else label.clone()
    formula = partial(_formula, head, label, reduction)
    closed = partial(_closed, head, label, reduction, block, needs)
    with torch.autocast(x.device.type.replace("meta", "cpu"), enabled=False):
        return _ClosedForm.apply(formula, closed, x, W) if eager else formula(x, W)


class _ClosedForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, formula: Any, closed: Any, x: Tensor, W: Tensor) -> Any:
        ctx.save_for_backward(x, W)
        ctx.formula, ctx.closed, ctx.W, (value, ctx.pull) = formula, closed, W, closed(x, W)
        return value

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> Any:
        x, W = ctx.saved_tensors  # copies, where hooks make some
        with torch.autocast(x.device.type.replace("meta", "cpu"), enabled=False):
            if _C._functorch.is_legacy_batchedtensor(G) or torch.is_grad_enabled() or not _eager():
                with torch.enable_grad():
                    v = [x.view_as(x), W.view_as(W)]  # no path joins these, should W be made of x
                    value = ctx.formula(*v)
                v, again = [t for t in v if t.requires_grad], torch.is_grad_enabled()
                made = iter(torch.autograd.grad(value, v, G, create_graph=again))
                return None, None, *(next(made) if n else None for n in ctx.needs_input_grad[2:])
            pull, ctx.pull, ctx.W = (W is ctx.W and ctx.pull) or ctx.closed(x, W)[1], None, None
            grads = [g.to(v.dtype) for g, v in zip(pull(G), (x, W), strict=True)]
        return None, None, *(g if g.dtype == torch.half else g.nan_to_num_(math.nan) for g in grads)


def _eager() -> bool:
    """Whether values may be read, and written in place: nothing traces or transforms."""
    traced = torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0
    traced = traced or _C._get_dispatch_mode(_C._TorchDispatchModeKey.PROXY) is not None  # make_fx
    return not (traced or _C._is_tracing() or _C._are_functorch_transforms_active())


def _require(name: str, value: Any, holds: Any, allowed: str, kind: Any = Real) -> None:
    if not (isinstance(value, kind) and holds(value)):
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
