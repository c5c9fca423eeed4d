// Pieces of an exact selection of the k largest of a row, by radix: count a digit of all keys, find the digit of the
// k-th, go on with those that share it. Integers alone are added by atomics, so the order of threads shows nowhere.
#pragma once
#include "row.cuh"

namespace tamis::cuda {

constexpr int kDigit = 11, kBins = 1 << kDigit, kOwnBins = kBins / kThreads;

struct Float32 {
  using Bits = uint32_t;
  static constexpr Bits kInfinity = 0x7f800000;
};
struct Float64 {
  using Bits = uint64_t;
  static constexpr Bits kInfinity = 0x7ff0000000000000;
};
struct Float16 {
  using Bits = uint16_t;
  static constexpr Bits kInfinity = 0x7c00;
};
struct BFloat16 {
  using Bits = uint16_t;
  static constexpr Bits kInfinity = 0x7f80;
};

// Larger numbers have larger keys. Every NaN has the largest; -0 and +0 have one.
template <class Format, class Bits = typename Format::Bits>
__device__ inline Bits key_of(Bits x) {
  constexpr Bits kSign = Bits(Bits{1} << (8 * sizeof(Bits) - 1));
  const Bits size = x & Bits(~kSign);
  if (size > Format::kInfinity) return Bits(~Bits{0});
  return x == size || size == 0 ? Bits(size | kSign) : Bits(~x);
}

// Digits from the top. The last begins at bit 0, so it may repeat bits of the one before: alike in all that count.
template <class Bits>
constexpr int kPasses = (8 * sizeof(Bits) + kDigit - 1) / kDigit;
template <class Bits>
__device__ inline int low_bit(int pass) {
  return max(int(8 * sizeof(Bits)) - kDigit * (pass + 1), 0);
}

// Where the k largest end, as far as the digits so far say.
template <class Bits>
struct Threshold {
  Bits prefix = 0, mask = 0;        // bits of the k-th key, and which of them are known
  uint64_t greater = 0, equal = 0;  // of the k largest: above it, and at it
  bool whole = false;               // all that are at it are chosen: no more digits are needed

  __device__ bool above(Bits key) const { return (key & mask) > prefix; }
  __device__ bool at(Bits key) const { return (key & mask) == prefix; }
};

// Tiles of a slice for each thread, in the row's order.
template <class Bits, class Visit>
__device__ inline void for_each_tile(const Row<Bits>& row, int64_t first, int64_t last, const Visit& visit) {
  for (int64_t tile = first; tile < min(last, row.tiles()); ++tile) visit(row.slice(tile * kThreads + threadIdx.x));
}

__device__ inline void clear(unsigned (&bins)[kBins]) {
#pragma unroll
  for (int i = 0; i < kOwnBins; ++i) bins[threadIdx.x + i * kThreads] = 0;
}

// Adds to the bins the digit of each key that the threshold, known down to the digit before, leaves open.
template <class Format, class Bits = typename Format::Bits>
__device__ inline void count_digits(const Row<Bits>& row, int64_t first, int64_t last, int pass,
                                    const Threshold<Bits>& threshold, unsigned (&bins)[kBins]) {
  const int low = low_bit<Bits>(pass);
  for_each_tile(row, first, last, [&](const Slice<Bits>& s) {
#pragma unroll
    for (int i = 0; i < kLanes<Bits>; ++i) {
      const Bits key = key_of<Format>(s.at.lane[i]);
      if (s.has(i) && threshold.at(key)) atomicAdd(&bins[key >> low & (kBins - 1)], 1u);
    }
  });
}

struct Picked {
  uint64_t greater, equal;
  int digit, whole;
};

struct PickScratch {
  uint64_t of_warp[kWarps];
  Picked picked;
};

// One digit more of the threshold, from its bins.
template <class Bits, class Count>
__device__ inline void pick(const Count* bins, int pass, Threshold<Bits>& threshold, PickScratch& scratch) {
  const int top = kBins - 1 - int(threadIdx.x) * kOwnBins;
  uint64_t count[kOwnBins], own = 0;
#pragma unroll
  for (int i = 0; i < kOwnBins; ++i) own += count[i] = bins[top - i];
  uint64_t before = block_sum(own, scratch.of_warp).before;
  const uint64_t wanted = threshold.equal;
#pragma unroll
  for (int i = 0; i < kOwnBins; ++i) {
    if (before < wanted && wanted <= before + count[i])
      scratch.picked = {threshold.greater + before, wanted - before, top - i, wanted == before + count[i]};
    before += count[i];
  }
  __syncthreads();
  const Picked picked = scratch.picked;
  const int low = low_bit<Bits>(pass);
  threshold.prefix |= Bits(Bits(picked.digit) << low);
  threshold.mask = Bits(Bits(~Bits{0}) << low);
  threshold.greater = picked.greater;
  threshold.equal = picked.equal;
  threshold.whole = picked.whole;
}

}  // namespace tamis::cuda
