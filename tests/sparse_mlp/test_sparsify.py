"""sparsify and restore, on models of torch alone: what is replaced, what is left, and what stays as it was."""

import copy
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from tamis.sparse_mlp import TopKMLP, restore, sparsify
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.prune import l1_unstructured

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp(act=None, *, d_ff=12, dropout=None):
    torch.manual_seed(0)
    between = [act or nn.GELU(), *([] if dropout is None else [nn.Dropout(dropout)])]
    return nn.Sequential(nn.Linear(4, d_ff), *between, nn.Linear(d_ff, 4))


def two(**more):
    return nn.ModuleDict({"a": mlp(**more), "b": mlp(d_ff=20, **more)})


def left(report):
    return {each.name: each.why for each in report.left}


class TestWhat:
    def test_report(self):
        model = nn.Sequential(mlp(nn.ReLU()), nn.LayerNorm(4), mlp(nn.Tanh()))
        report = sparsify(model, 3)
        assert report.replaced == (("0", "Sequential", 12, 3, "relu"),)
        assert left(report) == {"2": "activation Tanh: none of relu, squared_relu, gelu, gelu_tanh, silu"}
        assert str(report).splitlines() == [
            "name  class         d_ff      k  activation",
            "0     Sequential      12      3  relu",
            "2     Sequential  left: activation Tanh: none of relu, squared_relu, gelu, gelu_tanh, silu",
        ]

    def test_computes_topk(self):
        model, x = mlp(), random(5, 4)
        hidden = model[1](model[0](x))
        kept = torch.zeros_like(hidden).scatter(-1, hidden.topk(3).indices, 1) * hidden
        want = model[2](kept)
        sparsify(model, 3)
        torch.testing.assert_close(model(x), want)
        assert "TopKLinear(in_features=12, out_features=4, bias=True, k=3, activation='gelu'" in repr(model)

    @pytest.mark.parametrize("dropout", [None, 0.5])
    @pytest.mark.parametrize("bias", [False, True])
    def test_in_a_longer_sequential(self, bias, dropout):
        """Runs are named as their first layer; what is between them stays."""
        inner = [nn.ReLU(), *([] if dropout is None else [nn.Dropout(dropout)])]
        ends = nn.Linear(4, 9, bias), nn.Linear(9, 4, bias)
        model = nn.Sequential(nn.LayerNorm(4), ends[0], *inner, ends[1], nn.Tanh(), nn.Linear(4, 6), nn.SiLU())
        model.append(nn.Linear(6, 2))
        model.eval()
        x, first = random(3, 4), len(model) - 3
        want = model(x)
        assert [each.name for each in sparsify(model, 1.0).replaced] == ["1", str(first)]
        torch.testing.assert_close(model(x), want)
        restore(model)
        assert torch.equal(model(x), want)

    def test_runs_side_by_side(self):
        model, x = nn.Sequential(*mlp(), *mlp()), random(3, 4)
        want = model(x)
        assert [each.name for each in sparsify(model, 1.0).replaced] == ["0", "3"]
        torch.testing.assert_close(model(x), want)

    def test_runs_do_not_overlap(self):
        model, x = nn.Sequential(*mlp(), nn.ReLU(), nn.Linear(4, 4)), random(3, 4)
        want = model(x)
        report = sparsify(model, 1.0)
        assert [each.name for each in report.replaced] == ["0"]
        assert left(report) == {"2": "its up projection is the down projection of the MLP before it"}
        torch.testing.assert_close(model(x), want)

    @pytest.mark.parametrize(
        "k, want", [(3, (3, 3)), (0.25, (3, 5)), (0.3, (4, 6)), (1.0, (12, 20)), (1e-9, (1, 1)), (1, (1, 1))]
    )
    def test_k(self, k, want):
        assert tuple(each.k for each in sparsify(two(), k).replaced) == want

    def test_k_by_name(self):
        report = sparsify(two(), {"a": 0.5})
        assert [(each.name, each.k) for each in report.replaced] == [("a", 6)]
        assert left(report) == {"b": "not asked for"}
        assert [each.k for each in sparsify(two(), {"b": np.int64(2), "a": np.float32(0.5)}).replaced] == [6, 2]

    @pytest.mark.parametrize("modules", [["a"], {"a": 1}.keys(), lambda name, module: name == "a"])
    def test_modules(self, modules):
        model = two()
        report = sparsify(model, 2, modules=modules)
        assert [each.name for each in report.replaced] == ["a"] and left(report) == {"b": "not asked for"}
        assert type(model["b"][2]) is nn.Linear

    @pytest.mark.parametrize(
        "name, arguments, error",
        [
            ("k", {"k": 0}, ValueError),
            ("k", {"k": 13}, ValueError),
            ("k", {"k": 0.0}, ValueError),
            ("k", {"k": 1.5}, ValueError),
            ("k", {"k": float("nan")}, ValueError),
            ("k", {"k": "3"}, TypeError),
            ("k", {"k": True}, TypeError),
            ("k", {"k": {"c": 3}}, ValueError),
            ("k", {"k": {"a": 3, "b": 21}}, ValueError),
            ("selection", {"selection": "most"}, ValueError),
            ("modules", {"modules": "a"}, TypeError),
            ("modules", {"modules": ["a", "c"]}, ValueError),
            ("modules", {"modules": 3}, TypeError),
            ("model", {"modules": []}, ValueError),
            ("model", {"model": nn.Linear(3, 3)}, ValueError),
            ("model", {"model": [mlp()]}, TypeError),
        ],
    )
    def test_refuses_before_any_change(self, name, arguments, error):
        model = two()
        with pytest.raises(error, match=rf"^tamis\.sparsify: {name}: expected .+, got "):
            sparsify(**{"model": model, "k": 2} | arguments)
        assert not any(type(m).__module__.startswith("tamis") for m in model.modules())

    def test_names_what_it_looked_for(self):
        with pytest.raises(ValueError, match=r"BertLayer.*nn\.Sequential\(Linear, .*none in LSTM"):
            sparsify(nn.LSTM(3, 3), 2)

    def test_refuses_to_search(self):
        with pytest.raises(NotImplementedError, match="tamis.sparsify: selection: searched is not built yet"):
            sparsify(mlp(), 2, selection="searched")

    def test_restore_refuses(self):
        with pytest.raises(TypeError, match="^tamis.restore: model: expected a torch.nn.Module, got list"):
            restore([])


class TestLeft:
    def why(self, model, name="a"):
        model = nn.ModuleDict({"a": model, "other": mlp()})
        found = left(sparsify(model, 2))
        assert not any(type(m).__module__.startswith("tamis") for m in model["a"].modules())
        return found[name]

    def test_a_class_not_in_the_table(self):
        layer = nn.TransformerEncoderLayer(4, 2, 16)
        assert self.why(layer) == "its class is not in the table"

    def test_top_k_already(self):
        assert left(sparsify(nn.ModuleDict({"a": TopKMLP(4, 8, 2), "b": mlp()}), 2)) == {
            "a": "top-k by construction: set its k"
        }

    @pytest.mark.parametrize(
        "act",
        [nn.LeakyReLU(), nn.ReLU6(), nn.PReLU(init=0.0), nn.RReLU(), nn.Softmax(-1), nn.Dropout(), nn.LayerNorm(12)],
    )
    def test_an_activation_unknown(self, act):
        assert self.why(mlp(act)).startswith(f"activation {type(act).__name__}: none of ")

    def test_a_projection_of_another_class(self):
        class Adapted(nn.Linear):
            pass

        adapted = nn.Sequential(Adapted(4, 8), nn.ReLU(), nn.Linear(8, 4))
        assert self.why(adapted) == "0: Adapted, not a Linear or Conv1D with a weight of its own"
        assert self.why(nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 4))).startswith("0: LazyLinear, not a")
        pruned = mlp()
        l1_unstructured(pruned[2], "weight", 0.5)
        assert self.why(pruned) == "2: Linear, not a Linear or Conv1D with a weight of its own"

    def test_weights_of_two_dtypes(self):
        model = mlp()
        model[2].double()
        assert self.why(model) == "weights of torch.float32 on cpu and torch.float64 on cpu"

    def test_a_shared_down_projection(self):
        model = two()
        model["b"] = mlp()
        model["b"][2].weight = model["a"][2].weight
        with pytest.raises(ValueError, match="2.weight: shared with another module"):
            sparsify(model, 2)
        flat = mlp()  # views of one piece of memory
        memory = torch.cat([flat[0].weight.data.flatten(), flat[2].weight.data.flatten()])
        flat[2].weight.data = memory[48:].view(4, 12)
        flat[0].weight.data = memory[:48].view(12, 4)
        assert self.why(flat) == "2.weight: shared with another module"

    def test_modules_in_several_places(self):
        linear, dropout = nn.Linear(4, 4), nn.Dropout()
        assert self.why(nn.Sequential(linear, nn.ReLU(), linear)) == "0: in more than one place"
        model = nn.ModuleDict({"a": mlp(dropout=0.1), "b": mlp(dropout=0.1), "c": mlp()})
        model["a"][2] = model["b"][2] = dropout
        assert left(sparsify(model, 2)) == dict.fromkeys("ab", "2: in more than one place")

    def test_another_dropout(self):
        class Scheduled(nn.Dropout):
            pass

        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Scheduled(), nn.Linear(8, 4))
        assert self.why(model) == "2: Scheduled, not a Dropout"

    def test_hooked_or_replaced(self):
        hooked, replaced = mlp(), mlp()
        hooked[0].register_forward_hook(lambda module, args, output: output * 2)
        assert self.why(hooked) == "0: hooked"
        replaced[2].forward = lambda x: x
        assert self.why(replaced) == "2: its forward is replaced on the instance, as accelerate's hooks do"
        backward = mlp()
        backward[0].register_full_backward_hook(lambda module, gave, got: None)
        assert self.why(backward) == "0: hooked"

    def test_a_sequential_that_goes_another_way(self):
        class Normed(nn.Sequential):
            def forward(self, x):
                hidden = self[1](self[0](x))
                return self[2](hidden / hidden.norm(dim=-1, keepdim=True))

        class Heir(Normed):
            pass

        for kind in (Normed, Heir):
            assert self.why(kind(*mlp())) == "its class is not in the table"


class TestStays:
    def test_trained_after_inference_mode(self):
        model, x = mlp(), random(3, 4)
        with torch.inference_mode():
            sparsify(model, 3)
        model(x).sum().backward()
        with torch.inference_mode():
            restore(model)
        model(x).sum().backward()

    def test_parameters(self):
        model = mlp()
        model[2].weight.requires_grad_(False)
        before = dict(model.named_parameters())
        shapes = {name: p.shape for name, p in before.items()}
        values = {name: p.detach().clone() for name, p in before.items()}
        sparsify(model, 3)
        after = dict(model.named_parameters())
        assert list(after) == list(before) and all(after[name] is before[name] for name in before)
        assert all(p.shape == shapes[name] and torch.equal(p, values[name]) for name, p in after.items())
        assert [p.requires_grad for p in after.values()] == [True, True, False, True]
        assert model[2].weight.mT.is_contiguous()  # neuron by neuron

    @pytest.mark.parametrize("assign", [False, True])
    def test_checkpoints(self, assign):
        """Of the dense into the sparse and back; loaded weights lie neuron by neuron."""
        dense, sparse, other, x = mlp(), mlp(), mlp(), random(3, 4)
        for p in other.parameters():
            p.data.normal_()
        sparsify(sparse, 12)
        sparse.load_state_dict(other.state_dict(), strict=True, assign=assign)
        assert sparse[2].weight.mT.is_contiguous()
        torch.testing.assert_close(sparse(x), other(x))
        dense.load_state_dict(sparse.state_dict(), strict=True, assign=assign)
        torch.testing.assert_close(dense(x), other(x))

    def test_saved_by_torch_and_by_safetensors(self, tmp_path):
        from safetensors.torch import load_model, save_file, save_model

        model = mlp()
        sparsify(model, 3)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        save_model(model, str(tmp_path / "model.safetensors"))
        for load in (
            lambda other: other.load_state_dict(torch.load(file, weights_only=True)),
            lambda other: load_model(other, str(tmp_path / "model.safetensors")),
        ):
            other = mlp()
            for p in other.parameters():
                p.data.zero_()
            load(other)
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
        with pytest.raises(ValueError, match="non contiguous"):
            save_file(model.state_dict(), str(tmp_path / "file.safetensors"))

    def test_state_dict_is_no_copy(self):
        """Averages of weights are written through it."""
        model = mlp()
        sparsify(model, 3)
        for value in model.state_dict().values():
            value.zero_()
        assert all((p == 0).all() for p in model.parameters())

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies(self, copied):
        model, x = two(), random(3, 4)
        sparsify(model, 3)
        other = copied(model)
        assert torch.equal(other["a"](x), model["a"](x)) and other["a"][2].weight.mT.is_contiguous()
        other["a"][0].weight.data.zero_()
        assert not torch.equal(other["a"](x), model["a"](x))
        restore(other)
        assert type(other["a"][2]) is nn.Linear and type(model["a"][2]) is not nn.Linear

    def test_shared_activation_and_up_projection(self):
        """Neither is changed."""
        act, model, x = nn.ReLU(), nn.ModuleDict({"a": mlp(), "b": mlp()}), random(3, 4)
        model["a"][1] = model["b"][1] = model["c"] = act
        model["b"][0].weight = model["a"][0].weight
        want = model["a"](x), model["b"](x)
        assert len(sparsify(model, 1.0).replaced) == 2
        torch.testing.assert_close((model["a"](x), model["b"](x)), want)
        assert model["c"] is act and model["b"][0].weight is model["a"][0].weight
        restore(model)
        assert model["a"][1] is act and model["b"][1] is act

    def test_one_mlp_in_two_places(self):
        model, x = nn.Sequential(mlp(), nn.LayerNorm(4)), random(3, 4)
        model.append(model[0])
        want = model(x)
        assert [each.name for each in sparsify(model, 1.0).replaced] == ["0"]
        torch.testing.assert_close(model(x), want)

    def test_moved_and_cast(self):
        model, x = mlp(), random(3, 4)
        sparsify(model, 3)
        want = model(x)
        model.double()
        assert model[2].weight.mT.is_contiguous()
        torch.testing.assert_close(model(x.double()), want.double())

    def test_weights_laid_out_by_another(self):
        """As FSDP's flat ones: correct all the same."""
        model, x = mlp(), random(3, 4)
        sparsify(model, 3)
        want = model(x)
        model[2].weight.data = model[2].weight.data.contiguous()
        assert torch.equal(model(x), want)

    def test_on_meta(self):
        with torch.device("meta"):
            model = mlp()
            sparsify(model, 12)
            assert model(torch.empty(3, 4)).shape == (3, 4)
        model.to_empty(device="cpu")
        dense, x = mlp(), random(3, 4)
        model.load_state_dict(dense.state_dict())
        assert model[2].weight.mT.is_contiguous()
        torch.testing.assert_close(model(x), dense(x))
        with torch.device("meta"):
            assigned = mlp()
        sparsify(assigned, 12)
        assigned.load_state_dict(dense.state_dict(), assign=True)
        torch.testing.assert_close(assigned(x), dense(x))

    def test_without_gradients(self):
        with torch.no_grad():
            model = mlp()
            sparsify(model, 3)
        assert all(p.requires_grad and p.is_leaf for p in model.parameters())

    def test_under_autocast(self):
        model, x = mlp(dropout=0.5), random(3, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            want = model.eval()(x)
            sparsify(model, 1.0)
            torch.testing.assert_close(model(x), want, rtol=0.02, atol=0.01)  # hidden values may stay in float32
            assert model.train()(x).dtype == torch.bfloat16

    def test_import_takes_nothing_heavy(self):
        code = "import sys, tamis; assert not {'transformers', 'accelerate'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestAgain:
    def test_with_another_k_and_selection(self):
        model, x = two(), random(3, 4)
        want = {k: sparsify(copy.deepcopy(model), k) for k in (3, 5)}
        sparsify(model, 3)
        assert sparsify(model, 5) == want[5]
        fresh = two()
        sparsify(fresh, 5)
        assert torch.equal(model["a"](x), fresh["a"](x))
        sparsify(model, 4, selection="gaussian", modules=["a"])
        assert torch.equal(model["b"](x), fresh["b"](x))  # as it was
        sparsify(fresh, 4, selection="gaussian")
        assert torch.equal(model["a"](x), fresh["a"](x))
        restore(model)
        assert repr(model) == repr(two())

    def test_restore(self):
        model, x = two(dropout=0.1), random(3, 4)
        restore(model)  # nothing to do
        sparsify(model, 3)
        model.eval()
        restore(model)
        assert repr(model) == repr(two(dropout=0.1)) and not any(m.training for m in model.modules())
        assert list(vars(model["a"][3])) == list(vars(nn.Linear(1, 1)))
        assert torch.equal(model["a"](x), two(dropout=0.1).eval()["a"](x))
        assert len(sparsify(model, 3).replaced) == 2


class TestTraining:
    def test_trains_and_is_restored_with_its_weights(self):
        """With every neuron as the dense model, whether the optimizer came before or after."""
        x, models = random(6, 4), [mlp(), mlp(), mlp()]
        optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in models[:2]]
        sparsify(models[1], 1.0), sparsify(models[2], 1.0)
        optimizers.append(torch.optim.AdamW(models[2].parameters(), lr=0.1))
        for _ in range(3):
            for model, optimizer in zip(models, optimizers, strict=True):
                optimizer.zero_grad()
                model(x).square().sum().backward()
                optimizer.step()
        for model in models[1:]:
            restore(model)
            for got, want in zip(model.parameters(), models[0].parameters(), strict=True):
                torch.testing.assert_close(got, want)
                assert got.is_contiguous()

    def test_only_the_selected_learn(self):
        model = mlp()
        sparsify(model, 2)
        model(random(1, 4)).sum().backward()
        assert (model[0].weight.grad.abs().sum(1) > 0).sum() == 2
        assert (model[2].weight.grad.abs().sum(0) > 0).sum() == 2

    @pytest.mark.parametrize("selection", ["exact", "gaussian"])
    def test_dropout_is_that_of_the_selected(self, selection):
        model, x = mlp(dropout=0.5), random(40, 4)
        sparsify(model, 3, selection=selection)
        hidden = model[3].hidden(x)
        torch.manual_seed(1)
        want = F.linear(F.dropout(hidden, 0.5), model[3].weight, model[3].bias)
        torch.manual_seed(1)
        got = model.train()(x)
        assert torch.equal(got, want)
        for mine, its in zip(torch.autograd.grad(got.sum(), model.parameters()),
                             torch.autograd.grad(want.sum(), model.parameters()), strict=True):  # fmt: skip
            torch.testing.assert_close(mine, its)
        dense = F.linear(hidden, model[3].weight, model[3].bias)
        torch.testing.assert_close(model.eval()(x), dense)
        model.train()[2].eval()  # it is still the model's own
        torch.testing.assert_close(model(x), dense)
        model.train()[2].p = 0.0
        torch.testing.assert_close(model(x), dense)

    def test_compiles_whole(self):
        model, x = nn.Sequential(mlp(dropout=0.1), nn.LayerNorm(4)), random(3, 4)
        sparsify(model.eval(), 3)
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))

    @pytest.mark.parametrize("fused", [False, True])
    def test_an_optimizer_made_after_it(self, fused):
        """A gradient from before lies as its parameter does; with k = d_ff nothing changes but the order in memory."""
        weights = []
        for sparse in (False, True):
            model, x = mlp(), random(6, 4)
            model(x).square().sum().backward()
            if sparse:
                sparsify(model, 12)
                assert model[2].weight.grad.stride() == model[2].weight.stride()
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
            for _ in range(3):
                optimizer.step()
                optimizer.zero_grad()
                model(x).square().sum().backward()
            if sparse:
                restore(model)
                assert model[2].weight.grad.is_contiguous()
            weights.append([p.detach() for p in model.parameters()])
        for one, other in zip(*weights, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
