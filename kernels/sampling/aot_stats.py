"""What `tamis aot` compiles of the statistics."""

from dataclasses import replace

from ..common.aot import TritonVariant
from .launch import launch_disagreement, launch_stats

BYTES = {"bf16": 2, "fp32": 4, "fp16": 2, "fp64": 8}
KINDS = ("entropy_term", "max_abs", "jsd")  # in the kernel's order
FLAGS = ("HAS_TARGET", "HAS_MASK", "CAP")
FEATURES = {"full": FLAGS, "plain": (), "target": ("HAS_TARGET",), "mask": ("HAS_MASK",)}  # full first: the tests' own
ROWS = ("temperature", "logsumexp", "entropy", "max_prob", "margin", "d_logsumexp", "d_entropy", "d_max_prob")
OF_TARGET = ("nll", "el2n", "d_nll")


def _launched(variant: TritonVariant, options: dict[str, int]) -> TritonVariant:
    constants = {name: options[name] for name in ("LANES", "VECTOR")} | dict(variant.constants)
    return replace(variant, constants=constants, warps=options["num_warps"], registers=options["maxnreg"])


def _stats(kernel: str, dtype: str, features: str = "full") -> TritonVariant:
    on, real = FEATURES[features], "*fp64" if dtype == "fp64" else "*fp32"
    has_target = "HAS_TARGET" in on
    types: dict[str, str | None] = {
        "logits": f"*{dtype}",
        "gradient": f"*{dtype}",
        "valid": "*i1" if "HAS_MASK" in on else None,
        "target": "*i64" if has_target else None,
        "argmax": "*i64",
    }
    types |= dict.fromkeys(ROWS, real) | dict.fromkeys(OF_TARGET, real if has_target else None)
    variant = TritonVariant(
        module="triton_stats",
        kernel=kernel,
        dtype=dtype,
        label=f"{dtype}-{features}",
        types=types,
        constants={flag: flag in on for flag in FLAGS},
    )
    return _launched(variant, launch_stats(BYTES[dtype]))


def _disagreement(a: str, b: str, kind: str) -> TritonVariant:
    number = KINDS.index(kind)
    variant = TritonVariant(
        module="triton_disagreement",
        kernel="disagreement_kernel",
        dtype=a,
        label=f"{a}-{b}-{kind}",
        types={"a": f"*{a}", "b": f"*{b}", "target": None if number else "*i64",
               "out": "*fp64" if a == "fp64" else "*fp32"},
        constants={"KIND": number},
    )  # fmt: skip
    return _launched(variant, launch_disagreement(max(BYTES[a], BYTES[b]), number))


STATS_VARIANTS: list[TritonVariant] = [
    *(_stats(kernel, dtype, features) for kernel in ("softmax_stats_kernel", "softmax_stats_backward_kernel")
      for dtype in ("bf16", "fp32") for features in FEATURES),
    *(_stats(kernel, dtype) for kernel in ("softmax_stats_kernel", "softmax_stats_backward_kernel")
      for dtype in ("fp16", "fp64")),
    *(_disagreement(dtype, dtype, kind) for kind in KINDS[::-1] for dtype in ("bf16", "fp32")),
    *(_disagreement(*dtypes, kind) for kind in ("jsd", "entropy_term")
      for dtypes in (("fp16", "fp16"), ("fp64", "fp64"), ("bf16", "fp32"))),
]  # fmt: skip
