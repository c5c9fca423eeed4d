// 1 to 8 tokens through a perceptron of which each uses k of d_ff neurons: decoding.
// Floor, in elements: d_ff * d of w_up, as many of w_gate, and of w_down at most tokens * k * columns; two operations a
// token for each. With d = columns = 2,048, d_ff = 8,192, k = 246 and bfloat16 that is 33.6 MB of w_up and 1.0 MB of
// w_down for one token; a dense layer reads 67.1. At most 8 operations a byte (8 tokens, bfloat16), where an A100 does
// 10 in fp32 in the time that it reads one, an H100 20: memory is the bound, and tensor cores would not help. Two
// kernels, and the row's selection (cuda.cuh) between them. What they hand on, hidden values in fp32, is 0.1% of a
// token's bytes, and comes from L2: one kernel of all would save no traffic, and either repeat the selection in each of
// w_down's blocks, or have them wait for all of w_up's.
#pragma once
#include "../common/block.cuh"
#include "../common/numbers.cuh"
#include "../common/row.cuh"
#include "activations.h"

namespace tamis::cuda {

constexpr int kProjectThreads = 128, kProjectWarps = kProjectThreads / kWarp;
constexpr int kRows = 4;  // of the matrices, that a warp reads at once: each number of x serves as many

__device__ inline float exp_of(float x) { return expf(x); }
__device__ inline double exp_of(double x) { return exp(x); }
__device__ inline float erf_of(float x) { return erff(x); }
__device__ inline double erf_of(double x) { return erf(x); }

template <class R>
__device__ inline R sigmoid(R x) {
  return 1 / (1 + exp_of(-x));
}

// kActivations: x as it is. NaN stays.
template <class R>
__device__ inline R activated(R x, Activation activation) {
  switch (activation) {
    case relu:
      return x < 0 ? R{0} : x;  // equivalent: comparison: 0 is 0
    case squared_relu:
      return x < 0 ? R{0} : x * x;  // equivalent: comparison: likewise
    case gelu:
      return x * (R(0.5) + R(0.5) * erf_of(x * R(0.70710678118654752)));
    case gelu_tanh:  // x * sigmoid(2u)
      return x * sigmoid(x * (R(1.59576912160573081) + R(0.0713548162726009) * x * x));
    case silu:
      return x * sigmoid(x);
    default:
      return x;
  }
}

// Whether all rows of a matrix, `stride` apart, begin at a multiple of 16 bytes; of none they do.
template <class T>
__device__ inline bool aligned_rows(const T* x, int64_t stride) {
  return past_of(x) == 0 && stride % kLanes<T> == 0;
}

template <class T>
struct Layer {
  const T* w;  // [d_ff, d], rows `stride` apart; null: no such matrix
  int64_t stride;
  const T* bias;  // [d_ff], or null
};

// hidden = activation(x w_gate^T + b_gate) * (x w_up^T + b_up), or without a gate activation(x w_up^T + b_up).
template <class T, int kTokens>
__global__ void __launch_bounds__(kProjectThreads)
    project_kernel(const T* x,             // [tokens, d]
                   int tokens, int64_t d,  // at most kTokens
                   Layer<T> up, Layer<T> gate, int64_t d_ff, Activation activation,
                   Real<T>* hidden,  // [tokens, d_ff]
                   Real<T>* rank) {  // its size [tokens, d_ff], or null
  using R = Real<T>;
  constexpr int64_t kVector = kLanes<T>;
  const int lane = threadIdx.x % kWarp, matrices = gate.w ? 2 : 1, neurons = kRows / matrices;
  const int64_t first = (int64_t{blockIdx.x} * kProjectWarps + threadIdx.x / kWarp) * neurons;
  const T* row[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const Layer<T>& of = i % matrices ? gate : up;
    row[i] = of.w + min(first + i / matrices, d_ff - 1) * of.stride;  // beyond the last it is read again
  }
  const bool aligned = aligned_rows(x, d) && aligned_rows(up.w, up.stride) && aligned_rows(gate.w, gate.stride);
  const int64_t vectors = aligned ? d / kVector : 0;  // equivalent: choice: one by one is slower
  R sum[kRows][kTokens] = {};
  for (int64_t v = lane; v < vectors; v += kWarp) {
    Vector<T> w[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) w[i] = reinterpret_cast<const Vector<T>*>(row[i])[v];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const Vector<T> at = reinterpret_cast<const Vector<T>*>(x + min(t, tokens - 1) * d)[v];
#pragma unroll
      for (int l = 0; l < kVector; ++l) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) sum[i][t] += load(w[i].lane[l]) * load(at.lane[l]);
      }
    }
  }
  for (int64_t c = vectors * kVector + lane; c < d; c += kWarp) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) sum[i][t] += load(row[i][c]) * load(x[min(t, tokens - 1) * d + c]);
    }
  }
  R own_up = 0, own_gate = 0;  // a lane takes one token of one neuron
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      R all = sum[i][t];
#pragma unroll
      for (int step = 1; step < kWarp; step *= 2) all += __shfl_xor_sync(~0u, all, step);
      if (lane == i / matrices * kTokens + t) (i % matrices ? own_gate : own_up) = all;
    }
  }
  const int64_t neuron = first + lane / kTokens;
  const int token = lane % kTokens;
  if (lane >= neurons * kTokens || neuron >= d_ff || token >= tokens) return;
  if (up.bias) own_up += load(up.bias[neuron]);
  if (gate.bias) own_gate += load(gate.bias[neuron]);
  const R value = matrices == 2 ? activated(own_gate, activation) * own_up : activated(own_up, activation);
  hidden[token * d_ff + neuron] = value;
  if (rank) rank[token * d_ff + neuron] = fabs(value);
}

constexpr int kSlices = 8, kGroups = kThreads / kSlices;  // of 16 bytes, that a block has of each row; its rows at once
constexpr int kTogether = 4;                              // rows, that a thread waits for at once
template <class T>
constexpr int kColumns = kSlices * kLanes<T>;  // of a block

// out = the sum of hidden * w_down over a token's neurons, + b_down: a row whose hidden value is 0 is not read. In the
// order of the neurons, whatever the threads. blockIdx.x says which columns, blockIdx.y which token.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(const Real<T>* hidden,  // [tokens, d_ff]
                       const int64_t* index,   // [tokens, k]; null: all neurons, k = d_ff
                       int64_t k, int64_t d_ff,
                       const T* w,  // [d_ff, columns], rows `stride` apart
                       int64_t stride, int64_t columns,
                       const T* bias,  // [columns], or null
                       T* out) {       // [tokens, columns]
  using R = Real<T>;
  constexpr int kVector = kLanes<T>;
  __shared__ R of_warp[kWarps][kColumns<T>];
  const int slice = threadIdx.x % kSlices, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t token = blockIdx.y, begin = int64_t{blockIdx.x} * kColumns<T>, first = begin + slice * kVector;
  const bool whole = aligned_rows(w, stride) && first + kVector <= columns;  // equivalent: comparison: one by one
  R sum[kVector] = {};
  for (int64_t e = threadIdx.x / kSlices; e < k; e += kTogether * kGroups) {  // equivalent: comparison: none is left
    Vector<T> row[kTogether] = {};
    R weight[kTogether] = {};
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int64_t at = e + i * kGroups;
      if (at >= k) continue;
      const int64_t neuron = index ? index[token * k + at] : at;
      weight[i] = hidden[token * d_ff + neuron];
      if (weight[i] == 0) continue;
      const T* const from = w + neuron * stride + first;
      if (whole) {
        row[i] = *reinterpret_cast<const Vector<T>*>(from);
      } else {
#pragma unroll
        for (int l = 0; l < kVector; ++l)
          if (first + l < columns) row[i].lane[l] = from[l];
      }
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
#pragma unroll
      for (int l = 0; l < kVector; ++l) sum[l] += weight[i] * load(row[i].lane[l]);
    }
  }
#pragma unroll
  for (int l = 0; l < kVector; ++l) {
#pragma unroll
    for (int step = kSlices; step < kWarp; step *= 2) sum[l] += __shfl_xor_sync(~0u, sum[l], step);
    if (lane < kSlices) of_warp[warp][slice * kVector + l] = sum[l];
  }
  __syncthreads();
  const int64_t column = begin + threadIdx.x;
  if (threadIdx.x >= kColumns<T> || column >= columns) return;
  R all = bias ? load(bias[column]) : R{0};
#pragma unroll
  for (int i = 0; i < kWarps; ++i) all += of_warp[i][threadIdx.x];
  store(out[token * columns + column], all);
}

}  // namespace tamis::cuda
