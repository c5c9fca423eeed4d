"""sparse_mlp's decoding: the projection with its activation, and the rows of active neurons summed; in float64."""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np

from .emulator import Library, Memory, given
from .family import OFFSETS, SEEDS, Case, numbers
from .formats import FORMATS, Format

NONE = 5  # of the activations: the numbers as they are
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-14}  # of the sum of sizes


def lanes_of(form: Format) -> int:
    return 16 // np.dtype(form.bits).itemsize


def activated(x: np.ndarray, activation: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        if activation in (0, 1):
            return np.where(x < 0, 0, x) ** (1 + activation)
        if activation == 2:
            return x * 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))
        if activation == 3:
            return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return x / (1 + np.exp(-x)) if activation == 4 else x


def matrix(rng: np.random.Generator, form: Format, rows: int, columns: int, gap: int, offset: int) -> Any:
    """What the kernel is given, between whose rows NaN lies, and its numbers in float64."""
    bits = np.full((rows, columns + gap), form.nans[0], form.bits)
    bits[:, :columns] = numbers(rng, form, (rows, columns))
    exact = form.decode(bits[:, :columns]).astype(np.float64)
    return given(bits.reshape(-1)[: rows * (columns + gap) - gap], offset), exact


def vector(rng: np.random.Generator, form: Format, size: int, there: bool) -> Any:
    if not there:
        return None, 0.0
    bits = numbers(rng, form, size)
    return given(bits), form.decode(bits).astype(np.float64)


@st.composite
def project_cases(draw: Any) -> Case:
    form = draw(st.sampled_from(FORMATS))
    aligned = draw(st.booleans())
    lanes = lanes_of(form)
    gaps = st.sampled_from([0, lanes]) if aligned else st.integers(0, 9)
    offsets = st.just(0) if aligned else st.just(0) | OFFSETS
    return {
        "form": form,
        "tokens": draw(st.integers(1, 8)),
        "d": draw(st.integers(1, 4) if aligned else st.just(0)) * lanes + draw(st.integers(0, 40)),
        "d_ff": draw(st.integers(1, 40)),
        "gated": draw(st.booleans()),
        "biases": draw(st.tuples(st.booleans(), st.booleans())),
        "gaps": draw(st.tuples(gaps, gaps)),
        "offsets": draw(st.tuples(offsets, offsets, offsets)),
        "activation": draw(st.integers(0, NONE)),
        "ranks": draw(st.booleans()),
        "nan": draw(st.booleans()),
        "seed": draw(SEEDS),
    }


def check_project(lib: Library, case: Case) -> None:
    form, tokens, d, d_ff, gated = (case[name] for name in ("form", "tokens", "d", "d_ff", "gated"))
    rng = np.random.default_rng(case["seed"])
    x, exact = matrix(rng, form, tokens, d, 0, case["offsets"][0])
    if case["nan"]:
        x.array[0] = form.nans[0]
        exact[0, 0] = np.nan
    sums, sizes, arguments = [], [], []
    for i in range(1 + gated):
        w, w_exact = matrix(rng, form, d_ff, d, case["gaps"][i], case["offsets"][1 + i])
        b, b_exact = vector(rng, form, d_ff, case["biases"][i])
        sums.append(exact @ w_exact.T + b_exact)
        sizes.append(np.abs(exact) @ np.abs(w_exact).T + np.abs(b_exact))
        arguments += [w, d + case["gaps"][i], b]
    arguments += [None] * (6 - len(arguments)) if gated else [None, 0, None]
    hidden = Memory((tokens, d_ff), form.real)
    rank = Memory((tokens, d_ff), form.real) if case["ranks"] else None
    lib.run("project", form.code, x, tokens, d, *arguments, d_ff, case["activation"], hidden, rank, seed=case["seed"])
    up, slack = sums[0], 1 + sizes[0]
    want = activated(sums[-1], case["activation"]) * (up if gated else 1)
    slack = slack * (1 + sizes[-1]) if gated or case["activation"] == 1 else slack
    close(hidden.array, want, 3 * TOLERANCE[form.real] * slack)
    if rank is not None:
        np.testing.assert_array_equal(rank.array, np.abs(hidden.array))


def close(got: np.ndarray, want: np.ndarray, slack: np.ndarray) -> None:
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    with np.errstate(invalid="ignore"):
        assert not (np.abs(got - want) > slack).any()


def project_case(**changed: Any) -> Case:
    usual = {"form": FORMATS[0], "tokens": 3, "d": 21, "d_ff": 9, "gated": True, "biases": (True, True)}
    usual |= {"gaps": (0, 0), "offsets": (0, 0, 0), "activation": 2, "ranks": True, "nan": False, "seed": 1}
    return usual | changed


def project_edges() -> list[Case]:
    found = [project_case(activation=a, gated=gated) for a in range(NONE + 1) for gated in (False, True)]
    for form in FORMATS:
        lanes = lanes_of(form)
        for gated in (False, True):
            usual = {"form": form, "gated": gated}
            found += [project_case(tokens=tokens, d=lanes * 3, **usual) for tokens in range(1, 9)]
            found += [project_case(d_ff=d_ff, **usual) for d_ff in (1, 2, 3, 4, 5, 8, 16, 17)]
            # one of them not at a multiple of 16 bytes, or from the second row on
            found += [
                project_case(d=lanes * 2, offsets=offsets, gaps=gaps, **usual)
                for offsets, gaps in (
                    ((1, 0, 0), (0, 0)), ((0, 1, 0), (0, 0)), ((0, 0, 1), (0, 0)), ((0, 0, 0), (1, 0)),
                    ((0, 0, 0), (0, 1)), ((0, 0, 0), (lanes, lanes)),
                )
            ]  # fmt: skip
            found += [
                project_case(d=d, tokens=1, **usual) for d in (1, lanes - 1 or 1, lanes + 1, 33 * lanes, 70 * lanes + 1)
            ]
    return found


@st.composite
def gather_rows_cases(draw: Any) -> Case:
    form = draw(st.sampled_from(FORMATS))
    lanes = lanes_of(form)
    d_ff = draw(st.integers(1, 80) | st.sampled_from([64, 255, 256, 257, 700]))
    aligned = draw(st.booleans())
    return {
        "form": form,
        "tokens": draw(st.integers(1, 3)),
        "d_ff": d_ff,
        "k": draw(st.none() | st.integers(1, d_ff)),  # none: all neurons, without indices
        "columns": draw(st.integers(1, 3 * 8 * lanes)),
        "gap": draw(st.sampled_from([0, lanes])) if aligned else draw(st.integers(0, 9)),
        "offset": 0 if aligned else draw(OFFSETS),
        "bias": draw(st.booleans()),
        "seed": draw(SEEDS),
    }


def check_gather_rows(lib: Library, case: Case) -> None:
    form, tokens, d_ff, columns = (case[name] for name in ("form", "tokens", "d_ff", "columns"))
    rng = np.random.default_rng(case["seed"])
    k, index, chosen = case["k"] or d_ff, None, np.ones((tokens, d_ff), bool)
    if case["k"]:
        indices = np.stack([np.sort(rng.permutation(d_ff)[:k]) for _ in range(tokens)]).astype(np.int64)
        index, chosen = given(indices), np.zeros((tokens, d_ff), bool)
        np.put_along_axis(chosen, indices, True, 1)
    hidden = rng.standard_normal((tokens, d_ff)).astype(form.real)
    hidden[rng.random((tokens, d_ff)) < 0.3] = 0
    hidden[~chosen] = np.nan  # which nobody reads
    used = np.where(chosen, hidden, 0).astype(np.float64)
    w, exact = matrix(rng, form, d_ff, columns, case["gap"], case["offset"])
    idle = ~used.any(0)
    for neuron in np.flatnonzero(idle):  # a row that is read shows
        w.array[neuron * (columns + case["gap"]) :][:columns] = form.nans[0]
    exact[idle] = 0
    b, b_exact = vector(rng, form, columns, case["bias"])
    out = Memory((tokens, columns), form.bits)
    arguments = [given(hidden), index, tokens, k, d_ff, w, columns + case["gap"], columns, b, out]
    lib.run("gather_rows", form.code, *arguments, seed=case["seed"])
    want = used @ exact + b_exact
    size = np.abs(used) @ np.abs(exact) + np.abs(b_exact)
    rounding = {2: 2.0**-8 if form.code == 3 else 2.0**-11}.get(np.dtype(form.bits).itemsize, 0.0)
    close(form.decode(out.array), want, 3 * TOLERANCE[form.real] * size + rounding * np.abs(want) + 1e-7 * rounding)


def gather_rows_case(**changed: Any) -> Case:
    usual = {"form": FORMATS[0], "tokens": 2, "d_ff": 90, "k": 30, "columns": 70, "gap": 0, "offset": 0, "bias": True}
    return usual | {"seed": 1} | changed


def gather_rows_edges() -> list[Case]:
    found = []
    for form in FORMATS:
        lanes = lanes_of(form)
        block = 8 * lanes
        found += [gather_rows_case(form=form, columns=c) for c in (1, lanes, block - 1, block, block + 1, 2 * block)]
        # of a round: its last row, one more; and of a thread's own rows
        found += [
            gather_rows_case(form=form, d_ff=300, k=k, columns=block) for k in (1, 63, 64, 65, 256, 257, 300, None)
        ]
        found += [
            gather_rows_case(form=form, columns=block, gap=gap, offset=offset)
            for gap, offset in ((lanes, 0), (1, 0), (0, 1), (lanes, 3))
        ]
        found += [gather_rows_case(form=form, columns=block + lanes + 1, gap=lanes - 1, d_ff=1, k=1)]
    return found
