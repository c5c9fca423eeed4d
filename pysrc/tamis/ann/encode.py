"""Product quantizer codes: checks and registration; the arithmetic is in kernels/ann."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ..common.backend import choose
from ..common.checks import (
    FLOATS,
    NAMES,
    check_dense,
    check_integer,
    check_like,
    check_number,
    fail,
    reads_values,
)
from ..common.registry import register
from . import encode_reference as reference


def check_vectors(fn: str, name: str, value: object, d: int | None = None, *, least: int = 0) -> Tensor:
    """[n, d] of a float dtype; at least one dimension."""
    x = check_dense(fn, name, value)
    if x.dtype not in FLOATS:
        fail(fn, name, NAMES, x.dtype, TypeError)
    if x.dim() != 2 or x.shape[1] == 0 or (d is not None and x.shape[1] != d):
        fail(fn, name, f"[n, {'d' if d is None else d}]" + (", d at least 1" if d is None else ""), list(x.shape))
    if least and x.shape[0] < least:
        fail(fn, name, f"at least {least} of them", x.shape[0])
    return x


def check_finite(fn: str, name: str, value: Tensor) -> None:
    """Where that can be seen for free."""
    if reads_values(value) and value.numel() and not value.isfinite().all():
        fail(fn, name, "finite numbers", "NaN or infinity")


def check_codebooks(fn: str, value: object, d: int) -> Tensor:
    """[parts, centroids, ceil(d / parts)]"""
    books = check_dense(fn, "codebooks", value)
    if books.dtype not in FLOATS:
        fail(fn, "codebooks", NAMES, books.dtype, TypeError)
    if books.dim() != 3 or not 1 <= books.shape[0] <= d or books.shape[2] != -(-d // books.shape[0]):
        fail(fn, "codebooks", f"[parts, centroids, ceil({d} / parts)], 1 to {d} parts", list(books.shape))
    if not 2 <= books.shape[1] <= 256:
        fail(fn, "codebooks", "2 to 256 centroids", books.shape[1])
    check_finite(fn, "codebooks", books)
    return books


def pq_encode(
    x: Tensor,
    codebooks: Tensor,
    *,
    directions: Tensor | None = None,
    eta: float = 1.0,
    rounds: int = 10,
    impl: str = "auto",
) -> Tensor:
    """Product quantizer codes: of each part of a vector the nearest centroid, or codes of least anisotropic loss.

    d dimensions are cut into `parts`; part p is dimensions floor(p d / parts) to floor((p + 1) d / parts). With
    directions u and eta > 1 the codes go from the nearest, part by part and in turn, downhill on

        |r|^2 + (eta - 1) <r, u>^2,    r = x - decoded

    (Guo et al., 1908.10396; ties by the lowest code) until a round changes nothing, or for `rounds`. Deterministic, for
    any number of threads; a row's codes do not depend on other rows. Two instruction sets may differ where two codes'
    losses are within rounding. Not differentiable.

    Args:
        x: [n, d], float32, bfloat16, float16 or float64: what is quantized, as vectors less their leaf's centroid.
        codebooks: [parts, centroids, ceil(d / parts)], 2 to 256 centroids; columns behind a narrower part's end are not
            looked at, but must be finite. Any of those dtypes, taken as float32 (float64 where x is).
        directions: [n, d] of x's dtype, rows of length 1 or 0: as the vectors themselves, normalised. Not checked.
        eta: how many times an error along the direction counts, 1 or more; see anisotropic_eta. 1: the nearest.
        rounds: 0 or more; 0: the nearest.
        impl: "auto", "reference" or "cpu".
    Returns:
        Tensor: uint8 [n, parts]. A row with NaN or infinity gets 0 in all parts.
    Raises:
        TypeError, ValueError: an argument, before any work.
    """
    fn = "pq_encode"
    x = check_vectors(fn, "x", x)
    codebooks = check_codebooks(fn, codebooks, x.shape[1])
    if codebooks.device != x.device:
        fail(fn, "codebooks", f"device {x.device}", codebooks.device)
    if directions is not None:
        directions = check_dense(fn, "directions", directions)
        if directions.dtype != x.dtype:
            fail(fn, "directions", f"x's {x.dtype}", directions.dtype, TypeError)
        check_like(fn, "directions", directions, x.shape, x.device)
    eta = check_number(fn, "eta", eta, "1 or more, finite", lambda value: 1 <= value < float("inf"))
    if directions is None and eta != 1:
        fail(fn, "eta", "1 without directions", eta)
    rounds = check_integer(fn, "rounds", rounds)
    if rounds < 0:
        fail(fn, "rounds", "0 or more", rounds)
    choice = choose(fn, impl, x)
    op: Callable[..., Any] = reference.pq_encode if choice.backend == "reference" else torch.ops.tamis.pq_encode.default
    return cast(Tensor, op(x, codebooks, directions, eta, rounds))


def pq_decode(codes: Tensor, codebooks: Tensor, d: int) -> Tensor:
    """What codes stand for: each part's centroid.

    Args:
        codes: uint8 [n, parts], each below the number of centroids.
        codebooks: [parts, centroids, ceil(d / parts)], as pq_encode takes them.
        d: the dimensions.
    Returns:
        Tensor: [n, d] of the codebooks' dtype.
    Raises:
        TypeError, ValueError: an argument, before any work.
    """
    fn = "pq_decode"
    d = check_integer(fn, "d", d)
    if d < 1:
        fail(fn, "d", "1 or more", d)
    codebooks, codes = check_codebooks(fn, codebooks, d), check_dense(fn, "codes", codes)
    if codes.dtype != torch.uint8:
        fail(fn, "codes", "uint8", codes.dtype, TypeError)
    if codes.dim() != 2 or codes.shape[1] != codebooks.shape[0]:
        fail(fn, "codes", f"[n, {codebooks.shape[0]}]", list(codes.shape))
    if codes.device != codebooks.device:
        fail(fn, "codes", f"device {codebooks.device}", codes.device)
    if reads_values(codes) and codes.numel() and int(codes.max()) >= codebooks.shape[1]:
        fail(fn, "codes", f"below {codebooks.shape[1]}", int(codes.max()))
    return reference.pq_decode(codes, codebooks, d)


def anisotropic_eta(threshold: float, d: int, norm: float = 1.0) -> float:
    """How many times an error along a vector counts, where inner products of at least `threshold` matter.

    (d - 1) (T^2 / |x|^2) / (1 - T^2 / |x|^2), as ScaNN has it (Guo et al., 1908.10396): 4.125 for T = 0.2, d = 100 and
    length 1. Below 1, where T^2 < |x|^2 / d, the plain loss is the better one: 1 is the least that
    pq_encode takes.

    Raises:
        TypeError, ValueError: an argument.
    """
    fn = "anisotropic_eta"
    d = check_integer(fn, "d", d)
    if d < 1:
        fail(fn, "d", "1 or more", d)
    norm = check_number(fn, "norm", norm, "above 0, finite", lambda value: 0 < value < float("inf"))
    threshold = check_number(fn, "threshold", threshold, f"0 to below {norm}", lambda value: 0 <= value < norm)
    share = (threshold / norm) ** 2
    return (d - 1) * share / (1 - share)


def _fake(x: Tensor, codebooks: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], codebooks.shape[0]), dtype=torch.uint8)


register("pq_encode", fake=_fake, reference=reference.pq_encode)
