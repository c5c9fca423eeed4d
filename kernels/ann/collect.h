// The best of what a scan finds: a threshold that rises as scores come in, by a histogram of them, so that as few pass
// as can be known without sorting.
#pragma once
#include <stdint.h>
#include "../common/simd.h"

namespace tamis::TAMIS_ISA {

inline int64_t least(int64_t count, int64_t limit) { return count < limit ? count : limit; }

struct Candidate {
  int32_t score;
  uint32_t position;
};

inline bool before(Candidate a, Candidate b) {  // ties by the lowest position
  return a.score != b.score ? a.score > b.score : a.position < b.position;
}

// The first `count` of n come to the front, in no order; all where there are no more.
inline void partition(Candidate* x, int64_t n, int64_t count) {
  int64_t begin = 0, end = n;
  while (count > begin && count < end) {  // equivalent: another pass over what is in its place moves nobody else
    const Candidate a = x[begin], b = x[(begin + end) / 2], c = x[end - 1];
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
    if (count <= j + 1)  // equivalent: of j + 1 either way ends it
      end = j + 1;
    else
      begin = i;
  }
}

inline constexpr int kScoreBins = 512;

struct Collector {
  Candidate* found;
  int64_t wanted, size, capacity;  // capacity: above 2 * wanted
  int32_t threshold;               // scores below it do not count
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

  Candidate* begin() const { return found; }
  Candidate* end() const { return found + size; }

  // Only whom the threshold still lets be.
  void drop() {
    int64_t left = 0;
    for (int64_t i = 0; i < size; ++i) {  // without a branch: nobody foresees it
      const Candidate one = found[i];
      found[left] = one, left += one.score >= threshold;
    }
    size = left;
  }

  // The best `wanted`, whatever the order in which they came.
  void settle() {
    drop();
    partition(found, size, wanted), size = least(size, wanted);
  }

  void shrink() {
    drop();
    if (2 * size <= capacity) return;  // equivalent: who is kept beyond `wanted` is nobody's promise
    partition(found, size, wanted);
    size = wanted;
    int32_t least = found[0].score;
    for (const Candidate one : *this) least = one.score < least ? one.score : least;
    threshold = least;  // equal ones count: they may come of lower positions, and all there is may be equal
    bin = kScoreBins - 1;
  }
};

}  // namespace tamis::TAMIS_ISA
