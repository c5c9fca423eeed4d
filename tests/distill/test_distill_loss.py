import copy
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import tamis
import torch
import torch.nn.functional as F
from helpers import DIVERGENCES, assert_as_good_as_torch, loss_and_gradient, models, pair
from hypothesis import given
from tamis.distill import DistillationLoss, distill_loss, reference
from torch.utils._python_dispatch import TorchDispatchMode

INF = float("inf")


@st.composite
def options(draw, rows, classes):
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    per_row = torch.rand(rows, generator=generator)
    target = None
    alpha = 1.0
    if draw(st.booleans()):
        target = torch.randint(classes, (rows,), generator=generator)
        target[per_row < 0.2] = -100
        alpha = draw(st.sampled_from([0.0, 0.3, 1.0, per_row]))
    return target, {
        **draw(st.sampled_from(DIVERGENCES)),
        "alpha": alpha,
        "temperature": draw(st.sampled_from([0.5, 1.0, 4.0, 0.5 + 3 * per_row])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "row_weight": draw(st.sampled_from([None, (per_row - 0.3).clamp(0)])),
        "student_softcap": draw(st.sampled_from([None, 30.0])),
        "teacher_softcap": draw(st.sampled_from([None, 20.0])),
        "student_logit_scale": draw(st.sampled_from([1.0, 0.25])),
    }


@given(data=st.data(), logits=models())
def test_matches_float64(isa, data, logits):
    student, teacher = logits
    rows, classes = student.shape
    target, chosen = data.draw(options(rows, classes))
    got, gradient = loss_and_gradient(student, teacher, target, reduction="none", **chosen)
    torchs, torchs_gradient = loss_and_gradient(student, teacher, target, reduction="none", impl="reference", **chosen)
    wide = student.double(), teacher.double()
    truth, true_gradient = loss_and_gradient(*wide, target, reduction="none", impl="reference", **chosen)
    assert got.dtype == (torch.float64 if student.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == student.dtype
    tau = torch.as_tensor(chosen["temperature"]).double().expand(rows)
    # Both round at the size of the logits that matter, over T, times T^2.
    size, other = (x.abs().nan_to_num(0, 0, 0).amax(-1) for x in wide)
    size = torch.maximum(size.clamp(max=chosen["student_softcap"] or INF), other)
    scale = truth.abs() + (1 + size + math.log(1 + classes)) * (1 + tau) ** 2
    # A class that has no probability left in float32, and none at all in the other model, makes KL infinite in float64
    # alone.
    s, t = (
        reference.transformed(x, classes, chosen[f"{name}_softcap"], scale) / tau.unsqueeze(-1)
        for x, name, scale in zip(wide, ("student", "teacher"), (chosen["student_logit_scale"], 1.0), strict=True)
    )
    log_p, log_q = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    lost = [(x < math.log(torch.finfo(got.dtype).tiny)) & (x > -INF) for x in (log_p, log_q)]
    kept = ~((lost[1] & (student == -INF)) | (lost[0] & (teacher == -INF))).any(-1)
    assert_as_good_as_torch(got[kept], torchs[kept], truth[kept], scale[kept], classes)
    finite = truth.isfinite() & true_gradient.isfinite().all(-1)
    scale = (1 + tau) * (1 + size)
    if chosen["divergence"] == "total_variation":  # the gradient jumps where p is q: what nobody can tell apart
        same = (log_p - log_q).abs() < 1e3 * torch.finfo(got.dtype).eps * (1 + size).unsqueeze(-1)
        scale = scale * (1 + (log_p.exp() * same).sum(-1).nan_to_num() / torch.finfo(gradient.dtype).eps)
    assert_as_good_as_torch(
        gradient[finite], torchs_gradient[finite], true_gradient[finite], scale[finite].unsqueeze(-1), classes
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_reductions_and_gradients_of_any_factor(isa, dtype, reduction):
    student, teacher = pair(37, 2501, dtype)
    target = torch.arange(37) * 60
    target[5] = -100
    for factor in (1.0, -2.5):
        results = []
        for impl in ("auto", "reference"):
            loss = distill_loss(student, teacher, target, temperature=2.0, alpha=0.4, reduction=reduction, impl=impl)
            results.append((loss, *torch.autograd.grad(loss.sum() * factor, student)))
        torch.testing.assert_close(*[loss for loss, _ in results], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(*[gradient for _, gradient in results])


def test_mean_divides_by_the_weight_kept_or_by_the_items_of_the_batch(isa):
    student, teacher = pair(6, 40)
    target = torch.tensor([1, -100, 3, 4, -100, 0])
    weight = torch.tensor([1.0, 2.0, 3.0, 0.0, 5.0, 0.5])
    rows = distill_loss(student, teacher, target, alpha=0.5, row_weight=weight, reduction="none")
    assert rows[[1, 3, 4]].eq(0).all()
    mean = distill_loss(student, teacher, target, alpha=0.5, row_weight=weight)
    torch.testing.assert_close(mean, rows.sum() / 4.5)
    for items in (7, torch.tensor(7)):
        loss = distill_loss(student, teacher, target, alpha=0.5, row_weight=weight, num_items_in_batch=items)
        torch.testing.assert_close(loss, rows.sum() / 7)


def test_all_rows_ignored_is_zero_with_zero_gradients(isa):
    student, teacher = pair(3, 20)
    target = torch.full((3,), -100)
    for reduction in ("mean", "sum", "none"):
        loss, gradient = loss_and_gradient(student, teacher, target, alpha=0.5, reduction=reduction)
        assert loss.eq(0).all()
        assert gradient.eq(0).all()


def test_no_rows(isa):
    loss, gradient = loss_and_gradient(torch.zeros(2, 0, 5), torch.zeros(2, 0, 5))
    assert loss == 0
    assert gradient.shape == (2, 0, 5)
    assert distill_loss(torch.zeros(0, 5), torch.zeros(0, 5), reduction="none").shape == (0,)


def test_leading_axes_are_rows_and_are_not_copied(isa):
    student, teacher = torch.randn(3, 9, 300), torch.randn(3, 9, 300)
    flat = loss_and_gradient(student[:, :-1].reshape(24, 300), teacher[:, 1:].reshape(24, 300), reduction="none")
    loss, gradient = loss_and_gradient(student[:, :-1], teacher[:, 1:], reduction="none")
    assert torch.equal(loss.flatten(), flat[0])
    assert torch.equal(gradient.reshape(24, 300), flat[1])


def test_unequal_vocabularies_and_padding_never_counts(isa):
    student, teacher = pair(5, 130)
    want, want_gradient = loss_and_gradient(student[:, :128], teacher[:, :128])
    wide = torch.cat([student.detach()[:, :128], torch.full((5, 8), 1e4)], 1)
    for padding in (0.0, 1e4, INF, float("nan")):
        padded = torch.cat([teacher[:, :128], torch.full((5, 24), padding)], 1)
        loss, gradient = loss_and_gradient(wide, padded, vocab_size=128)
        assert torch.equal(loss, want)
        assert torch.equal(gradient[:, :128], want_gradient)
        assert gradient[:, 128:].eq(0).all()


def test_identical_models_have_no_loss_and_no_gradient(isa):
    for dtype in (torch.float32, torch.bfloat16):
        student, _ = pair(4, 1000, dtype)
        loss, gradient = loss_and_gradient(student, student.detach(), temperature=3.0)
        assert loss == 0
        assert gradient.abs().max() < 1e-9  # es * a - et * b in one fma


def test_bfloat16_is_as_exact_as_its_rounded_logits(isa):
    student, teacher = pair(16, 50_257, torch.bfloat16)
    truth = distill_loss(student.double(), teacher.double(), temperature=2.0, impl="reference")
    assert abs(distill_loss(student, teacher, temperature=2.0).item() / truth.item() - 1) < 1e-5


def test_half_precision_gradients_survive_the_division(isa):
    """p / N is below the smallest half; a gradient scaler multiplies the loss, as ever, and must find it."""
    student, teacher = pair(4096, 50, torch.float16, scale=1.0)
    loss = distill_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss * 65536.0, student)
    wide = student.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(distill_loss(wide, teacher.double(), impl="reference") * 65536.0, wide)
    torch.testing.assert_close(gradient.double(), truth, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("weight", [1e-7, 1e-4, 1e6])
def test_half_precision_gradients_survive_their_weights(isa, weight):
    student, teacher = pair(4, 50, torch.float16)
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0])
    _, want = loss_and_gradient(student, teacher, row_weight=weights)
    _, got = loss_and_gradient(student, teacher, row_weight=weights * weight)
    torch.testing.assert_close(got, want, rtol=2e-3, atol=1e-7)


def test_masked_classes(isa):
    student, teacher = pair(3, 700)
    mask = torch.arange(700) % 3 == 1
    want, want_gradient = loss_and_gradient(student[:, ~mask], teacher[:, ~mask], temperature=2.0)
    loss, gradient = loss_and_gradient(
        student.detach().masked_fill(mask, -INF), teacher.masked_fill(mask, -INF), temperature=2.0
    )
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(gradient[:, ~mask], want_gradient)
    assert gradient[:, mask].eq(0).all()
    assert distill_loss(student.detach().masked_fill(mask, -INF), teacher) == INF


def test_nan_stays_in_its_row(isa):
    student, teacher = pair(4, 600)
    clean = distill_loss(student, teacher, reduction="none")
    for which in (0, 1):
        broken = [student.detach().clone(), teacher.clone()]
        broken[which][2, 599] = float("nan")
        loss, gradient = loss_and_gradient(*broken, reduction="none")
        assert torch.equal(loss[[0, 1, 3]], clean[[0, 1, 3]])
        assert loss[2].isnan()
        assert gradient[[0, 1, 3]].isfinite().all()


def test_without_weight_the_teacher_is_not_looked_at(isa):
    student, teacher = pair(3, 600)
    target = torch.arange(3)
    want, want_gradient = loss_and_gradient(student, teacher, target, alpha=0.0, temperature=2.0)
    for nothing in (float("nan"), INF, -INF):
        loss, gradient = loss_and_gradient(
            student, torch.full_like(teacher, nothing), target, alpha=0.0, temperature=2.0
        )
        assert torch.equal(loss, want)
        assert torch.equal(gradient, want_gradient)


def test_same_bits_for_any_thread_count_and_with_or_without_gradient(isa):
    student, teacher = pair(300, 5003)
    target = torch.arange(300)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(loss_and_gradient(student, teacher, target, temperature=2.0, alpha=0.5))
        results.append((distill_loss(student.detach(), teacher, target, temperature=2.0, alpha=0.5), results[0][1]))
    torch.set_num_threads(threads)
    assert all(torch.equal(got, want) for result in results[1:] for got, want in zip(result, results[0], strict=True))


def test_rows_beyond_32_bits(isa):
    torch.use_deterministic_algorithms(False)  # zeros from numpy cost no memory until written
    memory = torch.from_numpy(np.zeros(2**31 + 64, np.float16))
    memory[-64:] = torch.randn(64).half()
    far = memory.as_strided((2, 64), (2**31, 1))
    near = far.clone()
    teacher = torch.randn(2, 64).half()
    assert torch.equal(distill_loss(far, teacher), distill_loss(near, teacher))


class Recorder(TorchDispatchMode):
    """The tamis ops that run below autograd."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "tamis":
            self.names.append(op._opname)
        return op(*args, **(kwargs or {}))


class TestBackward:
    def test_hands_its_gradient_over(self):
        student, teacher = pair(4, 100)
        (loss := distill_loss(student, teacher)).backward(retain_graph=True)
        first = student.grad.clone()
        assert torch.equal(first, loss_and_gradient(student, teacher)[1])
        loss.backward(retain_graph=True)
        assert torch.equal(student.grad, 2 * first)
        student.grad = None
        loss.backward()
        assert torch.equal(student.grad, first)

    def test_accumulates_into_what_is_there(self):
        student, teacher = pair(4, 100)
        student.grad = torch.ones_like(student)
        loss_and = loss_and_gradient(student, teacher)[1]
        distill_loss(student, teacher).backward()
        assert torch.equal(student.grad, loss_and + 1)

    def test_gradient_is_formed_only_when_one_is_needed(self):
        student, teacher = pair(4, 100)

        def ops_of(call):
            with Recorder() as recorder:
                loss = call()
            return loss.requires_grad, recorder.names

        assert ops_of(lambda: distill_loss(student, teacher)) == (True, ["_distill_loss_forward"])
        assert ops_of(lambda: distill_loss(student * 1, teacher, overwrite_logits=True)) == (
            True,
            ["_distill_loss_forward_"],
        )
        teacher.requires_grad_()
        assert ops_of(lambda: distill_loss(student.detach(), teacher)) == (False, ["distill_loss"])
        with torch.no_grad():
            assert ops_of(lambda: distill_loss(student, teacher)) == (False, ["distill_loss"])

    def test_only_the_student_gets_one(self):
        student, teacher = pair(4, 100)
        alpha = torch.tensor(0.5, requires_grad=True)
        temperature = torch.tensor(2.0, requires_grad=True)
        target = torch.zeros(4, dtype=torch.long)
        distill_loss(student, teacher.requires_grad_(), target, alpha=alpha, temperature=temperature).backward()
        assert teacher.grad is alpha.grad is temperature.grad is None

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_second_derivative_is_refused_on_every_way_back(self, overwrite):
        student, teacher = pair(3, 5)

        def gradient():
            loss = distill_loss(student * 1, teacher, overwrite_logits=overwrite)
            return torch.autograd.grad(loss, student, create_graph=True)[0]

        torch.testing.assert_close(gradient().detach(), loss_and_gradient(student, teacher)[1])  # itself it may be had
        for second in (
            lambda: torch.autograd.grad(gradient().sum(), student),
            lambda: torch.autograd.grad((gradient() ** 2).sum() + (student**2).sum(), student),
            lambda: torch.autograd.grad(gradient().sum(), student, allow_unused=True),
            lambda: gradient().sum().backward(),
        ):
            with pytest.raises(NotImplementedError, match="tamis.distill_loss: its second derivative"):
                second()


class TestWhatPeersGetWrong:
    def test_padding_of_one_model_adds_nothing_to_identical_ones(self):
        student, _ = pair(4, 128)
        assert distill_loss(student, F.pad(student.detach(), (0, 8)), vocab_size=128) == 0
        assert distill_loss(F.pad(student, (0, 8)), student.detach(), vocab_size=128) == 0

    def test_bfloat16_is_summed_in_float32(self):
        student, noise = pair(64, 32_000, torch.bfloat16)
        student = student.detach()
        teacher = student + 0.05 * noise
        truth = distill_loss(student.double(), teacher.double(), impl="reference")
        coarse = F.kl_div(F.log_softmax(student, -1), F.softmax(teacher, -1), reduction="batchmean")
        assert abs(coarse.double() / truth - 1) > 0.01  # in bfloat16 it shows
        torch.testing.assert_close(distill_loss(student, teacher).double(), truth, rtol=1e-4, atol=0)

    def test_backward_reads_no_number_from_another_device(self):
        student = torch.zeros(2, 4, device="meta", requires_grad=True)  # .item() raises there
        distill_loss(student, torch.zeros(2, 4, device="meta")).backward()
        assert student.grad.shape == (2, 4)


@pytest.mark.parametrize("temperature", [1.0, 10.0, 100.0, 1e4])
def test_hot_losses_are_as_exact_as_documented(isa, temperature):
    student, teacher = pair(32, 8000, scale=1.0)
    options = {"temperature": temperature, "reduction": "none"}
    truth = distill_loss(student.double(), teacher.double(), impl="reference", **options)
    ours, torchs = (
        (distill_loss(student, teacher, impl=i, **options) - truth).abs().max() for i in ("auto", "reference")
    )
    assert ours < 1e-6 * (1 + temperature**2)
    assert ours < torchs


def test_agrees_with_torch(isa):
    student, teacher = pair(8, 1000)
    target = torch.arange(8)
    kl = F.kl_div(F.log_softmax(student / 3, -1), F.softmax(teacher / 3, -1), reduction="batchmean") * 9
    want = 0.7 * kl + 0.3 * F.cross_entropy(student, target, label_smoothing=0.2)
    got = distill_loss(student, teacher, target, temperature=3.0, alpha=0.7, label_smoothing=0.2)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*[torch.autograd.grad(loss, student)[0] for loss in (got, want)])


def test_module_copies_and_says_what_it_is():
    module = DistillationLoss(temperature=2.0, alpha=0.5)
    student, teacher = pair(3, 7)
    target = torch.tensor([0, 1, 2])
    want = distill_loss(student, teacher, target, temperature=2.0, alpha=0.5)
    for loss in (module, copy.deepcopy(module), torch.nn.Sequential(module)[0]):
        assert torch.equal(loss(student, teacher, target), want)
    assert "temperature=2.0" in repr(module)
    assert not list(module.parameters())


def test_explain():
    student, teacher = pair(2, 3)
    choice = tamis.explain("distill_loss", student, teacher, temperature=2.0)
    assert choice.backend == "cpu"
    assert torch.ops.tamis._isa() in choice.kernel
    assert tamis.explain("distill_loss", student, teacher, impl="reference").backend == "reference"
    with pytest.raises(ValueError, match="op: expected"):
        tamis.explain("nothing", student)
    with pytest.raises(TypeError, match="tamis.distill_loss: student_logits: expected a Tensor, got NoneType"):
        tamis.explain("distill_loss", teacher_logits=teacher)


def test_environment_names_a_backend(monkeypatch):
    student, teacher = pair(2, 3)
    monkeypatch.setenv("TAMIS_BACKEND", "reference")
    assert tamis.explain("distill_loss", student, teacher) == ("reference", "plain torch", "TAMIS_BACKEND=reference")
    torch.testing.assert_close(distill_loss(student, teacher), distill_loss(student, teacher, impl="cpu"))
    monkeypatch.setenv("TAMIS_BACKEND", "")
    assert tamis.explain("distill_loss", student, teacher).backend == "cpu"


def test_reference_serves_other_devices():
    loss, gradient, factor = torch.ops.tamis._distill_loss_forward(
        torch.zeros(2, 4, device="meta"), torch.zeros(2, 4, device="meta"), None, *[torch.ones((), device="meta")] * 2
    )
    assert (loss.shape, gradient.shape, factor.shape) == ((), (2, 4), ())
    student, teacher = pair(2, 4)
    one = torch.tensor(1.0)
    got = reference.distill_loss_forward(student, teacher, None, one, one)
    want = torch.ops.tamis._distill_loss_forward(student.detach(), teacher, None, one, one)
    torch.testing.assert_close(got, want)


class TestMasked:
    @pytest.mark.parametrize("low", [0.0, -200.0])
    def test_first_classes(self, isa, low):
        s, t = (torch.randn(2, 2400, generator=torch.Generator().manual_seed(i)) + low for i in range(2))
        s[:, :1024], t[:, :1024] = -INF, -INF
        target, options = torch.tensor([1200, 2399]), {"alpha": 0.5, "temperature": 0.5}
        got, gradient = loss_and_gradient(s, t, target, **options)
        want, want_gradient = loss_and_gradient(s.double(), t.double(), target, impl="reference", **options)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient.double(), want_gradient, rtol=1e-4, atol=1e-7)
