// Launches of decoding's kernels, a file of its own: 20 kernels.
#include "kernels/sparse_mlp/cuda_decode.cuh"
#include "launch.h"
#include "sparse_mlp_cuda.h"

namespace tamis {
namespace {

template <class T>
struct TypeOf {
  using type = T;
};

template <class Use>
cudaError_t with_type(Dtype dtype, const Use& use) {
  switch (dtype) {
    case f32:
      return use(TypeOf<float>());
    case f64:
      return use(TypeOf<double>());
    case f16:
      return use(TypeOf<__half>());
    default:
      return use(TypeOf<__nv_bfloat16>());
  }
}

template <class T>
auto project_of(int64_t tokens) {
  return tokens == 1   ? cuda::project_kernel<T, 1>
         : tokens == 2 ? cuda::project_kernel<T, 2>
         : tokens <= 4 ? cuda::project_kernel<T, 4>
                       : cuda::project_kernel<T, 8>;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

cudaError_t launch_project(Dtype dtype, const Project& op, cudaStream_t stream) {
  const int64_t blocks = ceil_div(op.d_ff, (op.gate.w ? cuda::kRows / 2 : cuda::kRows) * cuda::kProjectWarps);
  if (op.tokens < 1 || op.tokens > kDecodeTokens || op.d_ff < 1 || blocks > INT32_MAX) return cudaErrorInvalidValue;
  return with_type(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using R = cuda::Real<T>;
    const auto layer = [](const Projection& p) {
      return cuda::Layer<T>{static_cast<const T*>(p.w), p.stride, static_cast<const T*>(p.bias)};
    };
    return launch(project_of<T>(op.tokens), dim3(static_cast<unsigned>(blocks)), cuda::kProjectThreads, stream,
                  static_cast<const T*>(op.x), static_cast<int>(op.tokens), op.d, layer(op.up), layer(op.gate), op.d_ff,
                  op.activation, static_cast<R*>(op.hidden), static_cast<R*>(op.rank));
  });
}

cudaError_t launch_gather_rows(Dtype dtype, const GatherRows& op, cudaStream_t stream) {
  if (op.tokens > 65535 || op.columns > INT32_MAX || op.k < 1 || op.k > op.d_ff || (!op.index && op.k != op.d_ff))
    return cudaErrorInvalidValue;
  if (op.tokens == 0 || op.columns == 0) return cudaSuccess;
  return with_type(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const dim3 grid(static_cast<unsigned>(ceil_div(op.columns, cuda::kColumns<T>)), static_cast<unsigned>(op.tokens));
    return launch(cuda::gather_rows_kernel<T>, grid, cuda::kThreads, stream,
                  static_cast<const cuda::Real<T>*>(op.hidden), op.index, op.k, op.d_ff, static_cast<const T*>(op.w),
                  op.stride, op.columns, static_cast<const T*>(op.bias), static_cast<T*>(op.out));
  });
}

}  // namespace tamis
