"""What `tamis aot` compiles of this family."""

from ..common.aot import CudaVariant, TritonVariant
from .aot_stats import STATS_VARIANTS

VARIANTS: list[TritonVariant | CudaVariant] = [*STATS_VARIANTS]
