"""What sparsity saves, end to end: a trained model dense and sparsified, operations counted, time measured."""

import copy
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ..common.checks import check_integer, fail
from ..sparse_mlp import restore, sparsify
from .lazy_neuron_meter import fires
from .lazy_neuron_models import Decoder, Size, block_flops
from .lazy_neuron_text import SYMBOLS, next_symbol_loss, scores, source_corpus, windows
from .lazy_neuron_train import generators, seeded, steps
from .runner import Record

DENSE = "dense"


@dataclass(frozen=True)
class Speed:
    """A character model with MLPs wide enough for decoding to be bound by their weights.

    Args:
        ks: of the d_ff units; trained_k: the one that a second model is trained with from the start.
        narrow: units of a third model, which is not trained and decodes only.
        tokens: held-out characters that are decoded one by one, in one run.
        repeats, train_repeats: of every timing of decoding, of a training step.
    """

    d: int = 256
    d_ff: int = 4096
    narrow: int = 2048
    layers: int = 2
    context: int = 64
    batch: int = 8
    steps: int = 150
    learning_rate: float = 1e-3
    ks: tuple[int, ...] = (1024, 512, 256, 128)
    trained_k: int = 256
    held: int = 48
    tokens: int = 64
    repeats: int = 15
    train_repeats: int = 7


def compare(
    model: nn.Module,
    ks: Sequence[int],
    run: Callable[[], int],
    score: Callable[[], Mapping[str, float]] = dict,
    *,
    repeats: int = 15,
) -> dict[str, Record]:
    """A trained model dense and with k neurons a token, for every k: how fast, how good. It is dense again afterwards.

    Args:
        model: with MLPs that sparsify knows; ReLU ones gain without harm where few of their values are not 0.
        ks: neurons a token.
        run: what is timed; calls the model and returns how many tokens that were.
        score: what it is worth, by name; not `seconds` or `nonzero`.
        repeats: timed runs of each, in turn, after one that is not timed.
    Returns:
        dict: by "dense" and str(k): `seconds` a token of each repeat, `nonzero`, percent of the hidden values that are
        not 0 in `run`, by the MLP's name, and what `score` says.
    Raises:
        TypeError, ValueError: an argument, or what `run` and `score` gave; a model without MLPs that sparsify knows, of
        which what it has is listed.
    """
    fn = "compare"
    if not isinstance(model, nn.Module):
        raise TypeError(f"tamis.{fn}: model: expected a torch.nn.Module, got {type(model).__name__}")
    if len(set(ks)) < len(ks):
        fail(fn, "ks", "none twice", list(ks))
    if check_integer(fn, "repeats", repeats) < 1:
        fail(fn, "repeats", "1 or more", repeats)
    fires(model, lambda: None)  # raises before any work
    rows: dict[str, Record] = {}
    try:
        for each in ks:  # and where none of its MLPs can be made sparse
            _make(model, each)
        for repeat in range(-1, repeats):
            for k in (None, *ks):
                _make(model, k)
                name = DENSE if k is None else str(k)
                if repeat < 0:
                    nonzero = {mlp: each.nonzero for mlp, each in fires(model, lambda: _counted(run())).items()}
                    if not nonzero:
                        fail(fn, "run", "a call of the model", "none of its MLPs was called")
                    said = dict(score())
                    if taken := said.keys() & {"seconds", "nonzero"}:
                        fail(fn, "score", "names of its own", sorted(taken))
                    rows[name] = {"seconds": [], "nonzero": nonzero} | said
                    continue
                run()  # the caches are the last one's
                begun = time.perf_counter()
                tokens = run()
                rows[name]["seconds"].append((time.perf_counter() - begun) / tokens)
    finally:
        restore(model)
    return rows


def _counted(tokens: int) -> None:
    if check_integer("compare", "run", tokens) < 1:
        fail("compare", "run", "how many tokens it made, 1 or more", tokens)


def _make(model: nn.Module, k: int | None) -> None:
    if k is None:
        restore(model)
    else:
        sparsify(model, k)


def step_seconds(
    model: nn.Module, ks: Sequence[int], loss: Callable[[nn.Module], Tensor], learning_rate: float, repeats: int
) -> dict[str, list[float]]:
    """Of one training step, forward, backward and AdamW, dense and for each k, in turn; on copies."""
    copies: dict[str, tuple[nn.Module, Any]] = {}
    for k in (None, *ks):
        own = copy.deepcopy(model)
        _make(own, k)
        copies[DENSE if k is None else str(k)] = own, torch.optim.AdamW(own.parameters(), learning_rate, fused=True)
    seconds: dict[str, list[float]] = {name: [] for name in copies}
    for repeat in range(-1, repeats):
        for name, (own, optimizer) in copies.items():
            begun = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss(own).backward()
            optimizer.step()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def speed(settings: Speed, seed: int) -> Record:
    """`decode`: compare's rows, with loss, accuracy and percent of nonzeros (`fires`) on held-out text, of a model that
    was trained dense and of one that was trained top-k; of the first, by k, `step_seconds` and `flops`, of a decoded
    token in all blocks: `attention` and `mlp`, where zeros of the sparse ones are skipped. `narrow`: compare's rows of
    the model that is not trained."""
    data = source_corpus()
    size = Size(settings.d, settings.d_ff, settings.layers)
    _, counted = generators(seed)
    held = [windows(data.held, settings.batch, settings.context + 1, counted) for _ in range(settings.held)]
    window = windows(data.train, settings.batch, settings.context + 1, counted)
    record: Record = {"decode": {}, "step_seconds": {}, "flops": {}}
    for k in (None, settings.trained_k):
        model = seeded(lambda: Decoder(SYMBOLS + 1, settings.context + 1, size), seed)
        assert isinstance(model, Decoder)
        _make(model, k)
        _learn(model, settings, data.train, seed)
        restore(model)
        model.eval()
        run, score = _decodes(model, held, settings.tokens), _scored(model, held)
        ks = settings.ks if k is None else (settings.trained_k,)
        record["decode"]["trained dense" if k is None else f"trained with {k}"] = compare(
            model, ks, run, score, repeats=settings.repeats
        )
        if k is None:
            record["step_seconds"] = step_seconds(
                model,
                settings.ks,
                lambda own: next_symbol_loss(own, window),
                settings.learning_rate,
                settings.train_repeats,
            )
    narrow = seeded(lambda: Decoder(SYMBOLS + 1, settings.context + 1, size._replace(d_ff=settings.narrow)), seed)
    assert isinstance(narrow, Decoder)
    k = max(1, round(settings.trained_k / settings.d_ff * settings.narrow))
    record["narrow"] = compare(narrow, (k,), _decodes(narrow, held, settings.tokens), repeats=settings.repeats)
    middle = (settings.tokens + 1) / 2  # the mean context of a decoded token
    for name, row in record["decode"]["trained dense"].items():
        share = row["fires"] / 100
        record["flops"][name] = _flops(size, middle, 1.0 if name == DENSE else share)
    return record


def _flops(size: Size, context: float, nonzero: float) -> dict[str, float]:
    return {part: size.layers * flops for part, flops in block_flops(size, context, nonzero).items()}


def _learn(model: Decoder, settings: Speed, text: Tensor, seed: int) -> None:
    batches, _ = generators(seed)

    def loss() -> Tensor:
        return next_symbol_loss(model, windows(text, settings.batch, settings.context + 1, batches))

    for _ in steps(model, loss, settings.steps, settings.learning_rate):
        pass


def _decodes(model: Decoder, held: Sequence[Tensor], tokens: int) -> Callable[[], int]:
    texts = itertools.cycle([window[:1, :tokens] for window in held])

    @torch.no_grad()
    def run() -> int:
        return sum(1 for _ in model.decode(next(texts)))

    return run


def _scored(model: nn.Module, held: Sequence[Tensor]) -> Callable[[], Mapping[str, float]]:
    def score() -> Mapping[str, float]:
        found: dict[str, float] = {}
        counted = fires(model, lambda: found.update(scores(model, held)))
        return found | {"fires": fmean(each.nonzero for each in counted.values())}

    return score
