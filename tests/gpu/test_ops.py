"""Every public op on the CPU and, where there is one, on a GPU: each implementation against float64, under graph
capture, on a stream of its own and with assertions."""

import os
import subprocess
import sys

import pytest
import torch
from gpu.calls import EXAMPLES, LEGS, check, evaluate, given, truth
from tamis import explain

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# On the CPU, where tests/ has more of each, enough to show that what is asked of a GPU is right to ask.
RUNS = [
    pytest.param(device, impl, *leg, id=f"{device}-{impl}-{str(leg[0])[6:]}-{leg[1]}", marks=[GPU] * (device == "cuda"))
    for device, impls, legs in (("cpu", ["cpu"], LEGS[1:3]), ("cuda", ["triton", "cuda", "reference"], LEGS))
    for impl in impls
    for leg in legs
]
every_example = pytest.mark.parametrize(("name", "example"), [pytest.param(*row[1:], id=row[0]) for row in EXAMPLES])


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
        if "expected an op with a CUDA C++ kernel" not in str(error):
            raise
        pytest.skip("no CUDA C++ kernel")


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


@GPU
@every_example
def test_opcheck(name, example):
    torch.use_deterministic_algorithms(False)
    arguments = given(name, example, "cuda")
    torch.library.opcheck(getattr(torch.ops.tamis, name).default, (), arguments)


@GPU
@every_example
def test_another_stream(name, example):
    """What is launched elsewhere reads the inputs before they are there."""
    arguments, fresh = given(name, example, "cuda"), given(name, example, "cuda")
    want = evaluate(name, given(name, example, "cuda"))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    floats = [k for k, x in arguments.items() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    with torch.no_grad():
        for key in floats:
            arguments[key].fill_(float("nan"))
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        with torch.no_grad():
            for key in floats:
                arguments[key].copy_(fresh[key])
        got = evaluate(name, arguments)
    stream.synchronize()
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


@GPU
@every_example
@pytest.mark.parametrize("numbers", ["host", "device"])
def test_graph_capture(name, example, numbers):
    arguments = given(name, example, "cuda", numbers=numbers)
    if arguments.get("method") == "poisson":
        pytest.skip("how many are drawn must be known to the host")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            evaluate(name, arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = evaluate(name, arguments)
    first = next(iter(arguments.values()))
    with torch.no_grad():
        first.copy_(first.flip(0) * 0.75)
    graph.replay()
    other = {k: x.detach().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x for k, x in arguments.items()}
    for x, y in zip(got, evaluate(name, other), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@GPU
@every_example
def test_assertions_hold_and_change_nothing(name, example, monkeypatch):
    want = evaluate(name, given(name, example, "cuda"))
    monkeypatch.setenv("TAMIS_DEBUG", "1")
    for x, y in zip(evaluate(name, given(name, example, "cuda")), want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    torch.cuda.synchronize()


@GPU
@pytest.mark.parametrize("debug", ["0", "1"])
def test_a_target_out_of_range(debug, tmp_path):
    """NaN of that row alone; an assertion under TAMIS_DEBUG=1, which ends the process's CUDA."""
    program = (
        "import torch\n"
        "from tamis.distill import distill_loss\n"
        "x = torch.randn(3, 70, device='cuda')\n"
        "target = torch.tensor([0, 70, 2], device='cuda')\n"
        "loss = distill_loss(x, x.flip(0), target, alpha=0.5, reduction='none')\n"
        "print(loss.isnan().tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TAMIS_DEBUG": debug}, capture_output=True, text=True
    )
    if debug == "1":
        assert done.returncode
        assert "assert" in done.stderr
    else:
        assert done.stdout.split("\n")[0] == "[False, True, False]", done.stderr
