"""Which kernels serve topk_mlp on a CUDA device. A rule of numbers alone: no GPU is needed to ask it.

Tokens that are few and want no gradient decode: CUDA C++ reads w_up and the rows of w_down that are active, and a dense
layer all of both. Else the first product is torch's, and the others are sparse or dense, whichever moves less time:

- a sparse one reads k rows of w_down for each token, from L2: tokens * k * row bytes. Where tokens * k <= d_ff that is
  no more than a dense one reads of it, from memory;
- a dense one of many tokens does 2 * d_ff operations for each of a row's numbers, on tensor cores where it can. It
  takes as long as the sparse one where k / d_ff = 2 * (bytes a second of L2) / (bytes a number * operations a second):
  on an H100 (5.5 TB/s measured by others; 989 TFLOP/s of bfloat16, 67 of float32 and of float64) 1 in 180, 24, 49.

Those are a data sheet's figures, the dense product's at their best: hence 1 in 128 of half precision. No GPU has timed
either.
"""

import torch

from ..common.backend import Choice
from ..common.checks import fail

FEW_TOKENS = 8  # that a product of a vector and a matrix serves: kFewTokens of kernels/sparse_mlp/cpu.h, kDecodeTokens
GATHERED = {2: 128, 4: 24, 8: 48}  # by an element's bytes: sparse where k is at most one neuron in so many
DECODE, GATHER, DENSE, GAUSSIAN = "gather_rows_kernel", "topk_mlp_gather_kernel", "dense", "gaussian_topk_kernel"


def chosen(
    dtype: torch.dtype,
    tokens: int | None,
    k: int,
    d_ff: int,
    selection: str,
    *,
    learns: bool,
    forced: str = "",
    built: bool = True,
) -> Choice:
    """kernel: DECODE, GATHER, DENSE, or GAUSSIAN, whose product is dense.

    Args:
        tokens: None where a traced graph leaves it open.
        learns: whether any tensor wants a gradient.
        forced: "impl=cuda" and the like, for who named a backend.
        built: whether the CUDA library is there.
    Raises:
        ValueError: cuda is named, and its kernels cannot serve these tokens.
    """
    name, _, wanted = forced.partition("=")
    no = _refusal(tokens, learns, built)
    if wanted == "cuda" and no:
        fail(
            "topk_mlp",
            name,
            f"at most {FEW_TOKENS} tokens without a gradient, as its CUDA C++ kernels take, for cuda",
            no,
        )
    if wanted != "triton" and not no:
        return Choice(
            "cuda", DECODE, forced or f"at most {FEW_TOKENS} tokens, no gradient: active rows of w_down are read"
        )
    if selection == "gaussian":
        return Choice("triton", GAUSSIAN, forced or f"{no}; what a gaussian selection passes is multiplied dense")
    if wanted == "triton":
        return Choice("triton", GATHER, forced)
    if tokens is not None and tokens * k <= d_ff:
        return Choice("triton", GATHER, f"{no}; {tokens} x {k} rows are no more than the {d_ff} of w_down")
    share = GATHERED[dtype.itemsize]
    sizes = f"{k} of {d_ff} neurons, {{}} 1 in {share}"
    if k * share <= d_ff:
        return Choice("triton", GATHER, f"{no}; {sizes.format('at most')}")
    return Choice("reference", DENSE, f"{no}; {sizes.format('more than')}: torch multiplies all")


def _refusal(tokens: int | None, learns: bool, built: bool) -> str:
    """Why decoding's kernels cannot serve, if they cannot."""
    if learns:
        return "a gradient"
    if tokens is None:
        return "any number of tokens"
    if tokens > FEW_TOKENS:
        return f"{tokens} tokens"
    return "" if built else "no CUDA library for this device: no nvcc was found, or it is before sm_80"
