"""How a kernel that walks rows of logits is launched, for pysrc/tamis/distill/cuda.py and `tamis aot` alike."""

LANES, WARPS = 256, 8  # of a block of classes
JSD = 2  # its divergence's number
REGISTERS = {8: 128, 4: 80, 2: 160}  # by VECTOR: a thread may have; left alone, ptxas spills some to fit more programs


def launch(element: int, divergence: int = 0) -> dict[str, int]:
    """element: bytes of the wider dtype, of which a lane loads 128 bits at once."""
    vector = 16 // element
    # float64 and jsd's two logarithms take more registers: half the threads, twice the programs.
    half = 2 if vector == 2 or (vector == 8 and divergence == JSD) else 1
    return {"LANES": LANES // half, "VECTOR": vector, "num_warps": WARPS // half, "maxnreg": REGISTERS[vector]}
