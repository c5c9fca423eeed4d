"""For each driver: examples of its kernels' work, and what must come of them. The tests draw from these; so does the
mutation run, over a tree whose sources were changed."""

from typing import Any

import hypothesis.strategies as st
import numpy as np

from .decode import check_gather_rows, check_project, gather_rows_cases, gather_rows_edges, project_cases, project_edges
from .distill_rows import check as check_distill_rows
from .distill_rows import distill_rows_cases, distill_rows_edges
from .emulator import Library, Memory, given
from .family import OFFSETS, SEEDS, Case, Family, numbers
from .formats import FORMATS, Format

# distill: a gradient times the incoming one


@st.composite
def scale_rows_cases(draw: Any) -> Case:
    classes = draw(st.integers(1, 40) | st.sampled_from([64, 255, 256, 257, 1030]))
    return {
        "form": draw(st.sampled_from(FORMATS)),
        "rows": draw(st.integers(1, 5)),
        "classes": classes,
        "offset": draw(OFFSETS),
        "out_offset": draw(st.none() | OFFSETS),  # none: in place
        "per_row": draw(st.booleans()),
        "ones": draw(st.booleans()),  # multipliers that change nothing
        "grid": draw(st.none() | st.tuples(st.integers(1, 2), st.integers(1, 3), st.sampled_from([32, 64]))),
        "seed": draw(SEEDS),
    }


def check_scale_rows(lib: Library, case: Case) -> None:
    form, rows, classes = case["form"], case["rows"], case["classes"]
    rng = np.random.default_rng(case["seed"])
    x = numbers(rng, form, (rows, classes))
    x.flat[rng.integers(x.size)] = form.encode(np.array([np.inf]).astype(form.real))[0]
    grad = rng.standard_normal(rows if case["per_row"] else 1).astype(form.real)
    factor = rng.standard_normal(1).astype(form.real)
    in_place = case["out_offset"] is None
    if case["ones"]:
        factor[0] = 1
        grad[: len(grad) if in_place else 1] = 1
    times = grad * factor
    # where nothing is to be done, nothing may be written
    gradient = given(x, case["offset"], writable=in_place and not case["ones"])
    out = gradient if in_place else Memory((rows, classes), form.bits, case["out_offset"])
    arguments = [gradient, given(grad), given(factor), out, rows, classes, int(case["per_row"])]
    if case["grid"] is None:
        lib.run("scale_rows", form.code, *arguments, seed=case["seed"])
    else:
        lib.run("scale_rows_on_grid", form.code, *case["grid"], *arguments, seed=case["seed"])
    with np.errstate(over="ignore"):
        want = form.encode(form.decode(x) * times.reshape(-1, 1))
    np.testing.assert_array_equal(out.array, want)


# sparse_mlp: top-k


@st.composite
def topk_cases(draw: Any) -> Case:
    form = draw(st.sampled_from(FORMATS))
    tile = 512 * 16 // np.dtype(form.bits).itemsize
    n = draw(st.integers(1, 70) | st.integers(1, 4 * tile) | st.sampled_from([tile - 1, tile, tile + 1, 2 * tile]))
    return {
        "form": form,
        "rows": draw(st.integers(1, 3)),
        "n": n,
        "k": draw(st.integers(1, n) | st.integers(1, min(n, 9)) | st.just(n)),
        "gap": draw(st.integers(0, 9)),
        "offset": draw(OFFSETS),
        "chunks": draw(st.integers(1, 5)),
        "spread": draw(st.sampled_from(["normal", "narrow", "ties", "steps", "one", "nans"])),
        "specials": draw(st.booleans()),
        "sort_most": 640,  # quadratic, and there is a case at the kernel's most
        "seed": draw(SEEDS),
    }


def topk_rows(case: Case) -> np.ndarray:
    """Bits [rows, n + gap]; the gap is NaN, which none may choose."""
    form, rows, n = case["form"], case["rows"], case["n"]
    rng = np.random.default_rng(case["seed"])
    x = rng.standard_normal((rows, n))
    if case["spread"] == "narrow":
        x = 1 + x * 2.0**-9
    elif case["spread"] == "ties":
        x = rng.integers(-2, 3, (rows, n)) * 0.5
    elif case["spread"] == "steps":
        x = np.arange(rows * n).reshape(rows, n) // 3 - n / 6
    elif case["spread"] == "one":
        x[:] = 7
    bits = np.full((rows, n + case["gap"]), form.nans[0], form.bits)
    bits[:, :n] = form.encode(x.astype(form.real))
    if case["spread"] == "nans":  # of several payloads, all alike
        bits[:, :n] = rng.choice(np.array(form.nans, form.bits), (rows, n))
    if case["specials"]:
        values = [*form.nans, *form.encode(np.array([np.inf, -np.inf, 0.0, -0.0], form.real))]
        for _ in range(rng.integers(1, 12)):
            bits[rng.integers(rows), rng.integers(n)] = rng.choice(np.array(values, form.bits))
    return bits


def in_order(form: Format, row: np.ndarray) -> np.ndarray:
    """Indices, descending: NaN first, ties by lowest index."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        x = form.decode(row).astype(np.float64)
    return np.lexsort((np.arange(len(x)), -np.where(np.isnan(x), 0, x), ~np.isnan(x)))


def check_topk(lib: Library, case: Case) -> None:
    form, rows, n, k, chunks, seed = (case[name] for name in ("form", "rows", "n", "k", "chunks", "seed"))
    bits = topk_rows(case)
    values, indices = Memory((rows, k), form.bits, case["offset"]), Memory((rows, k), np.int64)
    workspace = Memory(lib.number("topk_workspace_bytes", form.code, rows, chunks) // 8, np.int64)
    x = given(bits.reshape(-1)[: rows * (n + case["gap"]) - case["gap"]], case["offset"])
    lib.run("topk", form.code, x, rows, n, n + case["gap"], k, values, indices, chunks, workspace, seed=seed)
    order = np.stack([in_order(form, row[:n])[:k] for row in bits])
    np.testing.assert_array_equal(indices.array, np.sort(order, axis=1))
    np.testing.assert_array_equal(values.array, np.take_along_axis(bits, indices.array, axis=1))
    if k > case["sort_most"]:
        return
    sorted_values, sorted_indices = Memory((rows, k), form.bits, case["offset"]), Memory((rows, k), np.int64)
    chosen = given(values.array), given(indices.array)
    lib.run("topk_sort", form.code, *chosen, rows, k, sorted_values, sorted_indices, seed=seed)
    np.testing.assert_array_equal(sorted_indices.array, order)
    np.testing.assert_array_equal(sorted_values.array, np.take_along_axis(bits, order, axis=1))


def topk_case(**changed: Any) -> Case:
    usual = {"form": FORMATS[0], "rows": 2, "n": 100, "k": 7, "gap": 0, "offset": 0, "chunks": 1}
    return usual | {"spread": "ties", "specials": True, "sort_most": 2048, "seed": 1} | changed


def scale_rows_case(**changed: Any) -> Case:
    usual = {"form": FORMATS[0], "rows": 3, "classes": 77, "offset": 0, "out_offset": 0, "per_row": True}
    return usual | {"ones": False, "grid": None, "seed": 1} | changed


def scale_rows_edges() -> list[Case]:
    found = []
    for form in FORMATS:
        lanes = 16 // np.dtype(form.bits).itemsize
        for offset in range(lanes):  # every head, every tail, and both in one vector
            found += [
                scale_rows_case(form=form, offset=offset, out_offset=offset, classes=classes, grid=(1, 1, 32), rows=1)
                for classes in range(1, 3 * lanes + 1)
            ]
    ones = [scale_rows_case(ones=True, out_offset=out) for out in (None, 0)]
    return [*ones, scale_rows_case(out_offset=1), scale_rows_case(grid=(2, 2, 32), classes=1030), *found]


def topk_edges() -> list[Case]:
    found = [topk_case(rows=1, n=2500, k=2048), topk_case(n=9000, k=2049, chunks=2)]
    # at the worst place a row has one tile more
    found += [
        topk_case(n=n, k=k, chunks=c, offset=o, rows=1) for n, k, c, o in ((8192, 5000, 2, 3), (6144, 6144, 3, 1))
    ]
    for form in FORMATS:
        tile = 512 * 16 // np.dtype(form.bits).itemsize
        found.append(topk_case(form=form, n=70, k=20, spread="nans"))
        for chunks in (1, 3):
            found += [topk_case(form=form, n=n, k=k, chunks=chunks) for n, k in ((1, 1), (3 * tile, 5), (9, 9))]
            found += [
                topk_case(form=form, n=n, k=40, offset=offset, gap=offset, chunks=chunks, spread=spread)
                for offset, n, spread in ((1, 70, "normal"), (3, 64, "one"), (7, 5000, "narrow"), (5, 4091, "steps"))
            ]
    return found


FAMILIES = {
    "scale_rows": Family("distill", scale_rows_cases(), scale_rows_edges(), check_scale_rows),
    "distill_rows": Family("distill_rows", distill_rows_cases(), distill_rows_edges(), check_distill_rows),
    "topk": Family("sparse_mlp", topk_cases(), topk_edges(), check_topk),
    "project": Family("decode", project_cases(), project_edges(), check_project),
    "gather_rows": Family("decode", gather_rows_cases(), gather_rows_edges(), check_gather_rows),
}
