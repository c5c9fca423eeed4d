"""How a kernel that walks rows of logits is launched, for the bindings and `tamis aot` alike."""

from collections.abc import Mapping

LANES, WARPS = 256, 8  # of a block of classes
# By VECTOR: a thread may have; left alone, ptxas spills some to fit more programs.
REGISTERS = {8: 128, 4: 80, 2: 160}


def launch(element: int, halved: bool = False, registers: Mapping[int, int] = REGISTERS) -> dict[str, int]:
    """element: bytes of the wider dtype, of which a lane loads 128 bits at once. halved: where a thread needs many
    registers, as float64 does: half the threads, twice the programs."""
    vector = 16 // element
    half = 2 if vector == 2 or halved else 1
    return {"LANES": LANES // half, "VECTOR": vector, "num_warps": WARPS // half, "maxnreg": registers[vector]}
