// Launches of the distill family's CUDA kernels. No torch header: seconds to compile, not a minute.
#include "kernels/distill/cuda.cuh"
#include "distill_cuda.h"
#include "launch.h"

namespace tamis {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kMaxGridY = 65535;

template <class T>
cudaError_t scale_rows(const void* gradient, const void* grad, const void* factor, void* out, int64_t rows,
                       int64_t classes, int64_t grad_step, cudaStream_t stream) {
  const int64_t per_block = kThreads * 4 * int64_t{16 / sizeof(T)};  // four vectors a thread
  if (!grad_step) classes *= rows, rows = 1;                         // one multiplier: one long row
  int64_t blocks = (classes + per_block - 1) / per_block;
  if (blocks > INT32_MAX) blocks = INT32_MAX;                    // equivalent: comparison: the same
  const int64_t together = rows < kMaxGridY ? rows : kMaxGridY;  // equivalent: comparison: the lesser
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(together));
  return launch(cuda::scale_rows_kernel<T>, grid, kThreads, stream, static_cast<const T*>(gradient),
                static_cast<const cuda::Real<T>*>(grad), static_cast<const cuda::Real<T>*>(factor),
                static_cast<T*>(out), rows, classes, grad_step);
}

}  // namespace

cudaError_t launch_scale_rows(Dtype dtype, const void* gradient, const void* grad, const void* factor, void* out,
                              int64_t rows, int64_t classes, int64_t grad_step, cudaStream_t stream) {
  if (rows == 0 || classes == 0) return cudaSuccess;  // an empty grid is an error
  switch (dtype) {
    case f32:
      return scale_rows<float>(gradient, grad, factor, out, rows, classes, grad_step, stream);
    case f64:
      return scale_rows<double>(gradient, grad, factor, out, rows, classes, grad_step, stream);
    case f16:
      return scale_rows<__half>(gradient, grad, factor, out, rows, classes, grad_step, stream);
    case bf16:
      return scale_rows<__nv_bfloat16>(gradient, grad, factor, out, rows, classes, grad_step, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace tamis
