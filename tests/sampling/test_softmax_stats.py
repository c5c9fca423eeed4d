import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from helpers import INF, NAN, SIZES, assert_as_good_as_torch, logits
from hypothesis import given
from tamis.sampling import SoftmaxStats, importance_sample, softmax_stats

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@st.composite
def calls(draw):
    """Logits and options: which are exact in every dtype, so that an argmax is too."""
    rows = draw(st.integers(0, 4) | st.just(19))
    classes = draw(SIZES | st.sampled_from([255, 256, 257]))
    dtype = draw(st.sampled_from(DTYPES))
    x = draw(logits(rows, classes, dtype))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    options = {"logit_scale": draw(st.sampled_from([1.0, 0.5, -1.0]))}
    options["temperature"] = draw(st.sampled_from([1.0, 2.0, torch.tensor(0.5), torch.arange(1, rows + 1.0)]))
    if draw(st.booleans()):
        options["target"] = torch.randint(classes, (rows,), generator=generator)
    shape = draw(st.sampled_from([None, (), (classes,), (1, classes), (rows, 1), (rows, classes)]))
    if shape is not None:
        mask = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.1, 0.5, 1.0]))
        options["valid_mask"] = mask if draw(st.booleans()) or mask.dim() < 2 else mask.T.contiguous().T
    return x, options


@given(call=calls())
def test_matches_float64(isa, call):
    x, options = call
    got = softmax_stats(x, **options)
    torchs = softmax_stats(x, impl="reference", **options)
    truth = softmax_stats(x.double(), impl="reference", **options)
    assert isinstance(got, SoftmaxStats)
    counted = x if "valid_mask" not in options else torch.where(options["valid_mask"], x, 0)
    size = counted.double().abs().nan_to_num(0, 0, 0).amax(-1) / torch.as_tensor(options["temperature"])
    for name, ours, theirs, true in zip(got._fields, got, torchs, truth, strict=True):
        if true is None:
            assert ours is None, name
        elif name == "argmax":
            assert torch.equal(ours, true)
        else:
            assert ours.dtype == (x.dtype if x.dtype == torch.float64 else torch.float32)
            assert ours.shape == x.shape[:-1]
            assert_as_good_as_torch(ours, theirs, true, true.abs() + size + 1 + math.log(x.shape[1]), x.shape[1])


@pytest.mark.parametrize("margin", [5.0, 20.0, 80.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("at", [0, 1023, 1024, 1799])
def test_confident_rows_keep_their_digits(isa, dtype, margin, at):
    """1 - p rounds to 0 from a margin of 17 on in float32."""
    x = torch.randn(3, 1800).mul(0.1)
    x[:, at] = margin
    x = x.to(dtype)
    target = torch.full((3,), at)
    got, truth = softmax_stats(x, target=target), softmax_stats(x.double(), target=target, impl="reference")
    others = x.double().index_fill(-1, torch.tensor([at]), -INF).logsumexp(-1) - x[:, at].double()
    p = torch.softmax(x.double(), -1).index_fill(-1, torch.tensor([at]), 0)
    nll = F.softplus(others)
    entropy = nll * torch.exp(-nll) - torch.where(p == 0, 0, p * p.log()).sum(-1)
    for ours, true in ((got.nll, nll), (got.entropy, entropy)):
        torch.testing.assert_close(ours.double(), true, rtol=3e-6, atol=1e-37)
    torch.testing.assert_close(got.el2n.double(), truth.el2n, rtol=3e-6 if margin < 70 else 1e-3, atol=1e-37)


@pytest.mark.parametrize("classes", [2, 3, 300, 1030])
@pytest.mark.parametrize("margin", [1.0, 15.0, 45.0, 70.0])
def test_el2n_of_one_rival(isa, classes, margin):
    """Two thirds of it is the rival's square, which floats alone would lose from a margin of 44 on."""
    x = torch.full((5, classes), -INF)
    x[:, 0], x[:, -1] = 0, margin
    for y in (0, classes - 1):
        target = torch.full((5,), y)
        got, truth = softmax_stats(x, target=target), softmax_stats(x.double(), target=target, impl="reference")
        rtol = 6e-6 if isa == "v2" else 3e-6  # an exponent is rounded more often without fma
        torch.testing.assert_close(got.el2n.double(), truth.el2n, rtol=rtol, atol=0)


def test_a_maximum_that_rises_in_every_block(isa):
    """By little, which is subtracted from the sums so far; and by much, which is not."""
    for step in (0.001, 0.5, 30.0):
        x = torch.arange(5000.0).div(1024, rounding_mode="floor") * step + torch.randn(2, 5000).mul(0.3)
        x[1] = x[1].flip(-1)
        got = softmax_stats(x, target=torch.tensor([4999, 0]))
        truth = softmax_stats(x.double(), target=torch.tensor([4999, 0]), impl="reference")
        for ours, true in zip(got, truth, strict=True):
            torch.testing.assert_close(ours.double(), true.double(), rtol=1e-5, atol=1e-6)


def test_ties_and_one_class(isa):
    x = torch.zeros(3, 1100)
    x[0, [3, 700]] = x[1, [600, 1090]] = x[2, 1099] = 1
    got = softmax_stats(x)
    assert got.argmax.tolist() == [3, 600, 1099]
    assert got.margin[:2].tolist() == [0, 0]
    assert got.margin[2] > 0
    assert softmax_stats(torch.zeros(2, 40)).margin.tolist() == [0, 0]
    one = softmax_stats(torch.tensor([[3.0], [-2.0]]), target=torch.tensor([0, 0]))
    assert one.margin.tolist() == one.max_prob.tolist() == [1, 1]
    assert one.entropy.tolist() == one.nll.tolist() == one.el2n.tolist() == one.normalized_entropy.tolist() == [0, 0]
    assert one.logsumexp.tolist() == [3, -2]


@pytest.mark.parametrize("classes", [3, 65, 513, 1537])
@pytest.mark.parametrize("special", [NAN, INF, -INF])
def test_a_bad_row_is_alone(isa, classes, special):
    x = torch.randn(4, classes)
    good = softmax_stats(x, target=torch.zeros(4, dtype=torch.long))
    x[1] = -INF if special == -INF else x[1]
    x[1, -1] = special
    got = softmax_stats(x, target=torch.zeros(4, dtype=torch.long))
    for name, ours, before in zip(got._fields, got, good, strict=True):
        assert torch.equal(ours[[0, 2, 3]], before[[0, 2, 3]]), name
    assert got.logsumexp[1:2].equal(x[1:2].logsumexp(-1)) or special is NAN
    assert got.logsumexp[1].isnan() == (special is NAN)
    for value in (got.entropy, got.max_prob, got.margin, got.nll, got.el2n):
        assert value[1].isnan()
    assert got.argmax[1] == x[1].argmax()


def test_what_a_mask_hides_does_not_count(isa):
    x = torch.randn(4, 2000)
    mask = torch.rand(2000) < 0.5
    got = softmax_stats(torch.where(mask, x, NAN), valid_mask=mask)
    alone = softmax_stats(x[:, mask])
    for field in ("logsumexp", "entropy", "max_prob", "margin", "normalized_entropy"):
        torch.testing.assert_close(getattr(got, field), getattr(alone, field), rtol=2e-6, atol=1e-6)
    assert torch.equal(mask.nonzero()[alone.argmax].squeeze(-1), got.argmax)
    hidden = int((~mask).nonzero()[0])
    target = torch.full((4,), hidden)
    assert softmax_stats(x, target=target, valid_mask=mask).nll.tolist() == [INF] * 4


def test_properties_follow_the_call(isa):
    x, tau = torch.randn(3, 5, 7), torch.rand(3, 5) + 0.5
    got = softmax_stats(x, temperature=tau)
    torch.testing.assert_close(got.energy, -tau * (x / tau.unsqueeze(-1)).logsumexp(-1))
    torch.testing.assert_close(got.normalized_entropy, got.entropy / math.log(7))
    mask = torch.rand(3, 1, 7) < 0.6
    mask[..., :2] = True
    mask[0, 0] = torch.arange(7) == 2
    masked = softmax_stats(x, valid_mask=mask)
    torch.testing.assert_close(masked.normalized_entropy[1], masked.entropy[1] / math.log(int(mask[1].sum())))
    assert (masked.normalized_entropy[0] == 0).all()
    assert (masked._replace(nll=None).normalized_entropy == masked.normalized_entropy).all()
    with pytest.raises(AttributeError, match="SoftmaxStats: energy: expected a result of softmax_stats"):
        _ = SoftmaxStats(*masked).energy
    schedule = torch.tensor(2.0)
    before = softmax_stats(x, temperature=schedule)
    energy = before.energy
    schedule.mul_(0.5)
    assert torch.equal(before.energy, energy)


def test_normalized_entropy_is_a_probability(isa):
    """As poisson draws by it, which refuses more than 1."""
    for classes in (2, 10, 100, 256, 257, 1000, 1882, 5000):
        for x in (torch.zeros(50, classes), torch.randn(50, classes) * 1e-3, torch.full((50, classes), 7.7)):
            share = softmax_stats(x).normalized_entropy
            assert (share <= 1).all()
            torch.testing.assert_close(share, torch.ones(50), rtol=1e-5, atol=0)  # randn is no constant
            importance_sample(share, seed=0)


def test_another_default_device_changes_nothing():
    x = torch.randn(3, 70)
    want = softmax_stats(x)
    with torch.device("meta"):
        got = softmax_stats(x)
    assert all(torch.equal(a, b) for a, b in zip(got[:5], want[:5], strict=True))
    with pytest.raises(ValueError, match="tamis.softmax_stats: target: expected device cpu, got meta"):
        torch.ops.tamis.softmax_stats(x, torch.zeros(3, dtype=torch.long, device="meta"), torch.ones(()))


def test_softcap_and_every_option(isa):
    x, target = torch.randn(2, 3, 1500).mul(4), torch.randint(1500, (2, 3))
    options = {"softcap": 6.0, "logit_scale": 0.7, "temperature": torch.rand(2, 3) + 0.5, "target": target}
    options["valid_mask"] = torch.rand(2, 3, 1500) < 0.9
    got, truth = softmax_stats(x, **options), softmax_stats(x.double(), impl="reference", **options)
    for name, ours, true in zip(got._fields, got, truth, strict=True):
        if name != "argmax":
            torch.testing.assert_close(ours.double(), true, rtol=1e-5, atol=2e-6, msg=name)


def test_views_are_read_in_place(isa):
    x = torch.randn(3, 6, 50)
    for view in (x[:, :-1], x.transpose(0, 1), x[..., ::2], x[:, :, 3:20], x[:0]):
        for ours, other in zip(softmax_stats(view), softmax_stats(view.contiguous()), strict=True):
            assert ours is other is None or torch.equal(ours, other)


def test_bits_do_not_depend_on_threads(isa):
    x, target = torch.randn(300, 3000).mul(3), torch.randint(3000, (300,))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            stats = softmax_stats(leaf, target=target)
            (gradient,) = torch.autograd.grad((stats.entropy + stats.nll).sum(), leaf)
            found.append([*stats, gradient])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_bad_values_that_only_a_kernel_sees(isa):
    """As on devices whose numbers are not read beforehand: the raw op."""
    x = torch.randn(4, 30)
    target = torch.tensor([0, 30, -1, 29])
    out = torch.ops.tamis.softmax_stats(x, target, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert out[0].isnan().tolist() == [False, False, False, True]
    assert out[5].isnan().tolist() == out[6].isnan().tolist() == [False, True, True, True]
    leaf = x.clone().requires_grad_()
    out = torch.ops.tamis.softmax_stats(leaf, target, torch.tensor([1.0, 1.0, 1.0, 1.0]))
    (gradient,) = torch.autograd.grad(out[5][[0, 3]].sum(), leaf)
    assert gradient.isfinite().all()
    assert (gradient[1:3] == 0).all()
