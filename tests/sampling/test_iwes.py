"""The loop of IWeS: what it picks, from what, at what weight; that an interrupt changes nothing; its baselines."""

from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tamis.sampling import IWeS, Trainer, importance_sample
from tamis.sampling.methods import FLOOR, METHODS, Draw, k_center, k_means_plus_plus, race, training_seed
from torch import nn
from torch.utils.data import Dataset, TensorDataset

N, D, C = 240, 6, 3
FAST = Trainer(steps=40)


pytestmark = pytest.mark.usefixtures("one_thread")


def clusters(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(C, (n,), generator=generator)
    centers = torch.randn(C, D, generator=generator) * 1.5
    return TensorDataset(centers[y] + torch.randn(n, D, generator=generator), y)


def make():
    return nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, C))


def loop(model=make, pool=None, **options):
    options = {"start": 12, "picks": 10, "rounds": 4, "train": FAST, "seed": 5} | options
    return IWeS(model, clusters() if pool is None else pool, **options)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_picks_its_budget_once(method):
    seen = []
    run = loop(method=method)
    picked = run.run(progress=False, each=lambda run, done, model: seen.append((done, len(run.selection.indices))))
    assert seen == [(r, 12 + 10 * r) for r in range(5)]
    assert len(picked.indices.unique()) == 52 and picked.indices.min() >= 0 and picked.indices.max() < N
    assert picked.rounds.tolist() == [0] * 12 + [r for r in range(1, 5) for _ in range(10)]
    assert (picked.weights[:12] == 1).all()
    if method in ("entropy", "disagreement"):
        assert (picked.weights >= 1).all() and (picked.weights <= 2).all() and (picked.weights[12:] > 1).any()
    else:
        assert (picked.weights == 1).all()
    assert [int(entry["picked"]) for entry in run.history] == [12, 22, 32, 42, 52]
    w = picked.weights.double()
    assert run.history[-1]["effective"] == pytest.approx((w.sum() ** 2 / w.square().sum()).item(), rel=1e-5)
    x, y = clusters().tensors
    with torch.no_grad():
        assert (run.model(x).argmax(-1) == y).float().mean() > 0.7


def probabilities(method, models, x, y):
    """In float64, as the paper writes them."""
    with torch.no_grad():
        p, q = (model.double()(x.double()).softmax(-1) for model in models)
    if method == "entropy":
        return -(p * p.log()).sum(-1) / np.log(C)
    at = torch.arange(len(y))
    return (p[at, y] * p[at, y].log2() - q[at, y] * q[at, y].log2()).abs()


@pytest.mark.parametrize("method", ["entropy", "disagreement"])
def test_the_first_round_draws_by_the_papers_probabilities(method):
    pool = clusters()
    x, y = pool.tensors
    run = loop(method=method, rounds=1, cap=3.0)
    models = []
    trained = []

    def train(model, selected, seed):
        FAST(model, selected, seed)
        models.append(model)
        trained.append((selected.indices.clone(), seed))

    run = loop(method=method, rounds=1, cap=3.0, train=train)
    picked = run.run(progress=False)
    assert [seed for _, seed in trained[:-1]] == [training_seed(5, 0, k) for k in range(METHODS[method].models)]
    left = torch.ones(N, dtype=torch.bool)
    left[picked.indices[:12]] = False
    ids = left.nonzero()[:, 0]
    p = probabilities(method, (models[0], models[-2]), x[ids], y[ids])
    expected = importance_sample(p.float().clamp(min=FLOOR), 10, method="race", ids=ids, seed=5, offset=1, cap=3.0)
    assert picked.indices[12:].tolist() == ids[expected.indices].tolist()
    torch.testing.assert_close(picked.weights[12:], expected.weights, rtol=1e-4, atol=0)


def keep(models, run, done, model):
    models.append(model)


def test_the_baselines_take_the_most_uncertain():
    pool = clusters()
    x, _ = pool.tensors
    for method, score in {
        "top_entropy": lambda p: -(p * p.log()).sum(-1),
        "margin": lambda p: p.topk(2).values.diff(dim=-1)[:, 0],  # second less first: negative
        "least_confidence": lambda p: -p.amax(-1),
    }.items():
        models = []
        picked = loop(method=method, rounds=1).run(progress=False, each=partial(keep, models))
        with torch.no_grad():
            scores = score(models[0].double()(x.double()).softmax(-1))
        scores[picked.indices[:12]] = -torch.inf
        assert set(picked.indices[12:].tolist()) == set(scores.topk(10).indices.tolist())


class Unlabelled(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


def test_labels_are_asked_for_what_is_picked_and_once():
    x, y = clusters().tensors
    asked = []

    def label(indices):
        asked.extend(indices.tolist())
        return y[indices]

    active = loop(pool=Unlabelled(x), label=label).run(progress=False)
    assert asked == active.indices.tolist()
    whole = loop().run(progress=False)
    assert active.indices.tolist() == whole.indices.tolist()
    assert torch.equal(active.weights, whole.weights)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("method", ["entropy", "disagreement", "badge"])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_an_interrupted_run_goes_on_to_the_same_end(method, at, tmp_path):
    def interrupt(run, done, model):
        if done == at:
            raise Interrupted

    straight = loop(method=method)
    expected = straight.run(progress=False)
    file = tmp_path / "run.safetensors"
    x, y = clusters().tensors
    asked = []

    def label(indices):
        asked.extend(indices.tolist())
        return y[indices]

    own = {} if method == "disagreement" else {"label": label, "pool": Unlabelled(x)}
    with pytest.raises(Interrupted):
        loop(method=method, state=file, **own).run(progress=False, each=interrupt)
    seen = []
    resumed = loop(method=method, state=file, **own)
    torch.manual_seed(99)
    result = resumed.run(progress=False, each=lambda run, done, model: seen.append(done))
    assert seen == list(range(at, 5))
    for one, other in zip(expected, result, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resumed.history == straight.history
    assert len(asked) == (0 if method == "disagreement" else 52)  # nobody is asked twice
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_a_finished_run_can_have_more_rounds(tmp_path):
    file = tmp_path / "run.safetensors"
    loop(rounds=2, state=file).run(progress=False)
    longer = loop(rounds=4, state=file).run(progress=False)
    for one, other in zip(loop(rounds=4).run(progress=False), longer, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"tamis.IWeS: state: expected at most 1 rounds, got 4 in"):
        loop(rounds=1, state=file)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 6}, "seed 6, got 5 in"),
        ({"picks": 11}, "picks 11, got 10 in"),
        ({"cap": None}, "cap None, got 2.0 in"),
        ({"method": "margin"}, "method margin, got entropy in"),
        ({"pool": clusters(200)}, "pool 200, got 240 in"),
    ],
)
def test_a_state_of_another_run_is_refused(options, words, tmp_path):
    file = tmp_path / "run.safetensors"
    loop(rounds=1, state=file).run(progress=False)
    with pytest.raises(ValueError, match=f"tamis.IWeS: state: expected {words}"):
        loop(state=file, **options)


def test_a_broken_state_is_refused_and_stays(tmp_path):
    file = tmp_path / "run.safetensors"
    loop(rounds=1, state=file).run(progress=False)
    whole = file.read_bytes()
    for broken in (whole[:-5], b"", b"{}", b"\xff" * 40, whole[:60]):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="tamis.IWeS: state: expected a file that IWeS wrote, got"):
            loop(state=file)
        assert file.read_bytes() == broken
    save_file({"x": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="tamis.IWeS: state: expected a file that IWeS wrote, got"):
        loop(state=file)


class PerExample(TensorDataset):
    """Does more than TensorDataset, example by example; and draws from torch's generator."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return (x - x.mean()) / x.std() + 0 * torch.rand(()), y


def test_a_data_set_of_ones_own_is_read_example_by_example():
    pool = PerExample(*clusters().tensors)

    def train(model, selected, seed):
        x, _, _ = selected.whole()
        assert torch.equal(x, torch.stack([selected[i][0] for i in range(len(selected))]))
        FAST(model, selected, seed)

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    loop(pool=pool, train=train, rounds=1).run(progress=False)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_state_of_other_labels_is_refused(tmp_path):
    file = tmp_path / "run.safetensors"
    loop(rounds=1, state=file).run(progress=False)
    x, y = clusters().tensors
    with pytest.raises(ValueError, match="tamis.IWeS: state: expected the labels of this pool, got others in"):
        loop(pool=TensorDataset(x, (y + 1) % C), state=file)


def test_numpys_integers_can_be_kept_and_no_label_is_asked_for_in_vain(tmp_path):
    asked = []
    x, y = clusters().tensors

    def label(indices):
        asked.append(indices)
        return y[indices]

    for state in (tmp_path / "no" / "such", tmp_path):
        with pytest.raises(ValueError, match="tamis.IWeS: state: expected a file in a folder that is there, got"):
            loop(pool=Unlabelled(x), label=label, state=state)
    assert not asked
    loop(picks=np.int64(10), start=np.int32(12), seed=np.int64(5), rounds=1, state=tmp_path / "s").run(progress=False)
    assert (tmp_path / "s").is_file()


class Reversed(nn.Module):
    """Its last layer is registered first, and another is never run."""

    def __init__(self):
        super().__init__()
        self.head, self.body, self.unused = nn.Linear(8, C), nn.Linear(D, 8), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.body(x).relu())


def test_features_are_what_enters_the_layer_that_ran_last():
    models = []
    picked = loop(Reversed, rounds=1, method="coreset").run(
        progress=False, each=lambda run, done, model: models.append(model)
    )
    x, _ = clusters().tensors
    left = torch.ones(N, dtype=torch.bool)
    left[picked.indices[:12]] = False
    with torch.no_grad():
        features = models[0].body(x).relu()
    chosen = k_center(features[left], features[picked.indices[:12]], 10)
    assert left.nonzero()[:, 0][chosen].tolist() == picked.indices[12:].tolist()


def test_the_delivered_model_is_in_evaluation_mode():
    run = loop(lambda: nn.Sequential(nn.Linear(D, 8), nn.Dropout(0.5), nn.Linear(8, C)), rounds=0)
    run.run(progress=False)
    assert not run.model.training


def test_the_callers_randomness_is_left_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    loop().run(progress=False)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_model_starts_from_its_own_weights():
    model = make()
    start = [p.clone() for p in model.parameters()]
    begun = []

    def train(copy, selected, seed):
        begun.append([p.clone() for p in copy.parameters()])
        FAST(copy, selected, seed)

    loop(model, train=train).run(progress=False)
    assert len(begun) == 5
    for each in begun:
        assert all(torch.equal(a, b) for a, b in zip(each, start, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start, strict=True))


class Named(nn.Module):
    """As models of transformers: inputs by name, logits by attribute."""

    def __init__(self):
        super().__init__()
        self.net = make()

    def forward(self, left, right):
        class Out:
            logits = self.net(torch.cat([left, right], -1))

        return Out()


class Dicts(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        x, y = clusters().tensors
        return {"left": x[i, :2], "right": x[i, 2:]}, y[i]


def test_inputs_by_name_and_outputs_with_logits():
    data = Dicts()
    named = loop(Named, data, rounds=1, method="coreset").run(progress=False)
    plain = loop(rounds=1, method="coreset").run(progress=False)
    assert named.indices.tolist() == plain.indices.tolist()


def test_selected_is_a_data_set_for_ones_own_loop():
    x, y = clusters().tensors

    def train(model, selected, seed):
        for i in (0, len(selected) - 1):
            one, label, weight = selected[i]
            assert torch.equal(one, x[selected.indices[i]]) and label == y[selected.indices[i]]
            assert weight == selected.weights[i]
        assert torch.equal(selected.whole()[0], x[selected.indices])
        FAST(model, selected, seed)

    loop(rounds=1, train=train).run(progress=False)


def test_a_trainer_minimises_the_weighted_loss():
    """One input, two labels: the probabilities go to the shares of weight."""
    x, y = torch.ones(4, 1), torch.tensor([0, 1, 1, 1])
    pool = TensorDataset(x, y)
    held = {}

    def train(model, selected, seed):
        selected.weights = torch.tensor([3.0, 1.0, 1.0, 1.0])[selected.indices]
        Trainer(steps=400)(model, selected, seed)
        held["p"] = model(x[:1]).softmax(-1).detach()

    loop(lambda: nn.Linear(1, 2), pool, start=4, picks=1, rounds=0, train=train).run(progress=False)
    torch.testing.assert_close(held["p"], torch.tensor([[0.5, 0.5]]), atol=1e-3, rtol=0)


def test_a_model_that_is_sure_of_everything_is_still_drawn_from():
    class Sure(nn.Module):
        def forward(self, x):
            return torch.tensor([[1e4, 0.0, 0.0]]).expand(len(x), 3)

    picked = loop(Sure, train=lambda model, selected, seed: None, cap=2.0).run(progress=False)
    assert len(picked.indices.unique()) == 52 and (picked.weights[12:] == 2).all()


class Flat(nn.Module):
    def __init__(self, classes, value=0.0):
        super().__init__()
        self.classes, self.value = classes, value

    def forward(self, x):
        return torch.full((len(x), self.classes), self.value)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"pool": TensorDataset(torch.ones(0, D), torch.ones(0))}, ValueError, "pool: expected at least one example"),
        (
            {"rounds": 23},
            ValueError,
            r"rounds: expected start \+ picks \* rounds of at most 240, the pool, got 12 \+ 10",
        ),
        ({"start": 241}, ValueError, "rounds: expected start"),
        ({"start": 0}, ValueError, "start: expected 1 or above, got 0"),
        ({"picks": 0}, ValueError, "picks: expected 1 or above, got 0"),
        ({"rounds": -1}, ValueError, "rounds: expected 0 or above, got -1"),
        ({"picks": 1.5}, TypeError, "picks: expected an integer, got float"),
        ({"method": "best"}, ValueError, "method: expected entropy or disagreement or .*, got 'best'"),
        ({"cap": 0.0}, ValueError, "cap: expected a number above 1e-37, got 0.0"),
        ({"cap": float("nan")}, ValueError, "cap: expected a number above 1e-37, got nan"),
        ({"model": 3}, TypeError, "model: expected a Module or a function that makes one, got int"),
        ({"model": make(), "method": "disagreement"}, TypeError, "model: expected a function .*, got a Module"),
        ({"pool": iter([])}, TypeError, "pool: expected a data set with a length, read by position, got list_iterator"),
        ({"label": len, "method": "disagreement"}, ValueError, "label: expected none: disagreement reads every label"),
        ({"model": lambda: 3}, TypeError, "model: expected a function that makes a Module, got one that makes int"),
        ({"model": lambda: Flat(1)}, ValueError, "model: expected logits .* of at least 2 classes, got"),
        ({"model": lambda: Flat(3, torch.nan)}, ValueError, "model: expected finite logits, got others for the pool's"),
        (
            {"model": lambda: Flat(3), "method": "badge"},
            ValueError,
            "model: expected an nn.Linear that gives the logits",
        ),
        ({"pool": Unlabelled(torch.ones(N, D))}, TypeError, "pool: expected examples .x, label., or label= to ask"),
        (
            {"pool": TensorDataset(torch.ones(N, D), torch.ones(N))},
            TypeError,
            "pool: expected examples whose label is an",
        ),
        ({"label": lambda i: torch.zeros(3)}, ValueError, r"label: expected one label each, shape \[12\], got \[3\]"),
    ],
)
def test_bad_input(options, error, words):
    options = dict(options)
    model = options.pop("model", make)
    train = FAST if model is make else lambda model, selected, seed: None
    with pytest.raises(error, match=f"tamis.IWeS: {words}|tamis.importance_sample: {words}"):
        loop(model, train=train, **options).run(progress=False)


@pytest.mark.parametrize("seed", range(5))
def test_k_center_against_every_pair(seed):
    generator = torch.Generator().manual_seed(seed)
    points, centers = torch.randn(40, 3, generator=generator), torch.randn(4, 3, generator=generator)
    chosen = []
    for _ in range(8):
        held = torch.cat([centers, points[chosen]]).double()
        distance = (points.double()[:, None] - held).square().sum(-1).amin(-1)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    assert k_center(points, centers, 8).tolist() == chosen


def test_k_center_with_fewer_places_than_picks():
    points = torch.zeros(5, 2)
    assert sorted(k_center(points, points[:1], 5).tolist()) == [0, 1, 2, 3, 4]


def test_k_means_plus_plus_follows_its_law():
    """The second pick's frequencies against squared distances of the embeddings, formed; 4 standard errors."""
    generator = torch.Generator().manual_seed(0)
    outer, inner = torch.randn(6, 3, generator=generator), torch.randn(6, 2, generator=generator)
    embedding = (outer[:, :, None] * inner[:, None]).flatten(1).double()
    first = int(embedding.norm(dim=-1).argmax())
    square = (embedding - embedding[first]).square().sum(-1)
    law = square / square.sum()
    draws, counts = 4000, torch.zeros(6)
    for _ in range(draws):
        chosen = k_means_plus_plus(outer, inner, 2, generator).tolist()
        assert chosen[0] == first
        counts[chosen[1]] += 1
    error = (law * (1 - law) / draws).sqrt()
    assert ((counts / draws - law).abs() <= 4 * error).all()


def test_k_means_plus_plus_with_copies():
    outer, inner = torch.ones(5, 3), torch.ones(5, 2)
    chosen = k_means_plus_plus(outer, inner, 5, torch.Generator().manual_seed(0))
    assert sorted(chosen.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(20))
def test_no_copy_is_taken_twice_for_a_rounding(seed):
    generator = torch.Generator().manual_seed(seed)
    outer, inner = (torch.randn(1, size, generator=generator).repeat(6, 1) for size in (10, 33))
    assert sorted(k_means_plus_plus(outer, inner, 6, generator).tolist()) == [0, 1, 2, 3, 4, 5]


def test_a_race_is_floored():
    draw = Draw(3, 0, 1, torch.arange(4), None)
    positions, weights = race(torch.tensor([0.0, 0.0, 0.0, 0.5]), draw)
    assert len(positions) == 3 and set(weights.tolist()) <= {2.0, (1 / torch.tensor(FLOOR)).item()}
