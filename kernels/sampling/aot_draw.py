"""What `tamis aot` compiles of the draws."""

from ..common.aot import TritonVariant
from .launch import BLOCK, OPTIONS

_TYPES: dict[str, dict[str, str | None]] = {  # beside probs
    "coins_kernel": {"ids": "*i64", "drawn": "*i8"},
    "keys_kernel": {"ids": "*i64", "keys": "*i32"},
    "inverse_kernel": {"out": "*fp32"},
    "conditional_kernel": {"tau": "*fp32", "out": "*fp32"},
}
_WORDS: dict[str, str | None] = dict.fromkeys(("ids", "out0", "out1", "out2", "out3"), "*i64")


def _variant(kernel: str, dtype: str, types: dict[str, str | None], ids: bool = True) -> TritonVariant:
    return TritonVariant(
        module="triton_draw",
        kernel=kernel,
        dtype=dtype,
        label=dtype if ids else f"{dtype}-positions",
        types=types if ids else types | {"ids": None},
        constants={"BLOCK": BLOCK} | ({"HAS_IDS": ids} if "probs" in types and "ids" in types else {}),
        warps=OPTIONS["num_warps"],
        fusion=OPTIONS["enable_fp_fusion"],
    )


DRAW_VARIANTS = [
    *(_variant(kernel, dtype, types | {"probs": f"*{dtype}"}, ids) for kernel, types in _TYPES.items()
      for dtype in ("fp32", "fp64") for ids in (True, False) if ids or "ids" in types),
    _variant("words_kernel", "fp32", _WORDS),  # without floats; the tests compile this dtype
]  # fmt: skip
