"""Which kernels take topk_mlp on a CUDA device, and what is asked of them: without a GPU."""

import pytest
import tamis
import torch
from tamis.common import backend
from tamis.common.registry import below_autograd
from tamis.sparse_mlp import mlp, mlp_choice, mlp_cuda, reference
from tamis.sparse_mlp.mlp_choice import DECODE, DENSE, GATHER, GAUSSIAN, chosen

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64


def choice(dtype=BF16, tokens=512, k=64, d_ff=8192, selection="exact", *, learns=False, **options):
    return chosen(dtype, tokens, k, d_ff, selection, learns=learns, **options)


def test_few_tokens_decode():
    for tokens in (0, 1, 8):
        for selection in ("exact", "gaussian"):
            got = choice(tokens=tokens, k=8000, selection=selection)
            assert got[:2] == ("cuda", DECODE)
            assert got.reason == "at most 8 tokens, no gradient: active rows of w_down are read"
    assert choice(tokens=9)[:2] == ("triton", GATHER)
    assert choice(tokens=8, learns=True)[:2] == ("triton", GATHER)
    got = choice(tokens=8, k=8000, built=False)
    assert got[:2] == ("reference", DENSE)
    assert got.reason.startswith(
        "no CUDA library for this device: no nvcc was found, or it is before sm_80; "
        "8000 of 8192 neurons, more than 1 in"
    )


@pytest.mark.parametrize(("dtype", "share"), [(F32, 24), (F64, 48), (BF16, 128), (torch.float16, 128)])
def test_a_small_share_is_gathered(dtype, share):
    most = 8192 // share
    got = choice(dtype, k=most)
    assert got == ("triton", GATHER, f"512 tokens; {most} of 8192 neurons, at most 1 in {share}")
    got = choice(dtype, k=most + 1)
    assert got == ("reference", DENSE,
                   f"512 tokens; {most + 1} of 8192 neurons, more than 1 in {share}: torch multiplies all")  # fmt: skip
    assert choice(dtype, tokens=None, k=most).backend == "triton"
    assert choice(dtype, tokens=None, k=most + 1).reason.startswith("any number of tokens; ")


def test_no_more_rows_than_there_are_are_gathered():
    got = choice(tokens=16, k=512, d_ff=8192, learns=True)
    assert got == ("triton", GATHER, "a gradient; 16 x 512 rows are no more than the 8192 of w_down")
    assert choice(tokens=16, k=513, d_ff=8192).kernel == DENSE


def test_gaussian():
    assert choice(selection="gaussian", k=1)[:2] == ("triton", GAUSSIAN)
    reason = "a gradient; what a gaussian selection passes is multiplied dense"
    assert choice(selection="gaussian", tokens=1, learns=True).reason == reason


def test_a_name_decides():
    for options in ({}, {"k": 8192}, {"tokens": 1}, {"learns": True}):
        assert choice(**options, forced="impl=triton") == ("triton", GATHER, "impl=triton")
    assert choice(selection="gaussian", forced="impl=triton") == ("triton", GAUSSIAN, "impl=triton")
    assert choice(tokens=1, forced="TAMIS_BACKEND=cuda") == ("cuda", DECODE, "TAMIS_BACKEND=cuda")
    for options, got in (
        ({"tokens": 9}, "9 tokens"), ({"tokens": 1, "learns": True}, "a gradient"), ({"tokens": None}, "any number of"),
        ({"tokens": 1, "built": False}, "no CUDA library for this device"),
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match="^tamis.topk_mlp: impl: expected at most 8 tokens without a gradient"
        ) as error:
            choice(**options, forced="impl=cuda")
        assert f"got {got}" in str(error.value)


def layer(gated=False, tokens=3, d=6, d_ff=24, out=10):
    shapes = (tokens, d), (d_ff, d), (d_ff,), (d_ff, out), (out,), (d_ff, d), (d_ff,)
    x, *ws = [torch.randn(*s, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(shapes)]
    return x, *ws[:4], ws[4] if gated else None, ws[5] if gated else None


def test_explained(monkeypatch):
    """What a CUDA tensor would be told."""
    monkeypatch.setattr(mlp, "runs", lambda op, device: op == "topk_mlp")
    x, *ws = layer()
    auto, named = backend.Choice("triton", "", "CUDA tensors"), backend.Choice("triton", "", "impl=triton")
    assert mlp._explained(auto, x, *ws[:4], 5)[:2] == ("cuda", DECODE)
    assert mlp._explained(named, x, *ws[:4], 5)[:2] == ("triton", GATHER)
    assert mlp._explained(auto, x, *ws[:4], 5, selection="gaussian")[:2] == ("cuda", DECODE)
    learning = ws[2].clone().requires_grad_()
    assert mlp._explained(auto, x, *ws[:2], learning, ws[3], 5).reason.startswith("a gradient; 3 x 5 rows")
    gate = layer(True)[5].requires_grad_()
    assert mlp._explained(auto, x, *ws[:4], 9, w_gate=gate).kernel == DENSE
    with torch.no_grad():
        assert mlp._explained(auto, x, *ws[:4], 9, w_gate=gate).kernel == DECODE
    assert tamis.explain("topk_mlp", x, *ws[:4], 5).backend == "cpu"


@pytest.fixture
def as_on_cuda(monkeypatch):
    """The routes of a CUDA device on CPU tensors, with what launches there in plain torch; what was launched."""
    launched, ops = [], torch.ops.tamis

    def decode(x, w_up, b_up, w_down, b_down, k, w_gate, b_gate, kind):
        launched.append("decode")
        assert x.dim() == 2
        return reference.topk_mlp(x, w_up, b_up, w_down, b_down, k, w_gate, b_gate, list(reference.ACTIVATIONS)[kind])

    def log(name, op):
        def call(*args):
            launched.append(name)
            return op(*args)

        call.default = call
        return call

    class StandIn:
        _topk_mlp_cuda = staticmethod(decode)
        _topk_mlp_forward = staticmethod(log("gather", ops._topk_mlp_forward.default))
        _project = staticmethod(log("project", ops._project))
        _sparse_linear = staticmethod(log("sparse", ops._sparse_linear))

        def __getattr__(self, name):
            return getattr(ops, name)

    monkeypatch.setattr(mlp, "runs", lambda op, device: True)
    monkeypatch.setattr(torch.ops, "tamis", StandIn())
    return launched


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("tokens", "k", "selection", "want"),
    [
        (3, 5, "exact", ["decode"]),
        (0, 5, "exact", ["gather"]),
        (20, 1, "exact", ["gather"]),
        (20, 5, "exact", []),
        (3, 5, "gaussian", ["project", "project", "sparse"]),
        (20, 5, "gaussian", []),
        (0, 5, "gaussian", []),
    ],
)
def test_what_is_launched(as_on_cuda, tokens, k, selection, want, gated):
    x, *ws = layer(gated, tokens)
    got = below_autograd(mlp._cuda, x, *ws[:4], k, *ws[4:], "silu", selection)
    assert as_on_cuda == (want if gated or "project" not in want else want[1:])
    torch.testing.assert_close(got, reference.topk_mlp(x, *ws[:4], k, *ws[4:], "silu", selection))


def test_leading_axes(as_on_cuda):
    x, *ws = layer()
    got = mlp._cuda(x.reshape(3, 1, 6), *ws[:4], 5, *ws[4:], "relu", "exact")
    assert got.shape == (3, 1, 10)
    assert mlp._cuda(x[0], *ws[:4], 5, *ws[4:], "relu", "exact").shape == (10,)
    assert as_on_cuda == ["decode", "decode"]


def test_raw_ops_refuse_what_would_crash(as_on_cuda):
    x, *ws = layer()
    for k, selection in ((25, "exact"), (0, "gaussian"), (5, "foo")):
        with pytest.raises(ValueError, match="^tamis.topk_mlp: (k|selection): expected"):
            mlp._cuda(x, *ws[:4], k, *ws[4:], "relu", selection)


@pytest.mark.parametrize(("k", "selection"), [(1, "exact"), (5, "exact"), (5, "gaussian")])
def test_what_learns(monkeypatch, k, selection):
    """Gathered, dense and cut: the gradients of all."""
    monkeypatch.setattr(mlp, "runs", lambda op, device: True)
    given = [t.requires_grad_() for t in layer(True, 20)]
    x, *ws = given
    results = []
    for function in (mlp._cuda_learning, reference.topk_mlp):
        y = function(x, *ws[:4], k, *ws[4:], "silu", selection)
        results.append((y, *torch.autograd.grad(y.square().sum(), given)))
    torch.testing.assert_close(*results, atol=2e-4, rtol=1e-3)


def test_fewest_are_told_once():
    assert mlp.FEW_TOKENS == mlp_choice.FEW_TOKENS == 8
    assert list(mlp_cuda.KINDS) == list(reference.ACTIVATIONS)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_all_kernels_agree(tokens, gated):
    given = [t if t is None else t.cuda() for t in layer(gated, tokens, 2048, 8192, 2048)]
    x, *ws = given
    results = {
        impl: tamis.sparse_mlp.topk_mlp(x, *ws[:4], 246, w_gate=ws[4], b_gate=ws[5], activation="silu", impl=impl)
        for impl in ("cuda", "triton", "reference")
        if impl != "cuda" or backend.built("topk_mlp")
    }
    for y in results.values():
        torch.testing.assert_close(y, results["triton"], rtol=1e-3, atol=1e-2)
