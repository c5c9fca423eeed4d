import math

import pytest
import torch
from helpers import assert_as_good_as_torch, models
from hypothesis import given
from tamis.distill import deviation_stats, distill_loss

OPTIONS = {"student_softcap": 20.0, "teacher_logit_scale": 0.5}


@given(logits=models())
def test_matches_float64(isa, logits):
    student, teacher = logits
    got = deviation_stats(student, teacher, **OPTIONS)
    torchs = deviation_stats(student, teacher, impl="reference", **OPTIONS)
    truth = deviation_stats(student.double(), teacher.double(), impl="reference", **OPTIONS)
    size = torch.maximum(*[x.double().abs().nan_to_num(0, 0, 0).amax(-1) for x in logits])
    infinite = (teacher == math.inf).any(-1)  # softmax is then NaN, and so is all that is made from it
    classes = student.shape[1]
    for name, ours, theirs, true in zip(got._fields, got, torchs, truth, strict=True):
        if ours.dtype.is_floating_point:
            true = torch.where(infinite, math.nan, true) if name.startswith("teacher") else true
            assert_as_good_as_torch(ours, theirs, true, true.abs() + size + 1 + math.log(classes), classes)
        elif not OPTIONS["student_softcap"] or name == "teacher_argmax":
            assert torch.equal(ours, true), name


@pytest.mark.parametrize("margin", [5.0, 30.0, 90.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_log_odds_are_exact_at_any_margin(isa, dtype, margin):
    """From 1 - p they would be inf from a margin of 17 on in float32."""
    logits = torch.randn(4, 1800).mul(0.1)
    logits[torch.arange(4), torch.tensor([0, 1023, 1024, 1799])] = margin
    logits = logits.to(dtype)
    stats = deviation_stats(logits, logits)
    truth = deviation_stats(logits.double(), logits.double(), impl="reference")
    torch.testing.assert_close(stats.teacher_log_odds.double(), truth.teacher_log_odds, rtol=2e-7, atol=0)
    assert torch.equal(stats.teacher_log_odds, stats.student_log_odds)
    assert stats.agree.all()


def test_ties_take_the_lowest_index(isa):
    logits = torch.zeros(2, 1100)
    logits[0, [3, 700]] = logits[1, [600, 1090]] = 1
    stats = deviation_stats(logits, logits)
    assert stats.teacher_argmax.tolist() == stats.student_argmax.tolist() == [3, 600]
    others = math.log(1098 + math.e)
    torch.testing.assert_close(stats.teacher_log_odds, torch.full((2,), 1 - others))


@pytest.mark.parametrize("classes", [3, 513, 1537])
def test_a_nan_alone_in_its_block_shows(isa, classes):
    logits = torch.zeros(2, classes)
    logits[0, -1] = math.nan
    stats = deviation_stats(torch.zeros(2, classes), logits)
    assert stats.teacher_argmax[0] == classes - 1
    for field in (stats.teacher_logsumexp, stats.teacher_entropy, stats.teacher_max_prob, stats.teacher_log_odds):
        assert field.isnan().tolist() == [True, False]


def test_one_class(isa):
    stats = deviation_stats(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
    assert stats.teacher_max_prob == stats.student_max_prob == 1
    assert stats.teacher_log_odds == stats.student_log_odds == math.inf
    assert stats.teacher_entropy == 0


def test_come_with_the_loss_at_temperature_1(isa):
    student, teacher = torch.randn(2, 3, 40, requires_grad=True), torch.randn(2, 3, 50)
    target = torch.zeros(2, 3, dtype=torch.long)
    loss, stats = distill_loss(student, teacher, target, alpha=0.5, temperature=3.0, vocab_size=40, return_stats=True)
    alone = deviation_stats(student, teacher, vocab_size=40)
    assert all(torch.equal(a, b) for a, b in zip(stats, alone, strict=True))
    assert not any(field.requires_grad for field in (*stats, *alone))
    assert loss.requires_grad
    assert stats.agree.shape == (2, 3)


def test_are_of_the_logits_before_they_are_overwritten(isa):
    student, teacher = torch.randn(5, 600, requires_grad=True), torch.randn(5, 600)
    alone = deviation_stats(student, teacher)
    loss, stats = distill_loss(student * 1, teacher, overwrite_logits=True, return_stats=True)
    loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(stats, alone, strict=True))
    assert torch.equal(student.grad, torch.autograd.grad(distill_loss(student, teacher), student)[0])


def test_errors():
    with pytest.raises(ValueError, match="tamis.deviation_stats: vocab_size: expected the classes to read of 3 and 4"):
        deviation_stats(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(RuntimeError, match="tamis.deviation_stats"):
        torch.ops.tamis.deviation_stats(torch.zeros(2, 3), torch.zeros(2, 4))
