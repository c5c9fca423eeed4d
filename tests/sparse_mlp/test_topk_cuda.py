"""What of the CUDA route can be tried without a GPU: who is chosen, and how what a launch gives is put in order."""

from types import SimpleNamespace

import pytest
import tamis
import torch
from tamis.common import backend
from tamis.common.backend import choose
from tamis.sparse_mlp import cuda, reference, topk


class OnGpu:
    """As far as a choice looks."""

    device = torch.device("cuda")


@pytest.mark.parametrize("built", [True, False])
def test_choice(monkeypatch, built):
    monkeypatch.setattr(backend, "built", lambda op: built)
    want = ("cuda", "topk") if built else ("reference", "plain torch")
    assert choose("topk", "auto", OnGpu())[:2] == want
    assert choose("softmax_stats", "auto", OnGpu())[:2] == ("triton", "softmax_stats_kernel")
    if built:
        assert choose("topk", "cuda", OnGpu())[:2] == want
    else:
        assert "without nvcc" in choose("topk", "auto", OnGpu()).reason
        with pytest.raises(ImportError, match=r"^tamis.topk: impl: expected tamis built where nvcc is found"):
            choose("topk", "cuda", OnGpu())


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
    monkeypatch.setattr(cuda, "built", lambda op: True)
    monkeypatch.setattr(torch.ops, "tamis", ops)
    x = torch.randn(3000, 3000, generator=torch.Generator().manual_seed(0)).round(decimals=2)[: k + 1, :4]
    x = x if dim == 0 else x.mT
    for got, want in zip(cuda.topk(x, k, dim, sorted), reference.topk(x, k, dim, sorted), strict=True):
        assert torch.equal(got, want)
        assert got.stride() == want.stride()


def test_the_raw_op_refuses_what_is_not_on_a_gpu():
    if not backend.built("topk"):
        pytest.skip("no nvcc")
    with pytest.raises(NotImplementedError, match="_topk_cuda"):
        torch.ops.tamis._topk_cuda(torch.ones(3), 1, True)
