"""The Triton kernels in the interpreter, against the reference in float64."""

import pytest
import torch
from interpreter import close, inner, logits, patched_once, small  # noqa: F401
from tamis.distill import cuda, reference

INF, NAN = float("inf"), float("nan")
CLASSES = 77  # with 8 lanes: two blocks and a tail in float32, one and a tail in half precision
NAMES = {
    "target": None, "temperature": 1.0, "alpha": 1.0, "divergence": "forward_kl", "beta": 0.5, "label_smoothing": 0.0,
    "ignore_index": -100, "reduction": "mean", "row_weight": None, "num_items_in_batch": None, "vocab_size": None,
    "student_softcap": None, "teacher_softcap": None, "student_logit_scale": 1.0, "teacher_logit_scale": 1.0,
    "overwrite_logits": False, "return_stats": False,
}  # fmt: skip


def arguments(real, options):
    values = NAMES | options
    for name in ("temperature", "alpha"):
        values[name] = torch.as_tensor(values[name], dtype=real)
    if values["row_weight"] is not None:
        values["row_weight"] = values["row_weight"].to(real)
    return list(values.values())


def check(student, teacher, **options):
    """Loss, gradient, statistics: within a few roundings of the reference in float64. Returns loss and gradient."""
    real = torch.float64 if student.dtype == torch.float64 else torch.float32
    args, true_args = arguments(real, options), arguments(torch.float64, options)
    loss, gradient, factor, *stats = cuda.distill_loss_forward(student, teacher, *args)
    true_loss, true_gradient, _, *true_stats = reference.distill_loss_forward(
        student.double(), teacher.double(), *true_args
    )
    assert loss.dtype == factor.dtype == real
    assert factor.shape == ()
    assert gradient.dtype == student.dtype
    assert gradient.shape == student.shape
    assert gradient.is_contiguous()
    if options.get("reduction") == "none":  # NaN in: NaN out, of every class
        true_gradient[true_loss.isnan()] = NAN
    eps, half = torch.finfo(real).eps, torch.finfo(student.dtype).eps
    logit = max(float(x[x.isfinite()].abs().max()) for x in (student.double(), teacher.double()))
    close(loss, true_loss, 16 * eps, 16 * eps * (1 + logit))
    bound = true_gradient[true_gradient.isfinite()].abs().max().item() if true_gradient.isfinite().any() else 0.0
    # A gradient is a difference of probabilities, each with its own roundings.
    close(gradient.double() * factor, true_gradient, 2 * half, 4 * eps + 32 * eps * (1 + logit) * bound)
    for got, want in zip(stats, true_stats, strict=True):
        if got.is_floating_point():
            close(got, want, 32 * eps, 32 * eps * (1 + logit))
        else:
            assert torch.equal(got, want)
    return loss, gradient


@inner
@pytest.mark.parametrize(
    "chosen",
    [{"divergence": "reverse_kl"}, {"divergence": "total_variation"}, {"divergence": "logit_mse"}]
    + [{"divergence": "jsd", "beta": beta} for beta in (0.0, 0.1, 0.5, 1.0)],
    ids=lambda chosen: "-".join(map(str, chosen.values())),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergences(chosen, dtype):
    student, teacher = logits(4, CLASSES, dtype=dtype), logits(4, CLASSES, seed=1, dtype=dtype)
    student[0, 5], teacher[0, 5] = -INF, -INF
    target = torch.tensor([3, -100, 70, 0])
    check(student, teacher, temperature=2.0, reduction="none", **chosen)
    check(student, teacher, target=target, temperature=0.5, alpha=0.3, student_softcap=20.0, **chosen)
    check(student, teacher, target=target, alpha=torch.tensor([0.0, 0.5, 1.0, 0.7]), label_smoothing=0.1, **chosen)


@inner
@pytest.mark.parametrize("classes", [1, 5, 32, 33, 64])
def test_tails(classes):
    loss, _ = check(logits(3, classes), logits(3, classes, seed=1), temperature=2.0)
    alone = cuda.distill_loss(
        *(logits(3, classes, seed=i) for i in (0, 1)), *arguments(torch.float32, {"temperature": 2.0})
    )
    assert torch.equal(alone[0], loss)


@inner
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_feature_together(dtype):
    target = torch.tensor([3, -100, 0, CLASSES - 1, 40])
    check(
        logits(5, CLASSES, dtype=dtype), logits(5, CLASSES, seed=1, dtype=dtype), target=target,
        temperature=[1.0, 2.0, 0.5, 3.0, 1.0], alpha=[0.0, 0.3, 1.0, 0.7, 0.5], label_smoothing=0.1,
        row_weight=torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0]), student_softcap=9.0, teacher_softcap=4.0,
        student_logit_scale=0.5, teacher_logit_scale=2.0, return_stats=True,
    )  # fmt: skip


@inner
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)])
def test_a_teacher_of_another_dtype(dtypes):
    check(logits(2, CLASSES, dtype=dtypes[0]), logits(2, CLASSES, seed=1, dtype=dtypes[1]), temperature=2.0)


@inner
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_reductions_and_items(reduction):
    target = torch.tensor([1, -100, 2, 3, 4])
    items = torch.tensor(7) if reduction == "mean" else None
    options = {"target": target, "alpha": 0.5, "reduction": reduction, "num_items_in_batch": items}
    check(logits(5, 20), logits(5, 20, seed=1), **options)


@inner
def test_rows_that_do_not_count_and_bad_rows():
    student, teacher = logits(7, 40), logits(7, 40, seed=1)
    student[0, 3], teacher[1, 39], student[2, 5] = NAN, NAN, NAN  # row 2 is ignored
    target = torch.tensor([1, 2, -100, 40, -1, 5, 6])  # rows 3 and 4 are out of range
    loss, gradient = check(student, teacher, target=target, alpha=0.5, reduction="none")
    assert loss.isnan().tolist() == [True, True, False, True, True, False, False]
    assert torch.equal(gradient.isnan().any(1), loss.isnan())
    assert torch.equal(gradient.isnan().all(1), loss.isnan())
    assert loss[2] == 0
    assert not gradient[2].any()
    tau = torch.tensor([1.0, 0.0, -1.0, NAN, 2.0, 1.0, 1.0])
    alpha = torch.tensor([1.0, 1.0, 1.0, 1.0, NAN, 0.5, 1.0])  # 0.5 without a target
    loss, gradient = check(logits(7, 40), teacher.nan_to_num(0.0), temperature=tau, alpha=alpha, reduction="none")
    assert loss.isnan().tolist() == gradient.isnan().all(1).tolist() == [False, True, True, True, True, True, False]


@inner
def test_minus_infinity():
    student, teacher = logits(4, 70), logits(4, 70, seed=1)
    student[:, 10:50] = teacher[:, 10:50] = -INF  # whole lanes without a class in both
    teacher[1, 60:] = -INF  # the student's own
    student[2, 69] = -INF  # the teacher's own: infinite loss
    student[3, :10] = teacher[3, :10] = -INF
    loss, _ = check(student, teacher, reduction="none", temperature=2.0)
    assert loss.isfinite().tolist() == [True, True, False, True]
    assert loss[2] == INF
    loss, _ = check(student, teacher, reduction="none", target=torch.tensor([0, 1, 2, 60]), alpha=0.0)
    assert loss.isfinite().all()


@inner
@pytest.mark.parametrize("grow", [1e4, -1e4])
def test_logits_that_grow_along_the_row(grow):
    ramp = torch.linspace(0, grow, CLASSES)
    check(logits(2, CLASSES) + ramp, logits(2, CLASSES, seed=1) + ramp, temperature=5.0)


@inner
def test_padding_and_strides():
    student = logits(2, 4, 64)[:, :-1]  # the shifted logits of a language model
    teacher = logits(2, 3, 72, seed=1).transpose(0, 1).contiguous().transpose(0, 1)
    student[..., 50:], teacher[..., 50:] = NAN, INF  # padding is never read
    options = {"vocab_size": 50, "target": torch.tensor([[1, 2, -100], [0, 49, 3]]), "alpha": 0.5, "reduction": "none"}
    args = arguments(torch.float32, options)
    loss, gradient, _ = cuda.distill_loss_forward(student, teacher, *args)
    assert loss.shape == (2, 3)
    assert gradient.shape == student.shape
    assert not gradient[..., 50:].any()
    whole = arguments(torch.float64, options | {"vocab_size": None})
    wants = reference.distill_loss_forward(student[..., :50].double(), teacher[..., :50].double(), *whole)
    close(loss, wants[0], 1e-6, 1e-6)
    close(gradient[..., :50], wants[1], 1e-6, 1e-6)
    columns = logits(50, 3).T  # classes do not lie side by side: copied
    got = cuda.distill_loss(columns, columns * 2, *arguments(torch.float32, {}))
    want = reference.distill_loss(columns.double(), columns.double() * 2, *arguments(torch.float64, {}))
    close(got[0], want[0], 1e-5, 1e-6)


@inner
def test_gradient_over_the_logits():
    student, teacher, memory = logits(3, 40), logits(3, 40, seed=1), torch.full((3, 48), 5.0)
    view = memory[:, 4:44]
    view.copy_(student)
    args = arguments(torch.float32, {"temperature": 2.0, "target": torch.tensor([0, 39, 7]), "alpha": 0.5})
    loss, gradient, factor = cuda.distill_loss_forward(student, teacher, *args)
    got, times = cuda.distill_loss_forward_(view, teacher, *args)
    assert torch.equal(got, loss)
    assert torch.equal(view, gradient)
    assert torch.equal(times, factor)
    assert (memory[:, :4] == 5).all()
    assert (memory[:, 44:] == 5).all()


@inner
def test_half_precision_keeps_its_reduction_for_the_backward():
    student, teacher = logits(4, 40, dtype=torch.float16), logits(4, 40, seed=1, dtype=torch.float16)
    _, gradient, factor = cuda.distill_loss_forward(student, teacher, *arguments(torch.float32, {}))
    assert factor == 0.25
    weighted = cuda.distill_loss_forward(
        student, teacher, *arguments(torch.float32, {"row_weight": torch.full((4,), 1e-7)})
    )
    torch.testing.assert_close(weighted[1:], [gradient, factor])
    assert torch.equal(cuda.scale_rows(gradient, torch.tensor(2.0), factor), gradient / 2)
    masked = cuda.distill_loss_forward(  # the level is of the rows that count
        student, teacher,
        *arguments(torch.float32, {"row_weight": torch.tensor([0.0, 0.0, 1.0, 3e4]), "alpha": 0.5,
                                   "target": torch.tensor([0, 0, 1, -100])}),
    )  # fmt: skip
    assert masked[2] == 1
    rows = torch.arange(4.0)
    cuda.scale_rows_(gradient, rows, torch.tensor(1.0))
    assert not gradient[0].any()
    assert gradient[1:].any()


@inner
def test_nothing_counts():
    target = torch.full((3,), -100)
    loss, gradient = check(logits(3, 9), logits(3, 9, seed=1), target=target, alpha=0.5)
    assert loss == 0
    assert not gradient.any()
    loss, gradient, _ = cuda.distill_loss_forward(logits(0, 9), logits(0, 9), *arguments(torch.float32, {}))
    assert loss == 0
    assert gradient.shape == (0, 9)


@inner
@pytest.mark.parametrize("margin", [30.0, 200.0, 1e4])
def test_log_odds_are_exact_far_beyond_one_minus_p(margin):
    student, teacher = logits(3, 70), logits(3, 70, seed=1)
    for row, at in enumerate((0, 45, 69)):
        teacher[row, at] = teacher[row].max() + margin
        student[row, at] = student[row].max() + margin
    student[2, 69] = -margin
    got = cuda.deviation_stats(student, teacher)
    for value, want in zip(got, reference.deviation_stats(student.double(), teacher.double()), strict=True):
        close(value, want, 1e-6, 1e-5) if value.is_floating_point() else torch.testing.assert_close(value, want)


@inner
def test_statistics_of_ties_infinities_and_nan():
    student, teacher = logits(7, 70), logits(7, 70, seed=1)
    teacher[0], student[0] = 2.0, -1.0  # all tied: the lowest index
    teacher[1, [7, 50]] = 40.0
    teacher[2, 33] = teacher[3, 12] = student[4, 66] = NAN
    student[5, 5:] = -INF
    teacher[6, 1:] = -INF  # one class: infinite log-odds
    got = cuda.deviation_stats(student, teacher)
    for value, want in zip(got, reference.deviation_stats(student.double(), teacher.double()), strict=True):
        close(value, want, 1e-6, 1e-5) if value.is_floating_point() else torch.testing.assert_close(value, want)
    one = cuda.deviation_stats(torch.zeros(2, 1), torch.zeros(2, 1))
    assert (one[8] == INF).all()
    assert (one[2] == 0).all()
    assert (one[4] == 1).all()


@inner
def test_refusals():
    x = logits(2, 9)
    with pytest.raises(RuntimeError, match=r"tamis\.distill_loss: divergence"):
        cuda.distill_loss(x, x, *arguments(torch.float32, {"divergence": "kl"}))
    with pytest.raises(RuntimeError, match=r"tamis\.distill_loss: vocab_size"):
        cuda.distill_loss(x, x, *arguments(torch.float32, {"vocab_size": 10}))
    with pytest.raises(RuntimeError, match=r"tamis\.deviation_stats: teacher_logits"):
        cuda.deviation_stats(x, logits(2, 8))


@inner
def test_overwriting_refuses_what_it_would_spoil():
    teacher, options = logits(3, 8, seed=1), arguments(torch.float32, {})
    memory = logits(6, 8)
    for student, other, words in (
        (memory[:1].expand(3, 8), teacher, "rows that do not overlap"),
        (memory.as_strided((2, 3, 8), (8, 8, 1)), teacher.expand(2, 3, 8), "rows that do not overlap"),
        (memory[:3], memory[2:5], "teacher_logits in memory apart"),
        (memory.T[:3], teacher[:, :6], "logits that two strides walk"),
    ):
        with pytest.raises(RuntimeError, match="tamis.distill_loss: overwrite_logits: expected " + words):
            cuda.distill_loss_forward_(student, other, *options)
    _, want, _ = cuda.distill_loss_forward(memory[1:4], teacher, *options)
    cuda.distill_loss_forward_(memory[1:4], teacher, *options)
    assert torch.equal(memory[1:4], want)
