"""The loss-based plug-in of 2301.12386: one backbone, a head for the classes, a head for inlier or wild."""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.checks import fail
from .ops import softmax_stats
from .selective_rules import Array

FN = "SelectiveClassifier"
_ROWS = 1024  # at a time, where nothing is trained


class Outputs(NamedTuple):
    """features [n, width], logits [n, classes], log_ratio [n] (log P_in/P_wild; None without a wild head)."""

    features: Array
    logits: Array
    log_ratio: Array | None


class TwoHeads(nn.Module):
    """logits and log_ratio of a batch; the wild head is there where it is trained."""

    def __init__(self, backbone: nn.Module, width: int, classes: int, wild: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = nn.Linear(width, classes)
        self.wild = nn.Linear(width, 1) if wild else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        features = self.backbone(x).flatten(1)
        return features, self.classes(features), self.wild(features).squeeze(1) if self.wild is not None else None


def train(
    backbone: nn.Module,
    x: npt.NDArray[Any],
    y: npt.NDArray[np.int64],
    classes: int,
    wild: npt.NDArray[Any] | None = None,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
) -> TwoHeads:
    """E_in CE(y, f) + E_in softplus(-s) + E_wild softplus(s) (eq. 10) by AdamW, its rate down to 0 by a cosine.

    Each step takes as many inliers as wild points: else s would hold the logarithm of their numbers' ratio too. Without
    wild points it is cross-entropy alone. The same arguments give the same bits; the caller's random state stays.

    Args:
        backbone: [rows, ...] to features [rows, ...]; copied, its weights are where training starts.
        x: [n, ...]; floating inputs are given to it in the dtype of its parameters, integers as they are.
        y: [n], 0 to classes - 1.
        wild: [m, ...].
    """
    model = copy.deepcopy(backbone)
    like = next(model.parameters(), torch.empty(0))
    with torch.random.fork_rng([like.device] if like.device.type != "cpu" else []):
        torch.manual_seed(seed)
        model.eval()
        with torch.no_grad():
            features = model(_inputs(x[:2], like))
        if not isinstance(features, Tensor) or features.dim() < 2 or len(features) != len(x[:2]):
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            fail(FN, "estimator", "a backbone that gives features [rows, ...]", got, TypeError)
        heads = TwoHeads(model, features.flatten(1).shape[1], classes, wild is not None).to(like.device, features.dtype)
        inlier, target, other = _inputs(x, like), torch.as_tensor(y, device=like.device), None
        size = min(batch_size, len(x), len(x) if wild is None else len(wild))
        batches = _batches(len(x), size, seed)
        if wild is not None:
            other, others = _inputs(wild, like), _batches(len(wild), size, seed + 1)
        optimizer = torch.optim.AdamW(heads.parameters(), lr=learning_rate, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        heads.train()
        for _ in range(steps):
            rows = next(batches)
            batch = inlier[rows]
            if other is not None:  # in one pass: a batch normalisation sees the traffic's mixture
                batch = torch.cat([batch, other[next(others)]])
            _, logits, log_ratio = heads(batch)
            loss = F.cross_entropy(logits[: len(rows)], target[rows])
            if log_ratio is not None:
                loss = loss + F.softplus(-log_ratio[: len(rows)]).mean() + F.softplus(log_ratio[len(rows) :]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if not loss.isfinite():
        fail(FN, "learning_rate", "one with which the loss stays finite", learning_rate)
    return heads.eval()


def _inputs(x: npt.NDArray[Any], like: Tensor) -> Tensor:
    floating = np.issubdtype(x.dtype, np.floating)
    return torch.as_tensor(x, dtype=like.dtype if floating else None, device=like.device)


def _batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Rows, epoch after epoch, each in a new order."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.int64)
    while True:
        if len(left) < size:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:size]
        left = left[size:]


def outputs(heads: TwoHeads, x: npt.NDArray[Any]) -> Outputs:
    """Of every row, not trained."""
    like = next(heads.parameters())
    parts: list[list[Array]] = [[], [], []]
    with torch.no_grad():
        for start in range(0, len(x), _ROWS):
            for part, got in zip(parts, heads(_inputs(x[start : start + _ROWS], like)), strict=True):
                if got is not None:
                    part.append(got.double().cpu().numpy())
    features, logits, log_ratio = (np.concatenate(part) if part else None for part in parts)
    assert features is not None and logits is not None
    return Outputs(features, logits, log_ratio)


def error_of(logits: Array) -> Array:
    """[n], 1 - the largest probability."""
    error: Array = 1 - softmax_stats(torch.from_numpy(logits)).max_prob.numpy()
    return error
