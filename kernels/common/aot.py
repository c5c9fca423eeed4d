"""How a family says what `tamis aot` compiles of it: in aot.py, a list VARIANTS."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Constant = bool | int | float | None


@dataclass(frozen=True)
class TritonVariant:
    """One compilation of a @triton.jit kernel."""

    module: str  # its file in the family's folder, without .py
    kernel: str
    dtype: str  # the budget's row
    label: str  # tells it from the kernel's other variants; part of a file name
    types: Mapping[str, str | None]  # of its pointers, as "*fp32"; None where that pointer is never read
    constants: Mapping[str, Constant] = field(default_factory=dict)
    warps: int = 4
    registers: int | None = None  # a thread may have; without a number ptxas may spill to fit more programs
    fusion: bool = True  # of products with sums

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warps


@dataclass(frozen=True)
class CudaVariant:
    """One instance of a __global__ template."""

    header: str  # its file in the family's folder
    kernel: str
    dtype: str
    label: str
    instance: str  # as C++ spells it: "tamis::cuda::scale_rows_kernel<float>"
    threads: int  # of a block, as it is launched
    dynamic: int = 0  # bytes of shared memory that a launch adds
