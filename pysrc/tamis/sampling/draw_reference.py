"""importance_sample in plain torch, bit for bit what the kernels do: float products, sums and quotients in the order of
kernels/sampling/exact.h, each rounded, and integers."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

METHODS = ("poisson", "race", "systematic", "alias")
WEIGHTS = ("draw", "inclusion")
DRAWS = 2**31  # fewer than
NEVER = 0x7FFFFFFF  # the key of a probability of 0, as bits
LOW = 0xFFFFFFFF


def philox(ids: Tensor, seed: int, offset: int) -> list[Tensor]:
    """Philox-4x32-10, key = seed, counter = (id, offset): four words of 32 bits in int64."""
    a, b = ids & LOW, (ids >> 32) & LOW
    c, d = torch.full_like(ids, offset & LOW), torch.full_like(ids, (offset >> 32) & LOW)
    low, high = seed & LOW, (seed >> 32) & LOW
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57  # modulo 2^64
        a, b = ((q >> 32) & LOW) ^ b ^ low, q & LOW
        c, d = ((p >> 32) & LOW) ^ d ^ high, p & LOW
        low, high = (low + 0x9E3779B9) & LOW, (high + 0xBB67AE85) & LOW
    return [a, b, c, d]


def exponential(word0: Tensor, word1: Tensor) -> Tensor:
    a, b = (word0 >> 8).int(), (word1 >> 8 | 1).int()
    upper = a >= 1 << 23
    t = torch.where(upper, 0xFFFFFF - a, a).float() * 2.0**-24 + torch.where(upper, (1 << 24) - b, b).float() * 2.0**-48
    bits = t.view(torch.int32)
    exponent, far = (bits - 0x3F3504F3) >> 23, t >= 0.292893231
    n = torch.where(upper, exponent, -far.int()).float()
    f = torch.where(upper, (bits - (exponent << 23)).view(torch.float32) - 1.0, torch.where(far, 1.0 - (t + t), -t))
    p = f * 0.0873612165 + -0.143071696
    for c in (0.149173528, -0.165705577, 0.199621439, -0.250017524, 0.333339483, -0.499999911):
        p = p * f + c
    return -(p * (f * f) + (f + n * 0.693147182))


def one_minus_exp(x: Tensor) -> Tensor:
    y = -torch.where(x < 32.0, x, 32.0)
    n = (y * 1.44269502 + 12582912.0) - 12582912.0
    r = (y - n * 0.693359375) - n * -0.000212194442
    p = r * 0.000198756912 + 0.00139819994
    for c in (0.00833345205, 0.0416657962, 0.166666657, 0.5):
        p = p * r + c
    q, power = p * (r * r) + r, ((n.int() + 127) << 23).view(torch.float32)
    return (1.0 - power) - power * q


def _ids(probs: Tensor, ids: Tensor | None) -> Tensor:
    return torch.arange(len(probs), device=probs.device) if ids is None else ids


def coins(probs: Tensor, ids: Tensor | None, seed: int, offset: int) -> Tensor:
    """Who is drawn by its own probability: word 0 < floor(p 2^32)."""
    return (philox(_ids(probs, ids), seed, offset)[0] + 1).double() <= probs.double() * 2.0**32


def keys(probs: Tensor, ids: Tensor | None, seed: int, offset: int) -> Tensor:
    """The race's, as int32 bits."""
    words = philox(_ids(probs, ids), seed, offset)
    key = (exponential(*words[:2]).to(probs.dtype) / probs).float().view(torch.int32)
    return torch.where(probs > 0, key, NEVER)


def inverse(probs: Tensor) -> Tensor:
    return (torch.ones_like(probs) / probs).float()


def conditional(probs: Tensor, tau: Tensor) -> Tensor:
    """1 / (1 - exp(-p tau))"""
    h = one_minus_exp((probs * tau.to(probs.dtype)).float())
    return torch.ones_like(h) / h


class Arithmetic(NamedTuple):
    """What a backend computes example by example."""

    coins: Callable[[Tensor, Tensor | None, int, int], Tensor]
    keys: Callable[[Tensor, Tensor | None, int, int], Tensor]
    inverse: Callable[[Tensor], Tensor]
    conditional: Callable[[Tensor, Tensor], Tensor]
    words: Callable[[Tensor, int, int], Any]  # four tensors


PLAIN = Arithmetic(coins, keys, inverse, conditional, philox)


def _race(
    run: Arithmetic, probs: Tensor, ids: Tensor | None, k: int, seed: int, offset: int, inclusion: bool
) -> list[Tensor]:
    key = run.keys(probs, ids, seed, offset)
    if ids is None:
        order = key.sort(stable=True).indices
    else:
        by_id = ids.sort(stable=True).indices
        order = by_id[key[by_id].sort(stable=True).indices]
    indices = order[:k].sort().values
    p, key_k = probs[indices], key[indices]
    if inclusion:
        tau = key[order[k : k + 1]] if len(probs) > k else key.new_full((1,), NEVER)
        tau = torch.where(tau == NEVER, torch.inf, tau.view(torch.float32))
        weights = run.conditional(p, tau)
    else:
        weights = run.inverse(p)
    return [indices, torch.where(key_k == NEVER, torch.nan, weights), key_k.view(torch.float32)]


def _power(exponent: Tensor) -> Tensor:
    """2.0**exponent exactly, from -1022 to 1023."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _masses(probs: Tensor) -> Tensor:
    """floor(p 2^s) with the largest s at which they surely sum to less than 2^62."""
    most = probs.max().double()
    scale = 62 - torch.frexp(most).exponent - len(probs).bit_length()
    half = scale >> 1
    return (probs.double() * _power(half) * _power(scale - half)).long()


def _scaled(words: list[Tensor], total: Tensor) -> Tensor:
    """floor(random 64 bits * total / 2^64), in pieces of 32 bits."""
    low, high = words[0], words[1]
    t_low, t_high = total & LOW, total >> 32
    middle = ((low * t_low) >> 32 & LOW) + (low * t_high & LOW) + (high * t_low & LOW)
    return high * t_high + (low * t_high >> 32) + ((high * t_low) >> 32 & LOW) + (middle >> 32)


def _replaced(
    run: Arithmetic, probs: Tensor, ids: Tensor | None, k: int, seed: int, offset: int, systematic: bool
) -> list[Tensor]:
    masses = _masses(probs)
    order = None if ids is None else ids.sort(stable=True).indices
    sums = (masses if order is None else masses[order]).cumsum(0)
    total, draws = sums[-1], torch.arange(k, device=probs.device)
    if systematic:
        u = _scaled(run.words(draws.new_full((1,), -1), seed, offset), total)
        points = u // k + draws * (total // k) + (u % k + draws * (total % k)) // k
    else:
        points = _scaled(run.words(draws, seed, offset), total)
    found = torch.searchsorted(sums, points, right=True).clamp(max=len(probs) - 1)
    indices = (found if order is None else order[found]).sort().values
    mass = masses[indices].double() * float(k)
    return [indices, (total.double() / mass).float()]


def _refuse(name: str, expected: str, got: object) -> NoReturn:
    raise RuntimeError(f"tamis.importance_sample: {name}: expected {expected}, got {got}")


def check(
    probs: Tensor, num_samples: int | None, method: str, ids: Tensor | None, cap: float | None, weights: str
) -> None:
    """What the raw op refuses, whatever calls it; no values."""
    if method not in METHODS:
        _refuse("method", " or ".join(METHODS), method)
    replaced = method in METHODS[2:]
    if weights not in WEIGHTS or (replaced and weights != "draw"):
        _refuse("weights", "draw with replacement" if replaced else "draw or inclusion", weights)
    if probs.dim() != 1 or probs.dtype not in (torch.float32, torch.float64):
        _refuse("probs", "float32 or float64 [n]", f"{probs.dtype} {list(probs.shape)}")
    if method == "poisson" and num_samples is not None:
        _refuse("num_samples", "none for poisson", num_samples)
    if method != "poisson" and (num_samples is None or not 1 <= num_samples < DRAWS):
        _refuse("num_samples", "1 to 2^31 - 1", num_samples)
    if method == "race" and num_samples is not None and num_samples > len(probs):
        _refuse("num_samples", f"at most {len(probs)}", num_samples)
    if method != "poisson" and not len(probs):
        _refuse("probs", "one above 0", "none")
    if ids is not None and (ids.dtype != torch.int64 or ids.shape != probs.shape or ids.device != probs.device):
        _refuse("ids", f"int64 [{len(probs)}] on {probs.device}", f"{ids.dtype} {list(ids.shape)} on {ids.device}")
    if cap is not None and not cap > 0:
        _refuse("cap", "a positive number", cap)


def sample(
    run: Arithmetic,
    probs: Tensor,
    num_samples: int | None,
    method: str,
    ids: Tensor | None,
    seed: int,
    offset: int = 0,
    cap: float | None = None,
    weights: str = "draw",
) -> list[Tensor]:
    """indices, weights, of a race keys. Ids that come twice go by position; no value is checked."""
    check(probs, num_samples, method, ids, cap, weights)
    probs = probs.contiguous()
    ids = None if ids is None else ids.contiguous()
    rest: list[Tensor] = []
    if num_samples is None:
        indices = run.coins(probs, ids, seed, offset).nonzero().squeeze(1)
        weight = run.inverse(probs[indices])
    elif method == "race":
        indices, weight, *rest = _race(run, probs, ids, num_samples, seed, offset, weights == "inclusion")
    else:
        indices, weight = _replaced(run, probs, ids, num_samples, seed, offset, method == "systematic")
    if cap is not None and cap <= torch.finfo(torch.float32).max:
        weight = weight.clamp(max=cap)
    return [indices, weight, *rest]


def words(run: Arithmetic, ids: Tensor, seed: int, offset: int) -> Tensor:
    if ids.dim() != 1 or ids.dtype != torch.int64:
        raise RuntimeError(f"tamis._philox: ids: expected int64 [n], got {ids.dtype} {list(ids.shape)}")
    return torch.stack(run.words(ids.contiguous(), seed, offset), 1)
