"""tamis bench, report and demo: what they refuse before the work, and what they say where it fails."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import tamis.benchmarks
import torch
import typer
from tamis.bench import run as engine
from tamis.cli import bench, demo, report
from typer.testing import CliRunner

app = typer.Typer()
app.command()(bench.bench)
app.command()(report.report)
app.command()(demo.demo)

HEADER = dict.fromkeys(engine.HEADER, "x")
ROW = dict.fromkeys(engine.KEY, "x") | {"shape": {"rows": 1}, "threads": 1, "allocator": "kept", "median_s": 1.0}
RESULT = {"schema": engine.SCHEMA, "header": HEADER, "rows": [ROW | {"provider": "tamis", "ratio": 1.0}]}


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "nothing"], "family: expected one of ann, distill"),
        (["bench", "--only", "("], "--only: expected a regular expression, got ("),
        (["bench", "--providers", "["], "--providers: expected a regular expression, got ["),
        (["bench", "--allocator", "huge"], "--allocator: expected one of default, kept, both, got huge"),
        (["bench", "--threads", "0"], "--threads: expected all, or counts of 1 to"),
        (["bench", "--threads", "99999999999"], ", got 99999999999"),
        (["bench", "sampling", "--quick", "--only", "nothing"], "--only: expected an expression that finds a case"),
        (["bench", "--device", "xpu"], "--device: expected cpu or cuda, got xpu"),
        (["bench", "--json", "/no/such/file"], "'--json': expected a file that can be written, got /no/such/file"),
        (["bench", "--json", "/"], "'--json': expected a file that can be written, got /"),
        (["bench", "--compare", "/no/such/file"], "'--compare': "),
        (["bench", "--compare", __file__], "test_bench.py: expected a result, got"),
        (["report", "--out", "/no/such/file"], "'--out': expected a file that can be written"),
        (["report", "--results", "/no/such/folder"], "'--results': "),
        (["demo", "--seed", "99999999999999999999999"], "'--seed': "),
        (["demo", "--text", "/no/such/file"], "'--text': "),
    ],
)
def test_bad_options_are_named(arguments, words):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="finds a device")
def test_a_device_that_is_not_there_is_named():
    result = invoke("bench", "--device", "cuda")
    assert result.exit_code == 2
    assert "--device: expected cpu where torch finds no CUDA device, got cuda" in result.output


@pytest.mark.parametrize("option", [("--allocator", "kept"), ("--threads", "1")])
def test_a_device_takes_no_option_of_the_host(option, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    result = invoke("bench", "--device", "cuda", *option)
    assert result.exit_code == 2
    assert "--device: expected cpu beside --allocator and --threads" in result.output


def test_a_worker_that_fails_is_one_line(monkeypatch):
    monkeypatch.setenv("TAMIS_ISA", "foo")
    result = invoke("bench", "--quick", "--only", "dispatch")
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "tamis.bench: RuntimeError: " in result.output and "foo" in result.output


def test_a_worker_that_is_killed_says_so(monkeypatch):
    killed = subprocess.CompletedProcess([], -9, stderr="a progress bar: 100%")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: killed)
    result = invoke("bench", "sampling", "--quick", "--json", "/dev/null")
    assert (result.exit_code, result.output) == (1, "tamis.bench: worker ended by SIGKILL\n")


@pytest.mark.parametrize("place", ["a.json", "/dev/null"])
def test_what_was_measured_before_a_failure_is_kept(place, monkeypatch, tmp_path):
    def fails_in_its_second_worker(command, **kwargs):
        job = json.loads(command[-1])
        Path(job["out"]).write_text(json.dumps({"header": HEADER, "rows": RESULT["rows"]}))
        if job["threads"] == 1:
            return subprocess.CompletedProcess(command, 0, stderr="")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", fails_in_its_second_worker)
    out = tmp_path / place
    out.write_text("an earlier result")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    result = invoke("bench", "sampling", "--allocator", "kept", "--threads", "1,2", "--json", str(out))
    assert result.exit_code == 1
    part = Path(f"{out}.part")
    if place == "/dev/null":  # a device has nothing beside it
        assert result.output == "tamis.bench: interrupted\n" and not part.exists()
        return
    assert result.output == f"tamis.bench: interrupted; the 2 rows before are in {part}\n"
    assert len(engine.load(part)["rows"]) == 2
    assert out.read_text() == "an earlier result"


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(engine, "run", lambda *args, **kwargs: RESULT)


def test_a_result_that_cannot_be_written_is_shown(measured):
    result = invoke("bench", "--json", "/dev/full")
    assert result.exit_code == 1
    assert "x tamis" in result.output  # the table
    assert "--json: expected a file that can be written, got [Errno 28]" in result.output


def test_an_earlier_result_survives_a_failure(measured, monkeypatch, tmp_path):
    earlier, link = tmp_path / "a.json", tmp_path / "b.json"
    earlier.write_text("before")
    link.symlink_to(earlier)

    def full(path, text):
        path.open("w").close()
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        assert invoke("bench", "--json", str(link)).exit_code == 1
    assert earlier.read_text() == "before"
    assert invoke("bench", "--json", str(link)).exit_code == 0
    assert link.is_symlink() and json.loads(earlier.read_text()) == RESULT
    assert set(tmp_path.iterdir()) == {earlier, link}


def test_report_of_an_installed_package_wants_a_place(monkeypatch, tmp_path):
    monkeypatch.setattr(tamis.benchmarks, "__path__", [str(tmp_path / "tamis" / "benchmarks")])
    result = invoke("report")
    assert result.exit_code == 2
    assert "--out: expected a file" in result.output
