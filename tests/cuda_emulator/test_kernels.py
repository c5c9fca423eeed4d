"""The shipped kernels, executed on the CPU. TAMIS_EMULATOR_MODE picks how the drivers are compiled (build.py)."""

import os
import re

import numpy as np
import pytest
from cuda_emulator.build import ROOT, library
from cuda_emulator.emulator import Library, Memory, given
from cuda_emulator.families import FAMILIES
from cuda_emulator.launches import LAUNCHES
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


@pytest.mark.parametrize("driver", LAUNCHES)
def test_launches(driver):
    LAUNCHES[driver](Library.load(library(driver, MODE)))


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
