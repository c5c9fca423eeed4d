"""Calls a driver's functions on numpy arrays that lie between guards."""

import ctypes
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

GUARD = 256  # bytes on both sides
POISON = 0xFF  # NaN in every floating type, -1 in every other


class KernelError(Exception):
    """What the emulator found."""


class Memory:
    """An array as a kernel sees it: `offset` elements past a multiple of 256 bytes."""

    def __init__(self, shape: Any, dtype: Any, offset: int = 0, *, writable: bool = True, written: bool = False):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.arena = np.full(size + 3 * GUARD + 256, POISON, np.uint8)
        begin = -self.arena.ctypes.data % 256 + GUARD + offset * np.dtype(dtype).itemsize
        self.begin, self.end, self.writable, self.written = begin, begin + size, writable, written
        self.array = self.arena[begin : begin + size].view(dtype).reshape(shape)

    def guards_hold(self) -> bool:
        return bool((self.arena[: self.begin] == POISON).all() and (self.arena[self.end :] == POISON).all())


def given(array: np.ndarray, offset: int = 0, *, writable: bool = False) -> Memory:
    """What the kernel reads; `writable`: and writes."""
    memory = Memory(array.shape, array.dtype, offset, writable=writable, written=True)
    memory.array[...] = array
    return memory


@dataclass(frozen=True)
class Library:
    """A driver, loaded."""

    library: Any

    @classmethod
    @cache
    def load(cls, path: Path) -> "Library":
        library = ctypes.CDLL(str(path))
        library.emulator_error.restype = ctypes.c_char_p
        library.emulator_error_address.restype = library.emulator_launched.restype = ctypes.c_uint64
        return cls(library)

    def run(self, function: str, *arguments: Memory | int | None, seed: int = 0) -> None:
        """Raises where a launch fails or a guard was written over."""
        memories = [a for a in arguments if isinstance(a, Memory)]
        c = ctypes.c_size_t
        for m in memories:
            at = ctypes.c_void_p(m.array.ctypes.data)
            self.library.emulator_buffer(at, c(m.array.nbytes), c(m.array.itemsize), m.writable, m.written, c(GUARD))
        self.library.emulator_seed(ctypes.c_uint64(seed))
        code = getattr(self.library, function)(*map(_argument, arguments))
        self.library.emulator_forget_buffers(c(GUARD))
        if code:
            raise KernelError((self.library.emulator_error().decode() or f"error {code}") + self.place())
        if not all(m.guards_hold() for m in memories):
            raise KernelError("a guard was written over")

    def number(self, function: str, *arguments: int) -> int:
        """What a function on the host answers."""
        call = getattr(self.library, function)
        call.restype = ctypes.c_int64
        return int(call(*map(ctypes.c_int64, arguments)))

    def place(self) -> str:
        """Where in the source the access stands that failed."""
        at = self.library.emulator_error_address()
        if not at:
            return ""
        lines = [line for line in self.addr2line("-i", "-s", hex(at - 1)) if ":" in line and "?" not in line]
        return " at " + ", from ".join(lines)

    def launched(self) -> set[str]:
        """Names of the kernels that ran."""
        addresses = []
        while at := self.library.emulator_launched(ctypes.c_size_t(len(addresses))):
            addresses.append(hex(at))
        names = "\n".join(self.addr2line("-f", "-C", *addresses))
        return set(re.findall(r"(\w+_kernel)\b", names))

    def addr2line(self, *arguments: str) -> list[str]:
        command = ["addr2line", "-e", self.library._name, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def _argument(a: Memory | int | None) -> Any:
    if isinstance(a, Memory):
        return ctypes.c_void_p(a.array.ctypes.data)
    return ctypes.c_void_p(None) if a is None else ctypes.c_int64(a)
