// Kernels that are wrong on purpose, each in one way, and beside each the right one: `broken` chooses.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include "export.h"

extern __shared__ unsigned char tamis_dynamic_shared[];

namespace {

constexpr unsigned kThreads = 64;

template <class... P, class... A>
int launch_on(cudaStream_t stream, size_t shared, void (*kernel)(P...), unsigned blocks, A... arguments) {
  cudaLaunchConfig_t config{};
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}
template <class... P, class... A>
int launch_with(size_t shared, void (*kernel)(P...), unsigned blocks, A... arguments) {
  return launch_on(caller_stream, shared, kernel, blocks, arguments...);
}
template <class... P, class... A>
int launch(void (*kernel)(P...), unsigned blocks, A... arguments) {
  return launch_with(0, kernel, blocks, arguments...);
}

// Turns each block's kThreads numbers round.
__global__ void reverse_kernel(const int* x, int* y, bool broken) {
  __shared__ int memory[kThreads];
  const unsigned t = threadIdx.x, first = blockIdx.x * kThreads;
  memory[t] = x[first + t];
  if (!broken) __syncthreads();
  y[first + t] = memory[kThreads - 1 - t];
}

// The same memory twice: without the second barrier, written while others still read.
__global__ void reuse_kernel(const int* x, int* y, bool broken) {
  __shared__ int memory[kThreads];
  const unsigned t = threadIdx.x;
  for (int turn = 0; turn < 2; ++turn) {
    memory[t] = x[turn * kThreads + t];
    __syncthreads();
    y[turn * kThreads + t] = memory[(t + 1) % kThreads];
    if (!broken) __syncthreads();
  }
}

// A warp's own memory: __syncwarp is enough, a shuffle is not.
__global__ void warp_kernel(const int* x, int* y, bool broken) {
  __shared__ int memory[kThreads];
  const unsigned t = threadIdx.x;
  memory[t] = x[t];
  if (broken) {
    (void)__shfl_up_sync(~0u, 0, 1);
  } else {
    __syncwarp();
  }
  y[t] = memory[t ^ 31];
}

__global__ void divergent_barrier_kernel(int* y, bool broken) {
  if (!broken || threadIdx.x % 2) __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ void two_barriers_kernel(int* y, bool broken) {
  if (broken && threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1;
}

__global__ void divergent_warp_kernel(int* y, bool broken) {
  if (!broken || threadIdx.x != 3) __syncwarp();
  y[threadIdx.x] = 1;
}

__global__ void tail_kernel(const int* x, int* y, int64_t n, bool broken) {
  const int64_t t = threadIdx.x;
  if (t < n + broken) y[t] = x[t < n ? t : 0];
}

__global__ void read_tail_kernel(const int* x, int* y, int64_t n, bool broken) {
  const int64_t t = threadIdx.x;
  if (t < n) y[t] = x[t + broken];
}

struct alignas(16) Four {
  int lane[4];
};
__global__ void vector_kernel(const int* x, int* y, bool broken) {
  const unsigned t = threadIdx.x;
  if (t > 1) return;
  Four v = reinterpret_cast<const Four*>(x + broken)[t];
  for (int& lane : v.lane) ++lane;
  reinterpret_cast<Four*>(y)[t] = v;
}

__global__ void unwritten_kernel(int* y, bool broken) {
  __shared__ int memory[kThreads];
  if (!broken || threadIdx.x != 5) memory[threadIdx.x] = 7;
  y[threadIdx.x] = memory[threadIdx.x];
}

// Turns numbers round in the launch's own shared memory. wrong: 1 a barrier lacks, 2 it ends one number before, 3 it
// begins one behind.
__global__ void dynamic_kernel(int* y, int wrong) {
  int* const memory = reinterpret_cast<int*>(tamis_dynamic_shared) + (wrong == 2 ? 1 : wrong == 3 ? -1 : 0);
  const unsigned t = threadIdx.x;
  memory[t] = 7;
  if (wrong != 1) __syncthreads();
  y[t] = memory[kThreads - 1 - t];
}

// Two blocks, one element.
__global__ void blocks_kernel(int* y, bool broken) {
  if (threadIdx.x == 0) y[broken ? 0 : blockIdx.x] = 1;
}

__global__ void input_kernel(int* x, int* y, bool broken) {
  y[threadIdx.x] = x[threadIdx.x];
  if (broken) x[threadIdx.x] = 0;
}

// Sums by atomics: of floats they depend on the order.
__global__ void sum_kernel(const float* x, const unsigned* n, float* sum, unsigned* count) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  atomicAdd(sum, x[i]);
  atomicAdd(count, n[i]);
}

__global__ void running_sum_kernel(const unsigned* x, unsigned* y) {  // of a warp
  unsigned sum = x[threadIdx.x];
  for (unsigned step = 1; step < 32; step *= 2) {
    const unsigned other = __shfl_up_sync(~0u, sum, step);
    if (threadIdx.x % 32 >= step) sum += other;
  }
  y[threadIdx.x] = sum;
}

__global__ void crossed_kernel(const unsigned* x, unsigned* y) {
  y[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x], 5);
}

}  // namespace

EXPORT int reverse(const void* x, void* y, int64_t blocks, int64_t broken) {
  return launch(reverse_kernel, unsigned(blocks), static_cast<const int*>(x), static_cast<int*>(y), broken);
}
#define FROM_TO(name)                                                                          \
  EXPORT int name(const void* x, void* y, int64_t broken) {                                    \
    return launch(name##_kernel, 1, static_cast<const int*>(x), static_cast<int*>(y), broken); \
  }
#define TO(name, blocks) \
  EXPORT int name(void* y, int64_t broken) { return launch(name##_kernel, blocks, static_cast<int*>(y), broken); }
#define DYNAMIC(name, wrong)                                                                       \
  EXPORT int name(void* y, int64_t broken) {                                                       \
    return launch_with(kThreads * 4, dynamic_kernel, 1, static_cast<int*>(y), broken ? wrong : 0); \
  }
#define TAIL(name)                                                                                \
  EXPORT int name(const void* x, void* y, int64_t n, int64_t broken) {                            \
    return launch(name##_kernel, 1, static_cast<const int*>(x), static_cast<int*>(y), n, broken); \
  }
FROM_TO(reuse)
FROM_TO(warp)
FROM_TO(vector)
TO(divergent_barrier, 1)
TO(two_barriers, 1)
TO(divergent_warp, 1)
TO(unwritten, 1)
TO(blocks, 2)
DYNAMIC(dynamic_race, 1)
DYNAMIC(dynamic_end, 2)
DYNAMIC(dynamic_begin, 3)
TAIL(tail)
TAIL(read_tail)
EXPORT int input(void* x, void* y, int64_t broken) {
  return launch(input_kernel, 1, static_cast<int*>(x), static_cast<int*>(y), broken);
}
EXPORT int stream(void* y, int64_t broken) {
  return launch_on(broken ? nullptr : caller_stream, 0, unwritten_kernel, 1, static_cast<int*>(y), false);
}
EXPORT int stream_of_fill(void* y, int64_t broken) {
  return cudaMemsetAsync(y, 0, 64, broken ? nullptr : caller_stream);
}
EXPORT int sum(const void* x, const void* n, void* sum, void* count, int64_t blocks) {
  return launch(sum_kernel, unsigned(blocks), static_cast<const float*>(x), static_cast<const unsigned*>(n),
                static_cast<float*>(sum), static_cast<unsigned*>(count));
}
EXPORT int dynamic_of(int64_t asked, int64_t bytes, void* y) {
  if (asked) {
    const void* const name = reinterpret_cast<const void*>(dynamic_kernel);
    const auto which = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (const cudaError_t error = cudaFuncSetAttribute(name, which, int(asked))) return error;
  }
  return launch_with(size_t(bytes), dynamic_kernel, 1, static_cast<int*>(y), 0);
}
EXPORT int running_sum(const void* x, void* y) {
  return launch(running_sum_kernel, 1, static_cast<const unsigned*>(x), static_cast<unsigned*>(y));
}

EXPORT int crossed(const void* x, void* y) {
  return launch(crossed_kernel, 1, static_cast<const unsigned*>(x), static_cast<unsigned*>(y));
}

// The stand-ins' roundings, for numpy to check.
EXPORT void half_to_float(const uint16_t* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = __half2float({x[i]});
}
EXPORT void float_to_half(const float* x, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = __float2half_rn(x[i]).bits;
}
EXPORT void bfloat16_to_float(const uint16_t* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = __bfloat162float({x[i]});
}
EXPORT void float_to_bfloat16(const float* x, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = __float2bfloat16_rn(x[i]).bits;
}
