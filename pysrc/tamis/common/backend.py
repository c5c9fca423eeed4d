"""Which implementation serves a call, and why."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from . import nvrtc
from .checks import check_choice, fail

IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton", "cuda")
# Whose kernels an op has on a GPU, where they are not Triton's alone.
_BOTH = ("triton", "cuda")
_ANN = ("ivf_search", "kmeans_assign", "pq_encode", "pq_lut", "pq_scan", "rank_of", "rerank")
ON_GPU: dict[str, tuple[str, ...]] = {
    "distill_loss": _BOTH,
    "topk": ("cuda",),
    "topk_mlp": _BOTH,
    **dict.fromkeys(_ANN, ()),
}
_LAUNCHED_BY = {"distill_loss": "_distill_rows_cuda"}  # the private op, where it is not the op's own name
BY_NVRTC = ("topk",)  # launched through CuPy too, where nothing was built; distill_loss has Triton's kernel there
OLDEST = 8  # major compute capability that CMakeLists.txt builds for
_named: ContextVar[str] = ContextVar("tamis_named", default="")


class Choice(NamedTuple):
    backend: str  # cpu, triton, cuda or reference
    kernel: str
    reason: str

    @property
    def named(self) -> str:
        """The reason, where it is that somebody named the backend."""
        return self.reason if self.reason.endswith(f"={self.backend}") else ""


def built(op: str) -> bool:
    """Whether its kernel in CUDA C++ was built, as it is where nvcc is found."""
    return hasattr(torch.ops.tamis, _LAUNCHED_BY.get(op, f"_{op}_cuda"))


def runs(op: str, device: torch.device) -> bool:
    """Whether it was built, and for such a device."""
    # by its properties alone: the compiler knows them, and not get_device_capability
    known = device.type == "cuda" and torch.cuda.is_available()
    return built(op) and (not known or torch.cuda.get_device_properties(device).major >= OLDEST)


def _in_cuda(op: str, device: torch.device, reason: str, otherwise: str) -> Choice | None:
    """Its kernel in CUDA C++, of a binary or compiled at its first call."""
    if runs(op, device):
        return Choice("cuda", op, reason)
    return Choice("cuda", f"{op} by NVRTC", otherwise) if op in BY_NVRTC and nvrtc.serves(device) else None


def naming(choice: Choice) -> AbstractContextManager[None]:
    """Inside, an op's CUDA implementation knows which backend its caller named. A traced graph keeps no such thing:
    there it is TAMIS_BACKEND alone."""
    if torch.compiler.is_compiling() or choice.backend not in ("triton", "cuda") or not choice.named:
        return nullcontext()
    return _naming(choice.named)


@contextmanager
def _naming(named: str) -> Iterator[None]:
    token = _named.set(named)
    try:
        yield
    finally:
        _named.reset(token)


def named_for_cuda() -> str:
    """ "impl=cuda" and the like, or nothing."""
    backend = os.environ.get("TAMIS_BACKEND")
    return _named.get() or (f"TAMIS_BACKEND={backend}" if backend in ("triton", "cuda") else "")


def isa() -> str:
    """The instruction set whose CPU kernels run."""
    current: str = torch.ops.tamis._isa()
    return current


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose(fn: str, impl: str, tensor: Tensor) -> Choice:
    """The implementation of `fn` for a tensor's device; `impl` or, where that is auto, TAMIS_BACKEND may name another.

    Raises:
        ValueError: `impl` is no implementation, or cannot serve this device.
        NotImplementedError: under a torch.func transform, for any but the reference.
    """
    forced = "impl" if impl != "auto" else "TAMIS_BACKEND"
    wanted = impl if impl != "auto" else os.environ.get("TAMIS_BACKEND") or "auto"
    check_choice(fn, forced, wanted, IMPLEMENTATIONS)
    transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    if transformed and wanted != "reference":
        what = "torch.func transforms (vmap, grad, jvp, ...) are supported by impl='reference' alone"
        raise NotImplementedError(f"tamis.{fn}: {what}, got {wanted}")
    device, on_gpu = tensor.device.type, ON_GPU.get(fn, ("triton",))
    if wanted == "auto":
        if device == "cpu":
            return Choice("cpu", "simd", "CPU tensors")
        if device == "cuda" and not on_gpu:
            return Choice("reference", "plain torch", f"tamis has no kernel of {fn} for a GPU yet")
        if device == "cuda" and on_gpu[0] == "triton":
            return Choice("triton", f"{fn}_kernel", "CUDA tensors")
        if device == "cuda":
            without = "tamis was built without nvcc" if not built(fn) else "tamis was built for later devices"
            choice = _in_cuda(fn, tensor.device, "CUDA tensors", f"{without}: CuPy compiles it")
            return choice or Choice("reference", "plain torch", f"{without}, and there is no CuPy that can")
        return Choice("reference", "plain torch", f"tamis has no kernel for {device}")
    reason = f"{forced}={wanted}"
    if wanted == "cpu" and device != "cpu":
        fail(fn, forced, "CPU tensors for cpu", device)
    if wanted == "triton":
        if "triton" not in on_gpu:
            fail(fn, forced, "an op with a Triton kernel for triton", fn)
        if device != "cuda" and not interpreted():
            fail(fn, forced, "CUDA tensors for triton (or TRITON_INTERPRET=1)", device)
        if importlib.util.find_spec("triton") is None:
            fail(fn, forced, "triton installed: pip install 'tamis[triton]'", "none", ImportError)
    if wanted == "cuda":
        if "cuda" not in on_gpu or device != "cuda":
            fail(fn, forced, "an op with a CUDA C++ kernel, and CUDA tensors, for cuda", f"{fn} on {device}")
        choice = _in_cuda(fn, tensor.device, reason, reason)
        if choice is None:
            needed = f"tamis built where nvcc is found, or CuPy, for cuda (binaries are of sm_{OLDEST}0 and later)"
            fail(fn, forced, needed, "neither", ImportError)
        return choice
    kernel = {"cpu": "simd", "triton": f"{fn}_kernel", "reference": "plain torch"}.get(wanted, fn)
    return Choice(wanted, kernel, reason)
