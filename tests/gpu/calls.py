"""Every public op's examples, and larger ones, on any device and implementation, against the reference in float64."""

from functools import partial

import pytest
import tamis.ann
import tamis.distill
import tamis.sampling
import tamis.sparse_mlp
import torch
from tamis.testing import op_examples
from torch.utils._pytree import tree_leaves

SAME_BITS = {"importance_sample"}  # as everywhere, of float32
FLOAT32 = SAME_BITS | {"ivf_search", "pq_lut", "pq_scan", "rank_of", "rerank"}  # whatever the leg: quantized from it
LEGS = [  # of the floats; where numbers that are not per row lie
    (torch.float32, "device"),
    (torch.float32, "host"),
    (torch.bfloat16, "host"),
    (torch.float16, "device"),
    (torch.float64, "device"),
]


def _wide(*tensors, **options):
    """Rows that are read in many blocks, at every alignment."""

    def draw(seed):
        return torch.randn(19, 50257, generator=torch.Generator().manual_seed(seed)) * 3

    target = torch.arange(19) * 2500
    target[3] = -100
    student, teacher = draw(0).requires_grad_(), draw(1)
    made = {
        "student": student,
        "constant": student.detach(),
        "teacher": teacher,
        "target": target,
        "label": target.abs(),
        "values": teacher.topk(64).values,
        "indices": teacher.topk(64).indices,
        "logsumexp": (teacher / 2).logsumexp(-1),
        "probs": teacher.softmax(-1),
    }
    return tuple(made.get(x, x) if isinstance(x, str) else x for x in tensors), options


def _long(k):
    """Rows that several blocks share on a GPU."""
    return (torch.randn(3, 300_001, generator=torch.Generator().manual_seed(0)), k), {}


def _wide_heads(*tail):
    draw = [torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in ((70, 48), (5003, 48)) * 2]
    hidden, weight, other, other_weight = (x * 0.5 for x in draw)
    return (hidden.requires_grad_(), weight.requires_grad_(), other.flip(0), other_weight.flip(0), *tail), {}


def _pool(method):
    probs = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    return (probs, None if method == "poisson" else 5000, method, None, 3), {}


def _layer(tokens, gated, selection="exact", learns=False):
    """Which neurons are selected no rounding decides: 24 of 600 are far above the others."""
    d, d_ff, out = 130, 600, 300
    shapes = (tokens, d), (d_ff, d), (d_ff,), (d_ff, out), (out,), (d_ff, d), (d_ff,)
    made = [torch.randn(*shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    x, w_up, b_up, w_down, b_down, w_gate, b_gate = (t * 0.3 if t.dim() > 1 else t * 0.1 for t in made)
    on = torch.arange(d_ff) % 25 == 3
    high = torch.where(on, 8.0, -8.0)
    b_up, b_gate = (8.0 + b_up, b_gate + high) if gated else (b_up + high, None)
    layer = [t.requires_grad_(learns) for t in (x, w_up * 0.3, b_up, w_down, b_down)]
    gate = (w_gate.requires_grad_(learns), b_gate.requires_grad_(learns)) if gated else (None, None)
    return (*layer, 24, *gate), {"activation": "silu" if gated else "relu", "selection": selection}


TWO, HALF = torch.tensor(2.0), torch.tensor(0.5)
WIDE = {
    "deviation_stats": [partial(_wide, "constant", "teacher")],
    "disagreement": [partial(_wide, "constant", "teacher", kind="jsd")],
    "distill_loss": [
        partial(_wide, "student", "teacher", "target", TWO, HALF, divergence=name) for name in ("forward_kl", "jsd")
    ],
    "importance_sample": [partial(_pool, method) for method in ("race", "poisson", "systematic", "alias")],
    "linear_distill_loss": [partial(_wide_heads, None, None, None, 32, TWO, torch.tensor(1.0))],
    "soft_cross_entropy": [partial(_wide, "student", "probs")],
    "softmax_stats": [partial(_wide, "student", "label", TWO)],
    "topk": [partial(_wide, "student", 64), partial(_wide, "student", 3000), partial(_long, 70)],
    "topk_mlp": [
        *(partial(_layer, tokens, gated) for tokens in (1, 3, 8) for gated in (False, True)),
        partial(_layer, 2, True, "gaussian"),
        partial(_layer, 40, True, learns=True),
        partial(_layer, 700, False, learns=True),
    ],
    "topk_distill_loss": [
        partial(_wide, "student", "values", "indices", "logsumexp", None, "bucket", TWO, torch.tensor(1.0))
    ],
}
EXAMPLES = [
    (f"{name}-{i}", name, example)
    for name, examples in op_examples().items()
    for i, example in enumerate([*examples, *WIDE.get(name, ())])
]

every_example = pytest.mark.parametrize(("name", "example"), [pytest.param(*row[1:], id=row[0]) for row in EXAMPLES])


def given(name, example, device="cpu", dtype=torch.float32, numbers="device"):
    """The public function's arguments by name, its tensors fresh."""
    args, kwargs = example()
    names = [argument.name for argument in getattr(torch.ops.tamis, name).default._schema.arguments]

    def move(key, x):
        if not isinstance(x, torch.Tensor):
            return x
        to = "cpu" if numbers == "host" and not x.dim() else device
        # numbers and probabilities stay whole beside half precision
        half = dtype.itemsize == 2 and (not x.dim() or key == "probs")
        kept = name in FLOAT32 or half or not x.is_floating_point()
        return x.detach().to(to, x.dtype if kept else dtype, copy=True).requires_grad_(x.requires_grad)

    return {key: move(key, value) for key, value in (dict(zip(names, args, strict=False)) | kwargs).items()}


def function(name):
    return next(
        getattr(m, name) for m in (tamis.ann, tamis.distill, tamis.sampling, tamis.sparse_mlp) if name in m.__all__
    )


def evaluate(name, arguments, impl="auto"):
    """The results, then the gradients of a weighted sum of those that have one."""
    out = [x for x in tree_leaves(function(name)(**arguments, impl=impl)) if isinstance(x, torch.Tensor)]
    leaves = [x for x in arguments.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    smooth = [x for x in out if x.requires_grad]
    if not smooth:
        return out
    weights = [torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype, device=x.device).view(x.shape) for x in smooth]
    total = sum((x * w).sum() for x, w in zip(smooth, weights, strict=True))
    return [*(x.detach() for x in out), *torch.autograd.grad(total, leaves)]


def truth(name, arguments):
    """Of the same numbers: in float64, by plain torch, on the CPU."""

    def exact(x):
        if not isinstance(x, torch.Tensor):
            return x
        x, wanted = x.detach().cpu(), x.requires_grad
        return (x.double() if x.is_floating_point() and name not in FLOAT32 else x).requires_grad_(wanted)

    return evaluate(name, {key: exact(value) for key, value in arguments.items()}, "reference")


def check(name, got, want, dtype):
    assert len(got) == len(want)
    for x, true in zip(got, want, strict=True):
        x = x.cpu()
        assert x.shape == true.shape
        if name in SAME_BITS or not true.is_floating_point():
            assert torch.equal(x, true)
            continue
        worst = x.dtype if not name.startswith("linear") else dtype  # logits of a linear layer are rounded
        rounding = 4 * torch.finfo(worst).eps if worst.itemsize == 2 else 1e-5 if worst.itemsize == 4 else 1e-11
        scale = float(true.abs().max()) if true.numel() else 0.0
        torch.testing.assert_close(x.double(), true.double(), rtol=10 * rounding, atol=rounding * scale)
