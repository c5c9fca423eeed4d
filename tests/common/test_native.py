"""Reports and probes; and that byte shuffles are one instruction, not an emulation that is right and slow."""

import math
import re

import pytest
import torch
from disassembly import disassembly
from tamis import _native

KINDS = ("copy", "read", "fma", "exp", "shuffle")
LEVELS = {"v4x", "v4", "v3", "v2", "neon", "wide"}


def test_report():
    report = _native.isa_report()
    assert set(report["runs"]) <= set(report["compiled"]) <= LEVELS
    assert report["best"] == report["runs"][0]
    assert report["cpu"].strip() == report["cpu"] != ""
    assert all(isinstance(has, bool) for has in report["features"].values())


def test_levels_follow_features():
    report = _native.isa_report()
    if not report["features"]:
        pytest.skip("x86-64 only")
    has = report["features"]
    assert ("v3" in report["runs"]) <= (has["avx2"] and has["fma"])
    assert ("v4x" in report["runs"]) <= (has["avx512vbmi"] and has["avx512vnni"] and has["avx512bf16"])


@pytest.mark.parametrize("isa", ["", *_native.isa_report()["runs"]])
@pytest.mark.parametrize("kind", KINDS)
def test_probe_is_a_rate(kind, isa):
    rate = _native.probe(kind, isa, seconds=1e-3, bytes=1 << 20)
    assert math.isfinite(rate)
    assert rate > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 4096, 12345, 3 << 20])
def test_probe_of_any_size_and_threads(kind, size):
    assert _native.probe(kind, seconds=1e-3, bytes=size, threads=3) > 0


def test_probe_object_is_repeatable():
    probe = _native.Probe("copy", bytes=1 << 20)
    assert all(0 < probe.rate() < math.inf for _ in range(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "tea"}, "kind: expected copy, read, fma, exp or shuffle, got tea"),
        ({"kind": "copy", "isa": "v9"}, "isa: expected one that was compiled, got v9"),
        ({"kind": "copy", "threads": 0}, "threads: expected positive"),
        ({"kind": "copy", "bytes": 0}, "bytes, threads: expected positive"),
        ({"kind": "copy", "seconds": 0.0}, "seconds: expected a positive"),
        ({"kind": "copy", "seconds": math.nan}, "seconds: expected a positive"),
    ],
)
def test_probe_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        _native.probe(**arguments)


@pytest.fixture(scope="module")
def instructions():
    return disassembly(_native.__file__)


@pytest.mark.parametrize(("isa", "wanted"), [("v4x", "vpermb"), ("v4", "vpshufb"), ("v3", "vpshufb"), ("neon", "tbl")])
def test_shuffle_is_one_instruction(instructions, isa, wanted):
    if isa not in _native.isa_report()["compiled"]:
        pytest.skip(f"{isa} was not compiled")
    code = "".join(body for name, body in instructions.items() if f"tamis::{isa}::" in name and "shuffle" in name)
    assert len(re.findall(rf"\b{wanted}\b", code)) == 4  # as often as the loop is unrolled
    assert len(code.splitlines()) < 150  # SIMDe's emulation of vpermb alone is 183 instructions


@pytest.mark.parametrize("isa", ["v4x", "v4", "v3"])
def test_chains_stay_in_registers(instructions, isa):
    if isa not in _native.isa_report()["compiled"]:
        pytest.skip(f"{isa} was not compiled")
    (code,) = (body for name, body in instructions.items() if f"tamis::{isa}::" in name and "::fma(" in name)
    fused = [line for line in code.splitlines() if "vfmadd" in line]
    assert len(fused) >= 12
    assert not any("(%r" in line for line in fused)


def test_what_moves_to_huge_pages_stays_what_it_is():
    """Nor is it an error where there is nothing to move."""
    x = torch.arange(3 << 20)
    wanted = x.clone()
    _native.move_to_huge_pages(x.data_ptr(), x.nbytes)
    _native.move_to_huge_pages(0, 8 << 20)
    assert torch.equal(x, wanted)
