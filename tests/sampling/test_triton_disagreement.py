"""disagreement in Triton's interpreter, against the reference in float64."""

import math

import pytest
import torch
from interpreter import close, inner, logits, patched_once, small  # noqa: F401
from tamis.sampling import cuda, disagreement, reference

INF, NAN = float("inf"), float("nan")
CLASSES = 77  # with 8 lanes: two blocks and a tail in float32, one and a tail in half precision
KINDS = ("entropy_term", "max_abs", "jsd")
kinds = pytest.mark.parametrize("kind", KINDS)


def check(a, b, kind, target=None):
    """Within a few roundings of the reference in float64; NaN where it has NaN."""
    real = torch.float64 if a.dtype == torch.float64 else torch.float32
    target = torch.zeros(a.shape[:-1], dtype=torch.long) if target is None else target
    got = cuda.disagreement(a, b, target, kind)
    want = reference.disagreement(a.double(), b.double(), target, kind)
    assert got.dtype == real
    assert got.shape == a.shape[:-1]
    eps = torch.finfo(real).eps
    size = max(float(x[x.isfinite()].double().abs().max()) if x.isfinite().any() else 0 for x in (a, b))
    close(got, want, 32 * eps, 32 * eps * (1 + size))
    return got


@inner
@kinds
@pytest.mark.parametrize("classes", [1, 5, 32, 33, 64, CLASSES, 600])
def test_tails(kind, classes):
    check(logits(3, classes), logits(3, classes, seed=1), kind, torch.tensor([0, classes // 2, classes - 1]))


@inner
@kinds
@pytest.mark.parametrize(
    "dtypes",
    [(torch.float64, torch.float64), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16),
     (torch.bfloat16, torch.float32), (torch.float32, torch.float16)],
    ids=str,
)  # fmt: skip
def test_dtypes(kind, dtypes):
    a, b = logits(3, CLASSES, dtype=dtypes[0]), logits(3, CLASSES, seed=1, dtype=dtypes[1])
    check(a, b, kind, torch.tensor([3, 40, 76]))


@inner
def test_of_itself_it_is_nothing():
    x = logits(4, CLASSES)
    for kind in KINDS:
        assert (check(x, x, kind, torch.arange(4)) == 0).all()
        assert (check(x, x.bfloat16(), kind, torch.arange(4)) >= 0).all()


@inner
def test_the_ends_of_each_range():
    a, b = torch.full((1, CLASSES), -INF), torch.full((1, CLASSES), -INF)
    a[0, 3], b[0, 76] = 5, -7
    assert check(a, b, "max_abs").item() == 1
    assert check(a, b, "jsd").item() == pytest.approx(math.log(2), rel=1e-6)
    assert check(a, b, "entropy_term").item() == 0
    term, certain = torch.tensor([[0.0, math.log(math.e - 1)]]), torch.tensor([[50.0, 0.0]])
    assert check(term, certain, "entropy_term").item() == pytest.approx(math.log2(math.e) / math.e, rel=1e-6)


@inner
def test_close_models_keep_their_digits():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, CLASSES, generator=generator, dtype=torch.float64)
    b = a + torch.randn(4, CLASSES, generator=generator, dtype=torch.float64) * 1e-2
    a, b = a.float(), b.float()
    truth = reference.disagreement(a.double(), b.double(), kind="jsd")
    close(cuda.disagreement(a, b, None, "jsd"), truth, 1e-4, 0)
    truth = reference.disagreement(a.double(), b.double() * 1e-9, kind="jsd")
    close(cuda.disagreement(a.double(), b.double() * 1e-9, None, "jsd"), truth, 1e-12, 0)


@inner
@pytest.mark.parametrize("margin", [20.0, 60.0])
def test_two_confident_models_keep_their_digits(margin):
    a, b = logits(2, CLASSES, scale=0.1), logits(2, CLASSES, scale=0.1, seed=1)
    a[:, 30], b[:, 30] = margin, margin + 1
    terms = []
    for x in (a.double(), b.double()):
        top = x[:, 30].clone()
        x[:, 30] = -INF
        nll = torch.log1p((x.logsumexp(-1) - top).exp())
        terms.append(nll * (-nll).exp() / math.log(2))
    got = cuda.disagreement(a, b, torch.tensor([30, 30]), "entropy_term")
    close(got, (terms[0] - terms[1]).abs(), 1e-5, 1e-37)


@inner
@kinds
def test_a_bad_row_is_alone(kind):
    for special in (NAN, INF, -INF):
        for which in (0, 1):
            both = [logits(3, CLASSES), logits(3, CLASSES, seed=1)]
            both[which][1] = -INF
            both[which][1, 50] = special
            got = check(*both, kind, torch.tensor([0, 50, 2]))
            assert got.isnan().tolist() == [False, True, False], special
    one = [logits(3, CLASSES), logits(3, CLASSES, seed=1)]
    one[0][1, 70] = one[1][2, 1] = NAN
    assert check(*one, kind).isnan().tolist() == [False, True, True]


@inner
def test_targets():
    a, b = logits(3, 40), logits(3, 40, seed=1)
    out = cuda.disagreement(a, b, torch.tensor([0, 40, -1]))
    assert out.isnan().tolist() == [False, True, True]
    for kind in KINDS[1:]:
        assert torch.equal(cuda.disagreement(a, b, torch.arange(3), kind), cuda.disagreement(a, b, None, kind))


@inner
@kinds
def test_views(kind):
    a, b = logits(3, 5, 40), logits(5, 4, 40, seed=1).transpose(0, 1)[1:]
    check(a[:, :-1], b[:, :-1], kind)
    check(a[..., ::2], b[..., 3:23], kind)
    check(a[0, 0], b[0, 0], kind)
    assert check(a[:0], b[:0], kind).shape == (0, 5)


@inner
@kinds
def test_the_public_function(kind):
    a, b, target = logits(2, 3, 40), logits(2, 3, 40, seed=1), torch.tensor([[0, 1, 2], [3, 39, 5]])
    got = disagreement(a, b, target, kind=kind, impl="triton")
    close(got, disagreement(a.double(), b.double(), target, kind=kind, impl="reference"), 1e-5, 1e-6)
    close(got, disagreement(a, b, target, kind=kind, impl="cpu"), 1e-5, 1e-6)


@inner
def test_refusals():
    x, at = logits(2, 9), torch.tensor([0, 1])
    for arguments, words in (
        ((x, x, at, "kl"), "kind: expected entropy_term or max_abs or jsd, got kl"),
        ((x, x[:1], at), "logits_b: expected shape"),
        ((x, x.double(), at), "logits_b: expected float64 beside float64"),
        ((x, x.int(), at), "logits_b: expected float32"),
        ((x[:, :0], x[:, :0], at), "logits_a: expected .* at least one class"),
        ((x, x), "target: expected a tensor for entropy_term"),
        ((x, x, at.int()), "target: expected torch.int64"),
        ((x, x, at[:1]), "target: expected shape"),
    ):
        with pytest.raises(RuntimeError, match=r"tamis\.disagreement: " + words):
            cuda.disagreement(*arguments)
