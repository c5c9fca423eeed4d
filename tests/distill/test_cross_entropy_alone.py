"""Without a teacher the loss is cross-entropy: one stream, one exponential a class."""

import pytest
import torch
import torch.nn.functional as F
from helpers import INF, loss_and_gradient, pair
from tamis.distill import reference


def rows(student, target, *, teacher=None, alpha=0.0, scale=None, weight=None, cap=None, smoothing=0.0, stats=False):
    numbers = torch.ones(()), torch.tensor(alpha)
    scale = None if scale is None else torch.tensor(scale, dtype=torch.float64)
    options = ("forward_kl", 0.5, smoothing, -100, weight, None, cap, None, 0.5, 1.0, scale, stats)
    return student, teacher, target, *numbers, *options


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [1, 7, 1500])
def test_matches_float64(isa, dtype, classes):
    student, teacher = pair(9, classes, dtype)
    target = torch.randint(classes, (9,), generator=torch.Generator().manual_seed(0))
    target[3] = -100
    weight = torch.linspace(0.5, 2, 9)
    options = {"cap": 20.0, "smoothing": 0.1, "weight": weight, "scale": 0.25}
    whole = student.detach().double().clone()
    truth = reference.distill_rows_(*rows(whole, target, **options))[0]
    for other in (None, teacher):
        logits = student.detach().clone()
        (loss,) = torch.ops.tamis._distill_rows_(*rows(logits, target, teacher=other, **options))
        torch.testing.assert_close(loss.double(), truth, rtol=2e-6, atol=1e-6)
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
        torch.testing.assert_close(logits.double(), whole, rtol=tolerance, atol=1e-7)


def test_is_torchs_cross_entropy_and_the_teacher_is_not_read(isa):
    student, _ = pair(33, 1111)
    nothing = torch.full((33, 1111), float("nan"))
    target = torch.arange(33)
    loss, gradient = loss_and_gradient(student, nothing, target, alpha=0.0, temperature=3.0, divergence="jsd")
    want = F.cross_entropy(student.double(), target)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
    (want,) = torch.autograd.grad(want, student)
    torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-8)


def test_growing_and_masked_rows(isa):
    student, _ = pair(4, 3000)
    x = student.detach() + torch.linspace(0, 2000, 3000)
    x[1, :2500] = -INF
    x[2, 17] = float("nan")
    x[3] = -INF
    target = torch.full((4,), 2999)
    (loss,) = torch.ops.tamis._distill_rows_(*rows(x, target))
    assert loss.isnan().tolist() == [False, False, True, True]
    torch.testing.assert_close(
        loss[:2], F.cross_entropy(x[:2] * 0.5, target[:2], reduction="none"), rtol=1e-5, atol=1e-3
    )


def test_statistics_and_losses_without_a_gradient_leave_the_logits(isa):
    student, teacher = pair(5, 600)
    logits = student.detach().clone()
    target = torch.arange(5)
    loss, *stats = torch.ops.tamis._distill_rows_(*rows(logits, target, teacher=teacher, alpha=0.3, stats=True))
    assert torch.equal(logits, student)
    want, *true_stats = reference.distill_rows_(*rows(logits, target, teacher=teacher, alpha=0.3, stats=True))
    for got, true in zip((loss, *stats), (want, *true_stats), strict=True):
        torch.testing.assert_close(got, true, rtol=1e-4, atol=1e-5)


def test_a_teacher_is_asked_for_where_alpha_is_not_0():
    student, _ = pair(2, 5)
    with pytest.raises(RuntimeError, match="teacher_logits: expected a tensor where alpha is not 0"):
        torch.ops.tamis._distill_rows_(*rows(student.detach(), torch.zeros(2, dtype=torch.int64), alpha=0.5))
