from typing import Any, TypedDict

import numpy as np

class _IsaReport(TypedDict):
    compiled: list[str]
    runs: list[str]
    best: str
    cpu: str
    features: dict[str, bool]

def search(
    index: int, queries: np.ndarray[Any, Any], k: int, leaves: int, rerank: int, u16: bool
) -> tuple[Any, Any] | None: ...
def search_tensor(
    index: int, queries: object, exchange: object, k: int, leaves: int, rerank: int, u16: bool
) -> tuple[Any, Any] | None: ...
def move_to_huge_pages(address: int, bytes: int) -> None: ...
def isa_report() -> _IsaReport: ...
def probe(kind: str, isa: str = "", seconds: float = 0.1, bytes: int = ..., threads: int = 1) -> float: ...

class Probe:
    def __init__(self, kind: str, isa: str = "", bytes: int = ..., threads: int = 1) -> None: ...
    def rate(self) -> float: ...
