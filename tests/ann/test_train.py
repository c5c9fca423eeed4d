"""What is trained: k-means, codebooks, the order of leaves."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from ann.data import clustered, normal
from tamis.ann import (
    anisotropic_eta,
    fit_order_weight,
    kmeans,
    kmeans_assign,
    pq_decode,
    pq_encode,
    train,
    train_codebooks,
)


def spread(x, centroids):
    return kmeans_assign(x, centroids).distances.mean().item()


@pytest.mark.parametrize("init", ["random", "++"])
def test_kmeans_is_lloyds(init):
    x = clustered(600, 7)
    steps = [kmeans(x, 12, iterations=i, seed=3, init=init) for i in range(6)]
    assert all(row in x.tolist() for row in steps[0].tolist())
    for before, after in pairwise(steps):
        indices = kmeans_assign(x, before).indices
        want = torch.stack([x[indices == k].double().mean(0) for k in range(12)]).float()
        if not want.isnan().any():
            torch.testing.assert_close(after, want, rtol=1e-6, atol=1e-6)
        assert spread(x, after) <= spread(x, before) * (1 + 1e-6)
    settled = kmeans(x, 12, iterations=300, seed=3, init=init)
    torch.testing.assert_close(kmeans(x, 12, iterations=1, init=settled), settled, rtol=1e-6, atol=1e-6)


def test_plus_plus_spreads_its_choices():
    x = clustered(2000, 10, clusters=16) * 10
    found = kmeans(x, 16, iterations=0, init="++", seed=1)
    assert len(kmeans_assign(found, x[:16]).indices.unique()) >= 13
    same = torch.ones(30, 4)
    assert torch.equal(kmeans(same, 5, init="++"), torch.ones(5, 4))


def test_by_inner_product():
    x = torch.nn.functional.normalize(clustered(500, 6), dim=1)
    first = kmeans(x, 8, metric="ip", iterations=1)
    indices = kmeans_assign(x, kmeans(x, 8, iterations=0), metric="ip").indices
    for k in indices.unique().tolist():
        if (indices == k).sum() == 1 or k == indices.bincount().argmax():
            continue
        torch.testing.assert_close(first[k], x[indices == k].mean(0), rtol=1e-4, atol=1e-5)


def test_empty_clusters_are_taken_from_the_largest():
    x = clustered(400, 5)
    far = torch.cat([x[:3], torch.full((5, 5), 1e3)])  # five that nothing is near
    found = kmeans(x, 8, iterations=1, init=far)
    assert (found < 100).all() and len(found.unique(dim=0)) == 8
    sizes = kmeans_assign(x, kmeans(x, 8, iterations=10, init=far)).indices.bincount(minlength=8)
    assert (sizes > 0).all()
    repeated = torch.ones(9, 3)  # nothing to take
    assert torch.equal(kmeans(repeated, 4), torch.ones(4, 3))


def test_the_same_for_a_seed_and_any_number_of_threads():
    x = clustered(3000, 9)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            books = train_codebooks(x, 4, 4, directions=x / x.norm(dim=1, keepdim=True), eta=3.0, sample=1500, seed=5)
            found.append((kmeans(x, 20, seed=5, sample=1000), books))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert not torch.equal(kmeans(x, 20, seed=6, sample=1000), found[0][0])


@pytest.mark.parametrize("sample", [None, 300, 700, 2000])
def test_memory_mapped_is_as_in_memory(tmp_path, monkeypatch, sample):
    monkeypatch.setattr(train, "CHUNK", 128)
    x = clustered(1000, 6)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    want = kmeans(x, 3, sample=sample)
    assert want.dtype == torch.float32
    assert torch.equal(kmeans(mapped, 3, sample=sample), want)
    stored = torch.from_file(str(tmp_path / "x.bin"), shared=True, size=6000).view(1000, 6).copy_(x)
    assert torch.equal(kmeans(stored, 3, sample=sample), want)
    books = train_codebooks(x, 3, 2, sample=sample or 1000)
    assert torch.equal(train_codebooks(mapped, 3, 2, sample=sample or 1000), books)


def test_a_sample_is_each_as_likely():
    for n, count in ((50, 50), (50, 80), (50, 20), (4000, 7)):
        drawn = [train._sampled(n, count, torch.Generator().manual_seed(seed)) for seed in range(300)]
        assert all(len(rows) == min(n, count) and torch.equal(rows, rows.unique()) for rows in drawn)
        counts = torch.cat(drawn).bincount(minlength=n).double()
        expected = 300 * min(n, count) / n
        assert abs(torch.cat(drawn).double().mean() / n - 0.5) < 0.05
        assert counts.max() < expected + 6 * expected**0.5 + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_taken_as_float32(dtype):
    x = clustered(300, 5).to(dtype)
    assert torch.equal(kmeans(x, 5), kmeans(x.float(), 5))
    assert torch.equal(train_codebooks(x, 2, 3), train_codebooks(x.float(), 2, 3))


@pytest.mark.parametrize(("d", "parts", "bits"), [(12, 6, 4), (11, 4, 3), (7, 2, 6), (5, 5, 1)])
def test_codebooks_are_the_kmeans_of_each_part(d, parts, bits):
    x = normal(0, 900, d)
    books = train_codebooks(x, parts, bits, iterations=60)
    width = -(-d // parts)
    assert books.shape == (parts, 1 << bits, width)
    for p in range(parts):
        begin, end = p * d // parts, (p + 1) * d // parts
        assert not books[p, :, end - begin :].any()
        part, book = x[:, begin:end], books[p, :, : end - begin].contiguous()
        better = spread(part, kmeans(part, 1 << bits, iterations=1, init=book, sample=900)) / spread(part, book)
        assert 0.98 < better <= 1 + 1e-5


def test_empty_codes_are_taken_from_the_largest():
    x = torch.cat([torch.zeros(500, 4), normal(0, 20, 4)])
    books = train_codebooks(x, 2, 4)
    used = pq_encode(x, books)
    assert all(len(used[:, p].unique()) >= 12 for p in range(2))


def test_anisotropic_codebooks_lower_the_loss():
    x = torch.nn.functional.normalize(clustered(4000, 32), dim=1)
    leaves = kmeans(x, 20)
    r, eta = x - leaves[kmeans_assign(x, leaves).indices], anisotropic_eta(0.35, 32)

    def loss(books, **options):
        miss = r - pq_decode(pq_encode(r, books, **options), books, 32)
        return (miss.square().sum(1) + (eta - 1) * (miss * x).sum(1).square()).mean().item()

    plain, codes = train_codebooks(r, 16, 4), {"directions": x, "eta": eta}
    both = train_codebooks(r, 16, 4, **codes)
    assert loss(both, **codes) < 0.99 * loss(plain, **codes) < 0.97 * loss(plain)


def test_one_update_is_least_for_its_codes():
    """Of each part in turn: no step from there is downhill."""
    x, u = normal(0, 400, 9).double(), torch.nn.functional.normalize(normal(1, 400, 9), dim=1).double()
    books = train_codebooks(x, 4, 3)
    codes = pq_encode(x, books.double(), directions=u, eta=4.0)

    def loss(books):
        miss = x - pq_decode(codes, books, 9)
        return (miss.square().sum(1) + 3 * (miss * u).sum(1).square()).sum()

    made = train._least_loss(train._cut(x, 4), train._cut(u, 4), codes, books, 4.0)
    assert loss(made.double()) < loss(books.double())
    moved = made.double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(moved), moved)
    assert gradient[-1].abs().max() < 1e-3  # the last part's, which no other follows
    assert torch.equal(made[0, :, 2], books[0, :, 2])


def test_order_weight():
    x = torch.nn.functional.normalize(normal(0, 6000, 12), dim=1)
    x = torch.where(torch.arange(6000).unsqueeze(1) % 3 > 0, x[:1] + x / 4, x)  # leaves wide and narrow, as they come
    x = torch.nn.functional.normalize(x, dim=1)
    centroids = kmeans(x, 40)
    indices = kmeans_assign(x, centroids).indices
    weight = fit_order_weight(x, centroids, indices, queries=300)
    assert weight in train.WEIGHTS and 0 < weight <= 0.5
    assert weight == fit_order_weight(x.numpy(), centroids, indices, queries=300)
    wide = clustered(3000, 12) * torch.linspace(0.1, 3, 3000).unsqueeze(1)  # the distance's own order is best for l2
    centroids = kmeans(wide, 40)
    weight = fit_order_weight(wide, centroids, kmeans_assign(wide, centroids).indices, metric="l2")
    assert weight >= 0.4
    assert fit_order_weight(x, torch.ones(1, 12), torch.zeros(6000, dtype=torch.int64)) == 0


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_neighbours_are_exact(monkeypatch, metric):
    monkeypatch.setattr(train, "CHUNK", 50)
    base, asked = normal(0, 230, 5), torch.tensor([3, 49, 50, 229])
    scores = base[asked] @ base.T if metric == "ip" else -torch.cdist(base[asked], base)
    scores[torch.arange(4), asked] = -torch.inf
    want = scores.topk(7, dim=1).indices
    assert torch.equal(train._neighbours(base, asked, 7, metric).sort(1).values, want.sort(1).values)


X = torch.ones(4, 5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kmeans(X, 5), ValueError, "kmeans: count: expected at most 4, the vectors, got 5"),
        (lambda: kmeans(X, 0), ValueError, "kmeans: count: expected 1 or more, got 0"),
        (lambda: kmeans(X[0], 1), ValueError, "kmeans: x: expected"),
        (lambda: kmeans(X.long(), 1), TypeError, "kmeans: x: expected float32"),
        (lambda: kmeans(np.ones((3, 2), int), 1), TypeError, "kmeans: x: expected float32"),
        (lambda: kmeans(np.ones(3), 1), ValueError, "kmeans: x: expected"),
        (lambda: kmeans(X * float("nan"), 1), ValueError, "kmeans: x: expected finite numbers"),
        (lambda: kmeans(X, 2, metric="cos"), ValueError, "kmeans: metric: expected l2 or ip"),
        (lambda: kmeans(X, 2, sample=1), ValueError, "kmeans: sample: expected 2 or more, got 1"),
        (lambda: kmeans(X, 2, iterations=-1), ValueError, "kmeans: iterations: expected 0 or more"),
        (lambda: kmeans(X, 2, init="best"), ValueError, r"kmeans: init: expected random or \+\+"),
        (lambda: kmeans(X, 2, init=X), ValueError, r"kmeans: init: expected shape \[2, 5\]"),
        (lambda: kmeans(X, 2, seed=0.5), TypeError, "kmeans: seed: expected an integer"),
        (lambda: train_codebooks(X, 6, 1), ValueError, "train_codebooks: parts: expected at most 5, the dimensions"),
        (lambda: train_codebooks(X, 2, 9), ValueError, "train_codebooks: bits: expected at most 8"),
        (lambda: train_codebooks(X, 2, 3), ValueError, "train_codebooks: bits: expected no more centroids than the 4"),
        (lambda: train_codebooks(X, 2, 1, eta=2.0), ValueError, "train_codebooks: eta: expected 1 without directions"),
        (
            lambda: train_codebooks(X, 2, 1, directions=X[:2], eta=2.0),
            ValueError,
            r"train_codebooks: directions: expected shape \[4, 5\], got \[2, 5\]",
        ),
        (
            lambda: fit_order_weight(X, X[:2], torch.full((4,), 2)),
            ValueError,
            "fit_order_weight: indices: expected 0 to 1",
        ),
        (lambda: fit_order_weight(X, X[:2], torch.zeros(4)), TypeError, "fit_order_weight: indices: expected an int64"),
        (lambda: fit_order_weight(X[:1], X, torch.zeros(1)), ValueError, "fit_order_weight: x: expected at least 2"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=f"^tamis.{words}"):
        call()


def test_more_centroids_than_different_vectors():
    """Each takes a vector that is another's, however often."""
    centroids = kmeans(torch.ones(50, 3), 40, iterations=3)
    assert torch.equal(centroids, torch.ones(40, 3))
