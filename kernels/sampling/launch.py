"""How a kernel that walks examples is launched, for pysrc/tamis/sampling/draw_cuda.py and `tamis aot` alike."""

from typing import Any

BLOCK, WARPS = 1024, 4  # examples a program
OPTIONS: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": False}  # the same bits as on any CPU
