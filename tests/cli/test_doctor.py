"""tamis doctor."""

import json
import os
import subprocess
import sys

import pytest
import typer
from tamis.cli import doctor
from typer.testing import CliRunner

app = typer.Typer()
app.command()(doctor.doctor)


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json():
    found = json.loads(run("--json"))
    assert {"tamis", "built", "torch", "cpu", "backends", "devices", "driver", "memory", "environment"} <= set(found)
    assert found["backends"]["cpu"]["live"]
    assert set(found["cpu"]["runs"]) <= set(found["built"]["isa"])
    assert found["memory"]["allocator"] in ("default", "kept", "custom")


def test_every_backend_has_a_reason():
    for name, backend in doctor.backends().items():
        assert backend.reason, name


def test_text():
    text = run()
    for word in ("tamis", "built", "torch", "processor", "cpu", "triton", "cuda", "allocator", "huge pages"):
        assert word in text


def test_text_keeps_brackets_and_names_the_environment(monkeypatch):
    monkeypatch.setattr(doctor, "_triton", lambda: doctor.Backend(False, "pip install 'tamis[triton]'"))
    monkeypatch.setenv("TAMIS_BACKEND", "reference")
    text = run()
    assert "off: pip install 'tamis[triton]'" in text
    assert "TAMIS_BACKEND=reference" in text


def test_forced_isa_is_named(monkeypatch):
    monkeypatch.setenv("TAMIS_ISA", "v2")  # too late for this process's choice, but the reason says it is set
    assert "TAMIS_ISA" in doctor.backends()["cpu"].reason


def test_a_broken_backend_is_reported(monkeypatch):
    def broken():
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "_cuda", broken)
    assert doctor.backends()["cuda"] == (False, "OSError: libcuda.so.1: cannot open shared object file")


def test_missing_triton(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    live, reason = doctor.backends()["triton"]
    assert not live
    assert "pip install 'tamis[triton]'" in reason


def test_interpreter_counts_as_live(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    live, reason = doctor.backends()["triton"]
    assert live
    assert "interpreted" in reason


@pytest.mark.parametrize("isa", ["", "v2"])
def test_isa_in_use_is_the_forced_one(isa):
    from tamis import _native

    expected = isa or _native.isa_report()["best"]
    if expected not in _native.isa_report()["runs"]:
        pytest.skip(f"{expected} does not run here")
    code = "from tamis.cli.doctor import examination; print(examination()['backends']['cpu']['reason'])"
    environment = {**os.environ, "TAMIS_ISA": isa}
    text = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert f"kernels for {expected}" in text
