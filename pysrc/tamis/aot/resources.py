"""What a cubin takes and does, by the tools in the triton wheel."""

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Resources:
    registers: int  # a thread
    stack: int  # bytes a thread
    local: int
    shared: int  # bytes a block
    opcodes: dict[str, int]  # memory instructions: how often each stands in the code


def measure(cubin: Path, dynamic: int) -> Resources:
    """`dynamic`: bytes of shared memory that a launch adds."""
    usage = _tool("cuobjdump", "-res-usage", cubin)
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    if len(found) != 1:
        raise RuntimeError(f"tamis.aot: expected one kernel in {cubin}, got {len(found)}")
    registers, stack, shared, local = map(int, found[0])
    opcodes = Counter(re.findall(r"\b(?:LDG|STG|LDL|STL|LDS|STS)\.?[.\w]*", _tool("nvdisasm", "-c", cubin)))
    return Resources(registers, stack, local, shared + dynamic, dict(opcodes))


def _tool(name: str, *arguments: str | Path) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout
