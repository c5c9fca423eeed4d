"""Logits, truths and comparisons that several tests share."""

import hypothesis.strategies as st
import torch
from tamis.distill import distill_loss

INF = float("inf")
NAN = torch.tensor(0x7FC00001, dtype=torch.int32).view(torch.float32).item()  # its payload unmasks tricks on exponents

DIVERGENCES = [
    *({"divergence": name} for name in ("forward_kl", "reverse_kl", "total_variation", "logit_mse")),
    *({"divergence": "jsd", "beta": beta} for beta in (0.0, 0.1, 0.5, 0.9, 1.0)),
]


def named(options):
    return "-".join(map(str, options.values()))


SIZES = st.integers(1, 70) | st.sampled_from([1023, 1024, 1025, 2048, 3073])


@st.composite
def models(draw, dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16)):
    """Student and teacher logits [rows, classes]: empty, one class, ragged around a vector and a block, huge, tied,
    growing, -inf in either or both, +inf, NaN, any stride."""
    rows, classes = draw(st.integers(0, 4)), draw(SIZES)
    dtype = draw(st.sampled_from(dtypes))
    other = dtype if dtype == torch.float64 else draw(st.sampled_from([d for d in dtypes if d != torch.float64]))
    return tuple(draw(logits(rows, classes, kind)) for kind in (dtype, other))


@st.composite
def logits(draw, rows, classes, dtype):
    """One model's."""
    x = torch.randn(rows, classes, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**32))))
    x = x * draw(st.sampled_from([0.0, 1.0, 30.0, 3000.0]))
    if draw(st.booleans()):
        x = x + torch.linspace(0, draw(st.sampled_from([40.0, -300.0, 1000.0])), classes)  # each block above the last
    x = x.to(dtype)
    for row in range(rows):
        if draw(st.integers(0, 3)) == 0:
            x[row, draw(st.integers(0, classes - 1)) :] = -INF
        for special in draw(st.lists(st.sampled_from([INF, -INF, NAN, 100.0]), max_size=1)):
            x[row, draw(st.integers(0, classes - 1))] = special
    layout = draw(st.sampled_from(["contiguous", "rows", "classes", "offset", "expanded"]))
    if layout == "rows":
        return torch.cat([x, x, x], 1)[:, classes : 2 * classes]
    if layout == "classes":
        return x.T.contiguous().T
    if layout == "offset":
        return torch.cat([x.flatten(), x.new_zeros(1)])[1:].view(rows, classes)
    if layout == "expanded" and rows:
        return x[:1].expand(rows, classes)
    return x


def assert_as_good_as_torch(got, torchs, truth, scale, classes):
    """Infinities and NaNs the same; elsewhere within twice torch's error, 4 roundings at `scale`, underflow, and what
    the truth itself loses when it adds `classes` float64 numbers in turn."""
    exact = ~truth.isfinite()
    torch.testing.assert_close(got[exact].double(), truth[exact], rtol=0, atol=0, equal_nan=True)
    dtype = torch.finfo(got.dtype)
    allowed = 2 * (torchs.double() - truth).abs().nan_to_num() + 4 * dtype.eps * scale + 4 * dtype.tiny
    allowed += classes * torch.finfo(torch.float64).eps * scale
    wrong = ~((got.double() - truth).abs() <= allowed) & ~exact
    assert not wrong.any(), (got[wrong], truth[wrong], allowed[wrong])


def pair(rows, classes, dtype=torch.float32, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(rows, classes, generator=generator).mul(scale).to(dtype) for _ in range(2))
    return s.requires_grad_(), t


def loss_and_gradient(student, teacher, *args, **kwargs):
    student = student.detach().requires_grad_()
    loss = distill_loss(student, teacher, *args, **kwargs)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    return loss.detach(), gradient
