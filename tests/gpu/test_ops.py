"""Every public op on the CPU and, where there is one, on a GPU: each implementation against float64."""

import pytest
import torch
from gpu.calls import EXAMPLES, LEGS, check, evaluate, every_example, given, truth
from tamis import explain

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
# On the CPU, where tests/ has more of each, enough to show that what is asked of a GPU is right to ask.
RUNS = [
    pytest.param(device, impl, *leg, id=f"{device}-{impl}-{str(leg[0])[6:]}-{leg[1]}")
    for device, impls, legs in (("cpu", ["cpu"], LEGS[1:3]), ("cuda", ["triton", "cuda", "reference"], LEGS))
    for impl in impls
    for leg in legs
    if device in DEVICES
]


@pytest.fixture(autouse=True)
def poisoned_outputs():
    """As everywhere, but what torch itself cannot do deterministically on a GPU is no error."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def served(name, arguments, impl):
    try:
        explain(name, **arguments, impl=impl)
    except ValueError as error:
        if "CUDA C++ kernel" not in str(error):
            raise
        pytest.skip("no CUDA C++ kernel for it")


@every_example
@pytest.mark.parametrize(("device", "impl", "dtype", "numbers"), RUNS)
def test_values_and_gradients(device, impl, dtype, numbers, name, example):
    arguments = given(name, example, device, dtype, numbers)
    served(name, arguments, impl)
    got = evaluate(name, arguments, impl)
    assert {x.device.type for x in got} == {device}
    check(name, got, truth(name, arguments), dtype)


def test_a_wrong_result_is_seen():
    _, name, example = EXAMPLES[0]
    arguments = given(name, example)
    want = truth(name, arguments)
    for i, x in enumerate(want):
        wrong = [y.clone() for y in want]
        wrong[i] = x + 1e-3 * (1 + x.abs().max()) if x.is_floating_point() else ~x
        with pytest.raises(AssertionError):
            check(name, wrong, want, torch.float32)
