"""pq_scan, pack_codes and pq_lut against plain torch and float64."""

import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
import tamis
import torch
from disassembly import disassembly
from hypothesis import given
from tamis import _native
from tamis.ann import pack_codes, pq_lut, pq_scan, reference

BITS = {4: (2, 4, 6, 50), 6: (4, 8, 32)}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def made(seed, n, bits, parts, queries):
    g = generator(seed)
    codes = torch.randint(0, 1 << bits, (n, parts), generator=g, dtype=torch.uint8)
    return codes, torch.randn(queries, parts, 1 << bits, generator=g)


shapes = st.sampled_from([(bits, parts) for bits, each in BITS.items() for parts in each])


@given(shapes, st.integers(0, 300), st.integers(0, 2**31))
def test_packing(isa, shape, n, seed):
    bits, parts = shape
    codes, _ = made(seed, n, bits, parts, 1)
    packed = pack_codes(codes, bits)
    assert torch.equal(packed, reference.pack_codes(codes, bits))
    assert torch.equal(reference.unpack_codes(packed, parts, bits)[:n], codes)


@given(shapes, st.integers(0, 700), st.integers(1, 9), st.integers(1, 800), st.booleans(), st.integers(0, 2**31))
def test_exact_sums(isa, shape, n, queries, k, some, seed):
    """Any count of queries and vectors: tails, ties and who is not allowed."""
    bits, parts = shape
    codes, lut = made(seed, n, bits, parts, queries)
    allowed = torch.rand(n, generator=generator(seed)) < 0.4 if some else None
    got = pq_scan(lut, pack_codes(codes, bits), n, k, lookup="u16", allowed=allowed)
    want = reference.pq_scan(lut, reference.pack_codes(codes, bits), n, k, "u16", allowed)
    assert torch.equal(got.indices, want[1])
    torch.testing.assert_close(got.distances, want[0], atol=1e-4, rtol=1e-4)


@given(shapes, st.integers(0, 400), st.integers(1, 5), st.integers(1, 60), st.integers(0, 2**31))
def test_signed_sums_that_do_not_saturate(isa, shape, n, queries, k, seed):
    """Entries of one size: 16 of them are at most 112, in whatever order they are added."""
    bits, parts = shape
    codes, lut = made(seed, n, bits, min(parts, 16), queries)
    got = pq_scan(lut.sign(), pack_codes(codes, bits), n, k)
    want = reference.pq_scan(lut.sign(), reference.pack_codes(codes, bits), n, k)
    assert torch.equal(got.indices, want[1])
    torch.testing.assert_close(got.distances, want[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("bits", "parts"), [(4, 50), (6, 32)])
def test_signed_sums_find_the_best(isa, bits, parts):
    """Of normal scores the ten best of 5,000, but for the last ones' rounding."""
    codes, lut = made(0, 5000, bits, parts, 20)
    exact = torch.stack([lut[:, p, codes[:, p].long()] for p in range(parts)]).double().sum(0)
    got = pq_scan(lut, pack_codes(codes, bits), 5000, 20)
    best = exact.topk(10).indices
    assert (got.indices.unsqueeze(2) == best.unsqueeze(1)).any(1).double().mean() > 0.97
    spread = exact.std(1, keepdim=True)
    near = (got.distances[:, 5:] - exact.gather(1, got.indices[:, 5:])).abs() / spread  # who saturates comes first
    assert near.max() < 0.35


@pytest.mark.parametrize("second", range(1, 8))
def test_the_largest_entries_of_two_parts_add_up(isa, second):
    """Whichever two the instruction set adds before it saturates: a byte that wrapped would be the worst."""
    lut = torch.zeros(1, 8, 16)
    lut[0, [0, second], 3] = 1.0
    codes = torch.zeros(100, 8, dtype=torch.uint8)
    codes[40, [0, second]] = 3
    assert pq_scan(lut, pack_codes(codes, 4), 100, 1).indices.item() == 40


def test_more_queries_than_a_task_takes_and_threads(isa):
    codes, lut = made(1, 3000, 4, 8, 37)
    packed = pack_codes(codes, 4)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(pq_scan(lut, packed, 3000, 11))
    finally:
        torch.set_num_threads(threads)
    for got in results[1:]:
        assert torch.equal(got.indices, results[0].indices)
        assert torch.equal(got.distances, results[0].distances)


@pytest.mark.parametrize("lookup", ["s8", "u16"])
@pytest.mark.parametrize("bits", [4, 6])
def test_equal_scores_come_by_index(isa, bits, lookup):
    """Also where more of them than a collector holds pass its threshold."""
    packed = pack_codes(torch.zeros(9000, 4, dtype=torch.uint8), bits)
    lut = torch.ones(3, 4, 1 << bits)
    got = pq_scan(lut, packed, 9000, 40, lookup=lookup)
    assert torch.equal(got.indices, torch.arange(40).expand(3, 40))
    torch.testing.assert_close(got.distances, torch.full((3, 40), 4.0))


@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_lut(d, parts, dtype):
    g = generator(d)
    queries, width = torch.randn(3, d, generator=g).to(dtype), -(-d // parts)
    codebooks = torch.randn(parts, 16, width, generator=g)
    lut = pq_lut(queries, codebooks)
    for p in range(parts):
        a, b = p * d // parts, (p + 1) * d // parts
        want = queries[:, a:b].double() @ codebooks[p, :, : b - a].double().T
        torch.testing.assert_close(lut[:, p].double(), want, atol=1e-5, rtol=1e-5)


CODES, LUT = pack_codes(torch.zeros(5, 4, dtype=torch.uint8), 4), torch.zeros(2, 4, 16)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: pack_codes(torch.zeros(5, 3, dtype=torch.uint8), 4), ValueError, "codes: expected .* a multiple of 2"),
        (lambda: pack_codes(torch.zeros(5, 6, dtype=torch.uint8), 6), ValueError, "codes: expected .* a multiple of 4"),
        (lambda: pack_codes(torch.zeros(5, 4), 4), TypeError, "codes: expected uint8, got torch.float32"),
        (lambda: pack_codes(torch.full((5, 4), 16, dtype=torch.uint8), 4), ValueError, "codes: .* below 16, got 16"),
        (lambda: pack_codes(torch.zeros(5, 4, dtype=torch.uint8), 5), ValueError, "bits: expected 4 or 6, got 5"),
        (lambda: pq_scan(LUT.double(), CODES, 5, 1), ValueError, "lut: expected float32"),
        (lambda: pq_scan(LUT[:, :3], CODES, 5, 1), ValueError, "lut: expected a multiple of 2 parts, got 3"),
        (lambda: pq_scan(LUT, CODES, 33, 1), ValueError, "codes: expected shape"),
        (lambda: pq_scan(LUT, CODES, -1, 1), ValueError, "n: expected 0 to"),
        (lambda: pq_scan(LUT, CODES, 5, 0), ValueError, "k: expected at least 1, got 0"),
        (lambda: pq_scan(LUT, CODES, 5, 1, lookup="u8"), ValueError, "lookup: expected s8 or u16, got 'u8'"),
        (lambda: pq_scan(LUT, CODES, 5, 1, allowed=torch.ones(4) > 0), ValueError, "allowed: expected shape"),
        (lambda: pq_scan(LUT, CODES, 5, 1, allowed=torch.ones(5)), TypeError, "allowed: expected bool"),
        (lambda: pq_lut(torch.zeros(2, 8), torch.zeros(4, 16, 3)), ValueError, "codebooks: expected shape"),
        (lambda: torch.ops.tamis.pq_scan(LUT, CODES[1:], 5, 1), RuntimeError, "tamis.pq_scan: codes: expected"),
        (
            lambda: torch.ops.tamis.pq_scan(LUT.view(2, 8, 8), CODES, 5, 1),
            RuntimeError,
            "16 or 64 centroids, got 8",
        ),
    ],
)
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("parts", [256, 258, 392, 4096])
def test_sums_of_many_parts_are_exact(isa, parts):
    """The largest that there are: the bound of the bytes falls as parts come."""
    codes, lut = made(0, 100, 4, parts, 2)
    codes[:2], lut[:, :, 15] = 15, lut.amax() + 1
    got = pq_scan(lut, pack_codes(codes, 4), 100, 100, lookup="u16")
    want = reference.pq_scan(lut, reference.pack_codes(codes, 4), 100, 100, "u16", None)
    assert torch.equal(got.indices, want[1])
    torch.testing.assert_close(got.distances, want[0], atol=1e-3, rtol=1e-4)
    assert (got.indices[:, :2] == torch.tensor([0, 1])).all()
    step = (lut.amax(-1) - lut.amin(-1)).amax() / min(255, 65535 // parts)
    exact = torch.stack([lut[:, p, codes[:, p].long()] for p in range(parts)]).double().sum(0)
    assert (got.distances - exact.gather(1, got.indices)).abs().max() < 1.5 * step * parts**0.5


def test_more_parts_need_signed_bytes():
    with pytest.raises(ValueError, match="lookup: expected s8 above 4096 parts"):
        pq_scan(torch.zeros(1, 4098, 16), pack_codes(torch.zeros(5, 4098, dtype=torch.uint8), 4), 5, 1, lookup="u16")


@pytest.mark.parametrize(
    ("isa", "coder", "wanted", "times"),
    [("v4x", "Six", "vpermb", 4), ("v4x", "Four", "vpshufb", 2), ("v3", "Four", "vpshufb", 2)],
)
def test_codes_are_looked_up_by_one_instruction(isa, coder, wanted, times):
    """Also where the machine that runs the tests has no such instruction."""
    if isa not in _native.isa_report()["compiled"]:
        pytest.skip(f"{isa} was not compiled")
    functions = disassembly(Path(tamis.__file__).parent / "_ops.so")
    for lookup in (0, 1):
        for queries in (1, 2, 3, 4):
            name = rf"tamis::{isa}::scan<tamis::{isa}::{coder}, \(tamis::Lookup\){lookup}, {queries}>"
            (code,) = (code for function, code in functions.items() if re.search(name, function))
            copies = 3 if lookup == 0 else 1  # of two registers, or two blocks, at once, and of one
            assert len(re.findall(rf"\b{wanted}\b", code)) == times * queries * copies
            assert "prefetch" in code
