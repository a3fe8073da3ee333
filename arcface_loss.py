"""ArcFace (Deng et al., CVPR 2019) and its family of angular margins, as one PyTorch module.

This file needs torch and nothing else: copy it into your project.

    head = ArcMarginProduct(in_features=512, out_features=1000, s=64.0, m=0.5)
    loss = F.cross_entropy(head(embeddings, label), label)   # training: the margin needs the label
    prediction = head(embeddings).argmax(dim=1)              # inference: plain s·cos θ, no margin
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class ArcMarginProduct(nn.Module):
    """Cosine classifier with the combined angular margin of the paper's eq. 4.

    With x̂ and Ŵ_j the unit vectors of an embedding and of the centre of class j, and θ_j the angle
    between them, the logits are s·cos θ_j, except that of the sample's own class y:

        s·(cos(m1·θ_y + m) − m3)

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

    Where the cosine would turn upwards again, the target logit continues downwards. For m1 = 1 and
    θ_y > π − m it is s·(cos θ_y − m·sin m − m3), the form in common use, which drops a little at the
    seam. Otherwise, with ψ = m1·θ_y + m and k = ⌊ψ/π⌋, it is s·((−1)^k·cos ψ − 2k − m3), SphereFace's
    own continuation (https://arxiv.org/abs/1704.08063, eq. 7), which has no seam.

    Args:
        in_features: d, the length of an embedding.
        out_features: n, the number of classes.
        s: the scale of the logits, > 0: the radius of the hypersphere.
        m: the additive angular margin in radians (the paper's m2), in [0, π/2].
        easy_margin: apply the margin only where θ_y < 90° and leave s·cos θ_y elsewhere. Training
            starts more easily, but the target logit then jumps up at 90° by about s·sin m, so it is
            no longer monotone in θ.
        m1: the multiplicative angular margin, > 0.
        m3: the additive cosine margin, ≥ 0.

    State dict: ``weight``, n × d, one row for each class centre. Its rows need not have unit length.

    Raises:
        ValueError: an argument is outside the range given above.

    Source: J. Deng, J. Guo, N. Xue, S. Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep
    Face Recognition", CVPR 2019, https://arxiv.org/abs/1801.07698.
    """

    def __init__(self, in_features, out_features, s=30.0, m=0.50, easy_margin=False, m1=1.0, m3=0.0):
        super().__init__()
        _require(in_features >= 1, "in_features", in_features, "at least 1")
        _require(out_features >= 2, "out_features", out_features, "at least 2 classes")
        _require(0 < s < math.inf, "s", s, "a finite scale above 0")
        _require(0 <= m <= math.pi / 2, "m", m, "a margin in radians, between 0 and π/2")
        _require(0 < m1 < math.inf, "m1", m1, "a finite factor above 0")
        _require(0 <= m3 < math.inf, "m3", m3, "a finite cosine margin of 0 or more")
        self.in_features, self.out_features = in_features, out_features
        self.s, self.m, self.m1, self.m3 = s, m, m1, m3
        self.easy_margin = easy_margin
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, input: Tensor, label: Tensor | None = None) -> Tensor:
        """Logits for ``CrossEntropyLoss`` (with labels) or for prediction (without).

        Everything is computed in float32 (float64 for float64 input), under autocast too. Loss and
        gradient are finite for every finite input: the direction of a zero embedding is the zero
        vector (θ = 90° to every centre), and a gradient too large for the dtype of the input
        saturates at its largest number.

        Args:
            input: embeddings, N × d, of any length and any floating-point dtype.
            label: class indices, N, int64. None leaves the margin out.

        Returns:
            N × n logits: s·cos θ_j, the target ones with the margin.

        Raises:
            ValueError: a shape does not fit, or, on the CPU, a label is not in [0, n). On a GPU
                looking at the labels would stall the queue, so a bad one ends in CUDA's
                device-side assertion: check labels once, when they are loaded.
            TypeError: the embeddings are not floating point or the labels are not int64.
        """
        self._check(input, label)
        with torch.autocast(input.device.type, enabled=False):
            x = unit(input)
            W = F.normalize(self.weight.to(x.dtype))
            if label is None:
                return F.linear(self.s * x, W)
            # The own centres are looked up before the product, and their gradient is sparse: so the
            # backward pass adds N rows to the product's gradient instead of making an n × d one. (Apple's
            # GPUs have no sparse tensors.)
            excess = self.s * self._excess(x, F.embedding(label, W, sparse=not W.is_mps))
            return F.linear(self.s * x, W).scatter_add_(1, label[:, None], excess[:, None])

    def loss(self, input: Tensor, label: Tensor, chunk: int = 8192) -> Tensor:
        """``F.cross_entropy(self(input, label), label)`` without ever holding the N × n logits.

        The classes are taken ``chunk`` at a time, and each chunk's logits are computed again in the
        backward pass, so that the extra memory is a few times N × chunk numbers and the time about
        4/3. The weight is not copied either: the columns of the product are scaled by 1/‖W_j‖.

        Args:
            input: embeddings, N × d.
            label: class indices, N, int64.
            chunk: how many classes at a time, at least 1.

        Returns:
            The mean cross-entropy, a scalar. Raises as :meth:`forward` does.
        """
        self._check(input, label)
        _require(chunk >= 1, "chunk", chunk, "at least 1 class")
        with torch.autocast(input.device.type, enabled=False):
            x = unit(input)
            W_y = F.normalize(F.embedding(label, self.weight, sparse=not input.is_mps).to(x.dtype))
            excess = self.s * self._excess(x, W_y)
            target = self.s * (x * W_y).sum(dim=1) + excess
            return (_LogSumExp.apply(self.s * x, self.weight, label, excess, chunk) - target).mean()

    def _excess(self, x: Tensor, W_y: Tensor) -> Tensor:
        """What the margin adds to cos θ_y: cos(m1·θ_y + m) − m3 − cos θ_y, for unit vectors N × d."""
        theta = angle(x, W_y)
        psi = self.m1 * theta + self.m
        if self.m1 == 1:
            beyond = torch.cos(theta) - self.m * math.sin(self.m)
            phi = torch.where(psi <= math.pi, torch.cos(psi), beyond)
        else:
            k = (psi / math.pi).floor().detach()
            phi = (1 - 2 * (k % 2)) * torch.cos(psi) - 2 * k
        excess = phi - self.m3 - torch.cos(theta)
        return excess.where(theta < math.pi / 2, 0) if self.easy_margin else excess

    def _check(self, input: Tensor, label: Tensor | None) -> None:
        if input.ndim != 2 or input.shape[1] != self.in_features:
            raise ValueError(f"input has shape {tuple(input.shape)}; it must be (N, {self.in_features})")
        if not input.is_floating_point():
            raise TypeError(f"input is {input.dtype}; it must be floating point")
        if label is None:
            return
        if label.shape != input.shape[:1]:
            raise ValueError(f"label has shape {tuple(label.shape)}; it must be ({len(input)},), one for each row of input")
        if label.dtype != torch.int64:
            raise TypeError(f"label is {label.dtype}; it must be torch.int64: label.long()")
        if label.device.type == "cpu" and len(label) and not 0 <= label.min() <= label.max() < self.out_features:
            bad = label[(label < 0) | (label >= self.out_features)][0].item()
            raise ValueError(f"label contains {bad}; labels must be in [0, {self.out_features - 1}]")

    def extra_repr(self) -> str:
        margins = f"s={self.s}, m={self.m}, m1={self.m1}, m3={self.m3}, easy_margin={self.easy_margin}"
        return f"in_features={self.in_features}, out_features={self.out_features}, {margins}"


def unit(x: Tensor) -> Tensor:
    """The rows of x, N × d, divided by their lengths, in float32 (float64 for float64).

    No length overflows or underflows: each row is first divided by its largest entry, a constant that
    the direction does not depend on. A zero row stays zero. The gradient, of size 1/‖x‖, saturates at
    the largest number of x's dtype.
    """
    largest = torch.finfo(x.dtype).max
    x = x.to(torch.promote_types(x.dtype, torch.float32)).view_as(x)
    if x.requires_grad:
        x.register_hook(lambda grad: grad.clamp(-largest, largest))
    size = x.detach().abs().amax(dim=1, keepdim=True)
    return F.normalize(x / size.where(size > 0, 1), eps=1.0)  # lengths are now 0, or in [1, √d]


def angle(u: Tensor, v: Tensor) -> Tensor:
    """The angle in radians, in [0, π], between the rows of u and v, unit vectors N × d.

    2·atan2(‖u − v‖, ‖u + v‖) is as accurate near 0 and π as anywhere else, and its gradient is finite
    there, which arccos(u·v) is not (W. Kahan, "How Futile are Mindless Assessments of Roundoff in
    Floating-Point Computation?", 2006, section 12).
    """
    return 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=1), torch.linalg.vector_norm(u + v, dim=1))


class _LogSumExp(torch.autograd.Function):
    """:func:`_logsumexp` of all rows of W, ``chunk`` at a time, forwards and backwards.

    The backward pass computes each chunk again and writes its gradient in place, so that beside W and its gradient
    only one chunk is ever held. (torch.utils.checkpoint would hold the chunks' gradients and then join them: a
    third copy of W.)
    """

    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor, label: Tensor, excess: Tensor, chunk: int) -> Tensor:
        parts = [_logsumexp(x, W[i : i + chunk], label - i, excess) for i in range(0, len(W), chunk)]
        total = torch.stack(parts).logsumexp(dim=0)
        ctx.save_for_backward(x, W, label, excess, total)
        ctx.chunk = chunk
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, W, label, excess, total = ctx.saved_tensors
        grad_x, grad_W, grad_excess = torch.zeros_like(x), torch.empty_like(W), torch.zeros_like(excess)
        for i in range(0, len(W), ctx.chunk):
            rows = slice(i, i + ctx.chunk)
            with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
                inputs = [tensor.detach().requires_grad_() for tensor in (x, W[rows], excess)]
                part = _logsumexp(inputs[0], inputs[1], label - i, inputs[2])
            part_x, grad_W[rows], part_excess = torch.autograd.grad(part, inputs, grad * (part.detach() - total).exp())
            grad_x += part_x
            grad_excess += part_excess
        return grad_x, grad_W, None, grad_excess, None


def _logsumexp(x: Tensor, W: Tensor, label: Tensor, excess: Tensor) -> Tensor:
    """log Σ_j exp(x·W_j/‖W_j‖) over the rows of W, with ``excess`` added at ``label`` where W has that row."""
    length = torch.linalg.vector_norm(W, dim=1).clamp_min(1e-12)
    logits = F.linear(x, W.to(x.dtype)) / length
    here = (label >= 0) & (label < len(W))
    excess = excess.where(here, 0)[:, None]
    return logits.scatter_add(1, label.where(here, 0)[:, None], excess).logsumexp(dim=1)


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
