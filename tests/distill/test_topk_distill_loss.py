import math

import hypothesis.strategies as st
import pytest
import torch
from helpers import DIVERGENCES, INF, NAN, assert_as_good_as_torch, models, named, pair
from helpers import loss_and_gradient as dense_loss_and_gradient
from hypothesis import given
from tamis.distill import reference, reference_topk, topk_distill_loss

KINDS = [options for options in DIVERGENCES if options["divergence"] != "logit_mse"]
divergences = pytest.mark.parametrize("chosen", KINDS, ids=named)


def stored(teacher, entries, temperature=1.0, seed=0):
    """K of the teacher's logits in no order, their classes, and the logsumexp of all, which is rounded last."""
    *axes, classes = teacher.shape
    scores = torch.rand(*axes, classes, generator=torch.Generator().manual_seed(seed))
    indices = scores.argsort(-1)[..., :entries]
    tau = torch.as_tensor(temperature, dtype=torch.float64)
    logsumexp = (teacher.double() / (tau.unsqueeze(-1) if tau.dim() else tau)).logsumexp(-1)
    return teacher.gather(-1, indices), indices, logsumexp.to(torch.promote_types(teacher.dtype, torch.float32))


def wide(values, indices, logsumexp):
    return values.double(), indices, logsumexp.double()


def loss_and_gradient(student, teacher, *args, function=topk_distill_loss, **options):
    """teacher: what stored() gives."""
    student = student.detach().requires_grad_()
    loss = function(student, *teacher, *args, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    return loss.detach(), gradient


def truth_of(student, teacher, *args, **options):
    return loss_and_gradient(student.double(), wide(*teacher), *args, impl="reference", **options)


def bucket_truth(student, teacher_logits, indices, tau, divergence, beta=0.5):
    """tau^2 D of the two models' probabilities, the tail's added up; from softmaxes alone, in float64."""
    p, q = (torch.softmax(x / tau, -1) for x in (student, teacher_logits))
    outside = torch.ones_like(p).scatter(-1, indices, 0.0)
    p, q = (torch.cat([x.gather(-1, indices), (x * outside).sum(-1, keepdim=True)], -1) for x in (p, q))

    def kl(a, b):
        return (a * (a / b).log()).sum(-1)

    beta = {"forward_kl": 0.0, "reverse_kl": 1.0}.get(divergence, beta)
    if divergence == "total_variation":
        d = (p - q).abs().sum(-1) / 2
    elif beta == 0:
        d = kl(q, p)
    elif beta == 1:
        d = kl(p, q)
    else:
        m = beta * q + (1 - beta) * p
        d = beta * kl(q, m) + (1 - beta) * kl(p, m)
    return tau**2 * d


@divergences
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_of_k_classes_and_the_rest(isa, chosen, alpha, tau, dtype):
    student, teacher = (x.detach() for x in pair(7, 1100, dtype, scale=2.0))
    target = torch.arange(7) * 150
    entries = stored(teacher, 30, tau)
    target[0] = entries[1][0, 3]  # a member
    options = {"temperature": tau, "alpha": alpha, "reduction": "none", **chosen}
    loss, gradient = loss_and_gradient(student, entries, target, **options)
    logits = student.double().requires_grad_()
    soft = bucket_truth(logits, teacher.double(), entries[1], tau, **chosen)
    want = alpha * soft + (1 - alpha) * torch.nn.functional.cross_entropy(logits, target, reduction="none")
    (want_gradient,) = torch.autograd.grad(want.sum(), logits)
    exact = dtype == torch.float64
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-9 if exact else 3e-6, atol=1e-9 if exact else 2e-5)
    torch.testing.assert_close(
        gradient.double(), want_gradient, rtol=1e-7 if exact else 1e-4, atol=1e-11 if exact else 2e-6
    )


@st.composite
def choices(draw, rows, classes):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    per_row = torch.rand(rows, generator=generator)
    target, alpha = None, 1.0
    if draw(st.booleans()):
        target = torch.randint(classes, (rows,), generator=generator)
        target[per_row < 0.2] = -100
        alpha = draw(st.sampled_from([0.0, 0.3, 1.0, per_row]))
    tail = draw(st.sampled_from(["bucket", "bucket", "renorm"]))
    return target, {
        **(draw(st.sampled_from(KINDS)) if tail == "bucket" else {}),
        "tail": tail,
        "alpha": alpha,
        "temperature": draw(st.sampled_from([0.5, 1.0, 4.0, 0.5 + 3 * per_row])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "row_weight": draw(st.sampled_from([None, (per_row - 0.3).clamp(0)])),
        "student_softcap": draw(st.sampled_from([None, 30.0])),
        "student_logit_scale": draw(st.sampled_from([1.0, 0.25])),
    }


@given(data=st.data(), logits=models())
def test_matches_float64(isa, data, logits):
    student, teacher = logits
    rows, classes = student.shape
    target, chosen = data.draw(choices(rows, classes))
    count = data.draw(st.sampled_from(sorted({1, min(5, classes), max(1, classes // 2), classes})))
    entries = stored(teacher, count, chosen["temperature"], data.draw(st.integers(0, 99)))
    got, gradient = loss_and_gradient(student, entries, target, reduction="none", **chosen)
    torchs, torchs_gradient = loss_and_gradient(student, entries, target, reduction="none", impl="reference", **chosen)
    arguments = {"divergence": "forward_kl", **chosen}
    truth, true_gradient = truth_of(student, entries, target, reduction="none", **arguments)
    assert got.dtype == (torch.float64 if student.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == student.dtype
    tau = torch.as_tensor(chosen["temperature"]).double().expand(rows)
    size, other = (x.double().abs().nan_to_num(0, 0, 0).amax(-1) for x in logits)
    size = torch.maximum(size.clamp(max=chosen["student_softcap"] or INF), other)
    scale = truth.abs() + (1 + size + math.log(1 + classes)) * (1 + tau) ** 2
    # As in the dense loss: what has no probability left in float32, and none at all in the other model; and a tail
    # that only the rounding of what was stored leaves to the teacher, or takes from it.
    s = reference.transformed(student.double(), classes, chosen["student_softcap"], chosen["student_logit_scale"])
    s, values = s / tau.unsqueeze(-1), entries[0].double() / tau.unsqueeze(-1)
    log_p = torch.log_softmax(reference_topk._with_tail(s, entries[1]), -1)
    lse = entries[2].double().unsqueeze(-1)
    log_q = values - lse
    if count < classes:
        rest = torch.log1p(-log_q.exp().sum(-1, keepdim=True).clamp(max=1))
        log_q = torch.cat([log_q, rest if chosen["tail"] == "bucket" else torch.full_like(rest, -INF)], -1)
    least = math.log(torch.finfo(got.dtype).tiny)
    lost = ((log_p < least) & (log_q == -INF)) | ((log_q < least) & (log_p == -INF))
    blurred = count < classes and chosen["tail"] == "bucket" and student.dtype != torch.float64
    noise = 4 * torch.finfo(got.dtype).eps * (1 + lse.abs() + values.abs().amax(-1, keepdim=True))
    vague = (1 - values.sub(lse).exp().sum(-1, keepdim=True)).abs() < (noise if blurred else 1e-12)
    kept = ~(lost | (vague if count < classes and chosen["tail"] == "bucket" else False)).any(-1)
    assert_as_good_as_torch(got[kept], torchs[kept], truth[kept], scale[kept], classes)
    finite = kept & truth.isfinite() & true_gradient.isfinite().all(-1)
    scale = (1 + tau) * (1 + size)
    if arguments["divergence"] == "total_variation":  # the gradient jumps where p is q: what nobody can tell apart
        same = (log_p - log_q).abs() < 1e3 * torch.finfo(got.dtype).eps * (1 + size).unsqueeze(-1)
        scale = scale * (1 + (log_p.exp() * same).sum(-1).nan_to_num() / torch.finfo(gradient.dtype).eps)
    assert_as_good_as_torch(
        gradient[finite], torchs_gradient[finite], true_gradient[finite], scale[finite].unsqueeze(-1), classes
    )


@divergences
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_k_of_all_classes_is_the_dense_loss(isa, chosen, dtype):
    student, teacher = pair(5, 601, dtype)
    target = torch.tensor([1, 600, -100, 3, 4])
    options = {"temperature": 2.0, "alpha": 0.4, "label_smoothing": 0.1, "student_softcap": 9.0, **chosen}
    options |= {"teacher_softcap": 8.0, "teacher_logit_scale": 0.5}
    values, indices, _ = stored(teacher, 601)
    logsumexp = torch.zeros(5, dtype=torch.float64)  # nothing is left for it to say
    want, want_gradient = dense_loss_and_gradient(student, teacher, target, **options)
    loss, gradient = loss_and_gradient(student, (values, indices, logsumexp), target, **options)
    torch.testing.assert_close(loss, want, rtol=1e-6 if dtype != torch.float64 else 1e-12, atol=1e-7)
    torch.testing.assert_close(gradient, want_gradient, atol=1e-7, rtol=1e-5 if dtype != torch.bfloat16 else 1e-2)


def test_renormalised_teacher_against_the_whole_vocabulary(isa):
    student, teacher = pair(6, 900)
    entries = stored(teacher, 20, 2.0)
    loss, gradient = loss_and_gradient(student, entries, tail="renorm", temperature=2.0, reduction="none")
    q = torch.softmax(entries[0].double() / 2, -1)
    log_p = torch.log_softmax(student.detach().double() / 2, -1)
    want = 4 * (q * (q.log() - log_p.gather(-1, entries[1]))).sum(-1)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-6)
    want = 2 * log_p.exp().scatter_add(-1, entries[1], -q)
    torch.testing.assert_close(gradient.double(), want, rtol=1e-5, atol=1e-7)
    nothing = torch.full((6,), NAN)  # the logsumexp is not looked at
    again = topk_distill_loss(student, *entries[:2], nothing, tail="renorm", temperature=2.0, reduction="none")
    assert torch.equal(again.detach(), loss)


@pytest.mark.parametrize("depth", [46.0, 80.0, 150.0])  # p_tail 1e-20; 1e-35; beyond float32
@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("target", [None, torch.tensor([40, 3])])
def test_a_tail_that_vanishes_beside_the_members_is_exact(isa, depth, tau, target):
    student, teacher = (x.detach() for x in pair(2, 1300, scale=1.0))
    indices = torch.stack([torch.arange(0, 1300, 130), torch.arange(1299, 0, -130)])
    student -= (depth + math.log(1300)) * tau
    student.scatter_(-1, indices, torch.arange(10.0).expand(2, 10))
    values = teacher.gather(-1, indices)
    logsumexp = values.div(tau).logsumexp(-1) + 0.4  # q_tail 0.33
    entries = values, indices, logsumexp
    options = {"temperature": tau, "alpha": 1.0 if target is None else 0.5, "reduction": "none"}
    loss, gradient = loss_and_gradient(student, entries, target, **options)
    truth, true_gradient = truth_of(student, entries, target, **options)
    q = -math.expm1(-0.4)
    term = options["alpha"] * tau**2 * q * depth  # what the tail adds, near enough
    assert truth.min() > 0.8 * term
    assert ((loss - truth).abs() < 1e-5 * term).all()
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=2e-5, atol=1e-7)
    tail = torch.ones(2, 1300, dtype=torch.bool).scatter(-1, indices, False)
    if target is None:  # shares of q_tail, each to its own digits
        torch.testing.assert_close(gradient[tail].double(), true_gradient[tail], rtol=2e-5, atol=0)
    if depth < 80:
        options["divergence"] = "reverse_kl"
        _, gradient = loss_and_gradient(student, entries, target, **options)
        _, true_gradient = truth_of(student, entries, target, **options)
        torch.testing.assert_close(gradient[tail].double(), true_gradient[tail], rtol=1e-4, atol=0)


@divergences
def test_no_student_in_the_tail(isa, chosen):
    student, teacher = (x.detach() for x in pair(3, 700))
    values, indices, logsumexp = stored(teacher, 12)
    masked = torch.full_like(student, -INF).scatter(-1, indices, student.gather(-1, indices))
    loss, gradient = loss_and_gradient(masked, (values, indices, logsumexp), reduction="none", **chosen)
    truth, true_gradient = truth_of(masked, (values, indices, logsumexp), reduction="none", **chosen)
    torch.testing.assert_close(loss.double(), truth, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-4, atol=1e-6)
    assert loss.isinf().all() == (chosen in (KINDS[0], {"divergence": "jsd", "beta": 0.0}))
    # Nor any teacher: the members alone.
    empty = values, indices, values.logsumexp(-1) - 1e-6
    loss, gradient = loss_and_gradient(masked, empty, reduction="none", **chosen)
    want, want_gradient = dense_loss_and_gradient(masked.gather(-1, indices), values, reduction="none", **chosen)
    torch.testing.assert_close(loss, want, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(gradient.gather(-1, indices), want_gradient, rtol=1e-4, atol=1e-6)
    assert gradient.scatter(-1, indices, 0.0).eq(0).all()


def test_no_teacher_in_the_tail(isa):
    student, teacher = (x.detach() for x in pair(3, 700))
    values, indices, _ = stored(teacher, 12)
    for less in (0.0, 1e-6):  # by rounding
        entries = values.double(), indices, values.double().logsumexp(-1) - less
        loss, gradient = loss_and_gradient(student.double(), entries, reduction="none")
        want, want_gradient = loss_and_gradient(student.double(), entries, reduction="none", tail="renorm")
        torch.testing.assert_close(loss, want, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradient, want_gradient, rtol=1e-8, atol=1e-12)
        loss, gradient = loss_and_gradient(student.double(), entries, reduction="none", divergence="reverse_kl")
        assert loss.isinf().all() or less == 0.0  # to the student's share there is nothing to compare


def test_transforms_of_both(isa):
    student, teacher = (x.detach() for x in pair(4, 800, scale=9.0))
    seen = 6 * torch.tanh(0.7 * teacher.double() / 6)
    values, indices, _ = stored(teacher, 9)
    entries = values, indices, (seen / 2).logsumexp(-1).float()
    options = {"temperature": 2.0, "teacher_softcap": 6.0, "teacher_logit_scale": 0.7, "reduction": "none"}
    loss, gradient = loss_and_gradient(student, entries, student_softcap=5.0, student_logit_scale=1.3, **options)
    logits = student.double().requires_grad_()
    want = bucket_truth(5 * torch.tanh(1.3 * logits / 5), seen, indices, 2.0, "forward_kl")
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(want.sum(), logits)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tail", ["bucket", "renorm"])
def test_per_row_numbers_and_leading_axes(isa, tail):
    student, teacher = (x.detach().view(2, 3, 300) for x in pair(6, 300))
    tau, alpha = torch.tensor([[0.5, 1.0, 2.0], [4.0, 3.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.3], [0.5, 0.9, 0.1]])
    target = torch.tensor([[0, 5, 299], [7, 8, 9]])
    values, indices, logsumexp = stored(teacher, 10, tau)
    every = {"label_smoothing": 0.1, "reduction": "none", "tail": tail}
    outer = torch.stack([student, student + 1])[0][:, 1:]  # read in place
    losses, gradient = loss_and_gradient(
        outer, (values[:, 1:], indices[:, 1:], logsumexp[:, 1:]), target[:, 1:], temperature=tau[:, 1:],
        alpha=alpha[:, 1:], **every,
    )  # fmt: skip
    for i in range(2):
        for j in range(1, 3):
            one = values[i, j], indices[i, j], logsumexp[i, j]
            options = {"temperature": tau[i, j].item(), "alpha": alpha[i, j].item()}
            want, want_gradient = loss_and_gradient(student[i, j], one, target[i, j], **options, **every)
            torch.testing.assert_close(losses[i, j - 1], want)
            torch.testing.assert_close(gradient[i, j - 1], want_gradient)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reductions_half_precision_and_any_factor(isa, dtype, reduction):
    student, teacher = pair(37, 2501, dtype)
    target = torch.arange(37) * 60
    target[5] = -100
    entries = stored(teacher, 50, 2.0)
    options = {"temperature": 2.0, "alpha": 0.4, "reduction": reduction}
    for factor in (1.0, -2.5):
        loss = topk_distill_loss(student, *entries, target, **options)
        (gradient,) = torch.autograd.grad(loss.sum() * factor, student)
        truth, true_gradient = truth_of(student, entries, target, **options)
        torch.testing.assert_close(loss.detach().double(), truth, rtol=2e-6, atol=1e-6)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double(), factor * true_gradient, rtol=2 * eps + 1e-5, atol=2e-6)


def test_weights_items_and_padding(isa):
    student, teacher = pair(6, 40)
    target, weight = torch.tensor([1, -100, 3, 4, -100, 0]), torch.tensor([1.0, 2.0, 3.0, 0.0, 5.0, 0.5])
    entries = stored(teacher, 8)
    rows = topk_distill_loss(student, *entries, target, alpha=0.5, row_weight=weight, reduction="none")
    assert rows[[1, 3, 4]].eq(0).all()
    mean = topk_distill_loss(student, *entries, target, alpha=0.5, row_weight=weight)
    torch.testing.assert_close(mean, rows.sum() / 4.5)
    items = topk_distill_loss(student, *entries, target, alpha=0.5, row_weight=weight, num_items_in_batch=7)
    torch.testing.assert_close(items, rows.sum() / 7)
    padded = torch.nn.functional.pad(student.detach(), (0, 5), value=NAN)
    loss, gradient = loss_and_gradient(padded, entries, target, alpha=0.5, row_weight=weight, vocab_size=40)
    assert torch.equal(loss, mean.detach())
    assert gradient[:, 40:].eq(0).all()


@pytest.mark.parametrize("tail", ["bucket", "renorm"])
def test_rows_that_do_not_count_are_0_whatever_they_hold(isa, tail):
    student, teacher = pair(4, 300)
    values, indices, logsumexp = stored(teacher, 9)
    student = student.detach()
    student[1], values[1], indices[1], logsumexp[1] = NAN, INF, 7, -INF
    student[2], values[2], indices[2], logsumexp[2] = INF, NAN, -5, 0
    target, weight = torch.tensor([0, -100, 2, 3]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    options = {"row_weight": weight, "alpha": 0.5, "reduction": "none", "tail": tail}
    loss, gradient = loss_and_gradient(student, (values, indices, logsumexp), target, **options)
    assert loss[[1, 2]].eq(0).all() and gradient[[1, 2]].eq(0).all()
    assert loss[[0, 3]].gt(0).all() and gradient[[0, 3]].isfinite().all()
    student, alpha = pair(4, 300)[0], torch.tensor([0.5, 0.0, 0.0, 1.0])  # without weight it is not looked at
    loss, gradient = loss_and_gradient(
        student, (values, indices, logsumexp), torch.arange(4), alpha=alpha, temperature=2.0, reduction="none"
    )
    want, want_gradient = dense_loss_and_gradient(
        student, torch.full_like(teacher, NAN), torch.arange(4), alpha=0.0, reduction="none"
    )
    torch.testing.assert_close(loss[[1, 2]], want[[1, 2]])
    torch.testing.assert_close(gradient[[1, 2]], want_gradient[[1, 2]])


@divergences
def test_infinities_and_nan_stay_in_their_rows(isa, chosen):
    student, teacher = (x.detach() for x in pair(8, 600))
    values, indices, logsumexp = stored(teacher, 9)
    clean, clean_gradient = loss_and_gradient(student, (values, indices, logsumexp), reduction="none", **chosen)
    outside = next(c for c in range(600) if not bool((indices == c).any()))
    student[1, outside], student[2, indices[2, 4]], student[3, outside] = NAN, NAN, INF
    values[4, 0], logsumexp[5], values[6, 1], logsumexp[6] = NAN, NAN, INF, INF
    student[7, outside] = -INF
    loss, gradient = loss_and_gradient(student, (values, indices, logsumexp), reduction="none", **chosen)
    assert loss[1:7].isnan().all()
    assert torch.equal(loss[0], clean[0]) and torch.equal(gradient[0], clean_gradient[0])
    truth, true_gradient = truth_of(student, (values, indices, logsumexp), reduction="none", **chosen)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(gradient[7].double(), true_gradient[7], rtol=1e-4, atol=1e-6)


def test_no_rows_and_one_class(isa):
    for tail in ("bucket", "renorm"):
        none = torch.zeros(2, 0, 5), torch.zeros(2, 0, 3), torch.zeros(2, 0, 3).int(), torch.zeros(2, 0)
        loss, gradient = loss_and_gradient(none[0], none[1:], tail=tail)
        assert loss == 0
        assert gradient.shape == (2, 0, 5)
        one = torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3)
        loss, gradient = loss_and_gradient(torch.randn(3, 1), one, tail=tail)
        assert loss == 0
        assert gradient.eq(0).all()
        single = stored(torch.randn(5), 2)
        assert topk_distill_loss(torch.randn(5), *single, tail=tail).shape == ()


def test_indices_of_any_integers(isa):
    student, teacher = pair(4, 100)
    values, indices, logsumexp = stored(teacher, 9)
    want = topk_distill_loss(student, values, indices, logsumexp)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(topk_distill_loss(student, values, indices.to(dtype), logsumexp), want)


@pytest.mark.parametrize("offset", [0, 1])
def test_a_gradient_past_the_caches(isa, offset):
    """Over 4 MB it is streamed; the members and the target are stored after."""
    student, teacher = (x.detach() for x in pair(23, 50_001 + offset))
    student = student[:, offset:]
    values, indices, logsumexp = stored(teacher[:, offset:], 64, 2.0)
    target = indices[:, 3].clone()
    target[1] = 50_000
    loss, gradient = loss_and_gradient(student, (values, indices, logsumexp), target, alpha=0.5, temperature=2.0)
    truth, true_gradient = truth_of(student, (values, indices, logsumexp), target, alpha=0.5, temperature=2.0)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-4, atol=1e-8)


@divergences
def test_logits_that_grow(isa, chosen):
    ramp = torch.linspace(0, 600, 1800)
    student, teacher = (x.detach() + ramp for x in pair(2, 1800))
    entries = stored(teacher, 400, 3.0)
    options = {"temperature": 3.0, "reduction": "none", **chosen}
    got, gradient = loss_and_gradient(student, entries, **options)
    truth, true_gradient = truth_of(student, entries, **options)
    torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("entries", [3, 60])
def test_blocks_relative_to_different_maxima(isa, entries):
    """Each is above the last by so much that it is read relative to its own; few hold a member."""
    student, teacher = (x.detach() for x in pair(4, 4200, scale=0.5))
    student += 8.0 * (torch.arange(4200) // 1024)
    teacher += 2.0 * (torch.arange(4200) // 1024)
    indices = torch.arange(4199, 4199 - entries, -1).expand(4, entries)
    target = torch.tensor([0, 1200, 4199, 3000])
    for temperature, alpha in ((1.0, 1.0), (1.0, 0.5), (0.8, 0.5)):
        logsumexp = (teacher.double() / temperature).logsumexp(-1).float()
        given_teacher = teacher.gather(-1, indices), indices, logsumexp
        options = {"temperature": temperature, "alpha": alpha, "reduction": "none"}
        got, gradient = loss_and_gradient(student, given_teacher, target, **options)
        truth, true_gradient = truth_of(student, given_teacher, target, **options)
        torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-4, atol=1e-7)


def test_same_bits_for_any_thread_count_and_with_or_without_gradient(isa):
    student, teacher = pair(90, 5003)
    target, entries = torch.arange(90), stored(teacher, 64, 2.0)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(loss_and_gradient(student, entries, target, temperature=2.0, alpha=0.5))
        loss = topk_distill_loss(student.detach(), *entries, target, temperature=2.0, alpha=0.5)
        results.append((loss, results[0][1]))
    torch.set_num_threads(threads)
    assert all(torch.equal(got, want) for result in results[1:] for got, want in zip(result, results[0], strict=True))
