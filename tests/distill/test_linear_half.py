"""Heads in float16: sums over rows outgrow it, and gradients divided by the rows fall below it."""

import pytest
import tamis
import torch
from tamis.distill import linear_cross_entropy, linear_distill_loss


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(loss, *inputs):
    return [x.double() for x in torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("chunk", [None, 20_000])
def test_a_sum_over_many_rows(chunk):
    rows = 16_384
    hidden, target = torch.full((rows, 8), 8.0).half(), torch.zeros(rows, dtype=torch.int64)
    weight, bias = seeded(32, 8).mul(0.01).half().requires_grad_(), torch.zeros(32).half().requires_grad_()
    got = gradients(linear_cross_entropy(hidden, weight, target, bias=bias, chunk_size=chunk), weight, bias)
    wide = [x.detach().double().requires_grad_() for x in (weight, bias)]
    loss = linear_cross_entropy(hidden.double(), wide[0], target, bias=wide[1], impl="reference")
    torch.testing.assert_close(got, gradients(loss, *wide), rtol=3e-3, atol=1e-4)


def test_a_sum_over_many_rows_of_squares():
    hidden = seeded(20_000, 4).add(3).half()
    weight, other = (seeded(64, 4, seed=seed).half() for seed in (1, 2))
    weight.requires_grad_()
    options = {"divergence": "logit_mse"}
    assert tamis.explain("linear_distill_loss", hidden, weight, hidden, other, **options).kernel.startswith("gram")
    got = gradients(linear_distill_loss(hidden, weight, hidden, other, **options), weight)
    wide = weight.detach().double().requires_grad_()
    loss = linear_distill_loss(hidden.double(), wide, hidden.double(), other.double(), impl="reference", **options)
    torch.testing.assert_close(got, gradients(loss, wide), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("scale", [1.0, 4096.0])
def test_small_gradients_survive_the_tiles(reduction, scale):
    """Of models that nearly agree, with and without a gradient scaler."""
    rows, size, classes = 300, 320, 16_000
    hidden, weight = seeded(rows, size), seeded(classes, size, seed=1) / size**0.5
    other = (hidden + 0.3 * seeded(rows, size, seed=2)).half()
    leaves = [x.half().requires_grad_() for x in (hidden, weight)]
    frozen = leaves[1].detach()
    upstream = scale * (torch.linspace(0.1, 1, rows) / rows if reduction == "none" else torch.ones(()))
    assert tamis.explain("linear_distill_loss", *leaves, other, frozen, reduction=reduction).kernel.startswith("tiled")
    loss = linear_distill_loss(*leaves, other, frozen, reduction=reduction)
    got = gradients((loss * upstream).sum(), *leaves)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    loss = linear_distill_loss(*wide, other.double(), frozen.double(), reduction=reduction, impl="reference")
    for x, y in zip(got, gradients((loss * upstream).sum(), *wide), strict=True):
        assert (x - y).norm() < 0.02 * y.norm()
