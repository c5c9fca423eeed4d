"""The kernels' number types in numpy, which has no bfloat16: bits, and what they are worth in float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np


def _bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """float32, to nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


@dataclass(frozen=True)
class Format:
    name: str
    code: int  # tamis::Dtype
    bits: Any
    real: Any  # what the kernels compute in
    nans: tuple[int, ...]  # of any sign and payload

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Numbers of `real`, rounded once."""
        if self.name == "bf16":
            return _bfloat16_bits(x)
        with np.errstate(over="ignore"):
            return x.astype(np.dtype(f"f{np.dtype(self.bits).itemsize}")).view(self.bits)

    def decode(self, bits: np.ndarray) -> np.ndarray:
        if self.name == "bf16":
            return (bits.astype(np.uint32) << 16).view(np.float32)
        return bits.view(np.dtype(f"f{np.dtype(self.bits).itemsize}")).astype(self.real)


FORMATS = [
    Format("f32", 0, np.uint32, np.float32, (0x7FC00001, 0xFFC00000, 0x7F800001, 0xFFFFFFFF)),
    Format("f64", 1, np.uint64, np.float64, (0x7FF8000000000001, 0xFFF8000000000000, 0x7FF0000000000001)),
    Format("f16", 2, np.uint16, np.float32, (0x7E01, 0xFE00, 0x7C01, 0xFFFF)),
    Format("bf16", 3, np.uint16, np.float32, (0x7FC1, 0xFFC0, 0x7F81, 0xFFFF)),
]
