"""Compiles __global__ kernels, one instance a file, where nvcc is found."""

import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from ..kernels.common.aot import CudaVariant
from .inventory import Entry, kernels_folder


FLAGS = ("-std=c++17", "-O3")


def sources(entry: Entry) -> list[Path]:
    """Its header and what that includes of ours."""
    assert isinstance(entry.variant, CudaVariant)
    found, todo = {}, [kernels_folder().resolve() / entry.family / entry.variant.header]
    while todo:
        file = todo.pop()
        if file not in found:
            found[file] = re.findall(r'^#include "(.+)"', file.read_text(), re.M)
            todo += [(file.parent / name).resolve() for name in found[file]]
    return sorted(found)


@cache
def nvcc() -> str | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [f"{home}/bin" for home in (*homes, "/usr/local/cuda") if home]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(places))


@cache
def version() -> str:
    """The compiler's, and how it is called."""
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("tamis.aot: expected nvcc on PATH or in CUDA_HOME/bin")
    said = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    return f"{said}{FLAGS}"


def compile(entry: Entry) -> tuple[bytes, int]:
    """The cubin, and the shared memory that a launch adds to its own."""
    version()
    compiler, variant = nvcc(), entry.variant
    assert compiler is not None
    assert isinstance(variant, CudaVariant)
    header = kernels_folder().resolve() / entry.family / variant.header
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.cu", Path(folder) / "kernel.cubin"
        source.write_text(f'#include "{header}"\nvoid* const instance = (void*)&{variant.instance};\n')
        command = [compiler, *FLAGS, "-cubin", f"-arch={entry.arch_name}", "-o", str(cubin), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"tamis.aot: nvcc: {variant.instance} for {entry.arch_name}:\n{done.stderr}")
        return cubin.read_bytes(), variant.dynamic
