"""Compiles @triton.jit kernels for a device that is not there."""

import importlib
import os
from functools import cache
from pathlib import Path
from typing import Any

from ..kernels.common.aot import TritonVariant
from .inventory import Entry, kernels_folder


def sources(entry: Entry) -> list[Path]:
    """What decides its code."""
    files = [file for folder in ("common", entry.family) for file in sorted((kernels_folder() / folder).glob("*.py"))]
    return [file for file in files if file.name != "aot.py"]


@cache
def version() -> str:
    try:
        import triton
    except ImportError as error:
        raise RuntimeError("tamis.aot: expected triton: pip install 'tamis[triton]'") from error
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("tamis.aot: TRITON_INTERPRET: expected unset, got 1: the interpreter compiles nothing")
    return str(triton.__version__)


def compile(entry: Entry, *, debug: bool = False) -> tuple[bytes, int]:
    """The cubin, and the shared memory a launch gives it; with the kernel's assertions where `debug`."""
    compiled = built(entry, debug=debug)
    return bytes(compiled.asm["cubin"]), int(compiled.metadata.shared)


def built(entry: Entry, *, debug: bool = False) -> Any:
    """What Triton makes of it: `.asm` holds ptx and cubin.

    Pointers and what is named a stride are multiples of 16, as in a model's logits.
    """
    version()
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    variant = entry.variant
    assert isinstance(variant, TritonVariant)
    module = importlib.import_module(f"tamis.kernels.{entry.family}.{variant.module}")
    kernel = getattr(module, variant.kernel)
    signature: dict[str, str] = {}
    constants: dict[str, Any] = dict(variant.constants)
    attributes = {}
    for i, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr or (name in variant.types and variant.types[name] is None):
            signature[name] = "constexpr"
            constants.setdefault(name, None)
            continue
        signature[name] = str(parameter.annotation_type or variant.types[name])
        if signature[name].startswith("*") or name.endswith("stride"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {
        "num_warps": variant.warps,
        "enable_fp_fusion": variant.fusion,
        "maxnreg": variant.registers,
        "debug": debug,
    }
    return triton.compile(source, target=GPUTarget("cuda", entry.arch, 32), options=options)
