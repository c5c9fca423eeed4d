// Launches of distill_rows_kernel, a file of its own: 18 kernels.
#include "kernels/distill/cuda_rows.cuh"
#include "distill_cuda.h"
#include "launch.h"

namespace tamis {
namespace {

using Kernel = void (*)(cuda::DistillRows);

template <class T>
Kernel kernel_of(Divergence divergence) {
  switch (divergence) {
    case kForwardKl:
      return cuda::distill_rows_kernel<T, kForwardKl>;
    case kReverseKl:
      return cuda::distill_rows_kernel<T, kReverseKl>;
    case kJsd:
      return cuda::distill_rows_kernel<T, kJsd>;
    case kTotalVariation:
      return cuda::distill_rows_kernel<T, kTotalVariation>;
    case kLogitMse:
      return cuda::distill_rows_kernel<T, kLogitMse>;
    case kAlone:
      return cuda::distill_rows_kernel<T, kAlone>;
    default:
      return nullptr;
  }
}

Kernel kernel_of(Dtype dtype, Divergence divergence) {
  switch (dtype) {
    case f32:
      return kernel_of<float>(divergence);
    case f16:
      return kernel_of<__half>(divergence);
    case bf16:
      return kernel_of<__nv_bfloat16>(divergence);
    default:
      return nullptr;
  }
}

}  // namespace

int64_t distill_rows_shared(Dtype dtype, Divergence divergence, int64_t classes) {
  const int64_t slices = dtype == f32 ? cuda::most_slices<float>(classes) : cuda::most_slices<__half>(classes);
  return 16 * slices * (divergence == kAlone ? 1 : 2);
}

cudaError_t launch_distill_rows(Dtype dtype, Divergence divergence, const cuda::DistillRows& op, int64_t blocks,
                                cudaStream_t stream) {
  const Kernel kernel = kernel_of(dtype, divergence);
  const int64_t shared = distill_rows_shared(dtype, divergence, op.student.classes);
  if (!kernel || blocks < 1 || blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (shared > INT32_MAX) return cudaErrorInvalidValue;  // equivalent: comparison: it is even
  if (op.rows == 0) return cudaSuccess;                  // equivalent: check: nothing is walked
  return launch_with(static_cast<size_t>(shared), kernel, dim3(static_cast<unsigned>(blocks)), cuda::kThreads, stream,
                     op);
}

}  // namespace tamis
