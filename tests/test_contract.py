"""What every public op keeps, whatever its family."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tamis.testing import op_examples
from torch.utils._pytree import tree_map

ROOT = Path(__file__).parents[1]
EXAMPLES = [
    pytest.param(name, example, id=f"{name}-{i}")
    for name, examples in op_examples().items()
    for i, example in enumerate(examples)
]
PUBLIC = {
    name.split("::")[1]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("tamis::") and "::_" not in name
}
SCHEMAS = {
    "kmeans_assign": 'tamis::kmeans_assign(Tensor x, Tensor centroids, str metric="l2") -> '
    "(Tensor indices, Tensor distances)",
    "pq_lut": "tamis::pq_lut(Tensor queries, Tensor codebooks) -> Tensor",
    "pq_scan": 'tamis::pq_scan(Tensor lut, Tensor codes, SymInt n, SymInt k, str lookup="s8", Tensor? allowed=None) -> '
    "(Tensor values, Tensor indices)",
    "rerank": 'tamis::rerank(Tensor queries, Tensor candidates, Tensor vectors, SymInt k, str metric="ip") -> '
    "(Tensor values, Tensor indices)",
    "ivf_search": "tamis::ivf_search(Tensor queries, SymInt k, int leaves, int rerank, Tensor centroids, "
    "float centroid_scale, Tensor order_bias, Tensor score_bias, Tensor start, Tensor block, Tensor codebooks, "
    "Tensor? constants, Tensor codes, Tensor? bytes, float byte_scale, Tensor? half_norms, Tensor? exact, Tensor? ids, "
    'Tensor? center, str lookup="s8", Tensor? allowed=None, bool normalize=False) -> (Tensor values, Tensor indices)',
    "rank_of": "tamis::rank_of(Tensor queries, Tensor targets, Tensor vectors, Tensor? weights=None, "
    'str metric="ip", str ties="first") -> Tensor',
    "pq_encode": "tamis::pq_encode(Tensor x, Tensor codebooks, Tensor? directions=None, float eta=1., int rounds=10) "
    "-> Tensor",
    "gaussian_topk": "tamis::gaussian_topk(Tensor x, SymInt k) -> Tensor",
    "topk_mlp": "tamis::topk_mlp(Tensor x, Tensor w_up, Tensor? b_up, Tensor w_down, Tensor? b_down, SymInt k, "
    'Tensor? w_gate=None, Tensor? b_gate=None, str activation="relu", str selection="exact") -> Tensor',
    "topk": "tamis::topk(Tensor x, SymInt k, int dim=-1, bool sorted=True) -> (Tensor values, Tensor indices)",
    "deviation_stats": "tamis::deviation_stats(Tensor student_logits, Tensor teacher_logits, SymInt? vocab_size=None, "
    "float? student_softcap=None, float? teacher_softcap=None, float student_logit_scale=1., "
    "float teacher_logit_scale=1.) -> Tensor[]",
    "disagreement": "tamis::disagreement(Tensor logits_a, Tensor logits_b, Tensor? target=None, "
    'str kind="entropy_term") -> Tensor',
    "linear_softmax_stats": "tamis::linear_softmax_stats(Tensor hidden, Tensor weight, Tensor? bias, Tensor? target, "
    "Tensor temperature, Tensor? valid_mask=None, float? softcap=None, float logit_scale=1., "
    "SymInt? chunk_size=None) -> Tensor[]",
    "softmax_stats": "tamis::softmax_stats(Tensor logits, Tensor? target, Tensor temperature, "
    "Tensor? valid_mask=None, float? softcap=None, float logit_scale=1.) -> Tensor[]",
    "importance_sample": "tamis::importance_sample(Tensor probs, SymInt? num_samples, str method, Tensor? ids, "
    'SymInt seed, SymInt offset=0, float? cap=None, str weights="draw") -> Tensor[]',
    "linear_cross_entropy": "tamis::linear_cross_entropy(Tensor hidden, Tensor weight, Tensor target, "
    "Tensor? bias=None, "
    'float label_smoothing=0., int ignore_index=-100, str reduction="mean", Tensor? row_weight=None, '
    "Tensor? num_items_in_batch=None, SymInt? vocab_size=None, float? softcap=None, float logit_scale=1., "
    "SymInt? chunk_size=None) -> Tensor",
    "linear_distill_loss": "tamis::linear_distill_loss(Tensor student_hidden, Tensor student_weight, "
    "Tensor teacher_hidden, Tensor teacher_weight, Tensor? target, Tensor? student_bias, Tensor? teacher_bias, "
    'SymInt? chunk_size, Tensor temperature, Tensor alpha, str divergence="forward_kl", float beta=0.5, '
    'float label_smoothing=0., int ignore_index=-100, str reduction="mean", Tensor? row_weight=None, '
    "Tensor? num_items_in_batch=None, SymInt? vocab_size=None, float? student_softcap=None, "
    "float? teacher_softcap=None, float student_logit_scale=1., float teacher_logit_scale=1., "
    "bool return_stats=False) -> Tensor[]",
    "distill_loss": "tamis::distill_loss(Tensor student_logits, Tensor teacher_logits, Tensor? target, "
    "Tensor temperature, "
    'Tensor alpha, str divergence="forward_kl", float beta=0.5, float label_smoothing=0., int ignore_index=-100, '
    'str reduction="mean", Tensor? row_weight=None, Tensor? num_items_in_batch=None, SymInt? vocab_size=None, '
    "float? student_softcap=None, float? teacher_softcap=None, float student_logit_scale=1., "
    "float teacher_logit_scale=1., bool overwrite_logits=False, bool return_stats=False) -> Tensor[]",
    "soft_cross_entropy": "tamis::soft_cross_entropy(Tensor logits, Tensor probs, Tensor? indices=None, "
    'str reduction="mean", Tensor? row_weight=None) -> Tensor',
    "topk_distill_loss": "tamis::topk_distill_loss(Tensor student_logits, Tensor teacher_topk_values, "
    "Tensor teacher_topk_indices, Tensor teacher_logsumexp, Tensor? target, str tail, Tensor temperature, "
    'Tensor alpha, str divergence="forward_kl", float beta=0.5, float label_smoothing=0., int ignore_index=-100, '
    'str reduction="mean", Tensor? row_weight=None, Tensor? num_items_in_batch=None, SymInt? vocab_size=None, '
    "float? student_softcap=None, float? teacher_softcap=None, float student_logit_scale=1., "
    "float teacher_logit_scale=1., bool overwrite_logits=False) -> Tensor[]",
}

# Weights and keys, of float64 probabilities too; what quantized codes give.
FLOAT32 = {"importance_sample", "ivf_search", "pq_lut", "pq_scan", "rerank"}
WHOLE = {"pq_encode", "rank_of"}  # its results have no gradient to refuse


def op(name):
    return getattr(torch.ops.tamis, name).default


def outputs(name, args, kwargs):
    result = op(name)(*args, **kwargs)
    return [result] if isinstance(result, torch.Tensor) else result


def test_every_public_op_has_examples_and_a_frozen_schema():
    assert set(op_examples()) == PUBLIC == set(SCHEMAS)
    for name, schema in SCHEMAS.items():
        assert str(op(name)._schema) == schema


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_opcheck(name, example):
    torch.use_deterministic_algorithms(False)
    args, kwargs = example()
    torch.library.opcheck(op(name), args, kwargs)


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_gradcheck_of_the_raw_op(isa, name, example):
    args, kwargs = tree_map(
        lambda x: (
            x.detach().double().requires_grad_(x.requires_grad)
            if isinstance(x, torch.Tensor) and x.is_floating_point()
            else x
        ),
        example(),
    )
    inputs = [x for x in args if isinstance(x, torch.Tensor) and x.requires_grad]
    if not inputs and name.endswith("distill_loss"):
        return
    if not inputs:  # an op without a gradient refuses one; torch's default is a warning and None
        out = op(name)(args[0].requires_grad_(), *args[1:], **kwargs)
        if name in WHOLE:
            assert not out.requires_grad
            return
        with pytest.raises(NotImplementedError, match="not differentiable"):
            next(x for x in out if x.is_floating_point()).sum().backward()
        return

    def run(*tensors):
        fresh = iter(tensors)
        return tuple(outputs(name, [next(fresh) if any(x is y for y in inputs) else x for x in args], kwargs))

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_float64_in_float64_out(name, example):
    args, kwargs = tree_map(
        lambda x: x.detach().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, example()
    )
    want = set() if name in WHOLE else {torch.float32 if name in FLOAT32 else torch.float64}
    assert {x.dtype for x in outputs(name, args, kwargs) if x.is_floating_point()} == want


def test_no_source_file_is_over_500_lines_and_nothing_unpickles():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".h", ".cpp", ".cuh", ".cu"} and path.is_file():
            text = path.read_text()
            assert text.count("\n") <= 500, name
            if name.startswith("pysrc/"):
                assert not any(word in text for word in ("import pickle", "torch.load", "allow_pickle")), name


def test_docs_are_what_the_code_says():
    shown = subprocess.run([sys.executable, "-m", "tamis.docs"], capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "ops.md").read_text() == shown, "run: make docs"
