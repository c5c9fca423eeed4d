"""The same subset everywhere: every instruction set, the reference, threads, batches, shards."""

import itertools
import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
import tamis
import torch
from disassembly import disassembly
from hypothesis import given
from sampling.populations import DTYPES, populations, some_ids, strided, uniform
from tamis.sampling import draw_reference, importance_sample

METHODS = [
    *(("poisson", weights) for weights in ("draw", "inclusion")),
    *(("race", weights) for weights in ("draw", "inclusion")),
    *((method, "draw") for method in ("systematic", "alias")),
]
SEEDS = st.integers(-(2**63), 2**63 - 1)
# Random123's kat_vectors: counter (id low, id high, offset low, offset high), key (seed low, seed high).
KNOWN = [
    ((0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((-1, -1, -1), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ((0x85A308D3_243F6A88, 0x299F31D0_A4093822, 0x03707344_13198A2E), "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def signed(value):
    return value - 2**64 if value >= 2**63 else value


def same(a, b):
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def known_answers(words):
    for (id_, seed, offset), want in KNOWN:
        ids = torch.arange(-9, 10) + signed(id_)  # in any lane
        got = words(ids, signed(seed), signed(offset))[9]
        assert " ".join(f"{word:08x}" for word in got.tolist()) == want


def test_philox_gives_known_answers(isa):
    known_answers(torch.ops.tamis._philox)


def test_the_references_philox_gives_known_answers():
    known_answers(lambda ids, *key: draw_reference.words(draw_reference.PLAIN, ids, *key))


@pytest.mark.parametrize("n", [0, 1, 3, 70])
def test_philox_of_any_number_of_ids(isa, n):
    ids = some_ids(n)
    want = draw_reference.words(draw_reference.PLAIN, ids, -5, 2**40)
    assert torch.equal(torch.ops.tamis._philox(strided(ids, "strided"), -5, 2**40), want)


@pytest.mark.parametrize(("method", "weights"), METHODS, ids=map("-".join, METHODS))
@given(population=populations(), seed=SEEDS, offset=SEEDS, data=st.data())
def test_the_references_bits(isa, method, weights, population, seed, offset, data):
    probs, ids = population
    if method != "poisson":
        probs = probs * data.draw(st.sampled_from([1.0, 1e30, 1e-30]))
    positive = int(probs.count_nonzero())
    if method != "poisson" and not positive:
        return
    most = positive if method == "race" else 3 * len(probs)
    k = None if method == "poisson" else data.draw(st.integers(1, most) | st.sampled_from([1, most]))
    cap = data.draw(st.sampled_from([None, 1.0, 30.0]))
    arguments = {"method": method, "ids": ids, "seed": seed, "offset": offset, "cap": cap, "weights": weights}
    got = importance_sample(probs, k, **arguments)
    assert same(got, importance_sample(probs, k, **arguments, impl="reference"))
    assert got.weights.dtype == torch.float32
    assert k is None or len(got.indices) == k
    assert bool((got.indices[1:] >= got.indices[:-1]).all())
    assert cap is None or bool((got.weights <= cap).all())
    if method in ("poisson", "race"):
        assert bool((probs[got.indices] > 0).all())
        assert len(got.indices.unique()) == len(got.indices)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("method", "weights"), METHODS, ids=map("-".join, METHODS))
def test_any_number_of_threads(isa, method, weights, dtype):
    probs, ids = uniform(150_001, dtype), some_ids(150_001)
    k = None if method == "poisson" else 40_000
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(importance_sample(probs, k, method=method, ids=ids, seed=1, weights=weights))
        torch.set_num_threads(before)
    assert same(results[0], results[1]) and same(results[0], results[2])


@given(population=populations(), cuts=st.lists(st.integers(0, 2000), max_size=3))
def test_poisson_of_batches_is_the_wholes(isa, population, cuts):
    probs, ids = population
    ids = torch.arange(len(probs)) if ids is None else ids
    whole = importance_sample(probs, ids=ids, seed=4)
    edges = [0, *sorted(min(cut, len(probs)) for cut in cuts), len(probs)]
    parts = [(i, importance_sample(probs[i:j], ids=ids[i:j], seed=4)) for i, j in itertools.pairwise(edges)]
    assert torch.equal(torch.cat([part.indices + i for i, part in parts]), whole.indices)
    assert torch.equal(torch.cat([part.weights for _, part in parts]), whole.weights)


@given(population=populations(most=0.25), shards=st.integers(1, 4), data=st.data())
def test_races_of_shards_are_merged_by_their_keys(isa, population, shards, data):
    probs, ids = population
    ids = torch.arange(len(probs)) if ids is None else ids
    positive = int(probs.count_nonzero())
    if not positive:
        return
    k = data.draw(st.integers(1, positive))
    whole = importance_sample(probs, k, method="race", ids=ids, seed=4)
    entries = []
    for shard in range(shards):
        mine, names = probs[shard::shards], ids[shard::shards]
        if left := min(k, int(mine.count_nonzero())):
            part = importance_sample(mine, left, method="race", ids=names, seed=4)
            entries += zip(part.keys.tolist(), names[part.indices].tolist(), part.weights.tolist(), strict=True)
    merged = sorted(sorted(entries)[:k], key=lambda entry: entry[1])
    want = zip(whole.keys.tolist(), ids[whole.indices].tolist(), whole.weights.tolist(), strict=True)
    assert merged == sorted(want, key=lambda entry: entry[1])


@pytest.mark.parametrize("method", ["poisson", "race", "systematic", "alias"])
def test_the_order_of_examples_does_not_matter(isa, method):
    probs, ids, k = uniform(3000), some_ids(3000), None if method == "poisson" else 500
    shuffled = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    a = importance_sample(probs, k, method=method, ids=ids, seed=9)
    b = importance_sample(probs[shuffled], k, method=method, ids=ids[shuffled], seed=9)
    assert torch.equal(ids[a.indices].sort().values, ids[shuffled][b.indices].sort().values)


def test_ties_go_by_id(isa):
    """Probabilities so small that most keys are inf, or so large that all are 0."""
    ids = some_ids(900)
    for p, k in ((torch.full((900,), 1e-45), 850), (torch.full((900,), 1e300, dtype=torch.float64), 100)):
        drawn = importance_sample(p, k, method="race", ids=ids, seed=0)
        every = importance_sample(p, 900, method="race", ids=ids, seed=0).keys
        want = sorted(range(900), key=lambda i: (every[i].item(), ids[i].item()))[:k]
        assert drawn.indices.tolist() == sorted(want)
        assert (every == drawn.keys.max()).sum() > 1  # there are ties at the end


def test_seed_and_offset_and_their_halves_matter():
    probs = torch.full((2000,), 0.5)
    seeds = [{"seed": 0}, {"seed": 1}, {"seed": 2**32}, {"seed": 0, "offset": 1}, {"seed": 0, "offset": 2**32}]
    drawn = {tuple(importance_sample(probs, **seed).indices.tolist()) for seed in seeds}
    drawn.add(tuple(importance_sample(probs, ids=torch.arange(2000) << 32, seed=0).indices.tolist()))
    assert len(drawn) == 6
    large = importance_sample(probs, seed=2**64 - 1)  # as torch's own seeds
    assert same(large, importance_sample(probs, seed=-1))


def test_nothing_is_fused():
    """v2 has no fma: with one, the others' bits would differ."""
    functions = disassembly(Path(tamis.__file__).parent / "_ops.so")
    fused = re.compile(r"\b(vfn?m\w+|fn?madd|fn?msub|fmla|fmls)\b")
    assert any(fused.search(code) for code in functions.values())  # there is something to see
    ours = re.compile(r"Population|take_keyed|take_masked|Masses|systematic|independent")
    names = [name for name in functions if ours.search(name)]
    kernels = {"poisson", "race", "take_keyed", "weigh", "mass", "place"}
    assert kernels <= {kernel for kernel in kernels for name in names if f"::{kernel}<" in name}
    assert not [name for name, code in functions.items() if ours.search(name) and fused.search(code)]
