"""The script behind `make gpu-test`, without a GPU: stages that fail or overrun, the report, the dry run."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from gpu import run
from tamis.bench.run import HEADER, KEY, load
from tamis.bench.worker import cases

DEVICE = run.Device("NVIDIA X100 80GB", "9.0", "1.2")
NAMES = [
    "build", "alive", "ops", "bench distill", "bench distill", "bench sampling", "bench sparse_mlp", "bench sparse_mlp",
    "memcheck", "racecheck", "synccheck", "suite",
]  # fmt: skip


def script(*arguments, path=os.environ["PATH"]):
    command = [sys.executable, run.__file__, *arguments]
    return subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True)


def stage(name, program, **options):
    return run.Stage(name, [sys.executable, "-c", program], 1.0, **options)


def test_dry_run_lists_every_stage():
    done = script("--dry-run")
    assert done.returncode == 0, done.stderr
    device, *listed, report = done.stdout.splitlines()
    assert device.startswith("device: ")
    assert [line.split(",")[0] for line in listed if ", " in line and " s: " in line] == NAMES
    assert "CUDAARCHS=" in done.stdout and "--device cuda" in done.stdout and "tests/gpu -n" in done.stdout
    assert "benchmarks/results/" in report
    assert all(f" --tool {tool} " in done.stdout for tool in ("memcheck", "racecheck", "synccheck"))  # here or not


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_lists_too():
    """In a clone where nothing was built."""
    command = ["make", "-C", str(run.ROOT), "gpu-test", "DRY_RUN=1", "VENV=/no/such/folder"]
    environment = {k: v for k, v in os.environ.items() if k != "MAKEFLAGS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"\n{name}, " in done.stdout for name in NAMES)


@pytest.mark.parametrize("arguments", [(), ("--find",)])
def test_without_a_gpu(arguments, tmp_path):
    done = script(*arguments, "--out", str(tmp_path), path="")
    assert done.returncode == 2
    assert "expected a GPU, nvidia-smi finds none" in done.stderr
    assert not any(tmp_path.iterdir())


def test_the_device_is_asked(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$4" = 1 ] && echo "NVIDIA X100 80GB, 9.0, 1.2" || echo "Other, 12.0, 3"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run.find().architecture == "120-real"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert run.find() == DEVICE
    assert (DEVICE.architecture, DEVICE.slug) == ("90a-real", "nvidia-x100-80gb")


def test_a_stage_that_fails_or_overruns_stops_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("TAMIS_BUILD_DIR", "/a/folder/here")  # would be in the header of a result
    row = dict.fromkeys(KEY, "x") | {"shape": {"rows": 1}, "allocator": "cuda", "provider": "tamis", "median_s": 1.0}
    part, left = tmp_path / "part.json", tmp_path / "left"
    header = dict.fromkeys(HEADER, "x") | {"cuda": "13.0"}
    result = json.dumps({"schema": 1, "header": header, "rows": [row]})
    child = f"import time; time.sleep(6); open({str(left)!r}, 'w')"
    found = [
        stage("first", "print('all | well')"),
        stage("broken", f"import os; print(os.getcwd() + '/here'); raise SystemExit({str(run.ROOT / 'no')!r})"),
        stage("slow", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"),
        run.Stage("tool", ["no-such-tool"], 1.0),
        stage(
            "told",
            "import os; assert os.environ['X'] == '1'; assert 'TAMIS_BUILD_DIR' not in os.environ",
            environment={"X": "1"},
        ),
        stage("bench", f"open({str(part)!r}, 'w').write({result!r})", result=part),
    ]
    begin = time.monotonic()
    assert run.run(found, DEVICE, tmp_path, budget=9.0) == 1
    assert time.monotonic() - begin < 9
    report = load(tmp_path / "nvidia-x100-80gb.json")
    rows = report["gpu_test"]["stages"]
    assert [row["status"] for row in rows] == ["passed", "failed", "overran", "absent", "passed", "passed"]
    assert report["gpu_test"]["passed"] is False
    assert rows[1]["tail"] == ["here", "no"]  # no path of this machine
    assert report["rows"] == [row]
    assert report["header"]["device"] == DEVICE.name
    page = (tmp_path / "nvidia-x100-80gb.md").read_text()
    assert page.startswith(f"# {DEVICE.name}\n")
    for text in ("| first | passed |", "all \\| well", "## broken: failed", "## slow: overran", "| tool | absent |"):
        assert text in page
    assert "## first" not in page
    assert "## Benchmarks" in page and "x, x: 1 x, CUDA" in page
    time.sleep(max(0, begin + 9 - time.monotonic()))
    assert not left.exists()  # the overrunning stage's child is gone too


def test_all_well_is_no_failure(tmp_path):
    assert run.run([stage("one", ""), run.Stage("tool", ["no-such-tool"], 1.0)], DEVICE, tmp_path, budget=30) == 0
    report = load(tmp_path / "nvidia-x100-80gb.json")  # without a benchmark too
    assert report["rows"] == [] and set(HEADER) <= set(report["header"])


def test_unused_time_is_passed_on():
    shares = [run.Stage("", [], share) for share in (1, 1, 2)]
    assert list(run.limits(shares, 8.0)) == pytest.approx([2.0, 8 / 3, 8.0], rel=0.01)
    assert sum(s.share for s in run.stages(None, run.ROOT)) > 0


def test_the_cases_named_are_there():
    """Each pattern finds cases of its family: on the device an empty one would be an error."""
    for family, pattern, _ in run.BENCHES:
        labels = [case.label for case in cases(family, quick=False, peers=True) if re.search(pattern, case.label)]
        assert 2 <= len(labels) < 12, labels
