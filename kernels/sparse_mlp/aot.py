"""What `tamis aot` compiles of this family."""

from typing import Any

from ..common.aot import CudaVariant, TritonVariant
from ..common.launch import launch
from .launch import numbers, tiles

FORMATS = {"fp32": "Float32", "fp64": "Float64", "fp16": "Float16", "bf16": "BFloat16"}
BYTES = {"bf16": 2, "fp32": 4, "fp16": 2, "fp64": 8}
SPELLED = {"fp32": "float", "fp64": "double", "fp16": "__half", "bf16": "__nv_bfloat16"}  # in C++
KERNELS = ("topk_row_kernel", "topk_digits_kernel", "topk_count_kernel", "topk_write_kernel", "topk_sort_kernel")


def _gaussian(kernel: str, dtype: str) -> TritonVariant:
    options = launch(BYTES[dtype])
    types: dict[str, str | None] = dict.fromkeys(("x", "grad", "out"), f"*{dtype}")
    constants = {name: options[name] for name in ("LANES", "VECTOR")}
    return TritonVariant(
        "triton_gaussian", kernel, dtype, dtype, types, constants, options["num_warps"], options["maxnreg"]
    )


def _mlp(kernel: str, dtype: str, label: str, absent: tuple[str, ...] = (), **constants: Any) -> TritonVariant:
    """absent: pointers that are never read."""
    real = "*fp64" if dtype == "fp64" else "*fp32"
    types: dict[str, str | None] = dict.fromkeys(
        ("rank", "hidden", "weight", "weight_2", "up_at", "gate_at", "d_up", "d_gate"), real
    )
    types |= dict.fromkeys(("up", "gate", "b", "b_2", "bias", "out", "total", "grad", "w_down"), f"*{dtype}")
    types |= dict.fromkeys(("order", "begins", "chosen"), "*i64") | {"index": "*i32"} | dict.fromkeys(absent)
    options = numbers() if kernel in ("rank", "entries") else tiles(BYTES[dtype])
    warps = options.pop("num_warps")
    return TritonVariant(
        "triton_mlp", f"topk_mlp_{kernel}_kernel", dtype, f"{dtype}-{label}", types, constants | options, warps
    )


def _gather(dtype: str, label: str, absent: tuple[str, ...], terms: int = 1, *on: str) -> TritonVariant:
    flags = {flag: flag in on for flag in ("BY_NEURON", "BIAS", "TOTAL")}
    return _mlp("gather", dtype, label, absent, TERMS=terms, **flags)


def _layer(dtype: str) -> list[TritonVariant]:
    gelu_tanh, gelu, relu = 3, 2, 0  # of ACTIVATION; the first needs most
    return [
        _mlp("rank", dtype, "gated", GATED=True, ACTIVATION=gelu_tanh),
        _mlp("rank", dtype, "plain", ("gate",), GATED=False, ACTIVATION=gelu),
        _mlp("entries", dtype, "saved", GATED=True, SAVES=True, ACTIVATION=gelu_tanh),
        _mlp("entries", dtype, "plain", ("gate", "up_at", "gate_at"), GATED=False, SAVES=False, ACTIVATION=relu),
        _gather(dtype, "two", ("order", "begins", "bias", "total"), 2),
        _gather(dtype, "forward", ("order", "begins", "total"), 1, "BIAS"),
        _gather(dtype, "neurons", ("index", "bias"), 1, "BY_NEURON", "TOTAL"),
        _mlp("slope", dtype, "gated", GATED=True, ACTIVATION=gelu_tanh),
        _mlp("slope", dtype, "plain", ("gate_at", "d_gate"), GATED=False, ACTIVATION=relu),
    ]


def _project(dtype: str, tokens: int) -> CudaVariant:
    spelled = f"tamis::cuda::project_kernel<{SPELLED[dtype]}, {tokens}>"
    return CudaVariant("cuda_decode.cuh", "project_kernel", dtype, f"{dtype}-{tokens}", spelled, threads=128)


def _gather_rows(dtype: str) -> CudaVariant:
    spelled = f"tamis::cuda::gather_rows_kernel<{SPELLED[dtype]}>"
    return CudaVariant("cuda_decode.cuh", "gather_rows_kernel", dtype, dtype, spelled, threads=512)


VARIANTS: list[TritonVariant | CudaVariant] = [
    *(_gaussian(kernel, dtype) for kernel in ("gaussian_topk_kernel", "gaussian_topk_backward_kernel")
      for dtype in BYTES),
    *(variant for dtype in BYTES for variant in _layer(dtype)),
    *(CudaVariant("cuda.cuh", kernel, dtype, dtype, f"tamis::cuda::{kernel}<tamis::cuda::{spelled}>", threads=512)
      for kernel in KERNELS for dtype, spelled in FORMATS.items()),
    *(_project(dtype, tokens) for dtype in BYTES for tokens in (8, 4, 2, 1)),
    *(_gather_rows(dtype) for dtype in BYTES),
]  # fmt: skip
