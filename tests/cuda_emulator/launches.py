"""What launches do beside a kernel's work: the grids that they ask for, what they refuse, when nothing is to be done. A
grid of more blocks than are emulated fails with its size."""

from collections.abc import Callable

import numpy as np
import pytest

from .distill_rows import ALONE, HALVES
from .distill_rows import case as rows_case
from .distill_rows import check as check_distill_rows
from .emulator import KernelError, Library, Memory, given
from .families import check_topk, topk_case
from .formats import FORMATS

REFUSED = "^error 1$"  # cudaErrorInvalidValue, before any call of the runtime
MOST = 2**31 - 1  # blocks along x


def fails(why: str, lib: Library, function: str, *arguments: Memory | int | None) -> None:
    with pytest.raises(KernelError, match=why):
        lib.run(function, *arguments)


def check_topk_launches(lib: Library) -> None:
    x, values, indices = given(np.zeros((1, 4), np.uint32)), Memory((1, 4), np.uint32), Memory((1, 4), np.int64)
    asked = [
        (1, 4, 5, 1, REFUSED), (1, 4, 0, 1, REFUSED), (1, 4, 4, 0, REFUSED), (MOST + 1, 4, 1, 1, REFUSED),
        (1, 2**32, 1, 1, REFUSED), (65536, 4, 1, 2, REFUSED), (1, 4, 1, MOST + 1, REFUSED),
        (MOST, 4, 1, 1, f"^{MOST} blocks"), (MOST, 2**32 - 1, 1, 1, f"^{MOST} blocks"),
        (65535, 4, 1, 2, "^a fill"), (1, 4, 1, MOST, "^a fill"),
    ]  # fmt: skip
    for rows, n, k, chunks, why in asked:
        fails(why, lib, "topk", 0, x, rows, n, n, k, values, indices, chunks, None)
    for rows, k, why in ((1, 2049, REFUSED), (MOST + 1, 1, REFUSED), (MOST, 1, f"^{MOST} blocks")):
        fails(why, lib, "topk_sort", 0, values, indices, rows, k, values, indices)
    lib.run("topk", 0, x, 0, 4, 4, 1, values, indices, 1, None)
    lib.run("topk_sort", 0, values, indices, 0, 1, values, indices)
    lib.run("topk_sort", 0, values, indices, 1, 0, values, indices)
    # as many tiles, of 2,048 numbers, as make several blocks worth their launches; at the worst place for a row
    for rows, n, chunks in (
        (2, 300_001, 9), (513, 300_001, 1), (512, 300_001, 2), (1, 10**10, 1024), (1, 100_000, 1), (0, 300_001, 1),
        (1, 63 * 2048 - 3, 1), (1, 63 * 2048 - 2, 4), (1, 64 * 2048 - 3, 4),
    ):  # fmt: skip
        assert lib.number("topk_chunks", 0, rows, n) == chunks
    assert lib.number("topk_workspace_bytes", 0, 2, 1) == 0
    assert lib.number("topk_workspace_bytes", 0, 2, 3) == 2 * 3 * 2048 * 8 + 2 * 3 * 2 * 8
    for form in FORMATS:
        check_topk(lib, topk_case(form=form, n=20_001, k=1000, chunks=2, spread="normal"))


def check_decode_launches(lib: Library) -> None:
    x, out = given(np.zeros((1, 4), np.uint32)), Memory((1, 4), np.uint32)
    assert [lib.number("project_width", tokens) for tokens in range(1, 9)] == [1, 2, 4, 4, 8, 8, 8, 8]
    for tokens, d_ff, gate, why in (
        (0, 1, None, REFUSED), (9, 1, None, REFUSED), (1, 0, None, REFUSED), (1, 16 * MOST + 1, None, REFUSED),
        (1, 16 * MOST, None, f"^{MOST} blocks"), (1, 2**20, None, "^65536 blocks"), (1, 2**20, x, "^131072 blocks"),
    ):  # fmt: skip
        fails(why, lib, "project", 0, x, tokens, 4, x, 4, None, gate, 0, None, d_ff, 0, out, None)
    for index, tokens, k, d_ff, columns, why in (
        (None, 65536, 1, 1, 4, REFUSED), (None, 1, 1, 1, MOST + 1, REFUSED), (None, 1, 0, 0, 4, REFUSED),
        (x, 1, 2, 1, 4, REFUSED), (None, 1, 1, 2, 4, REFUSED),
        (None, 65535, 1, 1, 4, "^65535 blocks"), (None, 1, 1, 1, MOST, "^67108864 blocks"),
    ):  # fmt: skip
        fails(why, lib, "gather_rows", 0, x, index, tokens, k, d_ff, x, columns, columns, None, out)
    for tokens, columns in ((0, 4), (1, 0)):
        lib.run("gather_rows", 0, x, None, tokens, 1, 1, x, columns, columns, None, out)


def check_scale_launches(lib: Library) -> None:
    x, one, out = given(np.zeros((1, 4), np.uint32)), given(np.zeros(1, np.float32)), Memory((1, 4), np.uint32)
    # four vectors a thread; rows along y, as far as that reaches
    for rows, classes, per_row, blocks in (
        (70_000, 4096, 1, 65535), (40_000, 4097, 1, 80_000), (70_000, 4096, 0, 70_000), (1, 2**50, 0, MOST),
    ):  # fmt: skip
        fails(f"^{blocks} blocks", lib, "scale_rows", 0, x, one, one, out, rows, classes, per_row)
    for rows, classes in ((0, 4), (1, 0)):
        lib.run("scale_rows", 0, x, one, one, out, rows, classes, 1)
    fails(REFUSED, lib, "scale_rows", 4, x, one, one, out, 1, 4, 1)


def check_distill_launches(lib: Library) -> None:
    """As kept_bytes of pysrc/tamis/distill/cuda_choice.py; a launch that asks for more than there is fails."""
    for form in HALVES:
        lanes = 16 // np.dtype(form.bits).itemsize
        for classes in (1, lanes, lanes + 1, 1000, 29_000):
            held = 16 * ((classes + 2 * (lanes - 1)) // lanes)
            assert lib.number("distill_rows_shared", form.code, 0, classes) == 2 * held
            assert lib.number("distill_rows_shared", form.code, ALONE, classes) == held
    for changed, why in (
        ({"form": FORMATS[1]}, REFUSED), ({"divergence": 6}, REFUSED), ({"blocks": 0}, REFUSED),
        ({"blocks": MOST + 1}, REFUSED), ({"classes": 30_000}, REFUSED), ({"blocks": MOST}, f"^{MOST} blocks"),
    ):  # fmt: skip
        with pytest.raises(KernelError, match=why):
            check_distill_rows(lib, rows_case(rows=1, **changed))
    check_distill_rows(lib, rows_case(rows=1, classes=28_000, gradient="none"))  # of 227 KiB most
    no_rows = [0, 2**32, 1, 1, 1, 2**32, 1, 1, 1, 2**32, 1, 1, 1, 0, 0, 0, 0]
    options = given(np.array(no_rows, np.int64)), given(np.zeros(6))
    fails(REFUSED, lib, "distill_rows", 0, 0, *options, *[None] * 9, 1)
    no_rows[1] = no_rows[5] = no_rows[9] = 4
    options = given(np.array(no_rows, np.int64)), given(np.zeros(6))
    lib.run("distill_rows", 0, 0, *options, *[None] * 9, 1)


LAUNCHES: dict[str, Callable[[Library], None]] = {
    "sparse_mlp": check_topk_launches,
    "decode": check_decode_launches,
    "distill": check_scale_launches,
    "distill_rows": check_distill_launches,
}
