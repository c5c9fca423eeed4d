"""Selection, against torch.

Least work: every number read once, k values and indices written.
"""

from collections.abc import Iterator
from functools import partial

import torch
from tamis.bench import Case, Route
from tamis.bench.case import Results
from tamis.sparse_mlp import topk
from torch import Tensor

QUICK = (128, 32000, 64)
SHAPES = (  # rows, size, k
    QUICK,
    (512, 32000, 64),
    (512, 32000, 1),
    (512, 32000, 1000),
    (1, 10**6, 64),
    (1, 10**6, 5 * 10**5),
    (2048, 3072, 154),  # 5% of a hidden layer
    (100000, 64, 8),  # a router's experts
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _numbers(rows: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(0)).to(dtype)


def _largest(k: int, x: Tensor) -> Results:
    """The values: torch takes any of equal numbers."""
    return (topk(x, k).values,)


def _by_torch(k: int, x: Tensor) -> Results:
    return (torch.topk(x, k).values,)


def _by_sort(k: int, x: Tensor) -> Results:
    return (x.double().sort(-1, descending=True).values[..., :k],)


def _topk(rows: int, size: int, k: int, dtype: str) -> Case:
    width = DTYPES[dtype].itemsize
    return Case(
        op="topk",
        mode="forward",
        shape={"rows": rows, "size": size, "k": k},
        dtype=dtype,
        setup=lambda: _numbers(rows, size, DTYPES[dtype]),
        providers={
            "tamis": lambda x: Route(lambda _: _largest(k, x)),
            "torch": lambda x: Route(lambda _: _by_torch(k, x)),
        },
        truth=partial(_by_sort, k),
        read=width * rows * size,
        written=(width + 8) * rows * k,
    )


def cases(*, quick: bool, peers: bool) -> Iterator[Case]:
    """topk forward: the last layer's logits, one long row, a hidden layer, a router."""
    for shape in (QUICK,) if quick else SHAPES:
        for dtype in DTYPES if shape == (512, 32000, 64) else ("float32",):
            yield _topk(*shape, dtype)
