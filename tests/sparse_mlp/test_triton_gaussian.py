"""gaussian_topk in Triton's interpreter, against the reference in float64."""

import pytest
import torch
from interpreter import close, inner, logits, patched_once, small  # noqa: F401
from tamis.sparse_mlp import cuda, reference

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def check(x, k):
    deviations = reference.deviations(k, x.shape[-1])
    wide = x.double().requires_grad_()
    want = reference.gaussian_topk(wide, k)
    grad = logits(*x.shape, seed=9, dtype=x.dtype)
    tolerance = TOLERANCE[x.dtype]
    got, back = cuda.gaussian_cut(x, deviations), cuda.gaussian_cut_backward(grad, x, deviations)
    assert got.dtype == back.dtype == x.dtype and got.shape == back.shape == x.shape
    assert got.is_contiguous() and back.is_contiguous()
    close(got, want, tolerance, 10 * tolerance)
    (truth,) = torch.autograd.grad(want, wide, grad.double())
    close(back, truth, 10 * tolerance, 10 * tolerance)


@inner
@pytest.mark.parametrize("n", [2, 5, 32, 33, 64, 77, 300])
def test_tails(n):
    check(logits(3, n), max(1, n // 3))


@inner
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_dtypes(dtype):
    check(logits(3, 77, dtype=dtype), 9)


@inner
def test_strides():
    x = logits(4, 3, 50)
    check(x.transpose(0, 1), 5)
    check(x[::2, 1:, :40], 5)
    check(x[..., ::2], 5)


@inner
def test_edges():
    assert cuda.gaussian_cut(torch.empty(0, 5), 1.0).shape == (0, 5)
    x = torch.full((2, 40), 3.0)
    assert not cuda.gaussian_cut(x, 1.0).any()
    assert not cuda.gaussian_cut_backward(torch.ones_like(x), x, 1.0).any()
    x = logits(3, 40)
    x[1, 7] = float("nan")
    y = cuda.gaussian_cut(x, 1.0)
    assert y[1].isnan().all() and not y[[0, 2]].isnan().any()
