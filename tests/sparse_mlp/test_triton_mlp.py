"""topk_mlp's Triton kernels in the interpreter: against float64 with the selection that was made, and the CPU's."""

import pytest
import tamis
import torch
from interpreter import close, inner, logits, patched_once, small  # noqa: F401
from tamis.kernels.sparse_mlp import launch
from tamis.sparse_mlp import mlp_cuda, reference, topk_mlp
from tamis.sparse_mlp.reference import ACTIVATIONS

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2, torch.float16: 4e-3}
NAN = float("nan")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(launch, "BLOCK", 32)
    monkeypatch.setattr(launch, "ENTRIES", 4)
    monkeypatch.setattr(launch, "COLUMNS", 8)


def layer(d, d_ff, out, *, gated=False, biased=True, dtype=torch.float32, seed=1):
    """w_up, b_up, w_down, b_down, w_gate, b_gate"""
    shapes = [(d_ff, d), (d_ff,), (d_ff, out), (out,), (d_ff, d), (d_ff,)]
    made = [logits(*shape, scale=shape[-1] ** -0.5, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes)]
    made = [t if biased or t.dim() > 1 else None for t in made]
    return made[:4] + (made[4:] if gated else [None, None])


def forward(x, ws, k, act, saves=True):
    return mlp_cuda.forward(x, *ws[:4], k, *ws[4:], act, saves)


def hidden_of(x, ws, act):
    linear = torch.nn.functional.linear
    up = linear(x, ws[0], ws[1])
    return ACTIVATIONS[act](up) if ws[4] is None else ACTIVATIONS[act](linear(x, ws[4], ws[5])) * up


def check(x, ws, k, act, wanted=None):
    """Forward and backward; what is not of a gate is not wanted of one."""
    tolerance, d_ff = TOLERANCE[x.dtype], len(ws[0])
    y, count, index, hidden, *at = forward(x, ws, k, act)
    plain = forward(x, ws, k, act, False)
    assert torch.equal(y, plain[0]) or y.isnan().any()
    assert len(plain) == 4
    assert y.dtype == x.dtype and index.dtype == count.dtype == torch.int32 and (count == k).all()
    mask = torch.zeros(len(index), d_ff + 1, dtype=torch.bool).scatter(1, index.long(), True)[:, :d_ff]
    wide = [None if t is None else t.double().requires_grad_() for t in (x, *ws)]
    dense = hidden_of(wide[0], wide[1:], act)
    rank = dense.detach() if ws[4] is None else dense.detach().abs()
    if k < d_ff:  # a right selection, but for what gives nothing
        kth, slack = rank.topk(k).values[:, -1:], tolerance * rank.abs().max()
        assert ((rank >= kth - slack) | ~mask).all()
        assert ((rank <= kth + slack) | mask | (rank.abs() <= slack)).all()
    want = torch.where(mask, dense, 0) @ wide[3]
    want = want if ws[3] is None else want + wide[4]
    close(y, want, 0, 3 * tolerance * float(want.detach().abs().max()))
    grad = logits(*y.shape, seed=99, dtype=x.dtype)
    there = [True, True, ws[1] is not None, True, ws[4] is not None, ws[5] is not None]
    wanted = [a and b for a, b in zip(wanted or [True] * 6, there, strict=True)]
    gate_at = at[1] if ws[4] is not None else None
    got = mlp_cuda.backward(grad, x, ws[0], ws[2], ws[4], count, index, hidden, at[0], gate_at, act, wanted)
    leaves = [wide[i] for i, want in zip((0, 1, 2, 3, 5, 6), wanted, strict=True) if want]
    truth = torch.autograd.grad(want, leaves, grad.double()) if leaves else ()
    for one, other in zip(got, truth, strict=True):
        assert one.dtype == x.dtype and one.shape == other.shape
        close(one, other, 0, 5 * tolerance * float(other.abs().max()) + 1e-30)
    return y, got


@inner
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_activations(act, gated):
    check(logits(5, 6), layer(6, 21, 11, gated=gated), 5, act)


@inner
@pytest.mark.parametrize(
    ("d", "d_ff", "out", "k"), [(8, 16, 8, 4), (9, 17, 16, 1), (1, 1, 1, 1), (17, 33, 7, 33), (7, 40, 25, 9)]
)
@pytest.mark.parametrize("biased", [False, True])
def test_tails(d, d_ff, out, k, biased):
    check(logits(3, d), layer(d, d_ff, out, biased=biased, gated=biased), k, "silu")


@inner
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_dtypes(dtype, gated):
    for act in ("gelu", "relu"):
        check(logits(4, 9, dtype=dtype), layer(9, 20, 11, gated=gated, dtype=dtype), 6, act)


@inner
@pytest.mark.parametrize("seed", range(12))
def test_what_is_wanted(seed):
    wanted = [bool(bit) for bit in torch.randint(2, (6,), generator=torch.Generator().manual_seed(seed))]
    check(logits(3, 6), layer(6, 13, 9, gated=True), 4, "gelu_tanh", wanted)


@inner
def test_as_on_the_cpu():
    """The same entries and, but for rounding, the same numbers: of the lowest indices where numbers repeat."""
    ops = torch.ops.tamis
    for gated in (False, True):
        ws, x = layer(6, 24, 10, gated=gated), logits(12, 6)
        for i in (0, 4):
            if ws[i] is not None:
                ws[i][12:] = ws[i][:12]  # each neuron twice
        ws[1] = ws[1] * 0
        ws[5] = None if ws[5] is None else ws[5] * 0
        ours = forward(x, ws, 9, "gelu")
        cpu = ops._topk_mlp_forward(x, *ws[:4], 9, *ws[4:], "gelu", True)
        for one, other in zip(ours, cpu, strict=True):
            close(one, other, 1e-5, 1e-6)
        grad, wanted = logits(12, 10, seed=5), [True] * 4 + [gated] * 2
        back = [
            f(grad, x, ws[0], ws[2], ws[4], *made[1:5], *(made[5:] or [None]), "gelu", wanted)
            for f, made in ((mlp_cuda.backward, ours), (ops._topk_mlp_backward, cpu))
        ]
        for one, other in zip(*back, strict=True):
            close(one, other, 1e-5, 1e-5)


@inner
@pytest.mark.parametrize("gated", [False, True])
def test_fewer_fire_than_may(gated):
    """Rows of neurons that give nothing are not read, and get a gradient of exactly 0."""
    x, ws = logits(6, 6), layer(6, 24, 10, gated=gated)
    ws[5 if gated else 1] -= 3.0
    fired = (hidden_of(x, ws, "relu") != 0).any(0)
    assert fired.any() and not fired.all()
    finite = ws[2].clone()
    ws[2][~fired] = NAN
    ws[2] = torch.cat([ws[2], torch.full((1, 10), NAN)])[:24]  # nor what lies behind the last
    y, count, index, hidden, *at = forward(x, ws, 20, "relu")
    assert (index == 24).any()
    assert torch.equal(y, forward(x, [*ws[:2], finite, *ws[3:]], 20, "relu")[0])
    gate_at = at[1] if gated else None
    wanted = [True] * 4 + [gated] * 2
    made = mlp_cuda.backward(y, x, ws[0], ws[2], ws[4], count, index, hidden, at[0], gate_at, "relu", wanted)
    assert all(g.isfinite().all() for g in made)
    assert not any(g[~fired].any() for g in made[1:])


@inner
def test_what_is_selected_learns_from_0_too():
    x = logits(4, 6)
    for act, zero, learns in (("silu", 0, 1), ("relu", 0, 1), ("silu", 4, 3), ("gelu", 0, 1)):
        ws = layer(6, 24, 10, gated=act != "gelu", biased=False)
        ws[zero] = ws[zero] * 0
        _, made = check(x, ws, 8, act)
        assert made[learns].any()
    for act in ("relu", "squared_relu"):  # whose slope at 0 is 0: nothing is read
        ws[2] = ws[2] * NAN
        y, count, index, hidden, *at = forward(x, ws, 8, act)
        made = mlp_cuda.backward(
            y, x, ws[0], ws[2], None, count, index, hidden, *at, None, act, [True] * 4 + [False] * 2
        )
        assert (index == 24).all()
        assert not any(t.any() for t in (y, *made))


@inner
def test_nan_stays_in_its_token():
    for gated in (False, True):
        x, ws = logits(3, 6), layer(6, 24, 10, gated=gated)
        want = forward(x, ws, 5, "relu")[0]
        x[1, 2] = NAN
        y, count, index, hidden, *at = forward(x, ws, 5, "relu")
        assert y[1].isnan().all()
        assert torch.equal(y[[0, 2]], want[[0, 2]])
        back = count, index, hidden, *(at if gated else [*at, None]), "relu", [True] + [False] * 5
        (d_x,) = mlp_cuda.backward(y, x, ws[0], ws[2], ws[4], *back)
        assert d_x[1].isnan().any()
        assert d_x[[0, 2]].isfinite().all()


@inner
def test_shapes_strides_and_empty_batches():
    ws = layer(6, 24, 10, gated=True)
    x = logits(2, 3, 6)
    want = reference.topk_mlp(x, *ws[:4], 5, *ws[4:], "silu")
    padded = [torch.nn.functional.pad(t, (3, 4), value=NAN)[:, 3:-4] if t.dim() == 2 else t for t in ws]
    for given, weights in ((x, ws), (x, padded), (x.transpose(0, 1).contiguous().transpose(0, 1), ws)):
        close(forward(given, weights, 5, "silu")[0], want, 1e-5, 1e-5)
    check(x[0], padded, 5, "silu")
    one = torch.zeros(2, 24)[:, :1].expand(2, 12).reshape(24)  # a bias that repeats one number
    check(x[0], [ws[0], one, ws[2], torch.zeros(20)[::2], *ws[4:]], 5, "silu")
    y, count, index, hidden, *at = forward(torch.empty(0, 6), ws, 5, "relu")
    made = mlp_cuda.backward(y, torch.empty(0, 6), ws[0], ws[2], ws[4], count, index, hidden, *at, "relu", [True] * 6)
    assert y.shape == (0, 10) and made[0].shape == (0, 6) and not any(g.any() for g in made[1:])
    nothing = forward(x[0], [*ws[:2], torch.empty(24, 0), None, *ws[4:]], 5, "relu")
    assert nothing[0].shape == (3, 0)


@inner
@pytest.mark.parametrize("gated", [False, True])
def test_the_public_function(gated):
    x, ws = logits(2, 3, 6), layer(6, 24, 10, gated=gated)
    given = [x, *(t for t in ws if t is not None)]
    for t in given:
        t.requires_grad_()
    assert tamis.explain("topk_mlp", x, *ws[:4], 5, impl="triton").kernel == "topk_mlp_gather_kernel"
    results = []
    for impl in ("triton", "reference"):
        y = topk_mlp(x, *ws[:4], 5, w_gate=ws[4], b_gate=ws[5], activation="gelu", impl=impl)
        results.append((y, *torch.autograd.grad(y.square().sum(), given, create_graph=impl == "triton")))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    for gradient in results[0][1 : 1 + 4]:  # in b_down the result is linear
        for of in given:
            if of is given[4]:
                continue
            with pytest.raises(NotImplementedError, match="topk_mlp: its second derivative"):
                torch.autograd.grad(gradient.square().sum(), of, retain_graph=True)
    with torch.no_grad():
        assert torch.equal(topk_mlp(*given[:5], 5, w_gate=ws[4], b_gate=ws[5], activation="gelu", impl="triton"),
                           results[0][0])  # fmt: skip


@inner
def test_the_same_bits_again():
    x, ws = logits(5, 6), layer(6, 24, 10, gated=True)
    (y, made), (again, other) = (check(x, ws, 7, "gelu") for _ in range(2))
    assert torch.equal(y, again) and all(torch.equal(a, b) for a, b in zip(made, other, strict=True))
