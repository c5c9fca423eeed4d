// The best of what a scan finds: a threshold that rises as scores come in, by a histogram of them, so that as few pass
// as can be known without sorting.
#pragma once
#include <stdint.h>
#include "../common/simd.h"

namespace tamis::TAMIS_ISA {

struct Candidate {
  int32_t score;
  uint32_t position;
};

inline bool before(Candidate a, Candidate b) {  // ties by the lowest position
  return a.score != b.score ? a.score > b.score : a.position < b.position;
}

// The first `count` of n come to the front, in no order.
inline void partition(Candidate* x, int64_t n, int64_t count) {
  int64_t begin = 0, end = n;
  while (end - begin > 1 && count > begin && count < end) {
    const Candidate a = x[begin], b = x[begin + (end - begin) / 2], c = x[end - 1];
    const Candidate pivot = before(a, b) ? (before(b, c)   ? b
                                            : before(a, c) ? c
                                                           : a)
                                         : (before(a, c)   ? a
                                            : before(b, c) ? c
                                                           : b);
    int64_t i = begin, j = end - 1;
    while (i <= j) {
      while (before(x[i], pivot)) ++i;
      while (before(pivot, x[j])) --j;
      if (i <= j) {
        const Candidate swapped = x[i];
        x[i++] = x[j];
        x[j--] = swapped;
      }
    }
    if (count <= j + 1)
      end = j + 1;
    else if (count >= i)
      begin = i;
    else
      return;
  }
}

inline constexpr int kScoreBins = 512;

struct Collector {
  Candidate* found;
  int64_t wanted, size, capacity;  // capacity: above 2 * wanted
  int32_t threshold;               // scores below it no longer count
  int32_t origin, shift;           // of bin 0; a bin's width in bits
  int32_t bin;                     // the threshold's
  int64_t kept;                    // in this bin and above it
  uint32_t bins[kScoreBins];

  void start(int64_t wanted_, int32_t threshold_, int32_t shift_) {
    wanted = wanted_, size = kept = 0, threshold = origin = threshold_, shift = shift_, bin = 0;
    memset(bins, 0, sizeof bins);
  }

  void add(int32_t score, uint32_t position) {
    if (size == capacity) shrink();
    if (score < threshold) return;
    found[size++] = {score, position};
    if (bin == kScoreBins - 1) return;  // shrink() keeps it tight from here on
    const int64_t of = ((int64_t)score - origin) >> shift;
    ++bins[of < kScoreBins ? of : kScoreBins - 1];
    ++kept;
    const int old = bin;
    while (bin < kScoreBins - 1 && kept - bins[bin] >= wanted) kept -= bins[bin++];
    if (bin != old) threshold = origin + (bin << shift);
  }

  // The best `wanted` remain, or all that the threshold lets be.
  void shrink() {
    int64_t left = 0;
    for (int64_t i = 0; i < size; ++i)
      if (found[i].score >= threshold) found[left++] = found[i];
    size = left;
    if (2 * size <= capacity) return;
    partition(found, size, wanted);
    size = wanted;
    int32_t least = found[0].score;
    for (int64_t i = 1; i < size; ++i) least = found[i].score < least ? found[i].score : least;
    threshold = least + 1;  // of equal ones the first came first
    bin = kScoreBins - 1;
  }
};

}  // namespace tamis::TAMIS_ISA
