"""sparsify on transformers' own classes: what they compute, dense and sparse, and that they stay those models."""

import copy
import pickle

import pytest
import torch
import transformers
from sparse_mlp.models import D_FF, MODELS, make, output
from tamis.sparse_mlp import restore, sparsify
from tamis.sparse_mlp.patterns import PATTERNS, activation_of
from torch import nn

TRANSFORMERS = [name for name in MODELS if name != "sequential"]

pytestmark = pytest.mark.usefixtures("one_thread")


def keep_largest(k, by):
    """What a dense down projection is given, but for the k largest of each token: 0."""

    def hook(module, args):
        (hidden,) = args
        return torch.zeros_like(hidden).scatter(-1, by(hidden).topk(k).indices, 1) * hidden

    return hook


def down_projections(model):
    return [m for m in model.modules() if getattr(m, "in_features", getattr(m, "nx", 0)) == D_FF]


def test_every_class_of_the_table_is_tested():
    assert {name for pattern in PATTERNS for name in pattern.classes} == {MODELS[name][1] for name in TRANSFORMERS}


@pytest.mark.parametrize("name", MODELS)
def test_with_every_neuron_is_the_dense_model(name):
    model, inputs = make(name)
    want, keys, kinds = output(model, inputs), [*model.state_dict()], [type(m) for m in model.modules()]
    parameters = dict(model.named_parameters())
    modules = [path for path, _ in model.named_modules()]
    report = sparsify(model, 1.0)
    assert {(each.kind, each.d_ff, each.k, each.activation) for each in report.replaced} == {
        (MODELS[name][1], D_FF, D_FF, MODELS[name][2])
    }
    assert len(report.replaced) == len(down_projections(model))
    assert not {each.kind for each in report.left} & {name for pattern in PATTERNS for name in pattern.classes}
    torch.testing.assert_close(output(model, inputs), want)
    assert [*model.state_dict()] == keys
    assert all(model.get_parameter(path) is parameter for path, parameter in parameters.items())
    assert [path for path, _ in model.named_modules()] == modules
    restore(model)
    assert torch.equal(output(model, inputs), want)
    assert [type(m) for m in model.modules()] == kinds
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_is_the_dense_model_with_all_else_zeroed(name):
    model, inputs = make(name)
    dense = copy.deepcopy(model)
    gated = any(name.endswith(("gate_proj", "wi_0")) for name, _ in model.named_modules())
    for down in down_projections(dense):
        down.register_forward_pre_hook(keep_largest(7, torch.abs if gated else lambda hidden: hidden))
    sparsify(model, 7)
    torch.testing.assert_close(output(model, inputs), output(dense, inputs))
    sparsify(model, 3)  # again
    assert not torch.allclose(output(model, inputs), output(dense, inputs))


@pytest.mark.parametrize("name", MODELS)
def test_learns_as_the_dense_model(name):
    """With every neuron; dropout is off in eval mode."""
    model, inputs = make(name)
    dense = copy.deepcopy(model)
    sparsify(model, 1.0)
    for each in (model, dense):
        output(each, inputs).square().mean().backward()
    for (path, mine), its in zip(model.named_parameters(), dense.parameters(), strict=True):
        assert (mine.grad is None) == (its.grad is None), path
        if its.grad is not None:
            torch.testing.assert_close(mine.grad, its.grad, msg=path)
            assert mine.grad.stride() == mine.stride()  # what optimizers like best


@pytest.mark.parametrize("name", ["t5", "t5_gated", "bert", "gpt2", "opt", "llama"])
def test_checkpoints_are_the_dense_models(name, tmp_path):
    model, inputs = make(name)
    other, _ = make(name)
    for p in other.parameters():
        p.data.normal_(std=0.1)
    sparsify(other, 6)
    want = output(other, inputs)
    model.load_state_dict(other.state_dict(), strict=True)
    sparsify(model, 6)
    torch.testing.assert_close(output(model, inputs), want)
    other.save_pretrained(tmp_path)
    loaded = type(other).from_pretrained(tmp_path).eval()
    assert not any("tamis" in type(m).__module__ for m in loaded.modules())
    restore(other)
    torch.testing.assert_close(output(loaded, inputs), output(other, inputs))
    sparsify(loaded, 6)
    torch.testing.assert_close(output(loaded, inputs), want)


@pytest.mark.parametrize("name", ["t5_gated", "bert", "gpt2", "opt", "gemma3n"])
def test_copies_are_apart(name):
    model, inputs = make(name)
    sparsify(model, 6)
    want = output(model, inputs)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(output(other, inputs), want)
        for p in other.parameters():
            p.data.zero_()
        restore(other)
        torch.testing.assert_close(output(model, inputs), want)


def test_gemma3n_is_what_transformers_computes():
    """Its layers of their own sparsity, with a k that is it."""
    from tamis.sparse_mlp import gaussian_topk

    model, inputs = make("gemma3n", pattern=(0.9, 0.75))
    want = output(model, inputs)
    layers = model.model.layers
    x = torch.randn(3, 4, D_FF, generator=torch.Generator().manual_seed(2))
    for layer, k in zip(layers, (4, 10), strict=True):
        torch.testing.assert_close(layer.mlp._gaussian_topk(x), gaussian_topk(x, k))
    shares = {"model.layers.0.mlp": 4, "model.layers.1.mlp": 0.25}
    report = sparsify(model, shares, selection="gaussian")
    assert [each.k for each in report.replaced] == [4, 10]
    torch.testing.assert_close(output(model, inputs), want)
    restore(model)
    assert torch.equal(output(model, inputs), want)


def test_gemma3n_of_its_own_sparsity_takes_no_other():
    model, inputs = make("gemma3n", pattern=(0.9, 0.0))
    before = output(model, inputs)
    report = sparsify(model, 1.0)
    assert [each.name for each in report.replaced] == ["model.layers.1.mlp"]
    left = {each.name: each.why for each in report.left}
    assert left["model.layers.0.mlp"] == "zeroes 0.9 of its gate itself: selection='gaussian' alone does that"
    torch.testing.assert_close(output(model, inputs), before)


@pytest.mark.parametrize("name", ["t5", "t5_gated"])
def test_dropout_before_the_down_projection(name):
    """With the same numbers drawn, and every neuron, training is the dense model's."""
    model, inputs = make(name)
    dense = copy.deepcopy(model)
    sparsify(model, 1.0)
    results = []
    for each in (model, dense):
        torch.manual_seed(3)
        results.append(output(each.train(), inputs))
        results[-1].sum().backward()
    torch.testing.assert_close(*results)
    assert not torch.allclose(results[0], output(model, inputs))  # it is random
    for mine, its in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)


def test_conv1d_lies_neuron_by_neuron():
    model, _ = make("gpt2")
    mlp = model.transformer.h[0].mlp
    mlp.c_proj.weight = model.transformer.h[1].mlp.c_proj.weight
    with pytest.raises(ValueError, match="c_proj.weight: shared with another module"):
        sparsify(model, 6)
    mlp.c_proj.weight = nn.Parameter(mlp.c_proj.weight.detach().clone())
    sparsify(model, 6)
    assert mlp.c_fc.weight.mT.is_contiguous() and mlp.c_proj.weight.is_contiguous()
    model.load_state_dict({name: value.contiguous() for name, value in model.state_dict().items()}, assign=True)
    assert mlp.c_fc.weight.mT.is_contiguous()


def test_tied_embeddings_stay_tied():
    model, inputs = make("gpt2")
    sparsify(model, 6)
    before = model.transformer.wte.weight.detach().clone()
    output(model, inputs).square().mean().backward()
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_gradient_checkpointing(name):
    gradients = []
    for checkpointed in (False, True):
        model, inputs = make(name)
        sparsify(model.train(), 6)
        if checkpointed:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        output(model, inputs | {"use_cache": False}).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generates(name):
    model, inputs = make(name)
    want = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    sparsify(model, 1.0)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0), want)


@pytest.mark.parametrize("name", ["bert", "t5_gated"])
def test_compiles_whole(name):
    model, _ = make(name)
    sparsify(model, 6)
    block = model.encoder.layer[0] if name == "bert" else model.encoder.block[0].layer[-1]
    call = block.feed_forward_chunk if name == "bert" else block
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(x), call(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    model, inputs = make("llama")
    model = model.to(dtype)
    dense, truth = output(model, inputs), output(copy.deepcopy(model).double(), inputs)
    sparsify(model, 1.0)
    error, rounding = ((y - truth).abs().max() for y in (output(model, inputs), dense))
    assert error <= 1.5 * rounding + 1e-12
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_down_projection_kept_in_float32_is_left():
    """As T5's, loaded in half precision."""
    model, _ = make("t5")
    model.encoder.block[0].layer[-1].DenseReluDense.half().wo.float()
    report = sparsify(model, 6)
    (left,) = report.left
    assert left.name == "encoder.block.0.layer.1.DenseReluDense"
    assert left.why == "weights of torch.float16 on cpu and torch.float32 on cpu"


def test_an_activation_that_is_a_function():
    model, inputs = make("bert")
    for layer in model.encoder.layer:
        del layer.intermediate.intermediate_act_fn
        layer.intermediate.intermediate_act_fn = nn.functional.silu
    want = output(model, inputs)
    assert {each.activation for each in sparsify(model, 1.0).replaced} == {"silu"}
    torch.testing.assert_close(output(model, inputs), want)
    restore(model)
    assert model.encoder.layer[0].intermediate.intermediate_act_fn is nn.functional.silu
    assert torch.equal(output(model, inputs), want)


def test_activations_by_what_they_compute():
    from transformers.activations import ACT2FN

    got = {name: activation_of(ACT2FN[name]) for name in ACT2FN}
    tanh = ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh")
    want = dict.fromkeys(tanh, "gelu_tanh") | dict.fromkeys(("gelu", "gelu_python"), "gelu")
    want |= {"relu": "relu", "relu2": "squared_relu", "silu": "silu", "swish": "silu"}
    assert {name: found for name, found in got.items() if found} == want


def test_an_activation_unknown_is_left():
    model, _ = make("gpt2", activation_function="quick_gelu")
    with pytest.raises(
        ValueError, match=r"(?s)^tamis\.sparsify: model: .*none in GPT2LMHeadModel.*QuickGELUActivation"
    ):
        sparsify(model, 6)


def test_a_class_without_the_attributes_is_left():
    """As another version of transformers may have it."""
    model, _ = make("opt")
    layer = model.model.decoder.layers[0]
    layer.renamed, _ = layer.fc1, delattr(layer, "fc1")
    (left,) = sparsify(model, 6).left
    assert left.kind == "OPTDecoderLayer" and "fc1" in left.why


@pytest.mark.parametrize("part", ["intermediate", "output"])
def test_a_hook_between_the_block_and_its_parts_is_seen(part):
    model, _ = make("bert")
    getattr(model.encoder.layer[0], part).register_forward_pre_hook(lambda module, args: None)
    report = sparsify(model, 2)
    assert [each.why for each in report.left] == [f"Bert{part.capitalize()}: hooked"]


class Parts(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


LIKE_MLPS = {
    "its gate is in its up projection": Parts(up=nn.Linear(4, 16), down=nn.Linear(8, 4)),
    "in two modules": Parts(first=Parts(dense=nn.Linear(4, 8)), second=Parts(dense=nn.Linear(8, 4))),
    "experts": Parts(up=nn.Parameter(torch.ones(2, 4, 8)), down=nn.Parameter(torch.ones(2, 8, 4))),
}
UNLIKE_MLPS = {
    "two up": Parts(x=nn.Linear(4, 8), y=nn.Linear(4, 8)),
    "an MLP and what follows it": Parts(
        first=nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 4)), second=nn.Linear(12, 4)
    ),
    "a convolution": Parts(x=nn.Conv1d(3, 8, 5), y=nn.Conv1d(8, 3, 5)),
}


@pytest.mark.parametrize("what", [*LIKE_MLPS, *UNLIKE_MLPS])
def test_what_looks_like_an_mlp_is_listed(what):
    model = nn.ModuleDict(
        {"a": (LIKE_MLPS | UNLIKE_MLPS)[what], "b": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))}
    )
    report = sparsify(model, 2)
    assert [(each.name, each.why) for each in report.left] == [("a", "its class is not in the table")] * (
        what in LIKE_MLPS
    )


def test_roberta_is_listed():
    config = transformers.RobertaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=D_FF
    )
    model = nn.ModuleDict({"known": make("bert")[0], "unknown": transformers.RobertaModel(config)})
    left = sparsify(model, 2).left
    assert [(each.name, each.kind) for each in left] == [
        (f"unknown.encoder.layer.{i}", "RobertaLayer") for i in range(2)
    ]
