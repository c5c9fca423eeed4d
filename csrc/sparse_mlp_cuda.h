// What sparse_mlp_cuda.cpp calls and sparse_mlp.cu holds. No torch, and no CUDA but the stream's type.
#pragma once
#include <cuda_runtime_api.h>
#include <stdint.h>
#include "kernels/common/matrix.h"

namespace tamis {

constexpr int64_t kTopkSortMost = 2048;

// Blocks for each row of n. By the size of the work alone; unmeasured.
int64_t topk_chunks(Dtype dtype, int64_t rows, int64_t n);

// What launch_topk needs, aligned to 8; 0 where chunks is 1.
int64_t topk_workspace_bytes(Dtype dtype, int64_t rows, int64_t chunks);

// The k largest of each row, 1 <= k <= n, ties by lowest index, NaN above all. x [rows, n] of dtype, rows `stride`
// elements apart, at most 2^31 - 1 of them; 65,535 where chunks > 1. values, indices [rows, k]: in the row's order.
cudaError_t launch_topk(Dtype dtype, const void* x, int64_t rows, int64_t n, int64_t stride, int64_t k, void* values,
                        int64_t* indices, int64_t chunks, void* workspace, cudaStream_t stream);

// The same, descending, ties by lowest index. k at most kTopkSortMost; a stable descending sort of the values does it
// for more. sorted_* lie elsewhere than what they are made of.
cudaError_t launch_topk_sort(Dtype dtype, const void* values, const int64_t* indices, int64_t rows, int64_t k,
                             void* sorted_values, int64_t* sorted_indices, cudaStream_t stream);

}  // namespace tamis
