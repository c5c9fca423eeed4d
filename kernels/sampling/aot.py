"""What `tamis aot` compiles of this family."""

from ..common.aot import CudaVariant, TritonVariant
from .aot_draw import DRAW_VARIANTS

VARIANTS: list[TritonVariant | CudaVariant] = [*DRAW_VARIANTS]
