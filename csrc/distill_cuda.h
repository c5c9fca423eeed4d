// What distill_cuda.cpp calls and distill.cu holds. No torch, and no CUDA but the stream's type.
#pragma once
#include <cuda_runtime_api.h>
#include <stdint.h>
#include "kernels/common/matrix.h"

namespace tamis {

// out = gradient * grad[row * grad_step] * factor; gradient, out [rows, classes] side by side, of dtype; grad, factor
// float, or double for f64. out may be gradient.
cudaError_t launch_scale_rows(Dtype dtype, const void* gradient, const void* grad, const void* factor, void* out,
                              int64_t rows, int64_t classes, int64_t grad_step, cudaStream_t stream);

}  // namespace tamis
