"""TopKMLP: its weights, and that it is topk_mlp of them."""

import copy
import pickle

import pytest
import torch
from tamis.sparse_mlp import TopKMLP, topk_mlp
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {
    "relu": F.relu,
    "squared_relu": lambda x: F.relu(x) ** 2,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}
ARGUMENTS = {"d": 6, "d_ff": 20, "k": 5}

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def made(**more):
    torch.manual_seed(0)
    return TopKMLP(**ARGUMENTS | more)


@pytest.mark.parametrize("selection", ["exact", "gaussian"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_is_the_function(selection, activation, gated, bias):
    mlp, x = made(gated=gated, bias=bias, activation=activation, selection=selection, d_out=4), random(2, 3, 6)
    want = topk_mlp(
        x, mlp.w_up, mlp.b_up, mlp.w_down, mlp.b_down, 5,
        w_gate=mlp.w_gate, b_gate=mlp.b_gate, activation=activation, selection=selection,
    )  # fmt: skip
    assert torch.equal(mlp(x), want) and want.shape == (2, 3, 4)
    hidden = mlp.hidden(x)
    torch.testing.assert_close(F.linear(hidden, mlp.w_down.mT, mlp.b_down), want)
    assert selection != "exact" or (hidden != 0).sum(-1).max() <= 5


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_with_every_neuron_is_the_dense_one(activation, gated):
    mlp, x, act = made(gated=gated, activation=activation, k=20), random(7, 6), ACTIVATIONS[activation]
    up = F.linear(x, mlp.w_up, mlp.b_up)
    hidden = act(F.linear(x, mlp.w_gate, mlp.b_gate)) * up if gated else act(up)
    torch.testing.assert_close(mlp(x), F.linear(hidden, mlp.w_down.mT, mlp.b_down))


def test_parameters():
    shapes = {name: tuple(p.shape) for name, p in made(gated=True, d_out=3).named_parameters()}
    assert shapes == {
        "w_up": (20, 6), "b_up": (20,), "w_down": (20, 3), "b_down": (3,), "w_gate": (20, 6), "b_gate": (20,)
    }  # fmt: skip
    assert [*made(bias=False).state_dict()] == ["w_up", "w_down"]
    assert made(gated=True, bias=False).b_gate is None


def test_is_initialised_as_linear():
    """Uniform in 1 / sqrt(inputs), weights and biases."""
    mlp = TopKMLP(64, 400, 5, gated=True)
    for name, inputs in {"up": 64, "gate": 64, "down": 400}.items():
        linear = nn.Linear(inputs, 464 - inputs)
        for kind, like in (("w", linear.weight), ("b", linear.bias)):
            got = mlp.get_parameter(f"{kind}_{name}")
            bound = 1 / inputs**0.5
            assert got.abs().max() <= bound and like.abs().max() <= bound
            assert got.abs().max() > (0.999 if kind == "w" else 0.9) * bound
            if kind == "w":
                torch.testing.assert_close(got.std(), like.std(), rtol=0.03, atol=0)


def test_state_round_trips():
    mlp, other, x = made(gated=True), TopKMLP(6, 20, 5, gated=True), random(3, 6)
    other.load_state_dict(mlp.state_dict())
    for each in (other, copy.deepcopy(mlp), pickle.loads(pickle.dumps(mlp))):
        assert torch.equal(each(x), mlp(x))


def test_says_what_it_is():
    assert made(d_out=3).extra_repr() == (
        "6, 20, 5, d_out=3, gated=False, bias=True, activation='relu', selection='exact'"
    )
    assert made(gated=True, bias=False, activation="silu", selection="gaussian").extra_repr() == (
        "6, 20, 5, gated=True, bias=False, activation='silu', selection='gaussian'"
    )


def test_k_may_change():
    mlp, x = made(k=20), random(3, 6)
    mlp.k = 2
    assert (mlp.hidden(x) != 0).sum(-1).max() <= 2
    assert torch.equal(mlp(x), made(k=2)(x))


def test_dtype_and_device():
    assert {p.dtype for p in made(dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert made(dtype=torch.float64)(random(2, 6, dtype=torch.float64)).dtype == torch.float64
    meta = made(device="meta")
    assert meta(torch.empty(2, 6, device="meta")).shape == (2, 6)
    meta.to_empty(device="cpu").reset_parameters()
    assert meta(random(2, 6)).isfinite().all()
    assert made()(random(0, 6)).shape == (0, 6)


@pytest.mark.parametrize("gated", [False, True])
def test_every_parameter_learns(gated):
    mlp = made(gated=gated)
    mlp(random(30, 6)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in mlp.parameters())
    few = made(gated=gated, k=1)
    few(random(1, 6)).sum().backward()
    assert (few.w_up.grad.abs().sum(1) > 0).sum() <= 1  # what was not selected learns nothing


def test_under_autocast():
    mlp, x = made(gated=True), random(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = mlp(x)
        assert mlp.hidden(x).dtype == torch.bfloat16
        assert mlp(x.bfloat16()).dtype == torch.bfloat16  # as a linear layer takes what a linear layer gives
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, copy.deepcopy(mlp).bfloat16()(x.bfloat16()))


def test_compiles_whole():
    mlp, x = made(gated=True), random(3, 6)
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), mlp(x))


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("d", 0, ValueError),
        ("d", 2.0, TypeError),
        ("d_ff", 0, ValueError),
        ("d_out", 0, ValueError),
        ("k", 0, ValueError),
        ("k", 21, ValueError),
        ("k", 0.5, TypeError),
        ("k", True, TypeError),
        ("gated", 1, TypeError),
        ("bias", None, TypeError),
        ("activation", "tanh", ValueError),
        ("selection", "all", ValueError),
    ],
)
def test_refuses(name, value, error):
    with pytest.raises(error, match=rf"^tamis\.TopKMLP: {name}: expected .+, got "):
        made(**{name: value})


def test_refuses_to_search():
    with pytest.raises(NotImplementedError, match="tamis.TopKMLP: selection: searched is not built yet"):
        made(selection="searched")
