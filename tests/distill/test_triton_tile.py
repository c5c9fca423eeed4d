"""Logits that come some classes at a time, in Triton's interpreter."""

import pytest
import torch
from interpreter import close, inner, logits, patched_once, small  # noqa: F401
from tamis.distill import cuda, reference

INF, NAN = float("inf"), float("nan")
CLASSES = 77
TILES = ((0, 40), (40, 41), (41, 77))


def options(target=None, *, tau=1.0, alpha=1.0, divergence="forward_kl", smoothing=0.0, weight=None, cap=None):
    """What follows the models, up to the state."""
    numbers = torch.as_tensor(tau), torch.as_tensor(alpha)
    return target, *numbers, divergence, 0.3, smoothing, -100, weight, None, cap, None, 0.5, 1.5


def tiled(student, teacher, given, grad, scale, tiles=TILES):
    """Losses and gradient."""
    real = torch.float64 if student.dtype == torch.float64 else torch.float32
    state = torch.full((student.shape[0], cuda.STATE), NAN, dtype=real)
    stages = ("sum", "compare", "gradient") if given[3] in ("jsd", "total_variation") else ("sum", "gradient")
    written, losses = student.clone(), []
    for stage in stages:
        for begin, end in tiles:
            part = written[:, begin:end]
            beside = None if teacher is None else teacher[:, begin:end]
            last = (grad, scale) if stage == "gradient" else (None, None)
            losses.append(cuda.distill_tile_(part, beside, *given, state, begin, CLASSES, stage, *last))
        if stage != "gradient":
            close(written, student, 0, 0)
    for again in losses[-len(tiles) :]:
        close(again, losses[-len(tiles) - 1], 0, 0)
    return losses[-1], written


def check(student, teacher, given, tiles=TILES):
    real = torch.float64 if student.dtype == torch.float64 else torch.float32
    grad, scale = torch.linspace(0.5, 2, student.shape[0], dtype=real), torch.tensor(0.25, dtype=torch.float64)
    loss, gradient = tiled(student, teacher, given, grad, scale, tiles)
    leaf = student.double().clone().requires_grad_()
    wide = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in given]
    want, _ = reference.row_losses(leaf, leaf.detach() if teacher is None else teacher.double(), *wide)
    (truth,) = torch.autograd.grad((want * grad).sum() * scale, leaf)
    truth[want.isnan()] = NAN  # of every class
    eps, half = torch.finfo(real).eps, torch.finfo(student.dtype).eps
    assert loss.dtype == real
    close(loss, want.detach(), 32 * eps, 64 * eps)
    bound = truth[truth.isfinite()].abs().max().item()
    close(gradient, truth, 2 * half + 16 * eps, 4 * eps + 64 * eps * bound)
    return loss, gradient


@inner
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "total_variation", "logit_mse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_option(divergence, dtype):
    student, teacher = logits(5, CLASSES, dtype=dtype), logits(5, CLASSES, seed=1, dtype=dtype)
    target = torch.tensor([3, -100, 40, CLASSES - 1, CLASSES])  # one in each tile; the last is no class
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])
    alpha, tau = torch.tensor([1.0, 0.3, 0.0, 0.7, 0.5]), torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])
    given = {"divergence": divergence, "weight": weight, "smoothing": 0.1, "cap": 9.0}
    loss, gradient = check(student, teacher, options(target, tau=tau, alpha=alpha, **given))
    assert loss.isnan().tolist() == gradient.isnan().all(1).tolist() == [False] * 4 + [True]
    assert not gradient[1].any()
    check(student, teacher, options(tau=2.0, divergence=divergence))


@inner
def test_no_teacher():
    student, target = logits(4, CLASSES), torch.tensor([0, 40, 76, -100])
    check(student, None, options(target, alpha=0.0, tau=2.0, smoothing=0.1))
    nothing = torch.full_like(student, NAN)
    assert check(student, nothing, options(target, alpha=0.0))[0].isfinite().all()
    with pytest.raises(RuntimeError, match="teacher_logits: expected a tensor where alpha is not 0"):
        tiled(student, None, options(target, alpha=0.5), None, None)


@inner
def test_tiles_that_grow_shrink_and_hold_no_class():
    student, teacher = logits(4, CLASSES), logits(4, CLASSES, seed=1)
    student[0] += torch.linspace(0, 300, CLASSES)
    student[1] += torch.linspace(0, -300, CLASSES)
    student[2, :40] = teacher[2, :40] = -INF  # the whole first tile
    student[3, 60] = NAN
    loss, _ = check(student, teacher, options(torch.tensor([1, 2, 60, 3]), tau=2.0, alpha=0.5))
    assert loss.isnan().tolist() == [False, False, False, True]


@inner
def test_one_tile_is_the_row_kernel():
    student, teacher, given = logits(3, CLASSES), logits(3, CLASSES, seed=1), options(tau=2.0)
    one = torch.ones((), dtype=torch.float64)
    loss, gradient = tiled(student, teacher, given, one, one, ((0, CLASSES),))
    whole = student.clone()
    assert torch.equal(cuda.distill_rows_(whole, teacher, *given, one, False)[0], loss)
    assert torch.equal(whole, gradient)


@inner
def test_refusals():
    x, state, one = logits(2, 9), torch.zeros(2, cuda.STATE), torch.ones(())
    for changed, words in (
        ((state, 5, 13, "sum", None, None), "first: expected 0 to 4"),
        ((state, 0, 9, "all", None, None), "stage: expected sum or compare or gradient"),
        ((state[:, :8], 0, 9, "sum", None, None), "state: expected contiguous torch.float32"),
        ((state, 0, 9, "gradient", None, one), "grad, gradient_scale: expected tensors"),
    ):
        with pytest.raises(RuntimeError, match="tamis._distill_tile_: " + words):
            cuda.distill_tile_(x, x, *options(), *changed)
    assert cuda.distill_tile_(x[:0], x[:0], *options(), state[:0], 0, 9, "sum", None, None).shape == (0,)
