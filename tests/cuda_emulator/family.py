"""What the tests and the mutation run ask of a family of kernels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np

from .build import library
from .emulator import Library
from .formats import Format

Case = dict[str, Any]
SEEDS = st.integers(0, 2**32)
OFFSETS = st.integers(0, 15)  # elements past 256 bytes


@dataclass(frozen=True)
class Family:
    """`check` raises where a kernel fails, or what it made is wrong."""

    driver: str
    cases: st.SearchStrategy[Case]
    edges: list[Case]  # by name
    check: Callable[[Library, Case], None]

    def library(self, mode: str = "checked") -> Library:
        return Library.load(library(self.driver, mode))


def numbers(rng: np.random.Generator, form: Format, shape: Any) -> np.ndarray:
    return form.encode(rng.standard_normal(shape).astype(form.real))
