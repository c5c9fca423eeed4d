"""EmbedDistill: a retriever learns from a teacher's scores and from where its embeddings lie."""

from typing import Any

import torch
from torch import Tensor

from ..common.checks import (
    FLOATS,
    NAMES,
    autocasts,
    check_choice,
    check_dense,
    check_integer,
    check_number,
    fail,
    real_dtype,
)
from ..common.logits import check_target
from .checks import check_no_target, check_same_rows, check_weight, items_of
from .linear import linear_distill_loss
from .modules import Loss

PROJECTIONS = ("auto", "linear", "none")
METRICS = ("l2", "mse", "cosine")

_FN = "EmbeddingDistillationLoss"
_OWN = ("student_dim", "teacher_dim", "projection", "metric", "embedding_weight", "score_weight")


class EmbeddingDistillationLoss(Loss):
    """score_weight L_scores + embedding_weight (R_queries + R_documents), of a batch of queries and its documents.

    R is the distance of proj(student's embedding) from the teacher's, the mean over queries, and over documents where
    the student has its own. L_scores is linear_distill_loss of the scores of each query against every document, inner
    products (normalise embeddings for cosines, the teacher's too): alpha T^2 D + (1 - alpha) CE(scores, target). A
    document that is given twice is a false negative of itself.

    Symmetric: with `student_documents`; the student's scores are of its own embeddings, and the projection serves
    training alone. Asymmetric: without them; the scores are of proj(query) against the teacher's frozen documents.
    **Inference then needs the projection**: search the teacher's index with `loss.projection(student_queries)`.

    Called with student_queries [B, student_dim], teacher_queries [B, teacher_dim], teacher_documents [D, teacher_dim],
    target [B] and, by name, student_documents [D, student_dim], row_weight [B], num_items_in_batch; see forward.

    The paper's: the un-squared L2 distance (its gradient is 0 where the embeddings are equal), both R, one linear
    projection, the two ways to score. Ours: the other metrics and divergences, the mix by alpha in place of a sum of
    weights, T^2, the teacher's entropy taken off, and the weights' defaults; choose those so that the terms are of one
    size.

    Args:
        student_dim, teacher_dim: widths of the embeddings, 1 or more.
        projection: "auto": a torch.nn.Linear without bias where the widths differ, else none; "linear"; "none". It is
            all that state_dict() holds.
        metric: "l2" ||a - b||; "mse" the mean over dimensions of (a - b)^2; "cosine" 1 - cos(a, b), which is 1 for a
            zero vector.
        embedding_weight, score_weight: 0 or above, not both 0. A term of weight 0 is not computed.
        temperature, alpha, divergence, beta, label_smoothing, ignore_index, student_logit_scale, teacher_logit_scale,
            chunk_size, impl: of linear_distill_loss; the scales multiply the scores first.
    Raises:
        TypeError, ValueError: an argument, before any work.
    Source: 2301.12005.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        *,
        projection: str = "auto",
        metric: str = "l2",
        embedding_weight: float = 1.0,
        score_weight: float = 1.0,
        temperature: float | Tensor = 1.0,
        alpha: float | Tensor = 1.0,
        divergence: str = "forward_kl",
        beta: float = 0.5,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        student_logit_scale: float = 1.0,
        teacher_logit_scale: float = 1.0,
        chunk_size: int | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(_FN, {name: value for name, value in locals().items() if name not in _OWN})
        check_choice(_FN, "projection", projection, PROJECTIONS)
        check_choice(_FN, "metric", metric, METRICS)
        self.student_dim, self.teacher_dim = _width("student_dim", student_dim), _width("teacher_dim", teacher_dim)
        self.metric = metric
        self.embedding_weight = _term_weight("embedding_weight", embedding_weight)
        self.score_weight = _term_weight("score_weight", score_weight)
        if self.embedding_weight == self.score_weight == 0:
            fail(_FN, "score_weight", "above 0 beside an embedding_weight of 0", score_weight)
        if projection == "none" and student_dim != teacher_dim:
            fail(_FN, "projection", f"auto or linear from {student_dim} to {teacher_dim} dimensions", repr(projection))
        projects = projection == "linear" or student_dim != teacher_dim
        self.projection = torch.nn.Linear(student_dim, teacher_dim, bias=False) if projects else torch.nn.Identity()

    def forward(
        self,
        student_queries: Tensor,
        teacher_queries: Tensor,
        teacher_documents: Tensor | None = None,
        target: Tensor | None = None,
        *,
        student_documents: Tensor | None = None,
        row_weight: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Tensor:
        """The loss, 0-d, float32 (float64 for float64); gradients reach the student's embeddings and the projection.

        Args:
            student_queries: [B, student_dim], a float dtype; that of the projection unless under autocast.
            teacher_queries: [B, teacher_dim], constants, as all of the teacher's.
            teacher_documents: [D, teacher_dim]; needed but for score_weight=0, where queries may be matched alone.
            target: [B], each query's document, 0..D-1; needed for alpha below 1. A query of `ignore_index` does not
                count, in no term.
            student_documents: [D, student_dim] in student_queries' dtype, of the same documents; None: asymmetric.
            row_weight: [B], 0 or above, of the queries; one of weight 0 does not count, whatever it holds.
            num_items_in_batch: of queries, for gradient accumulation; R_documents then counts by the share of the
                queries that is here.
        """
        target, items = self._checked(
            student_queries,
            teacher_queries,
            teacher_documents,
            target,
            student_documents,
            row_weight,
            num_items_in_batch,
        )
        weights = self._weights(student_queries, target, row_weight)
        counts = (weights != 0).unsqueeze(-1)
        queries = torch.where(counts, student_queries, 0)  # what does not count may hold anything, and 0 * NaN is NaN
        projected = self.projection(queries)
        documents = None if teacher_documents is None else teacher_documents.detach().to(teacher_queries.dtype)
        terms: list[Tensor] = []
        if self.embedding_weight:
            total = weights.sum()
            divisor = torch.where(total > 0, total, 1) if items is None else items.to(weights.dtype)
            teacher = torch.where(counts, teacher_queries.detach(), 0)
            matched = (weights * self._distance(projected, teacher)).sum()
            if student_documents is not None and documents is not None:
                matched = matched + total * self._distance(self.projection(student_documents), documents).mean()
            terms.append(self.embedding_weight * matched / divisor)
        if self.score_weight and documents is not None:
            symmetric = student_documents is not None
            loss: Any = linear_distill_loss(
                queries if symmetric else projected,
                student_documents if student_documents is not None else documents.to(projected.dtype),
                teacher_queries,
                documents,
                target,
                row_weight=row_weight,
                num_items_in_batch=items,
                **self.options,
            )
            terms.append(self.score_weight * loss)
        return sum(terms[1:], terms[0])

    def _checked(
        self,
        student_queries: Tensor,
        teacher_queries: Tensor,
        teacher_documents: Tensor | None,
        target: Tensor | None,
        student_documents: Tensor | None,
        row_weight: Tensor | None,
        items: int | Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """target as int64, items as a tensor."""
        _check(student_queries, "student_queries", self.student_dim)
        _check(teacher_queries, "teacher_queries", self.teacher_dim)
        self._check_projects(student_queries)
        check_same_rows(_FN, "teacher_queries", teacher_queries, student_queries)
        if teacher_documents is None:
            if self.score_weight or target is not None or student_documents is not None:
                fail(_FN, "teacher_documents", "the documents for scores, target or student_documents", None)
        else:
            _check(teacher_documents, "teacher_documents", self.teacher_dim, teacher_queries)
            count = teacher_documents.shape[0]
            if count == 0:
                fail(_FN, "teacher_documents", "at least one document", 0)
            if target is not None:
                target = check_target(_FN, target, student_queries, count, self.options["ignore_index"])
            elif self.score_weight:
                check_no_target(_FN, self.options["alpha"])
            if student_documents is not None:
                _check(student_documents, "student_documents", self.student_dim, student_queries)
                if student_documents.dtype != student_queries.dtype:
                    wanted = f"student_queries' {student_queries.dtype}"
                    fail(_FN, "student_documents", wanted, student_documents.dtype, TypeError)
                if student_documents.shape[0] != count:
                    fail(_FN, "student_documents", f"{count} documents", student_documents.shape[0])
        if row_weight is not None:
            check_weight(_FN, row_weight, student_queries)
        return target, items_of(_FN, items, "mean", student_queries)

    def _check_projects(self, queries: Tensor) -> None:
        weight = getattr(self.projection, "weight", queries)
        if queries.dtype != weight.dtype and not autocasts(queries):
            fail(_FN, "student_queries", f"the projection's {weight.dtype}", queries.dtype, TypeError)

    def _weights(self, queries: Tensor, target: Tensor | None, row_weight: Tensor | None) -> Tensor:
        """[B]"""
        ones = queries.new_ones(queries.shape[0], dtype=real_dtype(queries))
        weights = ones if row_weight is None else row_weight.detach().to(ones.dtype)
        return weights if target is None else torch.where(target != self.options["ignore_index"], weights, 0)

    def _distance(self, projected: Tensor, teacher: Tensor) -> Tensor:
        """[n, teacher_dim] each -> [n]"""
        a, b = (x.to(real_dtype(projected)) for x in (projected, teacher))
        if self.metric == "l2":
            distance: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
            return distance
        if self.metric == "mse":
            return (a - b).square().mean(-1)
        norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
        return 1 - torch.where(norms > 0, (a * b).sum(-1) / torch.where(norms > 0, norms, 1), 0)

    def extra_repr(self) -> str:
        own = f"{self.student_dim}, {self.teacher_dim}, metric={self.metric!r}"
        weights = f"embedding_weight={self.embedding_weight}, score_weight={self.score_weight}"
        return f"{own}, {weights}, {super().extra_repr()}"


def _width(name: str, value: int) -> int:
    value = check_integer(_FN, name, value)
    if value < 1:
        fail(_FN, name, "at least 1", value)
    return value


def _term_weight(name: str, value: float) -> float:
    return check_number(_FN, name, value, "a number within 0..1e37", lambda x: 0 <= x < 1e37)


def _check(value: object, name: str, width: int, like: Tensor | None = None) -> None:
    value = check_dense(_FN, name, value)
    if value.dtype not in FLOATS:
        fail(_FN, name, NAMES, value.dtype, TypeError)
    if value.dim() != 2 or value.shape[1] != width:
        fail(_FN, name, f"[{'D' if 'documents' in name else 'B'}, {width}]", list(value.shape))
    if like is not None and value.device != like.device:
        fail(_FN, name, f"device {like.device}", value.device)
