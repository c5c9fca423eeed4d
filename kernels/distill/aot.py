"""What `tamis aot` compiles of this family."""

from ..common.aot import Constant, CudaVariant, TritonVariant

VECTOR = {"fp32": 4, "bf16": 8, "fp16": 8, "fp64": 2}  # 128 bits
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


def _warps(dtype: str) -> int:  # as pysrc/tamis/distill/cuda.py launches them
    return 4 if dtype == "fp64" else 8


def _loss(student: str, teacher: str, features: str) -> TritonVariant:
    on = FEATURES[features]
    constants: dict[str, Constant] = {"LANES": 32 * _warps(student), "VECTOR": min(VECTOR[student], VECTOR[teacher])}
    real = _real(student)
    return TritonVariant(
        module="triton_kernels",
        kernel="distill_loss_kernel",
        dtype=student,
        label=f"{student}-{teacher}-{features}",
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
        constants=constants | {flag: flag in on for flag in FLAGS} | {"DIVERGENCE": 0},
        warps=_warps(student),
    )


def _stats(dtype: str) -> TritonVariant:
    return TritonVariant(
        module="triton_stats",
        kernel="deviation_stats_kernel",
        dtype=dtype,
        label=f"{dtype}-{dtype}",
        types=dict.fromkeys(STATS, _real(dtype))
        | {"student": f"*{dtype}", "teacher": f"*{dtype}", "teacher_argmax": "*i64", "student_argmax": "*i64"}
        | {"agree": "*i1"},
        constants={"LANES": 32 * _warps(dtype), "VECTOR": VECTOR[dtype], "STUDENT_CAP": False, "TEACHER_CAP": False},
        warps=_warps(dtype),
        registers=128,
    )


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
    *(_loss(dtype, dtype, features) for dtype in ("bf16", "fp32") for features in FEATURES),
    *(_loss(student, teacher, "full") for student, teacher in
      (("fp16", "fp16"), ("fp64", "fp64"), ("bf16", "fp32"), ("fp32", "bf16"))),
    *(_stats(dtype) for dtype in VECTOR),
    *(make(dtype) for make in (_divisor, _row_sum) for dtype in ("fp32", "fp64")),
    _scale_rows("fp32", "float"),
    _scale_rows("fp64", "double"),
    _scale_rows("fp16", "__half"),
    _scale_rows("bf16", "__nv_bfloat16"),
]  # fmt: skip
