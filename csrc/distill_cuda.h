// What distill_cuda.cpp calls and distill.cu holds. No torch, and no CUDA but the stream's type.
#pragma once
#include <cuda_runtime_api.h>
#include <stdint.h>
#include "kernels/common/matrix.h"
#include "kernels/distill/cuda_rows.h"

namespace tamis {

// out = gradient * grad[row * grad_step] * factor; gradient, out [rows, classes] side by side, of dtype; grad, factor
// float, or double for f64. out may be gradient.
cudaError_t launch_scale_rows(Dtype dtype, const void* gradient, const void* grad, const void* factor, void* out,
                              int64_t rows, int64_t classes, int64_t grad_step, cudaStream_t stream);

// Both rows in a block's shared memory: bytes that a launch asks for.
int64_t distill_rows_shared(Dtype dtype, Divergence divergence, int64_t classes);
// Of one dtype, f32, f16 or bf16, student, teacher and gradient; cudaErrorInvalidValue for others, and where the rows
// do not fit. blocks: that walk the rows.
cudaError_t launch_distill_rows(Dtype dtype, Divergence divergence, const cuda::DistillRows& op, int64_t blocks,
                                cudaStream_t stream);

}  // namespace tamis
