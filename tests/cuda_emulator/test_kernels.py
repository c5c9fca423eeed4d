"""The shipped kernels, executed on the CPU. TAMIS_EMULATOR_MODE picks how the drivers are compiled (build.py)."""

import os
import re

import numpy as np
import pytest
from cuda_emulator.build import ROOT
from cuda_emulator.distill_rows import ALONE, HALVES
from cuda_emulator.distill_rows import case as rows_case
from cuda_emulator.emulator import KernelError, Memory, given
from cuda_emulator.families import FAMILIES, topk_case
from cuda_emulator.formats import FORMATS
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

MODE = os.environ.get("TAMIS_EMULATOR_MODE", "checked")
EXAMPLES = int(os.environ.get("TAMIS_EMULATOR_EXAMPLES", "100"))


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    kernels = FAMILIES[family]
    lib = kernels.library(MODE)

    @settings(max_examples=EXAMPLES)
    @drawn(kernels.cases)
    def check(case):
        kernels.check(lib, case)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_edges(family):
    kernels = FAMILIES[family]
    for case in kernels.edges:
        kernels.check(kernels.library(MODE), case)


def test_topk_of_a_row_that_its_launch_cuts():
    """As many tiles as make several blocks worth their launches."""
    topk, form = FAMILIES["topk"], FORMATS[0]
    lib = FAMILIES["topk"].library("plain")
    n = 300_001
    chunks = lib.number("topk_chunks", form.code, 2, n)
    assert chunks == 9
    topk.check(lib, topk_case(n=n, k=1000, chunks=chunks, spread="normal"))
    assert lib.number("topk_chunks", form.code, 600, n) == 1
    assert lib.number("topk_chunks", form.code, 512, n) == 2
    assert lib.number("topk_chunks", form.code, 1, 10**10) == 1024
    assert lib.number("topk_chunks", form.code, 1, 100_000) == 1
    assert lib.number("topk_chunks", form.code, 0, n) == 1


def test_launches_refuse_what_no_grid_can_do():
    lib = FAMILIES["topk"].library(MODE)
    x, values, indices = given(np.zeros((1, 4), np.uint32)), Memory((1, 4), np.uint32), Memory((1, 4), np.int64)
    for rows, n, k, chunks in ((1, 4, 5, 1), (1, 4, 0, 1), (1, 4, 4, 0), (2**31, 4, 1, 1), (65536, 4, 1, 2)):
        with pytest.raises(KernelError, match="error 1$"):
            lib.run("topk", 0, x, rows, n, n, k, values, indices, chunks, None)
    for rows, k in ((1, 2049), (2**31, 1)):
        with pytest.raises(KernelError, match="error 1$"):
            lib.run("topk_sort", 0, values, indices, rows, k, values, indices)
    lib.run("topk", 0, x, 0, 4, 4, 1, values, indices, 1, None)
    lib.run("topk_sort", 0, values, indices, 0, 1, values, indices)


def test_rows_ask_for_what_they_hold():
    """As kept_bytes of pysrc/tamis/distill/cuda_choice.py; a launch that asks for more than there is fails."""
    rows = FAMILIES["distill_rows"]
    lib = rows.library(MODE)
    for form in HALVES:
        lanes = 16 // np.dtype(form.bits).itemsize
        for classes in (1, lanes, lanes + 1, 1000, 29_000):
            held = 16 * ((classes + 2 * (lanes - 1)) // lanes)
            assert lib.number("distill_rows_shared", form.code, 0, classes) == 2 * held
            assert lib.number("distill_rows_shared", form.code, ALONE, classes) == held
    for changed in ({"form": FORMATS[1]}, {"divergence": 6}, {"blocks": 0}, {"blocks": 2**31}, {"classes": 30_000}):
        with pytest.raises(KernelError, match="error 1$"):
            rows.check(lib, rows_case(rows=1, **changed))
    rows.check(lib, rows_case(rows=1, classes=28_000, gradient="none"))  # of 227 KiB most


def test_decoding_refuses_what_no_grid_can_do():
    lib = FAMILIES["project"].library(MODE)
    x, out = given(np.zeros((1, 4), np.uint32)), Memory((1, 4), np.uint32)
    for tokens, d_ff in ((0, 1), (9, 1), (1, 0), (1, 2**40)):
        with pytest.raises(KernelError, match="error 1$"):
            lib.run("project", 0, x, tokens, 4, x, 4, None, None, 0, None, d_ff, 0, out, None)
    for index, tokens, k, d_ff, columns in (
        (None, 65536, 1, 1, 4), (None, 1, 1, 1, 2**31), (None, 1, 0, 0, 4), (x, 1, 2, 1, 4), (None, 1, 1, 2, 4)
    ):  # fmt: skip
        with pytest.raises(KernelError, match="error 1$"):
            lib.run("gather_rows", 0, x, index, tokens, k, d_ff, x, columns, columns, None, out)
    for tokens, columns in ((0, 4), (1, 0)):
        lib.run("gather_rows", 0, x, None, tokens, 1, 1, x, columns, columns, None, out)


@settings(max_examples=20)
@drawn(st.integers(0, 2**32), st.integers(0, 2**32))
def test_no_schedule_changes_a_sum(one, other):
    lib = FAMILIES["gather_rows"].library(MODE)
    rng = np.random.default_rng(one)
    hidden, w = (rng.standard_normal(shape).astype(np.float32).view(np.uint32) for shape in ((1, 90), (90, 40)))
    results = []
    for seed in (one, other):
        out = Memory((1, 40), np.uint32)
        lib.run("gather_rows", 0, given(hidden), None, 1, 90, 90, given(w), 40, 40, None, out, seed=seed)
        results.append(out.array)
    np.testing.assert_array_equal(*results)


def kernels_in_the_sources():
    for file in sorted((ROOT / "kernels").rglob("*.cuh")):
        code = re.sub(r"//[^\n]*|/\*.*?\*/", "", file.read_text(), flags=re.S)
        yield from re.findall(r"__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(", code)


def test_every_kernel_is_executed():
    ran = set()
    for kernels in FAMILIES.values():

        @settings(max_examples=15)
        @drawn(case=kernels.cases)
        def check(kernels, case):
            kernels.check(kernels.library(), case)

        check(kernels)
        ran |= kernels.library().launched()
    assert set(kernels_in_the_sources()) == ran


@settings(max_examples=30)
@drawn(st.integers(0, 2**32), st.integers(0, 2**32))
def test_no_schedule_changes_the_result(one, other):
    lib = FAMILIES["topk"].library(MODE)
    bits = np.random.default_rng(one).integers(0, 2**16, (1, 5000)).astype(np.uint16)
    results = []
    for seed in (one, other):
        values, indices = Memory((1, 99), np.uint16), Memory((1, 99), np.int64)
        workspace = Memory(lib.number("topk_workspace_bytes", 2, 1, 2) // 8, np.int64)
        lib.run("topk", 2, given(bits), 1, 5000, 5000, 99, values, indices, 2, workspace, seed=seed)
        results.append((values.array, indices.array))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
