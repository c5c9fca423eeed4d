"""ivf_search against brute force over the lists that it should look at. Lists and codes are drawn, not trained: what is
found is exact wherever every candidate of these lists is compared by its vector."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from tamis.ann import pack_codes, reference

SEARCH = torch.ops.tamis.ivf_search
PARTS = {4: (2, 6), 6: (4, 8)}


def made(seed, n, d, lists, bits, parts, *, l2=False, dtype=torch.float32, reorder=("bytes", "exact")):
    """ivf_search's arguments from centroids on, as a dict."""
    g = torch.Generator().manual_seed(seed)
    x, centroids = torch.randn(n, d, generator=g), torch.randn(lists, d, generator=g)
    of = torch.randint(0, lists, (n,), generator=g).sort().values
    count = torch.bincount(of, minlength=lists)
    start = torch.cat((count.new_zeros(1), count.cumsum(0)))
    each = 32 if bits == 4 else 64
    block = torch.cat((count.new_zeros(1), ((count + each - 1) // each).cumsum(0)))
    extra = 2 if l2 else 0
    slots = torch.zeros(int(block[-1]) * each, parts, dtype=torch.uint8)
    slot = block[:-1][of] * each + torch.arange(n) - start[:-1][of]
    slots[slot] = torch.randint(0, 1 << bits, (n, parts), generator=g, dtype=torch.uint8)
    scale = float(centroids.abs().max()) / 127
    packed = torch.full((-(-lists // 16) * 16, -(-d // 4) * 4), 128, dtype=torch.uint8)
    packed[:lists, :d] = ((centroids / scale).round() + 128).to(torch.uint8)
    byte_scale = float(x.abs().max()) / 127
    rows = torch.full((n, -(-d // 64) * 64), 128, dtype=torch.uint8)
    rows[:, :d] = ((x / byte_scale).round() + 128).to(torch.uint8)
    squares = ((packed[:lists, :d].float() - 128) * scale).square().sum(1)
    return {
        "centroids": packed.view(-1, 16, packed.shape[1] // 4, 4).transpose(1, 2).flatten(2).contiguous(),
        "centroid_scale": scale,
        "order_bias": squares / 2 if l2 else 0.2 * squares,
        "score_bias": -squares / 2 if l2 else torch.zeros(lists),
        "start": start,
        "block": block,
        "codebooks": torch.randn(parts - extra, -(-d // (parts - extra)), 1 << bits, generator=g),
        "constants": torch.randn(extra, 1 << bits, generator=g) if extra else None,
        "codes": pack_codes(slots, bits),
        "bytes": rows if "bytes" in reorder else None,
        "byte_scale": byte_scale,
        "half_norms": x.square().sum(1) / 2 if l2 else None,
        "exact": x.to(dtype) if "exact" in reorder else None,
        "ids": torch.randperm(n, generator=g),
        "center": None,
    }


def truth(ix, queries, k, leaves, allowed):
    """Distances of the k best of the lists that bytes pick, in float64."""
    d, lists = queries.shape[1], len(ix["order_bias"])
    rows = ix["centroids"].view(-1, (d + 3) // 4, 16, 4).transpose(1, 2).flatten(2).flatten(0, 1)[:lists, :d]
    scale = queries.abs().amax(1, keepdim=True) / 127  # queries are bytes there too
    keys = (queries / scale).round() @ (rows.float() - 128).T * (scale * ix["centroid_scale"]) - ix["order_bias"]
    near = keys.sort(1, descending=True)
    out = []
    for q, query in enumerate(queries.double()):
        at = [torch.arange(int(ix["start"][i]), int(ix["start"][i + 1])) for i in near.indices[q, :leaves].tolist()]
        at = torch.cat(at)
        if allowed is not None:
            at = at[allowed[at]]
        x = ix["exact"][at].double()
        score = x @ query if ix["half_norms"] is None else (x - query).square().sum(1)
        best = score.sort(descending=ix["half_norms"] is None).values[:k]
        nobody = -torch.inf if ix["half_norms"] is None else torch.inf
        out.append(torch.nn.functional.pad(best, (0, k - len(best)), value=nobody))
    unsure = (near.values[:, leaves - 1] - near.values[:, leaves]).abs() < 1e-3 if leaves < lists else None
    return torch.stack(out), torch.zeros(len(queries), dtype=torch.bool) if unsure is None else unsure


@given(
    st.integers(1, 500), st.integers(1, 70), st.integers(1, 40), st.sampled_from([4, 6]), st.integers(0, 1),
    st.booleans(), st.sampled_from(["s8", "u16"]), st.integers(1, 11), st.integers(1, 30), st.booleans(), st.data(),
)  # fmt: skip
def test_exact_among_its_lists(isa, n, d, lists, bits, which, l2, lookup, queries, k, some, data):
    """Every vector of the lists reaches the exact comparison: k of as many as there are. Queries alone and together."""
    leaves, seed = data.draw(st.integers(1, lists)), data.draw(st.integers(0, 2**31))
    parts = PARTS[bits][which or l2]
    ix = made(seed, n, d, lists, bits, parts, l2=l2, reorder=("exact",))
    g = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(queries, d, generator=g)
    allowed = torch.rand(n, generator=g) < 0.5 if some else None
    whole = n  # as many as there are
    values, indices = SEARCH(x, whole, leaves, n, **ix, lookup=lookup, allowed=allowed)
    want, unsure = truth(ix, x, whole, leaves, allowed)
    place = torch.empty(n, dtype=torch.int64)
    place[ix["ids"]] = torch.arange(n)
    for q in range(queries):
        if unsure[q]:  # of the last list and the next
            continue
        torch.testing.assert_close(values[q].double(), want[q], atol=1e-3, rtol=1e-4)
        there = values[q].isfinite()
        assert (indices[q][~there] == -1).all()
        found = place[indices[q][there]]
        assert len(found.unique()) == len(found)
        assert allowed is None or allowed[found].all()
    few = min(k, n)
    alone = [SEARCH(x[q : q + 1], few, leaves, n, **ix, lookup=lookup, allowed=allowed) for q in range(queries)]
    together = SEARCH(x, few, leaves, n, **ix, lookup=lookup, allowed=allowed)
    for i in range(2):
        assert torch.equal(torch.cat([a[i] for a in alone]), together[i])
    torch.testing.assert_close(together[0], values[:, :few], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize(
    ("reorder", "dtype"),
    [
        ((), torch.float32),
        (("bytes",), torch.float32),
        (("bytes", "exact"), torch.bfloat16),
        (("exact",), torch.float16),
    ],
)
def test_against_the_reference(isa, reorder, dtype, bits, l2):
    """All candidates kept: the same, up to the rounding of what lists add."""
    ix = made(3, 900, 33, 12, bits, 8, l2=l2, dtype=dtype, reorder=reorder)
    x = torch.randn(9, 33, generator=torch.Generator().manual_seed(4))
    got = SEARCH(x, 10, 12, 900, **ix, lookup="u16")
    want = reference.ivf_search(x, 10, 12, 900, **ix, lookup="u16")
    near = {"atol": 2.0, "rtol": 0.05} if not reorder else {"atol": 0.5, "rtol": 0.02}  # a query's own bytes
    torch.testing.assert_close(got[0], want[0], **near)
    if "exact" in reorder:
        assert (got[1].unsqueeze(2) == want[1].unsqueeze(1)).any(2).double().mean() > 0.9


def test_bytes_are_compared_before_vectors(isa):
    """k / 2 + 1 more than k go on."""
    ix = made(5, 2000, 40, 10, 4, 6)
    x = torch.randn(20, 40, generator=torch.Generator().manual_seed(6))
    found = SEARCH(x, 10, 10, 2000, **ix)[0]
    want = (x @ ix["exact"].T).topk(10).values
    assert (found - want).abs().max() < 0.2
    assert ((found - want).abs() < 1e-4).double().mean() > 0.98


def test_threads_and_tiles(isa):
    ix = made(7, 3000, 20, 30, 6, 8)
    x = torch.randn(300, 20, generator=torch.Generator().manual_seed(8))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(SEARCH(x, 5, 9, 60, **ix))
    finally:
        torch.set_num_threads(threads)
    parts = [SEARCH(x[i : i + 7], 5, 9, 60, **ix) for i in range(0, 300, 7)]
    results.append(tuple(torch.cat([p[i] for p in parts]) for i in range(2)))
    for got in results[1:]:
        for a, b in zip(got, results[0], strict=True):
            assert torch.equal(a, b)


def test_the_threshold_gives_way_where_a_list_promised_too_much(isa):
    """All but the best list are far away: who is allowed there is still found."""
    ix = made(9, 400, 16, 8, 4, 6)
    ix["score_bias"] = torch.full((8,), -1e4)
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
    first = SEARCH(x, 1, 1, 400, **ix)[1]
    ix["score_bias"][:] = -1e4
    allowed = torch.ones(400, dtype=torch.bool)
    _, indices = SEARCH(x, 300, 8, 300, **ix, allowed=allowed)
    assert (indices >= 0).all()
    assert (first >= 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e15])
def test_extreme_lengths(isa, scale):
    ix = made(11, 300, 12, 6, 4, 6)
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(2))
    got, want = SEARCH(x * scale, 5, 6, 300, **ix), SEARCH(x, 5, 6, 300, **ix)
    assert torch.equal(got[1], want[1])


def test_no_queries_and_zero_queries(isa):
    ix = made(12, 300, 12, 6, 4, 6)
    assert SEARCH(torch.empty(0, 12), 5, 6, 30, **ix)[1].shape == (0, 5)
    values, indices = SEARCH(torch.zeros(2, 12), 5, 6, 30, **ix)
    assert (values == 0).all()
    assert (indices >= 0).all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("l2", [False, True])
def test_center(isa, l2, normalize):
    """Taken from every query, in a batch and alone."""
    ix = made(8, 500, 21, 9, 4, 4, l2=l2)
    x = torch.randn(7, 21, generator=torch.Generator().manual_seed(2))
    moved = ix | {"center": torch.arange(21.0) - 9}
    far = x + moved["center"]
    want = SEARCH(far - moved["center"], 5, 4, 30, **ix, normalize=normalize)
    for queries in (far, far[3:4]):
        got = SEARCH(queries, 5, 4, 30, **moved, normalize=normalize)
        assert all(torch.equal(a, b if len(queries) > 1 else b[3:4]) for a, b in zip(got, want, strict=True))
    mine, plain = (f(far, 5, 9, 500, **moved, lookup="u16")[0] for f in (SEARCH, reference.ivf_search))
    torch.testing.assert_close(mine, plain, atol=0.5, rtol=0.02)
    with pytest.raises(RuntimeError, match="center: expected"):
        SEARCH(far, 5, 4, 30, **ix | {"center": moved["center"][:20]})


@pytest.mark.parametrize("reorder", [("bytes", "exact"), ("exact",), ()])
@pytest.mark.parametrize("rerank", [12, 40, 200])
def test_alone_as_together(isa, reorder, rerank):
    """Whoever is compared again is so whatever the order of the lists, also among many equal codes."""
    ix = made(5, 3000, 12, 30, 4, 2, reorder=reorder)
    x = torch.randn(33, 12, generator=torch.Generator().manual_seed(6))
    together = SEARCH(x, 10, 20, rerank, **ix, lookup="u16")
    alone = [SEARCH(one[None], 10, 20, rerank, **ix, lookup="u16") for one in x]
    for i in range(2):
        assert torch.equal(torch.cat([each[i] for each in alone]), together[i])


def test_many_equal_codes(isa):
    """More of them than a query holds: still as many are found as are asked for."""
    ix = made(15, 3000, 12, 3, 4, 6)
    ix["codes"] = torch.zeros_like(ix["codes"])
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(3))
    for lookup in ("s8", "u16"):
        for queries in (x, x[:1]):
            assert (SEARCH(queries, 10, 3, 30, **ix, lookup=lookup)[1] >= 0).all()


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_query_that_is_not_finite(isa, number, normalize):
    """Finds somebody or nobody, and the others what they find alone."""
    ix = made(14, 300, 12, 40, 4, 6)
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(3))
    x[4, 3] = number
    values, indices = SEARCH(x, 5, 6, 30, **ix, normalize=normalize)
    assert ((indices >= -1) & (indices < 300)).all()
    assert (SEARCH(x[4:5], 5, 6, 30, **ix, normalize=normalize)[1] < 300).all()
    for q in (3, 5):
        alone = SEARCH(x[q : q + 1], 5, 6, 30, **ix, normalize=normalize)
        assert torch.equal(alone[0][0], values[q])
        assert torch.equal(alone[1][0], indices[q])


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("start", lambda t: t + 1, "start, block: expected lists"),
        ("start", lambda t: t[:-1], "start: expected"),
        ("block", lambda t: t * 0, "start, block: expected lists"),
        ("codes", lambda t: t[1:], "codes: expected"),
        ("codebooks", lambda t: t[:3].contiguous(), "a multiple of 2 parts, got 3"),
        ("codebooks", lambda t: t[:, :1].contiguous(), "codebooks: expected"),
        ("bytes", lambda t: t[:, :12].contiguous(), "bytes: expected"),
        ("exact", lambda t: t[:-1], "exact: expected"),
        ("ids", lambda t: t.int(), "ids: expected"),
        ("centroids", lambda t: t.float(), "centroids: expected"),
        ("order_bias", lambda t: t[:-1], "score_bias: expected"),
    ],
)
def test_refused(name, change, words):
    ix = made(13, 300, 12, 6, 4, 4)
    ix[name] = change(ix[name])
    with pytest.raises(RuntimeError, match=f"tamis.ivf_search: .*{words}"):
        SEARCH(torch.randn(2, 12), 5, 6, 30, **ix)
