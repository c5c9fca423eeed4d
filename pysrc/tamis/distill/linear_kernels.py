"""The loss of hidden states and a head: torch's matrix products around the row kernels, never rows x classes at once.

chunked: some rows at a time; their logits are computed, the row kernel writes the gradient over them, and both products
         of the backward follow at once. No product is computed twice.
tiled:   some classes at a time for all rows; sums first, and in the backward the logits again. For what a chunk cannot
         know in the forward pass (a gradient a row) or would need too much memory for (plan says when).
gram:    the squared error of logits from W^T W: products of hidden sizes alone, in float64, for they nearly cancel.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.checks import check_like, reads_values, real_dtype
from ..common.linear import HALF, Sum, chunk_rows, formed_dtype, product
from .checks import check_heads
from .cuda import STATE
from .reference import divisor_of

TILE = 2**21  # logits of a tile


class Call(NamedTuple):
    """The raw op's arguments, in its order; without a teacher the loss is cross-entropy."""

    student_hidden: Tensor
    student_weight: Tensor
    teacher_hidden: Tensor | None
    teacher_weight: Tensor | None
    target: Tensor | None
    student_bias: Tensor | None
    teacher_bias: Tensor | None
    chunk_size: int | None
    temperature: Tensor
    alpha: Tensor
    divergence: str = "forward_kl"
    beta: float = 0.5
    label_smoothing: float = 0.0
    ignore_index: int = -100
    reduction: str = "mean"
    row_weight: Tensor | None = None
    num_items_in_batch: Tensor | None = None
    vocab_size: int | None = None
    student_softcap: float | None = None
    teacher_softcap: float | None = None
    student_logit_scale: float = 1.0
    teacher_logit_scale: float = 1.0
    return_stats: bool = False

    @property
    def differentiable(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.student_hidden, self.student_weight, self.student_bias

    @property
    def rows(self) -> int:
        return self.student_hidden.shape[:-1].numel()

    @property
    def classes(self) -> int:
        return self.student_weight.shape[0] if self.vocab_size is None else self.vocab_size


class Wanted(NamedTuple):
    """Which gradients."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False


def wanted_of(call: Call) -> Wanted:
    grad = torch.is_grad_enabled()
    return Wanted(*(grad and x is not None and x.requires_grad for x in call.differentiable))


class Plan(NamedTuple):
    kernel: str  # chunked, tiled or gram
    step: int  # rows a chunk, or classes a tile
    reason: str


def plan(call: Call, wanted: Wanted) -> Plan:
    """By rows N, classes V, hidden sizes H, and what needs a gradient."""
    hidden, rows = call.student_hidden, call.rows
    chunk = min(_chunk_rows(call), max(rows, 1))
    tile = _tile_width(call)
    if call.teacher_hidden is not None and _only_squares(call):
        sizes = hidden.shape[-1] + call.teacher_hidden.shape[-1]
        least = min(rows, call.classes)
        if least >= 2 * sizes:  # no more multiplications, also at float64's half rate
            return Plan("gram", tile, f"logit_mse alone, and min(N, V) = {least} >= 2 (H + H teacher) = {2 * sizes}")
    if call.reduction == "none" and any(wanted):
        return Plan("tiled", tile, "a gradient a row is known in the backward only")
    many, wide = rows > chunk, hidden.shape[-1] > rows
    if wanted.weight and many and wide and call.student_weight.dtype in HALF:
        return Plan("tiled", tile, f"a float32 sum of weight gradients would outgrow the logits: H > N = {rows}")
    return Plan("chunked", chunk, f"{chunk} of {rows} rows at a time")


def _chunk_rows(call: Call) -> int:
    return call.chunk_size or chunk_rows(call.student_hidden)


def _tile_width(call: Call) -> int:
    return min(call.chunk_size or max(256, min(8192, TILE // max(call.rows, 1) // 64 * 64)), call.classes)


def _only_squares(call: Call) -> bool:
    alone = call.alpha.dim() == 0 and reads_values(call.alpha) and float(call.alpha) == 1
    capped = call.student_softcap or call.teacher_softcap
    return alone and call.divergence == "logit_mse" and not (capped or call.return_stats) and call.reduction != "none"


class Result(NamedTuple):
    loss: Tensor
    factor: Tensor  # 0-d, of the gradients: what half precision could not have folded in
    gradients: list[Tensor]  # those wanted, in Wanted's order
    stats: list[Tensor]


def run(call: Call, wanted: Wanted) -> Result:
    """Loss, gradients and statistics, for autocast has no say in here."""
    with torch.autocast(call.student_hidden.device.type, enabled=False):
        way = plan(call, wanted)
        leading = call.student_hidden.shape[:-1]
        flat = _flat(call)
        index = _kept_rows(flat)
        if index is not None:
            flat = _rows(flat, index)
        result = (_gram if way.kernel == "gram" else _chunked)(flat, wanted, way.step)
        return _restored(result, call, wanted, index, leading)


def _flat(call: Call) -> Call:
    """Checked, for the raw op is anybody's; leading axes as one."""
    fn = "linear_cross_entropy" if call.teacher_hidden is None else "linear_distill_loss"
    student = call.differentiable
    teacher = (call.teacher_hidden, call.teacher_weight, call.teacher_bias)
    check_heads(fn, student, None if call.teacher_hidden is None else teacher, call.vocab_size)
    leading = call.student_hidden.shape[:-1]
    per_row = {name: getattr(call, name) for name in ("target", "temperature", "alpha", "row_weight")}
    for name, x in per_row.items():
        if x is not None and (x.dim() or name in ("target", "row_weight")):
            check_like(fn, name, x, leading, call.student_hidden.device)
            per_row[name] = x.reshape(-1)
    states = {name: getattr(call, name) for name in ("student_hidden", "teacher_hidden")}
    states = {name: x if x is None else x.detach().reshape(-1, x.shape[-1]) for name, x in states.items()}
    return call._replace(student_weight=call.student_weight.detach(), **states, **per_row)


def _kept(call: Call) -> Tensor | None:
    """[rows]: which count; None where all do."""
    kept = None if call.row_weight is None else call.row_weight != 0
    if call.target is not None:
        labelled = call.target != call.ignore_index
        kept = labelled if kept is None else kept & labelled
    return kept


def _kept_rows(call: Call) -> Tensor | None:
    """The places of the rows that count, where others need not be computed; elsewhere asking would wait."""
    kept = _kept(call)
    if kept is None or call.student_hidden.device.type != "cpu" or call.return_stats or bool(kept.all()):
        return None
    return kept.nonzero().squeeze(-1)


def _rows(call: Call, index: Tensor | slice) -> Call:
    def take(x: Tensor) -> Tensor:
        return x[index] if x.dim() else x

    return call._replace(
        student_hidden=call.student_hidden[index],
        teacher_hidden=None if call.teacher_hidden is None else call.teacher_hidden[index],
        target=None if call.target is None else call.target[index],
        temperature=take(call.temperature),
        alpha=take(call.alpha),
        row_weight=None if call.row_weight is None else call.row_weight[index],
    )


def _restored(result: Result, call: Call, wanted: Wanted, index: Tensor | None, leading: torch.Size) -> Result:
    """Rows that were not computed get 0; leading axes as they were."""
    loss, factor, gradients, stats = result
    if index is not None:
        if loss.dim():
            loss = loss.new_zeros(call.rows).index_copy_(0, index, loss)
        if wanted.hidden:
            whole = gradients[0].new_zeros(call.rows, gradients[0].shape[-1])
            gradients = [whole.index_copy_(0, index, gradients[0]), *gradients[1:]]
    if loss.dim():
        loss = loss.reshape(leading)
    if wanted.hidden:
        gradients = [gradients[0].reshape(call.student_hidden.shape), *gradients[1:]]
    return Result(loss, factor, gradients, [x.reshape(leading) for x in stats])


class _Reduction(NamedTuple):
    divisor: Tensor  # 0-d float64, of the loss
    scale: Tensor  # 0-d float64: the factor folded into the gradient
    factor: Tensor  # 0-d: the factor still to come


def _reduction(call: Call) -> _Reduction:
    """As the row kernel's: half precision takes the level of the weights alone, or its gradients would underflow."""
    one = torch.ones((), dtype=torch.float64, device=call.student_hidden.device)
    kept = _kept(call)
    weights = one.expand(call.rows) if call.row_weight is None else call.row_weight.double()
    if kept is not None:
        weights = torch.where(kept, weights, 0)
    divisor = divisor_of(weights, call.reduction, call.num_items_in_batch)
    real = real_dtype(call.student_hidden)
    if call.student_hidden.dtype != torch.float16:
        return _Reduction(divisor, 1 / divisor, one.to(real))
    mean = weights.sum() / (call.rows if kept is None else kept.sum())
    level = torch.where((mean > 0) & mean.isfinite(), mean, 1)
    return _Reduction(divisor, 1 / level, (level / divisor).to(real))


def _head(weight: Tensor | None, bias: Tensor | None, classes: slice) -> tuple[Tensor, Tensor | None]:
    assert weight is not None
    return weight.detach()[classes], None if bias is None else bias.detach()[classes]


def _row_arguments(call: Call) -> tuple[object, ...]:
    """What the row kernels take behind the logits."""
    return (
        call.target, call.temperature, call.alpha, call.divergence, call.beta, call.label_smoothing, call.ignore_index,
        call.row_weight, None, call.student_softcap, call.teacher_softcap, call.student_logit_scale,
        call.teacher_logit_scale,
    )  # fmt: skip


def _reduced(losses: Tensor, call: Call, divisor: Tensor) -> Tensor:
    return losses if call.reduction == "none" else (losses.double().sum() / divisor).to(losses.dtype)


def _counted(call: Call) -> Tensor:
    """The student's hidden states, 0 in rows that do not count: these may hold anything, and 0 * NaN is NaN."""
    kept = _kept(call)
    return call.student_hidden if kept is None else torch.where(kept.unsqueeze(-1), call.student_hidden, 0)


class _Gradients:
    """Where the gradients of a call go; those not wanted are None. formed: their factor is still to come."""

    def __init__(self, call: Call, wanted: Wanted, formed: bool) -> None:
        weight, bias = call.student_weight, call.student_bias
        self.dtype = formed_dtype(weight.dtype) if formed else weight.dtype
        self.hidden = torch.empty_like(call.student_hidden) if wanted.hidden else None
        self.weight = weight.new_empty(weight.shape, dtype=self.dtype) if wanted.weight else None
        self.bias = None
        if wanted.bias and bias is not None:
            self.bias = bias.new_zeros(bias.shape, dtype=real_dtype(bias))
        if self.weight is not None:
            self.weight[call.classes :] = 0

    def found(self) -> list[Tensor]:
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return [x for x in (self.hidden, self.weight, bias) if x is not None]


def _chunked(call: Call, wanted: Wanted, step: int) -> Result:
    hidden, rows, classes = call.student_hidden, call.rows, call.classes
    step = max(1, min(step, rows))
    heads = [_head(call.student_weight, call.student_bias, slice(classes))]
    buffers = [hidden.new_empty(step, classes)]
    if call.teacher_hidden is not None:
        heads.append(_head(call.teacher_weight, call.teacher_bias, slice(classes)))
        buffers.append(call.teacher_hidden.new_empty(step, classes))
    reduction, counted = _reduction(call), _counted(call)
    losses = hidden.new_empty(rows, dtype=real_dtype(hidden))
    stats: list[list[Tensor]] = []
    out = _Gradients(call, wanted, True)
    d_weight = None if out.weight is None else Sum(out.weight[:classes], rows > step)
    for begin in range(0, max(rows, 1), step):
        part = slice(begin, min(begin + step, rows))
        chunk = _rows(call, part)
        states = [x for x in (chunk.student_hidden, chunk.teacher_hidden) if x is not None]
        logits = [
            product(x, *head, buffer[: chunk.rows]) for x, head, buffer in zip(states, heads, buffers, strict=True)
        ]
        gradient, teacher = logits[0], logits[1] if len(logits) > 1 else None
        losses[part], *more = torch.ops.tamis._distill_rows_.default(
            gradient, teacher, *_row_arguments(chunk), reduction.scale if any(wanted) else None, call.return_stats
        )
        stats.append(more)
        if out.hidden is not None:
            torch.mm(gradient, heads[0][0], out=out.hidden[part])
        if d_weight is not None:
            d_weight.add(gradient.T, counted[part])
        if out.bias is not None:
            out.bias[:classes] += gradient.sum(0, dtype=out.bias.dtype)
    if d_weight is not None:
        d_weight.finish()
    whole = [torch.cat(parts) for parts in zip(*stats, strict=True)]
    return Result(_reduced(losses, call, reduction.divisor), reduction.factor, out.found(), whole)


def _beside_one(hidden: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """[N, H] or, where there is a bias, [N, H + 1]: what a head times its bias beside it takes."""
    x = hidden.double()
    return scale * (x if bias is None else torch.cat([x, x.new_ones(x.shape[0], 1)], 1))


def _heads(call: Call, tile: slice) -> Tensor:
    """[classes of the tile, columns]: both heads, each with its bias beside it."""
    models = (call.student_weight, call.student_bias), (call.teacher_weight, call.teacher_bias)
    parts = [_head(weight, bias, tile) for weight, bias in models]
    columns = [x for weight, bias in parts for x in (weight, None if bias is None else bias.unsqueeze(-1))]
    heads = torch.cat([x.double() for x in columns if x is not None], 1)
    (_, mine), (_, other) = parts
    if mine is None or other is None:
        return heads
    masked = (mine == -math.inf) & (other == -math.inf)  # -inf in both is no difference
    return torch.where(masked.unsqueeze(-1), 0, heads)


def _gram(call: Call, wanted: Wanted, step: int) -> Result:
    """mean over classes of (s - t)^2: with x = [h, 1] and W = [weight, bias], s - t = [W_s, W_t] [x_s, -x_t]."""
    hidden, teacher = call.student_hidden, call.teacher_hidden
    assert teacher is not None
    reduction, kept = _reduction(call), _kept(call)
    student = _beside_one(hidden, call.student_bias, call.student_logit_scale)
    both = torch.cat([student, -_beside_one(teacher, call.teacher_bias, call.teacher_logit_scale)], 1)
    weights = both.new_ones(call.rows) if call.row_weight is None else call.row_weight.double()
    if kept is not None:  # what does not count may hold anything
        weights, both = torch.where(kept, weights, 0), torch.where(kept.unsqueeze(-1), both, 0)
    if call.target is not None:  # a bad one gives no number, as in the row kernel
        inside = (call.target >= 0) & (call.target < call.classes)
        weights = torch.where(inside | (weights == 0), weights, math.nan)
    sound = (call.temperature > 0) & (call.temperature < math.inf) & (weights >= 0)
    weights = torch.where(sound | (weights == 0), weights, math.nan)
    tiles = [slice(begin, min(begin + step, call.classes)) for begin in range(0, call.classes, step)]
    gram = both.new_zeros(both.shape[1], both.shape[1])
    for tile in tiles:
        heads = _heads(call, tile)
        gram.addmm_(heads.T, heads)
    slope = both @ gram
    losses = weights * (slope * both).sum(-1).clamp_min(0) / call.classes
    of_rows = (2 / call.classes) * reduction.scale * weights.unsqueeze(-1)
    gradients: list[Tensor] = []
    width, columns = hidden.shape[1], student.shape[1]
    if wanted.hidden:
        gradients.append((of_rows * call.student_logit_scale * slope[:, :width]).to(hidden.dtype))
    if wanted.weight or wanted.bias:
        moment = both.T @ (of_rows * both[:, :columns])
        weight, bias = call.student_weight, call.student_bias
        dtype = formed_dtype(weight.dtype)
        d_weight = weight.new_zeros(weight.shape, dtype=dtype)
        d_bias = None if bias is None else bias.new_zeros(bias.shape, dtype=dtype)
        for tile in tiles:
            part = _heads(call, tile) @ moment
            d_weight[tile] = part[:, :width]
            if d_bias is not None:
                d_bias[tile] = part[:, width]
        if wanted.weight:
            gradients.append(d_weight)
        if wanted.bias and d_bias is not None:
            gradients.append(d_bias)
    loss = (losses.sum() / reduction.divisor).to(real_dtype(hidden))
    return Result(loss, reduction.factor, gradients, [])


def sums(call: Call) -> list[Tensor]:
    """The tiled forward: [loss, state [rows, STATE], *statistics]."""
    hidden = call.student_hidden
    with torch.autocast(hidden.device.type, enabled=False):
        leading, flat = hidden.shape[:-1], _flat(call)
        stats = _chunked(flat, Wanted(), _chunk_rows(call)).stats if call.return_stats else []  # they need whole rows
        index = _kept_rows(flat)
        flat = flat if index is None else _rows(flat, index)
        part = hidden.new_zeros(flat.rows, STATE, dtype=real_dtype(hidden))
        losses = part.new_empty(flat.rows)
        compares = call.divergence == "total_variation" or (call.divergence == "jsd" and 0 < call.beta < 1)
        for stage in ("sum", "compare") if compares else ("sum",):
            for tile, logits in _tiles(flat):
                losses = _distill_tile(flat, logits, part, tile, stage)
        state = part if index is None else part.new_zeros(call.rows, STATE).index_copy_(0, index, part)
        loss = _reduced(losses, flat, _reduction(flat).divisor)
        result = _restored(Result(loss, loss, [], stats), call, Wanted(), index, leading)
        return [result.loss, state, *result.stats]


def backward(grad: Tensor, state: Tensor, call: Call, wanted: Wanted) -> list[Tensor]:
    """The gradients wanted, from the state of sums(call); grad in the loss's shape."""
    with torch.autocast(call.student_hidden.device.type, enabled=False):
        flat = _flat(call)
        grad = grad.reshape(-1) if grad.dim() else grad
        index = _kept_rows(flat)
        if index is not None:
            flat, state, grad = _rows(flat, index), state[index], grad[index] if grad.dim() else grad
        (divisor, scale, factor), counted, grad = _reduction(flat), _counted(flat), grad.to(state.dtype)
        late = None  # the factor of float16's products: in the tiles it would underflow, after them they overflow
        if flat.student_hidden.dtype == torch.float16:
            size = grad.abs().amax() if grad.numel() else grad.new_ones(())
            size = torch.where((size > 0) & size.isfinite(), size, 1)
            grad, late = grad / size, size * factor
        out = _Gradients(flat, wanted, False)
        d_hidden = None if out.hidden is None else Sum(out.hidden, True)
        for tile, logits in _tiles(flat):
            _distill_tile(flat, logits, state, tile, "gradient", grad, scale)
            if d_hidden is not None:
                d_hidden.add(logits[0], flat.student_weight[tile])
            if out.weight is not None:
                d_weight = Sum(out.weight[tile], late is not None)
                d_weight.add(logits[0].T, counted)
                d_weight.finish(late)
            if out.bias is not None:
                d_bias = logits[0].sum(0, dtype=out.bias.dtype)
                out.bias[tile] = d_bias if late is None else d_bias * late
        if d_hidden is not None:
            d_hidden.finish(late)
        result = Result(divisor, factor, out.found(), [])
        return _restored(result, call, wanted, index, call.student_hidden.shape[:-1]).gradients


def _tiles(call: Call) -> Iterator[tuple[slice, list[Tensor]]]:
    """Some classes at a time: which, and their logits [rows, classes] of each model."""
    models = [(call.student_hidden, call.student_weight, call.student_bias)]
    if call.teacher_hidden is not None and call.teacher_weight is not None:
        models.append((call.teacher_hidden, call.teacher_weight, call.teacher_bias))
    step = _tile_width(call)
    buffers = [hidden.new_empty(call.rows * step) for hidden, *_ in models]
    for begin in range(0, call.classes, step):
        tile = slice(begin, min(begin + step, call.classes))
        width = tile.stop - begin
        yield (
            tile,
            [
                product(hidden, *_head(weight, bias, tile), buffer[: call.rows * width].view(call.rows, width))
                for (hidden, weight, bias), buffer in zip(models, buffers, strict=True)
            ],
        )


def _distill_tile(
    call: Call,
    logits: list[Tensor],
    state: Tensor,
    tile: slice,
    stage: str,
    grad: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    teacher = logits[1] if len(logits) > 1 else None
    losses: Tensor = torch.ops.tamis._distill_tile_.default(
        logits[0], teacher, *_row_arguments(call), state, tile.start, call.classes, stage, grad, scale
    )
    return losses
