"""CUDA C++ kernels compiled at run time, by NVRTC through CuPy: where no binary fits, since there was no nvcc when
tamis was built, or not for this device's architecture. The headers are the same.

    topk = kernel("sparse_mlp", "cuda.cuh", "tamis::cuda::topk_row_kernel<tamis::cuda::Float32>")
    topk((rows,), 512, x, n, x.stride(0), k, values, indices)  # on torch's current stream
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import kernels

INSTALL = "pip install 'tamis[cupy]'"


@cache
def _library() -> Any:
    """CuPy's NVRTC, which needs neither driver nor device."""
    try:
        from cupy_backends.cuda.libs import nvrtc
    except ImportError as error:
        raise ImportError(f"tamis.nvrtc: expected CuPy: {INSTALL}") from error
    try:
        nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(f"tamis.nvrtc: expected an NVRTC that CuPy finds: {INSTALL}: {error}") from error
    return nvrtc


@cache
def _toolkit() -> str:
    """Where cuda_fp16.h lies: a wheel's folder or a toolkit's."""
    places = [f"{os.environ.get(name)}/include" for name in ("CUDA_HOME", "CUDA_PATH")]
    try:
        from cuda.pathfinder import find_nvidia_header_directory

        places.insert(0, str(find_nvidia_header_directory("cudart")))
    except ImportError:  # CuPy for CUDA 12 comes without
        pass
    for place in (*places, "/usr/local/cuda/include"):
        if Path(place, "cuda_fp16.h").exists():
            return place
    raise ImportError(f"tamis.nvrtc: expected CUDA's headers in a wheel, in CUDA_HOME or in /usr/local/cuda: {INSTALL}")


@cache
def available() -> bool:
    """Whether kernels can be compiled: CuPy, NVRTC and CUDA's headers are there."""
    try:
        return bool(_library() and _toolkit())
    except ImportError:
        return False


def serves(device: torch.device) -> bool:
    """Whether they can be for this device, which may be older than any that NVRTC still knows."""
    if not available():
        return False
    # by its properties alone: the compiler knows them, and not get_device_capability
    known = device.type == "cuda" and torch.cuda.is_available()
    if not known:
        return True
    it = torch.cuda.get_device_properties(device)
    return bool(10 * it.major + it.minor >= min(_library().getSupportedArchs()))


def target(capability: tuple[int, int]) -> str:
    """What to compile for: the device's own code, or PTX of the nearest architecture before it that NVRTC knows.

    Raises:
        RuntimeError: the device is older than any.
    """
    number, known = 10 * capability[0] + capability[1], _library().getSupportedArchs()
    if number in known:
        return f"sm_{number}a" if number == 90 else f"sm_{number}"
    if number < min(known):
        raise RuntimeError(f"tamis.nvrtc: expected a device of sm_{min(known)} or later, got sm_{number}")
    return f"compute_{max(arch for arch in known if arch < number)}"


@cache
def compile(family: str, header: str, instance: str, arch: str) -> tuple[bytes, str]:
    """The code of one instance of a template, as SASS for "sm_90a", as PTX for "compute_80", and its name therein.

    Raises:
        ImportError: no CuPy, no NVRTC or no headers.
        RuntimeError: what NVRTC has to say.
    """
    nvrtc = _library()
    folder = Path(kernels.__path__[0]).resolve()
    program = nvrtc.createProgram(f'#include "{family}/{header}"\n', f"{family}.cu", (), ())
    try:
        nvrtc.addNameExpression(program, instance)
        try:
            options = ("-std=c++17", f"-arch={arch}", f"-I{folder}", f"-I{_toolkit()}")
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise RuntimeError(f"tamis.nvrtc: {instance} for {arch}: {error}\n{log}") from error
        code = nvrtc.getCUBIN(program) if arch.startswith("sm_") else nvrtc.getPTX(program)
        return bytes(code), str(nvrtc.getLoweredName(program, instance))
    finally:
        nvrtc.destroyProgram(program)


class Kernel:
    """Launches one instance, loaded on one device."""

    def __init__(self, function: Callable[..., None], device: int) -> None:
        self.function, self.device = function, device

    def __call__(self, grid: tuple[int, ...], threads: int, *arguments: Tensor | int | None) -> None:
        """On torch's current stream of the device. Nothing is checked but where tensors lie.

        Args:
            arguments: the kernel's; a tensor stands for its first element's address, None for a null pointer, an int
                for any of its integers.
        """
        packed = []
        for argument in arguments:
            if isinstance(argument, Tensor):
                if argument.device != torch.device("cuda", self.device):
                    raise ValueError(f"tamis.nvrtc: expected tensors on cuda:{self.device}, got {argument.device}")
                argument = argument.data_ptr()
            packed.append(np.int64(argument or 0))  # of a smaller integer the low bytes are read
        with torch.cuda.device(self.device):
            self.function(grid, (threads,), tuple(packed), 0, _stream(self.device))


def _stream(device: int) -> Any:
    import cupy

    return cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, device)


@cache
def kernel(family: str, header: str, instance: str, device: int = 0) -> Kernel:
    """An instance as C++ spells it, of kernels/<family>/<header>, for a device; compiled and loaded once."""
    code, name = compile(family, header, instance, target(torch.cuda.get_device_capability(device)))
    return Kernel(_loaded(code, name, device), device)


def _loaded(code: bytes, name: str, device: int) -> Callable[..., None]:
    from cupy.cuda.function import Module

    with torch.cuda.device(device):
        torch.cuda.current_stream()  # the context is torch's
        module = Module()
        module.load(code)
        function: Callable[..., None] = module.get_function(name)
        return function
