"""A quantized index for nearest neighbours: an nn.Module whose buffers are what its kernels read."""

import os
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _native
from ..common.checks import as_tensor, check_bool, fail
from . import store
from .ops import EXACT, POSITIONS, SearchResult, check_k
from .progress import bar, silent
from .spec import Tuning

Array = Tensor | np.ndarray[Any, Any]
# By position, that is list by list: rows, and of each the caller's id, bytes, half norm and exact vector.
BUFFERS = (
    "centroids", "order_bias", "score_bias", "start", "block", "codebooks", "constants", "codes", "bytes", "half_norms",
    "exact", "rows", "ids", "center",
)  # fmt: skip


class Index(nn.Module):
    """Vectors in lists by their nearest centroid, as 4 or 6 bits for some dimensions of what lies between (2301.01702,
    section 2; ScaNN's anisotropic loss), and their bytes and numbers to compare the best with.

    Made by `Index.build` or `Index.load`. Any number of threads may search it. It holds its vectors. A module
    that is moved to a device takes it along; a cast, as by half(), leaves it as it is.
    """

    rows: Tensor
    start: Tensor
    exact: Tensor | None
    ids: Tensor | None
    center: Tensor | None

    def __init__(
        self, buffers: dict[str, Tensor | None], *, d: int, metric: str, spec: str, tuning: Tuning,
        centroid_scale: float, byte_scale: float,
    ) -> None:  # fmt: skip
        super().__init__()
        for name in BUFFERS:
            self.register_buffer(name, buffers[name])
        self.d, self.metric, self.spec, self.tuning = d, metric, spec, tuning
        self.centroid_scale, self.byte_scale = centroid_scale, byte_scale
        self._opened: tuple[int, tuple[Tensor | None, ...]] | None = None

    @classmethod
    def build(
        cls, vectors: Array, *, metric: str = "ip", spec: str | None = None, ids: Array | None = None, seed: int = 0,
        progress: bool = False,
    ) -> "Index":  # fmt: skip
        """An index of vectors.

        Args:
            vectors: [n, d], float32, bfloat16 or float16, finite; a memory-mapped array is read in pieces.
            metric: "ip", the inner product; "cosine", of vectors of length above 0; "l2", the squared distance.
            spec: as Spec; None: by n, d and this machine's instruction set.
            ids: int64 [n], different from each other and not negative: what a search returns instead of rows.
            seed: of the samples that centroids are found from.
            progress: show on the error stream how far it is.
        Raises:
            TypeError, ValueError: an argument.
        """
        from .build import build  # scikit-learn and the like are not needed to search

        check_bool("Index.build", "progress", progress)
        with bar() if progress else nullcontext(silent) as report:
            return cls(**build(vectors, metric, spec, ids, seed, report))._in_huge_pages()

    def __len__(self) -> int:
        return len(self.rows)

    def search(
        self, queries: Array, k: int = 10, *, tuning: Tuning | None = None, filter: Array | None = None
    ) -> SearchResult:
        """The k nearest of each query, among the lists that the tuning says.

        Contiguous queries in float32 without a filter go straight to the op's kernel, past torch's dispatcher; an index
        is checked for that at its first search.

        Args:
            queries: [q, d] or [d], of vectors' dtypes, finite; numpy's give numpy's. By cosine a query of zeros is as
                near to one as to another.
            k: 1 to 2^32 - 1; where fewer are found the rest is -1.
            tuning: None: the index's own.
            filter: bool [n], which rows may be found, or int64, the ids that may.
        Returns:
            SearchResult: [q, k], or [k] of one query.
        Raises:
            TypeError, ValueError: an argument, before any work.
        """
        how = self.tuning if tuning is None else tuning
        if not isinstance(how, Tuning):
            fail("Index.search", "tuning", "a Tuning", type(how).__name__, TypeError)
        if filter is None and (found := self._straight(queries, k, how)) is not None:
            return found
        fn = "Index.search"
        x = as_tensor(fn, "queries", queries)
        one = x.dim() == 1
        if x.dtype not in EXACT or x.dim() not in (1, 2) or x.shape[-1] != self.d:
            fail(fn, "queries", f"[q, {self.d}] or [{self.d}], floats", f"{x.dtype} {list(x.shape)}")
        if x.device != self.start.device:
            fail(fn, "queries", f"device {self.start.device}", x.device)
        x = (x.unsqueeze(0) if one else x).to(torch.float32).contiguous()
        if not bool(x.isfinite().all()):
            fail(fn, "queries", "finite numbers", "inf or NaN")
        k = check_k(fn, k)
        allowed, cosine = self._allowed(filter), self.metric == "cosine"
        found = torch.ops.tamis.ivf_search(x, k, how.leaves, how.rerank, *self._ivf(), how.lookup, allowed, cosine)
        result = [t[0] if one else t for t in found]
        return SearchResult(*(t.numpy() if isinstance(queries, np.ndarray) else t for t in result))

    def _in_huge_pages(self) -> "Index":
        """Itself: a search reads rows here and there, each of another page."""
        for buffer in self.buffers():
            if buffer.device.type == "cpu":
                _native.move_to_huge_pages(buffer.data_ptr(), buffer.nbytes)
        return self

    def _ivf(self) -> tuple[Any, ...]:
        return (
            self.centroids, self.centroid_scale, self.order_bias, self.score_bias, self.start, self.block,
            self.codebooks, self.constants, self.codes, self.bytes, self.byte_scale, self.half_norms, self.exact,
            self.rows if self.ids is None else self.ids, self.center,
        )  # fmt: skip

    def _straight(self, queries: Array, k: int, how: Tuning) -> SearchResult | None:
        """None where they are not queries that need no more checks."""
        if torch.compiler.is_compiling() or type(k) is not int or k >= POSITIONS:
            return None
        opened = self._opened or self._open()
        if not opened:
            return None
        found, rest = None, (k, how.leaves, how.rerank, how.lookup == "u16")
        if type(queries) is np.ndarray:
            found = _native.search(opened[0], queries, *rest)
        elif type(queries) is Tensor and not (queries.requires_grad or queries.is_neg()):
            found = _native.search_tensor(opened[0], queries, Tensor.__dlpack_c_exchange_api__, *rest)
        return SearchResult(*found) if found else None

    def _open(self) -> tuple[int, tuple[Tensor | None, ...]] | None:
        """The address of what _native.search takes, and all that must live as long."""
        if self.start.device.type != "cpu":
            return None
        buffers = self._ivf()
        held = torch.ops.tamis._ivf_open(self.d, *buffers, self.metric == "cosine")
        self._opened = held.data_ptr(), (held, *(b for b in buffers if isinstance(b, Tensor)))
        return self._opened

    def _apply(self, fn: Any, recurse: bool = True) -> "Index":
        self._opened = None

        def move(t: Tensor) -> Tensor:  # not cast: kernels read buffers of the dtypes that they were built with
            made: Tensor = fn(t)
            return made if made.dtype == t.dtype else t.to(made.device)

        moved: Index = super()._apply(move, recurse)
        return moved

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._opened = None
        super()._load_from_state_dict(*args, **kwargs)

    def get_extra_state(self) -> Tensor:
        return store.pack(store.describe(self))

    def set_extra_state(self, state: object) -> None:
        for name, value in store.unpack(state).items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in BUFFERS:
            self._opened = None
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}  # an address is this process's

    def _allowed(self, filter: Array | None) -> Tensor | None:
        if filter is None:
            return None
        fn = "Index.search"
        given = as_tensor(fn, "filter", filter).to(self.rows.device)
        if given.dtype == torch.bool:
            if given.shape != (len(self),):
                fail(fn, "filter", f"bool [{len(self)}]", list(given.shape))
            return given[self.rows]
        if given.dtype != torch.int64 or given.dim() != 1:
            fail(fn, "filter", "bool [n], or int64 ids", f"{given.dtype} {list(given.shape)}")
        return torch.isin(self.rows if self.ids is None else self.ids, given)

    def save(self, path: str | os.PathLike[str]) -> None:
        """To one file, safetensors with a header and a checksum: whole, or as it was before."""
        store.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False) -> "Index":
        """What save wrote, checked against its checksum; with mmap it is not, and the file is read as searches need it.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an index, truncated, changed, or of a newer layout.
        """
        index = cls(**store.load(path, BUFFERS, mmap))
        return index if mmap else index._in_huge_pages()
