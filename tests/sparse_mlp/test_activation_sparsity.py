"""activation_sparsity: 100 * nonzero / count, of MLPs dense and sparse, and of activations alone."""

import subprocess
import sys

import pytest
import torch
from sparse_mlp.models import D_FF, MODELS, make
from tamis.sparse_mlp import TopKMLP, activation_sparsity, sparsify
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp(act=None, dropout=0.5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 10), act or nn.ReLU(), nn.Dropout(dropout), nn.Linear(10, 4))


def share(*values):
    """Of numbers that are not 0, in percent."""
    return 100 * sum(int((v != 0).sum()) for v in values) / sum(v.numel() for v in values)


def test_counts_over_all_batches():
    model, batches = mlp(), [random(3, 4), random(2, 5, 4, seed=1)]
    assert activation_sparsity(model, batches) == {"": share(*(model[1](model[0](x)) for x in batches))}


def test_counts_exact_zeros():
    """What is tiny is not 0; -0 is."""
    model = nn.Sequential(nn.ReLU())
    x = torch.tensor([[0.0, -0.0, 1e-45, -1.0, float("inf"), float("nan"), 2.0, 3.0]])
    assert activation_sparsity(model, [x]) == {"0": 100 * 5 / 8}


def test_a_model_compiled_before():
    model, x = mlp().eval(), random(3, 4)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)
    assert [*activation_sparsity(compiled, [x]).values()] == [*activation_sparsity(model, [x]).values()]


def test_the_compiler_is_not_loaded_for_it():
    code = """
import sys, torch, tamis
from tamis.sparse_mlp import activation_sparsity
activation_sparsity(torch.nn.Sequential(torch.nn.ReLU()), [torch.ones(2)])
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_that_counts_is_said():
    with pytest.raises(ValueError, match=r"loader: expected batches that reach .+, got 1 of none"):
        activation_sparsity(mlp(), [random(3, 4)], mask=lambda name, batch: torch.zeros(3))


@pytest.mark.parametrize("batch", [lambda x: x, lambda x: (x, "labels"), lambda x: [x], lambda x: {"input": x}])
def test_batches(batch):
    model, x = mlp(), random(3, 4)
    assert activation_sparsity(model, iter([batch(x)])) == {"": share(model[1](model[0](x)))}


def test_leaves_the_model_as_it_was():
    model = nn.Sequential(mlp(), nn.BatchNorm1d(4)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    activation_sparsity(model, [random(3, 4)])
    assert [m.training for m in model.modules()] == [True] * 6 + [False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_leaves_the_model_as_it_was_after_a_failure():
    model = mlp().train()
    with pytest.raises(RuntimeError):
        activation_sparsity(model, [random(3, 5)])
    assert model.training and model[2].training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("selection", ["exact", "gaussian"])
def test_of_a_sparse_model(selection):
    model, x = mlp(nn.GELU()), random(50, 4)
    sparsify(model, 3, selection=selection)
    got = activation_sparsity(model, [x])[""]
    assert got == share(model[3].hidden(x))
    assert got == 30.0 if selection == "exact" else 20 < got < 40


def test_of_a_module_made_sparse():
    model = nn.Sequential(TopKMLP(4, 10, 2, activation="gelu"), TopKMLP(4, 10, 3, activation="gelu", gated=True))
    assert activation_sparsity(model, [random(5, 4)]) == {"0": 20.0, "1": 30.0}


def test_of_activations_alone():
    """Not those of an MLP that is counted; a Softmax is none."""
    model = nn.Sequential(nn.Conv1d(4, 6, 1), nn.ReLU(), nn.ReLU6(), nn.Flatten(), mlp(), nn.Softmax(-1))
    model[4][0] = nn.Linear(18, 10)
    x = random(2, 4, 3)
    want = share(model[1](model[0](x)))
    got = activation_sparsity(model, [x])
    assert list(got) == ["1", "2", "4"] and got["1"] == got["2"] == want


def test_of_an_mlp_with_another_activation():
    """sparsify leaves it; its hidden values can be counted."""
    assert activation_sparsity(mlp(nn.Hardtanh(0, 1)), [random(9, 4)])[""] < 100


def test_an_activation_used_twice():
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), act, nn.LayerNorm(4), act)
    x = random(3, 4)
    first = act(model[0](x))
    assert activation_sparsity(model, [x]) == {"1": share(first, act(model[2](first)))}


def test_what_is_not_called_is_not_there():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = mlp(), mlp()

        def forward(self, x):
            return self.used(x)

    assert list(activation_sparsity(Half(), [random(3, 4)])) == ["used"]


@pytest.mark.parametrize("name", ["t5", "bert", "vit", "gpt2", "opt", "llama", "gemma3n", "sequential"])
def test_of_models(name):
    """Dense: the down projections' inputs; sparse: k of d_ff, or fewer where relu gives fewer."""
    model, inputs = make(name)
    seen = {}
    for path, module in model.named_modules():
        if getattr(module, "in_features", getattr(module, "nx", 0)) == D_FF:
            module.register_forward_pre_hook(lambda module, args, path=path: seen.update({path: share(args[0])}))
    got = activation_sparsity(model, [inputs])
    model, _ = make(name)
    mlps = [each.name for each in sparsify(model, 4).replaced]
    assert sorted(got[mlp] for mlp in mlps) == pytest.approx(sorted(seen.values()))
    sparse = activation_sparsity(model, [inputs])
    assert list(sparse) == list(got)  # with a pooler's activation, say
    assert all(sparse[mlp] <= 10 if MODELS[name][2] == "relu" else sparse[mlp] == 10 for mlp in mlps)


def test_mask_by_key():
    model, inputs = make("opt")
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    got = activation_sparsity(model, [inputs | {"attention_mask": mask}], mask="attention_mask")
    hidden = []
    model.model.decoder.layers[0].fc2.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    model(**inputs, attention_mask=mask)
    assert got["model.decoder.layers.0"] == share(hidden[0].reshape(-1, D_FF)[mask.flatten() == 1])


def test_mask_is_for_tokens():
    """What a pooler activates is none of them."""
    model, inputs = make("bert")
    batch = inputs | {"attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}
    assert activation_sparsity(model, [batch], mask="attention_mask")["pooler.activation"] == 100


def test_mask_by_function():
    model, inputs = make("t5")
    short = inputs["decoder_input_ids"][:, :3]
    batch = inputs | {"decoder_input_ids": short}
    asked = []

    def mask(name, given):
        assert given is batch
        asked.append(name)
        return given["input_ids"] > 30 if name.startswith("encoder") else None

    got = activation_sparsity(model, [batch], mask=mask)
    assert list(got) == asked
    everything = activation_sparsity(model, [batch])
    assert got[asked[1]] == everything[asked[1]] and got[asked[0]] != everything[asked[0]]


@pytest.mark.parametrize(
    "name, arguments, error",
    [
        ("model", (nn.Linear(4, 4), []), ValueError),
        ("model", ("model", []), TypeError),
        ("loader", (nn.ReLU(), []), ValueError),
        ("loader", (nn.ReLU(), ["text"]), TypeError),
        ("loader", (nn.ReLU(), [()]), TypeError),
        ("loader", (nn.ReLU(), None), TypeError),
        ("loader", (nn.ReLU(), {"input": torch.ones(2)}), TypeError),
    ],
)
def test_refuses(name, arguments, error):
    with pytest.raises(error, match=rf"^tamis\.activation_sparsity: {name}: expected .+, got "):
        activation_sparsity(*arguments)


@pytest.mark.parametrize(
    "mask, error",
    [
        (3, TypeError),
        ("absent", ValueError),
        (lambda name, batch: torch.ones(4), ValueError),
        (lambda name, batch: [1, 1, 1], TypeError),
    ],
)
def test_refuses_a_mask(mask, error):
    with pytest.raises(error, match=r"^tamis\.activation_sparsity: mask: expected .+, got "):
        activation_sparsity(mlp(), [{"input": random(3, 4)}], mask=mask)
