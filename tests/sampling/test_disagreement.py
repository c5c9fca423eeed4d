import math

import pytest
import torch
from helpers import INF, NAN, assert_as_good_as_torch, models
from hypothesis import given
from tamis.sampling import disagreement

KINDS = ("entropy_term", "max_abs", "jsd")


@pytest.mark.parametrize("kind", KINDS)
@given(logits=models())
def test_matches_float64(isa, kind, logits):
    a, b = logits
    target = torch.arange(len(a)) * 7 % a.shape[1]
    got = disagreement(a, b, target, kind=kind)
    torchs = disagreement(a, b, target, kind=kind, impl="reference")
    truth = disagreement(a.double(), b.double(), target, kind=kind, impl="reference")
    size = torch.maximum(*[x.double().abs().nan_to_num(0, 0, 0).amax(-1) for x in logits])
    assert got.dtype == (torch.float64 if a.dtype == torch.float64 else torch.float32)
    assert_as_good_as_torch(got, torchs, truth, 1 + size + math.log(a.shape[1]), a.shape[1])


def test_of_itself_it_is_nothing(isa):
    x = torch.randn(5, 1500).mul(5)
    for kind in KINDS:
        assert (disagreement(x, x, torch.arange(5), kind=kind) == 0).all()
        assert (disagreement(x, x.bfloat16().float(), torch.arange(5), kind=kind) >= 0).all()


def test_the_ends_of_each_range(isa):
    a, b = torch.full((1, 1100), -INF), torch.full((1, 1100), -INF)
    a[0, 3], b[0, 1099] = 5, -7
    assert disagreement(a, b, kind="max_abs").item() == 1
    assert disagreement(a, b, kind="jsd").item() == pytest.approx(math.log(2), rel=1e-6)
    term = torch.tensor([[0.0, math.log(math.e - 1)]])  # p = 1/e, whose term is the largest
    certain = torch.tensor([[50.0, 0.0]])
    got = disagreement(term, certain, torch.tensor([0]))
    assert got.item() == pytest.approx(math.log2(math.e) / math.e, rel=1e-6)


def test_close_models_keep_their_digits(isa):
    """p log p differs from q log q by what a float32 sum of either would lose; so do the terms of jsd."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 1300, generator=generator, dtype=torch.float64)
    b = a + torch.randn(4, 1300, generator=generator, dtype=torch.float64) * 1e-2
    a, b = a.float(), b.float()
    truth = disagreement(a.double(), b.double(), kind="jsd", impl="reference")
    torch.testing.assert_close(disagreement(a, b, kind="jsd").double(), truth, rtol=2e-4, atol=0)


def test_the_target_is_read_only_where_it_counts(isa):
    a, b = torch.randn(3, 9), torch.randn(3, 9)
    for kind in KINDS[1:]:
        assert torch.equal(disagreement(a, b, torch.tensor([0, 1, 2]), kind=kind), disagreement(a, b, kind=kind))
    out = torch.ops.tamis.disagreement(a, b, torch.tensor([0, 9, -1]))
    assert out.isnan().tolist() == [False, True, True]


def test_a_bad_row_is_alone(isa):
    for special in (NAN, INF, -INF):
        for which in (0, 1):
            both = [torch.randn(3, 1100), torch.randn(3, 1100)]
            both[which][1] = -INF
            both[which][1, 1050] = special
            for kind in KINDS:
                got = disagreement(*both, torch.tensor([0, 1, 2]), kind=kind)
                assert got.isnan().tolist() == [False, True, False], (special, kind)


def test_has_no_gradient():
    a = torch.randn(3, 9, requires_grad=True)
    assert not disagreement(a, a, kind="jsd").requires_grad


def test_views_and_threads(isa):
    a, b = torch.randn(40, 3, 2000), torch.randn(3, 40, 2000)
    views = a[:, 1:], b.transpose(0, 1)[:, 1:]
    before = torch.get_num_threads()
    try:
        for kind in KINDS:
            target = torch.zeros(40, 2, dtype=torch.long)
            torch.set_num_threads(1)
            one = disagreement(*views, target, kind=kind)
            torch.set_num_threads(2)
            assert torch.equal(one, disagreement(*(x.contiguous() for x in views), target, kind=kind))
    finally:
        torch.set_num_threads(before)
