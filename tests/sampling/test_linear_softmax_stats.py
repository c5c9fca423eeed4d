import pytest
import tamis
import torch
import torch.nn.functional as F
from tamis.sampling import linear_softmax_stats, softmax_stats
from torch.utils._python_dispatch import TorchDispatchMode

FIELDS = ("logsumexp", "entropy", "max_prob", "nll")
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def tensors(rows=(5, 10), classes=300, dtype=torch.float64, size=16):
    generator = torch.Generator().manual_seed(0)
    shapes = (*rows, size), (classes, size), (classes,)
    return [torch.randn(*s, generator=generator).mul(0.7).to(dtype).requires_grad_() for s in shapes]


def options(rows=(5, 10), classes=300, mask="rows"):
    generator = torch.Generator().manual_seed(1)
    shapes = {"rows": (*rows, classes), "classes": (classes,), "outer": (rows[0], 1, classes), "number": (*rows, 1)}
    valid = torch.rand(shapes[mask], generator=generator) < 0.8
    target = torch.randint(classes, rows, generator=generator)
    if mask == "classes":
        valid[:] = True
        valid[7] = False
    return {
        **{"target": target, "temperature": torch.rand(rows, generator=generator) + 0.5, "valid_mask": valid},
        **{"softcap": 5.0, "logit_scale": 0.8},
    }


def run(function, leaves, weights, **kwargs):
    stats = function(*leaves, **kwargs)
    parts = [(w * getattr(stats, name)).double() for name, w in weights.items()]
    total = sum(torch.where(part.isfinite(), part, 0).sum() for part in parts)
    return [stats, torch.autograd.grad(total, [x for x in leaves if x is not None])]


def whole(hidden, weight, bias=None, **kwargs):
    return softmax_stats(F.linear(hidden, weight, bias), impl="reference", **kwargs)


@pytest.mark.parametrize("mask", ["rows", "classes", "outer", "number"])
@pytest.mark.parametrize("chunk", [None, 1, 7])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_is_softmax_stats_of_whole_logits(isa, dtype, chunk, mask):
    weights = {name: torch.randn(5, 10, generator=torch.Generator().manual_seed(2)) for name in FIELDS}
    leaves = tensors(dtype=dtype)
    kwargs = options(mask=mask)
    if mask == "classes":
        kwargs["target"] = kwargs["target"].clamp_min(8)
    got, gradients = run(linear_softmax_stats, leaves, weights, chunk_size=chunk, **kwargs)
    double = [x.detach().double().requires_grad_() for x in leaves]
    truth, true_gradients = run(whole, double, weights, **kwargs)
    tolerance = TOLERANCE[dtype]
    for name, ours, true in zip(got._fields, got, truth, strict=True):
        if name != "argmax":
            torch.testing.assert_close(
                ours.double(), true, rtol=tolerance, atol=tolerance * 10, equal_nan=True, msg=name
            )
    for ours, true, leaf in zip(gradients, true_gradients, leaves, strict=True):
        assert ours.dtype == leaf.dtype
        assert (ours.double() - true).abs().max() <= tolerance * true.abs().max()


def test_without_bias_target_or_gradient(isa):
    hidden, weight, _ = tensors(dtype=torch.float32)
    got = linear_softmax_stats(hidden.detach(), weight.detach())
    want = softmax_stats(hidden.detach() @ weight.detach().T)
    assert got.nll is got.el2n is None
    assert not got.entropy.requires_grad
    for ours, other in zip(got[:4], want[:4], strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.normalized_entropy, want.normalized_entropy, rtol=1e-5, atol=1e-5)
    for wanted in range(2):
        leaves = [x.detach().requires_grad_(i == wanted) for i, x in enumerate((hidden, weight))]
        (gradient,) = torch.autograd.grad(linear_softmax_stats(*leaves).entropy.sum(), leaves[wanted])
        (other,) = torch.autograd.grad(whole(*leaves).entropy.sum(), leaves[wanted])
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_float16_gradients_neither_vanish_nor_overflow(isa, scale):
    hidden, weight, _ = tensors((60,), 50, torch.float16)
    upstream = torch.full((60,), scale)
    double = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    _, (of_hidden, of_weight) = run(linear_softmax_stats, [hidden, weight], {"entropy": upstream})
    _, truth = run(whole, double, {"entropy": upstream})
    limit = torch.finfo(torch.float16)
    for ours, true in zip((of_hidden, of_weight), truth, strict=True):
        small = true.abs() < 60000
        torch.testing.assert_close(
            ours.double()[small], true[small], rtol=2e-2, atol=max(limit.tiny / 500, scale * 4e-3)
        )


def test_float16_rows_have_a_scale_of_their_own(isa):
    hidden, weight, _ = tensors((64,), 50, torch.float16)
    upstream = torch.logspace(-3, 3, 64)
    double = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    _, (of_hidden, _) = run(linear_softmax_stats, [hidden, weight], {"entropy": upstream}, chunk_size=7)
    _, (true, _) = run(whole, double, {"entropy": upstream})
    of_row = (of_hidden.double() - true).abs().amax(-1) / true.abs().amax(-1)
    assert of_row.max() < 2e-2


class Largest(TorchDispatchMode):
    """The largest tensor that any op makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_never_holds_the_logits():
    hidden, weight, bias = tensors((4, 100), 1000, torch.float32)
    mask = torch.rand(4, 1, 1000) < 0.9
    with Largest() as largest:
        stats = linear_softmax_stats(hidden, weight, bias, valid_mask=mask, chunk_size=16)
        stats.entropy.sum().backward()
    assert largest.numel <= 16 * 1000
    plain = tamis.explain("linear_softmax_stats", hidden, weight, bias)
    assert plain.kernel.startswith("chunked over simd")
    assert plain.reason == "256 of 400 rows at a time"


def test_second_derivatives_and_autocast():
    hidden, weight, bias = tensors((6,), 30, torch.float32)
    (gradient,) = torch.autograd.grad(
        linear_softmax_stats(hidden, weight, bias).entropy.sum(), weight, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="tamis.linear_softmax_stats: its second derivative"):
        gradient.sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_softmax_stats(hidden, weight, bias)
        want = softmax_stats(F.linear(hidden, weight, bias))
    torch.testing.assert_close(got.entropy, want.entropy)


def test_compiles_without_a_break():
    torch._dynamo.reset()
    hidden, weight, bias = tensors((6,), 30, torch.float32)

    def score(*leaves):
        return linear_softmax_stats(*leaves).normalized_entropy.sum()

    want = torch.autograd.grad(score(hidden, weight, bias), (hidden, weight, bias))
    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(hidden, weight, bias), (hidden, weight, bias))
    for ours, other in zip(got, want, strict=True):
        torch.testing.assert_close(ours, other)
