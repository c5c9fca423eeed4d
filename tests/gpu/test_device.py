"""Every public op on a GPU: on a stream of its own, under graph capture, with assertions."""

import os
import subprocess
import sys

import pytest
import torch
from gpu.calls import evaluate, every_example, given
from tamis.distill import distill_loss
from tamis.sampling import softmax_stats
from tamis.sparse_mlp import cuda, reference
from torch.utils._pytree import tree_leaves

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)


@pytest.fixture(autouse=True)
def poisoned_outputs():
    """As everywhere, but what torch itself cannot do deterministically on a GPU is no error."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@every_example
def test_opcheck(name, example):
    torch.use_deterministic_algorithms(False)
    arguments = given(name, example, "cuda")
    torch.library.opcheck(getattr(torch.ops.tamis, name).default, (), arguments)


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
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


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


@every_example
def test_assertions_hold_and_change_nothing(name, example, monkeypatch):
    want = evaluate(name, given(name, example, "cuda"))
    monkeypatch.setenv("TAMIS_DEBUG", "1")
    for x, y in zip(evaluate(name, given(name, example, "cuda")), want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    torch.cuda.synchronize()


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


def test_kernels_compiled_here():
    """By NVRTC, on a stream of their own, for this device: the same results as torch's."""
    pytest.importorskip("cupy")
    from tamis.common import nvrtc

    x = torch.randn(5, 4001, device="cuda")
    times, one = torch.linspace(1, 2, 5, device="cuda"), torch.ones(1, device="cuda")
    out, values = torch.empty_like(x), x.new_empty(5, 9)
    indices = values.long()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        scale = nvrtc.kernel("distill", "cuda.cuh", "tamis::cuda::scale_rows_kernel<float>")
        scale((4, 5), 256, x, times, one, out, 5, 4001, 1)
        topk = nvrtc.kernel("sparse_mlp", "cuda.cuh", "tamis::cuda::topk_row_kernel<tamis::cuda::Float32>")
        topk((5,), 512, x, 4001, 4001, 9, values, indices)
    stream.synchronize()
    assert torch.equal(out, x * times.unsqueeze(-1))
    assert torch.equal(values.sort(descending=True).values, x.topk(9).values)
    assert torch.equal(x.gather(-1, indices), values)


def test_rows_that_lie_further_apart_than_31_bits_reach():
    """Offsets of elements, and of bytes, in 64 bits."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("expected 24 GiB free")
    far = torch.empty(5, 2**30, dtype=torch.float16, device="cuda")[:, :1000]
    near = torch.randn(5, 1000, dtype=torch.float16, device="cuda")
    far.copy_(near)
    results = [
        tree_leaves(
            [
                cuda.topk(x, 9),
                softmax_stats(x),
                distill_loss(x[1:], x[:-1]),
                distill_loss(x[1:], x[:-1], divergence="jsd"),
            ]
        )
        for x in (far, near)
    ]
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


def test_nan_of_either_sign_comes_first():
    """Also where torch sorts what was chosen, and in plain torch."""
    x = torch.randn(2, 5000, device="cuda")
    x[:, 7], x[:, 11] = -torch.nan, torch.nan
    for k in (2, 3000):
        for values, indices in (cuda.topk(x, k), reference.topk(x, k)):
            assert indices[:, :2].tolist() == [[7, 11]] * 2
            assert values[:, :2].isnan().all()


@pytest.mark.parametrize("dtype", cuda.FORMATS)
def test_topk_compiled_here(monkeypatch, dtype):
    """As where tamis was built without nvcc."""
    pytest.importorskip("cupy")
    monkeypatch.setattr(cuda, "runs", lambda op, device: False)
    x = torch.randn(3, 2, 70_001, device="cuda").to(dtype)[..., 1:]
    for k in (1, 300, 3000):
        for got, want in zip(cuda.topk(x, k), reference.topk(x, k), strict=True):
            assert torch.equal(got, want)
