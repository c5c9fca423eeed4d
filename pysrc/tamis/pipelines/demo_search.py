"""Words of like meaning: the vectors of real words searched by an index, and by comparing with all of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..ann import Index

SHOWN = ("frog", "monday", "paris", "sieve")
BATCH = 100  # queries a call, of both


@dataclass(frozen=True)
class Search:
    """recall: the mean share of the k nearest others of a word that the index finds; microseconds a query."""

    words: int
    d: int
    spec: str
    seconds: float
    queries: int
    k: int
    recall: float
    exact_us: float
    index_us: float
    nearest: dict[str, list[str]]


def search(
    words: Sequence[str],
    vectors: npt.NDArray[np.float32],
    *,
    shown: Sequence[str] = SHOWN,
    queries: int = 1000,
    k: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> Search:
    """Builds an index by cosine, and asks it and a plain matrix product for the nearest of the same random words.

    Args:
        words: n, of which `shown` are looked up where they occur.
        vectors: [n, d] float32, n above k.
        queries: words asked about; fewer where there are fewer.
        progress: a bar while the index is built.
    Raises:
        ValueError: vectors that are no such, or as few as k.
    """
    if vectors.ndim != 2 or len(vectors) != len(words) or len(words) <= k:
        raise ValueError(f"tamis.demo: vectors: expected [{len(words)}, d], more than {k}, got {list(vectors.shape)}")
    begin = time.perf_counter()
    index = Index.build(vectors, metric="cosine", seed=seed, progress=progress)
    seconds = time.perf_counter() - begin
    unit = torch.nn.functional.normalize(torch.tensor(vectors))
    asked = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed))[:queries]

    def timed(find: Callable[[Tensor], Tensor], own: Tensor) -> tuple[Tensor, float]:
        q, begin = unit[own], time.perf_counter()
        found = find(q)
        return found, 1e6 * (time.perf_counter() - begin) / len(q)

    exact_us, index_us, hits, wanted = [], [], 0, 0
    for own in (asked[:BATCH], *asked.split(BATCH)):  # the first twice: it also warms up
        true, slow = timed(lambda q: (q @ unit.T).topk(k + 1).indices, own)
        found, fast = timed(lambda q: index.search(q, k + 1).indices, own)
        exact_us.append(slow)
        index_us.append(fast)
        if len(exact_us) > 1:
            others = true != own.unsqueeze(1)  # a word is its own nearest
            hits += int(((true.unsqueeze(2) == found.unsqueeze(1)).any(2) & others).sum())
            wanted += int(others.sum())
    number = {word: i for i, word in enumerate(words)}
    nearest = {}
    for word in shown:
        if word in number:
            rows = index.search(unit[number[word]], k + 1).indices.tolist()
            nearest[word] = [words[i] for i in rows if i not in (number[word], -1)][:k]
    return Search(
        len(words), index.d, index.spec, seconds, len(asked), k, hits / wanted,
        median(exact_us[1:]), median(index_us[1:]), nearest,
    )  # fmt: skip
