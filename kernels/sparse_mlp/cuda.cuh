// Exact top-k of each row, ties by lowest index, NaN above all as torch.topk has it: in the row's order, and then,
// where asked for, sorted by a kernel of its own. Any k, any row length, any alignment; no float is added or rounded.
// Floor: the rows once, and k values and indices of each written. What is read here: each row once a digit (2 of 16
// bits, 3 of 32, 6 of 64, fewer where a digit decides), and once to write; all but the first from L2 while the rows of
// the blocks that run fit there. A long row on several blocks is read once more, to count each block's share.
#pragma once
#include "../common/select.cuh"

namespace tamis::cuda {

constexpr int kSortMost = 2048;  // of k; larger ones are sorted elsewhere

// The chosen of tiles [first, last): `greater` and `equal` were above and at the threshold in what comes before.
template <class Format, class Bits = typename Format::Bits>
__device__ inline void write_chosen(const Row<Bits>& row, int64_t first, int64_t last, const Threshold<Bits>& threshold,
                                    uint64_t greater, uint64_t equal, Bits* values, int64_t* indices,
                                    unsigned (&of_warp)[kWarps]) {
  for_each_tile(row, first, last, [&](const Slice<Bits>& s) {
    unsigned own = 0;  // above; at in the upper half. A tile has at most 4,096 of either
#pragma unroll
    for (int i = 0; i < kLanes<Bits>; ++i) {
      const Bits key = key_of<Format>(s.at.lane[i]);
      if (s.has(i)) own += threshold.above(key) ? 1 : threshold.at(key) ? 1 << 16 : 0;
    }
    const Sum<unsigned> sum = block_sum(own, of_warp);
    uint64_t above = greater + (sum.before & 0xffff), at = equal + (sum.before >> 16);
#pragma unroll
    for (int i = 0; i < kLanes<Bits>; ++i) {
      const Bits key = key_of<Format>(s.at.lane[i]);
      if (!s.has(i)) continue;
      const bool is_above = threshold.above(key), is_at = threshold.at(key);
      if (is_above || (is_at && at < threshold.equal)) {
        const uint64_t to = above + min(at, threshold.equal);
        values[to] = s.at.lane[i];
        indices[to] = s.first + i;
      }
      above += is_above;
      at += is_at;
    }
    greater += sum.all & 0xffff;
    equal += sum.all >> 16;
  });
}

// One block a row.
template <class Format, class Bits = typename Format::Bits>
__global__ void __launch_bounds__(kThreads) topk_row_kernel(const Bits* x,  // [rows, n], rows `stride` apart
                                                            int64_t n, int64_t stride, int64_t k,
                                                            Bits* values,        // [rows, k]
                                                            int64_t* indices) {  // [rows, k]
  __shared__ unsigned bins[kBins], of_warp[kWarps];
  __shared__ PickScratch scratch;
  const int64_t r = blockIdx.x;
  const Row<Bits> row(x + r * stride, n);
  Threshold<Bits> threshold;
  threshold.equal = k;
  for (int pass = 0; pass < kPasses<Bits> && !threshold.whole; ++pass) {  // equivalent: comparison: all share a digit
    clear(bins);
    __syncthreads();
    count_digits<Format>(row, 0, row.tiles(), pass, threshold, bins);
    __syncthreads();
    pick(bins, pass, threshold, scratch);
  }
  write_chosen<Format>(row, 0, row.tiles(), threshold, 0, 0, values + r * k, indices + r * k, of_warp);
}

// Several blocks a row: blockIdx.x says which tiles, blockIdx.y which row. The launch before has left its counts.

template <class Bits>
__device__ inline Threshold<Bits> threshold_of(const unsigned long long* bins, int passes, int64_t k,
                                               PickScratch& scratch) {
  Threshold<Bits> threshold;
  threshold.equal = k;
  for (int pass = 0; pass < passes && !threshold.whole; ++pass) pick(bins + pass * kBins, pass, threshold, scratch);
  return threshold;
}

template <class Format, class Bits = typename Format::Bits>
__global__ void __launch_bounds__(kThreads)
    topk_digits_kernel(const Bits* x,  // [rows, n], rows `stride` apart
                       int64_t n, int64_t stride, int64_t k, int64_t chunk_tiles, int pass,
                       unsigned long long* all_bins) {  // [rows, kPasses, kBins], zero from this pass on
  __shared__ unsigned bins[kBins];
  __shared__ PickScratch scratch;
  const int64_t r = blockIdx.y, first = blockIdx.x * chunk_tiles;
  unsigned long long* const row_bins = all_bins + r * kPasses<Bits> * kBins;
  const Threshold<Bits> threshold = threshold_of<Bits>(row_bins, pass, k, scratch);
  if (threshold.whole) return;  // equivalent: check: counts that nobody reads
  clear(bins);
  __syncthreads();
  count_digits<Format>(Row<Bits>(x + r * stride, n), first, first + chunk_tiles, pass, threshold, bins);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kOwnBins; ++i) {
    const int bin = threadIdx.x + i * kThreads;
    const unsigned long long count = bins[bin];
    if (count) atomicAdd(&row_bins[pass * kBins + bin], count);  // equivalent: check: adds nothing
  }
}

template <class Format, class Bits = typename Format::Bits>
__global__ void __launch_bounds__(kThreads)
    topk_count_kernel(const Bits* x,  // [rows, n], rows `stride` apart
                      int64_t n, int64_t stride, int64_t k, int64_t chunk_tiles,
                      const unsigned long long* all_bins,  // [rows, kPasses, kBins]
                      uint64_t* counts) {                  // [rows, chunks, 2]: above the threshold, and at it
  __shared__ PickScratch scratch;
  const int64_t r = blockIdx.y, first = blockIdx.x * chunk_tiles;
  const Threshold<Bits> threshold = threshold_of<Bits>(all_bins + r * kPasses<Bits> * kBins, kPasses<Bits>, k, scratch);
  uint64_t above = 0, at = 0;
  for_each_tile(Row<Bits>(x + r * stride, n), first, first + chunk_tiles, [&](const Slice<Bits>& s) {
#pragma unroll
    for (int i = 0; i < kLanes<Bits>; ++i) {
      const Bits key = key_of<Format>(s.at.lane[i]);
      above += s.has(i) && threshold.above(key);
      at += s.has(i) && threshold.at(key);
    }
  });
  above = block_sum(above, scratch.of_warp).all;
  at = block_sum(at, scratch.of_warp).all;
  uint64_t* const mine = counts + (r * gridDim.x + blockIdx.x) * 2;
  if (threadIdx.x == 0) mine[0] = above, mine[1] = at;
}

template <class Format, class Bits = typename Format::Bits>
__global__ void __launch_bounds__(kThreads)
    topk_write_kernel(const Bits* x,  // [rows, n], rows `stride` apart
                      int64_t n, int64_t stride, int64_t k, int64_t chunk_tiles,
                      const unsigned long long* all_bins,  // [rows, kPasses, kBins]
                      const uint64_t* counts,              // [rows, chunks, 2]
                      Bits* values,                        // [rows, k]
                      int64_t* indices) {                  // [rows, k]
  __shared__ unsigned of_warp[kWarps];
  __shared__ PickScratch scratch;
  const int64_t r = blockIdx.y, first = blockIdx.x * chunk_tiles;
  const Threshold<Bits> threshold = threshold_of<Bits>(all_bins + r * kPasses<Bits> * kBins, kPasses<Bits>, k, scratch);
  uint64_t above = 0, at = 0;
  for (unsigned chunk = threadIdx.x; chunk < blockIdx.x; chunk += kThreads) {
    above += counts[(r * gridDim.x + chunk) * 2];
    at += counts[(r * gridDim.x + chunk) * 2 + 1];
  }
  above = block_sum(above, scratch.of_warp).all;
  at = block_sum(at, scratch.of_warp).all;
  write_chosen<Format>(Row<Bits>(x + r * stride, n), first, first + chunk_tiles, threshold, above, at, values + r * k,
                       indices + r * k, of_warp);
}

// What topk chose, descending: each finds how many come before it. One block a row; k at most kSortMost, since the work
// is quadratic.
template <class Format, class Bits = typename Format::Bits>
__global__ void __launch_bounds__(kThreads) topk_sort_kernel(const Bits* values,      // [rows, k]
                                                             const int64_t* indices,  // [rows, k], ascending
                                                             int k,
                                                             Bits* sorted_values,        // [rows, k]
                                                             int64_t* sorted_indices) {  // [rows, k]
  __shared__ Bits keys[kSortMost];
  const int64_t row = int64_t{blockIdx.x} * k;
  for (int i = threadIdx.x; i < k; i += kThreads) keys[i] = key_of<Format>(values[row + i]);
  __syncthreads();
  for (int i = threadIdx.x; i < k; i += kThreads) {
    const Bits own = keys[i];
    int before = 0;
    for (int j = 0; j < k; ++j) before += keys[j] > own || (keys[j] == own && j < i);
    sorted_values[row + before] = values[row + i];
    sorted_indices[row + before] = indices[row + i];
  }
}

}  // namespace tamis::cuda
