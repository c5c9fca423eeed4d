"""A sparse model that somebody changes: what it would compute silently wrong is refused."""

import pytest
import torch
from tamis.sparse_mlp import restore, sparsify
from torch import nn

from .models import make, output

SEQUENTIAL = {0: nn.Linear(4, 12), 1: nn.GELU(), 2: nn.Dropout(), 3: nn.Linear(12, 4)}
GATED = {"act_fn": nn.GELU(), "gate_proj": nn.Sequential(), "down_proj": nn.Linear(24, 16, bias=False)}


def mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 4))
    sparsify(model, 2)
    return model


def llama():
    model, inputs = make("llama")
    sparsify(model, 6)
    return model.model.layers[0].mlp, lambda: output(model, inputs)


def changed(name, new):
    return rf"^tamis\.sparsify: {name}: expected the .* that sparsify found \(restore .*\), got {type(new).__name__}$"


def hooked(name, hooks):
    return rf"^tamis\.sparsify: {name}: expected no hook on what is not computed .*, got {hooks}$"


@pytest.mark.parametrize("at", SEQUENTIAL)
def test_a_part_put_in(at):
    model, new = mlp(), SEQUENTIAL[at]
    model[at] = new
    with pytest.raises(TypeError, match=changed(at, new)):
        model(torch.zeros(3, 4))


@pytest.mark.parametrize("name", GATED)
def test_a_part_put_in_a_gated_one(name):
    block, run = llama()
    setattr(block, name, GATED[name])
    with pytest.raises(TypeError, match=changed(name, GATED[name])):
        run()


def test_an_adapter():
    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return self.base(x)

    model = mlp()
    model[0] = Adapter(model[0])
    with pytest.raises(TypeError, match=changed(0, model[0])):
        model(torch.zeros(3, 4))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_hook_that_would_see_another_value(at):
    model, x = mlp(), torch.zeros(3, 4)
    before = model[at].register_forward_pre_hook(lambda module, args: None)
    if at == 0:
        model(x)  # its input is the block's, as ever
    else:
        with pytest.raises(ValueError, match=hooked(at, "forward_pre_hooks")):
            model(x)
    before.remove()
    after = model[at].register_forward_hook(lambda module, args, out: None)
    with pytest.raises(ValueError, match=hooked(at, "forward_hooks")):
        model(x)
    after.remove()
    model(x)


@pytest.mark.parametrize("name", ["up_proj", "gate_proj", "act_fn"])
def test_a_hook_that_would_not_be_called(name):
    block, run = llama()
    getattr(block, name).register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(ValueError, match=hooked(name, "forward_pre_hooks")):
        run()


def test_a_parametrization_is_not_dropped():
    model, x = mlp().eval(), torch.randn(3, 4)
    want = model(x)
    nn.utils.parametrizations.weight_norm(model[3])
    with pytest.raises(TypeError, match=r"^tamis\.restore: model: expected 3 of the class .*, got Parametrized"):
        restore(model)
    torch.testing.assert_close(model(x), want)
    nn.utils.parametrize.remove_parametrizations(model[3], "weight")
    restore(model)
    assert type(model[3]) is nn.Linear


def test_memory_stays_shared():
    model = nn.Sequential(nn.Linear(4, 12), nn.GELU(), nn.Linear(12, 4))
    model.share_memory()
    for change in (lambda: sparsify(model, 2), lambda: restore(model)):
        change()
        assert all(p.is_shared() for p in model.parameters())
