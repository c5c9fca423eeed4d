"""Bad arguments of the linear losses: named, before any work, also by the raw ops, and never a crash."""

import pytest
import torch
from tamis.distill import linear_cross_entropy, linear_distill_loss

ROWS, CLASSES, SIZE, OTHER = 5, 9, 4, 3


def tensors():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "student_hidden": random(ROWS, SIZE),
        "student_weight": random(CLASSES, SIZE),
        "teacher_hidden": random(ROWS, OTHER),
        "teacher_weight": random(CLASSES, OTHER),
        "student_bias": random(CLASSES),
        "teacher_bias": random(CLASSES),
    }


BAD = [
    ("student_hidden", "text", TypeError, "a Tensor, got str"),
    ("student_hidden", torch.zeros(ROWS, SIZE, dtype=torch.int64), TypeError, "float32, bfloat16"),
    ("student_hidden", torch.tensor(1.0), ValueError, r"\[\*, H\] with H at least 1"),
    ("student_hidden", torch.zeros(ROWS, 0), ValueError, r"\[\*, H\] with H at least 1"),
    ("student_hidden", torch.zeros(ROWS, SIZE).to_sparse(), TypeError, "a dense tensor"),
    ("student_weight", torch.zeros(CLASSES, SIZE + 1), ValueError, r"\[classes, 4\] with at least one class"),
    ("student_weight", torch.zeros(0, SIZE), ValueError, "at least one class"),
    ("student_weight", torch.zeros(SIZE), ValueError, r"\[classes, 4\]"),
    ("student_weight", torch.zeros(CLASSES, SIZE, dtype=torch.bfloat16), TypeError, "student_hidden's torch.float32"),
    ("student_weight", torch.zeros(CLASSES, SIZE, device="meta"), ValueError, "device cpu, got meta"),
    ("student_bias", torch.zeros(CLASSES + 1), ValueError, r"\[9\], got \[10\]"),
    ("student_bias", torch.zeros(CLASSES, dtype=torch.float64), TypeError, "student_hidden's torch.float32"),
    ("teacher_hidden", torch.zeros(ROWS + 1, OTHER), ValueError, r"leading axes \[5\], got \[6\]"),
    (
        "teacher_hidden",
        torch.zeros(ROWS, OTHER, dtype=torch.float64),
        TypeError,
        "teacher_weight: expected teacher_hidden's",
    ),
    ("teacher_weight", torch.zeros(CLASSES, OTHER + 1), ValueError, r"\[classes, 3\]"),
    ("teacher_bias", torch.zeros(CLASSES - 1), ValueError, r"\[9\], got \[8\]"),
    ("chunk_size", 0, ValueError, "at least 1, got 0"),
    ("chunk_size", 2.5, TypeError, "an integer, got float"),
    ("temperature", -1.0, ValueError, "1e-37"),
    ("divergence", "kl", ValueError, "forward_kl"),
    ("vocab_size", CLASSES + 1, ValueError, "1 to 9"),
    ("row_weight", torch.ones(ROWS + 1), ValueError, r"shape \[5\]"),
    ("target", torch.full((ROWS,), CLASSES), ValueError, "0 to 8"),
    ("alpha", 0.5, ValueError, "target"),
    ("num_items_in_batch", -1, ValueError, "1e-37"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_distill(name, value, error, message):
    with pytest.raises(error, match=message) as caught:
        linear_distill_loss(**{**tensors(), name: value})
    assert str(caught.value).startswith("tamis.linear_distill_loss: ")
    assert name == "alpha" or name in str(caught.value) or "hidden" in name


def test_unequal_heads_need_a_vocab_size():
    values = {**tensors(), "teacher_weight": torch.zeros(CLASSES + 2, OTHER), "teacher_bias": None}
    with pytest.raises(ValueError, match="vocab_size: expected the classes to read of 9 and 11"):
        linear_distill_loss(**values)
    linear_distill_loss(**values, vocab_size=8)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("hidden", torch.zeros(ROWS, SIZE + 1), ValueError, r"weight: expected \[classes, 5\]"),
        ("bias", torch.zeros(3), ValueError, r"bias: expected \[9\], got \[3\]"),
        ("target", None, TypeError, "target: expected a Tensor"),
        ("target", torch.zeros(ROWS), TypeError, "target: expected integers"),
        ("softcap", -1.0, ValueError, "softcap: expected a number within"),
        ("logit_scale", float("nan"), ValueError, "^tamis.linear_cross_entropy: logit_scale"),
        ("label_smoothing", 2.0, ValueError, "label_smoothing"),
        ("impl", "triton", ValueError, "impl"),
    ],
)
def test_cross_entropy(name, value, error, message):
    given = tensors()
    values = {"hidden": given["student_hidden"], "weight": given["student_weight"], "bias": given["student_bias"]}
    with pytest.raises(error, match=message):
        linear_cross_entropy(**{**values, "target": torch.zeros(ROWS, dtype=torch.int64), name: value})


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_raw_op_never_trains_on_garbage_and_never_crashes(isa, reduction):
    given = tensors()
    one = torch.ones(())

    def raw(target=None, alpha=one * 0.5, **changed):
        values = {**given, **changed}
        order = ("student_hidden", "student_weight", "teacher_hidden", "teacher_weight")
        return torch.ops.tamis.linear_distill_loss(
            *(values[name] for name in order), target, values["student_bias"], values["teacher_bias"], None, one, alpha,
            reduction=reduction,
        )[0]  # fmt: skip

    hidden = given["student_hidden"].requires_grad_()
    loss = raw(torch.tensor([0, CLASSES, -100, 2**60, -1]))
    (gradient,) = torch.autograd.grad(loss.sum(), hidden)
    if reduction == "none":
        assert loss.isnan().tolist() == [False, True, False, True, True]
        assert gradient.isnan().any(1).tolist() == [False, True, False, True, True]
    else:
        assert loss.isnan()
    for changed in (
        {"student_weight": torch.zeros(CLASSES, SIZE + 1)},
        {"teacher_weight": torch.zeros(CLASSES - 3, OTHER)},
        {"teacher_hidden": torch.zeros(ROWS - 1, OTHER)},
        {"student_bias": torch.zeros(CLASSES - 1)},
        {"teacher_bias": torch.zeros(CLASSES + 1)},
        {"target": torch.zeros(ROWS - 1, dtype=torch.int64)},
        {"alpha": torch.zeros(ROWS + 1)},
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            raw(**changed)


def test_meta_tensors():
    hidden, weight, target = torch.zeros(3, 5), torch.zeros(7, 5), torch.tensor([0, 1, 2])
    loss = linear_cross_entropy(*(x.to("meta") for x in (hidden, weight, target)))
    assert loss.is_meta
    assert loss.shape == ()
    with pytest.raises(ValueError, match="linear_distill_loss: teacher_hidden: expected device cpu, got meta"):
        linear_distill_loss(hidden, weight, hidden.to("meta"), weight.to("meta"))
