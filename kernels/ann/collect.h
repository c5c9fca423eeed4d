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

using Key = int64_t;  // the larger the better: by score, then the lowest position
inline Key key_of(Candidate a) { return (int64_t)a.score * ((int64_t)1 << 32) + (uint32_t)~a.position; }
inline bool before(Candidate a, Candidate b) { return key_of(a) > key_of(b); }

// The first `count` of n come to the front, in no order; all where there are no more. Positions differ. Spare: [n].
inline void partition(Candidate* x, Candidate* spare, int64_t n, int64_t count) {
  int64_t begin = 0, end = n;
  uint32_t drawn = 1;  // what is in any order of its own, as numbers that rise and fall are, is parted no worse
  const auto any = [&] {
    drawn = drawn * 1664525 + 1013904223;
    return key_of(x[begin + ((uint64_t)drawn * (end - begin) >> 32)]);  // equivalent: remainder: any of them will do
  };
  while (begin < count && count < end) {  // equivalent: bound: a turn more changes nothing
    const Key a = any(), b = any(), c = any();
    const Key low = a < b ? a : b, high = a < b ? b : a, pivot = c < low ? low : c < high ? c : high;
    // Without a branch, which nobody foresees, and to memory that is not read again in this turn.
    Candidate* others = spare + n;
    int64_t left = begin;
    for (int64_t i = begin; i < end; ++i) {
      const Candidate one = x[i];
      const bool above = key_of(one) > pivot;
      x[left] = one, left += above;
      others[-1] = one, others -= !above;
    }
    // Where the pivot was the best, nothing is parted and another is drawn.
    memcpy(x + left, others, (end - left) * sizeof *x);
    (count <= left ? end : begin) = left;  // equivalent: bound: where it is the count, either ends it
  }
}

inline constexpr int kScoreBins = 512;

struct Collector {
  Candidate *found, *spare;        // [capacity]; what is spare keeps nothing between calls
  int64_t wanted, size, capacity;  // capacity: above 2 * wanted, and at least twice a block
  int32_t threshold;               // scores below it do not count
  int32_t origin, shift;           // of bin 0; a bin's width in bits
  int32_t bin;                     // the threshold's
  int64_t kept;                    // in this bin and above it, while it is not the last
  uint32_t bins[kScoreBins];

  void start(int64_t wanted_, int32_t threshold_, int32_t shift_) {
    wanted = wanted_, size = kept = 0, threshold = origin = threshold_, shift = shift_, bin = 0;
    memset(bins, 0, sizeof bins);
  }

  // For as many as a block has, before they are added; tighten() comes after.
  void make_room(int64_t count) {
    if (size + count > capacity) shrink();
  }

  // Of the values whose bits are set; the score is `more` larger, the first one's position `position`.
  template <class V>
  void add(uint64_t some, const V* values, int32_t more, uint32_t position) {
    Candidate* at = found + size;
    for (; some; some &= some - 1) {
      const int i = __builtin_ctzll(some);
      const int32_t score = values[i] + more;
      const bool in = score >= threshold;
      *at = {score, position + i}, at += in;
      bins[in ? least(((int64_t)score - origin) >> shift, kScoreBins - 1) : 0] += in;
    }
    const int64_t now = at - found;
    kept += now - size, size = now;
  }

  void tighten() {
    if (bin == kScoreBins - 1) return;  // shrink() keeps it tight from here on
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

  // The best `wanted`, whatever the order in which they came: those above the threshold's bin, and the best of it.
  void settle() {
    const int64_t above = bin == kScoreBins - 1 ? INT64_MAX : (int64_t)threshold + (1 << shift);
    int64_t left = 0, others = 0;
    for (int64_t i = 0; i < size; ++i) {
      const Candidate one = found[i];
      found[left] = one, left += one.score >= above;
      spare[others] = one, others += (one.score >= threshold) & (one.score < above);
    }
    memcpy(found + left, spare, others * sizeof *found);
    partition(found + left, spare, others, wanted - left);
    size = least(left + others, wanted);
  }

  void shrink() {
    drop();
    if (2 * size <= capacity) return;  // there is room again, and the histogram goes on
    partition(found, spare, size, wanted);
    size = wanted;
    int32_t least = found[0].score;
    for (const Candidate one : *this) least = one.score < least ? one.score : least;
    threshold = least;  // equal ones count: they may come of lower positions, and all there is may be equal
    bin = kScoreBins - 1;
  }
};

}  // namespace tamis::TAMIS_ISA
