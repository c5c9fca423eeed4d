// Number types of tensors, and what is computed with them.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace tamis::cuda {

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using Real = typename Accumulator<T>::type;

__device__ inline float load(const float& x) { return x; }
__device__ inline double load(const double& x) { return x; }
__device__ inline float load(const __half& x) { return __half2float(x); }
__device__ inline float load(const __nv_bfloat16& x) { return __bfloat162float(x); }
__device__ inline void store(float& to, float x) { to = x; }
__device__ inline void store(double& to, double x) { to = x; }
__device__ inline void store(__half& to, float x) { to = __float2half_rn(x); }
__device__ inline void store(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

}  // namespace tamis::cuda
