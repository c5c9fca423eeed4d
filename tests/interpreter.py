"""Triton kernels on CPU tensors: in Triton's interpreter, in a process of its own, since the switch is read when triton
is imported. A program costs it 9 ms: small shapes, two programs a launch."""

import os
from types import ModuleType, SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from tamis.common import cuda
from tamis.distill import cuda_rows
from tamis.kernels.common import launch

INNER = os.environ.get("TRITON_INTERPRET") == "1"
inner = pytest.mark.skipif(not INNER, reason="runs with TRITON_INTERPRET=1, by tests/common/test_interpreter.py")
outer = pytest.mark.skipif(INNER, reason="compiles, which the interpreter does not")


@pytest.fixture(scope="module", autouse=True)
def patched_once():
    """The interpreter patches triton.language anew for every helper a kernel calls: nine tenths of its time."""
    if INNER:
        from triton.runtime import interpreter

        patch, patched = interpreter._patch_lang, set()

        def once(fn):
            modules = frozenset(id(value) for value in fn.__globals__.values() if isinstance(value, ModuleType))
            if modules not in patched:
                patched.add(modules)
                kept.append(patch(fn))  # for good: this process interprets every kernel
            return SimpleNamespace(restore=lambda: None)

        kept: list[object] = []
        interpreter._patch_lang = once


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(launch, "LANES", 8)
    monkeypatch.setattr(cuda, "PROGRAMS", 2)
    monkeypatch.setattr(cuda_rows, "ROWS_BLOCK", 4)


def logits(*shape, scale=3.0, seed=0, dtype=torch.float32):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def close(got, want, rtol, atol):
    torch.testing.assert_close(got.double(), want.double(), rtol=rtol, atol=atol, equal_nan=True)
