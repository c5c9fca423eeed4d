// Rows as lanes: whole numbers beside them, a square turned, tables of numbers read by lane.
#pragma once
#include "../common/simd.h"

namespace tamis::TAMIS_ISA {

template <class R>
struct WholeOf {
  using type = I32;
};
template <>
struct WholeOf<double> {
  using type = I64;
};
template <class R>
using Whole = typename WholeOf<R>::type;  // as many lanes as Vector<R>

template <class W>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(sizeof(W) / sizeof(W{}[0]))));
};
template <class W>
using Bytes = typename BytesOf<W>::type;  // one a lane

// a's and b's lanes by turns: of their first halves, or of their second.
template <bool kSecond, class V>
inline V interleave(V a, V b) {
#if __has_builtin(__builtin_shufflevector)
  constexpr int n = kLanes<V>, s = kSecond ? n / 2 : 0;
  if constexpr (n == 16)
    return __builtin_shufflevector(a, b, s, s + n, s + 1, s + 1 + n, s + 2, s + 2 + n, s + 3, s + 3 + n, s + 4,
                                   s + 4 + n, s + 5, s + 5 + n, s + 6, s + 6 + n, s + 7, s + 7 + n);
  if constexpr (n == 8)
    return __builtin_shufflevector(a, b, s, s + n, s + 1, s + 1 + n, s + 2, s + 2 + n, s + 3, s + 3 + n);
  if constexpr (n == 4) return __builtin_shufflevector(a, b, s, s + n, s + 1, s + 1 + n);
  if constexpr (n == 2) return __builtin_shufflevector(a, b, s, s + n);
#else
  V v{};
  for (int i = 0; i < kLanes<V>; ++i) v[i] = (i & 1 ? b : a)[i / 2 + (kSecond ? kLanes<V> / 2 : 0)];
  return v;
#endif
}

// As many vectors as lanes: lane j of vector i goes to lane i of vector j.
template <class V>
inline void transpose(V* square) {
  constexpr int n = kLanes<V>;
#pragma GCC unroll 4
  for (int step = 1; step < n; step *= 2) {
    V turned[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      turned[2 * i] = interleave<false>(square[i], square[i + n / 2]);
      turned[2 * i + 1] = interleave<true>(square[i], square[i + n / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) square[i] = turned[i];
  }
}

// a where it is less, else b; where one is NaN, b. In one instruction: a selection by the comparison that an index
// needs too takes thrice as long from one step to the next.
template <class V>
inline V lesser(V a, V b) {
#ifdef __AVX512F__
  if constexpr (sizeof(V) == 64 && __is_same(V, F32)) return _mm512_min_ps(a, b);
#endif
#ifdef __AVX__
  if constexpr (sizeof(V) == 32 && __is_same(V, F32)) return _mm256_min_ps(a, b);
#endif
#ifdef __SSE2__
  if constexpr (sizeof(V) == 16 && __is_same(V, F32)) return _mm_min_ps(a, b);
#endif
  return a < b ? a : b;
}

// table[index] by lane; the table has `size` numbers, a multiple of 16.
template <class R>
inline Vector<R> look_up(const R* table, [[maybe_unused]] int64_t size, Whole<R> index) {
#if defined(__AVX512F__) && TAMIS_LANES == 16
  if constexpr (sizeof(R) == 4) {
    const __m512i at = (__m512i)index;
    if (size == 16) return _mm512_permutexvar_ps(at, load(table));
    const auto of_two = [at](const float* p) { return _mm512_permutex2var_ps(load(p), at, load(p + 16)); };
    if (size == 32) return of_two(table);
    if (size == 64)
      return _mm512_mask_blend_ps(_mm512_test_epi32_mask(at, _mm512_set1_epi32(32)), of_two(table), of_two(table + 32));
    return _mm512_i32gather_ps(at, table, 4);
  }
#elif defined(__AVX2__) && TAMIS_LANES == 8
  if constexpr (sizeof(R) == 4) {
    const __m256i at = (__m256i)index;
    if (size == 16)
      return _mm256_blendv_ps(_mm256_permutevar8x32_ps(load(table), at), _mm256_permutevar8x32_ps(load(table + 8), at),
                              (__m256)_mm256_slli_epi32(at, 28));
    return _mm256_i32gather_ps(table, at, 4);
  }
#endif
  Vector<R> v{};
  for (int i = 0; i < kLanes<Vector<R>>; ++i) v[i] = table[index[i]];
  return v;
}

}  // namespace tamis::TAMIS_ISA
