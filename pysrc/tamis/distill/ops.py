"""Checks, autograd and registration; the arithmetic is in kernels/distill."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.backend import Choice, choose
from ..common.checks import real_dtype
from ..common.explain import explained_by
from ..common.registry import register
from . import cuda, reference
from .autograd import apart_from_logits, autograd, check_overwritten, fake_loss, run
from .checks import check_models, check_options, check_rows, check_transforms


class DeviationStats(NamedTuple):
    """Where student and teacher deviate (2301.12923), each of the leading axes' shape, at temperature 1.

    Log-odds are log(p / (1 - p)) of the teacher's argmax under either model, from the logsumexp without that class, so
    they are exact where 1 - p rounds to 0. Ties in argmax: the lowest index. Entropies in nats.
    """

    teacher_logsumexp: Tensor
    student_logsumexp: Tensor
    teacher_entropy: Tensor
    student_entropy: Tensor
    teacher_max_prob: Tensor
    student_max_prob: Tensor
    teacher_argmax: Tensor
    student_argmax: Tensor
    teacher_log_odds: Tensor
    student_log_odds: Tensor
    agree: Tensor


def distill_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    alpha: float | Tensor = 1.0,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    vocab_size: int | None = None,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    overwrite_logits: bool = False,
    return_stats: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, DeviationStats]:
    """alpha T^2 D(teacher, student, both at temperature T) + (1 - alpha) CE(student at temperature 1, target).

    The gradient is formed in the forward pass, when one is needed, in one read of both logits; only student_logits gets
    one, all else is constant, also where it wants one. Differentiable once; forward mode and, but
    for impl="reference", torch.func transforms are refused. Hot distributions nearly cancel: float32 leaves an absolute
    error of about 1e-6 T^2 in a row's soft term, more as the spread of logits / T exceeds 1; at T = 100 that is some
    1e-3 of the loss, and float64 logits are the way out.

    Args:
        student_logits: [*, classes], float32, bfloat16, float16 or float64; the leading axes are rows. Any strides.
        teacher_logits: [*, classes], its own dtype, but float64 beside float64 and only there. A constant, as the rest.
        target: [*] integers in 0..classes-1. A row of `ignore_index` counts in neither term nor in the mean.
        temperature: T > 0, as every such number within 1e-37..1e37: a number, a 0-d tensor, or one per row [*]. (A
            number specialises a compiled graph.)
        alpha: in [0, 1], likewise; below 1 it needs a target.
        divergence: D, of the teacher's softmax q and the student's p: "forward_kl" KL(q || p); "reverse_kl" KL(p || q);
            "jsd" beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p; "total_variation" half the sum
            of |p - q|, its gradient 0 where they are equal; "logit_mse" the mean over classes of (s - t)^2 / T^2.
        beta: of jsd, in [0, 1]. 0 is forward_kl and 1 reverse_kl, by convention: the formula would be 0. Next to them
            float32 loses digits: some 5e-8 / beta of the gradient, 5e-10 / (1 - beta) of the loss.
        label_smoothing: in [0, 1], of the cross-entropy, as torch's.
        reduction: "mean" divides by the weight of the rows kept, or by num_items_in_batch; "sum"; "none": [*].
        row_weight: [*], 0 or above; a bool mask will do. A row of weight 0 does not count, whatever it holds.
        num_items_in_batch: a number or 0-d tensor, for gradient accumulation ("mean" only).
        vocab_size: classes to read of both; needed where they differ. Padding never counts, its gradient is 0.
        student_softcap, teacher_softcap: > 0; logits become cap * tanh(logits / cap), after the scale. Where it
            saturates, the slope 1 - tanh^2 has lost its digits in float32, as torch's has.
        student_logit_scale, teacher_logit_scale: multiply the logits first.
        overwrite_logits: the gradient that student_logits need is written over them in the forward pass, and nothing
            is allocated. Do not read them afterwards; a second backward raises, as does one after another change to
            their memory: overwrite one tensor once, not slice by slice. They must not be a leaf or a view of one, nor
            lie between the first and the last byte of teacher_logits, or these between theirs; two strides must lead
            to all rows, classes side by side. Under torch.compile and for impl="reference" the gradient is a new
            tensor.
        return_stats: also DeviationStats.
        impl: "auto", "reference", "cpu", "triton" or "cuda". CUDA tensors go to Triton, or to CUDA C++ where that moves
            fewer bytes: tamis.explain says which and why. "cuda" is a ValueError where its kernel cannot hold the rows;
            a compiled graph keeps neither name: there it is TAMIS_BACKEND that decides.
    Returns:
        The loss, float32 (float64 for float64), sums in that dtype: 0-d, or [*] for "none". A class at -inf in both
        models adds 0; one at -inf in the student alone makes its row inf under forward_kl, in the teacher alone under
        reverse_kl (unless the other's probability of it underflows), in either under logit_mse. NaN stays in its row.
        No row kept: 0, with 0 gradients.
    Raises:
        TypeError, ValueError: an argument, before any work; values of CPU tensors are checked in eager mode, elsewhere
            a row with a bad target, temperature, alpha or weight has the loss NaN (Triton: TAMIS_DEBUG=1 asserts).
        RuntimeError: overwrite_logits where it cannot be.
        NotImplementedError: a second derivative, when one is asked for.
    Source: 2301.12923 section 1; Hinton et al. 2015 for T^2.
    """
    fn = "distill_loss"
    beta, label_smoothing, ignore_index = check_options(
        fn, divergence, beta, label_smoothing, ignore_index, reduction, overwrite_logits, return_stats, impl
    )
    transforms = check_transforms(
        fn, vocab_size, student_softcap, teacher_softcap, student_logit_scale, teacher_logit_scale
    )
    classes = check_models(fn, student_logits, teacher_logits, vocab_size)
    target, tau, mix, row_weight, items = check_rows(
        fn, student_logits, classes, target, temperature, alpha, ignore_index, reduction, row_weight, num_items_in_batch
    )
    choice = choose(fn, impl, student_logits)
    constants = (teacher_logits, tau, mix, row_weight, items)
    overwriting = overwrite_logits and check_overwritten(fn, student_logits, constants)
    if overwriting:
        tau, mix, row_weight = apart_from_logits(tau, mix, row_weight)
    arguments = (
        student_logits, teacher_logits, target, tau, mix, divergence, beta, label_smoothing,
        ignore_index, reduction, row_weight, items, *transforms, False, return_stats,
    )  # fmt: skip
    loss, *stats = run(
        fn, choice, overwriting, arguments, reference=reference.distill_loss, interpreted=cuda.distill_loss_forward
    )
    return (loss, DeviationStats(*stats)) if return_stats else loss


def deviation_stats(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    vocab_size: int | None = None,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    impl: str = "auto",
) -> DeviationStats:
    """Where student and teacher deviate, row by row, in one read of both logits; arguments as distill_loss.

    Returns:
        DeviationStats, without gradients: float32 (float64 for float64), argmaxes int64, `agree` bool; each [*]. A NaN
        or +inf makes its own row's numbers NaN; an argmax is then the NaN's, as in torch.
    Raises:
        TypeError, ValueError: an argument, before any work.
    Source: 2301.12923 section 1 (the deviation plot).
    """
    fn = "deviation_stats"
    options = check_transforms(
        fn, vocab_size, student_softcap, teacher_softcap, student_logit_scale, teacher_logit_scale
    )
    check_models(fn, student_logits, teacher_logits, vocab_size)
    choice = choose(fn, impl, student_logits)
    op: Callable[..., Any] = torch.ops.tamis.deviation_stats.default
    if choice.backend == "reference":
        op = reference.deviation_stats
    elif choice.backend == "triton" and student_logits.device.type == "cpu":
        op = cuda.deviation_stats
    return DeviationStats(*op(student_logits.detach(), teacher_logits.detach(), *options))


def fake_stats(student_logits: Tensor, *_: Any) -> list[Tensor]:
    rows, real = student_logits.shape[:-1], real_dtype(student_logits)
    dtypes = [real] * 6 + [torch.int64] * 2 + [real] * 2 + [torch.bool]
    return [student_logits.new_empty(rows, dtype=dtype) for dtype in dtypes]


def _fake(
    gradients: int,
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None,
    temperature: Tensor,
    alpha: Tensor,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    num_items_in_batch: Tensor | None = None,
    *options: Any,
) -> list[Tensor]:
    tensors = {"teacher_logits": teacher_logits, "target": target, "temperature": temperature, "alpha": alpha}
    tensors |= {"row_weight": row_weight, "num_items_in_batch": num_items_in_batch}
    losses = fake_loss("distill_loss", gradients, student_logits, reduction, tensors)
    return [*losses, *(fake_stats(student_logits) if options[-1] else [])]


def _fake_rows(student_logits: Tensor, *arguments: Any) -> list[Tensor]:
    loss = student_logits.new_empty(student_logits.shape[:-1], dtype=real_dtype(student_logits))
    return [loss, *(fake_stats(student_logits) if arguments[-1] else [])]


def _explained(
    choice: Choice,
    student_logits: Tensor,
    teacher_logits: Tensor | None = None,
    target: Tensor | None = None,
    *,
    alpha: float | Tensor = 1.0,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    vocab_size: int | None = None,
    **_: Any,
) -> Choice:
    """Which kernel takes these rows on a CUDA device, with their gradient where student_logits want one."""
    if not student_logits.is_cuda:
        return choice
    kind = cuda.divergence_of("distill_loss", divergence, beta, torch.as_tensor(alpha))
    teacher = student_logits if teacher_logits is None else teacher_logits
    classes = student_logits.shape[-1] if vocab_size is None else vocab_size
    gradient = student_logits.requires_grad and torch.is_grad_enabled()
    return cuda.rows_choice(student_logits, teacher, classes, kind, gradient=gradient, named=choice.named)


explained_by("distill_loss", _explained)
register(
    "distill_loss",
    fake=partial(_fake, 0),
    cuda=cuda.distill_loss,
    reference=reference.distill_loss,
    autograd=autograd("distill_loss"),
)
register(
    "_distill_loss_forward",
    fake=partial(_fake, 2),
    cuda=cuda.distill_loss_forward,
    reference=reference.distill_loss_forward,
)
register(
    "_distill_loss_forward_",
    fake=partial(_fake, 1),
    cuda=cuda.distill_loss_forward_,
    reference=reference.distill_loss_forward_,
)
register("_distill_rows_", fake=_fake_rows, cuda=cuda.distill_rows_, reference=reference.distill_rows_)
register("_distill_tile_", fake=lambda *arguments: _fake_rows(arguments[0], False)[0], cuda=cuda.distill_tile_)
register(
    "_scale_rows",
    fake=lambda gradient, grad, factor: gradient.new_empty(gradient.shape),
    cuda=cuda.scale_rows,
    reference=reference.scale_rows,
)
register(
    "_scale_rows_", fake=lambda gradient, grad, factor: None, cuda=cuda.scale_rows_, reference=reference.scale_rows_
)
register("deviation_stats", fake=fake_stats, cuda=cuda.deviation_stats, reference=reference.deviation_stats)
