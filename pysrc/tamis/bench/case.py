"""What a family says about one measurement."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Results = tuple[Tensor, ...]


@dataclass(frozen=True)
class Route:
    """One way to compute a case: what is timed, and what comes before it.

    Args:
        run: timed; gets what `prepare` returned.
        prepare: before every run, outside the time.
        notes: more of its row, as settings that were picked or the bytes of an index.
    """

    run: Callable[[Any], Results]
    prepare: Callable[[], Any] = lambda: None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One op, mode, shape and dtype.

    Args:
        shape: sizes by axis, as they are printed.
        providers: by name, each a function of what `setup` returned; the first is ours, and ratios are relative to it.
        setup: makes the inputs, once.
        truth: the results in float64, in the order that every route returns them.
        read, written: bytes of memory that any implementation must move at least, each counted once.
        exponentials, flops: that any implementation must take at least. flops are held against float32 multiply-adds:
            0 for half precision, which has faster instructions of its own.
        results: bytes of the results, where what a route takes beyond them is worth telling.
        items: that a run serves, as queries, where their rate is told.
        judge: of what a route gave and the truth, the columns that say how right it is; None: relative errors.
        calls: a sample is the mean of so many in a row, preparation included: for calls of microseconds.
        on_gpu: more providers, on a CUDA device alone.
    """

    op: str
    mode: str
    shape: Mapping[str, int]
    dtype: str
    setup: Callable[[], Any]
    providers: Mapping[str, Callable[[Any], Route]]
    truth: Callable[[Any], Results]
    read: int = 0
    written: int = 0
    exponentials: int = 0
    flops: int = 0
    results: int = 0
    items: int = 0
    judge: Callable[[Results, Results], Mapping[str, float]] | None = None
    calls: int = 1
    on_gpu: Mapping[str, Callable[[Any], Route]] = field(default_factory=dict)

    @property
    def traffic(self) -> int:
        return self.read + self.written

    @property
    def label(self) -> str:
        return f"{self.op} {self.mode} {'x'.join(map(str, self.shape.values()))} {self.dtype}"
