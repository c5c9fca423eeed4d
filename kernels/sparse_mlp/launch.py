"""How topk_mlp's Triton kernels are launched, for the bindings and `tamis aot` alike."""

BLOCK = 1024  # numbers of a program of those that go number by number
ENTRIES, COLUMNS = 8, 512  # of a sparse product's tile: a thread of 128 holds 32 sums, of float64 16
WARPS = 4


def numbers() -> dict[str, int]:
    return {"BLOCK": BLOCK, "num_warps": WARPS}


def columns_of(element: int) -> int:
    return COLUMNS // 2 if element == 8 else COLUMNS


def tiles(element: int) -> dict[str, int]:
    """element: bytes of a number of the dense matrix."""
    return {"ENTRIES": ENTRIES, "COLUMNS": columns_of(element), "num_warps": WARPS}
