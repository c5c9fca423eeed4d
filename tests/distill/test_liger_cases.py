"""The shapes, options and tolerances of Liger-Kernel's own tests of KL, JSD, TVD and fused linear JSD on our functions,
with formulas written anew. Of large vocabularies there are fewer rows: a row knows nothing of the others.

Where Liger defines another thing, and why ours differs:
- no factor T^2: ours over T^2 is theirs.
- "batchmean" is our "mean" (over rows); its "mean" divides by the classes too; its "none" is a number a class, and
  their sum a row's loss.
- TVD there takes any numbers for probabilities, so its own test feeds it normal deviates; ours takes logits.
- JSD and TVD losses of half precision come in half precision there; ours are float32.
"""

import pytest
import torch
from tamis.distill import distill_loss, linear_distill_loss

SHAPES = [(8, 32000), (3, 128256), (101, 1271), (32, 1024)]
DTYPES = [(torch.bfloat16, 1e-8, 5e-2), (torch.float32, 1e-8, 1e-6), (torch.float16, 1e-3, 1e-3)]
cases = pytest.mark.parametrize(("rows", "classes"), SHAPES)
dtypes = pytest.mark.parametrize(("dtype", "atol", "rtol"), DTYPES)


def kl(log_p, log_q):
    """KL(p || q), [rows]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def jsd(log_q, log_p, beta):
    """beta KL(p || m) + (1 - beta) KL(q || m), [rows]; Liger's limits at 0 and 1."""
    if beta in (0, 1):
        return kl(log_p, log_q) if beta == 0 else kl(log_q, log_p)
    log_m = torch.log(beta * log_p.exp() + (1 - beta) * log_q.exp())
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def logits(rows, classes, dtype):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(rows, classes, generator=generator).to(dtype) for _ in range(2))
    return student.requires_grad_(), teacher


def compare(ours, truth, student, atol, rtol, factor=1.0):
    """`factor` makes the loss no last layer."""
    torch.testing.assert_close(ours.double(), truth, atol=atol, rtol=min(rtol, 1e-5))
    got, want = (torch.autograd.grad(loss * factor, student)[0].double() for loss in (ours, truth))
    # a gradient is the difference of two probabilities: it rounds as they do
    torch.testing.assert_close(got, want, atol=max(atol, 4e-7 * want.abs().max().item()), rtol=rtol)


def log_softmax(x):
    return torch.log_softmax(x.double(), -1)


@cases
@dtypes
def test_kl_div(rows, classes, dtype, atol, rtol):
    student, teacher = logits(rows, classes, dtype)
    truth = kl(log_softmax(teacher), log_softmax(student)).mean()
    compare(distill_loss(student, teacher), truth, student, atol, rtol)


@cases
@dtypes
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_jsd(rows, classes, dtype, atol, rtol, beta, factor):
    student, teacher = logits(rows, classes, dtype)
    ours = distill_loss(student, teacher, divergence="jsd", beta=beta)
    truth = jsd(log_softmax(student), log_softmax(teacher), beta).mean()
    compare(ours, truth, student, atol, rtol, factor)
    if beta == 0.5:
        swapped = distill_loss(teacher, student.detach(), divergence="jsd", beta=beta)
        torch.testing.assert_close(swapped, ours.detach(), atol=0, rtol=1e-5)


@cases
@dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [None, -100, 0, 1])
def test_tvd(rows, classes, dtype, atol, rtol, reduction, ignore_index):
    student, teacher = logits(rows, classes, dtype)
    label, kept, options = None, torch.ones(rows, dtype=torch.bool), {}
    if ignore_index is not None:
        label = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(1))
        label[: rows // 3] = ignore_index
        kept, options = label != ignore_index, {"ignore_index": ignore_index}
    distance = (log_softmax(student).exp() - log_softmax(teacher).exp()).abs().sum(-1) / 2
    truth = torch.where(kept, distance, 0)
    truth = truth.sum() / kept.sum() if reduction == "mean" else truth.sum() if reduction == "sum" else truth
    ours = distill_loss(student, teacher, label, divergence="total_variation", reduction=reduction, **options)
    torch.testing.assert_close(ours.double(), truth, atol=1e-8, rtol=1e-5)
    if dtype == torch.float32:  # in half precision the models tie, where a slope jumps
        got, want = (torch.autograd.grad(loss.sum(), student)[0].double() for loss in (ours, truth))
        wrong = (got - want).abs() > atol + rtol * want.abs() + 4e-7 * want.abs().max()
        assert wrong.double().mean() < 1e-4


LINEAR = [(64, 1024, 4096), (423, 166, 1423), (4, 8, 8), (63, 82, 41)]


@pytest.mark.parametrize(("rows", "size", "classes"), LINEAR)
@pytest.mark.parametrize(("dtype", "atol", "rtol"), [(torch.bfloat16, 5e-3, 5e-2), (torch.float32, 1e-5, 5e-4)])
@pytest.mark.parametrize(
    ("temperature", "beta", "ignore_index"),
    [(1.0, 0.5, None), (2.0, 0.1, None), (1.0, 0.0, 2), (1.0, 1.0, 2), (2.0, 0.1, 42), (1.0, 0.5, "all")],
)
def test_fused_linear_jsd(rows, size, classes, dtype, atol, rtol, temperature, beta, ignore_index):
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, size // 2), (classes, size // 2), (rows, size), (classes, size)
    hidden, weight, other, other_weight = (torch.rand(*s, generator=generator).to(dtype) for s in shapes)
    hidden.requires_grad_(), weight.requires_grad_()
    label = None
    if ignore_index is not None:
        label = torch.randint(classes, (rows,), generator=generator)
        label[: rows if ignore_index == "all" else rows // 3] = -100 if ignore_index == "all" else ignore_index
    index = ignore_index if isinstance(ignore_index, int) else -100
    options = {"temperature": temperature, "divergence": "jsd", "beta": beta, "ignore_index": index}
    if label is not None:
        label = torch.where(label == index, index, label % classes)
    ours = linear_distill_loss(hidden, weight, other, other_weight, label, **options) / temperature**2
    ours.backward()
    got = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    logits = (x @ w.T for x, w in ((hidden, weight), (other, other_weight)))  # rounded, as theirs are
    s, t = (torch.log_softmax(x.double() / temperature, -1) for x in logits)
    kept = torch.ones(rows, dtype=torch.bool) if label is None else label != index
    truth = torch.where(kept, jsd(s, t, beta), 0).sum() / kept.sum().clamp(min=1)
    truth.backward()
    torch.testing.assert_close(ours.detach().double(), truth.detach(), atol=atol, rtol=rtol)
    for x, y in zip(got, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(x.double(), y.double(), atol=atol, rtol=rtol)
    if ignore_index == "all":
        assert ours == 0 and all(x.eq(0).all() for x in got)
