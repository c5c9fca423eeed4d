"""The engine on tiny shapes. Nothing here asserts a time."""

import itertools
import json
import math
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import tamis.benchmarks
import torch
from rich.console import Console
from tamis.bench import Case, Route, machine, plots, run, table, worker
from tamis.bench.machine import ALLOCATORS, allocator_environment, allocator_mode, header
from tamis.bench.measure import Limits, Meter, Probes, alternate, measure, native_probes, quantile, relative_errors
from tamis.bench.memory import peak_bytes
from tamis.bench.report import render, report
from tamis.bench.table import COLUMNS, seconds, show, show_comparison
from torch.utils._pytree import tree_leaves

HOME = Path(next(iter(tamis.benchmarks.__path__)))
FEW = Limits(0.0, 3, 3, warm=0.0)


def broken(inputs):
    raise RuntimeError("no such peer\nwith a long story")


def square(error=0.0):
    return lambda x: Route(lambda _: (x.square() * (1 + error),))


def case(**changes):
    values = {
        "op": "square",
        "mode": "forward",
        "shape": {"rows": 8, "classes": 1024},
        "dtype": "float32",
        "setup": lambda: torch.linspace(-1, 1, 8192).view(8, 1024),
        "providers": {"tamis": square(), "peer": square(0.5), "absent": broken},
        "truth": lambda x: (x.double().square(),),
        "read": 4 * 8192,
        "written": 4 * 8192,
        "exponentials": 8192,
    }
    return Case(**(values | changes))


def constant(value):
    return lambda: value


def test_rows_of_a_case():
    ours, peer, absent = measure(case(), FEW, Probes(constant(1e9), constant(1e9)))
    assert ours["provider"] == "tamis"
    assert ours["rounds"] == 3
    assert ours["p20_s"] <= ours["median_s"] <= ours["p80_s"]
    assert ours["ratio"] == 1
    assert ours["loss_error"] < 1e-6
    assert peer["loss_error"] == pytest.approx(0.5)
    assert ours["bytes_per_second"] == pytest.approx(65536 / ours["median_s"])
    assert ours["stream_s"] == pytest.approx(65536e-9)
    assert ours["roofline_s"] == pytest.approx(65536e-9)  # memory is the slower
    assert "median_s" not in absent
    assert absent["failed"] == "RuntimeError: no such peer"


def test_roofline_is_the_slower_of_memory_and_exponentials():
    row = measure(case(), FEW, Probes(constant(1e9), constant(1e6)))[0]
    assert row["stream_s"] == pytest.approx(65536e-9)
    assert row["roofline_s"] == pytest.approx(8192e-6)
    assert row["roofline_percent"] > row["stream_percent"]


def test_no_probes_no_percent():
    row = measure(case(), FEW)[0]
    assert "stream_percent" not in row
    assert "roofline_percent" not in row


@pytest.mark.parametrize("changes", [{}, {"written": 0}, {"exponentials": 0}, {"read": 0, "written": 0}])
def test_native_probes(changes):
    probes = native_probes(case(**changes), "", threads=1)
    for probe in probes:
        assert probe is None or 0 < probe() < math.inf
    assert (probes.stream is None) == (changes.get("read") == 0)


def test_rounds_alternate():
    order = []
    actions = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    samples = alternate(actions, Limits(0.0, 4, 10, warm=0.0))
    assert order == list("aabbcc") * 4
    assert samples["b"] == [4.0, 10.0, 16.0, 22.0]  # the second of each pair


def test_preparation_precedes_every_run():
    log, numbers = [], itertools.count()
    route = Route(lambda n: log.append(("run", n)) or (torch.ones(1),), lambda: next(numbers))
    measure(case(providers={"tamis": lambda _: route}, truth=lambda _: (torch.ones(1),)), FEW)
    assert [n for _, n in log] == list(range(len(log)))


@pytest.mark.parametrize(("q", "value"), [(0, 1.0), (0.5, 2.5), (1, 4.0), (0.2, 1.6)])
def test_quantile(q, value):
    assert quantile([4.0, 1.0, 3.0, 2.0], q) == pytest.approx(value)


def test_errors_are_relative_and_show_nan():
    truth = (torch.tensor([100.0, 1.0]).double(), torch.zeros(1).double())
    assert relative_errors((torch.tensor([100.0, 2.0]), torch.zeros(1)), truth) == [pytest.approx(0.01), 0]
    assert math.isnan(relative_errors((torch.tensor([math.nan, 1.0]), torch.zeros(1)), truth)[0])


def test_peak_memory_counts_temporaries():
    def call():
        a = torch.ones(4 << 20)
        return (a + 1)[:1].clone()

    peak = peak_bytes(call)
    if peak is None:
        pytest.skip("needs Linux and glibc")
    assert 0.9 * 32 * 2**20 < peak < 1.3 * 32 * 2**20


def test_peak_memory_sees_reused_pages():
    block = torch.ones(64 << 20, dtype=torch.uint8)
    del block  # malloc may keep it: the next result must be counted all the same
    peak = peak_bytes(lambda: torch.ones(48 << 20, dtype=torch.uint8))
    assert peak is None or peak > 0.9 * 48 * 2**20


def test_allocator_modes(monkeypatch):
    for mode in ALLOCATORS:
        environment = allocator_environment(mode)
        for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            if name.startswith("MALLOC_"):
                monkeypatch.setenv(name, value)
        assert allocator_mode() == mode
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert allocator_mode() == "custom"


@pytest.fixture(scope="module")
def result():
    """A real run, in its own process, of the cheapest case."""
    return run.run(["distill"], threads=[1], allocators=["kept"], quick=True, only="dispatch")


def test_header(result):
    keys = ["cpu", "cores", "caches", "isa", "huge_pages", "environment", "torch", "tamis", "commit", "python"]
    assert list(result["header"]) == [*keys, "system", "date"] == list(header())
    assert set(run.HEADER) <= set(result["header"])


def test_header_tells_what_is_set(result, monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    monkeypatch.setenv("TAMIS_HUGE_PAGES", "0")
    now = header()
    assert {"THP_MEM_ALLOC_ENABLE": "1", "TAMIS_HUGE_PAGES": "0"}.items() <= now["environment"].items()
    assert "TAMIS_HUGE_PAGES=0; THP_MEM_ALLOC_ENABLE=1; " in table.machine(now)
    del now["environment"]  # as before it was recorded
    assert "=" not in table.machine(now)


def test_commit_of_another_project_is_not_ours(monkeypatch, tmp_path):
    inside = tmp_path / "venv" / "machine.py"
    inside.parent.mkdir()
    inside.touch()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run(["git", "-C", tmp_path, *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    monkeypatch.setattr(machine, "__file__", str(inside))
    assert machine.commit() == "unknown"


def test_providers_are_chosen_beside_ours():
    case = Case("op", "", {}, "", tuple, dict.fromkeys(("tamis", "torch", "torch eager", "liger")), tuple)
    assert list(worker._among(case, "").providers) == list(case.providers)
    assert list(worker._among(case, "^torch$|x").providers) == ["tamis", "torch"]
    assert list(worker._among(case, "none").providers) == ["tamis"]


def test_schema(result):
    assert result["schema"] == run.SCHEMA
    assert result["rows"]
    for row in result["rows"]:
        assert set(run.KEY) <= set(row)
        assert row["allocator"] == "kept"
        assert row["threads"] == 1
        assert row["shape"] == {"rows": 1, "classes": 2}
        assert "failed" in row or {"median_s", "p20_s", "p80_s", "rounds", "ratio", "loss_error"} <= set(row)
    assert len({run.key(row) for row in result["rows"]}) == len(result["rows"])


def test_ours_is_right(result):
    for row in result["rows"]:
        if row["provider"].startswith("tamis"):
            assert row["loss_error"] < 1e-5
            assert row["gradient_error"] < 1e-5


def test_save_and_load(result, tmp_path):
    run.save(result, tmp_path / "a.json")
    read = run.load(tmp_path / "a.json")
    assert read["header"] == result["header"]
    assert len(read["rows"]) == len(result["rows"])
    run.save(read, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


@pytest.mark.parametrize("text", ["[]", '{"schema": 0}', "{}"])
def test_load_refuses_other_files(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="expected a result of schema"):
        run.load(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"header": {}}, "a header with cpu, .*, got {}"),
        ({"header": 1}, "a header with cpu, .*, got 1"),
        ({"rows": {}}, "a list of rows, got {}"),
        ({"rows": [1]}, "rows with family, .*, got 1"),
        ({"rows": [dict.fromkeys(run.KEY, 1)]}, "rows with family"),
        ({"rows": [dict.fromkeys(run.KEY, 1) | {"shape": {}, "median_s": "1"}]}, "rows with family"),
    ],
)
def test_load_refuses_other_contents(changes, words, tmp_path):
    result = {"schema": run.SCHEMA, "header": dict.fromkeys(run.HEADER, 1), "rows": []}
    (tmp_path / "x.json").write_text(json.dumps(result))
    assert run.load(tmp_path / "x.json") == result
    (tmp_path / "x.json").write_text(json.dumps(result | changes))
    with pytest.raises(ValueError, match=words):
        run.load(tmp_path / "x.json")


def test_compare(result):
    slower = json.loads(json.dumps(result))
    for row in slower["rows"]:
        if "median_s" in row:
            row["median_s"] *= 2
    ratios = run.compare(slower["rows"], result["rows"])
    assert ratios
    assert all(ratio == pytest.approx(2) for _, ratio in ratios)
    assert run.compare([], result["rows"]) == []


def test_tables_print(result):
    console = Console(record=True, width=200)
    show(result, console)
    show_comparison(result, result, console)
    text = console.export_text()
    assert result["header"]["cpu"] in text
    assert "kept allocator" in text
    assert "1.00" in text
    assert all(heading in text for heading, _ in COLUMNS)


@pytest.mark.parametrize(("value", "text"), [(2.0, "2 s"), (0.0123, "12.3 ms"), (7.6e-6, "7.6 us"), (5e-9, "5 ns")])
def test_seconds(value, text):
    assert seconds(value) == text


def test_report_of_committed_results_is_committed(tmp_path):
    report(HOME / "results", tmp_path / "README.md")
    page = (HOME / "README.md").read_text()
    assert (tmp_path / "README.md").read_text() == page, "run: tamis report"
    drawn = re.findall(r"\]\((plots/.*?)\)", page)
    assert len(drawn) == len(list((HOME / "plots").iterdir())) > 0
    for path in drawn:
        assert (HOME / path).read_bytes()[:4] == (tmp_path / path).read_bytes()[:4] == b"\x89PNG"


def test_plots_of_what_failed_and_of_nothing(result, tmp_path):
    """tamis's own row failed: no ratio to it. A memory of 0, which the axis has not, is labelled as it is."""
    rows = [row | {"beyond_bytes": 0} for row in result["rows"] if row["provider"] == "eager"]
    failed = result | {"rows": [{k: v for k, v in row.items() if k != "ratio"} for row in rows]}
    assert list(plots.kinds(failed)) == ["memory"]
    assert list(plots.kinds(result)) == ["speed"]  # of dispatch too
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    plots._draw_memory(axes, rows)
    assert [text.get_text().strip() for text in axes.texts] == ["0"]
    assert [plots.LEAST] in [list(line.get_xdata()) for line in axes.lines]
    plots._draw_speed(axes, [row | {"ratio": ratio} for row in rows for ratio in (1.234, 123.4)])
    assert [text.get_text().strip() for text in axes.texts[1:]] == ["1.23", "123"]


def test_report(result):
    page = render([("machine", result)])
    assert "## machine" in page
    assert "distill_loss, dispatch" in page
    assert result["header"]["cpu"] in page
    assert "No results yet" in render([])


@pytest.mark.parametrize("family", run.families())
def test_families_have_unique_cases(family):
    from tamis.bench.worker import cases

    labels = [case.label for case in cases(family, quick=False, peers=True)]
    assert len(set(labels)) == len(labels) > 0
    quick = {case.label for case in cases(family, quick=True, peers=True)}
    assert quick <= set(labels)


def test_only_float32_is_held_against_float32_rates():
    from tamis.bench.worker import cases

    linear = [case for case in cases("distill", quick=False, peers=False) if case.op.startswith("linear")]
    assert {case.dtype for case in linear} == {"float32", "bfloat16"}
    assert all((case.flops > 0) == (case.dtype == "float32") for case in linear)


@pytest.mark.parametrize("family", run.families())
def test_cases_move_to_a_device(family, monkeypatch):
    """To the CPU here: what is moved keeps its values and its wish for a gradient, and all that runs there runs."""
    from tamis.bench import cuda
    from tamis.bench.worker import cases

    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    first = next(iter(cases(family, quick=True, peers=True)))
    moved = cuda.on_device(first)
    for got, want in zip(tree_leaves(moved.setup()), tree_leaves(first.setup()), strict=True):
        if isinstance(want, torch.Tensor):
            assert torch.equal(got, want)
            assert got.requires_grad == want.requires_grad
    rows = measure(moved, FEW, Probes(), Meter(lambda route, calls: 1.0, lambda call: (call(), 7)[1]))
    assert [row["peak_bytes"] for row in rows if "failed" not in row] == [7] * sum("failed" not in row for row in rows)
    assert rows[0]["median_s"] == 1.0


def test_a_result_of_a_device_says_so(result):
    device = {"device": "A device", "capability": "9.0", "cuda": "13.0", "driver": "1"}
    there = {"header": result["header"] | device, "rows": [row | {"allocator": "cuda"} for row in result["rows"]]}
    console = Console(record=True, width=200)
    show(there, console)
    for text in (console.export_text(), render([("device", there)])):
        assert "A device (sm 9.0, CUDA 13.0, driver 1)" in text
        assert "float32, CUDA" in text
        assert "On CUDA: times between two events" in text.replace("\n", " ")


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    synchronize = record

    def elapsed_time(self, end):
        return 2.0  # ms


def test_a_worker_on_a_device(monkeypatch):
    """The CPU stands for it; its clock is fixed."""
    from tamis.bench import cuda
    from tamis.bench.worker import Job, work

    properties = SimpleNamespace(name="A device", major=9, minor=0, total_memory=8, L2_cache_size=64)
    fakes = {
        "Event": Event,
        "get_device_properties": lambda: properties,
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 5,
        "max_memory_allocated": lambda: 12,
    }
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr("tamis.bench.worker.FULL", FEW)
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    cuda._scratch.cache_clear()
    job = Job(
        family="sparse_mlp", threads=torch.get_num_threads(), quick=False, peers=False, device="cuda", seconds=1e-9,
        only="128x32000x64", providers="", out="",
    )  # fmt: skip
    *_, done = work(job)
    cuda._scratch.cache_clear()
    assert done["header"]["device"] == "A device" and done["header"]["capability"] == "9.0"
    assert {row["allocator"] for row in done["rows"]} == {"cuda"}
    for row in done["rows"]:
        assert row["median_s"] == pytest.approx(2e-3)
        assert row["stream_percent"] == pytest.approx(100, rel=1e-3)
        assert row["peak_bytes"] == 7


def test_cache_sizes(tmp_path):
    """As Linux tells them: a core's first level is two caches; a virtual machine may leave files out."""
    told = [("1", "Data", "32K"), ("1", "Instruction", "64K"), ("2", "Unified", "512K"), ("3", "Unified", "")]
    for i, (level, kind, size) in enumerate(told):
        (tmp_path / f"index{i}").mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (tmp_path / f"index{i}" / name).write_text(text + "\n")
    (tmp_path / "index4").mkdir()
    assert machine.cache_sizes(str(tmp_path)) == {"L1d": 32 << 10, "L2": 512 << 10, "L3": 0}
    assert machine.cache_sizes(str(tmp_path / "none")) == {"L1d": 0, "L2": 0, "L3": 0}
    assert list(machine.cache_sizes()) == ["L1d", "L2", "L3"]
