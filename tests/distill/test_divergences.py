import pytest
import torch
from helpers import DIVERGENCES, INF, loss_and_gradient, named, pair
from tamis.distill import distill_loss

pytestmark = pytest.mark.parametrize("chosen", DIVERGENCES, ids=named)


def test_masked_and_identical(isa, chosen):
    student, _ = pair(3, 700)
    student = student.detach()
    student[0, 100:600], student[1, :] = -INF, 0.0
    loss, gradient = loss_and_gradient(student, student.clone(), temperature=2.0, **chosen)
    assert loss.abs() < 1e-7
    assert gradient.abs().max() < 1e-8


@pytest.mark.parametrize("target", [None, torch.arange(37) * 60])
def test_float32_and_half(isa, chosen, target):
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        student, teacher = pair(37, 2501, dtype)
        options = {"temperature": 2.0, "alpha": 1.0 if target is None else 0.5, "reduction": "sum", **chosen}
        loss, gradient = loss_and_gradient(student, teacher, target, **options)
        wide = student.detach().double(), teacher.double()
        truth, true_gradient = loss_and_gradient(*wide, target, impl="reference", **options)
        torch.testing.assert_close(loss.double(), truth, rtol=2e-6, atol=0)
        torch.testing.assert_close(gradient.double(), true_gradient, rtol=tolerance, atol=2e-7)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_gradient_past_the_caches(isa, chosen, dtype, tolerance):
    """Over 4 MB it is streamed, in whole vectors of memory wherever its rows start."""
    student, teacher = pair(1 + (4 << 20) // (50_001 * dtype.itemsize), 50_001, dtype)
    options = {"temperature": 2.0, "reduction": "sum", **chosen}
    loss, gradient = loss_and_gradient(student, teacher, **options)
    truth, true_gradient = loss_and_gradient(student.double(), teacher.double(), impl="reference", **options)
    torch.testing.assert_close(loss.double(), truth, rtol=2e-6, atol=0)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=tolerance, atol=2e-7)


def test_logits_that_grow(isa, chosen):
    ramp = torch.linspace(0, 3000, 1800)
    student, teacher = (x.detach() + ramp for x in pair(2, 1800))
    got, gradient = loss_and_gradient(student, teacher, temperature=3.0, reduction="none", **chosen)
    wide = student.double(), teacher.double()
    truth, true_gradient = loss_and_gradient(*wide, temperature=3.0, reduction="none", impl="reference", **chosen)
    torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-3, atol=1e-5)


def test_class_of_one_model_alone(isa, chosen):
    kind = {("jsd", 0.0): "forward_kl", ("jsd", 1.0): "reverse_kl"}.get(tuple(chosen.values()), chosen["divergence"])
    s, t = pair(2, 600)
    s, t = s.detach(), t.clone()
    s[0, 77], t[1, 78] = -INF, -INF
    loss = distill_loss(s, t, reduction="none", **chosen)
    assert loss.isinf().tolist() == [kind in ("forward_kl", "logit_mse"), kind in ("reverse_kl", "logit_mse")]


@pytest.mark.parametrize("target", [None, 0])
@pytest.mark.parametrize("classes", [1025, 1030, 2049])
@pytest.mark.parametrize("ends", [(100.0, None), (None, 110.0), (100.0, 110.0)])
def test_a_short_last_block_far_above_the_others(isa, chosen, target, classes, ends):
    """Its few classes are not read as whole vectors are; their sums are relative to the maximum before them."""
    s, t = (torch.randn(2, classes, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for x, end in zip((s, t), ends, strict=True):
        if end is not None:
            x[0, -1] = end
    labels = None if target is None else torch.full((2,), target)
    options = {"temperature": 0.5, "alpha": 1.0 if target is None else 0.5, "reduction": "none", **chosen}
    got = loss_and_gradient(s, t, labels, **options)
    truth = loss_and_gradient(s.double(), t.double(), labels, impl="reference", **options)
    for ours, true in zip(got, truth, strict=True):
        torch.testing.assert_close(ours.double(), true, rtol=1e-4, atol=2e-5 * float(true.abs().max()) + 2e-5)
