"""tamis ann: what its commands write is what Index does, and what they refuse they name."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tamis.ann import Index, Tuning
from tamis.ann import evaluate as engine
from tamis.ann.spec import METRICS
from tamis.cli.ann import ann
from typer.testing import CliRunner

N, D, Q = 1200, 12, 40
pytestmark = pytest.mark.usefixtures("one_thread")


def vectors(seed, n):
    g = np.random.default_rng(seed)
    middle = np.random.default_rng(99).normal(size=(30, D))
    return (middle[g.integers(30, size=n)] + 0.4 * g.normal(size=(n, D))).astype(np.float32)


X, ASKED = vectors(0, N), vectors(1, Q)
IDS = np.random.default_rng(2).permutation(10 * N)[:N].astype(np.int64)


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    monkeypatch.setattr(engine, "SECONDS", 0.0)


def invoke(*arguments):
    return CliRunner().invoke(ann, list(map(str, arguments)), env={"COLUMNS": "200"})


def done(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def brute(metric, k, x=X, q=ASKED):
    """In float64, by another route than the product's: every difference."""
    x, q = x.astype(np.float64), q.astype(np.float64)
    if metric == "cosine":
        x, q = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, q))
    distances = ((q[:, None] - x) ** 2).sum(2) if metric != "ip" else -(q @ x.T)
    return np.argsort(distances, 1, kind="stable")[:, :k]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ann")
    np.save(folder / "x.npy", X)
    np.save(folder / "q.npy", ASKED)
    np.save(folder / "ids.npy", IDS)
    for metric in METRICS:
        np.save(folder / f"{metric}.npy", brute(metric, 20))
        Index.build(X, metric=metric).save(folder / f"{metric}.tamis")
    Index.build(X, ids=IDS).save(folder / "ids.tamis")
    Index.build(X, spec="tree20,pq2x4,reorder-int8").save(folder / "rough.tamis")
    return folder


@pytest.mark.parametrize("metric", METRICS)
def test_build_is_index_build(place, tmp_path, metric):
    out = tmp_path / "an.index"
    said = done("build", place / "x.npy", "--out", out, "--metric", metric, "--seed", 3)
    made, want = Index.load(out), Index.build(X, metric=metric, seed=3)
    for (name, a), (_, b) in zip(made.named_buffers(), want.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    for words in ("1,200 vectors of 12", metric, want.spec, " s, ", f"{out.stat().st_size / N:.1f} bytes a vector"):
        assert words in said
    assert [file.name for file in tmp_path.iterdir()] == ["an.index"]


def test_build_with_spec_ids_and_key(place, tmp_path):
    save_file({"a": torch.from_numpy(X), "b": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    spec = "tree9,pq3x6,reorder-fp32"
    options = ("--spec", spec, "--ids", place / "ids.npy", "--key", "a")
    done("build", tmp_path / "x.safetensors", "--out", tmp_path / "an.index", *options)
    made = Index.load(tmp_path / "an.index")
    assert made.spec == spec
    assert made.ids.sort().values.tolist() == sorted(IDS)


@pytest.mark.parametrize("kind", [".npz", ".safetensors"])
def test_search_is_index_search(place, tmp_path, kind):
    out = tmp_path / f"found{kind}"
    for options, tuning in (
        ((), None),
        (("--leaves", 3, "--rerank", 20), Tuning(3, 20)),
        (("--leaves", 3), Tuning(3, 150)),
    ):
        assert str(out) in done("search", place / "l2.tamis", place / "q.npy", "--k", 7, "--out", out, *options)
        want = Index.load(place / "l2.tamis").search(ASKED, 7, tuning=tuning)
        got = load_file(out) if kind == ".safetensors" else dict(np.load(out, allow_pickle=False))
        assert set(got) == {"indices", "distances"}
        for name, value in got.items():
            assert np.asarray(value).dtype == getattr(want, name).dtype
            np.testing.assert_array_equal(np.asarray(value), getattr(want, name))


def test_search_shows_a_table(place, tmp_path):
    said = done("search", place / "ids.tamis", place / "q.npy", "--k", 3)
    want = Index.load(place / "ids.tamis").search(ASKED, 3)
    assert "10 of 40 queries, 3 of 3 neighbours" in said
    for query in range(10):
        cells = [f"{i} {x:.4g}" for i, x in zip(want.indices[query], want.distances[query], strict=True)]
        assert re.search(rf"\b{query} .*" + ".*".join(map(re.escape, cells)), said)
    Index.build(X[:2]).save(tmp_path / "two.tamis")
    assert " - " in done("search", tmp_path / "two.tamis", place / "q.npy", "--k", 3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("truth", ["truth", "vectors", "index"])
def test_recall_is_counted_by_brute_force(place, tmp_path, metric, truth):
    of = {"truth": ("--truth", place / f"{metric}.npy"), "vectors": ("--vectors", place / "x.npy"), "index": ()}
    out, k = tmp_path / "eval.json", 5
    grid = ("--leaves", "1, 4,300,4", "--rerank", "5,60")
    said = done("eval", place / f"{metric}.tamis", place / "q.npy", "--k", k, "--json", out, *grid, *of[truth])
    result, index, want = json.loads(out.read_text()), Index.load(place / f"{metric}.tamis"), brute(metric, k)
    assert result["index"] == {"n": N, "d": D, "metric": metric, "spec": index.spec}
    assert (result["queries"], result["k"], result["threads"]) == (Q, k, 1)
    assert result["truth"] == {"truth": "file"}.get(truth, truth)
    pairs = [(p["leaves"], p["rerank"]) for p in result["points"]]
    assert pairs == [(1, 5), (1, 60), (4, 5), (4, 60), (300, 5), (300, 60)]
    for point in result["points"]:
        got = index.search(ASKED, k, tuning=Tuning(point["leaves"], point["rerank"])).indices
        counted = np.mean([len(set(a) & set(b)) / k for a, b in zip(got.tolist(), want.tolist(), strict=True)])
        assert point["recall"] == pytest.approx(counted, abs=1e-12)
        assert point["queries_per_second"] > 0
        assert f"{point['recall']:.4f}" in said
    assert result["points"][-1]["recall"] > 0.95 > result["points"][0]["recall"]


def test_eval_of_ids(place, tmp_path):
    out = tmp_path / "eval.json"
    np.save(tmp_path / "truth.npy", IDS[brute("ip", 10)])
    points = []
    for truth in ((), ("--vectors", place / "x.npy"), ("--truth", tmp_path / "truth.npy")):
        done("eval", place / "ids.tamis", place / "q.npy", "--json", out, "--leaves", 9, "--rerank", 99, *truth)
        points.append(json.loads(out.read_text())["points"][0]["recall"])
    assert points[0] == points[1] == points[2] > 0.8


def test_the_grid_goes_around_the_indexs_own_tuning(place):
    index = Index.load(place / "l2.tamis")
    grid = engine.tunings(index, 200)
    assert Tuning(index.tuning.leaves, 200) in grid
    assert all(1 <= t.leaves <= 59 and t.rerank >= 200 for t in grid)
    assert len(set(grid)) == len(grid) == 12
    assert done("eval", place / "l2.tamis", place / "q.npy").count("\n") > len(engine.tunings(index))


@pytest.mark.parametrize("metric", METRICS)
def test_exact_neighbours_in_pieces(metric, monkeypatch):
    monkeypatch.setattr(engine, "ROWS", 7)
    monkeypatch.setattr(engine, "QUERIES", 3)
    got = engine.exact_neighbours(torch.from_numpy(ASKED), torch.from_numpy(X), 30, metric=metric)
    assert (got.numpy() == brute(metric, 30)).all()
    far = X + np.float32(3000)  # where float32 alone confuses the order
    q = ASKED + np.float32(3000)
    got = engine.exact_neighbours(torch.from_numpy(q), torch.from_numpy(far), 3, metric="l2")
    assert (got.numpy() == brute("l2", 3, far, q)).all()
    all_of_them = engine.exact_neighbours(torch.from_numpy(ASKED), torch.from_numpy(X[:9]), 9, metric=metric)
    assert (all_of_them.numpy() == brute(metric, 9, X[:9])).all()


def test_best():
    points = [engine.Point(1, 1, r, s) for r, s in ((0.5, 9.0), (0.5, 8.0), (0.9, 3.0), (0.8, 3.0), (0.95, 1.0))]
    assert engine.best(points) == [points[0], points[2], points[4]]


def test_recall_in_pieces():
    g = torch.Generator().manual_seed(0)
    truth = torch.stack([torch.randperm(50, generator=g)[:9] for _ in range(30)])
    found = torch.stack([torch.randperm(50, generator=g)[:9] for _ in range(30)])
    found[3:] = -1
    want = sum(len(set(a) & set(b)) for a, b in zip(truth.tolist(), found.tolist(), strict=True)) / truth.numel()
    assert engine.recall(found, truth) == want


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("command", ["build", "search", "eval"])
def test_an_interrupted_write_leaves_the_old_file(place, tmp_path, monkeypatch, command, error):
    name = {"build": "old.tamis", "search": "old.npz", "eval": "old.json"}[command]
    old = tmp_path / name
    old.write_bytes(b"before")

    def half(*arguments):
        part = next(a for a in arguments if isinstance(a, Path))
        with part.open("wb") as file:
            file.write(b"half")
        raise error

    monkeypatch.setattr("tamis.ann.store.save_file" if command == "build" else "pathlib.Path.write_bytes", half)
    first = (
        ("build", place / "x.npy", "--out") if command == "build" else (command, place / "l2.tamis", place / "q.npy")
    )
    last = {"build": (old,), "search": ("--out", old), "eval": ("--leaves", 1, "--rerank", 9, "--json", old)}[command]
    result = invoke(*first, *last)
    monkeypatch.undo()
    assert result.exit_code != 0
    if isinstance(error, OSError):
        assert "expected a file that can be written, got [Errno 28]" in result.output
    assert old.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_an_index_is_as_readable_as_the_users_other_files(place, tmp_path):
    done("build", place / "x.npy", "--out", tmp_path / "an.index")
    (tmp_path / "other").write_text("")
    assert (tmp_path / "an.index").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_bar_only_where_somebody_sees_it(place, tmp_path, capfd):
    assert "centroids" not in done("build", place / "x.npy", "--out", tmp_path / "an.index")
    capfd.readouterr()
    plain = Index.build(X, metric="l2")
    assert capfd.readouterr() == ("", "")
    shown = Index.build(X, metric="l2", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    stages = ("sampling", "centroids", "assigning", "training codes", "encoding", "packing")
    assert re.search(".*".join(stages), err, re.DOTALL)
    assert err.count("100%") == len(stages)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), shown.buffers(), strict=True))
    with pytest.raises(TypeError, match=r"^tamis.Index.build: progress: expected True or False, got 1"):
        Index.build(X, progress=1)


HERE = "/no/such/place/x"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("build x.npy", "Missing option '--out'"),
        ("search l2.tamis q.npy --k 4294967296", "'--k': "),
        ("search l2.tamis q.npy --leaves 4294967296", "'--leaves': "),
        (
            "eval l2.tamis q.npy --leaves 4294967296",
            "--leaves: expected numbers of 1 to 2^32 - 1, by comma, got 4294967296",
        ),
        ("eval l2.tamis q.npy --threads 100000", "'--threads': "),
        ("build none.npy --out o", "VECTORS: expected a file, got none.npy, which is none"),
        ("build bad.npy --out o", "VECTORS: expected finite numbers, got NaN or inf in row 3: bad.npy"),
        ("build x.npy --out o --ids bad.npy", "--ids: expected [n], at least one id, got [1200, 12]: bad.npy"),
        ("build q.npy --out o --ids ids.npy", "tamis.Index.build: ids: expected int64 [40], got torch.int64 [1200]"),
        ("build x.npy --out o --metric dot", "metric: expected ip or l2 or cosine, got 'dot'"),
        ("build x.npy --out o --spec tree", "spec: expected treeN"),
        ("build x.npy --out o --key a", "--key: expected none, but for a .safetensors file, got a"),
        (
            "build zeros.npy --out o --metric cosine",
            "vectors: expected vectors of length above 0 for cosine, got zeros",
        ),
        (f"build x.npy --out {HERE}", f"'--out': expected a file that can be written, got {HERE}"),
        ("build x.npy --out /dev/null", "'--out': expected a file that can be written, got /dev/null"),
        ("build x.npy --out .", "'--out': expected a file that can be written, got ."),
        ("search none.tamis q.npy", "INDEX: expected a file, got none.tamis"),
        ("search x.npy q.npy", "INDEX: expected an index that was saved whole, got x.npy"),
        ("search l2.tamis narrow.npy", "QUERIES: expected [q, 12] for this index, got [1200, 5]: narrow.npy"),
        ("search l2.tamis bad.npy", "QUERIES: expected finite numbers, got NaN or inf in row 3: bad.npy"),
        ("search l2.tamis q.npy --k 0", "'--k': "),
        ("search l2.tamis q.npy --leaves 0", "'--leaves': "),
        ("search l2.tamis q.npy --out o.txt", "--out: expected a file that ends in .npz or .safetensors, got o.txt"),
        (f"search l2.tamis q.npy --out {HERE}.npz", "'--out': expected a file that can be written"),
        ("eval l2.tamis q.npy --k 1201", "--k: expected at most 1200, the vectors of the index, got 1201"),
        ("eval l2.tamis q.npy --truth l2.npy --vectors x.npy", "--truth, --vectors: expected one of them, got both"),
        ("eval rough.tamis q.npy", "--truth, --vectors: expected one of them, as this index keeps no float32 vectors"),
        ("eval l2.tamis q.npy --truth l2.npy --k 21", "--truth: expected [40, 21 or more], a row for each query, got"),
        ("eval l2.tamis x.npy --truth l2.npy", "a row for each query, got [40, 20]: l2.npy"),
        ("eval ids.tamis q.npy --truth l2.npy", "--truth: expected ids of the index, got "),
        ("eval l2.tamis q.npy --truth far.npy", "--truth: expected rows of the index, below 1200, got 1200: far.npy"),
        ("eval l2.tamis q.npy --truth x.npy", "--truth: expected integers, got float32: x.npy"),
        ("eval l2.tamis q.npy --vectors q.npy", "--vectors: expected those of the index, [1200, 12], got [40, 12]"),
        ("eval l2.tamis q.npy --leaves 4,x", "--leaves: expected numbers of 1 to 2^32 - 1, by comma, got 4,x"),
        ("eval l2.tamis q.npy --rerank 0", "--rerank: expected numbers of 1 to 2^32 - 1, by comma, got 0"),
        (f"eval l2.tamis q.npy --json {HERE}", "'--json': expected a file that can be written"),
    ],
)
def test_refused(place, monkeypatch, line, words):
    monkeypatch.chdir(place)
    bad = X.copy()
    bad[3, 4] = np.nan
    np.save("bad.npy", bad)
    np.save("narrow.npy", X[:, :5])
    np.save("zeros.npy", np.zeros_like(X))
    np.save("far.npy", np.full((Q, 10), N))
    result = invoke(*shlex.split(line))
    assert result.exit_code == 2, result.output
    assert words in re.sub(r"[\s│]+", " ", result.output)
    assert not Path("o").exists()


def test_the_readme(tmp_path, monkeypatch):
    """Its example in Python, then its commands on the files that this wrote."""
    section = (Path(__file__).parents[2] / "README.md").read_text().split("\n## ann\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", ""]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks[0][1], names)
    assert names["indices"].shape == (100, 10)
    assert (names["thorough"].indices % 2 == 0).all()
    assert len(names["index"]) == 1697
    for line in blocks[1][1].splitlines():
        program, group, *arguments = shlex.split(line, comments=True)
        assert (program, group) == ("tamis", "ann")
        done(*arguments)
    np.testing.assert_array_equal(np.load("found.npz")["indices"], names["indices"])
