"""What `tamis aot` compiles of this family."""

from ..common.aot import CudaVariant, TritonVariant
from ..common.launch import launch

FORMATS = {"fp32": "Float32", "fp64": "Float64", "fp16": "Float16", "bf16": "BFloat16"}
BYTES = {"bf16": 2, "fp32": 4, "fp16": 2, "fp64": 8}
KERNELS = ("topk_row_kernel", "topk_digits_kernel", "topk_count_kernel", "topk_write_kernel", "topk_sort_kernel")


def _gaussian(kernel: str, dtype: str) -> TritonVariant:
    options = launch(BYTES[dtype])
    types: dict[str, str | None] = dict.fromkeys(("x", "grad", "out"), f"*{dtype}")
    constants = {name: options[name] for name in ("LANES", "VECTOR")}
    return TritonVariant(
        "triton_gaussian", kernel, dtype, dtype, types, constants, options["num_warps"], options["maxnreg"]
    )


VARIANTS: list[TritonVariant | CudaVariant] = [
    *(_gaussian(kernel, dtype) for kernel in ("gaussian_topk_kernel", "gaussian_topk_backward_kernel")
      for dtype in BYTES),
    *(CudaVariant("cuda.cuh", kernel, dtype, dtype, f"tamis::cuda::{kernel}<tamis::cuda::{spelled}>", threads=512)
      for kernel in KERNELS for dtype, spelled in FORMATS.items()),
]  # fmt: skip
