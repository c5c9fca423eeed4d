"""topk_mlp against the same in float64 with the selection that was made, which must be a right one."""

import hypothesis.strategies as st
import pytest
import tamis
import torch
from helpers import NAN
from hypothesis import given, settings
from tamis.sparse_mlp import reference, topk_mlp
from tamis.sparse_mlp.mlp import DENSE_TOKENS, dense_share
from tamis.sparse_mlp.reference import ACTIVATIONS

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2, torch.float16: 4e-3}
ACTS = sorted(ACTIVATIONS)


def made(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def weights(seed, d, d_ff, out, *, gated=False, biased=True, dtype=torch.float32):
    shapes = [(d_ff, d), (d_ff,), (d_ff, out), (out,), (d_ff, d), (d_ff,)]
    tensors = [made(seed + i, *shape, scale=shape[-1] ** -0.5).to(dtype) for i, shape in enumerate(shapes)]
    tensors = [t if biased or t.dim() > 1 else None for t in tensors]
    return tensors[:4] + (tensors[4:] if gated else [None, None])


def hidden_of(x, ws, act):
    w_up, b_up, _, _, w_gate, b_gate = ws
    up = torch.nn.functional.linear(x, w_up, b_up)
    return (
        ACTIVATIONS[act](up) if w_gate is None else ACTIVATIONS[act](torch.nn.functional.linear(x, w_gate, b_gate)) * up
    )


def chosen_by(x, ws, k, act):
    """bool [tokens, d_ff]."""
    *_, w_gate, b_gate = ws
    _, count, index, *_ = torch.ops.tamis._topk_mlp_forward(x, *ws[:4], k, w_gate, b_gate, act, False)
    mask = torch.zeros(len(count), ws[0].shape[0], dtype=torch.bool)
    for t, n in enumerate(count.tolist()):
        assert torch.equal(index[t, :n], index[t, :n].sort().values)
        mask[t, index[t, :n].long()] = True
    return mask


def check(x, ws, k, act, tolerance):
    mask = chosen_by(x, ws, k, act)
    wide = [None if t is None else t.double().clone().requires_grad_() for t in (x, *ws)]
    hidden = hidden_of(wide[0], wide[1:], act)
    rank = hidden.detach() if ws[4] is None else hidden.detach().abs()
    kth, slack = rank.topk(k).values[:, -1:], tolerance * rank.abs().max()
    assert ((rank >= kth - slack) | ~mask).all() and ((rank <= kth + slack) | mask | (rank.abs() <= slack)).all()
    want = torch.where(mask, hidden, 0) @ wide[3]
    want = want if ws[3] is None else want + wide[4]
    leaves = [None if t is None else t.clone().requires_grad_() for t in (x, *ws)]
    got = topk_mlp(*leaves[:5], k, w_gate=leaves[5], b_gate=leaves[6], activation=act)
    assert got.dtype == x.dtype
    grad = made(99, *got.shape).to(x.dtype)
    got.backward(grad)
    want.backward(grad.double())
    for one, other in [(got, want)] + [(a.grad, b.grad) for a, b in zip(leaves, wide, strict=True) if a is not None]:
        assert one.dtype == x.dtype
        error = (one.detach().double() - other.detach()).abs().max()
        assert error <= 3 * tolerance * other.detach().abs().max() + 1e-30


@settings(max_examples=60)
@given(
    st.sampled_from([1, 2, 3, 5, 7, 8, 9, 30, 70]), st.integers(1, 40), st.integers(1, 90), st.integers(1, 40),
    st.sampled_from(ACTS), st.booleans(), st.booleans(), st.sampled_from(list(TOLERANCE)), st.integers(0, 2**31),
    st.data(),
)  # fmt: skip
def test_forward_and_backward(isa, tokens, d, d_ff, out, act, gated, biased, dtype, seed, data):
    most = d_ff if tokens < DENSE_TOKENS else int(dense_share(dtype) * d_ff)  # more is dense
    k = data.draw(st.integers(1, max(1, most)))
    ws = weights(seed, d, d_ff, out, gated=gated, biased=biased, dtype=dtype)
    check(made(seed - 1 if seed else 9, tokens, d).to(dtype), ws, k, act, TOLERANCE[dtype])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_larger_than_a_block(isa, act, gated):
    """Rows by tiles, the dense matrix by blocks."""
    d, d_ff, out = 600, 700, 520
    for tokens in (1, 200):
        check(made(1, tokens, d), weights(2, d, d_ff, out, gated=gated), 41, act, 1e-5)


@pytest.mark.parametrize("selection", ["exact", "gaussian"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("k", [1, 10, 30, 64])
@pytest.mark.parametrize("tokens", [3, 20, 70])
def test_against_the_reference(isa, tokens, k, gated, selection):
    x, ws = made(0, tokens, 24), weights(1, 24, 64, 16, gated=gated)
    leaves = [t if t is None else t.requires_grad_() for t in (x, *ws)]
    outs, grads = [], []
    for impl in ("auto", "reference"):
        y = topk_mlp(
            *leaves[:5], k, w_gate=leaves[5], b_gate=leaves[6], activation="silu", selection=selection, impl=impl
        )
        grads.append(torch.autograd.grad(y.square().sum(), [t for t in leaves if t is not None]))
        with torch.no_grad():
            again = topk_mlp(*leaves[:5], k, w_gate=leaves[5], b_gate=leaves[6], activation="silu", selection=selection,
                             impl=impl)  # fmt: skip
        torch.testing.assert_close(again, y, atol=1e-5, rtol=1e-4)
        outs.append(y)
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-4)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tokens", [2, 20])
def test_gaussian_in_every_dtype(isa, dtype, tokens):
    x, ws = made(0, tokens, 24).to(dtype), weights(1, 24, 64, 16, gated=True, dtype=dtype)
    y = topk_mlp(x, *ws[:4], 8, w_gate=ws[4], b_gate=ws[5], activation="gelu_tanh", selection="gaussian")
    want = reference.topk_mlp(x.double(), *[t.double() for t in ws[:4]], 8, ws[4].double(), ws[5].double(), "gelu_tanh",
                              "gaussian")  # fmt: skip
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), want, atol=TOLERANCE[dtype] * 10, rtol=TOLERANCE[dtype] * 10)


@pytest.mark.parametrize("tokens", [3, 20])
@pytest.mark.parametrize("selection", ["exact", "gaussian"])
def test_nan_stays_in_its_token(isa, tokens, selection):
    x, ws = made(0, tokens, 24), weights(1, 24, 64, 16)
    x[1, 5] = NAN
    y = topk_mlp(x, *ws[:4], 8, selection=selection)
    assert y[1].isnan().all() and not y[0].isnan().any() and not y[2:].isnan().any()


def test_fewer_fire_than_may(isa):
    """Zeros fill up, and are neither touched nor given a gradient."""
    x, ws = made(0, 20, 24), weights(1, 24, 64, 16)
    ws[1] = ws[1] - 2.5
    w_down = ws[2].clone()
    fired = (hidden_of(x, ws, "relu") > 0).any(0)
    assert not fired.all()
    w_down[~fired] = NAN
    leaf = ws[0].clone().requires_grad_()
    y = topk_mlp(x, leaf, ws[1], w_down, ws[3], 19)
    assert y.isfinite().all()
    y.sum().backward()
    assert leaf.grad[~fired].abs().max() == 0


@pytest.mark.parametrize("selection", ["exact", "gaussian"])
@pytest.mark.parametrize("k", [8, 19])
@pytest.mark.parametrize("tokens", [4, 20])
def test_what_is_selected_learns_from_0_too(isa, tokens, k, selection):
    """A gated layer whose w_up begins at 0, and gelu at 0."""
    ws, x = weights(1, 24, 64, 16, gated=True, biased=False), made(0, tokens, 24)
    for act, w_up, gate in (("silu", ws[0] * 0, ws[4]), ("relu", ws[0] * 0, ws[4]), ("gelu", ws[0] * 0, None)):
        grads = []
        for impl in ("auto", "reference"):
            leaf = w_up.clone().requires_grad_()
            y = topk_mlp(x, leaf, None, ws[2], None, k, w_gate=gate, activation=act, selection=selection, impl=impl)
            y.sum().backward()
            grads.append(leaf.grad)
        torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)
        assert grads[0].any() or (gate is None and selection == "gaussian")


@pytest.mark.parametrize("tokens", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_neuron_has_the_same_bits_wherever_a_thread_begins(isa, dtype, tokens):
    x, w = made(0, tokens, 200).to(dtype), made(1, 23, 200).to(dtype)
    whole = torch.ops.tamis._project(x, w, None)
    for begin in range(1, 5):
        assert torch.equal(torch.ops.tamis._project(x, w[begin:], None), whole[:, begin:])


@pytest.mark.parametrize("tokens", [1, 8, 9, 300])
def test_same_bits_for_any_number_of_threads(tokens):
    """Where torch's own product has: of whole numbers, whose sums are exact in any order."""
    x, ws = made(0, tokens, 100), weights(1, 100, 700, 1100, gated=True)
    x = x.mul(4).round()
    ws = [w.mul(4).round() / 16 if i in (0, 1, 4, 5) else w for i, w in enumerate(ws)]
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [t.clone().requires_grad_() for t in (x, *ws)]
        y = topk_mlp(*leaves[:5], 33, w_gate=leaves[5], b_gate=leaves[6], activation="gelu")
        results.append((y, *torch.autograd.grad(y.sum(), leaves)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_shapes_and_empty_batches(isa):
    ws = weights(1, 24, 64, 16)
    x = made(0, 2, 3, 5, 24)
    y = topk_mlp(x, *ws[:4], 8)
    assert y.shape == (2, 3, 5, 16)
    torch.testing.assert_close(topk_mlp(x.transpose(0, 2), *ws[:4], 8), y.transpose(0, 2))
    torch.testing.assert_close(topk_mlp(x[0, 0, 0], *ws[:4], 8), y[0, 0, 0], atol=1e-5, rtol=1e-5)
    leaf = torch.empty(0, 24, requires_grad=True)
    w_up = ws[0].clone().requires_grad_()
    y = topk_mlp(leaf, w_up, *ws[1:4], 8)
    assert y.shape == (0, 16)
    y.sum().backward()
    assert leaf.grad.shape == (0, 24) and not w_up.grad.any()


def test_weights_with_gaps_between_rows(isa):
    """A part of a larger matrix, as a sharded layer has it."""
    ws, x = weights(1, 24, 64, 16, gated=True), made(0, 12, 24)
    wide = [torch.nn.functional.pad(ws[i], (3, 4))[:, 3:-4] if ws[i].dim() == 2 else ws[i] for i in range(6)]
    want = topk_mlp(x, *ws[:4], 8, w_gate=ws[4], b_gate=ws[5])
    assert torch.equal(topk_mlp(x, *wide[:4], 8, w_gate=wide[4], b_gate=wide[5]), want)
    torch.testing.assert_close(
        topk_mlp(x[:2], *wide[:4], 8, w_gate=wide[4], b_gate=wide[5]), want[:2], atol=1e-5, rtol=1e-5
    )


def test_under_compile_and_export():
    ws = weights(1, 24, 64, 16)
    x = made(0, 12, 24).requires_grad_()
    for k, selection in ((8, "exact"), (8, "gaussian"), (60, "exact")):

        def run(x, k=k, selection=selection):
            return topk_mlp(x * 2, *ws[:4], k, selection=selection).square().sum()

        for some in (x, x[:3]):
            compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(some), run(some), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(
                *(torch.autograd.grad(f(some), x)[0] for f in (compiled, run)), atol=1e-4, rtol=1e-4
            )

    class Module(torch.nn.Module):
        def forward(self, x):
            return topk_mlp(x, *ws[:4], 8)

    exported = torch.export.export(Module(), (x.detach(),), dynamic_shapes={"x": {0: torch.export.Dim("rows", min=2)}})
    for n in (3, 40):
        torch.testing.assert_close(exported.module()(made(1, n, 24)), Module()(made(1, n, 24)))


@pytest.mark.parametrize("tokens", [3, 20])
@pytest.mark.parametrize("selection", ["exact", "gaussian"])
def test_autocast_casts_as_a_linear_layer(tokens, selection):
    x, ws = made(0, tokens, 24), weights(1, 24, 64, 16)
    leaves = [t.clone().requires_grad_() for t in (x, *ws[:4])]
    with torch.autocast("cpu", torch.bfloat16):
        y = topk_mlp(*leaves, 8, selection=selection)
    half = [t.bfloat16() for t in (x, *ws[:4])]
    assert torch.equal(y, topk_mlp(*half, 8, selection=selection)) or selection == "gaussian"  # few tokens stay float32
    torch.testing.assert_close(y, topk_mlp(*half, 8, selection=selection), atol=0.05, rtol=0.05)
    y.float().sum().backward()
    assert {leaf.grad.dtype for leaf in leaves} == {torch.float32}


def test_explained():
    ws = weights(1, 24, 64, 16)

    def kernel(tokens, k, selection="exact", dtype=torch.float32):
        given = [t.to(dtype) for t in (made(0, tokens, 24), *ws[:4])]
        return tamis.explain("topk_mlp", *given, k, selection=selection).kernel.split()[0]

    assert [kernel(8, 64), kernel(9, 64), kernel(63, 64)] == ["vectors", "tiles", "tiles"]
    assert [kernel(64, k) for k in (19, 20)] == ["tiles", "dense"]
    assert [kernel(n, 20, "gaussian") for n in (8, 9, 63, 64)] == ["nonzeros", "nonzeros", "nonzeros", "dense"]
    assert kernel(64, 64, dtype=torch.float16) == "tiles"
    most = 16 if tamis.common.backend.isa() == "v4x" else 32
    assert [kernel(64, k, dtype=torch.bfloat16) for k in (most, most + 1)] == ["tiles", "dense"]
    with torch.autocast("cpu", torch.bfloat16):
        assert [kernel(64, k) for k in (most, most + 1)] == ["tiles", "dense"]


def test_float16_sums_are_wide_for_any_number_of_tokens():
    x, w = torch.full((64, 16), 25.0).half(), torch.ones(64, 16).half()
    y = topk_mlp(x, w, None, torch.full((64, 4), 1e-6).half(), None, 64, activation="squared_relu")
    assert (y - 400**2 * 64e-6).abs().max() < 0.2  # 400**2 is no float16


@pytest.mark.parametrize("out", [4900, 8192])
def test_wide_results_of_few_tokens_by_several_threads(out):
    """Columns are shared by threads: narrower ones have more rows in a tile."""
    given = [t.double() for t in (made(0, 8, 16), made(1, 64, 16), made(2, 64, out))]
    x, w_up, w_down = given
    want = topk_mlp(x, w_up, None, w_down, None, 8, impl="reference")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.testing.assert_close(topk_mlp(x, w_up, None, w_down, None, 8), want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("selection", ["exact", "gaussian"])
def test_second_derivative_is_refused(selection):
    given = [made(0, 12, 24), *weights(1, 24, 64, 16)[:4]]
    for tensor in given[:4]:  # in b_down the result is linear
        tensor.requires_grad_()
        y = topk_mlp(*given, 8, selection=selection)
        (gradient,) = torch.autograd.grad(y.square().sum(), tensor, create_graph=True)
        with pytest.raises(NotImplementedError, match=r"tamis\.(topk_mlp|gaussian_topk): its second derivative"):
            gradient.square().sum().backward()
        tensor.requires_grad_(False)


def test_biases_with_gaps():
    ws, x = weights(1, 24, 64, 16), made(0, 20, 24)
    b_up, b_down = torch.zeros(1).expand(64), torch.zeros(32)[::2]
    for n in (4, 20):
        want = topk_mlp(x[:n], ws[0], None, ws[2], None, 8)
        assert torch.equal(topk_mlp(x[:n], ws[0], b_up, ws[2], b_down, 8), want)
        assert torch.equal(topk_mlp(x[:n], ws[0], b_up, ws[2], b_down, 8, selection="gaussian"),
                           topk_mlp(x[:n], ws[0], None, ws[2], None, 8, selection="gaussian"))  # fmt: skip


def test_raw_ops_refuse_what_would_crash():
    ops, (w_up, _, w_down, *_), x, g = torch.ops.tamis, weights(1, 24, 64, 16), made(0, 12, 24), torch.ones(12, 16)
    _, count, index, hidden, up = ops._topk_mlp_forward(x, w_up, None, w_down, None, 8, None, None, "relu", True)
    saved, every = (count, index, hidden, up, None, "relu"), [True] * 4 + [False] * 2
    with pytest.raises(RuntimeError, match="grad: expected x's dtype"):
        ops._topk_mlp_backward(g.double(), x, w_up, w_down.double(), None, *saved, every)
    with pytest.raises(RuntimeError, match="w_down: expected a CPU tensor of x's dtype"):
        ops._topk_mlp_backward(g, x, w_up, w_down.double(), None, *saved, every)
    for wanted in ([False] * 4 + [True, False], [False] * 5 + [True], [True]):
        with pytest.raises(RuntimeError, match="wanted: expected"):
            ops._topk_mlp_backward(g, x, w_up, w_down, None, *saved, wanted)
    with pytest.raises(RuntimeError, match="expected x and grad"):
        ops._topk_mlp_backward(g, x, w_up, w_down, None, count, index.reshape(-1), hidden, up, None, "relu", every)
    assert ops.topk_mlp(x, w_up, None, torch.randn(64, 0), None, 4).shape == (12, 0)
    assert ops._sparse_linear(x, x, torch.randn(24, 0), None).shape == (12, 0)
    assert ops._sparse_linear_backward(torch.randn(12, 0), x, x, torch.randn(24, 0), [True, True])[0].shape == x.shape
    with pytest.raises(RuntimeError, match="x: expected 1 to 8 tokens"):
        ops._project(x, w_up, None)
    for k, selection in ((99, "exact"), (-1, "gaussian"), (8, "foo")):
        with pytest.raises(ValueError, match="^tamis.topk_mlp: (k|selection): expected"):
            ops.topk_mlp(x, w_up, None, w_down, None, k, None, None, "gelu", selection)
    with pytest.raises(ValueError, match="^tamis.gaussian_topk: k: expected 1 to 24"):
        ops.gaussian_topk(x, 99)


def test_indices_from_outside_are_checked():
    x, ws = made(0, 12, 24), weights(1, 24, 64, 16)
    _, count, index, hidden, up = torch.ops.tamis._topk_mlp_forward(x, *ws[:4], 8, None, None, "relu", True)
    back = torch.ops.tamis._topk_mlp_backward
    for name, wrong in (("index", 64), ("index", -1), ("count", 9), ("count", -1)):
        bad = {"count": count.clone(), "index": index.clone()}
        bad[name].view(-1)[0] = wrong
        with pytest.raises(RuntimeError, match=f"tamis.topk_mlp: {name}: expected 0 to"):
            back(
                torch.ones(12, 16),
                x,
                ws[0],
                ws[2],
                None,
                bad["count"],
                bad["index"],
                hidden,
                up,
                None,
                "relu",
                [True] * 4 + [False] * 2,
            )


W = weights(1, 24, 64, 16, gated=True)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"k": 0}, ValueError, "k: expected 1 to 64, the neurons, got 0"),
        ({"k": 65}, ValueError, "k: expected 1 to 64, the neurons, got 65"),
        ({"k": 1.0}, TypeError, "k: expected an integer, got float"),
        ({"x": torch.ones(2, 24, dtype=torch.int64)}, TypeError, "x: expected float32, .*, got torch.int64"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x: expected \[\*, d\], got a number"),
        ({"x": torch.ones(2, 23)}, ValueError, r"w_up: expected shape \[64, 23\], got \[64, 24\]"),
        ({"w_up": W[0].double()}, TypeError, "w_up: expected x's torch.float32, got torch.float64"),
        ({"w_up": W[0][0]}, ValueError, r"w_up: expected \[d_ff, d\]"),
        ({"w_up": None}, TypeError, "w_up: expected a Tensor, got NoneType"),
        ({"w_down": W[2].T.contiguous().T}, ValueError, "w_down: expected rows side by side"),
        ({"w_down": W[2][:60]}, ValueError, r"w_up: expected shape \[60, 24\]"),
        ({"b_up": W[1][:3]}, ValueError, r"b_up: expected shape \[64\], got \[3\]"),
        ({"b_down": W[1]}, ValueError, r"b_down: expected shape \[16\], got \[64\]"),
        ({"b_gate": W[1]}, ValueError, "b_gate: expected None without w_gate, got a Tensor"),
        ({"w_gate": W[0][:, :3]}, ValueError, r"w_gate: expected shape \[64, 24\]"),
        ({"activation": "tanh"}, ValueError, "activation: expected gelu|activation: expected relu"),
        ({"selection": "best"}, ValueError, "selection: expected exact or gaussian or searched, got 'best'"),
        ({"selection": "searched"}, NotImplementedError, "selection: searched is not built yet"),
        ({"impl": "cuda"}, ValueError, "impl: expected an op with a CUDA"),
    ],
)
def test_bad_input_is_named(changed, error, words):
    given = {"x": torch.ones(2, 24), "w_up": W[0], "b_up": W[1], "w_down": W[2], "b_down": W[3], "k": 8} | changed
    with pytest.raises(error, match=f"^tamis.topk_mlp: ({words})"):
        topk_mlp(*[given.pop(name) for name in ("x", "w_up", "b_up", "w_down", "b_down", "k")], **given)
