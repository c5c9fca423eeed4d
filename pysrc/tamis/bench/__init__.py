"""The microbenchmark engine: alternated timing, measured rooflines, memory, errors, JSON, tables.

A family is one module of `tamis.benchmarks` with `cases(*, quick: bool, peers: bool) -> Iterable[Case]`.
"""

from .case import Case, Route

__all__ = ["Case", "Route"]
