"""What `tamis aot` compiles of this family."""

from ..common.aot import CudaVariant

FORMATS = {"fp32": "Float32", "fp64": "Float64", "fp16": "Float16", "bf16": "BFloat16"}
KERNELS = ("topk_row_kernel", "topk_digits_kernel", "topk_count_kernel", "topk_write_kernel", "topk_sort_kernel")

VARIANTS = [
    CudaVariant("cuda.cuh", kernel, dtype, dtype, f"tamis::cuda::{kernel}<tamis::cuda::{spelled}>", threads=512)
    for kernel in KERNELS
    for dtype, spelled in FORMATS.items()
]
