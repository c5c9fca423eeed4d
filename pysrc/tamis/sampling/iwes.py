"""Importance-weighted subset selection: the whole loop of IWeS (2301.12052, Algorithm 1) on a model of one's own."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset, TensorDataset, default_collate

from ..common.checks import INTEGERS, check_choice, check_integer, fail
from ..common.files import write
from .draw import check_cap
from .methods import METHODS, Batch, Draw, Views, race, training_seed

FN = "IWeS"
Inputs = Any  # a tensor, or a dict of tensors that the model takes by name
Train = Callable[[nn.Module, "Selected", int], object]
Label = Callable[[Tensor], Tensor]
Each = Callable[["IWeS", int, nn.Module], object]


class Selection(NamedTuple):
    """indices: [m] int64, positions in the pool in the order of picking; weights: [m] float32, of their losses;
    rounds: [m] int64, in which each was picked, 0 for the start set."""

    indices: Tensor
    weights: Tensor
    rounds: Tensor


class Selected(Dataset[tuple[Inputs, Tensor, Tensor]]):
    """What is picked so far, as (x, label, weight)."""

    def __init__(self, x: "_Inputs", indices: Tensor, labels: Tensor, weights: Tensor) -> None:
        self._x, self.indices, self.labels, self.weights = x, indices, labels, weights

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Inputs, Tensor, Tensor]:
        return self._x.one(int(self.indices[i])), self.labels[i], self.weights[i]

    def whole(self) -> tuple[Inputs, Tensor, Tensor]:
        """All of it, collated."""
        return self._x.many(self.indices), self.labels, self.weights


@dataclass(frozen=True)
class Trainer:
    """Weighted training by SGD: the mean of w * loss over batches drawn from what is picked, w scaled to mean one.

    Args:
        steps: of SGD; the rate falls linearly to zero over them.
        batch_size: examples a step, all where fewer are picked.
        learning_rate, momentum, weight_decay: of torch.optim.SGD.
        loss: (output, label) to a loss per example; None: cross-entropy.
    """

    steps: int = 300
    batch_size: int = 100
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    loss: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, model: nn.Module, selected: Selected, seed: int) -> None:
        device = _device(model)
        x, label, weight = _to(device, selected.whole())
        weight = weight / weight.mean()
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / self.steps)
        generator = torch.Generator().manual_seed(seed)
        loss_of = self.loss or partial(F.cross_entropy, reduction="none")
        model.train()
        for at in self._batches(len(label), generator):
            at = at.to(device)
            loss = (weight[at] * loss_of(_forward(model, _rows(x, at)), label[at])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    def _batches(self, n: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Epoch after epoch, each example once in each."""
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(self.steps):
            if len(order) < min(n, self.batch_size):
                order = torch.cat([order, torch.randperm(n, generator=generator)])
            yield order[: self.batch_size]
            order = order[self.batch_size :]


class IWeS:
    """Chooses what to train on, in rounds: train on what is picked, look at the rest, pick more of it, weighted.

    An example is picked by its probability p, without replacement, and its loss weighs min(1 / p, cap). With
    method="entropy" (IWeS-ent) p is the entropy of one model over log(classes): labels are read only of what is
    picked, so this is the active-learning form too; `label` is then whom to ask. With "disagreement" (IWeS-dis) two
    models are trained and p is |P_f(y) log2 P_f(y) - P_g(y) log2 P_g(y)| at the label y. The other methods are the
    paper's baselines, in the same loop: uniform, top_entropy, margin, least_confidence, coreset, badge; all their
    weights are 1.

    The same arguments give the same picks, whatever the number of threads, as far as the training repeats itself.
    With `state` every round is kept in that file, and an interrupted run goes on from it with the same result.

    Args:
        model: a function that makes a new one (each training starts anew), or a model (each starts from its weights);
            "disagreement" needs the function. Called with x (by name where x is a dict) it gives logits [b, classes],
            or something that has them as `.logits`.
        pool: a data set with a length, of (x, label); of x alone where `label` is given.
        start: how many examples to begin with, drawn uniformly, of weight 1.
        picks, rounds: so many examples a round, so many rounds; start + picks * rounds is at most the pool.
        method: one of METHODS.
        cap: the largest weight, or None; 1 makes all weights 1.
        seed: of everything random here.
        train: (model, Selected, seed) trains the model in place; by default `Trainer()`.
        label: indices [k] to their labels [k]; asked once for each example, after it was picked.
        state: a file, made anew after each round. One of another pool's size or labels, start, picks, method, cap or
            seed is refused; that model and training are the same is up to the caller.
        batch_size: examples at a time when the pool is looked at.
        collate: a list of examples to a batch; None: as a DataLoader does.

    Raises:
        ValueError: an empty pool, budgets above it, a model of one class, a `state` of other arguments.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        pool: Dataset[Any],
        *,
        start: int,
        picks: int,
        rounds: int,
        method: str = "entropy",
        cap: float | None = 2.0,
        seed: int = 0,
        train: Train | None = None,
        label: Label | None = None,
        state: str | os.PathLike[str] | None = None,
        batch_size: int = 1024,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        check_choice(FN, "method", method, tuple(METHODS))
        start, picks, rounds = (
            _at_least(1, "start", start),
            _at_least(1, "picks", picks),
            _at_least(0, "rounds", rounds),
        )
        batch_size, seed = _at_least(1, "batch_size", batch_size), _at_least(0, "seed", seed)
        if not callable(model):
            fail(FN, "model", "a Module or a function that makes one", type(model).__name__, TypeError)
        if isinstance(model, nn.Module) and METHODS[method].models > 1:
            fail(FN, "model", f"a function that makes one: {method} starts two apart", "a Module", TypeError)
        if label is not None and METHODS[method].labels:
            fail(FN, "label", f"none: {method} reads every label", "a function")
        self._inputs = _Inputs(pool, label is not None, collate or default_collate)
        n = len(self._inputs)
        if n == 0:
            fail(FN, "pool", "at least one example", "none")
        if start + picks * rounds > n:
            wanted = f"{start} + {picks} * {rounds} = {start + picks * rounds}"
            fail(FN, "rounds", f"start + picks * rounds of at most {n}, the pool", wanted)
        self.start, self.picks, self.rounds, self.method = start, picks, rounds, method
        self.cap, self.seed, self.batch_size = check_cap(cap), seed, batch_size
        self._make, self._train, self._label = model, train or Trainer(), label
        self._state = None if state is None else Path(state)
        if self._state is not None and (self._state.is_dir() or not self._state.absolute().parent.is_dir()):
            fail(FN, "state", "a file in a folder that is there", state)
        self.history: list[dict[str, float]] = []  # of each round: what was picked, and from what probabilities
        self.model: nn.Module | None = None  # the delivered one, trained on the whole selection
        empty = torch.empty(0, dtype=torch.int64)
        self.selection, self._labels = Selection(empty, torch.empty(0), empty), empty
        if self._state is not None and self._state.is_file():
            self._load(self._state)

    def run(self, *, progress: bool = True, each: Each | None = None) -> Selection:
        """Every round that is left, and the delivered model, in `model`.

        Args:
            progress: show a bar.
            each: called with (self, round, model) after each training: round 0 is the start set's, the last one the
                delivered model's. Rounds that `state` had done are not gone through again.
        """
        from rich.progress import Progress

        with Progress(disable=not progress) as bar:
            done = max(len(self.history) - 1, 0)
            task = bar.add_task(f"IWeS {self.method}", total=self.rounds + 1, completed=done)
            while self.model is None:
                self._step(each)
                bar.advance(task)
        return self.selection

    def _step(self, each: Each | None) -> None:
        """Trains on what is picked; then picks, or, after the last round, delivers."""
        if not self.history:
            ones = torch.ones(len(self._inputs))
            start, weights = race(ones, Draw(self.start, self.seed, 0, torch.arange(len(ones)), None))
            self._pick(start, weights, {})
        done = len(self.history) - 1
        selected = Selected(self._inputs, self.selection.indices, self._labels, self.selection.weights)
        last = done == self.rounds
        models = [
            self._trained(selected, training_seed(self.seed, done, which))
            for which in range(1 if last else METHODS[self.method].models)
        ]
        if each is not None:
            each(self, done, models[0])
        if last:
            self.model = models[0].eval()
            return
        method = METHODS[self.method]
        left = torch.ones(len(self._inputs), dtype=torch.bool)
        left[self.selection.indices] = False
        ids = left.nonzero()[:, 0]
        with _seeded(training_seed(self.seed, done, 3)):  # examples may be random too
            views = self._views(models, ids)
            picked = self._views(models, self.selection.indices) if method.features else ()
        draw = Draw(self.picks, self.seed, done + 1, ids, self.cap)
        at, weights = method.pick(views, picked, draw)
        self._pick(ids[at], weights, _spread(views[0]) if views and views[0].dim() == 1 else {})

    def _trained(self, selected: Selected, seed: int) -> nn.Module:
        with _seeded(seed):
            model = copy.deepcopy(self._make) if isinstance(self._make, nn.Module) else self._make()
            if not isinstance(model, nn.Module):
                fail(FN, "model", "a function that makes a Module", f"one that makes {type(model).__name__}", TypeError)
            self._train(model, selected, seed)
        return model

    @torch.no_grad()
    def _views(self, models: list[nn.Module], indices: Tensor) -> Views:
        method = METHODS[self.method]
        if method.view is None:
            return ()
        parts = []
        for model in models:
            model.eval()
        for part in indices.split(self.batch_size):
            x, target = self._inputs.batch(part, method.labels)
            with _last_inputs(models[0], method.features) as entered:
                logits = [_logits(model, x) for model in models]
            if method.features and not entered:
                fail(FN, "model", "an nn.Linear that gives the logits, for its features", type(models[0]).__name__)
            other = logits[1] if len(logits) > 1 else None
            target = None if target is None else target.to(logits[0].device)
            entering = entered[-1].reshape(len(part), -1) if entered else None
            parts.append([v.cpu() for v in method.view(Batch(logits[0], other, entering, target))])
        views = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        for view in views:
            if not bool(view.isfinite().all()):
                bad = int(indices[(~view.isfinite()).reshape(len(view), -1).any(-1)][0])
                fail(FN, "model", "finite logits", f"others for the pool's example {bad}")
        return views

    def _pick(self, indices: Tensor, weights: Tensor, spread: dict[str, float]) -> None:
        """Adds a round, labels included, and keeps it."""
        if self._label is None:
            with _seeded(self.seed):
                labels = self._inputs.labels(indices)
        else:
            labels = torch.as_tensor(self._label(indices))
        if labels.shape != indices.shape:
            fail(FN, "label", f"one label each, shape {list(indices.shape)}", list(labels.shape))
        rounds = torch.full_like(indices, len(self.history))
        self.selection = Selection(*map(torch.cat, zip(self.selection, (indices, weights, rounds), strict=True)))
        self._labels = torch.cat([self._labels, labels.cpu()])
        w = self.selection.weights
        sizes = {"picked": float(len(w)), "mean_weight": float(w.mean()), "max_weight": float(w.max())}
        self.history.append(sizes | {"effective": float(w.sum() ** 2 / w.dot(w))} | spread)
        if self._state is not None:
            self._save(self._state)

    def _arguments(self) -> dict[str, Any]:
        names = ("start", "picks", "method", "cap", "seed")  # rounds may become more
        return {"pool": len(self._inputs)} | {name: getattr(self, name) for name in names}

    def _save(self, file: Path) -> None:
        tensors = self.selection._asdict() | {"labels": self._labels}
        metadata = {"arguments": json.dumps(self._arguments()), "history": json.dumps(self.history)}
        write(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata), file)

    def _load(self, file: Path) -> None:
        try:
            with safetensors.safe_open(file, "pt") as kept:
                metadata = kept.metadata() or {}
                arguments, history = (json.loads(metadata[name]) for name in ("arguments", "history"))
                selection = Selection(*(kept.get_tensor(name) for name in Selection._fields))
                labels = kept.get_tensor("labels")
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            fail(FN, "state", "a file that IWeS wrote", f"{file}: {error}")
        for name, own in self._arguments().items():
            if arguments.get(name) != own:
                fail(FN, "state", f"{name} {own}", f"{arguments.get(name)} in {file}")
        if len(history) > self.rounds + 1:
            fail(FN, "state", f"at most {self.rounds} rounds", f"{len(history) - 1} in {file}")
        if self._label is None:
            with _seeded(self.seed):
                own_labels = self._inputs.labels(selection.indices)
            if not torch.equal(own_labels, labels):
                fail(FN, "state", "the labels of this pool", f"others in {file}")
        self.selection, self._labels, self.history = selection, labels, history


class _Inputs:
    """The pool by indices, x and label apart."""

    def __init__(self, pool: Dataset[Any], unlabelled: bool, collate: Callable[[list[Any]], Any]) -> None:
        if not hasattr(pool, "__len__") or not hasattr(pool, "__getitem__"):
            fail(FN, "pool", "a data set with a length, read by position", type(pool).__name__, TypeError)
        self._pool: Any = pool
        self._unlabelled, self._collate = unlabelled, collate

    def __len__(self) -> int:
        return len(self._pool)

    def _collated(self, indices: Tensor) -> tuple[Inputs, Tensor | None]:
        if type(self._pool) is TensorDataset and self._collate is default_collate:  # at once; another may do more
            items: Any = self._pool[indices]
        else:
            items = self._collate([self._pool[i] for i in indices.tolist()])
        if self._unlabelled:
            return (items[0] if isinstance(items, (tuple, list)) else items), None
        if not isinstance(items, (tuple, list)) or len(items) != 2:
            fail(FN, "pool", "examples (x, label), or label= to ask for it", type(items).__name__, TypeError)
        return items[0], items[1]

    def one(self, index: int) -> Inputs:
        item = self._pool[index]
        return item[0] if isinstance(item, (tuple, list)) else item

    def many(self, indices: Tensor) -> Inputs:
        return self._collated(indices)[0]

    def batch(self, indices: Tensor, labels: bool) -> tuple[Inputs, Tensor | None]:
        x, label = self._collated(indices)
        return x, label if labels else None

    def labels(self, indices: Tensor) -> Tensor:
        label: Any = self._collated(indices)[1]
        if not isinstance(label, Tensor) or label.dtype not in INTEGERS:
            got = label.dtype if isinstance(label, Tensor) else type(label).__name__
            fail(FN, "pool", "examples whose label is an integer", got, TypeError)
        return label.long()


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _to(device: torch.device, x: Any) -> Any:
    return tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, x)


def _rows(x: Any, at: Tensor) -> Any:
    return tree_map(lambda t: t[at] if isinstance(t, Tensor) else t, x)


def _at_least(least: int, name: str, value: int) -> int:
    value = check_integer(FN, name, value)
    if value < least:
        fail(FN, name, f"{least} or above", value)
    return value


def _forward(model: nn.Module, x: Inputs) -> Tensor:
    out = model(**x) if isinstance(x, dict) else model(x)
    logits: Tensor = getattr(out, "logits", out)
    return logits


def _logits(model: nn.Module, x: Inputs) -> Tensor:
    logits = _forward(model, _to(_device(model), x))
    if logits.dim() != 2 or logits.shape[-1] < 2:
        fail(FN, "model", "logits [b, classes] of at least 2 classes", list(logits.shape))
    return logits


@contextmanager
def _last_inputs(model: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """What enters each nn.Linear of the model while it runs, in turn."""
    entered: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)] if wanted else []
    hooks = [layer.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0])) for layer in layers]
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's own randomness, from this seed in here and untouched outside."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _spread(values: Tensor) -> dict[str, float]:
    return {"min_score": float(values.min()), "median_score": float(values.median()), "max_score": float(values.max())}
