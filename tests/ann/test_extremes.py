"""Vectors and arguments at the edges: duplicates, magnitudes, orders, layouts."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tamis import ann
from tamis.ann import Index, Tuning
from tamis.ann.evaluate import exact_neighbours
from tamis.ann.train import kmeans, train_codebooks

D = 16


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recall(index: Index, queries: torch.Tensor, base: torch.Tensor, metric: str, **tuning: Any) -> float:
    k = 10
    found = index.search(queries, k, tuning=Tuning(**tuning)).indices
    truth = exact_neighbours(queries, base, k, metric=metric)
    return float((found[:, :, None] == truth[:, None]).any(2).double().mean())


@pytest.mark.parametrize("lookup", ["s8", "u16"])
@pytest.mark.parametrize("metric", ["ip", "l2", "cosine"])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_one_vector_a_list(metric, lookup, scale):
    """Codes of nothing: lists alone say who is near, at any scale."""
    base, queries = scale * normal(1000, D), scale * normal(50, D, seed=1)
    index = Index.build(base, metric=metric, spec="tree1000,pq2x4,reorder-int8+fp32")
    assert recall(index, queries, base, metric, leaves=1000, rerank=100, lookup=lookup) > 0.99
    assert recall(index, queries[:1], base, metric, leaves=1000, rerank=100, lookup=lookup) > 0.99


@pytest.mark.parametrize("metric", ["ip", "l2", "cosine"])
@pytest.mark.parametrize("bits", [4, 6])
def test_copies_are_found(metric, bits):
    once = 0.1 * normal(50, D)
    base = once.repeat_interleave(200, 0)[torch.randperm(10_000, generator=torch.Generator().manual_seed(2))]
    index = Index.build(base, metric=metric, spec=f"tree170,pq2x{bits},reorder-int8+fp32")
    values = index.search(once, 10, tuning=Tuning(170, 100)).distances.double()
    if metric == "l2":
        assert torch.all(values < 1e-9) and not torch.any(torch.signbit(values))
    else:
        unit = once / once.norm(dim=1, keepdim=True) if metric == "cosine" else once
        best = (unit.double() @ unit.double().T).amax(1, keepdim=True)
        assert torch.allclose(values, best.expand(-1, 10), rtol=1e-5)


@pytest.mark.parametrize("lookup", ["s8", "u16"])
@pytest.mark.parametrize(("metric", "scale"), [("ip", 1e15), ("ip", 1e-15), ("l2", 1e15), ("l2", 1e-15)])
def test_long_and_short_vectors(metric, scale, lookup):
    base, queries = normal(3000, 32), normal(40, 32, seed=1)
    index = Index.build(scale * base, metric=metric, spec="tree60,pq2x4,reorder-int8+fp32")
    assert recall(index, scale * queries, scale * base, metric, leaves=60, rerank=150, lookup=lookup) > 0.95


@pytest.mark.parametrize("scale", [1e19, 1e-15, 1e-30])
def test_cosine_of_any_length(scale):
    base = normal(500, D)
    index = Index.build(base, metric="cosine", spec="tree10,pq2x4,reorder-int8+fp32")
    longer = Index.build(scale * base, metric="cosine", spec="tree10,pq2x4,reorder-int8+fp32")
    for queries in (base[:20], base[:1]):
        want = index.search(queries, 5, tuning=Tuning(10, 100))
        for found in (
            index.search(scale * queries, 5, tuning=Tuning(10, 100)),
            longer.search(queries, 5, tuning=Tuning(10, 100)),
        ):
            assert torch.equal(found.indices, want.indices)
            assert torch.allclose(found.distances, want.distances, atol=1e-5)


@pytest.mark.parametrize("lookup", ["s8", "u16"])
@pytest.mark.parametrize("unit", [2.0**-80, 2.0**60])
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_a_table_in_any_unit(lookup, unit, impl):
    lut, codes = normal(3, 8, 16), torch.randint(16, (300, 8), generator=torch.Generator().manual_seed(3))
    packed = ann.pack_codes(codes.to(torch.uint8), 4)
    want = ann.pq_scan(lut, packed, 300, 20, lookup=lookup, impl=impl)
    found = ann.pq_scan(unit * lut, packed, 300, 20, lookup=lookup, impl=impl)
    assert torch.equal(found.indices, want.indices)
    assert torch.allclose(found.distances / unit, want.distances, rtol=1e-5, atol=1e-5)


def test_vectors_too_long():
    with pytest.raises(ValueError, match=r"Index\.build: vectors: expected vectors whose squared lengths are finite"):
        Index.build(1e19 * normal(100, D), metric="l2")


@pytest.mark.parametrize("order", ["rising", "falling", "valley", "hill"])
def test_candidates_in_any_order(order):
    """Of so many that what grows with their square would not end."""
    n = 200_000
    rising = torch.arange(n)
    valley = torch.cat((rising[::2].flip(0), rising[1::2]))
    rows = {"rising": rising, "falling": rising.flip(0), "valley": valley, "hill": (n - 1 - valley)}[order]
    found = ann.rerank(torch.ones(1, 1), rows[None], rising.float()[:, None], n // 2)
    assert torch.equal(found.indices[0], rising.flip(0)[: n // 2])


def test_numpy_of_any_layout():
    base, queries = normal(300, D).numpy(), normal(7, D, seed=1).numpy()
    mask, ids = np.arange(300) % 3 == 0, np.arange(300) + 7
    index = Index.build(base, ids=ids, spec="tree5,pq2x4,reorder-fp32")
    want = index.search(queries, 5, filter=mask)
    for some in (queries.astype(">f4"), np.ascontiguousarray(queries[::-1])[::-1], np.asfortranarray(queries)):
        found = index.search(some, 5, filter=np.ascontiguousarray(mask[::-1])[::-1])
        assert isinstance(found.indices, np.ndarray) and np.array_equal(found.indices, want.indices)
    for some in (base.astype(">f4"), np.ascontiguousarray(base[::-1])[::-1]):
        again = Index.build(some, ids=ids.astype(">i8"), spec="tree5,pq2x4,reorder-fp32")
        assert np.array_equal(again.search(queries, 5).indices, index.search(queries, 5).indices)


@pytest.mark.parametrize("value", [np.array([["a"] * D]), np.full((1, D), None), np.ones((1, D), np.complex64)])
def test_numpy_of_no_numbers(value):
    index = Index.build(normal(50, D))
    with pytest.raises(TypeError, match=r"Index\.search: queries: expected numbers, got"):
        index.search(value)
    with pytest.raises(TypeError, match=r"Index\.build: vectors: expected numbers, got"):
        Index.build(value)
    with pytest.raises(TypeError, match=r"Index\.search: filter: expected numbers, got"):
        index.search(normal(1, D), filter=value[0])


def test_more_than_there_can_be():
    index = Index.build(normal(50, D))
    for queries in (normal(1, D), normal(1, D).numpy()):
        for k in (2**32, 2**61):
            with pytest.raises(ValueError, match=r"Index\.search: k: expected less than 2\^32"):
                index.search(queries, k)
        with pytest.raises(ValueError, match=r"Index\.search: k: expected an integer of 64 bits"):
            index.search(queries, 2**63)
        with pytest.raises(TypeError, match=r"Index\.search: tuning: expected a Tuning, got dict"):
            index.search(queries, tuning={"leaves": 3})


def test_casts_leave_an_index_as_it_is():
    index = Index.build(normal(300, D))
    want = index.search(normal(5, D, seed=1))
    for cast in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double, torch.nn.Module.float):
        found = cast(torch.nn.Sequential(copy.deepcopy(index)))[0].search(normal(5, D, seed=1))
        assert torch.equal(found.indices, want.indices) and torch.equal(found.distances, want.distances)


def test_files_without_their_parts(tmp_path):
    """What no checksum has looked at, under mmap."""
    whole = tmp_path / "whole"
    Index.build(normal(300, D), metric="l2", spec="tree5,pq2x4,reorder-int8+fp32").save(whole)
    tensors = load_file(whole)
    with safe_open(whole, "pt") as file:
        ((key, text),) = file.metadata().items()
    about = json.loads(text)

    def refused(about: dict[str, Any], tensors: dict[str, torch.Tensor], match: str) -> None:
        save_file(tensors, tmp_path / "part", {key: json.dumps(about)})
        with pytest.raises(ValueError, match=rf"Index\.load: path: expected an index .*{match}"):
            Index.load(tmp_path / "part", mmap=True)

    for name in tensors:
        refused(about, {k: v for k, v in tensors.items() if k != name}, name)
        refused(about, tensors | {name: tensors[name].to(torch.float16)}, name)
    for name in set(about) - {"checksum", "version"}:
        refused({k: v for k, v in about.items() if k != name}, tensors, name)
        refused(about | {name: "zz"}, tensors, "")
    refused(about | {"version": float("inf")}, tensors, "")
    refused(about, tensors | {"rows": tensors["rows"][:-1]}, "rows")
    save_file(tensors, tmp_path / "part", {key: json.dumps(about)})
    assert len(Index.load(tmp_path / "part", mmap=True)) == 300


def test_centroids_that_nothing_can_fill():
    """Of equal vectors one centroid is theirs; of columns that are constant the others learn as they do alone."""
    assert torch.equal(kmeans(torch.ones(500, 3), 7), torch.ones(7, 3))
    x = normal(2000, 4)
    books = train_codebooks(torch.cat((x, torch.full((2000, 4), 3.0)), 1), 4, 4)
    assert torch.equal(books[2:], torch.full((2, 16, 2), 3.0))
    assert len(books[0].unique(dim=0)) == len(books[1].unique(dim=0)) == 16
