"""What of the CUDA route can be tried without a GPU: who is chosen, and how what a launch gives is put in order."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import tamis
import torch
from tamis import kernels
from tamis.common import backend, nvrtc
from tamis.common.backend import choose
from tamis.sparse_mlp import cuda, reference, topk


class OnGpu:
    """As far as a choice looks."""

    device = torch.device("cuda")


@pytest.mark.parametrize(("built", "cupy"), [(True, False), (False, True), (False, False)])
def test_choice(monkeypatch, built, cupy):
    monkeypatch.setattr(backend, "built", lambda op: built)
    monkeypatch.setattr(nvrtc, "serves", lambda device: cupy)
    want = ("cuda", "topk" if built else "topk by NVRTC") if built or cupy else ("reference", "plain torch")
    assert choose("topk", "auto", OnGpu())[:2] == want
    assert choose("softmax_stats", "auto", OnGpu())[:2] == ("triton", "softmax_stats_kernel")
    assert choose("topk_mlp", "auto", OnGpu()).backend == "triton"  # which of its kernels: test_mlp_choice.py
    if built or cupy:
        assert choose("topk", "cuda", OnGpu()) == (*want, "impl=cuda")
    else:
        with pytest.raises(ImportError, match=r"^tamis.topk: impl: expected tamis built where nvcc is found, or CuPy"):
            choose("topk", "cuda", OnGpu())
    if not built:
        assert "without nvcc" in choose("topk", "auto", OnGpu()).reason
        with pytest.raises(ImportError, match=r"^tamis.distill_loss: impl: expected tamis built where nvcc is found"):
            choose("distill_loss", "cuda", OnGpu())


@pytest.mark.parametrize("major", [7, 8, 12])
@pytest.mark.parametrize("cupy", [False, True])
def test_a_device_before_the_binary(monkeypatch, major, cupy):
    """Turing and before: what Triton or CuPy compiles, or plain torch, and no launch of code that is not there."""
    monkeypatch.setattr(backend, "built", lambda op: True)
    monkeypatch.setattr(nvrtc, "serves", lambda device: cupy)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    old = ("cuda", "topk by NVRTC") if cupy else ("reference", "plain torch")
    choice = choose("topk", "auto", OnGpu())
    assert choice[:2] == (("cuda", "topk") if major >= 8 else old)
    assert ("for later devices" in choice.reason) == (major < 8)
    assert backend.runs("distill_loss", torch.device("cuda")) == (major >= 8)


@pytest.mark.parametrize(
    ("impl", "words"), [("triton", "an op with a Triton kernel"), ("cuda", "an op with a CUDA C.. kernel, and CUDA")]
)
def test_refused(impl, words):
    with pytest.raises(ValueError, match=f"^tamis.topk: impl: expected {words}"):
        topk(torch.ones(3), 1, impl=impl)


def test_explained():
    assert tamis.explain("topk", torch.ones(3), 1).kernel.startswith("simd ")


@pytest.mark.parametrize("k", [1, 7, 2048, 2049, 3000])
@pytest.mark.parametrize("sorted", [True, False])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_order(monkeypatch, k, sorted, dim):
    """A launch leaves large k in the row's order: they are sorted after it."""

    def launched(x, k, sorted):
        assert not sorted or k <= 2048
        return reference.topk(x, k, -1, sorted)

    ops = SimpleNamespace(_topk_cuda=SimpleNamespace(default=launched))
    monkeypatch.setattr(cuda, "runs", lambda op, device: True)
    monkeypatch.setattr(torch.ops, "tamis", ops)
    x = torch.randn(3000, 3000, generator=torch.Generator().manual_seed(0)).round(decimals=2)[: k + 1, :4]
    x = x if dim == 0 else x.mT
    for got, want in zip(cuda.topk(x, k, dim, sorted), reference.topk(x, k, dim, sorted), strict=True):
        assert torch.equal(got, want)
        assert got.stride() == want.stride()


def _interpreted(instance, grid, threads, *arguments):
    """What the kernels of cuda.cuh do, told by their parameters there."""
    name, dtype = instance.removeprefix("tamis::cuda::").removesuffix(">").split("<tamis::cuda::")
    if name == "topk_row_kernel":
        x, n, stride, k, values, indices = arguments
        rows = x.as_strided((*grid, n), (stride, 1), x.storage_offset())
        result = reference.topk(rows, k, -1, False)
    else:
        assert name == "topk_sort_kernel"
        given, order, k, values, indices = arguments
        sorted_values, at = given.sort(dim=-1, descending=True, stable=True)
        result = sorted_values, order.gather(-1, at)
    assert threads == 512
    assert cuda.FORMATS[values.dtype] == dtype
    for to, of in zip((values, indices), result, strict=True):
        assert to.is_contiguous()
        assert to.shape == (*grid, k)
        to.copy_(of)


@pytest.mark.parametrize("dtype", cuda.FORMATS)
@pytest.mark.parametrize("sorted", [True, False])
@pytest.mark.parametrize("shape", [(70,), (0, 70), (3, 70), (2, 3, 70), (70, 3), (2, 70, 3), (3, 1)])
def test_by_nvrtc(monkeypatch, shape, sorted, dtype):
    """How the arguments of what CuPy launches lie, in strided and transposed tensors."""
    monkeypatch.setattr(cuda, "runs", lambda op, device: False)
    monkeypatch.setattr(nvrtc, "serves", lambda device: True)
    monkeypatch.setattr(nvrtc, "kernel", lambda family, header, instance, device: partial(_interpreted, instance))
    wide = torch.randn(*shape[:-1], 2 * shape[-1], generator=torch.Generator().manual_seed(0)).to(dtype)
    for x in (wide[..., : shape[-1]], wide[..., ::2]):
        dim = shape.index(max(shape))
        k = min(9, shape[dim])
        for got, want in zip(cuda.topk(x, k, dim, sorted), reference.topk(x, k, dim, sorted), strict=True):
            assert torch.equal(got, want)


REFUSED = [
    (torch.ones(3), 0, -1, ValueError, "k: expected 1 to 3, .+ got 0"),
    (torch.ones(2, 5), 6, -1, ValueError, "k: expected 1 to 5, .+ got 6"),
    (torch.ones(3), 1, 1, ValueError, "dim: expected -1 to 0, got 1"),
    (torch.ones(3, dtype=torch.int32), 1, -1, TypeError, "x: expected .+ got torch.int32"),
    (torch.tensor(1.0), 1, -1, ValueError, "x: expected at least one axis, got a number"),
]


@pytest.mark.parametrize("way", ["nvrtc", "binary", "reference", "meta"])
@pytest.mark.parametrize(("x", "k", "dim", "error", "words"), REFUSED)
def test_refused_before_a_launch(monkeypatch, way, x, k, dim, error, words):
    """Of the raw op, which no Python function stands before."""
    monkeypatch.setattr(cuda, "runs", lambda op, device: way == "binary")
    monkeypatch.setattr(nvrtc, "serves", lambda device: True)
    ops = {"reference": reference.topk, "meta": torch.ops.tamis.topk}
    with pytest.raises(error, match=f"tamis.topk: {words}"):
        ops.get(way, cuda.topk)(x.to("meta") if way == "meta" else x, k, dim, True)


def test_the_raw_op_refuses_what_is_not_on_a_gpu():
    if not backend.built("topk"):
        pytest.skip("no nvcc")
    with pytest.raises(NotImplementedError, match="_topk_cuda"):
        torch.ops.tamis._topk_cuda(torch.ones(3), 1, True)


def test_numbers_are_the_headers():
    """What Python launches by, and what it leaves to another sort."""
    folder = Path(kernels.__path__[0])
    numbers = ("kThreads", "common/block.cuh", cuda.THREADS), ("kSortMost", "sparse_mlp/cuda.cuh", cuda.SORT_MOST)
    for name, header, number in numbers:
        assert f"constexpr int {name} = {number}" in (folder / header).read_text()


def test_rows_too_many_to_count_are_refused(monkeypatch):
    monkeypatch.setattr(cuda, "runs", lambda op, device: False)
    monkeypatch.setattr(nvrtc, "serves", lambda device: True)
    for shape in ((2**32,), (2**31, 1)):
        with pytest.raises(ValueError, match=r"^tamis.topk: x: expected rows below 2\^32"):
            cuda.topk(torch.zeros(1).expand(shape), 1)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_plain_torch_has_nan_of_either_sign_first(k):
    x = torch.tensor([1.0, -torch.nan, torch.inf, torch.nan, -1.0])
    assert reference.topk(x, k)[1].tolist() == [1, 3, 2, 0, 4][:k]
