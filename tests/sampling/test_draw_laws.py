"""Who is drawn how often, for fixed seeds. Each bound is passed over by chance once in 10,000 times or less often:
|z| < 3.9 for one normal statistic, < 5.5 for the most extreme of 200 (Bonferroni), chi squares by Wilson and Hilferty.
"""

import itertools
import random

import pytest
import torch
from sampling.populations import uniform
from tamis.sampling import importance_sample

RUNS = 4000


def chi_square(counts, expected):
    """How many standard deviations the statistic lies above what it is on average."""
    assert expected.min() > 5
    degrees = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return (((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / (2 / (9 * degrees)) ** 0.5).item()


def drawn(probs, runs=RUNS, **options):
    """[runs, n]: how often each was drawn; [runs, n]: weights. One run, one offset."""
    counts, weights = torch.zeros(runs, len(probs)), torch.zeros(runs, len(probs))
    for offset in range(runs):
        sample = importance_sample(probs, **options, seed=11, offset=offset)
        counts[offset].index_add_(0, sample.indices, torch.ones(len(sample.indices)))
        weights[offset, sample.indices] = sample.weights
    return counts.double(), weights.double()


def test_poisson_draws_each_as_often_as_it_says():
    probs = uniform(200) * 0.9 + 0.05
    counts, weights = drawn(probs)
    p = probs.double()
    z = (counts.mean(0) - p) / (p * (1 - p) / RUNS).sqrt()
    assert z.abs().max() < 5.5
    # Two examples and two offsets are independent.
    size = counts.sum(1)
    variance = (p * (1 - p)).sum()
    assert abs(size.var() / variance - 1) < 3.9 * (2 / RUNS) ** 0.5
    residual = (size - p.sum()) / variance.sqrt()
    assert abs((residual[1:] * residual[:-1]).mean()) * RUNS**0.5 < 3.9
    # Totals are unbiased, their variance is sum (1/p - 1) y^2.
    y = torch.linspace(1, 3, 200).double()
    totals, spread = weights @ y, ((1 / p - 1) * y**2).sum()
    assert abs(totals.mean() - y.sum()) < 3.9 * (spread / RUNS).sqrt()
    assert abs(totals.var() / spread - 1) < 5 * (2 / RUNS) ** 0.5  # the totals' tails are a little heavy


@pytest.mark.parametrize("ids", [None, torch.arange(200) << 32, torch.arange(200) * 2**10 - 2**50])
def test_ids_alone_are_as_good(ids):
    """A structure in the counters must not show: one offset each, many examples at the same p."""
    probs = torch.full((200,), 0.3)
    counts = torch.stack([_once(probs, ids, offset) for offset in range(1000)])
    z = (counts.mean(0) - 0.3) / (0.21 / 1000) ** 0.5
    assert z.abs().max() < 5.5
    assert abs((counts.sum(1).var() / (200 * 0.21)) - 1) < 3.9 * (2 / 1000) ** 0.5


def _once(probs, ids, offset):
    return torch.zeros(200).index_fill(0, importance_sample(probs, ids=ids, seed=2**33, offset=offset).indices, 1.0)


def test_systematic_rounds_each_count_up_or_down():
    probs, k = uniform(40) ** 2, 25
    counts, weights = drawn(probs, num_samples=k, method="systematic")
    expected = k * probs.double() / probs.double().sum()
    assert ((counts >= expected.floor()) & (counts <= expected.ceil())).all()
    part = expected - expected.floor()
    z = (counts.mean(0) - expected) / (part * (1 - part) / RUNS).sqrt()
    assert z.abs().max() < 5.5
    assert torch.allclose(weights.amax(0), 1 / expected, rtol=1e-6)


def test_alias_draws_independently():
    probs = uniform(50) + 0.05
    share = probs.double() / probs.double().sum()
    sample = importance_sample(probs, 200_000, method="alias", seed=0)
    assert chi_square(torch.bincount(sample.indices, minlength=50), 200_000 * share) < 3.8
    counts, _ = drawn(probs, num_samples=30, method="alias")  # within one sample, too: binomial, not systematic
    z = (counts.var(0) / (30 * share * (1 - share)) - 1) / (2 / RUNS) ** 0.5
    assert z.abs().max() < 5.5 * 1.3  # skewed


def test_a_race_for_one_is_won_in_proportion():
    probs = torch.tensor([0.1, 2.0, 0.5, 1.0, 0.4])
    counts, _ = drawn(probs, num_samples=1, method="race")
    assert chi_square(counts.sum(0), RUNS * probs.double() / probs.sum()) < 3.8


def test_a_race_is_the_accept_reject_loop():
    """IWeS, Algorithm 1: uniform draws, accepted with probability p and then removed, until there are three. Both the
    loop and the race, in the order of keys, follow the same law of ordered triples."""
    p, runs = [0.9, 0.25, 0.5, 0.1, 0.7], 20_000
    triples = list(itertools.permutations(range(5), 3))
    law = []
    for triple in triples:
        left, chance = sum(p), 1.0
        for i in triple:
            chance, left = chance * p[i] / left, left - p[i]
        law.append(chance)
    assert sum(law) == pytest.approx(1)
    expected = runs * torch.tensor(law, dtype=torch.float64)

    randomness, loop = random.Random(0), dict.fromkeys(triples, 0)
    for _ in range(runs):
        pool, chosen = list(range(5)), []
        while len(chosen) < 3:
            i = randomness.choice(pool)
            if randomness.random() < p[i]:
                chosen.append(i)
                pool.remove(i)
        loop[tuple(chosen)] += 1

    race, probs = dict.fromkeys(triples, 0), torch.tensor(p)
    for offset in range(runs):
        sample = importance_sample(probs, 3, method="race", seed=1, offset=offset)
        race[tuple(sample.indices[sample.keys.argsort()].tolist())] += 1

    many = expected > 8
    for counts in (loop, race):
        counts = torch.tensor(list(counts.values()), dtype=torch.float64)
        rest = torch.cat([counts[many], counts[~many].sum(0, keepdim=True)])
        want = torch.cat([expected[many], expected[~many].sum(0, keepdim=True)])
        keep = want > 0
        assert chi_square(rest[keep], want[keep]) < 3.8


@pytest.mark.parametrize("k", [1, 8, 29])
def test_conditional_weights_have_unbiased_totals(k):
    probs, y = uniform(30) + 0.1, torch.linspace(1, 3, 30).double()
    _, weights = drawn(probs, num_samples=k, method="race", weights="inclusion")
    totals = weights @ y
    assert abs(totals.mean() - y.sum()) < 4.5 * totals.std() / RUNS**0.5  # an estimated deviation, skewed totals
    if k == 8:  # the draw's are not, which is why there are both
        _, plain = drawn(probs, num_samples=k, method="race")
        assert abs((plain @ y).mean() - y.sum()) > 20 * (plain @ y).std() / RUNS**0.5
