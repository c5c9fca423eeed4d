"""A chunk's rows, with a teacher and without, in Triton's interpreter."""

import pytest
import torch
from interpreter import close, inner, logits, patched_once, small  # noqa: F401
from tamis.distill import cuda, reference

INF, NAN = float("inf"), float("nan")


def options(target=None, *, tau=1.0, alpha=0.0, divergence="forward_kl", smoothing=0.0, weight=None, vocab=None,
            cap=None, scale=None, stats=False):  # fmt: skip
    """What follows the models in distill_rows_; scale: of the gradient."""
    numbers = torch.tensor(tau), torch.as_tensor(alpha)
    scale = None if scale is None else torch.tensor(scale, dtype=torch.float64)
    return target, *numbers, divergence, 0.3, smoothing, -100, weight, vocab, cap, None, 0.5, 1.0, scale, stats


def check(student, teacher, *args):
    """Losses, gradient, statistics: within a few roundings of the reference in float64."""
    truth = student.double().clone()
    got, written = student.clone(), args[-2] is not None
    loss, *stats = cuda.distill_rows_(got, teacher, *args)
    want, *true_stats = reference.distill_rows_(truth, None if teacher is None else teacher.double(), *args)
    assert loss.dtype == (torch.float64 if student.dtype == torch.float64 else torch.float32)
    close(loss, want, 4e-6, 4e-6)
    for value, true in zip(stats, true_stats, strict=True):
        close(value, true, 1e-5, 1e-5) if value.is_floating_point() else torch.testing.assert_close(value, true)
    if written:
        truth[want.isnan()] = NAN  # of every class
        close(got, truth, 2 * torch.finfo(student.dtype).eps, 4e-7)
    else:
        assert torch.equal(got, student)
    return loss, got


@inner
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [1, 33, 77])
def test_no_teacher(dtype, classes):
    student = logits(5, classes, dtype=dtype)
    target = torch.tensor([0, -100, classes - 1, classes // 2, classes])  # the last is out of range
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    args = options(target, weight=weight, smoothing=0.1, cap=20.0, scale=0.25)
    loss, gradient = check(student, None, *args)
    assert loss.isnan().tolist() == [False] * 4 + [True]
    assert loss[1] == 0
    assert not gradient[1].any()
    check(student, None, *options(target))


@inner
def test_alpha_0_reads_no_teacher():
    student, nothing, target = logits(3, 40), torch.full((3, 40), NAN), torch.arange(3)
    args = options(target, tau=3.0, divergence="jsd", scale=1.0)
    loss, gradient = check(student, nothing, *args)
    again = student.clone()
    assert torch.equal(cuda.distill_rows_(again, None, *args)[0], loss)
    assert torch.equal(again, gradient)
    cuda.distill_rows_(again, again, *args)  # not read: it may be the memory that is written


@inner
def test_without_a_teacher_a_row_that_asks_for_one_is_nan():
    student, target = logits(3, 40), torch.arange(3)
    args = options(target, alpha=torch.tensor([0.0, 0.5, 0.0]), scale=1.0)
    whole = student.clone()
    (loss,) = cuda.distill_rows_(whole, None, *args)
    assert loss.isnan().tolist() == whole.isnan().all(1).tolist() == [False, True, False]
    with pytest.raises(RuntimeError, match="teacher_logits: expected a tensor where alpha is not 0"):
        cuda.distill_rows_(student, None, *options(target, alpha=0.5))
    assert cuda.distill_rows_(student[:0], None, *options(target[:0], alpha=0.5))[0].shape == (0,)


@inner
def test_growing_and_masked_rows_without_a_teacher():
    student = logits(4, 70) + torch.linspace(0, 1000, 70)
    student[1, :60] = -INF
    student[2, 17] = NAN
    student[3] = -INF
    target = torch.full((4,), 69)
    (loss,) = cuda.distill_rows_(student, None, *options(target))
    (want,) = reference.distill_rows_(student.double(), None, *options(target))
    assert loss.isnan().tolist() == [False, False, True, True]
    close(loss[:2], want[:2], 1e-6, 1e-4)


@inner
@pytest.mark.parametrize("divergence", ["forward_kl", "total_variation"])
def test_with_a_teacher(divergence):
    student, teacher = logits(4, 40), logits(4, 44, seed=1)
    args = options(
        torch.tensor([0, -100, 2, 37]), tau=2.0, alpha=0.3, divergence=divergence, vocab=38, scale=0.5, stats=True
    )
    check(student, teacher, *args)


@inner
def test_statistics_without_a_teacher_are_the_students():
    student, args = logits(3, 40), options(torch.arange(3), scale=1.0, stats=True)
    check(student, None, *args)


@inner
def test_overwriting_refuses_what_it_would_spoil():
    memory, args = logits(6, 8), options(torch.arange(3), alpha=0.5, scale=1.0)
    with pytest.raises(RuntimeError, match="teacher_logits in memory apart"):
        cuda.distill_rows_(memory[:3], memory[2:5], *args)
    with pytest.raises(RuntimeError, match="rows that do not overlap"):
        cuda.distill_rows_(memory[:1].expand(3, 8), None, *options(torch.arange(3), scale=1.0))
