"""How a kernel that walks rows of logits is launched, for pysrc/tamis/distill/cuda.py and `tamis aot` alike."""

from collections.abc import Mapping

LANES, WARPS = 256, 8  # of a block of classes
JSD = 2  # its divergence's number
# By VECTOR: a thread may have; left alone, ptxas spills some to fit more programs.
REGISTERS = {8: 128, 4: 80, 2: 160}
ENTRIES_REGISTERS = {8: 128, 4: 128, 2: 160}  # of topk_distill_loss_kernel


def launch(element: int, divergence: int = 0, registers: Mapping[int, int] = REGISTERS) -> dict[str, int]:
    """element: bytes of the wider dtype, of which a lane loads 128 bits at once."""
    vector = 16 // element
    # float64 and jsd's two logarithms take more registers: half the threads, twice the programs.
    half = 2 if vector == 2 or (vector == 8 and divergence == JSD) else 1
    return {"LANES": LANES // half, "VECTOR": vector, "num_warps": WARPS // half, "maxnreg": registers[vector]}
