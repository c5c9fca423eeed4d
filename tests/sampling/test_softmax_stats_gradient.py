import pytest
import torch
from helpers import INF, NAN
from tamis.sampling import softmax_stats

FIELDS = ("logsumexp", "entropy", "max_prob", "nll")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def gradient(x, weights, *, impl="auto", **options):
    leaf = x.detach().requires_grad_()
    stats = softmax_stats(leaf, impl=impl, **options)
    total = sum((getattr(stats, name) * w).sum() for name, w in weights.items() if getattr(stats, name) is not None)
    return torch.autograd.grad(total, leaf)[0]


def weights_of(rows, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(rows, generator=generator).to(dtype) for name in FIELDS}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("classes", [1, 2, 17, 70, 1025, 2100])
@pytest.mark.parametrize("every", [False, True])
def test_matches_autograd_of_the_formulas(isa, dtype, classes, every):
    x = torch.randn(7, classes, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    x[1, classes // 2] = 40
    if classes > 2:
        x[2, 1] = -INF
    options = {"target": torch.randint(classes, (7,), generator=torch.Generator().manual_seed(1))}
    options["target"][1] = classes // 2
    if every:
        options |= {"temperature": torch.linspace(0.5, 3, 7), "softcap": 9.0, "logit_scale": 0.7}
        options["valid_mask"] = torch.rand(7, classes, generator=torch.Generator().manual_seed(2)) < 0.7
        options["valid_mask"].scatter_(1, options["target"].unsqueeze(-1), True)
    got = gradient(x, weights_of(7, torch.float64 if dtype == torch.float64 else torch.float32), **options)
    truth = gradient(x.double(), weights_of(7), impl="reference", **options)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), truth, rtol=TOLERANCE[dtype], atol=5 * TOLERANCE[dtype])


def test_each_field_alone(isa):
    x, target = torch.randn(5, 1200).mul(2), torch.randint(1200, (5,))
    for name in FIELDS:
        weights = {name: torch.randn(5)}
        truth = gradient(x.double(), {name: weights[name].double()}, impl="reference", target=target)
        torch.testing.assert_close(gradient(x, weights, target=target).double(), truth, rtol=2e-5, atol=1e-7)
    without = gradient(x, {"entropy": torch.ones(5)})
    torch.testing.assert_close(without, gradient(x, {"entropy": torch.ones(5)}, target=target), rtol=0, atol=0)


def test_only_rows_that_are_asked_for(isa):
    """So that a bad row left out of a loss leaves the others' weights finite."""
    x = torch.randn(4, 1100)
    x[1, 3], x[2] = NAN, -INF
    keep = torch.tensor([1.0, 0.0, 0.0, 1.0])
    leaf = x.clone().requires_grad_()
    (torch.where(keep > 0, softmax_stats(leaf).entropy, 0).sum()).backward()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[1:3] == 0).all()
    bad = gradient(x, {"entropy": torch.ones(4)})
    assert bad[1].isnan().all()
    assert bad[[0, 3]].isfinite().all()
    hidden = gradient(x, {"entropy": torch.ones(4)}, valid_mask=x == x)
    assert hidden[1].isfinite().all()
    assert hidden[1, 3] == 0


def test_large_gradients_are_written_past_the_caches(isa):
    """4 MB and up, at any alignment."""
    x = torch.randn(300 * 4001 + 1)[1:].view(300, 4001)
    truth = gradient(x.double(), weights_of(300), impl="reference", target=torch.zeros(300, dtype=torch.long))
    got = gradient(x, weights_of(300, torch.float32), target=torch.zeros(300, dtype=torch.long))
    torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=1e-6)


def test_not_every_field_has_one():
    leaf = torch.randn(3, 9, requires_grad=True)
    stats = softmax_stats(leaf, target=torch.zeros(3, dtype=torch.long))
    assert [name for name, x in zip(stats._fields, stats, strict=True) if x.requires_grad] == list(FIELDS)
    (gradient,) = torch.autograd.grad(stats.entropy.sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="tamis.softmax_stats: its second derivative is not implemented"):
        gradient.sum().backward()
    assert not softmax_stats(leaf.detach()).entropy.requires_grad
    with torch.no_grad():
        assert not softmax_stats(leaf).entropy.requires_grad


def test_forward_mode_and_transforms_are_refused():
    x = torch.randn(3, 5)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda t: torch.ops.tamis.softmax_stats(t, None, torch.ones(()))[1], (x,), (x,))
    with pytest.raises(NotImplementedError, match="torch.func transforms"):
        torch.func.vmap(lambda t: softmax_stats(t).entropy)(x)


def test_compiles_without_a_break():
    torch._dynamo.reset()

    def score(x, target, tau):
        stats = softmax_stats(x, target=target, temperature=tau)
        return stats.entropy.sum() + stats.nll.sum() + stats.normalized_entropy.sum() + stats.energy.sum(), stats.margin

    x, target, tau = torch.randn(6, 40, requires_grad=True), torch.randint(40, (6,)), torch.rand(6) + 0.5
    want, margin = score(x, target, tau)
    got, other = torch.compile(score, fullgraph=True, backend="aot_eager")(x, target, tau)
    torch.testing.assert_close(got, want)
    assert torch.equal(margin, other)
    torch.testing.assert_close(*(torch.autograd.grad(value, x)[0] for value in (got, want)))
