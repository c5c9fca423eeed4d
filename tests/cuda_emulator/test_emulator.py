"""The emulator itself: kernels that are wrong in one way each are caught, and their right twins pass."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest
from cuda_emulator.build import ROOT, library, sanitizer_environment
from cuda_emulator.emulator import KernelError, Library, Memory, given
from cuda_emulator.formats import FORMATS

N = 64  # threads of a block
X = np.arange(4 * N, dtype=np.int32)
BROKEN = {
    "reverse": "race|never written",
    "reuse": "race",
    "warp": "race|never written",
    "divergent_barrier": "a barrier that a thread ended without",
    "two_barriers": "a barrier while others wait at line",
    "divergent_warp": "lanes of a warp that others do not meet",
    "unwritten": "never written, shared memory",
    "blocks": "a race: two threads' writes",
    "dynamic_race": "race|never written",
    "dynamic_end": "a write out of bounds, 4 bytes at byte 256 of dynamic shared memory of 256",
    "dynamic_begin": "a write out of bounds, 4 bytes at byte -4 of dynamic shared memory of 256",
    "tail": "a write out of bounds, 4 bytes at byte 160 of a buffer of 160",
    "read_tail": "a read out of bounds, 4 bytes at byte 160 of a buffer of 160",
    "vector": "a misaligned access",
    "input": "a write to an input",
    "stream": "work for another stream",
    "stream_of_fill": "work for another stream",
}


def self_test(mode):
    return Library.load(library("self_test", mode))


def run(lib, kernel, broken, seed=0):
    out = Memory(4 * N, np.int32)
    if kernel == "reverse":
        arguments = [given(X), out, 4]
    elif kernel in ("tail", "read_tail"):
        arguments = [given(X[:40]), Memory(40, np.int32), 40]
    elif kernel in ("reuse", "warp", "vector", "input"):
        arguments = [given(X), out]
    else:
        arguments = [out]
    lib.run(kernel, *arguments, int(broken), seed=seed)
    return out.array


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kernel", BROKEN)
def test_what_is_wrong_is_caught_whatever_the_schedule(kernel, seed):
    run(self_test("checked"), kernel, False, seed)
    with pytest.raises(KernelError, match=BROKEN[kernel]):
        run(self_test("checked"), kernel, True, seed)


def test_a_missing_barrier_also_changes_results():
    """Without any check of accesses: the order of threads is enough."""
    want = X.reshape(4, N)[:, ::-1].reshape(-1)
    for seed in range(20):
        assert (run(self_test("plain"), "reverse", False, seed) == want).all()
        assert (run(self_test("plain"), "reverse", True, seed) != want).any()


def test_a_seed_is_a_schedule():
    rng = np.random.default_rng(0)
    x, n = rng.standard_normal(4 * N).astype(np.float32) * 1e6, rng.integers(0, 1000, 4 * N).astype(np.uint32)
    sums, counts = {}, set()
    for seed in [*range(30), *range(30)]:
        total, count = given(np.zeros(1, np.float32), writable=True), given(np.zeros(1, np.uint32), writable=True)
        self_test("checked").run("sum", given(x), given(n), total, count, 4, seed=seed)
        assert sums.setdefault(seed, total.array[0]) == total.array[0]  # the same seed, the same bits
        counts.add(int(count.array[0]))
    assert counts == {int(n.sum())}
    assert len(set(sums.values())) > 1


def test_shuffles():
    x = np.arange(N, dtype=np.uint32)
    sums = Memory(N, np.uint32)
    self_test("checked").run("running_sum", given(x), sums)
    assert (sums.array == np.cumsum(x.reshape(-1, 32), axis=1).reshape(-1)).all()
    crossed = Memory(N, np.uint32)
    self_test("checked").run("crossed", given(x), crossed)
    assert (crossed.array == x ^ 5).all()


def test_dynamic_shared_memory_is_asked_for():
    lib = self_test("checked")
    lib.run("dynamic_of", 0, 48 << 10, Memory(4 * N, np.int32))
    with pytest.raises(KernelError, match="not asked for"):
        lib.run("dynamic_of", 0, (48 << 10) + 4, Memory(4 * N, np.int32))
    lib.run("dynamic_of", 227 << 10, 227 << 10, Memory(4 * N, np.int32))
    with pytest.raises(KernelError, match="error 1$"):
        lib.run("dynamic_of", (227 << 10) + 4, 4, Memory(4 * N, np.int32))


def convert(function, x, dtype):
    out = np.zeros(len(x), dtype)
    getattr(self_test("plain").library, function)(
        x.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(len(x))
    )
    return out


@pytest.mark.parametrize(("name", "form"), [("half", FORMATS[2]), ("bfloat16", FORMATS[3])])
def test_roundings(name, form):
    every = np.arange(2**16, dtype=np.uint16)
    values = convert(f"{name}_to_float", every, np.float32)
    np.testing.assert_array_equal(values, form.decode(every))
    ordered = np.sort(values[np.isfinite(values)]).astype(np.float64)
    halfway = ((ordered[1:] + ordered[:-1]) / 2).astype(np.float32)  # exact: a bit more than the format has
    random = np.random.default_rng(0).integers(0, 2**32, 200_000).astype(np.uint32).view(np.float32)
    beside = [np.nextafter(halfway, np.float32(way)) for way in (-np.inf, np.inf)]
    x = np.concatenate([random, values, halfway, *beside]).astype(np.float32)
    got, want = convert(f"float_to_{name}", x, np.uint16), form.encode(x)
    nan = np.isnan(x)
    np.testing.assert_array_equal(got[~nan], want[~nan])
    assert np.isnan(form.decode(got[nan])).all()
    # numpy has no bfloat16: of the two neighbours the nearer, the even one where both are as near
    if name == "bfloat16":
        x, got = x[np.isfinite(x)], got[np.isfinite(x)]
        low = (x.view(np.uint32) >> 16).astype(np.uint16)
        with np.errstate(over="ignore", invalid="ignore"):
            down, up = (
                np.abs(x.astype(np.float64) - form.decode(b).astype(np.float64)) for b in (low, low + np.uint16(1))
            )
        inner = np.isfinite(up)
        nearer = np.where((up < down) | ((up == down) & (low & 1 == 1)), low + 1, low)
        np.testing.assert_array_equal(got[inner], nearer[inner])


def sanitized(*command):
    environment = sanitizer_environment()
    if environment is None:
        pytest.skip("the compiler has no AddressSanitizer")
    chosen = {"TAMIS_EMULATOR_MODE": "sanitized", "TAMIS_EMULATOR_EXAMPLES": "8"}
    run = [sys.executable, *command]
    return subprocess.run(run, env=environment | chosen, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("tail", "AddressSanitizer: use-after-poison"),
        ("read_tail", "AddressSanitizer: use-after-poison"),
        ("vector", "misaligned address"),
        ("dynamic_end", "AddressSanitizer: use-after-poison"),
        ("dynamic_begin", "AddressSanitizer: use-after-poison"),
    ],
)
def test_the_sanitizers_catch(kernel, message):
    program = (
        "import sys; from cuda_emulator.test_emulator import run, self_test; run(self_test('sanitized'), {!r}, {})"
    )
    right = sanitized("-c", program.format(kernel, False))
    assert right.returncode == 0, right.stderr
    wrong = sanitized("-c", program.format(kernel, True))
    assert wrong.returncode != 0
    assert message in wrong.stderr


def test_the_kernels_under_the_sanitizers():
    done = sanitized(
        "-m", "pytest", "-p", "no:cacheprovider", "-s", "tests/cuda_emulator/test_kernels.py", "-k", "not every"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
