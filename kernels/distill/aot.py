"""What `tamis aot` compiles of this family."""

from dataclasses import replace
from typing import Any

from ..common.aot import Constant, CudaVariant, TritonVariant
from .launch import ENTRIES_REGISTERS, launch

BYTES = {"bf16": 2, "fp32": 4, "fp16": 2, "fp64": 8}
# in the kernels' order
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "total_variation", "logit_mse", "alone", "soft")
STAGES = ("sum", "compare", "gradient")  # of a tile
FLAGS = ("HAS_TARGET", "HAS_WEIGHT", "GRADIENT", "HARD", "SMOOTH", "STUDENT_CAP", "TEACHER_CAP")
FEATURES = {
    "full": FLAGS,  # first: what the tests compile
    "plain": ("GRADIENT",),  # teacher only
    "value": ("HAS_TARGET", "HARD"),  # no gradient
    "alone": ("HAS_TARGET", "HAS_WEIGHT", "GRADIENT", "SMOOTH", "STUDENT_CAP", "TEACHER_CAP"),
    "soft": ("HAS_WEIGHT", "GRADIENT"),
}
SPELLED = {"fp32": "float", "fp64": "double", "fp16": "__half", "bf16": "__nv_bfloat16"}  # in C++
ROWS = {
    "forward_kl": "kForwardKl", "reverse_kl": "kReverseKl", "jsd": "kJsd", "total_variation": "kTotalVariation",
    "logit_mse": "kLogitMse", "alone": "kAlone",
}  # fmt: skip
# The longest rows of the architectures whose blocks have least, 99 KiB, beside the kernel's own 576 bytes.
ROWS_SHARED = 99 * 1024 - 576
STATS = (
    "teacher_logsumexp", "student_logsumexp", "teacher_entropy", "student_entropy", "teacher_max_prob",
    "student_max_prob", "teacher_log_odds", "student_log_odds",
)  # fmt: skip


def _real(dtype: str) -> str:
    return "*fp64" if dtype == "fp64" else "*fp32"


def _launched(variant: TritonVariant, **chosen: Any) -> TritonVariant:
    options = launch(**chosen)
    constants = {name: options[name] for name in ("LANES", "VECTOR")} | dict(variant.constants)
    return replace(variant, constants=constants, warps=options["num_warps"], registers=options["maxnreg"])


def _on(divergence: str, features: str = "full") -> tuple[str, ...]:
    """The flags that are on."""
    return FEATURES[divergence if divergence in FEATURES else features]


def _row_types(student: str, on: tuple[str, ...], divergence: str) -> dict[str, str | None]:
    """Of what the losses' kernels have in common."""
    real = _real(student)
    given = None if divergence == "soft" else real
    return {
        "student": f"*{student}",
        "temperature": given,
        "alpha": given,
        "target": "*i64" if "HAS_TARGET" in on else None,
        "row_weight": real if "HAS_WEIGHT" in on else None,
        "gradient_scale": "*fp64",
        "loss": real,
        "gradient": f"*{student}" if "GRADIENT" in on else None,
    }


def _loss(student: str, teacher: str, features: str = "full", divergence: str = "forward_kl") -> TritonVariant:
    on, kind = _on(divergence, features), DIVERGENCES.index(divergence)
    variant = TritonVariant(
        module="triton_kernels",
        kernel="distill_loss_kernel",
        dtype=student,
        label=f"{student}-{teacher}-{divergence}-{features}",
        types=_row_types(student, on, divergence) | {"teacher": f"*{teacher}"},
        constants={flag: flag in on for flag in FLAGS} | {"DIVERGENCE": kind},
    )
    return _launched(variant, element=max(BYTES[student], BYTES[teacher]), divergence=kind)


def _topk(student: str, divergence: str = "forward_kl") -> TritonVariant:
    on, kind = _on(divergence), DIVERGENCES.index(divergence)
    bucket = divergence != "soft"
    own: dict[str, str | None] = {
        "values": f"*{student}",
        "indices": "*i64",
        "logsumexp": _real(student) if bucket else None,
        "flags": "*i32",
        "scratch": _real(student),
    }
    variant = TritonVariant(
        module="triton_topk",
        kernel="topk_distill_loss_kernel",
        dtype=student,
        label=f"{student}-{divergence}",
        types=_row_types(student, on, divergence) | own,
        constants={flag: flag in on for flag in FLAGS} | {"BUCKET": bucket, "DIVERGENCE": kind},
    )
    return _launched(variant, element=BYTES[student], divergence=kind, registers=ENTRIES_REGISTERS)


def _tile(dtype: str, divergence: str, stage: str) -> TritonVariant:
    on, kind, real = _on(divergence), DIVERGENCES.index(divergence), _real(dtype)
    types = _row_types(dtype, on, divergence) | {"teacher": f"*{dtype}", "state": real, "grad": real}
    if stage != "gradient":
        types |= {"gradient_scale": None, "grad": None}
    variant = TritonVariant(
        module="triton_tile",
        kernel="distill_tile_kernel",
        dtype=dtype,
        label=f"{dtype}-{divergence}-{stage}",
        types=types,
        constants={flag: flag in on for flag in FLAGS if flag != "GRADIENT"}
        | {"DIVERGENCE": kind, "STAGE": STAGES.index(stage)},
    )
    return _launched(variant, element=BYTES[dtype], divergence=kind)


def _stats(dtype: str) -> TritonVariant:
    variant = TritonVariant(
        module="triton_stats",
        kernel="deviation_stats_kernel",
        dtype=dtype,
        label=f"{dtype}-{dtype}",
        types=dict.fromkeys(STATS, _real(dtype))
        | {"student": f"*{dtype}", "teacher": f"*{dtype}", "teacher_argmax": "*i64", "student_argmax": "*i64"}
        | {"agree": "*i1"},
        constants={"STUDENT_CAP": False, "TEACHER_CAP": False},
    )
    return _launched(variant, element=BYTES[dtype])


def _divisor(dtype: str) -> TritonVariant:
    types: dict[str, str | None] = {"target": "*i64", "row_weight": f"*{dtype}", "items": "*fp64", "out": "*fp64"}
    constants: dict[str, Constant] = {"BLOCK": 1024, "HAS_TARGET": True, "HAS_WEIGHT": True, "HAS_ITEMS": True}
    return TritonVariant("triton_reduce", "divisor_kernel", dtype, dtype, types, constants)


def _row_sum(dtype: str) -> TritonVariant:
    types: dict[str, str | None] = {"loss": f"*{dtype}", "divisor": "*fp64", "out": f"*{dtype}"}
    return TritonVariant("triton_reduce", "row_sum_kernel", dtype, dtype, types, {"BLOCK": 1024})


def _scale_rows(dtype: str) -> CudaVariant:
    spelled = f"tamis::cuda::scale_rows_kernel<{SPELLED[dtype]}>"
    return CudaVariant("cuda.cuh", "scale_rows_kernel", dtype, dtype, spelled, threads=256)


def _rows(dtype: str, divergence: str) -> CudaVariant:
    spelled = f"tamis::cuda::distill_rows_kernel<{SPELLED[dtype]}, tamis::{ROWS[divergence]}>"
    label = f"{dtype}-{divergence}"
    return CudaVariant("cuda_rows.cuh", "distill_rows_kernel", dtype, label, spelled, threads=512, dynamic=ROWS_SHARED)


VARIANTS: list[TritonVariant | CudaVariant] = [
    *(_loss(dtype, dtype, "full", divergence) for divergence in DIVERGENCES for dtype in ("bf16", "fp32", "fp64")),
    *(_loss(dtype, dtype, features) for dtype in ("bf16", "fp32") for features in ("plain", "value")),
    *(_loss(*dtypes) for dtypes in (("fp16", "fp16"), ("bf16", "fp32"), ("fp32", "bf16"))),
    *(_topk(dtype, divergence) for divergence in DIVERGENCES if divergence not in ("logit_mse", "alone")
      for dtype in ("bf16", "fp32")),
    _topk("fp16"),
    _topk("fp64"),
    *(_tile(dtype, divergence, "gradient") for divergence in DIVERGENCES[:-1] for dtype in ("bf16", "fp32")),
    *(_tile(dtype, *which) for which in (("forward_kl", "sum"), ("jsd", "compare")) for dtype in ("bf16", "fp32")),
    _tile("fp16", "forward_kl", "gradient"),
    _tile("fp64", "jsd", "gradient"),
    *(_stats(dtype) for dtype in BYTES),
    *(make(dtype) for make in (_divisor, _row_sum) for dtype in ("fp32", "fp64")),
    *(_scale_rows(dtype) for dtype in SPELLED),
    *(_rows(dtype, divergence) for divergence in ROWS for dtype in ("fp32", "fp16", "bf16")),
]  # fmt: skip
