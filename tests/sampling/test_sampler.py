"""ImportanceSampler: epochs, orders, weights, resuming, DataLoaders."""

import itertools
import json

import pytest
import torch
from sampling.populations import some_ids, uniform
from tamis.sampling import ImportanceSampler, importance_sample
from torch.utils.data import BatchSampler, DataLoader


def sampler(k=20, **options):
    return ImportanceSampler(uniform(100), k, **({"seed": 5} | options))


@pytest.mark.parametrize("method", ["poisson", "race", "systematic", "alias"])
def test_epochs_are_draws_with_their_number_as_offset(method):
    k, ids = None if method == "poisson" else 20, some_ids(100)
    options = {"method": method, "ids": ids, "cap": 3.0}
    s = sampler(k, **options)
    for epoch in range(3):
        indices = list(s)
        want = importance_sample(uniform(100), k, seed=5, offset=epoch, **options)
        assert s.epoch == epoch and len(s) == len(indices) == s.position
        assert sorted(indices) == want.indices.tolist() == s.sample.indices.tolist()
        assert indices != sorted(indices)
        assert torch.equal(s.weights[want.indices], want.weights)
        assert (s.weights > 0).sum() == len(set(indices))


def test_order():
    a, b = sampler(), sampler()
    orders = [list(a) for _ in range(3)]
    assert orders == [list(b) for _ in range(3)]
    assert len(set(map(tuple, orders))) == 3
    assert list(sampler(shuffle=False)) == sampler().sample.indices.tolist()
    full = ImportanceSampler(torch.ones(500), method="poisson", seed=2**64 - 1)
    assert sorted(full) == list(range(500))
    firsts = [next(iter(full)) for epoch in range(200) if not full.set_epoch(epoch)]
    assert len(set(firsts)) > 100  # of a fair shuffle 165 on average


def test_an_epoch_left_early_starts_again():
    s = sampler()
    first = list(itertools.islice(s, 7))
    assert s.position == 7
    whole = list(s)
    assert whole[:7] == first and s.epoch == 0
    abandoned = iter(s)  # of epoch 1
    next(abandoned)
    new = iter(s)
    next(new), next(abandoned)
    assert s.position == 1  # of the newer one
    s.set_epoch(0)
    assert list(s) == whole


def test_set_epoch():
    s, t = sampler(), sampler()
    orders = [list(s) for _ in range(4)]
    for epoch in (2, 0, 3):
        t.set_epoch(epoch)
        assert t.epoch == epoch and list(t) == orders[epoch]
    t.set_epoch(3)
    assert list(t) == orders[3]  # again
    for bad, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="tamis.ImportanceSampler: epoch: expected"):
            t.set_epoch(bad)


def test_update_is_of_the_next_epoch_on():
    s, other = sampler(), uniform(100, seed=1)
    iterator = iter(s)
    next(iterator)
    before = s.sample
    s.update(other)
    other_copy = other.clone()
    other.zero_()  # the sampler has its own
    assert s.sample is before
    list(iterator)
    assert sorted(s) == importance_sample(other_copy, 20, method="race", seed=5, offset=1).indices.tolist()
    fresh = sampler()
    fresh.update(other_copy)  # nothing has begun
    assert sorted(fresh) == importance_sample(other_copy, 20, method="race", seed=5).indices.tolist()
    with pytest.raises(ValueError, match="tamis.ImportanceSampler: probs: expected shape"):
        s.update(other[:50])
    with pytest.raises(ValueError, match="num_samples: expected at most 0"):
        s.update(other)


@pytest.mark.parametrize("used", [0, 1, 13, 20])
def test_resumes_in_the_middle(used):
    s, rest = sampler(), sampler()
    list(s)
    s.update(uniform(100, seed=3))
    iterator = iter(s)
    taken = list(itertools.islice(iterator, used))
    s.update(uniform(100, seed=4))
    state = s.state_dict()
    assert json.dumps({name: value for name, value in state.items() if not isinstance(value, torch.Tensor)})
    rest.load_state_dict(state)
    left = list(iterator) if used < 20 else []
    if used < 20:
        assert rest.position == used and rest.epoch == 1 and len(rest) == 20
        assert list(rest) == left and sorted(taken + left) == s.sample.indices.tolist()
    assert [list(rest) for _ in range(2)] == [list(s) for _ in range(2)]
    assert (rest.epoch, rest.position) == (s.epoch, s.position)


def test_a_state_is_of_its_sampler_and_whole():
    s, ids = sampler(), torch.arange(100).flip(0)
    state = s.state_dict()
    good = {"probs": uniform(100), "epoch": 0, "position": 0}
    for change, words in (
        ({"seed": 6}, "state: expected seed 5, got 6"),
        ({"ids": ids}, "state: expected the sampler's ids"),
        ({"probs": uniform(50)}, r"state: expected probs of shape \[100\], got \[50\]"),
        ({"probs": None}, "state: expected probs"),
        ({"next_probs": uniform(50)}, "state: expected probs of shape"),
        ({"epoch": -3}, "state: expected probs and an epoch of 0 or above, got -3"),
        ({"position": 1.5}, "position: expected an integer, got float"),
        ({"position": 21}, "state: expected position 0 to 20, got 21"),
        ({"epoch": "x"}, "epoch: expected an integer, got str"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            s.load_state_dict(state | good | change)
    with pytest.raises(ValueError, match="state: expected what state_dict gives, got one without cap, epoch"):
        s.load_state_dict({})
    with pytest.raises(ValueError, match="state: expected the sampler's ids, got others"):
        sampler(ids=ids).load_state_dict(state)
    assert list(s) == list(sampler())  # nothing was taken over


def test_a_finished_epoch_again():
    s, rest = sampler(), sampler()
    whole = list(s)
    rest.load_state_dict(s.state_dict())
    rest.set_epoch(0)
    assert list(rest) == whole
    s.set_epoch(0)
    s.update(uniform(100, seed=3))  # before it begins again
    assert list(s) != whole and s.epoch == 0


def test_position_of_a_state_can_be_what_training_has_seen():
    s, rest = sampler(), sampler()
    whole = list(s)  # fetched ahead, all of it
    rest.load_state_dict(s.state_dict(position=12))
    rest.set_epoch(0)  # as a trainer does before every epoch
    assert list(rest) == whole[12:]
    assert list(rest) == list(s)
    for bad in (-1, 21):
        with pytest.raises(ValueError, match="position: expected 0 to 20"):
            s.state_dict(position=bad)


def test_a_state_of_another_sampler_is_refused():
    state = sampler().state_dict()
    for other in (sampler(seed=6), sampler(21), sampler(method="alias"), sampler(cap=2.0), sampler(shuffle=False)):
        with pytest.raises(ValueError, match="tamis.ImportanceSampler: state: expected"):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match="state: expected position 0 to 20"):
        sampler().load_state_dict(state | {"position": 30})
    with pytest.raises(ValueError, match="state: expected probs of shape"):
        ImportanceSampler(uniform(50), 20, seed=5).load_state_dict(state)


def test_an_epoch_without_examples():
    s = ImportanceSampler(torch.full((3,), 1e-4), method="poisson", seed=0)
    assert [list(s) for _ in range(3)] == [[], [], []] and s.epoch == 2


def test_arguments_are_checked_when_it_is_made():
    for options in ({"num_samples": 200}, {"method": "poisson"}, {"cap": 0.0}, {"weights": "tea"}):
        with pytest.raises(ValueError, match="tamis.importance_sample"):
            sampler(**({"k": options.pop("num_samples", 20)} | options))
    for bad in ({"ids": [1]}, {"seed": 0.5}):
        with pytest.raises(TypeError, match="tamis.importance_sample: (ids|seed): expected"):
            sampler(**bad)
    with pytest.raises(TypeError, match="tamis.importance_sample: probs: expected"):
        sampler().update([0.5] * 100)
    with pytest.raises(TypeError, match="tamis.ImportanceSampler: shuffle"):
        sampler(shuffle=1)


def test_probabilities_are_copied():
    probs = uniform(100)
    s = ImportanceSampler(probs, 20, seed=5)
    probs.zero_()
    assert [list(s) for _ in range(2)] == [list(t) for t in [sampler()] for _ in range(2)]


def test_data_loader_and_batch_sampler():
    data, want = torch.arange(100), sampler()
    orders = [list(want) for _ in range(2)]
    loader = DataLoader(data, batch_size=6, sampler=sampler())
    assert len(loader) == 4
    for order in orders:
        assert torch.cat(list(loader)).tolist() == order
    loader = DataLoader(data, batch_sampler=BatchSampler(sampler(), 6, drop_last=True))
    for order in orders:
        assert torch.cat(list(loader)).tolist() == order[:18]


@pytest.mark.parametrize("persistent", [False, True])
def test_workers(persistent):
    """They fetch ahead: the weights stay those of the epoch that is seen, and a state says what was seen."""
    s, want = sampler(), sampler()
    loader = DataLoader(torch.arange(100), batch_size=4, sampler=s, num_workers=2, persistent_workers=persistent)
    for epoch in range(2 if persistent else 1):
        order, seen = list(want), []
        for batch in loader:
            assert s.epoch == epoch and torch.equal(s.weights[batch], want.weights[batch])
            assert (s.weights[batch] > 0).all()
            seen += batch.tolist()
            if len(seen) == 8:
                state = s.state_dict(position=len(seen))
        assert seen == order
    rest = sampler()
    rest.load_state_dict(state)
    assert list(rest) == order[8:]
