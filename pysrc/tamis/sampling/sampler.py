"""Epochs of weighted subsets, for a DataLoader."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..common.checks import check_bool, check_integer, check_like, fail
from .draw import Sample, bits, check_cap, check_how, check_ids, check_probs, importance_sample

FN = "ImportanceSampler"
_FIXED = ("num_samples", "method", "seed", "cap", "weights", "shuffle")  # what a state must have been made with


class ImportanceSampler(Sampler[int]):
    """Each epoch draws a subset by importance_sample(..., offset=epoch) and goes through it in an order of its own.

    Subset and order depend on the arguments and the epoch alone. An epoch begins with iter(); when it has been gone
    through, the next iter() begins the next one, else the same one again from its start. So `epoch`, `sample`,
    `weights` and len() are those of the epoch in use also while a DataLoader's workers, who fetch ahead, have
    exhausted it. A poisson epoch's length is its own; of an epoch that is resumed len() is the whole's. Several
    processes that train together draw the same subset: each takes its share of the batches, as accelerate's do.

    Args:
        probs: [n], of the data set's examples. Copied.
        num_samples, method, ids, seed, cap, weights: of importance_sample; here the default method is "race".
        shuffle: whether the order is random; else positions ascend.
    """

    def __init__(
        self,
        probs: Tensor,
        num_samples: int | None = None,
        *,
        method: str = "race",
        ids: Tensor | None = None,
        seed: int,
        cap: float | None = None,
        weights: str = "draw",
        shuffle: bool = True,
    ) -> None:
        check_bool(FN, "shuffle", shuffle)
        self.num_samples, self.cap = check_how(num_samples, method, weights), check_cap(cap)
        self.method, self.shuffle = method, shuffle
        self.seed = bits("seed", seed)
        self._kind = weights
        self._epoch = self._position = self._run = 0
        self._begun = self._resuming = self._exhausted = False
        self._pending: Tensor | None = None  # of the next epoch on
        self._weights: Tensor | None = None
        probs = check_probs(probs).clone()
        self._ids = None if ids is None else check_ids(ids, probs).clone()
        self._use(probs, self._draw(probs, 0), 0)

    def _draw(self, probs: Tensor, epoch: int) -> Sample:
        return importance_sample(
            probs,
            self.num_samples,
            method=self.method,
            ids=self._ids,
            seed=self.seed,
            offset=epoch,
            cap=self.cap,
            weights=self._kind,
        )

    @property
    def epoch(self) -> int:
        """The epoch in use."""
        return self._epoch

    @property
    def position(self) -> int:
        """How many indices of it have been handed out."""
        return self._position

    @property
    def sample(self) -> Sample:
        """The epoch's; positions ascend."""
        return self._sample

    @property
    def weights(self) -> Tensor:
        """[n] float32, by position, 0 where not drawn: the weight of one draw, where an example may come again."""
        if self._weights is None:
            self._weights = torch.zeros_like(self._probs, dtype=torch.float32)
            self._weights[self._sample.indices] = self._sample.weights
        return self._weights

    def __len__(self) -> int:
        return len(self._sample.indices)

    def __iter__(self) -> Iterator[int]:
        if self._exhausted:
            self._begin(self._epoch + 1)
        self._position = self._position if self._resuming else 0
        self._begun, self._resuming, self._run = True, False, self._run + 1
        return self._indices(self._run, self._order()[self._position :].tolist())

    def _indices(self, run: int, indices: list[int]) -> Iterator[int]:
        for index in indices:
            if run == self._run:  # no newer iter() has taken over
                self._position += 1
                self._exhausted = self._position == len(self)
            yield index
        if run == self._run:
            self._exhausted = True  # also an empty epoch

    def _order(self) -> Tensor:
        indices = self._sample.indices.cpu()
        if not self.shuffle:
            return indices
        # Two words of the counters that the draws leave unused.
        words = torch.ops.tamis._philox(torch.arange(len(indices), device="cpu"), self.seed, self._epoch)
        return indices[(words[:, 2] << 31 | words[:, 3] >> 1).argsort(stable=True)]

    def _begin(self, epoch: int) -> None:
        probs = self._probs if self._pending is None else self._pending
        self._use(probs, self._draw(probs, epoch), epoch)
        self._pending = None

    def _use(self, probs: Tensor, sample: Sample, epoch: int) -> None:
        self._probs, self._sample, self._weights, self._epoch, self._position = probs, sample, None, epoch, 0
        self._begun = self._resuming = self._exhausted = False
        self._run += 1

    def set_epoch(self, epoch: int) -> None:
        """The next iter() begins this epoch; where a state of it was loaded, it goes on from there."""
        epoch = check_integer(FN, "epoch", epoch)
        if epoch < 0:
            fail(FN, "epoch", "0 or above", epoch)
        if epoch != self._epoch or self._exhausted:
            self._begin(epoch)

    def update(self, probs: Tensor) -> None:
        """Other probabilities of the same examples, from the next epoch to begin on."""
        probs = check_probs(probs).clone()
        check_like(FN, "probs", probs, self._probs.shape, self._probs.device)
        sample = self._draw(probs, self._epoch + self._begun)  # refuses what cannot be drawn from
        if self._begun:
            self._pending = probs
        else:
            self._use(probs, sample, self._epoch)

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """What goes on from here in another process, probabilities included.

        Args:
            position: how many of the epoch's indices count as used; by default all that were handed out. Workers fetch
                ahead: with them it is the number of examples that the training has seen.
        """
        position = self._position if position is None else check_integer(FN, "position", position)
        if not 0 <= position <= len(self):
            fail(FN, "position", f"0 to {len(self)}", position)
        own = {name: getattr(self, name) for name in _FIXED if name != "weights"} | {"weights": self._kind}
        return own | {
            "epoch": self._epoch,
            "position": position,
            "exhausted": position == len(self) and (self._exhausted or position > 0),
            "probs": self._probs,
            "next_probs": self._pending,
            "ids": self._ids,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iter() gives the indices that were left, or, where none were, the next epoch's."""
        own = self.state_dict(0)
        if not isinstance(state, dict) or not own.keys() <= state.keys():
            lacking = sorted(own.keys() - (state.keys() if isinstance(state, dict) else ()))
            fail(FN, "state", "what state_dict gives", f"one without {', '.join(lacking)}")
        for name in _FIXED:
            if state[name] != own[name]:
                fail(FN, "state", f"{name} {own[name]}", state[name])
        ids = state["ids"]
        if (ids is None) != (self._ids is None) or (
            self._ids is not None and not torch.equal(ids.cpu(), self._ids.cpu())
        ):
            fail(FN, "state", "the sampler's ids", "others")
        probs, pending = (None if x is None else self._stored(x) for x in (state["probs"], state["next_probs"]))
        epoch, position = (check_integer(FN, name, state[name]) for name in ("epoch", "position"))
        if probs is None or epoch < 0:
            fail(FN, "state", "probs and an epoch of 0 or above", "none" if probs is None else epoch)
        sample = self._draw(probs, epoch)
        if not 0 <= position <= len(sample.indices):
            fail(FN, "state", f"position 0 to {len(sample.indices)}", position)
        check_bool(FN, "exhausted", state["exhausted"])
        self._use(probs, sample, epoch)
        self._pending, self._position, self._exhausted = pending, position, state["exhausted"]
        self._begun = position > 0
        self._resuming = self._begun and not self._exhausted

    def _stored(self, probs: object) -> Tensor:
        """A state's."""
        probs = check_probs(probs)
        if probs.shape != self._probs.shape:
            fail(FN, "state", f"probs of shape {list(self._probs.shape)}", list(probs.shape))
        return probs.to(self._probs.device)
