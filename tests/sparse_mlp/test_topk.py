"""topk against a stable sort: every k, size, dtype and axis, ties, NaN, infinities, orders hard for a bound."""

import hypothesis.strategies as st
import pytest
import torch
from helpers import NAN
from hypothesis import given
from tamis.sparse_mlp import topk

INF = float("inf")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def sorted_truth(x, k, dim=-1):
    """By Python's stable sort of keys that say the order: NaN, then descending, -0 as 0, then the index."""
    rows = x.movedim(dim, -1).double().flatten(0, -2).tolist() if x.dim() > 1 else [x.double().tolist()]
    best = [
        sorted(range(len(row)), key=lambda i: (row[i] == row[i], -row[i] if row[i] == row[i] else 0))[:k]
        for row in rows
    ]
    shape = (*x.movedim(dim, -1).shape[:-1], k)
    return torch.tensor(best, dtype=torch.int64).reshape(shape).movedim(-1, dim)


def bits(x):
    return x.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def check(x, k, dim=-1, *, sorted=True, truth=None):
    values, indices = topk(x, k, dim=dim, sorted=sorted)
    truth = sorted_truth(x, k, dim) if truth is None else truth
    if not sorted:
        truth = truth.sort(dim).values
    assert torch.equal(indices, truth)
    assert values.shape == truth.shape and values.dtype == x.dtype and indices.dtype == torch.int64
    assert torch.equal(bits(values), bits(x.gather(dim, truth)))


@st.composite
def rows(draw):
    n = draw(st.integers(1, 70) | st.sampled_from([127, 255, 256, 257, 300, 1023, 1025, 1500]))
    count, seed = draw(st.integers(1, 3)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, n, generator=generator)
    kind = draw(
        st.sampled_from(["plain", "ties", "nan", "infinities", "zeros", "one value", "ascending", "descending"])
    )
    some = torch.rand(count, n, generator=generator) < draw(st.sampled_from([0.02, 0.5, 0.98]))
    if kind == "ties":
        x = (x * 2).round()
    elif kind == "nan":
        x = torch.where(some, torch.where(x > 0, NAN, -NAN), x)
    elif kind == "infinities":
        x = torch.where(some, torch.where(x > 0, INF, -INF), x)
    elif kind == "zeros":
        x = torch.where(some, -0.0, 0.0)
    elif kind == "one value":
        x = torch.full_like(x, draw(st.sampled_from([NAN, INF, -INF, 0.0, 3.0])))
    elif kind in ("ascending", "descending"):
        x = x.sort(-1, descending=kind == "descending").values
    k = draw(st.integers(1, n) | st.sampled_from([1, n, (n + 1) // 2, min(n, 64), min(n, 65)]))
    return x.to(draw(st.sampled_from(DTYPES))), k


@given(rows(), st.booleans())
def test_every_row(isa, case, sorted):
    x, k = case
    check(x, k, sorted=sorted)


@pytest.mark.parametrize("n", [5_000, 33_000, 70_003, 1_000_000])
@pytest.mark.parametrize("order", ["random", "ascending", "descending", "ties"])
def test_long_rows(isa, n, order):
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    x = x.sort(descending=order == "descending").values if order.endswith("scending") else x
    x = (x * 20).round() if order == "ties" else x
    truth = x.sort(descending=True, stable=True).indices
    for k in (1, 17, 64, 65, 1000, n // 20, n // 2, n):
        check(x, k, truth=truth[:k])
        check(x, k, truth=truth[:k], sorted=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_every_axis_and_stride(isa, dtype, dim):
    x = torch.randn(6, 7, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    for view in (x, x.transpose(0, 2), x[::2, :, 1::2], x[:, :1].expand(6, 5, 10)):
        for k in (1, 2, view.shape[dim]):
            check(view, k, dim)
            check(view, k, dim, sorted=False)


def test_a_row_alone_and_none_at_all(isa):
    check(torch.tensor([3.0, 1.0, 3.0]), 2)
    for none in (torch.empty(0, 5), torch.empty(0, 10)[:, ::2]):  # which torch calls contiguous
        empty = topk(none, 2)
        assert empty.values.shape == empty.indices.shape == (0, 2)


@pytest.mark.parametrize("n", [300, 1001, 5003])
@pytest.mark.parametrize("last", [NAN, INF, 100.0])
def test_the_largest_is_the_last(isa, n, last):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    x[-1] = last
    for k in (1, 5, 64):
        check(x, k)


def test_many_threads_give_the_same():
    x = torch.randn(300, 2000, generator=torch.Generator().manual_seed(0)).bfloat16()
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(topk(x, 20))
    torch.set_num_threads(threads)
    assert all(torch.equal(r.indices, results[0].indices) for r in results)


def test_the_gradient_goes_where_the_values_came_from():
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    out = topk(x, 4, dim=0 if x.shape[0] > 4 else 1)
    weight = torch.randn_like(out.values)
    (out.values * weight).sum().backward()
    expected = torch.zeros_like(x).scatter(1, out.indices, weight)
    assert torch.equal(x.grad, expected)
    assert not out.indices.requires_grad
    assert torch.autograd.gradgradcheck(lambda t: topk(t, 2).values, x)


def test_under_compile_and_export():
    def largest(x):
        out = topk(x * 2, 3, dim=0)
        return out.values.sum() + out.indices.sum()

    x = torch.randn(8, 5)
    torch.testing.assert_close(torch.compile(largest, fullgraph=True, backend="aot_eager")(x), largest(x))

    class Module(torch.nn.Module):
        def forward(self, x):
            return topk(x, 3)

    exported = torch.export.export(Module(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows", min=2)}})
    other = torch.randn(4, 5)
    assert torch.equal(exported.module()(other).indices, topk(other, 3).indices)


def test_reference_is_the_same():
    x = (torch.randn(4, 50) * 3).round()
    for options in ({}, {"sorted": False}, {"dim": 0}):
        for one, other in zip(topk(x, 3, **options), topk(x, 3, impl="reference", **options), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("args", "options", "error", "words"),
    [
        ((torch.ones(3), 0), {}, ValueError, "k: expected 1 to 3, the size of dim -1, got 0"),
        ((torch.ones(3), 4), {}, ValueError, "k: expected 1 to 3, the size of dim -1, got 4"),
        ((torch.ones(2, 3), 3), {"dim": 0}, ValueError, "k: expected 1 to 2, the size of dim 0, got 3"),
        ((torch.ones(2, 0), 1), {}, ValueError, "k: expected 1 to 0, the size of dim -1, got 1"),
        ((torch.ones(3), 1.0), {}, TypeError, "k: expected an integer, got float"),
        ((torch.ones(3, dtype=torch.int64), 1), {}, TypeError, "x: expected float32, .*, got torch.int64"),
        ((torch.ones(3, dtype=torch.complex64), 1), {}, TypeError, "x: expected float32, .*, got torch.complex64"),
        (([1.0, 2.0], 1), {}, TypeError, "x: expected a Tensor, got list"),
        ((torch.tensor(1.0), 1), {}, ValueError, "x: expected at least one axis, got a number"),
        ((torch.ones(3), 1), {"dim": 1}, ValueError, "dim: expected -1 to 0, got 1"),
        ((torch.ones(3), 1), {"sorted": 1}, TypeError, "sorted: expected True or False, got 1"),
        (
            (torch.ones(3, device="meta"), 1),
            {"impl": "cpu"},
            ValueError,
            "impl: expected CPU tensors for cpu, got meta",
        ),
    ],
)
def test_bad_input_is_named(args, options, error, words):
    with pytest.raises(error, match=f"tamis.topk: {words}"):
        topk(*args, **options)


@pytest.mark.parametrize(("k", "dim"), [(0, -1), (4, -1), (1, 2), (1, -3)])
def test_the_raw_op_refuses_too(k, dim):
    with pytest.raises(RuntimeError, match="tamis.topk: "):
        torch.ops.tamis.topk(torch.ones(2, 3), k, dim)


def test_float16_has_its_subnormals_where_float32_has_none(isa):
    x = torch.tensor([1, 3, 0, 7, 6] * 20, dtype=torch.int16).view(torch.float16)
    torch.set_flush_denormal(True)  # where it cannot, nothing is lost
    try:
        found = topk(x, 20).indices
    finally:
        torch.set_flush_denormal(False)
    assert found.tolist() == list(range(3, 100, 5))
