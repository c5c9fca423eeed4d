"""What the functions of this family check of their arguments, and bring them to before the raw op."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.backend import IMPLEMENTATIONS
from ..common.checks import (
    FLOATS,
    INTEGERS,
    NAMES,
    check_bool,
    check_choice,
    check_dense,
    check_integer,
    check_like,
    check_logits,
    check_number,
    check_real,
    fail,
    reads_values,
)
from ..common.logits import (
    POSITIVE,
    Valid,
    check_beside,
    check_head,
    check_logit_scale,
    check_softcap,
    check_target,
    constant,
    row_numbers,
)
from .reference import DIVERGENCES

REDUCTIONS = ("mean", "sum", "none")


class Transforms(NamedTuple):
    vocab_size: int | None
    student_softcap: float | None
    teacher_softcap: float | None
    student_logit_scale: float
    teacher_logit_scale: float


def check_transforms(
    fn: str,
    vocab_size: int | None,
    student_softcap: float | None,
    teacher_softcap: float | None,
    student_logit_scale: float,
    teacher_logit_scale: float,
    prefix: str = "student_",
) -> Transforms:
    """What can be said of them before any logits are seen; prefix: of the first model's names."""
    if vocab_size is not None:
        vocab_size = check_integer(fn, "vocab_size", vocab_size)
        if vocab_size < 1:
            fail(fn, "vocab_size", "at least 1", vocab_size)
    return Transforms(
        vocab_size,
        check_softcap(fn, f"{prefix}softcap", student_softcap),
        check_softcap(fn, "teacher_softcap", teacher_softcap),
        check_logit_scale(fn, f"{prefix}logit_scale", student_logit_scale),
        check_logit_scale(fn, "teacher_logit_scale", teacher_logit_scale),
    )


def check_options(
    fn: str,
    divergence: str,
    beta: float,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
    overwrite_logits: bool,
    return_stats: bool,
    impl: str,
) -> tuple[float, float, int]:
    """beta, label_smoothing, ignore_index."""
    check_choice(fn, "divergence", divergence, DIVERGENCES)
    check_choice(fn, "reduction", reduction, REDUCTIONS)
    check_bool(fn, "overwrite_logits", overwrite_logits)
    check_bool(fn, "return_stats", return_stats)
    check_choice(fn, "impl", impl, IMPLEMENTATIONS)
    return (
        check_number(fn, "beta", beta, "0 to 1", lambda x: 0 <= x <= 1),
        check_number(fn, "label_smoothing", label_smoothing, "0 to 1", lambda x: 0 <= x <= 1),
        check_integer(fn, "ignore_index", ignore_index),
    )


PER_ROW: dict[str, Valid] = {  # a number or a tensor
    "temperature": POSITIVE,
    "alpha": ("0 to 1", lambda a: (a >= 0) & (a <= 1)),
}


def per_row(fn: str, name: str, value: float | Tensor, logits: Tensor) -> Tensor:
    return row_numbers(fn, name, value, logits, PER_ROW[name])


def check_models(fn: str, student_logits: Tensor, teacher_logits: Tensor, vocab_size: int | None) -> int:
    """The number of classes that count."""
    check_logits(fn, "student_logits", student_logits)
    check_logits(fn, "teacher_logits", teacher_logits)
    check_same_rows(fn, "teacher_logits", teacher_logits, student_logits)
    return classes_of(fn, student_logits.shape[-1], teacher_logits.shape[-1], vocab_size)


def check_same_rows(fn: str, name: str, teacher: Tensor, student: Tensor) -> None:
    """A teacher's logits or hidden states, of the student's rows."""
    check_beside(fn, name, teacher, student)
    if teacher.shape[:-1] != student.shape[:-1]:
        fail(fn, name, f"leading axes {list(student.shape[:-1])}", list(teacher.shape[:-1]))


def classes_of(fn: str, width: int, other: int, vocab_size: int | None) -> int:
    """The number of classes that count, of two models' widths."""
    if vocab_size is None:
        if width != other:
            fail(fn, "vocab_size", f"the classes to read of {width} and {other}", None)
        return width
    if vocab_size > min(width, other):
        fail(fn, "vocab_size", f"1 to {min(width, other)}", vocab_size)
    return vocab_size


def check_heads(
    fn: str, student: tuple[Any, Any, Any], teacher: tuple[Any, Any, Any] | None, vocab_size: int | None
) -> int:
    """Hidden states, weight and bias or None of each model; the number of classes that count."""
    width = check_head(fn, "" if teacher is None else "student_", *student)
    if teacher is None:
        return classes_of(fn, width, width, vocab_size)
    other = check_head(fn, "teacher_", *teacher)
    check_same_rows(fn, "teacher_hidden", teacher[0], student[0])
    return classes_of(fn, width, other, vocab_size)


def check_no_target(fn: str, alpha: float | Tensor) -> None:
    """Whether alpha, checked, leaves the target out."""
    if not isinstance(alpha, Tensor):
        if alpha < 1:
            fail(fn, "target", f"a target for alpha={alpha}", None)
    elif reads_values(alpha) and bool((alpha < 1).any()):
        fail(fn, "target", "a target for alpha below 1", None)


def check_weight(fn: str, weight: Tensor, logits: Tensor) -> None:
    check_real(fn, "row_weight", weight, mask=True)
    check_like(fn, "row_weight", weight, logits.shape[:-1], logits.device)
    if reads_values(weight):
        valid = (weight == 0) | POSITIVE[1](weight)
        if not bool(valid.all()):
            fail(fn, "row_weight", f"0 or {POSITIVE[0]}", weight[~valid][0].item())


def items_of(fn: str, items: int | Tensor | None, reduction: str, logits: Tensor) -> Tensor | None:
    if items is None:
        return None
    if reduction != "mean":
        fail(fn, "num_items_in_batch", "reduction mean beside it", reduction)
    expected, valid = POSITIVE
    if not isinstance(items, Tensor):
        number = check_number(fn, "num_items_in_batch", items, expected, valid)
        return torch.tensor(number, dtype=torch.float64, device="cpu")
    check_real(fn, "num_items_in_batch", items)
    if items.numel() != 1:
        fail(fn, "num_items_in_batch", "one number", list(items.shape))
    if reads_values(items) and not valid(items.item()):
        fail(fn, "num_items_in_batch", expected, items.item())
    return constant(fn, "num_items_in_batch", items, logits).reshape(())


def check_rows(
    fn: str,
    logits: Tensor,
    classes: int,
    target: Tensor | None,
    temperature: float | Tensor,
    alpha: float | Tensor,
    ignore_index: int,
    reduction: str,
    row_weight: Tensor | None,
    num_items_in_batch: int | Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None]:
    """target, temperature, alpha, row_weight and num_items_in_batch, as the raw ops take them."""
    tau = per_row(fn, "temperature", temperature, logits)
    mix = per_row(fn, "alpha", alpha, logits)
    if target is not None:
        target = check_target(fn, target, logits, classes, ignore_index)
    else:
        check_no_target(fn, alpha)
    if row_weight is not None:
        check_weight(fn, row_weight, logits)
    return target, tau, mix, row_weight, items_of(fn, num_items_in_batch, reduction, logits)


def check_entries(
    fn: str, logits: Tensor, classes: int, names: tuple[str, str], values: Tensor, indices: Tensor
) -> Tensor:
    """K entries of each row, [*, K] both, called by their names: the indices as int64. Which classes they are is for
    check_indices."""
    check_dense(fn, names[0], values)
    if values.dtype not in FLOATS:
        fail(fn, names[0], NAMES, values.dtype, TypeError)
    check_beside(fn, names[0], values, logits)
    rows = logits.shape[:-1]
    if values.dim() != logits.dim() or values.shape[:-1] != rows or not 1 <= values.shape[-1] <= classes:
        fail(fn, names[0], f"[*, K] with the leading axes {list(rows)} and K of 1 to {classes}", list(values.shape))
    check_dense(fn, names[1], indices)
    if indices.dtype not in INTEGERS:
        fail(fn, names[1], "integers, signed or uint8", indices.dtype, TypeError)
    check_like(fn, names[1], indices, values.shape, logits.device)
    return indices.long()


def check_indices(fn: str, name: str, indices: Tensor, classes: int) -> None:
    """int64 [*, K] of CPU, whose values may be read: each a class, and at most once a row."""
    bad: int = torch.ops.tamis._bad_index.default(indices, classes)
    if bad < 0:
        return
    value = int(indices.flatten()[bad])
    if 0 <= value < classes:
        fail(fn, name, "each class at most once a row", f"{value} again")
    fail(fn, name, f"0 to {classes - 1}", value)
