"""Muon, the optimizer of the convolutions' filters."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

A, B, C = 3.4445, -4.7750, 2.0315  # https://kellerjordan.github.io/posts/muon/


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with Nesterov's momentum, but computed in the precision of the network.

    torch's computes in bfloat16 everywhere. On a processor without instructions for it that took
    more than 15 times as long as in float32 on the filters of both default recipes
    (figures/benchmarks/README.md).

    Args:
        params: matrices, all with a gradient.
        lr: a step's length; it is multiplied by √(rows/columns) if that is > 1.
        precision: "float32" or "bfloat16".
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        ns_steps: int,
        precision: str,
    ):
        numbers = {"momentum": momentum, "weight_decay": weight_decay, "ns_steps": ns_steps}
        super().__init__(params, {"lr": lr} | numbers)
        self.dtype = getattr(torch, precision)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Update every matrix by its gradient."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for matrix in group["params"]:
                if not (state := self.state[matrix]):
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                mean = state["momentum_buffer"]
                mean.lerp_(matrix.grad, 1 - momentum)
                ahead = matrix.grad.lerp(mean, momentum)
                update = orthogonalised(ahead.to(self.dtype), group["ns_steps"])
                matrix.mul_(1 - rate * group["weight_decay"])
                rows, columns = matrix.shape
                matrix.add_(update, alpha=-rate * max(1, rows / columns) ** 0.5)


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """A matrix with the same singular vectors, whose singular values are nearer to 1, by so many
    steps of Newton and Schulz's iteration."""
    if len(matrix) > matrix.shape[1]:
        return orthogonalised(matrix.T, steps).T
    x = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x
