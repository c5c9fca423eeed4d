"""Valid arguments for every public op, to test one's own backend, compiler or wrapper with."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..distill.reference import DIVERGENCES
from ..distill.topk import TAILS
from ..sampling.draw_reference import METHODS
from ..sampling.reference import KINDS

Example = Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]


def _logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _models(*shape: int) -> tuple[Tensor, Tensor]:
    return _logits(0, *shape), _logits(1, *shape)


def _distill_loss() -> tuple[tuple[Any, ...], dict[str, Any]]:
    student, teacher = _models(3, 7)
    return (student.requires_grad_(), teacher, None, torch.tensor(2.0), torch.tensor(1.0)), {}


def _distill_loss_every_option() -> tuple[tuple[Any, ...], dict[str, Any]]:
    student, teacher = _logits(0, 2, 3, 9), _logits(1, 2, 3, 8)
    target = torch.tensor([[0, -100, 6], [2, 5, 1]])
    per_row = torch.rand(2, 3, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.1
    options = {
        "label_smoothing": 0.1,
        "row_weight": per_row.flip(0),
        "num_items_in_batch": torch.tensor(4.0),
        "vocab_size": 7,
        "student_softcap": 5.0,
        "teacher_softcap": 6.0,
        "student_logit_scale": 0.7,
        "teacher_logit_scale": 0.9,
    }
    return (student.requires_grad_(), teacher, target, per_row + 1, per_row), options


def _distill_loss_rows() -> tuple[tuple[Any, ...], dict[str, Any]]:
    student, teacher = _models(4, 5)
    target = torch.tensor([4, 0, -1, 2])
    options = {"reduction": "none", "ignore_index": -1}
    return (student.requires_grad_(), teacher, target, torch.tensor(1.0), torch.tensor(0.3)), options


def _distill_loss_divergence(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    student, teacher = _models(3, 7)
    target, options = torch.tensor([0, -100, 6]), {"divergence": name, "beta": 0.3, "student_softcap": 5.0}
    return (student.requires_grad_(), teacher, target, torch.tensor(2.0), torch.tensor(0.6)), options


def _distill_loss_with_stats() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (*_models(3, 7), None, torch.tensor(2.0), torch.tensor(1.0)), {"return_stats": True}


def _heads() -> tuple[list[Tensor], list[Tensor]]:
    """Hidden states, weight and bias of student and teacher."""
    student = [_logits(seed, *shape).requires_grad_() for seed, shape in enumerate(((6, 4), (7, 4), (7,)))]
    return student, [_logits(3 + seed, *shape) for seed, shape in enumerate(((6, 3), (7, 3), (7,)))]


def _linear_distill_loss(name: str, reduction: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    (hidden, weight, bias), (other, other_weight, other_bias) = _heads()
    target = torch.tensor([0, -100, 5, 2, 2, 1])
    numbers = torch.tensor(2.0), torch.tensor(0.6)
    options = {"divergence": name, "beta": 0.3, "reduction": reduction, "student_softcap": 5.0, "vocab_size": 6}
    return (hidden, weight, other, other_weight, target, bias, other_bias, 4, *numbers), options


def _linear_distill_loss_squares() -> tuple[tuple[Any, ...], dict[str, Any]]:
    (hidden, weight, bias), (other, other_weight, _) = _heads()
    rows = [x.repeat(3, 1) * torch.linspace(1, 2, 18).unsqueeze(-1) for x in (hidden.detach(), other)]
    numbers = torch.tensor(2.0), torch.tensor(1.0)
    states = rows[0].requires_grad_(), weight, rows[1], other_weight
    return (*states, None, bias, None, None, *numbers), {"divergence": "logit_mse"}


def _linear_distill_loss_with_stats() -> tuple[tuple[Any, ...], dict[str, Any]]:
    (hidden, weight, _), (other, other_weight, _) = _heads()
    tensors = hidden.detach(), weight.detach(), other, other_weight, None, None, None, None
    return (*tensors, torch.tensor(2.0), torch.tensor(1.0)), {"return_stats": True}


def _linear_cross_entropy(reduction: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    (hidden, weight, bias), _ = _heads()
    target = torch.tensor([0, -100, 5, 2, 2, 1])
    return (hidden, weight, target, bias), {"label_smoothing": 0.1, "reduction": reduction, "softcap": 5.0}


def _topk_distill_loss(tail: str, divergence: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    student, teacher = _models(3, 7)
    values, indices = teacher.topk(3, sorted=False)
    stored = values, indices, (teacher / 2).logsumexp(-1)
    options = {"divergence": divergence, "beta": 0.3}
    return (student.requires_grad_(), *stored, None, tail, torch.tensor(2.0), torch.tensor(1.0)), options


def _topk_distill_loss_every_option(tail: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    (student, teacher, target, tau, alpha), options = _distill_loss_every_option()
    values, indices = teacher[..., :7].topk(2)
    seen = 6 * torch.tanh(0.9 * teacher[..., :7] / 6)
    return (student, values, indices, (seen / tau.unsqueeze(-1)).logsumexp(-1), target, tail, tau, alpha), options


def _soft_cross_entropy(entries: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    logits, other = _models(2, 3, 7)
    weight = torch.tensor([[0.5, 1.0, 0.0], [2.0, 0.1, 1.0]])
    if entries is None:
        return (logits.requires_grad_(), other.softmax(-1)), {"row_weight": weight}
    values, indices = other.topk(entries)
    return (logits.requires_grad_(), values.softmax(-1), indices, "none", weight), {}


def _deviation_stats() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _models(3, 7), {}


def _deviation_stats_every_option() -> tuple[tuple[Any, ...], dict[str, Any]]:
    options = {"vocab_size": 5, "student_softcap": 5.0, "teacher_softcap": 6.0, "student_logit_scale": 0.7}
    return (_logits(0, 2, 3, 9), _logits(1, 2, 3, 8)), options


def _topk(**options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (_logits(0, 4, 7).requires_grad_(), 3), options


def _gaussian_topk(k: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (_logits(0, 2, 3, 7).requires_grad_(), k), {}


def _topk_mlp(tokens: int, gated: bool, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    shapes = [(tokens, 5), (12, 5), (12,), (12, 4), (4,), (12, 5), (12,)]
    x, w_up, b_up, w_down, b_down, *gate = [_logits(i, *shape).requires_grad_() for i, shape in enumerate(shapes)]
    return (x, w_up, b_up, w_down, b_down, 3, *(gate if gated else (None, None))), options


def _softmax_stats() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (_logits(0, 3, 7).requires_grad_(), None, torch.tensor(1.0)), {}


def _stats_options() -> tuple[Any, ...]:
    """target, temperature, valid_mask, softcap and logit_scale of [2, 3] rows and 7 classes."""
    target = torch.tensor([[0, 1, 6], [2, 5, 1]])
    per_row = torch.rand(2, 3, generator=torch.Generator().manual_seed(2)) + 0.5
    mask = torch.arange(7) != 3
    return target, per_row, mask, 5.0, 0.7


def _softmax_stats_every_option() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (_logits(0, 2, 3, 7).requires_grad_(), *_stats_options()), {}


def _linear_softmax_stats() -> tuple[tuple[Any, ...], dict[str, Any]]:
    (hidden, weight, _), _ = _heads()
    return (hidden, weight, None, None, torch.tensor(2.0)), {}


def _linear_softmax_stats_every_option() -> tuple[tuple[Any, ...], dict[str, Any]]:
    (hidden, weight, bias), _ = _heads()
    hidden = hidden.detach().view(2, 3, 4).requires_grad_()
    return (hidden, weight, bias, *_stats_options()), {"chunk_size": 4}


def _disagreement(kind: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (*_models(2, 3, 7), _stats_options()[0]), {"kind": kind}


def _importance_sample(method: str, weights: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    probs = torch.rand(40, generator=torch.Generator().manual_seed(0))
    probs[3] = 0
    ids = torch.arange(40).flip(0) * 2**33 - 7
    k = None if method == "poisson" else 6
    return (probs, k, method, ids if weights == "draw" else None, 2**40 + 1, -2), {"cap": 5.0, "weights": weights}


def _kmeans_assign(metric: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (_logits(0, 9, 5), _logits(1, 4, 5)), {"metric": metric}


def _pq_encode(centroids: int, eta: float) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, directions = _logits(0, 9, 7), torch.nn.functional.normalize(_logits(1, 9, 7), dim=1)
    return (x, _logits(2, 3, centroids, 3), None if eta == 1 else directions, eta), {"rounds": 5}


def _codes(n: int, parts: int, bits: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1 << bits, (n, parts), generator=g, dtype=torch.uint8)
    packed: Tensor = torch.ops.tamis._pq_pack(codes, bits)
    return packed


def _pq_scan(bits: int, lookup: str, allowed: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    lut, who = _logits(0, 3, 4, 1 << bits), torch.arange(70) % 3 == 0
    return (lut.sign() if lookup == "s8" else lut, _codes(70, 4, bits), 70, 5, lookup, who if allowed else None), {}


def _rerank(metric: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    candidates = torch.tensor([[3, -1, 0, 3], [1, 2, 4, 0]])
    return (_logits(0, 2, 5), candidates, _logits(1, 6, 5), 3, metric), {}


def _rank_of(metric: str, ties: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    vectors = _logits(1, 20, 5)[torch.arange(30) % 20]  # ten come twice
    weights = torch.arange(30) % 4 if ties == "last" else None
    return (_logits(0, 3, 5), torch.tensor([[0, 25, -1]] * 3), vectors, weights, metric, ties), {}


def _ivf_search(bits: int, l2: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Two lists, of 30 vectors and of 10; k so that all reach the exact comparison."""
    x, parts = _logits(1, 40, 6), 4
    half_norms, constants = (x.square().sum(1) / 2, _logits(2, 2, 1 << bits)) if l2 else (None, None)
    lists = {
        "centroids": torch.full((1, 2, 64), 130, dtype=torch.uint8),
        "centroid_scale": 0.01,
        "order_bias": torch.tensor([0.1, 0.2]),
        "score_bias": torch.zeros(2),
        "start": torch.tensor([0, 30, 40]),
        "block": torch.tensor([0, 1, 2]),
        "codebooks": _logits(3, 2 if l2 else 4, 3 if l2 else 2, 1 << bits),
        "constants": constants,
        "codes": _codes(64 if bits == 4 else 128, parts, bits),
        "bytes": torch.randint(0, 255, (40, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8),
        "byte_scale": 0.01,
        "half_norms": half_norms,
        "exact": x,
        "ids": None if l2 else torch.arange(40).flip(0),
        "center": _logits(4, 6) if l2 else None,
    }
    return (_logits(0, 3, 6), 28, 2, 40, *lists.values(), "u16", torch.arange(40) % 5 != 0), {}


def op_examples() -> dict[str, list[Example]]:
    """{op name: [callable, ...]} for every public op and no other.

    Each call gives fresh, small, valid (args, kwargs) for `torch.ops.tamis.<name>` on CPU. They stay valid when every
    floating tensor becomes float64. A differentiable op has examples whose inputs require a gradient, at points where
    it is smooth.
    """
    return {
        "kmeans_assign": [partial(_kmeans_assign, metric) for metric in ("l2", "ip")],
        "pq_lut": [lambda: ((_logits(0, 3, 7), _logits(1, 4, 16, 2)), {})],
        "pq_scan": [partial(_pq_scan, bits, name, name == "s8") for bits in (4, 6) for name in ("s8", "u16")],
        "rerank": [partial(_rerank, metric) for metric in ("ip", "l2")],
        "ivf_search": [partial(_ivf_search, bits, l2) for bits in (4, 6) for l2 in (False, True)],
        "rank_of": [partial(_rank_of, metric, ties) for metric, ties in (("ip", "last"), ("l2", "first"))],
        "pq_encode": [partial(_pq_encode, centroids, eta) for centroids, eta in ((4, 1.0), (16, 4.0), (20, 4.0))],
        "deviation_stats": [_deviation_stats, _deviation_stats_every_option],
        "disagreement": [partial(_disagreement, kind) for kind in KINDS],
        "linear_cross_entropy": [partial(_linear_cross_entropy, reduction) for reduction in ("mean", "none")],
        "linear_distill_loss": [
            *(partial(_linear_distill_loss, name, "sum") for name in ("forward_kl", "jsd")),
            *(partial(_linear_distill_loss, name, "none") for name in DIVERGENCES),
            *(_linear_distill_loss_squares, _linear_distill_loss_with_stats),
        ],
        "distill_loss": [
            *(_distill_loss, _distill_loss_every_option, _distill_loss_rows, _distill_loss_with_stats),
            *(partial(_distill_loss_divergence, name) for name in DIVERGENCES[1:]),
        ],
        "linear_softmax_stats": [_linear_softmax_stats, _linear_softmax_stats_every_option],
        "softmax_stats": [_softmax_stats, _softmax_stats_every_option],
        "importance_sample": [
            *(partial(_importance_sample, method, "draw") for method in METHODS),
            *(partial(_importance_sample, method, "inclusion") for method in METHODS[:2]),
        ],
        "soft_cross_entropy": [_soft_cross_entropy, partial(_soft_cross_entropy, 3), partial(_soft_cross_entropy, 7)],
        "gaussian_topk": [partial(_gaussian_topk, 2), partial(_gaussian_topk, 7)],
        "topk_mlp": [
            *(partial(_topk_mlp, tokens, gated) for tokens in (2, 10) for gated in (False, True)),
            partial(_topk_mlp, 3, True, activation="silu", selection="gaussian"),
            partial(_topk_mlp, 10, False, activation="gelu"),
        ],
        "topk": [_topk, partial(_topk, dim=0, sorted=False)],
        "topk_distill_loss": [
            *(partial(_topk_distill_loss_every_option, tail) for tail in TAILS),
            *(partial(_topk_distill_loss, "bucket", name) for name in DIVERGENCES[:-1]),
        ],
    }
