"""The IWeS pipeline, tiny, and its theory against slow and plain forms of itself."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tamis.pipelines import iwes, runner
from tamis.pipelines import iwes_theory as theory
from tamis.pipelines.claims import claims
from tamis.pipelines.iwes import PIPELINE, PoolOf, Settings
from torch.utils.data import TensorDataset

TINY = Settings(
    pools={"digits": PoolOf(200, 300, 20, 15), "wine": PoolOf(58, 120, 10, 5)},
    rounds=4,
    steps=40,
    width=32,
    copies=600,
    copy_picks=30,
    races=20_000,
    coins=300,
    runs=30,
    run_steps=400,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runner.reproduce(PIPELINE, TINY, "quick", range(2), tmp_path_factory.mktemp("iwes"), workers=0)


def test_every_claim_is_measured(run):
    assert list(run.measured) == [claim.id for claim in claims("iwes")]
    json.dumps(run.to_json(), allow_nan=False)
    for claim in run.claims:
        assert np.isfinite(run.measured[claim.id].value), claim.id


def test_it_learns_and_the_exact_claims_hold(run):
    assert np.mean(iwes.auc(run.results, "digits", "entropy")) > 50
    assert np.mean(iwes.auc(run.results, "noisy", "entropy")) > 30
    measured = run.measured["iwes-exact-race"]
    assert measured.value < 0.04  # 20,000 draws of 120 triples: about 0.03
    assert abs(run.measured["iwes-unbiased"].value) < 0.05
    assert run.measured["iwes-theory-generalization"].value == 0


def test_quantities_are_what_they_say(run):
    accuracy = {seed: record["accuracy"] for seed, record in run.results["digits"].items()}
    assert all(len(curve) == TINY.rounds + 1 for curves in accuracy.values() for curve in curves.values())
    means = {m: [np.mean(accuracy[seed][m][1:]) for seed in (0, 1)] for m in accuracy[0]}
    gain = np.subtract(means["entropy"], means["uniform"])
    assert run.measured["iwes-ent-beats-uniform"].values == pytest.approx(gain)
    best = max(("uniform", "top_entropy", "margin", "coreset", "badge"), key=lambda m: np.mean(means[m]))
    assert run.measured["iwes-active-competitive"].values == pytest.approx(np.subtract(means["entropy"], means[best]))
    assert run.measured["iwes-active-competitive"].beside == {"over": best}
    noisy = {seed: record["accuracy"] for seed, record in run.results["noisy"].items()}
    least = [
        min(np.mean(noisy[s][m][1:]) - np.mean(noisy[s]["uniform"][1:]) for m in ("entropy", "disagreement"))
        for s in (0, 1)
    ]
    assert run.measured["iwes-beats-uniform-noisy-pool"].values == pytest.approx(least)
    seven = run.measured["iwes-seven-datasets"]
    assert seven.n == 2 and seven.seeds == 2 and len(seven.beside) == 2
    families = run.measured["iwes-arbitrary-models"]
    assert families.value == pytest.approx(min(families.beside.values()))
    # Two trainings a round of dis against two rounds of uniform.
    pairs = [accuracy[s]["disagreement"][k] - accuracy[s]["uniform"][2 * k] for s in (0, 1) for k in (1, 2)]
    assert run.measured["iwes-dis-beats-uniform"].beside["at equal compute"] == pytest.approx(np.mean(pairs))


def test_all_methods_share_start_set_pool_and_test_set(run):
    for record in run.results["digits"].values():
        starts = {curve[0] for name, curve in record["accuracy"].items()}
        assert len(starts) == 1
    sizes = TINY.pools["digits"]
    pool, test, classes = iwes.split(TINY, "digits", 0)
    again = iwes.split(TINY, "digits", 0)
    assert len(pool) == sizes.pool and len(test) == sizes.test and classes == 10
    assert torch.equal(pool.tensors[0], again[0].tensors[0])
    rows = torch.cat([pool.tensors[0], test.tensors[0]]).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows)
    assert not torch.equal(pool.tensors[1], iwes.split(TINY, "digits", 1)[0].tensors[1])
    table, _, _ = iwes.split(TINY, "wine", 0)
    torch.testing.assert_close(table.tensors[0].mean(0), torch.zeros(13), atol=1e-5, rtol=0)


def test_the_redundant_pool():
    pool = TensorDataset(torch.arange(100.0)[:, None].expand(100, 4) * 10, torch.arange(100) % 10)
    settings = replace(TINY, copies=20_000)
    clean = iwes.redundant(settings, pool, 10, 0.0, 0)
    source = (clean.tensors[0] / 10).round()[:, 0].long()
    assert torch.equal(clean.tensors[1], source % 10)
    assert 0 < (clean.tensors[0] - source[:, None] * 10).std() < 0.06
    counts = torch.bincount(source, minlength=100).sort(descending=True).values.double()
    law = 1 / torch.arange(1, 101).double()
    torch.testing.assert_close(counts[:5] / 20_000, (law / law.sum())[:5], rtol=0.1, atol=0)
    noisy = iwes.redundant(settings, pool, 10, 0.2, 0)
    wrong = (noisy.tensors[1] != source % 10).double().mean()  # one tenth of what is drawn anew stays
    assert wrong == pytest.approx(0.18, abs=0.01)
    assert torch.equal(noisy.tensors[0], clean.tensors[0])


def test_a_page_of_it(run, tmp_path):
    from tamis.pipelines import pages

    files = pages.save(run, tmp_path)
    assert {file.name for file in files} == {
        *("iwes.json", "iwes.csv", "iwes.md"),
        *("iwes-curves.png", "iwes-gains.png", "iwes-rate.png"),
    }
    assert "| wine |" in (tmp_path / "iwes.md").read_text()


def test_the_law_of_triples_sums_to_one():
    from itertools import permutations

    triples = list(permutations(range(len(theory.POOL)), 3))
    assert sum(map(theory._law, triples)) == pytest.approx(1)
    assert theory._law((5, 4, 3)) == pytest.approx(0.9 / 2.25 * 0.6 / 1.35 * 0.4 / 0.75)


def test_coins_are_unbiased_and_their_error_is_known():
    """The variance of sum(Q l / p) is sum(l^2 (1 - p) / p)."""
    loss, probs = torch.rand(200, generator=torch.Generator().manual_seed(0)) + 0.5, torch.linspace(0.05, 1, 200)
    record = theory.coins(loss, probs, 2000, 0)
    wanted = (loss.square() * (1 - probs) / probs).sum().sqrt() / loss.sum() / 2000**0.5
    assert record["error"] == pytest.approx(wanted.item(), rel=0.1)
    assert abs(record["bias"]) < 4 * record["error"]


def test_iwes_v_against_the_algorithm_word_by_word():
    """One run, every pair of rules looked at, at each step."""
    steps, rules = 2500, 15
    fast = theory.iwes_v(1, steps, 7, rules=rules, bins=steps)
    generator = np.random.default_rng((7, 2))
    thresholds = np.linspace(0, 1, rules)
    alive, total, asked = set(range(rules)), np.zeros(rules), []
    for t in range(1, steps + 1):
        x = generator.random(1)[0]
        y = (x > 0.5) ^ (generator.random(1)[0] < 0.1)
        loss = (x > thresholds) != y
        p = max(abs(int(loss[f]) - int(loss[g])) for f in alive for g in alive)
        asked.append(p)
        total += p * loss
        best = min(total[f] for f in alive) / t
        alive = {f for f in alive if total[f] / t <= best + theory.slack(t, rules)}
    assert fast["rate"] == asked
    final = min(sorted(alive), key=lambda f: total[f])
    risk = 0.1 + 0.8 * np.abs(thresholds - 0.5)
    assert fast["excess"][0] == pytest.approx(risk[final] - risk.min())
    assert 0 < sum(asked) < steps and len(alive) < rules  # some were put out, and some of the stream went unasked
