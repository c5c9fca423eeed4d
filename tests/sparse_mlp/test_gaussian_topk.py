"""gaussian_topk against plain torch in float64, against transformers' own, and by its edges."""

import hypothesis.strategies as st
import pytest
import torch
from helpers import NAN
from hypothesis import given
from tamis.sparse_mlp import gaussian_topk, reference

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def logits(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    st.integers(1, 3), st.integers(1, 70) | st.sampled_from([255, 256, 257, 1030]), st.integers(0, 2**31),
    st.sampled_from(list(TOLERANCE)), st.data(),
)  # fmt: skip
def test_against_float64(isa, rows, n, seed, dtype, data):
    x = (logits(seed, rows, n) * 3 + 1).to(dtype)
    k = data.draw(st.integers(1, n))
    leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    got, want = gaussian_topk(leaf, k), reference.gaussian_topk(wide, k)
    near = {"atol": TOLERANCE[dtype] * 10, "rtol": TOLERANCE[dtype] * 10}
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, **near)
    sure = ((want > 0) == (got > 0)).all() and (n == 1 or k == n or x.double().std(-1).min() > 0.1)
    if not sure:  # a number at the cut, or none that differs
        return
    grad = logits(seed + 1, rows, n).to(dtype)
    got.backward(grad)
    if n > 1:
        want.backward(grad.double())
        torch.testing.assert_close(
            leaf.grad.double(), wide.grad, atol=TOLERANCE[dtype] * 30, rtol=TOLERANCE[dtype] * 30
        )


@pytest.mark.parametrize("k", [1, 7, 50, 100])
def test_rows_lie_anywhere(isa, k):
    x = logits(0, 6, 4, 100)
    want = reference.gaussian_topk(x.double(), k).float()
    for view in (x, x.transpose(0, 1), x[::2, 1:]):
        truth = reference.gaussian_topk(view.double(), k).float()
        torch.testing.assert_close(gaussian_topk(view, k), truth, atol=1e-5, rtol=1e-5)
    assert gaussian_topk(x, k).shape == want.shape
    assert gaussian_topk(torch.empty(0, 5), min(k, 5)).shape == (0, 5)


def test_about_k_pass():
    fired = (gaussian_topk(logits(0, 64, 8192), 410) > 0).sum(-1)
    assert (fired - 410).abs().max() < 80


def test_all_of_them_is_the_row_itself():
    x = logits(0, 3, 9).requires_grad_()
    y = gaussian_topk(x, 9)
    y.sum().backward()
    assert torch.equal(y, x) and y.data_ptr() != x.data_ptr()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_row_of_equal_numbers(isa, dtype):
    x = torch.full((2, 33), 3.0, dtype=dtype, requires_grad=True)
    y = gaussian_topk(x, 3)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y)) and torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("n", [3, 16, 33, 1000])
def test_equal_numbers_that_no_sum_keeps(isa, n):
    for value in (0.1, 1 / 3, 1e30, -7.7):
        x = torch.full((1, n), value, requires_grad=True)
        y = gaussian_topk(x, n - 1)
        y.sum().backward()
        assert not y.any() and not x.grad.any()


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e-22, 1e20, 1e30])
def test_any_size_of_numbers(isa, scale):
    x = logits(0, 2, 1000) * scale
    assert torch.equal(gaussian_topk(x, 100) > 0, reference.gaussian_topk(x.double(), 100) > 0) or scale == 1e-40
    assert ((gaussian_topk(x, 100) > 0).sum(-1) - 95).abs().max() < 20
    far = logits(0, 2, 1000) + 1e4
    torch.testing.assert_close(
        gaussian_topk(far, 100).double(), reference.gaussian_topk(far.double(), 100), atol=2e-3, rtol=1e-3
    )


def test_nan_stays_in_its_row(isa):
    x = logits(0, 3, 40)
    x[1, 17] = NAN
    y = gaussian_topk(x, 5)
    assert y[1].isnan().all() and not y[[0, 2]].isnan().any()


def test_as_gemma_3n_does():
    transformers = pytest.importorskip("transformers.models.gemma3n.modeling_gemma3n")
    block = transformers.Gemma3nTextMLP.__new__(transformers.Gemma3nTextMLP)
    torch.nn.Module.__init__(block)
    block.activation_sparsity = 0.95
    x = logits(0, 4, 7, 400)
    torch.testing.assert_close(gaussian_topk(x, 20), block._gaussian_topk(x), atol=1e-5, rtol=1e-5)


def test_second_derivative_is_refused():
    x = logits(0, 2, 9).requires_grad_()
    (gradient,) = torch.autograd.grad(gaussian_topk(x, 2).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="gaussian_topk: its second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((torch.ones(3), 0), ValueError, "k: expected 1 to 3, the size of the last axis, got 0"),
        ((torch.ones(3), 4), ValueError, "k: expected 1 to 3, the size of the last axis, got 4"),
        ((torch.ones(3), 1.5), TypeError, "k: expected an integer, got float"),
        ((torch.ones(3, dtype=torch.int64), 1), TypeError, "x: expected float32, .*, got torch.int64"),
        ((torch.ones(2, 0), 1), ValueError, "x: expected .*, n at least 1, got"),
        (("x", 1), TypeError, "x: expected a Tensor, got str"),
    ],
)
def test_bad_input_is_named(args, error, words):
    with pytest.raises(error, match=f"^tamis.gaussian_topk: {words}"):
        gaussian_topk(*args)
