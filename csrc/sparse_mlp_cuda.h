// What sparse_mlp*_cuda.cpp call and sparse_mlp*.cu hold. No torch, and no CUDA but the stream's type.
#pragma once
#include <cuda_runtime_api.h>
#include <stdint.h>
#include "kernels/common/matrix.h"
#include "kernels/sparse_mlp/activations.h"

namespace tamis {

constexpr int64_t kTopkSortMost = 2048;

// Blocks for each row of n. By the size of the work alone; unmeasured.
int64_t topk_chunks(Dtype dtype, int64_t rows, int64_t n);

// What launch_topk needs, aligned to 8; 0 where chunks is 1.
int64_t topk_workspace_bytes(Dtype dtype, int64_t rows, int64_t chunks);

// The k largest of each row, 1 <= k <= n, ties by lowest index, NaN above all. x [rows, n] of dtype, rows `stride`
// elements apart, at most 2^31 - 1 of them; 65,535 where chunks > 1, else n below 2^32. values, indices [rows, k]: in
// the row's order.
cudaError_t launch_topk(Dtype dtype, const void* x, int64_t rows, int64_t n, int64_t stride, int64_t k, void* values,
                        int64_t* indices, int64_t chunks, void* workspace, cudaStream_t stream);

// The same, descending, ties by lowest index. k at most kTopkSortMost; a stable descending sort of the values does it
// for more. sorted_* lie elsewhere than what they are made of.
cudaError_t launch_topk_sort(Dtype dtype, const void* values, const int64_t* indices, int64_t rows, int64_t k,
                             void* sorted_values, int64_t* sorted_indices, cudaStream_t stream);

// Of decoding, R the arithmetic's type: double for float64, else float.

constexpr int64_t kDecodeTokens = 8;

struct Projection {
  const void* w;     // [d_ff, d], rows `stride` apart; null: no such matrix
  int64_t stride;    //
  const void* bias;  // [d_ff], or null
};

struct Project {
  const void* x;      // [tokens, d]
  int64_t tokens, d;  // 1 to kDecodeTokens
  Projection up, gate;
  int64_t d_ff;
  Activation activation;  // kActivations: none
  void* hidden;           // out: R [tokens, d_ff]
  void* rank;             // out: its size, R [tokens, d_ff]; or null
};

// hidden = activation(x gate^T + bias) * (x up^T + bias), or without a gate activation(x up^T + bias).
cudaError_t launch_project(Dtype dtype, const Project& op, cudaStream_t stream);

struct GatherRows {
  const void* hidden;    // R [tokens, d_ff]
  const int64_t* index;  // [tokens, k] of 0 to d_ff - 1; null: all neurons, and k = d_ff
  int64_t tokens, k, d_ff;
  const void* w;  // [d_ff, columns], rows `stride` apart
  int64_t stride, columns;
  const void* bias;  // [columns], or null
  void* out;         // [tokens, columns]
};

// out = the sum of hidden * w over a token's neurons, + bias. A row of w whose hidden value is 0 is not read.
cudaError_t launch_gather_rows(Dtype dtype, const GatherRows& op, cudaStream_t stream);

}  // namespace tamis
