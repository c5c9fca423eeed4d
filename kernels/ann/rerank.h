// Exact scores of a few candidates.
#pragma once
#include "collect.h"
#include "cpu.h"
#include "bytes.h"

namespace tamis::TAMIS_ISA {

inline int32_t ordered(float x) {  // integers in the order of floats
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits ^ (bits >> 31 & 0x7fffffff);
}
inline float unordered(int32_t bits) {
  bits ^= bits >> 31 & 0x7fffffff;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

inline void sift(Candidate* x, int64_t root, int64_t n) {  // the last of them to the root
  for (int64_t child; (child = 2 * root + 1) < n; root = child) {
    if (child + 1 < n && before(x[child], x[child + 1])) ++child;
    if (!before(x[root], x[child])) return;
    const Candidate swapped = x[root];
    x[root] = x[child];
    x[child] = swapped;
  }
}

inline void sort(Candidate* x, int64_t n) {
  if (n <= 32) {
    for (int64_t i = 1; i < n; ++i) {
      const Candidate one = x[i];
      int64_t j = i;
      for (; j > 0 && before(one, x[j - 1]); --j) x[j] = x[j - 1];
      x[j] = one;
    }
    return;
  }
  for (int64_t i = n / 2; i-- > 0;) sift(x, i, n);
  for (int64_t last = n - 1; last > 0; --last) {
    const Candidate swapped = x[0];
    x[0] = x[last];
    x[last] = swapped;
    sift(x, 0, last);
  }
}

// The first k come to the front, in order; how many they are. Spare: [n].
inline int64_t sort_best(Candidate* x, Candidate* spare, int64_t n, int64_t k) {
  partition(x, spare, n, k);
  n = least(n, k);
  sort(x, n);
  return n;
}

// q.x, or for l2 -|q - x|^2.
template <class T, bool kL2>
float exact_score(const float* q, const void* row, int64_t d) {
  const T* const x = static_cast<const T*>(row);
  F32 sum[4] = {};
  const auto add = [](F32& to, F32 a, F32 b) { kL2 ? to -= (a - b) * (a - b) : to += a * b; };
  int64_t i = 0;
  for (; i + 4 * TAMIS_LANES <= d; i += 4 * TAMIS_LANES)  // equivalent: loop, bound: the next loop can do all
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) add(sum[j], load(q + i + j * TAMIS_LANES), load(x + i + j * TAMIS_LANES));
  for (; i + TAMIS_LANES <= d; i += TAMIS_LANES) add(sum[0], load(q + i), load(x + i));
  if (i < d) add(sum[1], load_tail(q + i, d - i, 0), load_tail(x + i, d - i, 0));
  return reduce_add(sum[0] + sum[1] + (sum[2] + sum[3]));
}

using ExactScore = float (*)(const float* q, const void* row, int64_t d);

template <class T>
ExactScore exact_score_of(bool l2) {
  return l2 ? exact_score<T, true> : exact_score<T, false>;
}

// Of bytes: both sides' numbers times their scales, x's with 128 added.
inline int32_t byte_dot(const uint8_t* x, const int8_t* q, int64_t size) {  // size: a multiple of 64
  I32 sum = {};
  for (int64_t i = 0; i != size; i += kBytes) sum = dot4(sum, load_bytes(x + i), (S8)load_bytes(q + i));
  return reduce_add(sum);
}

}  // namespace tamis::TAMIS_ISA
