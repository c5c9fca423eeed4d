"""tamis.explain where arguments are wrong."""

import pytest
import tamis
import torch


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "missing a required argument: 'student_weight'"), ({"nothing": 1}, "")],
)
def test_wrong_arguments_are_named(options, words):
    with pytest.raises(TypeError, match=f"^tamis.explain: linear_distill_loss: {words}"):
        tamis.explain("linear_distill_loss", torch.ones(2, 3), **options)
