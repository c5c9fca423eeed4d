"""What kernels there are, and what of them is compiled."""

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import kernels
from ..kernels.common.aot import CudaVariant, TritonVariant

TRITON_ARCHS = {80: "sm_80", 90: "sm_90", 100: "sm_100"}
CUDA_ARCHS = {80: "sm_80", 90: "sm_90a", 100: "sm_100", 120: "sm_120"}


@dataclass(frozen=True)
class Entry:
    """One variant for one architecture."""

    family: str
    variant: TritonVariant | CudaVariant
    arch: int

    @property
    def backend(self) -> str:
        return "triton" if isinstance(self.variant, TritonVariant) else "cuda"

    @property
    def arch_name(self) -> str:
        return (TRITON_ARCHS if self.backend == "triton" else CUDA_ARCHS)[self.arch]

    @property
    def file(self) -> str:
        v = self.variant
        return f"{self.backend}/{self.arch_name}/{self.family}.{v.kernel}.{v.label}.cubin"


def kernels_folder() -> Path:
    return Path(kernels.__path__[0])


def entries(archs: list[int] | None = None) -> list[Entry]:
    """Every variant of every family, for the architectures asked for."""
    found = []
    for file in sorted(kernels_folder().glob("*/aot.py")):
        family = file.parent.name
        for variant in getattr(importlib.import_module(f"tamis.kernels.{family}.aot"), "VARIANTS", ()):
            known = TRITON_ARCHS if isinstance(variant, TritonVariant) else CUDA_ARCHS
            found += [Entry(family, variant, arch) for arch in known if archs is None or arch in archs]
    return found


def missing(folder: Path | None = None) -> list[str]:
    """Kernels in the sources that no variant compiles: family/name."""
    have = {(e.family, e.variant.kernel) for e in entries()}
    folder = folder or kernels_folder()
    there = {*_triton_kernels(folder), *_cuda_kernels(folder)}
    return sorted(f"{family}/{name}" for family, name in there - have)


def _triton_kernels(folder: Path) -> Iterator[tuple[str, str]]:
    """@triton.jit functions that no other such function calls."""
    defined: list[tuple[str, str]] = []
    called: set[str] = set()
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and any(_is_jit(d) for d in node.decorator_list):
                defined.append((file.relative_to(folder).parts[0], node.name))
                called |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id != node.name}
    return ((family, name) for family, name in defined if name not in called)


def _is_jit(decorator: ast.expr) -> bool:
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(target) in ("triton.jit", "jit")


def _cuda_kernels(folder: Path) -> Iterator[tuple[str, str]]:
    for pattern in ("*.cuh", "*.cu", "*.h"):
        for file in sorted(folder.rglob(pattern)):
            code = re.sub(r"//[^\n]*|/\*.*?\*/", "", file.read_text(), flags=re.S)
            code = re.sub(r"__launch_bounds__\s*\([^)]*\)", "", code)
            for name in re.findall(r"__global__\s+(?:static\s+)?void\s+(\w+)\s*\(", code):
                yield file.relative_to(folder).parts[0], name
