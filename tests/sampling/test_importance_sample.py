"""importance_sample: arithmetic against float64, the edges by name, errors, compiled graphs."""

import math

import pytest
import torch
from sampling.populations import DTYPES, EXTREMES, TINY, some_ids, uniform
from sampling.test_draw_bits import same
from tamis import explain
from tamis.sampling import Sample, draw_reference, importance_sample

NAN, INF = math.nan, math.inf


def words(n, seed=0, offset=0):
    return torch.ops.tamis._philox(torch.arange(n), seed, offset)


def test_the_exponential_is_precise_at_both_ends():
    """Every word pattern's tail: relative error within 3 units of float32, from 2^-48 to 48 ln 2."""
    generator = torch.Generator().manual_seed(0)
    full = torch.randint(0, 2**32, (20000,), generator=generator)
    word0 = torch.cat([x for shift in range(0, 33, 2) for x in (full >> shift, 0xFFFFFFFF - (full >> shift))])
    word1 = torch.randint(0, 2**32, word0.shape, generator=generator)
    word1[:4], word0[:4] = torch.tensor([0, 0xFFFFFFFF] * 2), torch.tensor([0, 0, 0xFFFFFFFF, 0xFFFFFFFF])
    got = draw_reference.exponential(word0, word1).double()
    v = ((word0 >> 8 << 24) + (word1 >> 8 | 1)).double() * 2.0**-48  # exact
    truth = torch.where(v < 0.5, -torch.log1p(-v), -torch.log(1 - v))
    assert ((got - truth).abs() <= 1.8e-7 * truth).all()
    assert got.min() == 2.0**-48 and got.max() > 33


def test_a_race_is_precise_at_both_ends(isa):
    w = torch.ops.tamis._philox(EXTREMES, 0, 0)
    first = w[:, 0] >> 8
    assert first.tolist() == [0xFFFFFF if i in (4, 7) else 0 for i in range(8)]
    drawn = importance_sample(torch.ones(8), 8, method="race", ids=EXTREMES, seed=0)
    v = (first << 24) + (w[:, 1] >> 8 | 1)
    truth = torch.where(first == 0, -torch.log1p(-v * 2.0**-48), -torch.log((2**48 - v) * 2.0**-48))
    assert ((drawn.keys.double() - truth).abs() <= 1.8e-7 * truth).all()
    assert same(drawn, importance_sample(torch.ones(8), 8, method="race", ids=EXTREMES, seed=0, impl="reference"))


def test_inclusion_is_precise_for_small_exposures():
    x = torch.logspace(-15, 2, 40001, dtype=torch.float64).float()
    got, truth = draw_reference.one_minus_exp(x).double(), -torch.expm1(-x.double())
    assert ((got - truth).abs() <= 1.2e-7 * truth).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_race_against_float64(isa, dtype):
    """Keys, subset, draw weights, inclusion weights and their cap, from Philox's words."""
    n, k = 2000, 300
    probs = uniform(n, dtype) ** 3 + 1e-3
    w = words(n, 5, 6)
    v = ((w[:, 0] >> 8 << 24) + (w[:, 1] >> 8 | 1)).double() * 2.0**-48
    keys = -torch.log1p(-v) / probs.double()
    order = keys.argsort()
    drawn = importance_sample(probs, k, method="race", seed=5, offset=6)
    assert torch.equal(drawn.indices, order[:k].sort().values)
    torch.testing.assert_close(drawn.keys.double(), keys[drawn.indices], rtol=4e-7, atol=0)
    torch.testing.assert_close(drawn.weights.double(), 1 / probs[drawn.indices].double(), rtol=1e-7, atol=0)
    conditional = importance_sample(probs, k, method="race", seed=5, offset=6, weights="inclusion", cap=50.0)
    truth = -1 / torch.expm1(-probs[drawn.indices].double() * keys[order[k]])
    torch.testing.assert_close(conditional.weights.double(), truth.clamp(max=50), rtol=1e-6, atol=0)
    assert (truth > 50).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_poisson_compares_32_bits(isa, dtype):
    """Drawn at exactly (word + 1) / 2^32 and above, not a unit below."""
    word = words(3000, 9)[:, 0].double()
    threshold = ((word + 1) / 2**32).to(dtype)
    at_least = threshold.double() >= (word + 1) / 2**32  # float32 rounds
    drawn = importance_sample(threshold, seed=9)
    assert torch.equal(drawn.indices, at_least.nonzero().squeeze(1))
    torch.testing.assert_close(drawn.weights.double(), 1 / threshold[drawn.indices].double(), rtol=1e-7, atol=0)
    below = torch.nextafter(threshold, threshold.new_zeros(()))
    assert (below.double() * 2**32 < word + 1).all() or dtype == torch.float32
    assert torch.equal(importance_sample(below, seed=9).indices, (below.double() * 2**32 >= word + 1).nonzero()[:, 0])
    assert importance_sample(torch.ones(5000, dtype=dtype), seed=1).weights.tolist() == [1.0] * 5000
    assert len(importance_sample(torch.full((5000,), 2.0**-33, dtype=dtype), seed=1).indices) == 0


def test_the_last_of_a_race(isa):
    """As many samples as there are probabilities above 0: all of them, inclusion weights 1; no zero is drawn."""
    probs = uniform(700)
    probs[::7] = 0
    probs[1] = TINY
    drawn = importance_sample(probs, 600 - 1, method="race", seed=0, weights="inclusion")
    assert TINY not in probs[drawn.indices].tolist()
    assert (drawn.weights >= 1).all()
    every = importance_sample(probs, 600, method="race", seed=0, weights="inclusion")
    assert torch.equal(every.indices, probs.nonzero().squeeze(1))
    assert every.weights.tolist() == [1.0] * 600
    with pytest.raises(ValueError, match="num_samples: expected at most 600, how many probabilities are above 0"):
        importance_sample(probs, 601, method="race", seed=0)
    one = importance_sample(probs, 1, method="race", seed=0)
    assert one.keys == every.keys.min()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["systematic", "alias"])
def test_replacement_against_float64(isa, method, dtype):
    probs, k = uniform(500, dtype) ** 4 * 1e-3, 3000
    drawn = importance_sample(probs, k, method=method, seed=3, offset=4, cap=2.0)
    share = probs.double() / probs.double().sum()
    if method == "systematic":
        counts = torch.bincount(drawn.indices, minlength=500)
        assert ((counts - k * share).abs() < 1).all()
    w = words(k, 3, 4) if method == "alias" else torch.ops.tamis._philox(torch.tensor([-1]), 3, 4)
    u = ((w[:, 0] + w[:, 1] * 2.0**32) * 2.0**-64).double()
    u = u if method == "alias" else (u + torch.arange(k)) / k
    assert torch.equal(drawn.indices, torch.searchsorted(share.cumsum(0), u, right=True).sort().values)
    torch.testing.assert_close(drawn.weights.double(), (1 / (k * share[drawn.indices])).clamp(max=2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-300, 1e-38, 1e38, 1e300])
def test_masses_of_any_scale(isa, scale):
    probs = uniform(100, torch.float64)
    a, b = (importance_sample(p, 1000, method="systematic", seed=3) for p in (probs, probs * scale))
    assert (a.indices == b.indices).sum() >= 995
    largest = torch.tensor([1.0, 1e-30, 0.0, 1.0])
    assert importance_sample(largest, 4, method="systematic", seed=0).indices.tolist() == [0, 0, 3, 3]
    assert importance_sample(largest, 1000, method="alias", seed=0).indices.unique().tolist() == [0, 3]


def test_empty():
    drawn = importance_sample(torch.empty(0), seed=0)
    assert [x.shape for x in drawn[:2]] == [(0,), (0,)] and drawn.keys is None
    assert importance_sample(torch.zeros(70), seed=0).indices.shape == (0,)
    assert torch.ops.tamis.importance_sample(torch.empty(0), None, "poisson", torch.empty(0).long(), 0)[1].shape == (0,)


def test_integer_ids_of_any_dtype():
    probs = uniform(100)
    want = importance_sample(probs, seed=0)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(importance_sample(probs, ids=torch.arange(100, dtype=dtype), seed=0).indices, want.indices)


BAD = [  # probs, num_samples, options, the message after the function's name
    ([0.5, -0.1], None, {}, "probs: expected 0 to 1, got -0.1.* at 1"),
    ([0.5, 1.5], None, {}, "probs: expected 0 to 1, got 1.5 at 1"),
    ([NAN, 0.5], None, {}, "probs: expected 0 to 1, got nan at 0"),
    *(
        ([0.5, bad], 1, {"method": method}, f"probs: expected finite numbers of 0 or above, got {bad} at 1")
        for method in ("race", "systematic", "alias")
        for bad in (NAN, INF, -1.5)
    ),
    ([0.0, 0.0], 1, {"method": "race"}, "num_samples: expected at most 0"),
    *(([0.0, 0.0], 1, {"method": method}, "probs: expected one above 0") for method in ("systematic", "alias")),
    *(([], 1, {"method": method}, "probs: expected one above 0, got none") for method in ("race", "alias")),
    ([0.5], 2, {"method": "race"}, "num_samples: expected at most 1"),
    ([0.5], 1, {}, "num_samples: expected none for poisson, got 1"),
    *(([0.5], k, {"method": "race"}, "num_samples: expected 1 to 2\\^31 - 1") for k in (0, -1, 2**31)),
    ([0.5], None, {"method": "alias"}, "num_samples: expected .*, got none"),
    ([0.5], 1, {"method": "tea"}, "method: expected poisson"),
    ([0.5], None, {"weights": "tea"}, "weights: expected draw or inclusion"),
    ([0.5], 1, {"method": "alias", "weights": "inclusion"}, "weights: expected draw"),
    *(([0.5], None, {"cap": cap}, "cap: expected a") for cap in (0.0, -1.0, NAN)),
    ([0.5], None, {"ids": torch.arange(2)}, "ids: expected"),
]


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize(("probs", "k", "options", "message"), BAD)
def test_errors(probs, k, options, message, impl):
    with pytest.raises(ValueError, match=f"tamis.importance_sample: {message}"):
        importance_sample(torch.tensor(probs), k, seed=0, impl=impl, **options)


@pytest.mark.parametrize(("probs", "k", "options", "message"), BAD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_of_the_raw_op(isa, probs, k, options, message, dtype):
    given = {"method": "poisson", "ids": None, "seed": 0} | options
    with pytest.raises(RuntimeError, match=f"tamis.importance_sample: {message.replace(' or inclusion', '')}"):
        torch.ops.tamis.importance_sample(torch.tensor(probs, dtype=dtype), k, **given)


def test_errors_of_types():
    p = torch.full((3,), 0.5)
    for bad in (p.bfloat16(), torch.ones(3, dtype=torch.int64), [0.5]):
        with pytest.raises(TypeError, match="tamis.importance_sample: probs: expected"):
            importance_sample(bad, seed=0)
    for bad in (p[None], p[0]):
        with pytest.raises(ValueError, match="tamis.importance_sample: probs: expected \\[n\\]"):
            importance_sample(bad, seed=0)
        with pytest.raises(RuntimeError, match="tamis.importance_sample: probs: expected"):
            torch.ops.tamis.importance_sample(bad, None, "poisson", None, 0)
    with pytest.raises(RuntimeError, match="probs: expected float32 or float64"):
        torch.ops.tamis.importance_sample(p.bfloat16(), None, "poisson", None, 0)
    for ids, error in (
        (p, TypeError),
        (torch.arange(3, device="meta"), ValueError),
        (torch.zeros(3, 1).int(), ValueError),
    ):
        with pytest.raises(error, match="tamis.importance_sample: ids: expected"):
            importance_sample(p, ids=ids, seed=0)
    with pytest.raises(RuntimeError, match="ids: expected int64"):
        torch.ops.tamis.importance_sample(p, None, "poisson", torch.arange(3, dtype=torch.int32), 0)
    for bad in ({"seed": 0.5}, {"seed": True}, {"seed": 0, "offset": None}, {"seed": 0, "cap": "1"}):
        with pytest.raises(TypeError, match="tamis.importance_sample: (seed|offset|cap): expected"):
            importance_sample(p, **bad)
    with pytest.raises(ValueError, match="seed: expected an integer of 64 bits"):
        importance_sample(p, seed=2**64)
    with pytest.raises(TypeError):
        importance_sample(p)


def test_ids_that_come_twice_are_refused():
    probs, ids = uniform(300), some_ids(300)
    ids[17] = ids[250]
    with pytest.raises(ValueError, match=f"ids: expected each once, got {ids[17].item()} again"):
        importance_sample(probs, ids=ids, seed=0)
    raw = torch.ops.tamis.importance_sample(probs, 300, "race", torch.zeros(300, dtype=torch.int64), 0)
    assert torch.equal(raw[0], torch.arange(300))  # the raw op takes them, ties by position


def test_first_bad_number_is_named_in_any_chunk(isa):
    probs = torch.full((100_000,), 0.5)
    probs[70_001] = probs[90_000] = -1
    for k, method in ((None, "poisson"), (1, "race"), (1, "systematic")):
        with pytest.raises(RuntimeError, match="got -1 at 70001"):
            torch.ops.tamis.importance_sample(probs, k, method, None, 0)


def test_no_gradient():
    probs = uniform(30).requires_grad_()
    assert not importance_sample(probs, seed=0).weights.requires_grad


def test_compiled():
    """No graph break; another seed is not another graph; an error is the raw op's."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    def draw(probs, seed, method="race"):
        return importance_sample(probs, 5, method=method, seed=seed, cap=3.0)

    compiled = torch.compile(draw, fullgraph=True, backend=backend)
    probs = uniform(50)
    for seed in (1, 2, 3, 2**40, -7):
        got, want = compiled(probs, seed), draw(probs, seed)
        assert isinstance(got, Sample)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert len(graphs) <= 2
    with pytest.raises(RuntimeError, match="num_samples: expected at most 0"):
        compiled(torch.zeros(50), 1)
    assert torch.equal(torch.compile(draw, fullgraph=True)(probs, 4, "alias").indices, draw(probs, 4, "alias").indices)


def test_poisson_compiled_has_a_size_of_its_own():
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(lambda p, seed: importance_sample(p, seed=seed), fullgraph=True, backend="aot_eager")
        for seed in (1, 2):
            assert torch.equal(compiled(uniform(50), seed).indices, importance_sample(uniform(50), seed=seed).indices)


def test_explained():
    assert explain("importance_sample", uniform(3)).backend == "cpu"
    assert explain("importance_sample", uniform(3), impl="reference").kernel == "plain torch"
