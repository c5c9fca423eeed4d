// What is checked of numbers before any work. Compiled once per ISA. Floor: each read once.
#include "block.h"

namespace tamis::TAMIS_ISA {

// A bit a class says whether the row had it already; cleared by the row itself, so that it costs what it holds.
int64_t bad_index(const int64_t* indices, int64_t entries, int64_t classes, int64_t begin, int64_t end, void* scratch) {
  uint64_t* const seen = static_cast<uint64_t*>(scratch);
  memset(seen, 0, (classes + 63) / 64 * 8);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t* const row = indices + r * entries;
    for (int64_t k = 0; k < entries; ++k) {
      const int64_t c = row[k];
      if (c < 0 || c >= classes || seen[c / 64] >> c % 64 & 1) return r * entries + k;
      seen[c / 64] |= uint64_t(1) << c % 64;
    }
    for (int64_t k = 0; k < entries; ++k) seen[row[k] / 64] = 0;
  }
  return -1;
}

namespace {

template <class T>
int64_t bad_distribution(Matrix probs, double tolerance, int64_t begin, int64_t end) {
  using R = Real<T>;
  using V = Vector<R>;
  const int64_t n = probs.classes;
  for (int64_t r = begin; r < end; ++r) {
    const T* const p = row_of<T>(probs, r);
    double total = 0;
    V low{};
    for (int64_t c = 0; c < n; c += kBlock) {
      V sum{};
      const int64_t stop = c + block_size(n, c);
      int64_t i = c;
      for (; i + kLanes<V> <= stop; i += kLanes<V>) {
        const V x = load(p + i);
        sum += x, low = min(x, low);
      }
      if (i < stop) {
        const V x = load_tail(p + i, stop - i, 0);
        sum += x, low = min(x, low);
      }
      total += reduce_add(sum);
    }
    if (!(total - 1 <= tolerance && 1 - total <= tolerance && -reduce_max(-low) >= 0)) return r;
  }
  return -1;
}

}  // namespace

const DistributionCheck distribution_checks[kDtypes] = {bad_distribution<float>, bad_distribution<double>,
                                                        bad_distribution<Float16>, bad_distribution<BFloat16>};

}  // namespace tamis::TAMIS_ISA
