// Stands in for CUDA's header where g++ compiles a kernel for the CPU: what our kernels use, and no more.
#pragma once
#include <math.h>
#include <cstdint>
#include <cstring>
#include <tuple>
#include "../emulator.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One block runs at a time, on one thread of the system; as thread-local, all of it lies in one place (memory.cpp).
// Within a function that is static, too.
#define __shared__ thread_local

using dim3 = emulator::Dim;
static constexpr const dim3 &threadIdx = emulator::here.thread, &blockIdx = emulator::here.block,
                            &blockDim = emulator::here.block_dim, &gridDim = emulator::here.grid_dim;

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

// Threads of a block and of a warp.

inline void __syncthreads(emulator::Site site = emulator::Site()) { emulator::block_barrier(site); }
inline void __syncwarp(unsigned mask = ~0u, emulator::Site site = emulator::Site()) {
  emulator::warp_barrier(site, mask);
}

namespace emulator {
template <class T>
T shuffled(uint64_t (*shuffle)(Site, unsigned, uint64_t, unsigned), Site site, unsigned mask, T x, unsigned by) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof(T));
  bits = shuffle(site, mask, bits, by);
  memcpy(&x, &bits, sizeof(T));
  return x;
}
}  // namespace emulator

template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned delta, emulator::Site site = emulator::Site()) {
  return emulator::shuffled(emulator::shuffle_up, site, mask, x, delta);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, unsigned lanes, emulator::Site site = emulator::Site()) {
  return emulator::shuffled(emulator::shuffle_xor, site, mask, x, lanes);
}

inline unsigned atomicAdd(unsigned* to, unsigned x) { return emulator::atomic_add(to, x); }
inline unsigned long long atomicAdd(unsigned long long* to, unsigned long long x) {
  return emulator::atomic_add(to, x);
}
inline float atomicAdd(float* to, float x) { return emulator::atomic_add(to, x); }

// Launches.

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
using cudaStream_t = struct Stream*;
static const cudaStream_t caller_stream = static_cast<cudaStream_t>(emulator::kStream);
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A... arguments) {
  using Call = std::pair<void (*)(P...), std::tuple<P...>>;
  Call call(kernel, std::tuple<P...>(arguments...));
  const auto thread = [](void* p) { std::apply(static_cast<Call*>(p)->first, static_cast<Call*>(p)->second); };
  const void* const name = reinterpret_cast<const void*>(kernel);
  return emulator::on_stream(config->stream) && emulator::launch(name, config->gridDim, config->blockDim,
                                                                 config->dynamicSmemBytes, thread, &call, sizeof(call))
             ? cudaSuccess
             : cudaErrorLaunchFailure;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  return emulator::allow_dynamic(kernel, size_t(bytes)) ? cudaSuccess : cudaErrorInvalidValue;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return emulator::on_stream(stream) && emulator::fill(to, value, bytes) ? cudaSuccess : cudaErrorInvalidValue;
}
