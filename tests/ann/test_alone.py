"""One query of an Index, straight to the kernel: what everybody else gets, and only while its buffers are the same."""

import copy
import io
import threading

import numpy as np
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
def test_the_same_bits_as_in_a_batch(isa, index, straight, k, tuning, lookup):
    how = Tuning(*tuning, lookup=lookup)
    want = index.search(Q, k, tuning=how)
    for i, q in enumerate(Q):
        for one in (q, q[None], q.numpy(), q[None].numpy()):
            got = index.search(one, k, tuning=how)
            assert isinstance(got.distances, type(one)) and isinstance(got.indices, type(one))
            assert got.distances.shape == got.indices.shape == (*one.shape[:-1], k)
            assert torch.equal(torch.as_tensor(got.distances).view(-1), want.distances[i])
            assert torch.equal(torch.as_tensor(got.indices).view(-1), want.indices[i])
    assert straight() == 4 * len(Q)


def test_what_is_not_for_it_goes_the_checked_way(index, straight):
    want = index.search(Q[:2]).indices[0]
    wide = torch.stack((Q[0], Q[0]), 1)[:, 0]  # strided
    minus = torch._neg_view(-Q[0])  # its bits are of -Q[0]
    others = [
        wide,
        minus,
        Q[0].clone().requires_grad_(),
        wide.numpy(),
        Q[0].double().numpy().astype(np.float32)[::-1][::-1],
        Q[:1].expand(2, D),
    ]
    for one in others:
        got = torch.as_tensor(index.search(one).indices)
        assert torch.equal(got.view(-1, 10)[0], want)
    assert straight() <= 1  # numpy's, where turned back twice, is contiguous
    assert torch.equal(index.search(Q[0], filter=torch.ones(N, dtype=torch.bool)).indices, want)
    with pytest.raises(ValueError, match=r"queries: expected \[q, 22\] or \[22\]"):
        index.search(Q[0, :21])
    with pytest.raises(ValueError, match="queries: expected finite numbers"):
        index.search(Q[0] * float("inf"))
    with pytest.raises(ValueError, match="k: expected at least 1"):
        index.search(Q[0], 0)
    with pytest.raises((TypeError, ValueError), match="queries: "):
        index.search(Q[0].to_sparse())
    with pytest.raises(TypeError, match="k: "):
        index.search(Q[0], 2.5)
    assert straight() <= 1


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
