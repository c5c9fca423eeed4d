"""How this family's kernels are launched, for pysrc/tamis/sampling and `tamis aot` alike."""

from typing import Any

from ..common.launch import REGISTERS
from ..common.launch import launch as launch_rows

BLOCK, WARPS = 1024, 4  # examples a program of the draws
OPTIONS: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": False}  # the same bits as on any CPU

JSD = 2  # its kind's number
FEW = {8: 80, 4: 80, 2: 160}  # so that a multiprocessor holds three programs of half precision, not two


def launch_stats(element: int) -> dict[str, int]:
    return launch_rows(element, registers=FEW)


def launch_disagreement(element: int, kind: int) -> dict[str, int]:
    """jsd's two logarithms take more registers in half precision."""
    halved = element == 2 and kind == JSD
    return launch_rows(element, halved, REGISTERS if halved else FEW)
