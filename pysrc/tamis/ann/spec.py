"""How an index is made up, and how it is searched, as data."""

import math
import re
from dataclasses import dataclass, field

from ..common.backend import isa
from ..common.checks import check_choice, check_integer, fail
from .ops import LOOKUPS, parts_multiple

METRICS = ("ip", "l2", "cosine")
REORDERS: dict[str, tuple[str, ...]] = {
    "int8": ("int8",),
    "int8+fp32": ("int8", "fp32"),
    "int8+bf16": ("int8", "bf16"),
    "fp32": ("fp32",),
    "bf16": ("bf16",),
    "none": (),
}
_SPEC = re.compile(r"tree(\d+),pq(\d+)x([46]),reorder-([a-z0-9+]+)")


@dataclass(frozen=True)
class Spec:
    """`tree1000,pq3x6,reorder-int8+fp32`: 1000 leaves; residuals quantized 3 dimensions at a time to 6 bits; candidates
    compared by int8, the best of them by float32. 4 bits are fast on every machine, 6 where AVX-512 VBMI is."""

    leaves: int
    dims: int
    bits: int
    reorder: str

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """Raises ValueError where it is none."""
        found = _SPEC.fullmatch(text) if isinstance(text, str) else None
        if not found or found[4] not in REORDERS or not int(found[1]) or not int(found[2]):
            expected = f"treeN,pqDxB,reorder-R with N, D >= 1, B 4 or 6 and R {', '.join(REORDERS)}"
            fail("Index.build", "spec", expected, repr(text))
        return cls(int(found[1]), int(found[2]), int(found[3]), found[4])

    @classmethod
    def choose(cls, n: int, d: int) -> "Spec":
        """About 1.7 sqrt(n) leaves; 6 bits where this machine has AVX-512 VBMI and there are 12 to 256 dimensions (of
        more, a query's tables take longer than they save), else 4; of as many dimensions as `width` says."""
        bits = 6 if isa() == "v4x" and 12 <= d <= 256 else 4
        return cls(max(1, min(n, round(1.7 * math.sqrt(n)))), cls.width(d, bits), bits, "int8+fp32")

    @staticmethod
    def width(d: int, bits: int) -> int:
        """Dimensions at a time: 2, of 6 bits 3, and more where there would be over 200 parts."""
        return max(3 if bits == 6 else 2, math.ceil(d / 200))

    def parts(self, d: int, extra: int) -> int:
        """Of the vectors' own d dimensions; with `extra` more the codes lie side by side."""
        multiple = parts_multiple(self.bits)
        wanted = d / self.dims + extra
        whole = max(1, round(wanted / multiple) if self.bits == 6 else math.ceil(wanted / multiple))
        return whole * multiple - extra if whole * multiple > extra else 2 * multiple - extra

    def __str__(self) -> str:
        return f"tree{self.leaves},pq{self.dims}x{self.bits},reorder-{self.reorder}"


@dataclass(frozen=True)
class Tuning:
    """How much of an index a search looks at.

    Args:
        leaves: lists scanned, of those nearest to the query; more than there are means all.
        rerank: candidates compared again by their vectors; at least k are.
        lookup: "s8", signed bytes that saturate, or "u16", bytes added exactly: pq_scan.
    """

    leaves: int = 60
    rerank: int = 90
    lookup: str = field(default="s8", kw_only=True)

    def __post_init__(self) -> None:
        for name in ("leaves", "rerank"):
            if check_integer("Tuning", name, getattr(self, name)) < 1:
                fail("Tuning", name, "at least 1", getattr(self, name))
        check_choice("Tuning", "lookup", self.lookup, LOOKUPS)
