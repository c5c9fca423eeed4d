"""The draws in Triton's interpreter: the CPU's bits; what is compiled fuses nothing and flushes nothing."""

import re

import pytest
import torch
from interpreter import inner, outer, patched_once, small  # noqa: F401
from sampling.populations import DTYPES, EXTREMES, some_ids, strided, uniform
from sampling.test_draw_bits import METHODS, known_answers, same
from tamis import explain
from tamis.aot import entries, triton
from tamis.sampling import draw_cuda, draw_reference, importance_sample


@pytest.fixture(autouse=True)
def two_programs(monkeypatch):
    monkeypatch.setattr(draw_cuda, "BLOCK", 256)


@outer
@pytest.mark.parametrize("kernel", ["coins_kernel", "keys_kernel", "inverse_kernel", "conditional_kernel"])
@pytest.mark.parametrize("arch", [80, 100])
def test_nothing_is_fused_or_flushed(kernel, arch):
    for entry in entries([arch]):
        if entry.family == "sampling" and entry.variant.kernel == kernel:
            ptx = triton.built(entry).asm["ptx"]
            assert not re.search(r"\bfma\.|\.ftz|\.approx|div\.full", ptx)
            assert kernel == "coins_kernel" or re.search(r"div\.rn\.f(32|64)", ptx)


@inner
def test_philox_gives_known_answers():
    known_answers(lambda ids, *key: draw_reference.words(draw_cuda.TRITON, ids, *key))


@inner
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ids", [None, some_ids(400)], ids=["positions", "ids"])
@pytest.mark.parametrize(("method", "weights"), METHODS, ids=map("-".join, METHODS))
def test_the_cpus_bits(method, weights, ids, dtype):
    probs = uniform(400, dtype) ** 5
    probs[3::9], probs[4::9], probs[5::50] = 0, 1, 1e-38
    for k in (1, 50, int(probs.count_nonzero())):
        arguments = {"method": method, "ids": ids, "seed": -3, "offset": 2**33 + 1, "cap": 40.0, "weights": weights}
        draws = None if method == "poisson" else k
        got = importance_sample(strided(probs, "strided"), draws, **arguments, impl="triton")
        assert same(got, importance_sample(probs, draws, **arguments))


@inner
def test_words_at_both_ends_of_the_race():
    """The exponential's branches, of keys at p = 1 over many ids."""
    probs = torch.ones(20_000)
    got = importance_sample(probs, 20_000, method="race", seed=1, impl="triton")
    assert same(got, importance_sample(probs, 20_000, method="race", seed=1))
    got = importance_sample(probs[:8], 8, method="race", ids=EXTREMES, seed=0, impl="triton")
    assert same(got, importance_sample(probs[:8], 8, method="race", ids=EXTREMES, seed=0))


@inner
def test_values_that_no_device_waits_to_check():
    """As on CUDA: negative and NaN never, above 1 always; a race that runs out fills up with weights of NaN."""
    probs = torch.tensor([-1.0, float("nan"), 2.0, 0.0, float("inf")]).repeat(60)
    coins = draw_reference.sample(draw_cuda.TRITON, probs, None, "poisson", None, 0)
    assert coins[0].tolist() == [i for i in range(300) if i % 5 in (2, 4)]
    indices, weights, keys = draw_reference.sample(draw_cuda.TRITON, probs, 125, "race", None, 0)
    good = torch.isin(indices % 5, torch.tensor([2, 4]))
    assert good.sum() == 120 and weights[~good].isnan().all() and keys[~good].isnan().all()
    assert not weights[good].isnan().any()
    for method in ("systematic", "alias"):
        for bad in (probs, torch.zeros(7), torch.full((7,), float("nan"))):
            indices, _ = draw_reference.sample(draw_cuda.TRITON, bad, 9, method, None, 0)
            assert len(indices) == 9 and indices.min() >= 0 and indices.max() < len(bad)


@inner
def test_empty_and_explained():
    assert importance_sample(torch.empty(0), seed=0, impl="triton").indices.shape == (0,)
    assert explain("importance_sample", uniform(3), impl="triton").kernel == "coins_kernel"
    assert explain("importance_sample", uniform(3), 2, method="race", impl="triton").kernel == "keys_kernel"
