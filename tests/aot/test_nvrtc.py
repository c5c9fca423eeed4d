"""Every __global__ kernel through NVRTC, for every architecture; no driver is needed to compile."""

import builtins
import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tamis.aot import entries
from tamis.aot.inventory import CUDA_ARCHS
from tamis.common import nvrtc

try:
    nvrtc._library(), nvrtc._toolkit()
    MISSING = ""
except ImportError as error:
    MISSING = str(error)
compiles = pytest.mark.skipif(bool(MISSING), reason=MISSING)
CUDA = [entry for entry in entries() if entry.backend == "cuda"]


@compiles
@pytest.mark.parametrize("entry", CUDA, ids=lambda entry: entry.file)
def test_every_kernel_compiles(entry):
    variant = entry.variant
    code, name = nvrtc.compile(entry.family, variant.header, variant.instance, entry.arch_name)
    assert code[:4] == b"\x7fELF"
    assert name.encode() in code
    assert variant.kernel in name


def test_every_architecture_is_tried():
    assert {entry.arch_name for entry in CUDA} == set(CUDA_ARCHS.values()) == {"sm_80", "sm_90a", "sm_100", "sm_120"}


@compiles
@pytest.mark.parametrize("entry", CUDA[:1], ids=lambda entry: entry.file)
def test_nvcc_and_nvrtc_name_it_alike(entry):
    """So one spelling of integers serves both."""
    from tamis.aot import build, cuda

    if not cuda.nvcc():
        pytest.skip("no nvcc")
    pytest.importorskip("triton")  # for the tools that measure
    (built,) = build([entry])
    _, name = nvrtc.compile(entry.family, entry.variant.header, entry.variant.instance, entry.arch_name)
    assert name.encode() in built.cubin.read_bytes()


@compiles
def test_what_does_not_compile_is_explained():
    with pytest.raises(RuntimeError, match="no_such_kernel<float> for sm_80"):
        nvrtc.compile("distill", "cuda.cuh", "no_such_kernel<float>", "sm_80")


@compiles
def test_an_architecture_newer_than_the_compiler_gets_ptx():
    assert nvrtc.target((8, 0)) == "sm_80"
    assert nvrtc.target((9, 0)) == "sm_90a"
    with pytest.raises(RuntimeError, match="expected a device of sm_"):
        nvrtc.target((1, 0))
    newest = nvrtc.target((99, 0))
    assert newest == f"compute_{max(nvrtc._library().getSupportedArchs())}"
    code, name = nvrtc.compile("distill", "cuda.cuh", "tamis::cuda::scale_rows_kernel<float>", newest)
    assert b".entry " + name.encode() in code


@pytest.mark.parametrize(("capability", "able"), [((7, 0), False), ((7, 5), True), ((12, 0), True)])
def test_a_device_older_than_any_is_not_served(monkeypatch, capability, able):
    major, minor = capability
    monkeypatch.setattr(nvrtc, "available", lambda: True)
    monkeypatch.setattr(nvrtc, "_library", lambda: SimpleNamespace(getSupportedArchs=lambda: [80, 75, 100]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major, minor=minor))
    assert nvrtc.serves(torch.device("cuda")) == able
    monkeypatch.setattr(nvrtc, "available", lambda: False)
    assert not nvrtc.serves(torch.device("cuda"))


def test_a_launch(monkeypatch):
    """Addresses, integers, the stream: as CuPy's function takes them. A fake device's, which none here has."""
    seen, x = [], torch.arange(6.0).view(2, 3)
    monkeypatch.setattr(torch.cuda, "device", lambda index: torch.no_grad())
    monkeypatch.setattr(nvrtc, "_stream", lambda index: ("stream", index))
    launch = nvrtc.Kernel(lambda *arguments: seen.append(arguments), 3)
    with pytest.raises(ValueError, match="expected tensors on cuda:3, got cpu"):
        launch((1,), 32, x)
    monkeypatch.setattr(nvrtc, "Tensor", SimpleNamespace)
    there = SimpleNamespace(device=torch.device("cuda", 3), data_ptr=lambda: 2**47 + 16)
    launch((2, 1), 256, there, None, -5)
    ((grid, block, arguments, shared, stream),) = seen
    assert (grid, block, shared, stream) == ((2, 1), (256,), 0, ("stream", 3))
    assert [int(a) for a in arguments] == [2**47 + 16, 0, -5]
    assert {a.dtype.itemsize for a in arguments} == {8}


def test_without_cupy(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("cupy"):
            raise ImportError(name)
        return real(name, *rest)

    nvrtc._library.cache_clear()
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"expected CuPy: pip install 'tamis\[cupy\]'"):
        nvrtc.compile("distill", "cuda.cuh", "x", "sm_81")
    nvrtc._library.cache_clear()


def test_tamis_does_not_import_cupy():
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("no cupy")
    code = "import sys, tamis, tamis.common.nvrtc; assert not any(m.startswith('cupy') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
