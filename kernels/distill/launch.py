"""How the losses' kernels are launched, for pysrc/tamis/distill/cuda.py and `tamis aot` alike."""

from collections.abc import Mapping

from ..common.launch import REGISTERS
from ..common.launch import launch as launch_rows

JSD = 2  # its divergence's number
ENTRIES_REGISTERS = {8: 128, 4: 128, 2: 160}  # of topk_distill_loss_kernel


def launch(element: int, divergence: int = 0, registers: Mapping[int, int] = REGISTERS) -> dict[str, int]:
    """jsd's two logarithms take more registers in half precision."""
    return launch_rows(element, element == 2 and divergence == JSD, registers)
