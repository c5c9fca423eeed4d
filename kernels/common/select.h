// Exact selection of the k largest: NaN above all numbers, -0 equal to +0, of equals the lowest index. Numbers become
// unsigned keys in that order.
#pragma once
#include "simd.h"

namespace tamis::TAMIS_ISA {
namespace {

template <class R>
struct KeyOf {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};
template <class R>
using Key = typename KeyOf<R>::type;

template <class R>
constexpr Key<R> kSign = Key<R>(1) << (8 * sizeof(R) - 1);

template <class R>
Key<R> key_of(R x) {
  const R y = x + R(0);  // -0 becomes +0
  Key<R> bits;
  memcpy(&bits, &y, sizeof bits);
  return x != x ? ~Key<R>(0) : bits ^ (bits & kSign<R> ? ~Key<R>(0) : kSign<R>);
}
template <class R>
R number_of(Key<R> key) {  // NaN also for what lies below -inf or above inf and is no number's key
  const Key<R> bits = key ^ (key & kSign<R> ? kSign<R> : ~Key<R>(0));
  R x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Of n numbers, and anything up to a whole vector: room for that is the caller's.
template <class T>
void keys_of(const T* x, int64_t n, uint32_t* keys) {
  for (int64_t i = 0; i < n; i += kLanes<F32>) {
    const F32 some = n - i < kLanes<F32> ? load_tail(x + i, n - i) : load(x + i);  // equivalent: fill: any fill
    const U32 bits = (U32)(some + 0.0f), flip = (U32)((I32)bits >> 31) | 0x80000000;
    const U32 made = some == some ? bits ^ flip : U32{} - 1;
    memcpy(keys + i, &made, sizeof made);
  }
}
inline void keys_of(const double* x, int64_t n, uint64_t* keys) {
  for (int64_t i = 0; i < n; ++i) keys[i] = key_of(x[i]);
}

constexpr int kBins = 256;

// Who the k largest of some keys are: all above `key`, and the first `equal` of those that are `key`.
template <class K>
struct Cut {
  K key;
  int64_t equal;
  bool takes(K k) {  // asked in order, once each
    const bool same = k == key, taken = (k > key) | (same & (equal > 0));
    equal -= same;
    return taken;
  }
};

// keys [n], more than k; bins [kBins]. A byte a pass, from the highest bit in which keys differ, until a pass leaves no
// choice.
template <class K>
Cut<K> cut(const K* keys, int64_t n, int64_t k, int64_t* bins) {
  TAMIS_PROMISED(0 < k && k < n);
  K differ = 0;
  for (int64_t i = 1; i < n; ++i) differ |= keys[i] ^ keys[0];
  if (!differ) return {keys[0], k};
  int shift = 63 - __builtin_clzll(differ) - 7;
  K mask = shift + 8 < 8 * int(sizeof(K)) ? ~K(0) << (shift + 8) : 0, prefix = keys[0] & mask;
  for (bool last = false; !last; shift -= 8) {
    if (shift <= 0) shift = 0, last = true;
    memset(bins, 0, kBins * sizeof *bins);
    for (int64_t i = 0; i < n; ++i)
      if ((keys[i] & mask) == prefix) ++bins[keys[i] >> shift & 255];
    int bin = 255;
    while (bins[bin] < k) k -= bins[bin--];
    mask |= K(255) << shift, prefix = (prefix & ~(K(255) << shift)) | K(bin) << shift;
    if (bins[bin] == k) return {prefix, n};  // the whole bin
  }
  return {prefix, k};
}

// keys and indices [n], by index: what the cut takes moves to the front. How many that is.
template <class K>
int64_t keep(Cut<K> at, K* keys, int64_t* indices, int64_t n) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    keys[kept] = keys[i], indices[kept] = indices[i];
    kept += at.takes(keys[i]);
  }
  return kept;
}

template <class R>
struct CountOf {
  using type = int32_t;
  using V = I32;
};
template <>
struct CountOf<double> {
  using type = int64_t;
  using V = I64;
};
template <class R>
using Count = typename CountOf<R>::type;
template <class R>
constexpr int64_t kCounted = 512 / sizeof(Count<R>);  // at most so many are ranked by counting: more are sorted faster

template <class V>
V count_greater(V count, V key, V than) {
#if defined(__AVX512F__) && TAMIS_LANES == 16
  if constexpr (sizeof(count[0]) == 4)
    return (V)_mm512_mask_sub_epi32((__m512i)count, _mm512_cmpgt_epi32_mask((__m512i)key, (__m512i)than),
                                    (__m512i)count, _mm512_set1_epi32(-1));
#endif
  return count - (key > than);
}

// before[i..] of kVectors vectors of keys.
template <int kVectors, class K, class C>
void count_before(const K* keys, int64_t n, int64_t i, C* before) {
  typedef C V __attribute__((vector_size(kBytes)));
  typedef K U __attribute__((vector_size(kBytes)));
  constexpr int64_t lanes = kLanes<V>;
  constexpr K kLowest = K(1) << (8 * sizeof(K) - 1);  // keys as signed numbers; none is the least
  V own[kVectors], count[kVectors] = {}, lane;
  for (int l = 0; l < lanes; ++l) lane[l] = l;
  memcpy(own, keys + i, sizeof own);
  for (V& v : own) v ^= C(kLowest);
  const auto key = [&](int64_t j) { return V{} + C(keys[j] ^ kLowest); };
  const auto less = [](V v) { return V(U(v) - 1); };
  for (int64_t j = 0; j < i; ++j)
    for (int v = 0; v < kVectors; ++v) count[v] = count_greater(count[v], key(j), less(own[v]));
#pragma GCC unroll 4
  for (int u = 0; u < kVectors; ++u)  // the vector that has j; equal keys count before it, not after
    for (int64_t j = i + u * lanes; j < n && j < i + (u + 1) * lanes; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const V than = v < u ? own[v] : v > u ? less(own[v]) : V(U(own[v]) + U(lane > C(j - i - u * lanes)));
        count[v] = count_greater(count[v], key(j), than);
      }
  for (int64_t j = i + kVectors * lanes; j < n; ++j)
    for (int v = 0; v < kVectors; ++v) count[v] = count_greater(count[v], key(j), own[v]);
  memcpy(before + i, count, sizeof count);
}

// before [kCounted], how many of n keys come before each: the larger ones, and equal ones in front of it. Both end in
// four whole vectors.
template <class K, class C>
void count_before(const K* keys, int64_t n, C* before) {
  constexpr int64_t lanes = kBytes / sizeof(C);
  int64_t i = 0;
  constexpr int kTogether = TAMIS_LANES == 16 ? 4 : 2;  // as registers last
  for (; n - i > lanes * kTogether / 2; i += kTogether * lanes) count_before<kTogether>(keys, n, i, before);
  TAMIS_PROMISED(n - i <= lanes * kTogether / 2);
  for (; i < n; i += lanes) count_before<1>(keys, n, i, before);
}

// Descending, equals as they were. keys and indices [n] hold the result; other_ the same sizes to work in.
template <class K>
void sort_descending(K* keys, int64_t* indices, K* other_keys, int64_t* other_indices, int64_t n, int64_t* bins) {
  K *from = keys, *to = other_keys;
  int64_t *from_at = indices, *to_at = other_indices;
  for (int shift = 0; shift < 8 * int(sizeof(K)); shift += 8) {
    memset(bins, 0, kBins * sizeof *bins);
    for (int64_t i = 0; i < n; ++i) ++bins[from[i] >> shift & 255];
    if (bins[from[0] >> shift & 255] == n) continue;
    for (int64_t bin = 255, place = 0; bin >= 0; --bin) {
      const int64_t size = bins[bin];
      bins[bin] = place, place += size;
    }
    for (int64_t i = 0; i < n; ++i) {
      const int64_t place = bins[from[i] >> shift & 255]++;
      to[place] = from[i], to_at[place] = from_at[i];
    }
    K* const keys_were = from;
    int64_t* const indices_were = from_at;
    from = to, to = keys_were, from_at = to_at, to_at = indices_were;
  }
  if (from != keys) memcpy(keys, from, n * sizeof *keys), memcpy(indices, from_at, n * sizeof *indices);
}

}  // namespace
}  // namespace tamis::TAMIS_ISA
