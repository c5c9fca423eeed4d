"""importance_sample: checks and registration; the arithmetic is in kernels/sampling."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..common.backend import IMPLEMENTATIONS, Choice, choose
from ..common.checks import (
    INTEGERS,
    check_choice,
    check_dense,
    check_integer,
    check_like,
    check_number,
    fail,
    reads_values,
)
from ..common.explain import explained_by
from ..common.registry import register
from . import draw_cuda, draw_reference
from .draw_reference import DRAWS, METHODS, WEIGHTS

FN = "importance_sample"


class Sample(NamedTuple):
    """Who was drawn: positions in probs, ascending, int64; beside them float32 weights and, of a race, keys.

    Races of shards are merged by their keys: of all shards' the num_samples smallest, ties by id, are the whole's, with
    its draw weights. (A shard can give no more than it has probabilities above 0.) Inclusion weights are conditional on
    the next key of all: draw num_samples + 1 from each, and of the merged take 1 / (1 - exp(-p tau)), tau the largest
    key and not among them.
    """

    indices: Tensor
    weights: Tensor
    keys: Tensor | None


def importance_sample(
    probs: Tensor,
    num_samples: int | None = None,
    *,
    method: str = "poisson",
    ids: Tensor | None = None,
    seed: int,
    offset: int = 0,
    cap: float | None = None,
    weights: str = "draw",
    impl: str = "auto",
) -> Sample:
    """A weighted subset of n examples by their probabilities: the same one everywhere, bit for bit.

    The same bits of probabilities give the same indices, weights and keys on any device, instruction set and number of
    threads. So do examples drawn in batches or shards, where `ids` tell them apart (without, the first of each batch
    would share its luck): poisson as the whole, races once merged by keys, see Sample. Random words are Philox-4x32-10
    with key `seed` and counter (id, offset); every float operation is an IEEE product, sum or quotient, none fused.
    (Not so under torch.set_flush_denormal(True), for subnormal numbers.)

    Args:
        probs: [n], float32 or float64; any stride.
        num_samples: 1 to 2^31 - 1; poisson takes none.
        method: "poisson": each example by its own probability, p <= 1, to 32 bits: floor(p 2^32) / 2^32; weight 1/p.
            "race": without replacement, the smallest keys -log(u)/p (u of 48 bits, keys rounded to float32; ties by
            id); weight 1/p, the inverse probability of one draw, not of being in the sample. It is the law of drawing
            one after another in proportion to p, so of accepting uniform draws with probability p until there are
            enough. Any finite p >= 0; beyond 1e-37..1e23 keys lose their precision and weights may be inf.
            "systematic": with replacement, at equal distances, each n_i = floor or ceil of num_samples p / sum p.
            "alias": with replacement, independent draws; the law of the alias method, found by inverting the
            cumulative sum. Both weigh sum p / (num_samples p), and a position may come several times. They count p in
            units of at most 2^-60 n max p (masses below it are 0), and ids only order the examples there.
        ids: [n] integers, each once; by default positions. An example's luck goes with its id.
        seed, offset: of 64 bits; one subset for each pair, and the methods share its luck: other draws take another
            offset. A sampler's offset is its epoch.
        cap: weights at most this, above 1e-37.
        weights: "draw", or for poisson and race "inclusion": of a race the bottom-k conditional weights
            1 / (1 - exp(-p tau)), tau the next key after the sample's (1 where there is none), whose totals are
            unbiased; of poisson 1/p.
        impl: "auto", "reference", "cpu", "triton" or "cuda".
    Returns:
        Sample: without gradients. Poisson may be empty.
    Raises:
        TypeError, ValueError: an argument, and in eager mode on CPU a value: p negative, above 1 (poisson) or not
            finite; more samples than probabilities above 0; ids that come twice. Elsewhere nothing waits for such
            checks: a probability that is negative or NaN is never drawn, one above 1 always; a race that runs out
            fills up with weights of NaN; equal ids go by position. (A compiled graph on CPU raises RuntimeError.)
    Source: IWeS, 2301.12052, Algorithm 1; Efraimidis and Spirakis 2006; Cohen and Kaplan 2007 for inclusion weights.
    """
    check_choice(FN, "impl", impl, IMPLEMENTATIONS)
    num_samples = check_how(num_samples, method, weights)
    cap = check_cap(cap)
    seed, offset = bits("seed", seed), bits("offset", offset)
    probs = check_probs(probs)
    if method != "poisson" and probs.shape[0] == 0:
        fail(FN, "probs", "one above 0", "none")
    ids = None if ids is None else check_ids(ids, probs)
    choice = choose(FN, impl, probs)
    arguments = (probs, num_samples, method, ids, seed, offset, cap, weights)
    if choice.backend == "cpu" and reads_values(probs):
        try:  # the kernel looks at each number anyway
            out = torch.ops.tamis.importance_sample.default(*arguments)
        except RuntimeError:
            check_values(probs, num_samples, method)
            raise
    else:
        if reads_values(probs):
            check_values(probs, num_samples, method)
        out = _op(choice, probs)(*arguments)
    return Sample(*out, *(() if method == "race" else (None,)))


def check_how(num_samples: int | None, method: str, weights: str) -> int | None:
    check_choice(FN, "method", method, METHODS)
    check_choice(FN, "weights", weights, WEIGHTS)
    if weights != "draw" and method in METHODS[2:]:
        fail(FN, "weights", f"draw for {method}, which may draw an example again", weights)
    if method == "poisson":
        if num_samples is not None:
            fail(FN, "num_samples", "none for poisson", num_samples)
        return None
    if num_samples is None:
        fail(FN, "num_samples", f"a number for {method}", "none")
    num_samples = check_integer(FN, "num_samples", num_samples)
    if not 1 <= num_samples < DRAWS:
        fail(FN, "num_samples", "1 to 2^31 - 1", num_samples)
    return num_samples


def check_cap(cap: float | None) -> float | None:
    return None if cap is None else check_number(FN, "cap", cap, "a number above 1e-37", lambda x: x > 1e-37)


def bits(name: str, value: int) -> int:
    """Of 64 bits, signed or not."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 2**63 <= int(value) < 2**64:
        value = int(value) - 2**64
    return check_integer(FN, name, value)


def check_probs(probs: object) -> Tensor:
    probs = check_dense(FN, "probs", probs)
    if probs.dtype not in (torch.float32, torch.float64):
        fail(FN, "probs", "float32 or float64", probs.dtype, TypeError)
    if probs.dim() != 1:
        fail(FN, "probs", "[n]", list(probs.shape))
    return probs.detach()


def check_ids(ids: object, probs: Tensor) -> Tensor:
    ids = check_dense(FN, "ids", ids)
    if ids.dtype not in INTEGERS:
        fail(FN, "ids", "integers", ids.dtype, TypeError)
    check_like(FN, "ids", ids, probs.shape, probs.device)
    ids = ids.to(torch.int64)
    if reads_values(ids) and not bool((ids[1:] > ids[:-1]).all()):
        ascending = ids.sort().values
        again = ascending[1:][ascending[1:] == ascending[:-1]]
        if len(again):
            fail(FN, "ids", "each once", f"{again[0].item()} again")
    return ids


def check_values(probs: Tensor, num_samples: int | None, method: str) -> None:
    good = (probs >= 0) & (probs <= 1 if method == "poisson" else probs < torch.inf)
    if not bool(good.all()):
        at = int((~good).nonzero()[0])
        expected = "0 to 1" if method == "poisson" else "finite numbers of 0 or above"
        fail(FN, "probs", expected, f"{probs[at].item()} at {at}")
    positive = int(probs.count_nonzero())
    if method == "race" and num_samples is not None and num_samples > positive:
        fail(FN, "num_samples", f"at most {positive}, how many probabilities are above 0", num_samples)
    if method != "poisson" and not positive:
        fail(FN, "probs", "one above 0", "none")


def _op(choice: Choice, probs: Tensor) -> Any:
    if choice.backend == "reference":
        return partial(draw_reference.sample, draw_reference.PLAIN)
    if choice.backend == "triton" and probs.device.type == "cpu":
        return partial(draw_reference.sample, draw_cuda.TRITON)
    return torch.ops.tamis.importance_sample.default


def _fake(
    probs: Tensor,
    num_samples: int | None,
    method: str,
    ids: Tensor | None,
    seed: int,
    offset: int = 0,
    cap: float | None = None,
    weights: str = "draw",
) -> list[Tensor]:
    drawn = torch.library.get_ctx().new_dynamic_size() if num_samples is None else num_samples
    dtypes = (torch.int64, torch.float32, *((torch.float32,) if method == "race" else ()))
    return [probs.new_empty(drawn, dtype=dtype) for dtype in dtypes]


def _explained(choice: Choice, probs: Tensor, num_samples: int | None = None, **options: Any) -> Choice:
    if choice.backend != "triton":
        return choice
    kernel = {"poisson": "coins_kernel", "race": "keys_kernel"}.get(options.get("method", "poisson"), "words_kernel")
    return choice._replace(kernel=kernel)


register(
    FN,
    fake=_fake,
    cuda=partial(draw_reference.sample, draw_cuda.TRITON),
    reference=partial(draw_reference.sample, draw_reference.PLAIN),
)
register(
    "_philox",
    fake=lambda ids, seed, offset: ids.new_empty(len(ids), 4),
    cuda=partial(draw_reference.words, draw_cuda.TRITON),
    reference=partial(draw_reference.words, draw_reference.PLAIN),
)
explained_by(FN, _explained)
