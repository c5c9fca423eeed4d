"""The same functions in plain torch, for any device."""

from collections.abc import Callable, Sequence
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional

from ..common.checks import FLOATS, NAMES, fail

ACTIVATIONS = {
    "relu": functional.relu,
    "squared_relu": lambda x: functional.relu(x).square(),
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}
SELECTIONS = ("exact", "gaussian", "searched")


def descending(x: Tensor) -> Tensor:
    """A stable order of each row, NaN first: torch's sort on CUDA puts a NaN whose sign is set last."""
    key = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
    return torch.sort(key, dim=-1, descending=True, stable=True).indices


def check_topk(x: Tensor, k: int, dim: int) -> None:
    """What topk is given: TypeError, ValueError. Sizes that a traced graph leaves open pass."""
    if x.dtype not in FLOATS:
        fail("topk", "x", NAMES, x.dtype, TypeError)
    if x.dim() == 0:
        fail("topk", "x", "at least one axis", "a number")
    if not -x.dim() <= dim < x.dim():
        fail("topk", "dim", f"{-x.dim()} to {x.dim() - 1}", dim)
    n = x.shape[dim]
    if isinstance(k, int) and isinstance(n, int) and not 1 <= k <= n:
        fail("topk", "k", f"1 to {n}, the size of dim {dim}", k)


def topk(x: Tensor, k: int, dim: int = -1, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """By a stable sort, so of equals the lowest index comes first."""
    check_topk(x, k, dim)
    x = x.transpose(dim, -1)
    indices = descending(x).narrow(-1, 0, k)
    indices = indices.contiguous() if sorted else indices.sort(dim=-1).values
    return x.gather(-1, indices).transpose(dim, -1), indices.transpose(dim, -1)


def deviations(k: int, n: int) -> float:
    """Above the mean, beyond which a share k/n of a normal distribution lies; k < n."""
    if not 1 <= k < n:
        raise ValueError(f"tamis.gaussian_topk: k: expected 1 to {n}, the size of the last axis, got {k}")
    return NormalDist().inv_cdf(1 - k / n)


def gaussian_topk(x: Tensor, k: int) -> Tensor:
    n = x.shape[-1]
    if k == n:
        return x.clone()
    real = x if x.dtype == torch.float64 else x.float()
    std, mean = torch.std_mean(real, dim=-1, correction=0, keepdim=True)
    return functional.relu(real - (mean + std * deviations(k, n))).to(x.dtype)


Largest = Callable[[Tensor, int], Sequence[Tensor]]


def hidden_values(
    x: Tensor,
    w_up: Tensor,
    b_up: Tensor | None,
    k: int,
    w_gate: Tensor | None,
    b_gate: Tensor | None,
    activation: str,
    selection: str,
    largest: Largest = topk,
) -> Tensor:
    """[*, d_ff]: what topk_mlp multiplies by w_down, zeros included. largest: who selects."""
    up = functional.linear(x, w_up, b_up)
    gate = up if w_gate is None else functional.linear(x, w_gate, b_gate)
    if selection == "gaussian":
        gate = gaussian_topk(gate, k)
    values = ACTIVATIONS[activation](gate)
    values = values if w_gate is None else values * up
    if selection == "exact":
        chosen = largest((values if w_gate is None else values.abs()).detach(), k)[1]
        values = torch.where(torch.zeros_like(values, dtype=torch.bool).scatter(-1, chosen, True), values, 0)
    return values


def topk_mlp(
    x: Tensor,
    w_up: Tensor,
    b_up: Tensor | None,
    w_down: Tensor,
    b_down: Tensor | None,
    k: int,
    w_gate: Tensor | None = None,
    b_gate: Tensor | None = None,
    activation: str = "relu",
    selection: str = "exact",
    *,
    largest: Largest = topk,
) -> Tensor:
    """Dense: what is not selected is multiplied as zeros."""
    values = hidden_values(x, w_up, b_up, k, w_gate, b_gate, activation, selection, largest)
    return project_down(values, w_down, b_down)


def project_down(values: Tensor, w_down: Tensor, b_down: Tensor | None) -> Tensor:
    """values w_down + b_down, [*, d_ff] by [d_ff, d_out]. Of half precision a contiguous weight: torch's CPU takes
    several times as long for a transposed one."""
    weight = w_down.mT
    if w_down.device.type == "cpu" and w_down.dtype.itemsize == 2:
        weight = weight.contiguous()
    return functional.linear(values, weight, b_down)
