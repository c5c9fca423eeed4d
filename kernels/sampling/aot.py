"""What `tamis aot` compiles of this family."""

from ..common.aot import CudaVariant, TritonVariant
from .aot_draw import DRAW_VARIANTS
from .aot_stats import STATS_VARIANTS

VARIANTS: list[TritonVariant | CudaVariant] = [*STATS_VARIANTS, *DRAW_VARIANTS]
