"""Losses against K entries of a row, and soft targets, in Triton's interpreter."""

import pytest
import torch
from interpreter import close, inner, logits, patched_once, small  # noqa: F401
from tamis.distill import cuda_topk, reference_topk, soft_cross_entropy, topk_distill_loss

INF, NAN = float("inf"), float("nan")
CLASSES = 77
CHOSEN = [
    ("forward_kl", "bucket"), ("forward_kl", "renorm"), ("reverse_kl", "bucket"), ("jsd", "bucket"),
    ("total_variation", "bucket"),
]  # fmt: skip


def entries(teacher, count, tau=1.0, seed=2):
    """values, indices, logsumexp of dense logits: the `count` largest of each row, in any order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(count, generator=generator) for _ in teacher])
    indices = teacher.topk(count, -1).indices.gather(-1, order)
    wide = teacher.float() if teacher.dtype != torch.float64 else teacher
    return teacher.gather(-1, indices), indices, (wide / torch.as_tensor(tau).view(-1, 1)).logsumexp(-1)


def options(target=None, *, tail="bucket", tau=1.0, alpha=1.0, divergence="forward_kl", smoothing=0.0,
            reduction="mean", weight=None, items=None, vocab=None, caps=(None, None), scales=(1.0, 1.0)):  # fmt: skip
    """What follows the entries."""
    numbers = torch.as_tensor(tau), torch.as_tensor(alpha)
    return (target, tail, *numbers, divergence, 0.3, smoothing, -100, reduction, weight, items, vocab, *caps, *scales,
            False)  # fmt: skip


def wide(*values):
    return [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in values]


def check(student, stored, given, rounding=1.0):
    """Loss and gradient: within a few roundings of the reference in float64."""
    loss, gradient, factor = cuda_topk.topk_distill_loss_forward(student, *stored, *given)
    want = reference_topk.topk_distill_loss_forward(*wide(student, *stored, *given))
    return near(student, (loss, gradient, factor), want, rounding)


def near(student, got, want, rounding=1.0):
    loss, gradient, factor = got
    true_loss, true_gradient, _ = want
    real = torch.float64 if student.dtype == torch.float64 else torch.float32
    assert loss.dtype == factor.dtype == real
    assert gradient.dtype == student.dtype
    if loss.dim():
        true_gradient[true_loss.isnan()] = NAN  # of every class
    eps, half = rounding * torch.finfo(real).eps, torch.finfo(student.dtype).eps
    bound = true_gradient[true_gradient.isfinite()].abs().max().item() if true_gradient.isfinite().any() else 0.0
    close(loss, true_loss, 32 * eps, 64 * eps)
    close(gradient.double() * factor, true_gradient, 2 * half + 16 * eps, 4 * eps + 64 * eps * bound)
    return loss, gradient


@inner
@pytest.mark.parametrize(("divergence", "tail"), CHOSEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_option(divergence, tail, dtype):
    student, teacher = logits(5, CLASSES, dtype=dtype), logits(5, CLASSES, seed=1, dtype=dtype)
    tau = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])
    stored = entries(teacher, 9, tau)
    target = torch.tensor([3, -100, CLASSES - 1, stored[1][3, 4], 0])  # one of them a member
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0])
    given = {"tail": tail, "divergence": divergence, "tau": tau, "alpha": torch.tensor([1.0, 0.3, 0.5, 0.7, 0.5])}
    check(student, stored, options(target, smoothing=0.1, weight=weight, caps=(9.0, None), scales=(0.5, 1.0), **given))
    alone = given | {"alpha": 1.0, "tau": 1.0}
    check(student, entries(teacher, 9), options(reduction="none", **alone))
    check(student, entries(teacher, 9), options(target, **given | {"tau": 1.0}))  # one softmax serves both


@inner
@pytest.mark.parametrize("count", [1, 8, 20, 64, 77])  # of 77: blocks of 8 entries, whole and not; no tail
@pytest.mark.parametrize(("divergence", "tail"), CHOSEN[:3])
def test_how_many_entries(count, divergence, tail):
    student, stored = logits(3, CLASSES), entries(logits(3, CLASSES, seed=1), count, 2.0)
    given = options(torch.tensor([0, 40, 76]), tail=tail, divergence=divergence, tau=2.0, alpha=0.4)
    loss, _ = check(student, stored, given)
    assert torch.equal(cuda_topk.topk_distill_loss(student, *stored, *given)[0], loss)


@inner
@pytest.mark.parametrize("margin", [46.0, 150.0, 2000.0])  # the tail's probability is 1e-20, 1e-65, none
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("target", [None, torch.tensor([5, 6, 70])])
def test_a_tail_that_vanishes(margin, divergence, target):
    teacher, student = logits(3, CLASSES, seed=1), logits(3, CLASSES)
    stored = entries(teacher, 6)
    student.scatter_add_(1, stored[1], torch.full_like(stored[0], margin))
    given = options(target, divergence=divergence, alpha=0.6 if target is not None else 1.0, reduction="none")
    loss, gradient = check(student, stored, given, rounding=8)
    assert loss.isfinite().all()
    if divergence == "forward_kl" and target is None:  # a class of the tail is pulled up by its share of the teacher's
        rest = torch.ones_like(student).scatter(1, stored[1], 0) == 1
        left = 1 - (stored[0].double() - stored[2].double()[:, None]).exp().sum(-1)
        close(torch.where(rest, gradient, 0).sum(-1), -left, 1e-4, 0)


@inner
def test_a_teacher_that_leaves_nothing():
    student, teacher = logits(3, CLASSES), logits(3, CLASSES, seed=1)
    values, indices, logsumexp = entries(teacher, 6)
    logsumexp[0] = values[0].logsumexp(-1) - 1e-3  # more than all
    check(student, (values, indices, logsumexp), options(reduction="none"))
    student[1] = torch.full_like(student[1], -INF).scatter(0, indices[1], student[1, indices[1]])
    values[2] = -INF  # all in the tail
    loss, _ = check(student, (values, indices, logsumexp), options(reduction="none"))
    assert loss.isinf().tolist() == [False, True, False]


@inner
@pytest.mark.parametrize("target", [None, torch.tensor([0, 1, 2, 3, 4, 5])])
def test_bad_indices_spoil_their_row_alone(target):
    student, (values, indices, logsumexp) = logits(6, CLASSES), entries(logits(6, CLASSES, seed=1), 9)
    indices[0, 3], indices[1, 8], indices[2, 0] = CLASSES, -1, indices[2, 5]
    indices[3, 2] = 1 << 40
    alpha = torch.tensor([0.5, 0.5, 0.5, 0.0, 0.5, 0.5]) if target is not None else 1.0
    given = options(target, alpha=alpha, reduction="none")
    loss, gradient = check(student, (values, indices, logsumexp), given)  # rows of a program share its bits
    bad = [True, True, True, target is None, False, False]  # row 3 looks at no teacher
    assert loss.isnan().tolist() == gradient.isnan().all(1).tolist() == gradient.isnan().any(1).tolist() == bad


@inner
def test_nan_and_masked_rows():
    student, stored = logits(4, CLASSES), entries(logits(4, CLASSES, seed=1), 9)
    student[0, stored[1][0, 2]] = NAN
    student[1, (stored[1][1, 0] + 1) % CLASSES] = NAN
    student[2, 20:60] = -INF
    stored[0][3, 1] = NAN
    loss, _ = check(student, stored, options(reduction="none", divergence="reverse_kl"))
    assert loss.isnan().tolist() == [True, True, False, True]


@inner
def test_padding_strides_and_overwriting():
    memory, teacher = torch.full((3, 2, 90), NAN), logits(6, 50, seed=1)
    student = memory[..., 5:85].transpose(0, 1)  # [2, 3, 80], of which 50 count
    student[..., :50] = logits(2, 3, 50)
    values, indices, logsumexp = entries(teacher, 20)
    stored = values.view(2, 3, 20), indices.view(2, 3, 20), logsumexp.view(2, 3)
    target = torch.tensor([[0, 49, -100], [3, 50, 7]])
    given = options(target, alpha=0.5, tau=2.0, vocab=50, reduction="none", caps=(20.0, 15.0), scales=(1.5, 0.5))
    loss, gradient, factor = cuda_topk.topk_distill_loss_forward(student, *stored, *given)
    whole = list(given)
    whole[11] = None
    want = reference_topk.topk_distill_loss_forward(*wide(student[..., :50], *stored, *whole))
    near(student, (loss, gradient[..., :50], factor), want)
    assert not gradient[..., 50:].any()
    got, times = cuda_topk.topk_distill_loss_forward_(student, *stored, *given)
    torch.testing.assert_close((got, student, times), (loss, gradient, factor), rtol=0, atol=0, equal_nan=True)
    assert memory[..., :5].isnan().all()
    assert memory[..., 85:].isnan().all()


@inner
def test_alpha_0_looks_at_no_entries():
    student, target = logits(3, CLASSES), torch.tensor([1, 2, 3])
    nothing = torch.full((3, 4), NAN), torch.full((3, 4), -7), torch.full((3,), NAN)
    check(student, nothing, options(target, alpha=0.0, tau=3.0, smoothing=0.1))
    check(student, nothing, options(target, alpha=torch.zeros(3), tau=3.0))


def distributions(rows, count, seed=3, dtype=torch.float32):
    return torch.softmax(logits(rows, count, seed=seed), -1).to(dtype)


def check_soft(student, probs, indices=None, reduction="mean", weight=None):
    args = student, probs, indices, reduction, weight
    got, want = cuda_topk.soft_cross_entropy_forward(*args), reference_topk.soft_cross_entropy_forward(*wide(*args))
    if reduction == "sum":
        assert torch.equal(cuda_topk.soft_cross_entropy(*args), got[0])
    return near(student, got, want)


@inner
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [1, 33, 77])
def test_soft_targets(dtype, classes):
    student, probs = logits(5, classes, dtype=dtype), distributions(5, classes, dtype=dtype)
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    check_soft(student, probs)
    for reduction in ("mean", "sum", "none"):
        check_soft(student, probs, None, reduction, weight)
        check_soft(
            student, probs[:, : min(classes, 20)], torch.arange(min(classes, 20)).repeat(5, 1), reduction, weight
        )


@inner
def test_soft_targets_that_do_not_sum_to_1_grow_and_mask():
    student = logits(4, CLASSES) + torch.linspace(0, 500, CLASSES)
    probs = distributions(4, CLASSES) * torch.tensor([[0.5], [1.0], [0.0], [1.0]])
    student[1, 30:60] = -INF
    probs[1, 30:60] = 0
    student[3, 7] = -INF
    loss, _ = check_soft(student, probs, None, "none")
    assert loss.isinf().tolist() == [False, False, False, True]
    student[0, 3], probs[1, 70] = NAN, NAN
    assert check_soft(student, probs, None, "none")[0].isnan().tolist() == [True, True, False, False]


@inner
def test_sparse_soft_targets():
    student, generator = logits(6, CLASSES), torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randperm(CLASSES, generator=generator)[:10] for _ in range(6)])
    probs = distributions(6, 10)
    probs[0, 3] = 0
    student[0, indices[0, 3]] = -INF
    loss, gradient = check_soft(student, probs, indices, "none")
    dense = torch.zeros(6, CLASSES).scatter(1, indices, probs)
    want, true_gradient = check_soft(student, dense, None, "none")
    close(loss, want, 1e-6, 1e-6)
    close(gradient, true_gradient, 1e-5, 1e-6)
    indices[1, 9], indices[2, 0], indices[4, 1] = indices[1, 0], -1, CLASSES
    assert check_soft(student, probs, indices, "none")[0].isnan().tolist() == [False, True, True, False, True, False]


@inner
def test_half_precision_keeps_its_reduction_for_the_backward():
    student, probs = logits(4, 40, dtype=torch.float16), distributions(4, 40, dtype=torch.float16)
    for indices in (None, torch.arange(40).repeat(4, 1)):
        _, gradient, factor = cuda_topk.soft_cross_entropy_forward(student, probs, indices)
        assert factor == 0.25
        weighted = cuda_topk.soft_cross_entropy_forward(student, probs, indices, "mean", torch.full((4,), 1e-7))
        torch.testing.assert_close(weighted[1:], [gradient, factor])


@inner
def test_no_rows():
    empty = torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)
    loss, gradient, _ = cuda_topk.topk_distill_loss_forward(logits(0, 9), *empty, torch.zeros(0), *options())
    assert loss == 0
    assert gradient.shape == (0, 9)
    loss, gradient, _ = cuda_topk.soft_cross_entropy_forward(logits(0, 9), *empty)
    assert loss == 0
    assert gradient.shape == (0, 9)


@inner
def test_the_functions_take_it():
    student, stored = logits(3, CLASSES).requires_grad_(), entries(logits(3, CLASSES, seed=1), 9)
    for call in (
        lambda impl: topk_distill_loss(student, *stored, impl=impl),
        lambda impl: soft_cross_entropy(student, distributions(3, CLASSES), impl=impl),
        lambda impl: soft_cross_entropy(student, distributions(3, 9), indices=stored[1], impl=impl),
    ):
        (loss, gradient), (want, true_gradient) = (
            (out, *torch.autograd.grad(out * 2, student)) for out in (call("triton"), call("reference"))
        )
        close(loss, want, 1e-5, 1e-6)
        close(gradient, true_gradient, 1e-4, 1e-6)


@inner
def test_refusals():
    x, stored = logits(2, 9), (logits(2, 3), torch.tensor([[0, 1, 2]] * 2), torch.zeros(2))
    for changed, words in (
        (options(tail="other"), "tail: expected bucket or renorm"),
        (options(divergence="logit_mse"), "divergence: expected any but logit_mse"),
        (options(tail="renorm", divergence="jsd"), "divergence: expected forward_kl for tail renorm"),
        (options(vocab=10), "vocab_size: expected 1 to 9"),
        (options(vocab=2), "teacher_topk_values: expected .* K of 1 to 2"),
        (options(reduction="max"), "reduction: expected mean, sum or none"),
    ):
        with pytest.raises(RuntimeError, match="tamis.topk_distill_loss: " + words):
            cuda_topk.topk_distill_loss(x, *stored, *changed)
    with pytest.raises(RuntimeError, match="tamis.topk_distill_loss: teacher_topk_indices: expected int64"):
        cuda_topk.topk_distill_loss(x, stored[0], stored[1].int(), stored[2], *options())
    with pytest.raises(RuntimeError, match="tamis.topk_distill_loss: teacher_logsumexp: expected the shape"):
        cuda_topk.topk_distill_loss(x, *stored[:2], torch.zeros(3), *options())
    with pytest.raises(RuntimeError, match="overwrite_logits: expected teacher_topk_values in memory apart"):
        cuda_topk.topk_distill_loss_forward_(x, x[:, :3], *stored[1:], *options())
    with pytest.raises(RuntimeError, match="tamis.soft_cross_entropy: probs: expected the shape"):
        cuda_topk.soft_cross_entropy(x, x[:, :3])
    with pytest.raises(RuntimeError, match="tamis.soft_cross_entropy: probs: expected float64 beside float64"):
        cuda_topk.soft_cross_entropy(x, x.double())
