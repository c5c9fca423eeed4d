"""Which of distill_loss's two kernels takes rows on a CUDA device. On a real one, that they agree."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import tamis
import torch
from tamis.aot import budgets
from tamis.common import backend
from tamis.distill import cuda, cuda_choice, distill_loss
from tamis.distill.cuda_choice import ALONE, STATIC, Device, chosen, device_of, kept_bytes, shared_of
from tamis.kernels.distill import aot as distill

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
MIB = 1 << 20
A100 = Device((8, 0), 108, shared_of((8, 0)), 40 * MIB)
H100 = Device((9, 0), 132, shared_of((9, 0)), 50 * MIB)
B200 = Device((10, 0), 148, shared_of((10, 0)), 126 * MIB)
RTX5090 = Device((12, 0), 170, shared_of((12, 0)), 96 * MIB)


def choice(device=H100, student=BF16, teacher=None, rows=4096, classes=32_000, divergence="forward_kl", **options):
    options = {"gradient": True} | options
    return chosen(device, student, teacher or student, rows, classes, divergence, **options)


def test_by_bytes():
    """528 programs of two 62.5 KiB rows are 64.5 MiB: more than an H100's L2, less than a B200's."""
    got = choice()
    assert got.backend == "cuda"
    assert got.kernel == "distill_rows_kernel"
    sizes = "64.5 MiB of rows at once, L2 of 50 MiB; rows of 2 x 62.5 KiB"
    assert got.reason == f"{sizes} fit into the 227 KiB of sm_90: read once"
    got = choice(B200)
    assert (got.backend, got.kernel) == ("triton", "distill_loss_kernel")
    assert got.reason == "72.3 MiB of rows at once, L2 of 126 MiB: read again from there"
    assert choice(B200, F32, classes=28_000).backend == "cuda"
    assert choice(RTX5090, F32, classes=12_000).backend == "triton"  # 62 MiB
    assert choice(A100).backend == "cuda"
    assert choice(A100, classes=20_000).backend == "triton"  # 33 MiB
    assert choice(divergence=ALONE).backend == "triton"  # one model: 32 MiB
    assert choice(divergence=ALONE, classes=60_000).backend == "cuda"


@pytest.mark.parametrize("device", [A100, H100, B200, RTX5090])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("divergence", ["forward_kl", ALONE])
def test_the_boundaries(device, dtype, divergence):
    """Both are exact: the last row that L2 holds, and the longest that shared memory does."""
    models = 1 if divergence == ALONE else 2
    held = device.l2 // (4 * device.multiprocessors * models * dtype.itemsize)
    lanes = 16 // dtype.itemsize
    longest = max(n for n in range(1, 120_000) if kept_bytes(n, dtype.itemsize, models) <= device.shared)
    assert (device.shared - STATIC) // models // 16 * lanes - longest == lanes - 1
    for classes in (held, held + 1, longest, longest + 1):
        wanted = "cuda" if held < classes <= longest else "triton"
        assert choice(device, dtype, classes=classes, divergence=divergence).backend == wanted
    few = choice(device, dtype, classes=longest, divergence=divergence, rows=8)
    assert few.backend == "triton"


@pytest.mark.parametrize(
    ("device", "first", "last"), [(A100, 24273, 41577), (H100, 24825, 57961), (B200, 55795, 57961)]
)
def test_what_the_docs_say(device, first, last):
    taken = [n for n in range(1, 60_000) if choice(device, classes=n).backend == "cuda"]
    assert (taken[0], taken[-1], len(taken)) == (first, last, last - first + 1)


def test_what_is_read_once_stays():
    assert choice(gradient=False).reason == "no gradient: rows of 2 x 62.5 KiB are read once"
    for divergence in ("jsd", "total_variation"):
        assert choice(gradient=False, divergence=divergence).backend == "cuda"
    assert choice(gradient=False, divergence=ALONE).backend == "triton"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"built": False}, "no CUDA library for this device: no nvcc was found, or it is before sm_80"),
        ({"student": F64}, "float64"),
        ({"teacher": F32}, "logits of two dtypes, bfloat16 and float32"),
        ({"classes": 128_256}, "rows of 2 x 250 KiB, more than a block of sm_90 holds"),
        ({"device": RTX5090}, "rows of 2 x 62.5 KiB, more than a block of sm_120 holds"),
        ({"device": Device((7, 5), 40, shared_of((7, 5)), 4 * MIB), "classes": 9}, "rows of 2 x 18 bytes, more than a"),
    ],
)
def test_what_the_kernel_cannot(options, reason):
    assert choice(**options).backend == "triton"
    assert choice(**options).reason.startswith(reason)
    with pytest.raises(ValueError, match="^tamis.distill_loss: impl: expected rows that the CUDA C") as error:
        choice(**options, forced="impl=cuda")
    assert f"got {reason}" in str(error.value)


def test_a_name_decides():
    assert choice(forced="impl=triton") == ("triton", "distill_loss_kernel", "impl=triton")
    for options in ({"gradient": False}, {"device": B200}, {"rows": 1}, {"debug": True}):
        assert choice(**options).backend == "triton"
        assert choice(**options, forced="TAMIS_BACKEND=cuda") == ("cuda", "distill_rows_kernel", "TAMIS_BACKEND=cuda")
    assert choice(teacher=F32, divergence=ALONE, classes=60_000).backend == "cuda"  # which is not read


def test_names_reach_the_op(monkeypatch):
    monkeypatch.delenv("TAMIS_BACKEND", raising=False)
    assert backend.named_for_cuda() == ""
    with backend.naming(backend.Choice("cuda", "", "impl=cuda")):
        assert backend.named_for_cuda() == "impl=cuda"
        with backend.naming(backend.Choice("triton", "", "CUDA tensors")):
            assert backend.named_for_cuda() == "impl=cuda"
        monkeypatch.setenv("TAMIS_BACKEND", "triton")
        assert backend.named_for_cuda() == "impl=cuda"
    assert backend.named_for_cuda() == "TAMIS_BACKEND=triton"
    monkeypatch.setenv("TAMIS_BACKEND", "cpu")
    assert backend.named_for_cuda() == ""


def test_static_shared_memory_is_what_the_compiler_gives():
    """budgets.json holds 99 KiB of rows and static arrays, and the KiB that sm_90 and later take for themselves."""
    assert budgets.load()["distill/distill_rows_kernel"]["shared"] == 100 << 10
    assert distill.ROWS_SHARED + STATIC == 99 << 10


class OnCuda:
    """What the rule and its caller ask of a CUDA tensor."""

    is_cuda, device, requires_grad = True, torch.device("cuda", 0), True

    def __init__(self, shape, dtype):
        self.shape, self.dtype = torch.Size(shape), dtype


def test_explained(monkeypatch):
    found = SimpleNamespace(major=9, minor=0, multi_processor_count=132, L2_cache_size=50 * MIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(cuda, "runs", lambda fn, device: True)
    assert device_of(torch.device("cuda", 0)) == H100
    auto = backend.Choice("triton", "distill_loss_kernel", "CUDA tensors")
    student, teacher = OnCuda((8, 512, 32_000), BF16), OnCuda((8, 512, 32_000), BF16)

    def explained(given=auto, teacher=teacher, **options):
        return tamis.distill.ops._explained(given, student, teacher, **options)

    assert explained().backend == "cuda"
    assert explained(alpha=0.0).backend == "triton"
    assert explained(divergence="jsd", beta=0.0) == explained()
    assert explained(vocab_size=1000).backend == "triton"
    assert explained(teacher=OnCuda((8, 512, 32_000), F32)).reason.startswith("logits of two dtypes")
    with torch.no_grad():
        assert explained().reason.startswith("no gradient")
        assert explained(divergence="jsd").backend == "cuda"
    assert explained(backend.Choice("triton", "", "impl=triton")).reason == "impl=triton"


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("classes", [77, 5003, 24_000])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "total_variation", "logit_mse", "alone"])
def test_both_kernels_agree(dtype, classes, divergence):
    """Loss and gradient of Triton, of CUDA C++ and of the reference in float64, also over the logits."""
    if not backend.built("distill_loss"):
        pytest.skip("the CUDA library is not built")
    if kept_bytes(classes, dtype.itemsize, 2) > cuda_choice.device_of(torch.device("cuda")).shared:
        pytest.skip("longer than this GPU's shared memory")
    generator = torch.Generator("cuda").manual_seed(0)
    s, t = (torch.randn(2, 33, classes + 3, device="cuda", generator=generator).to(dtype)[:, 1:] for _ in range(2))
    target = torch.randint(classes, (2, 32), device="cuda", generator=generator)
    target[0, 3] = -100
    options = {"temperature": 2.0, "alpha": 0.5, "vocab_size": classes, "label_smoothing": 0.1, "student_softcap": 9.0}
    options |= {"alpha": 0.0} if divergence == "alone" else {"divergence": divergence}
    got = {}
    for impl in ("cuda", "triton", "reference"):
        for overwrite in (False, True) if impl != "reference" else (False,):
            leaf = (s.double() if impl == "reference" else s).clone().requires_grad_()
            teacher = t.double() if impl == "reference" else t
            loss = distill_loss(leaf * 1, teacher, target, impl=impl, overwrite_logits=overwrite, **options)
            got[impl, overwrite] = loss.double(), torch.autograd.grad(loss, leaf)[0].double()
    want, want_gradient = got["reference", False]
    for key, (loss, gradient) in got.items():
        torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
        torch.testing.assert_close(gradient, want_gradient, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@needs_gpu
def test_explain_on_a_gpu():
    student = torch.zeros(4096, 32, device="cuda", dtype=BF16, requires_grad=True)
    assert tamis.explain("distill_loss", student, student).backend == "triton"
    built = backend.built("distill_loss")
    with nullcontext() if built else pytest.raises(ImportError, match="tamis built where nvcc is"):
        assert tamis.explain("distill_loss", student, student, impl="cuda").kernel == "distill_rows_kernel"
