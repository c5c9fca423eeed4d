// A block of threads, and what they add up together. In the same order always: equal bits whatever the schedule.
#pragma once
#include "device.cuh"

extern __shared__ __align__(
    16) unsigned char tamis_dynamic_shared[];  // what a launch adds; the emulator knows the name

namespace tamis::cuda {

constexpr int kThreads = 512, kWarp = 32, kWarps = kThreads / kWarp;  // of every block here

template <class N>
struct Sum {
  N before, all;  // of the threads before this one; of the block
};

template <class N>
__device__ inline Sum<N> block_sum(N x, N (&of_warp)[kWarps]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  N up_to = x;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const N other = __shfl_up_sync(~0u, up_to, step);
    if (lane >= step) up_to += other;
  }
  if (lane == kWarp - 1) of_warp[warp] = up_to;
  __syncthreads();
  Sum<N> sum = {N(up_to - x), 0};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) sum.before += of_warp[w];
    sum.all += of_warp[w];
  }
  __syncthreads();  // of_warp may be written again
  return sum;
}

struct Larger {  // a NaN is passed over
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Added {
  __device__ float operator()(float a, float b) const { return a + b; }
};

// Each of a thread's numbers, merged with those of all others: every thread has what comes out. of_warp may be written
// again once all have met at another barrier.
template <class Merge, int kCount>
__device__ inline void block_merge(const Merge& merge, float (&x)[kCount], float (&of_warp)[kWarps][kCount]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = merge(x[i], __shfl_xor_sync(~0u, x[i], step));
  }
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) of_warp[warp][i] = x[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = of_warp[lane % kWarps][i];
#pragma unroll
  for (int step = 1; step < kWarps; step *= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = merge(x[i], __shfl_xor_sync(~0u, x[i], step));
  }
}

}  // namespace tamis::cuda
