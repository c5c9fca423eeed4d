"""Selection and the layers that use it, against torch.

Least work of a selection: every number read once, k values and indices written; of a layer: its first matrix, and the
k rows of the second that a token uses; of a training step the multiply-adds of one dense product and five sparse ones.
"torch dense" is the same layer without a selection, so its error says how far that is.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from tamis.bench import Case, Route
from tamis.bench.case import Results
from tamis.sparse_mlp import gaussian_topk, topk, topk_mlp
from tamis.sparse_mlp.reference import gaussian_topk as plain_gaussian
from torch import Tensor

QUICK = (128, 32000, 64)
SHAPES = (  # rows, size, k
    QUICK,
    (512, 32000, 64),
    (512, 32000, 1),
    (512, 32000, 1000),
    (1, 10**6, 64),
    (1, 10**6, 5 * 10**5),
    (2048, 3072, 154),  # 5% of a hidden layer
    (100000, 64, 8),  # a router's experts
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _numbers(rows: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(0)).to(dtype)


def _largest(k: int, x: Tensor) -> Results:
    """The values: torch takes any of equal numbers."""
    return (topk(x, k).values,)


def _by_torch(k: int, x: Tensor) -> Results:
    return (torch.topk(x, k).values,)


def _by_sort(k: int, x: Tensor) -> Results:
    return (x.double().sort(-1, descending=True).values[..., :k],)


def _topk(rows: int, size: int, k: int, dtype: str) -> Case:
    width = DTYPES[dtype].itemsize
    return Case(
        op="topk",
        mode="forward",
        shape={"rows": rows, "size": size, "k": k},
        dtype=dtype,
        setup=lambda: _numbers(rows, size, DTYPES[dtype]),
        providers={
            "tamis": lambda x: Route(lambda _: _largest(k, x)),
            "torch": lambda x: Route(lambda _: _by_torch(k, x)),
        },
        truth=partial(_by_sort, k),
        read=width * rows * size,
        written=(width + 8) * rows * k,
    )


LAYER = (2048, 8192, 246)  # d, d_ff, k: 3%, and weights larger than a last cache
MANY = (512, 768, 3072)  # tokens, d, d_ff
SHARES = (0.25, 0.3, 0.51)  # of the neurons: about where topk_mlp goes over to a dense product
TRAINED = (2048, 768, 3072, 154)  # tokens, d, d_ff, k: 5%
Layer = tuple[Tensor, ...]  # x, w_up, w_down


def _layer(tokens: int, d: int, d_ff: int, dtype: torch.dtype) -> Layer:
    generator = torch.Generator().manual_seed(0)
    shapes = (tokens, d), (d_ff, d), (d_ff, d)
    x, w_up, w_down = (torch.randn(*shape, generator=generator) for shape in shapes)
    return x.to(dtype), (w_up * d**-0.5).to(dtype), (w_down * d_ff**-0.5).to(dtype)


def _masked(x: Tensor, w_up: Tensor, w_down: Tensor, *, k: int) -> Tensor:
    """As one would write it."""
    hidden = F.linear(x, w_up).relu()
    values, indices = hidden.topk(k)
    return torch.zeros_like(hidden).scatter(-1, indices, values) @ w_down


def _dense(x: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    return F.linear(F.linear(x, w_up).relu(), w_down)


def _ours(k: int, x: Tensor, w_up: Tensor, w_down: Tensor, *, impl: str = "auto") -> Tensor:
    return topk_mlp(x, w_up, None, w_down, None, k, impl=impl)


def _gathered(k: int, wrap: Callable[..., Route]) -> dict[str, Callable[[Layer], Route]]:
    """Triton's sparse products also where the rule has others: what the rule is to be held against."""
    return {"tamis triton": lambda layer: wrap(partial(_ours, k, impl="triton"), *layer)}


def _layer_providers(k: int, wrap: Callable[..., Route]) -> dict[str, Callable[[Layer], Route]]:
    """wrap(layer's function, x, w_up, w_down); torch's own layout where torch multiplies."""

    ours = partial(_ours, k)

    def torch_dense(layer: Layer) -> Route:
        x, w_up, w_down = layer
        return wrap(_dense, x, w_up, w_down.mT.contiguous())

    return {
        "tamis": lambda layer: wrap(ours, *layer),
        "torch dense": torch_dense,
        "torch topk": lambda layer: wrap(partial(_masked, k=k), *layer),
    }


def _forward(call: Callable[..., Tensor], *tensors: Tensor) -> Route:
    def run(_: object) -> Results:
        with torch.no_grad():
            return (call(*tensors),)

    return Route(run)


def _step(call: Callable[..., Tensor], *tensors: Tensor) -> Route:
    leaves = [t.clone().requires_grad_() for t in tensors]
    grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))

    def run(_: object) -> Results:
        y = call(*leaves)
        d_x, d_up, d_down = torch.autograd.grad(y, leaves, grad.to(y.dtype))
        return y.detach(), d_x, d_up, d_down if d_down.shape == d_up.shape else d_down.mT

    return Route(run)


def _topk_mlp(tokens: int, d: int, d_ff: int, k: int, dtype: str) -> Case:
    providers = _layer_providers(k, _forward)
    if dtype != "float32":
        float32 = providers["torch dense"]
        providers["torch dense float32"] = lambda layer: float32(tuple(t.float() for t in layer))
    width = DTYPES[dtype].itemsize
    return Case(
        op="topk_mlp",
        mode="forward",
        shape={"tokens": tokens, "d": d, "d_ff": d_ff, "k": k},
        dtype=dtype,
        setup=lambda: _layer(tokens, d, d_ff, DTYPES[dtype]),
        providers=providers,
        truth=lambda layer: (_masked(*(t.double() for t in layer), k=k),),
        read=width * d * (d_ff + tokens + min(tokens * k, d_ff)),  # what few tokens write is a thousandth of it
        flops=2 * tokens * d * (d_ff + k),
        on_gpu=_gathered(k, _forward),
    )


def _training() -> Case:
    tokens, d, d_ff, k = TRAINED
    return Case(
        op="topk_mlp",
        mode="training step",
        shape={"tokens": tokens, "d": d, "d_ff": d_ff, "k": k},
        dtype="float32",
        setup=lambda: _layer(tokens, d, d_ff, torch.float32),
        providers=_layer_providers(k, _step),
        truth=lambda layer: _step(partial(_masked, k=k), *(t.double() for t in layer)).run(None),
        read=4 * (3 * tokens * d + 2 * d_ff * d),
        written=4 * (2 * tokens * d + 2 * d_ff * d),
        flops=2 * tokens * d * (d_ff + 5 * k),
        on_gpu=_gathered(k, _step),
    )


def _product(dtype: str) -> Case:
    """The matrix times one vector alone."""
    d, d_ff, _ = LAYER
    width = DTYPES[dtype].itemsize
    return Case(
        op="topk_mlp",
        mode="its matrix times a vector",
        shape={"d": d, "d_ff": d_ff},
        dtype=dtype,
        setup=lambda: _layer(1, d, d_ff, DTYPES[dtype]),
        providers={
            "tamis": lambda layer: _forward(lambda x, w, _: torch.ops.tamis._project(x, w, None), *layer),
            "torch": lambda layer: _forward(lambda x, w, _: F.linear(x, w), *layer),
        },
        truth=lambda layer: (F.linear(layer[0].double(), layer[1].double()),),
        read=width * (d_ff + 1) * d,
    )


def _gaussian(mode: str) -> Case:
    rows, size, k = 512, 8192, 410

    def trained(call: Callable[[Tensor, int], Tensor], x: Tensor) -> Route:
        leaf, grad = x.clone().requires_grad_(), torch.ones_like(x)

        def run(_: object) -> Results:
            y = call(leaf, k)
            return y.detach(), *torch.autograd.grad(y, leaf, grad)

        return Route(run)

    wrap = trained if mode == "forward and backward" else lambda call, x: _forward(lambda x: call(x, k), x)
    times = 3 if mode == "forward and backward" else 1
    return Case(
        op="gaussian_topk",
        mode=mode,
        shape={"rows": rows, "size": size, "k": k},
        dtype="float32",
        setup=lambda: _numbers(rows, size, torch.float32),
        providers={
            "tamis": partial(wrap, gaussian_topk),
            "torch": partial(wrap, plain_gaussian),
            "torch.compile": lambda x: wrap(torch.compile(plain_gaussian, dynamic=False), x),
        },
        truth=lambda x: wrap(plain_gaussian, x.double()).run(None),
        read=4 * times * rows * size,
        written=4 * (2 if times > 1 else 1) * rows * size,
    )


def cases(*, quick: bool, peers: bool) -> Iterator[Case]:
    """topk forward: the last layer's logits, one long row, a hidden layer, a router. topk_mlp: a few tokens through
    weights larger than the caches, some, many with large k, and a training step. gaussian_topk."""
    for shape in (QUICK,) if quick else SHAPES:
        for dtype in DTYPES if shape == (512, 32000, 64) else ("float32",):
            yield _topk(*shape, dtype)
    yield _topk_mlp(1, *LAYER, "float32")
    if quick:
        return
    yield _topk_mlp(1, *LAYER, "bfloat16")
    for tokens in (2, 8, 32):
        for dtype in DTYPES:
            yield _topk_mlp(tokens, *LAYER, dtype)
    for dtype in DTYPES:
        yield _product(dtype)
    for share in SHARES:
        for dtype in DTYPES:
            yield _topk_mlp(*MANY, int(share * MANY[2]), dtype)
    yield _training()
    for mode in ("forward", "forward and backward"):
        yield _gaussian(mode)
