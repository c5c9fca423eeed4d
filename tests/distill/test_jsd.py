import pytest
import torch
from helpers import loss_and_gradient, pair


def test_probabilities_below_normal_numbers(isa):
    """Their mixture may be 0."""
    student, teacher = (x.detach() for x in pair(64, 2000, torch.float64, scale=10.0))
    options = {"divergence": "jsd", "temperature": 0.05, "reduction": "none"}
    got = loss_and_gradient(student, teacher, **options)
    torch.testing.assert_close(got, loss_and_gradient(student, teacher, impl="reference", **options))


@pytest.mark.parametrize("beta", [1e-3, 0.5, 0.99, 0.9999, 0.999999])
def test_digits_of_beta(isa, beta):
    student, teacher = (x.detach() for x in pair(8, 3000))
    options = {"divergence": "jsd", "beta": beta}
    got, gradient = loss_and_gradient(student, teacher, **options)
    truth, true_gradient = loss_and_gradient(student.double(), teacher.double(), impl="reference", **options)
    torch.testing.assert_close(got.double(), truth, rtol=1e-6 + 2e-9 / (1 - beta), atol=0)
    assert (gradient - true_gradient).abs().max() < (5e-6 + 2e-7 / beta) * true_gradient.abs().max()
