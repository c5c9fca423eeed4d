import hypothesis.strategies as st
import pytest
import tamis
import torch
import torch.nn.functional as F
from helpers import INF, NAN, assert_as_good_as_torch, models
from hypothesis import given
from tamis.distill import reference_topk as reference
from tamis.distill import soft_cross_entropy

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distributions(rows, classes, seed=1):
    return (3 * seeded(rows, classes, seed=seed)).softmax(-1)


def classes_of(rows, classes, entries, seed=2):
    """indices [rows, entries], in no order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(classes, generator=generator)[:entries] for _ in range(max(rows, 1))])[:rows]


def loss_and_gradient(logits, probs, **options):
    logits = logits.detach().requires_grad_()
    loss = soft_cross_entropy(logits, probs, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


@given(data=st.data(), given_models=models())
def test_matches_float64(isa, data, given_models):
    logits, like = given_models
    rows, classes = logits.shape
    seed = data.draw(st.integers(0, 2**32))
    entries = data.draw(st.sampled_from([None, 1, min(classes, 5), classes]))
    probs = distributions(rows, entries or classes, seed).to(like.dtype)
    if entries is None and classes > 1:  # no probability where the logit is -inf, mostly
        masked = (logits == -INF) & (logits != -INF).any(-1, keepdim=True) & data.draw(st.booleans())
        probs = torch.where(masked, 0, probs.double())
        probs = (probs / probs.sum(-1, keepdim=True)).to(like.dtype)
    weight = data.draw(st.sampled_from([None, torch.arange(rows) % 3 / 2]))
    options = {"indices": None if entries is None else classes_of(rows, classes, entries, seed)}
    options |= {"row_weight": weight, "reduction": "none"}
    got, gradient = loss_and_gradient(logits, probs, **options)
    torchs, torchs_gradient = loss_and_gradient(logits, probs, impl="reference", **options)
    wide = logits.double().requires_grad_()  # unchecked: widened, half precision's sums are off by more than allowed
    truth = reference.soft_cross_entropy(wide, probs.double(), options["indices"], "none", weight)
    (true_gradient,) = torch.autograd.grad(truth.sum(), wide)
    truth = truth.detach()
    assert got.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == logits.dtype
    size = logits.double().abs().nan_to_num(0, 0, 0).amax(-1)
    assert_as_good_as_torch(got, torchs, truth, 8 + size, classes)
    finite = truth.isfinite() & true_gradient.isfinite().all(-1)
    scale = (1 + size)[finite].unsqueeze(-1)
    assert_as_good_as_torch(gradient[finite], torchs_gradient[finite], true_gradient[finite], scale, classes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_torch(isa, dtype):
    logits = (seeded(9, 3001) * 3).to(dtype).requires_grad_()
    probs = distributions(9, 3001).to(torch.float64 if dtype == torch.float64 else torch.float32)
    want = F.cross_entropy(logits.double(), probs.double())
    loss = soft_cross_entropy(logits, probs)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        *[torch.autograd.grad(x, logits)[0] for x in (loss, want)], rtol=4 * eps, atol=max(eps / 1000, 1e-9)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_sparse_is_dense_with_zeros(isa, dtype, reduction):
    logits = (seeded(2, 3, 1300) * 3).to(dtype)
    indices = classes_of(6, 1300, 40).view(2, 3, 40)
    probs = distributions(6, 40).view(2, 3, 40)
    options = {"reduction": reduction, "row_weight": torch.tensor([[1.0, 0.0, 2.0], [0.5, 3.0, 1.0]])}
    dense = torch.zeros(2, 3, 1300).scatter_(-1, indices, probs)
    want, want_gradient = loss_and_gradient(logits, dense, **options)
    for kind in (torch.int64, torch.int32, torch.int16):
        loss, gradient = loss_and_gradient(logits, probs, indices=indices.to(kind), **options)
        torch.testing.assert_close(loss, want, rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(gradient, want_gradient, rtol=1e-3 if dtype == torch.float16 else 1e-5, atol=1e-6)


def test_mixup_of_two_classes(isa):
    logits, share = seeded(4, 10).requires_grad_(), torch.tensor([0.3, 1.0, 0.0, 0.5])
    first, second = torch.arange(4), torch.arange(4) + 5
    both = torch.stack([first, second], -1)
    loss = soft_cross_entropy(logits, torch.stack([share, 1 - share], -1), indices=both)
    ce = [F.cross_entropy(logits, label, reduction="none") for label in (first, second)]
    want = (share * ce[0] + (1 - share) * ce[1]).mean()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(*[torch.autograd.grad(x, logits)[0] for x in (loss, want)])


def test_mean_divides_by_the_weight_kept(isa):
    logits, probs, weight = seeded(4, 7), distributions(4, 7), torch.tensor([1.0, 0.0, 2.0, 0.5])
    logits[1], probs[1] = NAN, -3  # weight 0: whatever they hold
    rows, _ = loss_and_gradient(logits, probs, row_weight=weight, reduction="none")
    mean, gradient = loss_and_gradient(logits, probs, row_weight=weight)
    assert rows[1] == 0
    assert gradient[1].eq(0).all()
    torch.testing.assert_close(mean, rows.sum() / 3.5)
    mask, _ = loss_and_gradient(logits, probs, row_weight=weight != 0)
    torch.testing.assert_close(mask, (rows / weight)[[0, 2, 3]].mean())
    assert soft_cross_entropy(logits, probs, row_weight=torch.zeros(4)) == 0


@pytest.mark.parametrize("sparse", [False, True])
def test_infinities_and_nan_stay_in_their_rows(isa, sparse):
    logits, probs = seeded(5, 600), distributions(5, 600)
    indices = classes_of(5, 600, 600)
    logits[0, 7], logits[1, 599], logits[2, 3] = -INF, NAN, INF
    logits[3, ::2] = -INF
    probs[3, ::2] = 0
    probs[3] /= probs[3].sum()
    options = {"reduction": "none"}
    if sparse:
        options["indices"] = indices
    given = probs.gather(-1, indices) if sparse else probs
    loss, gradient = loss_and_gradient(logits, given, **options)
    assert loss[0] == INF
    assert loss[[1, 2]].isnan().all()
    want, want_gradient = loss_and_gradient(logits[3:].double(), probs[3:].double(), reduction="none", impl="reference")
    torch.testing.assert_close(loss[3:].double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient[3:].double(), want_gradient, rtol=1e-4, atol=1e-7)


def test_no_rows_and_one_class(isa):
    for indices in (None, torch.zeros(0, 5, dtype=torch.int64)):
        loss, gradient = loss_and_gradient(torch.zeros(0, 5), torch.zeros(0, 5), indices=indices)
        assert loss == 0
        assert gradient.shape == (0, 5)
    for indices in (None, torch.zeros(3, 1, dtype=torch.int64)):
        loss, gradient = loss_and_gradient(seeded(3, 1), torch.ones(3, 1), indices=indices)
        assert loss == 0
        assert gradient.eq(0).all()
    assert soft_cross_entropy(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5])).item() == pytest.approx(0.693147)


def test_same_bits_for_any_thread_count_and_with_or_without_gradient(isa):
    logits, probs = seeded(90, 5003), distributions(90, 5003)
    indices, few = classes_of(90, 5003, 64), distributions(90, 64)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        with_gradient = loss_and_gradient(logits, probs) + loss_and_gradient(logits, few, indices=indices)
        losses = soft_cross_entropy(logits, probs), soft_cross_entropy(logits, few, indices=indices)
        results += [with_gradient, (losses[0], with_gradient[1], losses[1], with_gradient[3])]
    torch.set_num_threads(threads)
    assert all(torch.equal(got, want) for result in results[1:] for got, want in zip(result, results[0], strict=True))


def test_backward_of_any_factor_and_only_the_logits_get_one():
    logits, probs = seeded(4, 50).requires_grad_(), distributions(4, 50).requires_grad_()
    (loss := soft_cross_entropy(logits, probs)).backward(retain_graph=True)
    assert probs.grad is None
    first = logits.grad.clone()
    (loss * -2.5).backward()
    torch.testing.assert_close(logits.grad, -1.5 * first)
    again = torch.autograd.grad(soft_cross_entropy(logits, probs), logits, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="tamis.soft_cross_entropy: its second derivative"):
        again.sum().backward()


def test_compiles_and_exports():
    logits, probs, indices = seeded(4, 50).requires_grad_(), distributions(4, 8), classes_of(4, 50, 8)

    def loss(logits, probs, indices):
        return 3 * soft_cross_entropy(2 * logits, probs, indices=indices)

    want = loss(logits, probs, indices)
    got = torch.compile(loss, fullgraph=True)(logits, probs, indices)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*[torch.autograd.grad(x, logits)[0] for x in (got, want)])

    class Model(torch.nn.Module):
        def forward(self, logits, probs):
            return soft_cross_entropy(logits, probs)

    program = torch.export.export(Model(), (seeded(4, 9), distributions(4, 9)))
    given = seeded(4, 9, seed=5), distributions(4, 9, seed=6)
    assert torch.equal(program.module()(*given), soft_cross_entropy(*given))


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_a_bad_index_that_nobody_checks_makes_its_row_nan(isa, impl):
    logits, probs, indices = seeded(4, 50).requires_grad_(), distributions(4, 3), classes_of(4, 50, 3)
    indices[1, 2], indices[2] = 50, torch.tensor([7, 9, 7])
    op = torch.ops.tamis.soft_cross_entropy.default if impl == "cpu" else reference.soft_cross_entropy
    loss = op(logits, probs, indices, "none")
    assert loss.isnan().tolist() == [False, True, True, False]
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isnan().all(-1).tolist() == [False, True, True, False]
    assert gradient[[0, 3]].isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"logits": [1.0]}, TypeError, "logits: expected a Tensor, got list"),
        ({"logits": torch.zeros(2, 4).long()}, TypeError, "logits: expected float32, .*got torch.int64"),
        ({"logits": torch.zeros(2, 0)}, ValueError, r"logits: expected \[\*, classes\] with at least one class"),
        ({"probs": torch.full((2, 5), 0.2)}, ValueError, r"probs: expected shape \[2, 4\], got \[2, 5\]"),
        ({"probs": torch.full((2, 4), 0.25).double()}, TypeError, "probs: expected float64 beside float64 and only"),
        ({"probs": torch.zeros(2, 4).long()}, TypeError, "probs: expected float32"),
        ({"probs": torch.zeros(2, 4, device="meta")}, ValueError, "probs: expected device cpu, got meta"),
        (
            {"probs": torch.tensor([[0.25] * 4, [0.5, 0.6, -0.1, 0.0]])},
            ValueError,
            "probs: expected 0 or above, got -0.1",
        ),
        (
            {"probs": torch.tensor([[0.25] * 4, [0.5, 0.5, 0.1, 0.0]])},
            ValueError,
            "probs: expected rows that sum to 1 within 0.001, got 1.1",
        ),
        ({"probs": torch.full((2, 4), NAN)}, ValueError, "probs: expected rows that sum to 1 within 0.001, got nan"),
        (
            {"probs": torch.full((2, 4), 0.26, dtype=torch.bfloat16)},
            ValueError,
            "probs: expected rows that sum to 1 within 0.01, got 1.039",
        ),
        ({"indices": torch.zeros(2, 3).long()}, ValueError, r"indices: expected shape \[2, 4\], got \[2, 3\]"),
        ({"indices": torch.zeros(2, 4)}, TypeError, "indices: expected integers, .* got torch.float32"),
        ({"indices": [0]}, TypeError, "indices: expected a Tensor, got list"),
        ({"indices": torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]])}, ValueError, "indices: expected 0 to 3, got 4"),
        ({"indices": torch.tensor([[0, 1, 2, -1], [0, 1, 2, 3]])}, ValueError, "indices: expected 0 to 3, got -1"),
        (
            {"indices": torch.tensor([[0, 1, 2, 3], [0, 1, 3, 1]])},
            ValueError,
            "indices: expected each class at most once a row, got 1 again",
        ),
        (
            {"probs": torch.full((2, 5), 0.2), "indices": torch.zeros(2, 5).long()},
            ValueError,
            r"probs: expected \[\*, K\] with the leading axes \[2\] and K of 1 to 4, got \[2, 5\]",
        ),
        ({"reduction": "avg"}, ValueError, "reduction: expected mean or sum or none, got 'avg'"),
        ({"row_weight": torch.tensor([1.0, -2.0])}, ValueError, "row_weight: expected 0 or a number within"),
        ({"row_weight": torch.ones(3)}, ValueError, r"row_weight: expected shape \[2\], got \[3\]"),
        ({"impl": "fast"}, ValueError, "impl: expected auto or"),
    ],
)
def test_names_the_argument(change, error, words):
    arguments = {"logits": torch.zeros(2, 4), "probs": torch.full((2, 4), 0.25)} | change
    with pytest.raises(error, match="tamis.soft_cross_entropy: " + words):
        soft_cross_entropy(arguments.pop("logits"), arguments.pop("probs"), **arguments)


def test_half_precision_targets_pass_with_their_rounding(isa):
    for dtype in (torch.bfloat16, torch.float16):
        soft_cross_entropy(torch.zeros(4, 50_000), distributions(4, 50_000).to(dtype))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"probs": torch.zeros(2, 5)}, "probs: expected the shape of logits where there are no indices, got 10 for 8"),
        ({"probs": torch.zeros(2, 4).double()}, "probs: expected float64 beside float64"),
        ({"probs": torch.zeros(2, 4).long()}, "probs: expected float32"),
        ({"indices": torch.zeros(2, 4).int()}, "indices: expected int64 on CPU in the shape of probs, got Int"),
        ({"indices": torch.zeros(2, 3).long()}, "indices: expected int64 on CPU in the shape of probs, got Long of 6"),
        ({"indices": torch.zeros(2, 5).long(), "probs": torch.zeros(2, 5)}, "probs: expected at most 4 a row, got 5"),
        (
            {"indices": torch.zeros(3, 4).long(), "probs": torch.zeros(3, 4)},
            "probs: expected the leading axes of logits",
        ),
        ({"row_weight": torch.ones(3)}, "row_weight: expected one number per row"),
        ({"reduction": "avg"}, "reduction: expected mean, sum or none, got avg"),
    ],
)
def test_raw_op_checks_for_itself(change, words):
    arguments = {"probs": torch.zeros(2, 4), "indices": None, "reduction": "mean", "row_weight": None} | change
    with pytest.raises(RuntimeError, match="tamis.soft_cross_entropy: " + words):
        torch.ops.tamis.soft_cross_entropy(torch.zeros(2, 4), *arguments.values())


def test_explained_by_the_kernel_that_runs(monkeypatch):
    logits, probs = torch.zeros(2, 5), torch.full((2, 5), 0.2)
    assert tamis.explain("soft_cross_entropy", logits, probs).kernel.startswith("simd")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for indices, kernel in ((None, "distill_loss_kernel"), (probs.argsort(), "topk_distill_loss_kernel")):
        choice = tamis.explain("soft_cross_entropy", logits, probs, indices=indices, impl="triton")
        assert choice.kernel == kernel
