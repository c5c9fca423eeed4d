"""Text: a character model of source code, spans of prose that are filled, prose whose origin is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sparse_mlp import sparsify
from .data import LIBRARIES, LIBRARY_DOCS, PYTHON_SOURCE
from .lazy_neuron_meter import initial_drift
from .lazy_neuron_models import Decoder, Embedding, Encoder, Seq2Seq, Size
from .lazy_neuron_train import generators, seeded, trained
from .runner import Record

SYMBOLS = 96  # the most frequent characters; all others are one more


@dataclass(frozen=True)
class Text:
    """The character model and the second and third text task; a batch is of windows drawn anywhere.

    Args:
        widths: of the MLPs, with `layers`; `deep` layers with `width`.
        k: of the top-k model.
        sizes: characters of training text that further runs have.
        held: batches that are counted at the end; glance: along the way.
    """

    d: int = 64
    context: int = 48
    batch: int = 16
    steps: int = 800
    learning_rate: float = 3e-3
    width: int = 256
    widths: tuple[int, ...] = (64, 1024)
    layers: int = 2
    deep: int = 4
    k: int = 16
    sizes: tuple[int, ...] = ()
    held: int = 16
    glance: int = 3
    span: int = 4
    other_steps: int = 600


class Corpus(NamedTuple):
    """Characters as numbers, SYMBOLS for one that is rare. Every tenth file or paragraph is held out."""

    train: Tensor  # [n] int64
    held: Tensor


def corpora(texts: Sequence[Sequence[str]], between: str = "\n\n") -> list[Corpus]:
    """Texts in pieces (files, paragraphs), in the same symbols: the most frequent characters of all training parts."""
    parts = [
        [between.join(piece for i, piece in enumerate(pieces) if (i % 10 == 9) == held) for held in (False, True)]
        for pieces in texts
    ]
    codes = [[np.frombuffer(part.encode("utf-32-le"), np.uint32) for part in both] for both in parts]
    characters, counts = np.unique(np.concatenate([train for train, _ in codes]), return_counts=True)
    common = np.sort(characters[np.argsort(-counts, kind="stable")[:SYMBOLS]])
    return [Corpus(*(torch.from_numpy(_numbers(common, part)) for part in both)) for both in codes]


def _numbers(common: npt.NDArray[Any], codes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    at = np.minimum(np.searchsorted(common, codes), len(common) - 1)
    return np.where(common[at] == codes, at, SYMBOLS).astype(np.int64)


def source_corpus() -> Corpus:
    return corpora([PYTHON_SOURCE.load()])[0]


def docs_corpora() -> list[Corpus]:
    docs = LIBRARY_DOCS.load()
    return corpora([docs[name].split("\n\n") for name in LIBRARIES])


def windows(text: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """[count, length], from anywhere in `text`."""
    starts = torch.randint(len(text) - length + 1, (count,), generator=generator)
    return text[starts[:, None] + torch.arange(length)]


def next_symbol_loss(model: nn.Module, window: Tensor) -> Tensor:
    logits = model(window[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())


def characters(text: Text, width: int, layers: int, seed: int, k: int | None = None, size: int | None = None) -> Record:
    """A causal Transformer on Python's own source; top-k with `k`, on `size` characters in a row with that."""
    data = source_corpus()
    batches, counted = generators(seed)
    train = data.train if size is None else windows(data.train, 1, size, torch.Generator().manual_seed(seed + 3000))[0]
    model = seeded(lambda: Decoder(SYMBOLS + 1, text.context, Size(text.d, width, layers)), seed)
    if k is not None:
        sparsify(model, k)
    held, seen, glanced = (
        [windows(part, text.batch, text.context + 1, counted) for _ in range(count)]
        for part, count in ((data.held, text.held), (train, text.held), (data.held, text.glance))
    )

    def on(some: Sequence[Tensor]) -> Callable[[], None]:
        def run() -> None:
            for window in some:
                model(window[:, :-1])

        return run

    record = trained(
        model,
        lambda: next_symbol_loss(model, windows(train, text.batch, text.context + 1, batches)),
        {"held": on(held), "train": on(seen)},
        on(glanced),
        text.steps,
        text.learning_rate,
    )
    return record | scores(model, held)


@torch.no_grad()
def scores(model: nn.Module, held: Sequence[Tensor]) -> dict[str, float]:
    """Of a language model on windows [batch, context + 1]: loss in nats a character, percent of next ones right."""
    losses, right = [], []
    for window in held:
        logits = model(window[:, :-1])
        losses.append(F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten()).item())
        right.append((logits.argmax(-1) == window[:, 1:]).float().mean().item())
    return {"loss": float(np.mean(losses)), "accuracy": float(100 * np.mean(right))}


def initial_drifts(text: Text, starts: range) -> dict[str, list[float]]:
    """initial_drift of the character model, by MLP, for each of the seeds `starts`: initialisation and batch."""
    train = source_corpus().train
    found: dict[str, list[float]] = {}
    for seed in starts:
        model = seeded(lambda: Decoder(SYMBOLS + 1, text.context, Size(text.d, text.width, text.layers)), seed)
        window = windows(train, text.batch, text.context + 1, generators(seed)[0])
        drift = initial_drift(model, partial(next_symbol_loss, model, window))
        for name, value in drift.items():
            found.setdefault(name, []).append(value)
    return found


def corrupted(window: Tensor, span: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """T5's task: two spans of each window, one in each half, become a mark each; the target is mark, span, mark, span.

    window: [batch, length] of symbols up to SYMBOLS; marks are SYMBOLS + 1 and SYMBOLS + 2.
    Returns: source [batch, length - 2 span + 2], target [batch, 2 span + 2].
    """
    batch, length = window.shape
    half = length // 2
    sources, targets = [], []
    for mark, part in enumerate((window[:, :half], window[:, half:]), SYMBOLS + 1):
        width = part.shape[1]
        start = torch.randint(width - span + 1, (batch, 1), generator=generator)
        place = torch.arange(width)
        inside = (place >= start) & (place < start + span)
        marked = torch.where(place == start, mark, part)
        sources.append(marked[~inside | (place == start)].reshape(batch, -1))
        targets += [torch.full((batch, 1), mark), part[inside].reshape(batch, span)]
    return torch.cat(sources, 1), torch.cat(targets, 1)


def seq2seq(text: Text, seed: int) -> Record:
    """Encoder and decoder fill spans of prose that were cut out."""
    parts = docs_corpora()
    train, rest = (torch.cat([getattr(each, name) for each in parts]) for name in ("train", "held"))
    batches, counted = generators(seed)
    start = SYMBOLS + 3
    size = Size(text.d, text.width, text.layers)
    model = seeded(lambda: Seq2Seq(start + 1, text.context, size), seed)

    def pair(part: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return corrupted(windows(part, text.batch, text.context, generator), text.span, generator)

    def logits(source: Tensor, target: Tensor) -> Tensor:
        before = F.pad(target[:, :-1], (1, 0), value=start)
        out: Tensor = model(source, before)
        return out

    def loss() -> Tensor:
        source, target = pair(train, batches)
        return F.cross_entropy(logits(source, target).flatten(0, 1), target.flatten())

    held = [pair(rest, counted) for _ in range(text.held)]
    few = held[: text.glance]
    record = trained(
        model,
        loss,
        {"held": lambda: [logits(*each) for each in held]},
        lambda: [logits(*each) for each in few],
        text.other_steps,
        text.learning_rate,
    )
    with torch.no_grad():
        right = [(logits(*each).argmax(-1) == each[1])[each[1] <= SYMBOLS].float().mean().item() for each in held]
    return record | {"accuracy": float(100 * np.mean(right))}


def text_classes(text: Text, seed: int) -> Record:
    """An encoder tells from one window of prose whose documentation it is: Python's, torch's or numpy's."""
    data = docs_corpora()
    batches, counted = generators(seed)
    size = Size(text.d, text.width, text.layers)
    model = seeded(lambda: Encoder(Embedding(SYMBOLS + 1, text.context, size.d), size, len(LIBRARIES)), seed)

    def pair(parts: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        y = torch.randint(len(parts), (text.batch,), generator=generator)
        each = torch.stack([windows(part, text.batch, text.context, generator) for part in parts])
        return each[y, torch.arange(text.batch)], y

    train, rest = ([getattr(each, name) for each in data] for name in ("train", "held"))

    def loss() -> Tensor:
        x, y = pair(train, batches)
        return F.cross_entropy(model(x), y)

    held = [pair(rest, counted) for _ in range(text.held)]
    few = held[: text.glance]
    record = trained(
        model,
        loss,
        {"held": lambda: [model(x) for x, _ in held]},
        lambda: [model(x) for x, _ in few],
        text.other_steps,
        text.learning_rate,
    )
    with torch.no_grad():
        right = [(model(x).argmax(-1) == y).float().mean().item() for x, y in held]
    return record | {"accuracy": float(100 * np.mean(right))}
