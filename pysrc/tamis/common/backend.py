"""Which implementation serves a call, and why."""

import importlib.util
import os
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_choice, fail

IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton", "cuda")
ON_GPU = {"topk": "cuda"}  # whose kernels these are, where they are not Triton's


class Choice(NamedTuple):
    backend: str  # cpu, triton, cuda or reference
    kernel: str
    reason: str


def isa() -> str:
    """The instruction set whose CPU kernels run."""
    current: str = torch.ops.tamis._isa()
    return current


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def built(op: str) -> bool:
    """Whether the CUDA C++ kernel of `op` was built, as it is where nvcc is found."""
    return hasattr(torch.ops.tamis, f"_{op}_cuda")


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
    device, on_gpu = tensor.device.type, ON_GPU.get(fn, "triton")
    if wanted == "auto":
        if device == "cpu":
            return Choice("cpu", "simd", "CPU tensors")
        if device == "cuda" and on_gpu == "cuda" and not built(fn):
            return Choice("reference", "plain torch", "tamis was built without nvcc")
        if device == "cuda":
            return Choice(on_gpu, fn if on_gpu == "cuda" else f"{fn}_kernel", "CUDA tensors")
        return Choice("reference", "plain torch", f"tamis has no kernel for {device}")
    reason = f"{forced}={wanted}"
    if wanted == "cpu" and device != "cpu":
        fail(fn, forced, "CPU tensors for cpu", device)
    if wanted == "triton":
        if on_gpu != "triton":
            fail(fn, forced, "an op with a Triton kernel for triton", fn)
        if device != "cuda" and not interpreted():
            fail(fn, forced, "CUDA tensors for triton (or TRITON_INTERPRET=1)", device)
        if importlib.util.find_spec("triton") is None:
            fail(fn, forced, "triton installed: pip install 'tamis[triton]'", "none", ImportError)
    if wanted == "cuda":
        if on_gpu != "cuda" or device != "cuda":
            fail(fn, forced, "an op with a CUDA C++ kernel, and CUDA tensors, for cuda", f"{fn} on {device}")
        if not built(fn):
            fail(fn, forced, "tamis built where nvcc is found, for cuda", "no CUDA kernels", ImportError)
    kernel = {"cpu": "simd", "triton": f"{fn}_kernel", "reference": "plain torch"}.get(wanted, fn)
    return Choice(wanted, kernel, reason)
