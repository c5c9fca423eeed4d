"""Index: what a user does with it, and what it refuses."""

import copy
import io
import json
import threading

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tamis.ann import Index, Spec, Tuning, store
from tamis.ann.evaluate import own_vectors

N, D = 3000, 20
ALL = Tuning(leaves=10**6, rerank=10**6)


def vectors(seed, n, d=D):
    """In clusters, so that lists mean something."""
    g = torch.Generator().manual_seed(seed)
    middle = torch.randn(60, d, generator=torch.Generator().manual_seed(99))
    return middle[torch.randint(0, 60, (n,), generator=g)] + 0.4 * torch.randn(n, d, generator=g)


X, Q = vectors(0, N), vectors(1, 50)


def truth(metric, x=X, q=Q, k=10):
    x, q = x.double(), q.double()
    if metric == "cosine":
        x, q = torch.nn.functional.normalize(x), torch.nn.functional.normalize(q)
    scores = torch.cdist(q, x).square() if metric == "l2" else q @ x.T
    return scores.topk(min(k, len(x)), largest=metric != "l2")


@pytest.fixture(scope="module", params=["ip", "cosine", "l2"])
def index(request):
    return Index.build(X, metric=request.param)


SPECS = [
    f"tree{leaves},pq{dims},reorder-{reorder}"
    for leaves, dims, reorder in [
        (40, "2x4", "int8+fp32"), (40, "3x6", "int8+fp32"), (1, "2x4", "fp32"), (3000, "1x4", "int8+bf16"),
        (7, "20x6", "fp32"), (40, "50x4", "bf16"),
    ]
]  # fmt: skip


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("spec", SPECS)
def test_all_lists_and_candidates_are_brute_force(metric, spec):
    index, want = Index.build(X, metric=metric, spec=spec), truth(metric)
    got = index.search(Q, 10, tuning=Tuning(10**6, N))
    assert index.spec == spec
    recall = (got.indices.unsqueeze(2) == want.indices.unsqueeze(1)).any(2).double().mean()
    if "fp32" in spec:
        torch.testing.assert_close(got.distances.double(), want.values, atol=1e-4, rtol=1e-5)
        assert recall == 1
    else:
        torch.testing.assert_close(got.distances.double(), want.values, atol=0.1, rtol=0.01)
        assert recall > 0.9


def test_the_default_finds_nearly_all(index):
    got, want = index.search(Q, 10), truth(index.metric)
    assert (got.indices.unsqueeze(2) == want.indices.unsqueeze(1)).any(2).double().mean() > 0.95
    assert len(index) == N
    assert str(Spec.parse(index.spec)) == index.spec


@pytest.mark.parametrize("far", [0, 300, 2.0**20])
def test_distances_do_not_depend_on_the_origin(far):
    """Integers as those of images, far from zero: distances are exact, and codes tell as much as near it."""
    x, q = (vectors(2, N, 64) * 20).round(), (vectors(3, 50, 64) * 20).round()
    index = Index.build(x + far, metric="l2", spec="tree40,pq2x4,reorder-int8+fp32")
    want = truth("l2", x, q)
    got = index.search(q + far, 10, tuning=Tuning(6, 60))
    found = (got.indices.unsqueeze(2) == want.indices.unsqueeze(1)).any(2)
    assert found.double().mean() > 0.95
    everything = index.search(q + far, 10, tuning=ALL)
    assert torch.equal(everything.distances.double(), want.values.round())
    assert torch.equal(own_vectors(index)[index.rows.argsort()], x + far)


@pytest.mark.parametrize(
    ("d", "spec"), [(50, "pq2x4"), (256, "pq2x4"), (257, "pq2x4"), (400, "pq2x4"), (401, "pq3x4"), (784, "pq4x4")]
)
def test_many_dimensions_have_wider_parts(monkeypatch, d, spec):
    monkeypatch.setattr("tamis.ann.spec.isa", lambda: "v3")
    assert str(Spec.choose(70_000, d)) == f"tree450,{spec},reorder-int8+fp32"
    monkeypatch.setattr("tamis.ann.spec.isa", lambda: "v4x")
    assert str(Spec.choose(70_000, d)) == f"tree450,{spec if d > 256 else 'pq3x6'},reorder-int8+fp32"


@pytest.mark.parametrize(("metric", "d", "lookup"), [("l2", 200, "u16"), ("l2", 20, "s8"), ("ip", 200, "s8")])
def test_distances_of_many_parts_are_added_exactly(metric, d, lookup):
    assert Index.build(vectors(4, 100, d), metric=metric).tuning.lookup == lookup


def test_queries_of_every_kind(index):
    want = index.search(Q, 7)
    one = index.search(Q[3], 7)
    assert one.indices.shape == (7,)
    assert torch.equal(one.indices, want.indices[3])
    of_numpy = index.search(Q.numpy(), 7)
    assert isinstance(of_numpy.distances, np.ndarray)
    assert (of_numpy.indices == want.indices.numpy()).all()
    strided = torch.stack((Q, Q), 2)[..., 0]
    assert torch.equal(index.search(strided, 7).indices, want.indices)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(index.search(Q.to(dtype), 7).indices, index.search(Q.to(dtype).float(), 7).indices)
    assert index.search(Q[:0], 7).indices.shape == (0, 7)


def test_filter(index):
    allowed = torch.arange(N) % 7 == 3
    got = index.search(Q, 10, tuning=ALL, filter=allowed)
    assert allowed[got.indices].all()
    at = allowed.nonzero().squeeze(1)
    torch.testing.assert_close(got.distances.double(), truth(index.metric, X[at]).values, atol=1e-4, rtol=1e-5)
    assert torch.equal(index.search(Q, 10, tuning=ALL, filter=at).indices, got.indices)
    assert (index.search(Q.numpy(), 10, tuning=ALL, filter=at.numpy()).indices == got.indices.numpy()).all()
    few = index.search(Q, 10, tuning=ALL, filter=at[:4])
    assert (few.indices[:, 4:] == -1).all()
    assert (few.distances[:, 4:] == (torch.inf if index.metric == "l2" else -torch.inf)).all()
    assert (index.search(Q, 2, filter=at[:0]).indices == -1).all()


def test_ids():
    ids = torch.arange(N).flip(0) * 1000 + 2**40
    index = Index.build(X, metric="l2", ids=ids)
    got, rows = index.search(Q, 5), Index.build(X, metric="l2").search(Q, 5)
    assert torch.equal(got.indices, ids[rows.indices])
    assert set(index.search(Q, 5, filter=ids[:9]).indices.unique().tolist()) <= {-1, *ids[:9].tolist()}
    assert torch.equal(
        index.search(Q, 5, filter=torch.arange(N) < 9).indices, index.search(Q, 5, filter=ids[:9]).indices
    )


def test_a_neighbour_of_a_stored_vector_is_itself():
    for metric in ("cosine", "l2"):
        assert torch.equal(
            Index.build(X, metric=metric).search(X[:200], 1, tuning=ALL).indices[:, 0], torch.arange(200)
        )


@pytest.mark.parametrize(("levels", "kept"), [("fp32", 4 * D), ("int8+bf16", 64 + 2 * D), ("int8+fp32", 64 + 4 * D)])
def test_bytes_of_a_vector(levels, kept):
    """Its code, its row and what it is compared by."""
    index = Index.build(X, spec=f"tree30,pq2x4,reorder-{levels}")
    held = sum(buffer.nbytes for buffer in index.buffers() if buffer is not None and len(buffer) >= N)
    code = D / 4
    part_full = 30 * 32 * code  # the last block of each list
    assert N * (kept + 8 + code) <= held <= N * (kept + 8 + code) + part_full + 4096


@pytest.mark.parametrize("n", [1, 2, 17, 65])
def test_few_vectors(n):
    for metric in ("ip", "cosine", "l2"):
        got = Index.build(X[:n], metric=metric).search(Q, 20, tuning=ALL)
        there = min(n, 20)
        assert (got.indices[:, there:] == -1).all()
        want = truth(metric, X[:n], k=20).values
        torch.testing.assert_close(got.distances[:, :there].double(), want, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 64, 65])
@pytest.mark.parametrize("bits", [4, 6])
def test_few_dimensions(d, bits):
    """Fewer than codes that lie side by side."""
    x, q = vectors(2, 400, d), vectors(3, 20, d)
    for metric in ("ip", "l2"):
        index = Index.build(x, metric=metric, spec=f"tree9,pq2x{bits},reorder-fp32")
        got = index.search(q, 5, tuning=ALL)
        torch.testing.assert_close(got.distances.double(), truth(metric, x, q, 5).values, atol=1e-4, rtol=1e-5)


def test_equal_vectors():
    index = Index.build(torch.ones(500, 8), metric="l2")
    got = index.search(torch.ones(3, 8), 5)
    assert (got.distances == 0).all()
    assert all(len(set(row)) == 5 for row in got.indices.tolist())


def test_dtypes_and_memory_maps(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    want = Index.build(X).search(Q, 5).indices
    assert torch.equal(Index.build(mapped).search(Q, 5).indices, want)
    assert torch.equal(Index.build(X.numpy()).search(Q, 5).indices, want)
    for dtype in (torch.bfloat16, torch.float16):
        got = Index.build(X.to(dtype)).search(Q, 5, tuning=ALL)
        torch.testing.assert_close(got.distances.double(), truth("ip", X.to(dtype), k=5).values, atol=1e-4, rtol=1e-5)


def test_same_seed_same_index():
    a, b = (Index.build(X, seed=5) for _ in range(2))
    for (name, of_a), (_, of_b) in zip(a.named_buffers(), b.named_buffers(), strict=True):
        assert torch.equal(of_a, of_b), name


def test_save_and_load(index, tmp_path):
    path = tmp_path / "an.index"
    index.save(path)
    want = index.search(Q, 6)
    for mmap in (False, True):
        loaded = Index.load(path, mmap=mmap)
        got = loaded.search(Q, 6)
        assert torch.equal(got.indices, want.indices)
        assert torch.equal(got.distances, want.distances)
        assert (loaded.spec, loaded.metric, loaded.tuning) == (index.spec, index.metric, index.tuning)
    assert [p.name for p in tmp_path.iterdir()] == ["an.index"]


def test_copies_and_state(index):
    want = index.search(Q, 6).indices
    assert torch.equal(copy.deepcopy(index).search(Q, 6).indices, want)
    held = torch.nn.ModuleList([index])
    buffer = io.BytesIO()
    torch.save(held, buffer)  # as a DataLoader's workers receive it
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)[0].search(Q, 6).indices, want)
    assert not list(index.parameters())


def test_threads(index):
    want, wrong = index.search(Q, 6).indices, []

    def work():
        for i in range(40):
            if not torch.equal(index.search(Q[i % 50], 6).indices, want[i % 50]):
                wrong.append(i)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_changed_file_is_refused(index, tmp_path):
    path = tmp_path / "an.index"
    index.save(path)
    data = path.read_bytes()
    g = torch.Generator().manual_seed(0)
    for at in [0, 8, 200, len(data) - 1, *torch.randint(0, len(data), (40,), generator=g).tolist()]:
        changed = bytearray(data)
        changed[at] ^= 1 << int(torch.randint(0, 8, (1,), generator=g))
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"^tamis.Index.load: path: expected"):
            Index.load(path)
    for length in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"^tamis.Index.load: path: expected"):
            Index.load(path)


def test_newer_and_foreign_files(index, tmp_path):
    path = tmp_path / "an.index"
    index.save(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["tamis.ann.Index"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a file is no dict)
    save_file(tensors, path, {"tamis.ann.Index": json.dumps(about | {"version": 99})})
    with pytest.raises(ValueError, match="expected a file of layout 2 or before, got 99"):
        Index.load(path)
    if index.metric != "l2":  # as before there was a center
        before = {name: value for name, value in about.items() if name != "checksum"} | {"version": 1}
        save_file(tensors, path, {"tamis.ann.Index": json.dumps(before | {"checksum": store._digest(tensors, before)})})
        assert torch.equal(Index.load(path).search(Q).indices, index.search(Q).indices)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="expected an index of tamis"):
        Index.load(path)
    with pytest.raises(FileNotFoundError, match="expected a file"):
        Index.load(tmp_path / "none")


def test_a_failed_save_leaves_the_old_file(index, tmp_path, monkeypatch):
    path = tmp_path / "an.index"
    index.save(path)
    before = path.read_bytes()

    def full(tensors, place, *_):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tamis.ann.store.save_file", full)
    with pytest.raises(OSError, match="No space"):
        index.save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


BAD = X.clone()
BAD[7, 3] = torch.nan


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Index.build(BAD), ValueError, "vectors: expected finite numbers"),
        (lambda: Index.build(X * torch.inf), ValueError, "vectors: expected finite numbers"),
        (
            lambda: Index.build(torch.zeros(9, 4), metric="cosine"),
            ValueError,
            "vectors: expected vectors of length above 0",
        ),
        (lambda: Index.build(X[:0]), ValueError, "vectors: expected at least one, got 0"),
        (lambda: Index.build(X[0]), ValueError, "vectors: expected"),
        (lambda: Index.build(X.int()), TypeError, "vectors: expected float32"),
        (lambda: Index.build([[1.0]]), TypeError, "vectors: expected a Tensor"),
        (lambda: Index.build(X, metric="dot"), ValueError, "metric: expected ip or l2 or cosine, got 'dot'"),
        (lambda: Index.build(X, spec="tree4"), ValueError, "spec: expected treeN"),
        (lambda: Index.build(X, spec="tree0,pq2x4,reorder-none"), ValueError, "spec: expected treeN"),
        (lambda: Index.build(X, spec="tree3001,pq2x4,reorder-none"), ValueError, "spec: expected at most 3000 leaves"),
        (
            lambda: Index.build(X, ids=torch.zeros(N, dtype=torch.int64)),
            ValueError,
            "ids: expected .* each once, got some twice",
        ),
        (lambda: Index.build(X, ids=-torch.arange(N)), ValueError, "ids: expected ids of 0 or more"),
        (lambda: Index.build(X, ids=torch.arange(N - 1)), ValueError, "ids: expected int64"),
        (lambda: Tuning(0), ValueError, "leaves: expected at least 1, got 0"),
        (lambda: Tuning(3, lookup="u8"), ValueError, "lookup: expected s8 or u16"),
    ],
)
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda index: index.search(Q[:, :5]), ValueError, "queries: expected"),
        (lambda index: index.search(BAD[:9]), ValueError, "queries: expected finite"),
        (lambda index: index.search(Q.int()), ValueError, "queries: expected"),
        (lambda index: index.search(Q, 0), ValueError, "k: expected at least 1, got 0"),
        (lambda index: index.search(Q, 1.5), TypeError, "k: expected an integer"),
        (lambda index: index.search(Q, filter=torch.ones(5) > 0), ValueError, "filter: expected bool"),
        (lambda index: index.search(Q, filter=torch.ones(N)), ValueError, "filter: expected bool"),
    ],
)
def test_search_refuses(index, call, error, words):
    with pytest.raises(error, match=words):
        call(index)
