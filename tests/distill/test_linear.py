import pytest
import tamis
import torch
import torch.nn.functional as F
from helpers import DIVERGENCES, named
from tamis.distill import distill_loss, linear_cross_entropy, linear_distill_loss
from torch.utils._python_dispatch import TorchDispatchMode

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def models(rows=50, classes=300, dtype=torch.float64, size=16, other=12, seed=0):
    """Hidden states, head and bias of student and teacher; the student's are leaves."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, size), (classes, size), (classes,)), ((rows, other), (classes, other), (classes,))
    student, teacher = ([torch.randn(*s, generator=generator).mul(0.7).to(dtype) for s in model] for model in shapes)
    return [x.requires_grad_() for x in student], teacher


def labels(rows, classes, ignored=5):
    target = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(1))
    target[::ignored] = -100
    return target


def run(student, teacher, target=None, *, impl="auto", upstream=1.0, **options):
    """Loss, and gradients of hidden states, head and bias."""
    (h, w, b), (g, u, c) = student, teacher
    loss = linear_distill_loss(h, w, g, u, target, student_bias=b, teacher_bias=c, impl=impl, **options)
    leaves = [x for x in (h, w, b) if x is not None]
    return [loss.detach(), *torch.autograd.grad((loss * upstream).sum(), leaves)]


def double(tensors):
    return [None if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in tensors]


def close(got, want, tolerance):
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape
        assert (x.double() - y).abs().max() <= tolerance * y.abs().max(), (x, y)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk", [None, 1, 7])
@pytest.mark.parametrize("chosen", DIVERGENCES, ids=named)
def test_float64_is_the_loss_of_whole_logits(isa, chosen, chunk, reduction):
    student, teacher = models()
    per_row = torch.rand(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weight = per_row.clone()
    weight[3] = 0
    every = {
        **{"temperature": 0.5 + per_row, "alpha": per_row, "label_smoothing": 0.1, "row_weight": weight},
        **{"student_softcap": 5.0, "teacher_softcap": 4.0, "student_logit_scale": 0.7, "vocab_size": 290},
    }
    upstream = per_row - 0.5 if reduction == "none" else -1.7
    for target, options in ((None, {"temperature": 2.0}), (labels(50, 290), every)):
        both = [
            run(student, teacher, target, impl=impl, chunk_size=chunk, reduction=reduction, upstream=upstream,
                **chosen, **options)
            for impl in ("auto", "reference")
        ]  # fmt: skip
        close(*both, TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_other_dtypes(isa, dtype, reduction):
    for divergence in ("forward_kl", "reverse_kl", "jsd", "logit_mse"):
        student, teacher = models(70, 1100, dtype)
        options = {"alpha": 0.6, "temperature": 2.0, "divergence": divergence, "reduction": reduction}
        got = run(student, teacher, labels(70, 1100), chunk_size=16, **options)
        want = run(double(student), double(teacher), labels(70, 1100), impl="reference", **options)
        assert [x.dtype for x in got] == [torch.float32, dtype, dtype, dtype]
        close(got, want, TOLERANCE[dtype])


def test_a_head_wider_than_the_rows_is_recomputed_in_half_precision():
    student, teacher = models(20, 400, torch.bfloat16, size=64)
    (h, w, _), (g, u, _) = student, teacher
    assert tamis.explain("linear_distill_loss", h, w, g, u, chunk_size=8).kernel.startswith("tiled over simd")
    options = {"temperature": 2.0, "chunk_size": 8}
    close(run(student, teacher, **options), run(double(student), double(teacher), impl="reference", **options), 3e-2)


def test_the_rule(isa):
    (h, w, b), (g, u, _) = models(80, 300)
    explain = tamis.explain

    def kernel(*args, **options):
        return explain("linear_distill_loss", *args, **options).kernel.split()[0]

    assert kernel(h, w, g, u) == "chunked"
    assert kernel(h, w, g, u, reduction="none") == "tiled"
    assert kernel(h.detach(), w.detach(), g, u, reduction="none") == "chunked"
    assert kernel(h, w, g, u, divergence="logit_mse") == "gram"
    assert kernel(h[:40], w, g[:40], u, divergence="logit_mse") == "chunked"
    assert kernel(h, w, g, u, divergence="logit_mse", student_softcap=3.0) == "chunked"
    assert kernel(h, w, g, u, divergence="logit_mse", alpha=0.5) == "chunked"
    choice = explain("linear_cross_entropy", h, w, torch.zeros(80, dtype=torch.int64), bias=b, reduction="none")
    assert choice.kernel == f"tiled over simd {torch.ops.tamis._isa()}"
    assert "a gradient a row" in choice.reason
    assert explain("linear_distill_loss", h, w, g, u, impl="reference").kernel == "plain torch"
    assert kernel(h, w[:40], g, u[:40], divergence="logit_mse") == "chunked"
    (h, w, _), (g, u, _) = models(40, 300, torch.float32, size=64)
    with torch.autocast("cpu", torch.bfloat16):
        assert kernel(h, w, g, u, chunk_size=8) == "tiled"
    assert kernel(h, w, g, u, chunk_size=8) == "chunked"


def test_gram_form_of_a_class_masked_in_both_models(isa):
    student, teacher = models(80, 300)
    for _, _, bias in (student, teacher):
        bias.data[3] = -float("inf")
    options = {"divergence": "logit_mse", "temperature": 2.0}
    assert tamis.explain("linear_distill_loss", *student[:2], *teacher[:2], **options).kernel.startswith("gram")
    close(run(student, teacher, **options), run(student, teacher, impl="reference", **options), 1e-11)


def test_gram_form_of_bad_rows():
    (h, w, _), (g, u, _) = (tuple(x.detach() for x in model) for model in models(80, 300))

    def raw(tau, weight):
        one, rest = torch.ones(()), ("logit_mse", 0.5, 0.0, -100, "sum", weight)
        return torch.ops.tamis.linear_distill_loss(h, w, g, u, None, None, None, None, tau, one, *rest)[0]

    assert raw(torch.tensor(-1.0), None).isnan()
    assert raw(torch.tensor(1.0), -torch.ones(80)).isnan()
    assert raw(torch.tensor(1.0), torch.zeros(80)) == 0


def test_statistics_beside_a_gradient_a_row_hold_no_more(isa):
    rows, classes = 300, 500
    (h, w, _), (g, u, _) = models(rows, classes, torch.float32)
    with Largest() as largest:
        linear_distill_loss(h, w, g, u, reduction="none", return_stats=True, chunk_size=20)
    assert 0 < largest.most <= 4 * 20 * max(rows, classes)


def test_triton_is_not_claimed_on_the_cpu(monkeypatch):
    """The row kernels within go by the device, in the interpreter too."""
    (h, w, _), (g, u, _) = models(8, 30)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="impl: expected cpu or reference for CPU tensors"):
        linear_distill_loss(h, w, g, u, impl="triton")
    with pytest.raises(ValueError, match="impl: expected cpu or reference for CPU tensors"):
        linear_cross_entropy(h, w, torch.zeros(8, dtype=torch.int64), impl="triton")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_gram_form_keeps_its_digits_where_models_agree(dtype, bias):
    student, teacher = models(200, 333, dtype, size=10, other=10)
    for x, y in zip(student, teacher, strict=True):  # far apart they would not cancel
        y.copy_(x.detach() * (1 + 2**-6))
    if not bias:
        student, teacher = [*student[:2], None], [*teacher[:2], None]
    weight = torch.linspace(0, 1, 200, dtype=torch.float64)
    options = {"divergence": "logit_mse", "temperature": 3.0, "row_weight": weight, "teacher_logit_scale": 0.99}
    (h, w, _), (g, u, _) = student, teacher
    assert tamis.explain("linear_distill_loss", h, w, g, u, **options).kernel.startswith("gram")
    got = run(student, teacher, labels(200, 333), **options)
    want = run(double(student), double(teacher), labels(200, 333), impl="reference", **options)
    close(got, want, {torch.float64: 1e-11, torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk", [None, 9])
def test_cross_entropy_is_torchs(isa, reduction, chunk):
    (h, w, b), _ = models(60, 500)
    target = labels(60, 500)
    upstream = torch.linspace(-1, 2, 60, dtype=torch.float64) if reduction == "none" else 1.0
    results = []
    for ours in (True, False):
        options = {"label_smoothing": 0.2, "reduction": reduction}
        if ours:
            loss = linear_cross_entropy(h, w, target, bias=b, chunk_size=chunk, **options)
        else:
            loss = F.cross_entropy(F.linear(h, w, b), target, **options)
        results.append([loss.detach(), *torch.autograd.grad((loss * upstream).sum(), (h, w, b))])
    close(*results, 1e-12)


def test_cross_entropys_options():
    (h, w, _), _ = models(3 * 20, 90)
    target, weight = labels(60, 80).view(3, 20), torch.rand(3, 20, dtype=torch.float64)
    options = {"row_weight": weight, "softcap": 4.0, "logit_scale": 0.5, "vocab_size": 80, "num_items_in_batch": 33}
    both = [linear_cross_entropy(h.view(3, 20, -1), w, target, impl=impl, **options) for impl in ("auto", "reference")]
    torch.testing.assert_close(*both, rtol=1e-12, atol=0)
    logits = (4 * torch.tanh(F.linear(h, w) * 0.5 / 4))[:, :80]
    rows = F.cross_entropy(logits, target.flatten(), reduction="none") * weight.flatten()
    torch.testing.assert_close(both[0], rows.sum() / 33, rtol=1e-12, atol=0)
    assert torch.autograd.grad(both[0], w)[0][80:].eq(0).all()


def test_rows_that_do_not_count_may_hold_anything(isa):
    for reduction in ("mean", "none"):
        student, teacher = models(40, 100)
        target, weight = labels(40, 100), torch.ones(40, dtype=torch.float64)
        weight[7] = 0
        options = {"alpha": 0.5, "reduction": reduction, "row_weight": weight}
        want = run(student, teacher, target, **options)
        with torch.no_grad():
            student[0][0], student[0][7], teacher[0][5] = float("nan"), float("inf"), float("nan")
        got = run(student, teacher, target, **options)
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
        assert got[1][[0, 5, 7]].eq(0).all()


def test_statistics_are_those_of_the_logits(isa):
    student, teacher = models(30, 200)
    target = labels(30, 200)
    for reduction in ("mean", "none"):
        (h, w, b), (g, u, c) = student, teacher
        loss, stats = linear_distill_loss(
            h, w, g, u, target, student_bias=b, teacher_bias=c, alpha=0.5, chunk_size=8, reduction=reduction,
            return_stats=True,
        )  # fmt: skip
        logits = F.linear(h, w, b), F.linear(g, u, c)
        want, true = distill_loss(*logits, target, alpha=0.5, reduction=reduction, return_stats=True)
        torch.testing.assert_close(loss, want)
        for x, y in zip(stats, true, strict=True):
            torch.testing.assert_close(x, y)
        loss.sum().backward()


def test_no_rows_and_none_that_count():
    student, teacher = models(0, 30)
    for reduction in ("mean", "none"):
        loss, *gradients = run(student, teacher, reduction=reduction)
        assert loss.eq(0).all()
        assert all(x.eq(0).all() for x in gradients)
    student, teacher = models(6, 30)
    loss, *gradients = run(student, teacher, torch.full((6,), -100), alpha=0.5)
    assert loss == 0
    assert all(x.eq(0).all() for x in gradients)


class Largest(TorchDispatchMode):
    """The most elements a result had."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(x, torch.Tensor):
                self.most = max(self.most, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"divergence": "logit_mse"}])
def test_rows_times_classes_are_never_held(options):
    rows, classes = 3000, 2000
    student, teacher = models(rows, classes, torch.float32)
    student[1].requires_grad_(False), student[2].requires_grad_(False)
    (h, w, b), (g, u, c) = student, teacher
    with Largest() as largest:
        loss = linear_distill_loss(h, w, g, u, student_bias=b, teacher_bias=c, **options)
        loss.sum().backward()
    assert 0 < largest.most <= 4 * rows * classes / 2.8


def test_only_what_is_asked_for_gets_a_gradient():
    for wanted in range(1, 8):
        student, teacher = models(20, 50)
        for i, x in enumerate(student):
            x.requires_grad_(bool(wanted >> i & 1))
        (h, w, b), (g, u, c) = student, teacher
        u.requires_grad_()
        for reduction in ("mean", "none"):
            linear_distill_loss(h, w, g, u, student_bias=b, teacher_bias=c, reduction=reduction).sum().backward()
            assert [x.grad is not None for x in (h, w, b, u)] == [bool(wanted >> i & 1) for i in range(3)] + [False]


def test_backward_twice_and_accumulation():
    for options in ({}, {"reduction": "none"}):
        student, teacher = models(20, 50)
        (h, w, _), (g, u, _) = student, teacher
        loss = linear_distill_loss(h, w, g, u, **options).sum()
        loss.backward(retain_graph=True)
        once = [x.grad.clone() for x in (h, w)]
        loss.backward()
        assert all(torch.equal(x.grad, 2 * y) for x, y in zip((h, w), once, strict=True))
        loss = linear_distill_loss(h, w, g, u, **options).sum()
        (first,) = torch.autograd.grad(loss, h, create_graph=True)
        with pytest.raises(NotImplementedError, match="second derivative"):
            first.sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_whole(reduction):
    student, teacher = models(20, 50, torch.float32)
    (h, w, b), (g, u, _) = student, teacher
    target = labels(20, 50)

    def both(h, w, b, g, u, target):
        soft = linear_distill_loss(h, w, g, u, target, student_bias=b, alpha=0.5, reduction=reduction)
        return (soft + linear_cross_entropy(h * 2, w, target, bias=b, reduction=reduction)).sum()

    want = torch.autograd.grad(both(h, w, b, g, u, target), (h, w, b))
    got = torch.autograd.grad(torch.compile(both, fullgraph=True)(h, w, b, g, u, target), (h, w, b))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


def test_autocast_casts_as_a_linear_layer():
    (h, w, b), (g, u, c) = models(20, 50, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_distill_loss(h, w, g, u, student_bias=b, teacher_bias=c)
        want = distill_loss(F.linear(h, w, b), F.linear(g, u, c))
    torch.testing.assert_close(loss, want, rtol=2e-3, atol=0)
    gradients = torch.autograd.grad(loss, (h, w, b))
    assert {x.dtype for x in gradients} == {torch.float32}
    for x, y in zip(gradients, torch.autograd.grad(want, (h, w, b)), strict=True):
        torch.testing.assert_close(x, y, rtol=0.05, atol=1e-3)


def test_same_bits_for_any_number_of_threads():
    student, teacher = models(300, 700, torch.float32)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(run(student, teacher, labels(300, 700), alpha=0.5))
    torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])  # the products' bits are torch's
    close(results[0], [x.double() for x in results[1]], 1e-5)


def test_other_devices_differentiate_the_reference(monkeypatch):
    monkeypatch.setattr("tamis.common.registry.OWN", ())
    student, teacher = models(20, 50)
    close(run(student, teacher), run(student, teacher, impl="reference"), 0)
    s, t = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    torch.testing.assert_close(
        *(torch.autograd.grad(distill_loss(s, t, impl=impl), s)[0] for impl in ("auto", "reference")), rtol=0, atol=0
    )
