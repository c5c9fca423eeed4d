"""What `tamis aot` compiles of this family."""

from dataclasses import replace

from ..common.aot import Constant, CudaVariant, TritonVariant
from .launch import launch

BYTES = {"bf16": 2, "fp32": 4, "fp16": 2, "fp64": 8}
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "total_variation", "logit_mse", "alone")  # in the kernels' order
FLAGS = ("HAS_TARGET", "HAS_WEIGHT", "GRADIENT", "HARD", "SMOOTH", "STUDENT_CAP", "TEACHER_CAP")
FEATURES = {
    "full": FLAGS,  # first: what the tests compile
    "plain": ("GRADIENT",),  # teacher only
    "value": ("HAS_TARGET", "HARD"),  # no gradient
}
STATS = (
    "teacher_logsumexp", "student_logsumexp", "teacher_entropy", "student_entropy", "teacher_max_prob",
    "student_max_prob", "teacher_log_odds", "student_log_odds",
)  # fmt: skip


def _real(dtype: str) -> str:
    return "*fp64" if dtype == "fp64" else "*fp32"


def _launched(variant: TritonVariant, element: int, divergence: int = 0) -> TritonVariant:
    options = launch(element, divergence)
    constants = {name: options[name] for name in ("LANES", "VECTOR")} | dict(variant.constants)
    return replace(variant, constants=constants, warps=options["num_warps"], registers=options["maxnreg"])


def _loss(student: str, teacher: str, features: str = "full", divergence: str = "forward_kl") -> TritonVariant:
    on, kind, real = FEATURES[features], DIVERGENCES.index(divergence), _real(student)
    constants: dict[str, Constant] = {flag: flag in on for flag in FLAGS} | {"DIVERGENCE": kind}
    if divergence == "alone":
        constants["HARD"] = False
    variant = TritonVariant(
        module="triton_kernels",
        kernel="distill_loss_kernel",
        dtype=student,
        label=f"{student}-{teacher}-{divergence}-{features}",
        types={
            "student": f"*{student}",
            "teacher": f"*{teacher}",
            "temperature": real,
            "alpha": real,
            "target": "*i64" if "HAS_TARGET" in on else None,
            "row_weight": real if "HAS_WEIGHT" in on else None,
            "gradient_scale": "*fp64",
            "loss": real,
            "gradient": f"*{student}" if "GRADIENT" in on else None,
        },
        constants=constants,
    )
    return _launched(variant, max(BYTES[student], BYTES[teacher]), kind)


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
    return _launched(variant, BYTES[dtype])


def _divisor(dtype: str) -> TritonVariant:
    types: dict[str, str | None] = {"target": "*i64", "row_weight": f"*{dtype}", "items": "*fp64", "out": "*fp64"}
    constants: dict[str, Constant] = {"BLOCK": 1024, "HAS_TARGET": True, "HAS_WEIGHT": True, "HAS_ITEMS": True}
    return TritonVariant("triton_reduce", "divisor_kernel", dtype, dtype, types, constants)


def _row_sum(dtype: str) -> TritonVariant:
    types: dict[str, str | None] = {"loss": f"*{dtype}", "divisor": "*fp64", "out": f"*{dtype}"}
    return TritonVariant("triton_reduce", "row_sum_kernel", dtype, dtype, types, {"BLOCK": 1024})


def _scale_rows(dtype: str, spelled: str) -> CudaVariant:
    return CudaVariant("cuda.cuh", "scale_rows_kernel", dtype, dtype, f"tamis::cuda::scale_rows_kernel<{spelled}>")


VARIANTS: list[TritonVariant | CudaVariant] = [
    *(_loss(dtype, dtype, "full", divergence) for divergence in DIVERGENCES for dtype in BYTES),
    *(_loss(dtype, dtype, features) for dtype in ("bf16", "fp32") for features in ("plain", "value")),
    _loss("bf16", "fp32"),
    _loss("fp32", "bf16"),
    *(_stats(dtype) for dtype in BYTES),
    *(make(dtype) for make in (_divisor, _row_sum) for dtype in ("fp32", "fp64")),
    _scale_rows("fp32", "float"),
    _scale_rows("fp64", "double"),
    _scale_rows("fp16", "__half"),
    _scale_rows("bf16", "__nv_bfloat16"),
]  # fmt: skip
