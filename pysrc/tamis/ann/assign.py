"""kmeans_assign: checks and registration; the arithmetic is in kernels/ann."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.backend import choose
from ..common.checks import check_choice, fail, real_dtype
from ..common.registry import register
from . import encode_reference as reference
from .encode import check_finite, check_vectors
from .encode_reference import METRICS


class Assignment(NamedTuple):
    """indices int64 [n], and the distances (of "ip" the inner products) there [n]."""

    indices: Tensor
    distances: Tensor


def kmeans_assign(x: Tensor, centroids: Tensor, *, metric: str = "l2", impl: str = "auto") -> Assignment:
    """The nearest centroid of each vector; no [n, centroids] matrix is held.

    Of equal scores the lowest index. Deterministic, for any number of threads; two instruction sets may differ where
    two centroids are within rounding. Not differentiable.

    Args:
        x: [n, d], float32, bfloat16, float16 or float64; n may be 0. Rows may be strided, and memory-mapped.
        centroids: [L, d], at least one, finite; any of those dtypes, taken as float32 (float64 where x is).
        metric: "l2": least squared distance. "ip": largest inner product.
        impl: "auto", "reference" or "cpu".
    Returns:
        Assignment: indices int64 [n]; distances [n] float32 (float64 for float64), squared, computed from the
        differences; of "ip" the inner products. A row with NaN or infinity gets index 0 and NaN.
    Raises:
        TypeError, ValueError: an argument, before any work.
    """
    fn = "kmeans_assign"
    x = check_vectors(fn, "x", x)
    centroids = check_vectors(fn, "centroids", centroids, x.shape[1], least=1)
    if centroids.device != x.device:
        fail(fn, "centroids", f"device {x.device}", centroids.device)
    check_finite(fn, "centroids", centroids)
    check_choice(fn, "metric", metric, METRICS)
    choice = choose(fn, impl, x)
    plain = choice.backend == "reference"
    op: Callable[..., Any] = reference.kmeans_assign if plain else torch.ops.tamis.kmeans_assign.default
    return Assignment(*op(x, centroids, metric))


def _fake(x: Tensor, centroids: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], dtype=torch.int64), x.new_empty(x.shape[0], dtype=real_dtype(x))


register("kmeans_assign", fake=_fake, reference=reference.kmeans_assign)
