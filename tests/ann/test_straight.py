"""Queries of an Index, straight to the kernel: what the op finds, and only while its buffers are the same."""

import copy
import io
import threading

import pytest
import safetensors.torch
import torch
from tamis import _native
from tamis.ann import Index, Tuning, store

N, D = 2000, 22


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Q = normal(0, N, D), normal(1, 20, D)


@pytest.fixture(scope="module", params=["ip", "cosine", "l2"])
def index(request):
    return Index.build(X, metric=request.param, spec="tree30,pq2x4,reorder-int8+fp32", ids=torch.arange(N) * 3)


@pytest.fixture
def straight(monkeypatch):
    """How many searches went there."""
    found = []

    def counting(real):
        def counted(*args):
            found.append(real(*args))
            return found[-1]

        return counted

    for name in ("search", "search_tensor"):
        monkeypatch.setattr(_native, name, counting(getattr(_native, name)))
    return lambda: sum(one is not None for one in found)


@pytest.mark.parametrize("lookup", ["s8", "u16"])
@pytest.mark.parametrize("tuning", [(3, 20), (1, 1), (10**6, 10**6)])
@pytest.mark.parametrize("k", [1, 10, 3000])
def test_the_same_bits_as_the_op(isa, index, straight, k, tuning, lookup):
    how = Tuning(*tuning, lookup=lookup)
    want = by_the_op(index, Q, k, how)
    for i, q in enumerate(Q):
        for one in (q, q[None], q.numpy(), q[None].numpy()):
            same(index.search(one, k, tuning=how), [t[i : i + 1] if one.ndim == 2 else t[i] for t in want], type(one))
    for count in (2, 3, 9, len(Q)):
        for some in (Q[:count], Q[:count].numpy()):
            same(index.search(some, k, tuning=how), [t[:count] for t in want], type(some))
    assert straight() == 4 * len(Q) + 8


def by_the_op(index, queries, k, how):
    cosine = index.metric == "cosine"
    return torch.ops.tamis.ivf_search(queries, k, how.leaves, how.rerank, *index._ivf(), how.lookup, None, cosine)


def same(got, want, kind):
    for one, other in zip(got, want, strict=True):
        assert isinstance(one, kind)
        assert torch.equal(torch.as_tensor(one), other)


def test_what_is_not_for_it_goes_the_checked_way(index, straight):
    want = by_the_op(index, Q[:2], 10, index.tuning)[1]
    wide = torch.stack((Q[:2], Q[:2]), 2)[..., 0]  # strided
    first = [
        wide[0],
        wide[0].numpy(),
        torch._neg_view(-Q[0]),  # its bits are of -Q[0]
        Q[0].clone().requires_grad_(),
    ]
    both = [
        wide,
        wide.numpy(),
        torch.cat((Q[:2], Q[:2]), 1)[:, :D],  # rows apart
        Q[:2].mT.contiguous().mT,
        Q[:2].clone().requires_grad_(),
    ]
    for some, found in [*((q, want[0]) for q in first), *((q, want) for q in both), (Q[:1].expand(2, D), want[[0, 0]])]:
        assert torch.equal(torch.as_tensor(index.search(some).indices), found)
    assert index.search(Q[:0]).indices.shape == (0, 10)
    with pytest.raises(ValueError, match="queries: expected .+ floats, got torch.float64"):
        index.search(Q[:2].double().numpy())
    assert torch.equal(index.search(Q[0], filter=torch.ones(N, dtype=torch.bool)).indices, want[0])
    with pytest.raises(ValueError, match=r"queries: expected \[q, 22\] or \[22\]"):
        index.search(Q[0, :21])
    for bad in (Q[0] * float("inf"), torch.cat((Q[:5], Q[:1] * float("nan")))):
        with pytest.raises(ValueError, match="queries: expected finite numbers"):
            index.search(bad)
    with pytest.raises(ValueError, match="k: expected at least 1"):
        index.search(Q[0], 0)
    with pytest.raises((TypeError, ValueError), match="queries: "):
        index.search(Q[0].to_sparse())
    with pytest.raises(TypeError, match="k: "):
        index.search(Q[0], 2.5)
    assert straight() == 0


def test_changed_buffers_are_seen(index):
    mine, want = copy.deepcopy(index), index.search(Q[0]).indices
    assert torch.equal(mine.search(Q[0]).indices, want)
    mine.ids = mine.ids + 1
    assert torch.equal(mine.search(Q[0]).indices, want + 1)
    mine.load_state_dict(index.state_dict())
    assert torch.equal(mine.search(Q[0]).indices, want)
    mine.to(torch.float32)
    assert torch.equal(mine.search(Q[0]).indices, want)


def test_a_state_dict_is_the_whole_index(index):
    metric = "l2" if index.metric == "l2" else "ip"
    other = Index.build(3 * normal(9, N, D), metric=metric, spec=index.spec, ids=torch.arange(N))
    for name in ("codes", "block", "start"):  # lists of the same sizes in memory
        setattr(other, name, torch.zeros_like(getattr(index, name)))
    other.tuning = Tuning(1, 1)
    held = safetensors.torch.save(index.state_dict())
    other.load_state_dict(safetensors.torch.load(held))
    assert (other.metric, other.spec, other.tuning, len(other)) == (index.metric, index.spec, index.tuning, N)
    for queries in (Q, Q[0]):
        assert all(map(torch.equal, other.search(queries), index.search(queries)))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(3, dtype=torch.uint8), "_extra_state: expected an index's, got tensor"),
        ({"version": 2}, "_extra_state: expected an index's, got {'version': 2}"),
        (store.pack({"version": 2}), "_extra_state: expected an index's"),
        (store.pack({"version": 99}), "_extra_state: expected layout 2 or before, got 99: a newer tamis wrote it"),
    ],
)
def test_a_state_of_something_else_is_refused(index, state, message):
    with pytest.raises(ValueError, match=message):
        copy.deepcopy(index).load_state_dict(index.state_dict() | {"_extra_state": state})


def test_state_leaves_the_address_behind(index):
    index.search(Q[0])
    twin = copy.deepcopy(index)
    assert index._opened and twin._opened is None
    held = io.BytesIO()
    torch.save(index, held)
    held.seek(0)
    again = torch.load(held, weights_only=False)
    assert again._opened is None
    assert torch.equal(again.search(Q[0]).indices, index.search(Q[0]).indices)


def test_buffers_live_as_long_as_the_address(index):
    mine = copy.deepcopy(index)
    mine.search(Q[0])
    kept = mine._opened
    mine.codes = torch.zeros_like(mine.codes)
    how = index.tuning
    found = _native.search(kept[0], Q[0].numpy(), 10, how.leaves, how.rerank, False)
    assert torch.equal(torch.from_numpy(found[1]), index.search(Q[0]).indices)


def test_threads(index):
    want, wrong = index.search(Q).indices, []

    def ask(begin):
        for i in list(range(begin, 20)) * 20:
            if not torch.equal(index.search(Q[i]).indices, want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_buffers_that_do_not_fit_are_refused(index):
    mine = copy.deepcopy(index)
    mine.start = mine.start + 1
    with pytest.raises(RuntimeError, match="tamis._ivf_open: start, block: expected lists one after the other"):
        mine.search(Q[0])
    mine = copy.deepcopy(index)
    mine.exact = mine.exact[:-1].contiguous()
    with pytest.raises(RuntimeError, match="tamis._ivf_open: exact: expected a contiguous CPU tensor"):
        mine.search(Q[0])
