// Vectors of any width on GCC/Clang vector extensions. CMake gives TAMIS_ISA (the namespace) and TAMIS_LANES (floats a
// vector), so 16 lanes compile and run on any machine. C headers only: a std:: template compiled for AVX-512 would be a
// weak symbol, and the linker may keep that copy for every machine.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif
#include "matrix.h"
#ifdef TAMIS_CHECKED  // by tests: what a caller promises is looked at
#define TAMIS_PROMISED(condition) ((condition) ? void() : __builtin_trap())
#else
#define TAMIS_PROMISED(condition) void()
#endif

namespace tamis::TAMIS_ISA {

inline constexpr int kBytes = 4 * TAMIS_LANES;
typedef float F32 __attribute__((vector_size(kBytes)));
typedef double F64 __attribute__((vector_size(kBytes)));
typedef int32_t I32 __attribute__((vector_size(kBytes)));
typedef uint32_t U32 __attribute__((vector_size(kBytes)));
typedef int64_t I64 __attribute__((vector_size(kBytes)));
typedef uint16_t U16 __attribute__((vector_size(kBytes / 2)));
typedef int8_t I8 __attribute__((vector_size(kBytes / 4)));
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {  // not _Float16, which C++ has on few compilers
  uint16_t bits;
};

inline constexpr float kInf = __builtin_inff();
template <class V>
inline constexpr int kLanes = sizeof(V) / sizeof(V{}[0]);

// The arithmetic's type, and its vector, for memory of any dtype: float, or double for double.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using Real = typename Accumulator<T>::type;
template <class R>
struct VectorOf {
  using type = F32;
};
template <>
struct VectorOf<double> {
  using type = F64;
};
template <class R>
using Vector = typename VectorOf<R>::type;

inline F32 load(const float* p) {
  F32 v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline F64 load(const double* p) {
  F64 v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline U32 load(const uint16_t* p) {  // GCC 12 widens by halves, bytes one by one
#if defined(__AVX512F__) && TAMIS_LANES == 16
  return (U32)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__) && TAMIS_LANES == 8
  return (U32)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__SSE4_1__) && TAMIS_LANES == 4
  return (U32)_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  U16 v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, U32);
#endif
}
inline F32 load(const BFloat16* p) { return (F32)(load(&p->bits) << 16); }
inline F32 load(const Float16* p) {  // subnormals also where the processor was told to take its own for 0
#if defined(__AVX512F__) && TAMIS_LANES == 16
  return (F32)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__) && TAMIS_LANES == 8
  return (F32)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  const U32 h = load(&p->bits), size = h & 0x7fff;
  const U32 bias = size < 0x7c00 ? U32{} + (112 << 23) : U32{} + (224 << 23);  // the exponent's, and of inf and NaN
  const F32 subnormal = __builtin_convertvector((I32)size, F32) * 0x1p-24f;
  return (F32)((size < 0x400 ? (U32)subnormal : (size << 13) + bias) | (h & 0x8000) << 16);
#endif
}

inline I32 load_mask(const bool* p) {  // all bits of a lane, or none
#if defined(__AVX512F__) && TAMIS_LANES == 16
  return (I32)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)) != 0;
#elif defined(__AVX2__) && TAMIS_LANES == 8
  return (I32)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)) != 0;
#else
  I8 v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, I32) != 0;
#endif
}

// One bit a lane; lanes are 0 or -1.
inline uint64_t bits_of(I32 mask) {
#if defined(__AVX512DQ__) && TAMIS_LANES == 16
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX__) && TAMIS_LANES == 8
  return _mm256_movemask_ps((__m256)mask);
#elif defined(__SSE2__) && TAMIS_LANES == 4
  return _mm_movemask_ps((__m128)mask);
#else
  uint64_t bits = 0;
  for (int i = 0; i < TAMIS_LANES; ++i) bits |= (uint64_t)(mask[i] & 1) << i;
  return bits;
#endif
}
inline uint64_t bits_of(I64 mask) {
#if defined(__AVX512DQ__) && TAMIS_LANES == 16
  return _mm512_movepi64_mask((__m512i)mask);
#elif defined(__AVX__) && TAMIS_LANES == 8
  return _mm256_movemask_pd((__m256d)mask);
#elif defined(__SSE2__) && TAMIS_LANES == 4
  return _mm_movemask_pd((__m128d)mask);
#else
  uint64_t bits = 0;
  for (int i = 0; i < TAMIS_LANES / 2; ++i) bits |= (uint64_t)(mask[i] & 1) << i;
  return bits;
#endif
}

// To half precision: to nearest, ties to even.
inline F32 to_memory(const float*, F32 v) { return v; }
inline F64 to_memory(const double*, F64 v) { return v; }
inline U16 to_memory(const Float16*, F32 v) {  // likewise
  const I32 bits = (I32)v, size = bits & 0x7fffffff;
  const U32 rounded = (U32)size - (112 << 23) + 0xfff + ((U32)size >> 13 & 1);  // unsigned: of a NaN it may wrap
  const I32 normal = (I32)rounded >> 13;
  const I32 subnormal = (I32)((F32)size + 0.5f) - 0x3f000000;  // the sum rounds at the smallest half
  const I32 large = size > 0x7f800000 ? I32{} + 0x7e00 : I32{} + 0x7c00;
  const I32 h = size < 0x38800000 ? subnormal : size < 0x47800000 ? normal : large;
  return __builtin_convertvector((U32)(h | (bits >> 16 & 0x8000)), U16);
}
inline U16 to_memory(const BFloat16*, F32 v) {
  const U32 bits = (U32)v;
  const U32 even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // it would carry a NaN into inf
  return __builtin_convertvector(v == v ? even : U32{} + 0x7fc0, U16);
}
template <class T, class V>
inline void store(T* p, V v) {
  const auto m = to_memory(p, v);
  memcpy(p, &m, sizeof m);
}

// Past the caches, for results that nobody reads soon: no line is fetched to be overwritten. p must be aligned to the
// vector in memory. stream_fence orders such stores before what other threads read.
template <class T, class V>
inline void stream(T* p, V v) {
  const auto m = to_memory(p, v);
#ifdef __AVX512F__
  if constexpr (sizeof m == 64) return _mm512_stream_si512((__m512i*)p, (__m512i)m);
#endif
#ifdef __AVX__
  if constexpr (sizeof m == 32) return _mm256_stream_si256((__m256i*)p, (__m256i)m);
#endif
#ifdef __SSE2__
  if constexpr (sizeof m == 16) return _mm_stream_si128((__m128i*)p, (__m128i)m);
#endif
  memcpy(p, &m, sizeof m);
}
inline void stream_fence() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Of what is left, never nothing, no more than `most`.
inline int64_t upto(int64_t left, int64_t most) {
  TAMIS_PROMISED(left > 0);
  return left < most ? left : most;
}

// The first n elements, 1..kLanes; the lanes behind them read `fill`.
template <class T>
inline auto load_upto(const T* p, int64_t n, float fill = -kInf) {
  TAMIS_PROMISED(n > 0 && n <= kLanes<decltype(load(p))>);
#ifdef __AVX512F__
  if constexpr (sizeof(F32) == 64 && __is_same(T, float))
    return (F32)_mm512_mask_loadu_ps(F32{} + fill, (__mmask16)((1u << n) - 1), p);
#endif
#if defined(__AVX2__) && !defined(TAMIS_CHECKED)  // whose sanitizers see no masked load
  if constexpr (sizeof(F32) == 32 && __is_same(T, float)) {
    const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return (F32)_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, there), (__m256)there);
  }
#endif
  T block[kLanes<decltype(load(p))>] = {};
  memcpy(block, p, n * sizeof(T));
  auto v = load(block);
  for (int64_t i = n; i < kLanes<decltype(v)>; ++i) v[i] = fill;
  return v;
}
// One.
inline float number(const float* x) { return *x; }
inline double number(const double* x) { return *x; }
template <class T>
Real<T> number(const T* x) {
  return load_tail(x, 1)[0];
}
template <class T, class V>
inline void store_upto(T* p, int64_t n, V v) {
  TAMIS_PROMISED(n > 0 && n <= kLanes<V>);
#ifdef __AVX512F__
  if constexpr (sizeof(V) == 64 && __is_same(T, float)) return _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
#endif
  T block[kLanes<V>];
  store(block, v);
  memcpy(p, block, n * sizeof(T));
}

// A row's end: neither nothing nor a whole vector, which the loop before takes sooner.
template <class T>
inline auto load_tail(const T* p, int64_t n, float fill = -kInf) {
  TAMIS_PROMISED(n < kLanes<decltype(load(p))>);
  return load_upto(p, n, fill);
}
template <class T, class V>
inline void store_tail(T* p, int64_t n, V v) {
  TAMIS_PROMISED(n < kLanes<V>);
  store_upto(p, n, v);
}

template <class V>
inline V max(V a, V b) {
  return a > b ? a : b;
}  // drops a NaN in a, keeps one in b
template <class V>
inline V min(V a, V b) {
  return a < b ? a : b;
}  // likewise

// Over the lanes; of 32 bits halves upon halves: a chain through all of them takes as long as some ten vectors of work.
template <bool kAdd, class V>
inline auto reduce(V v) {
  const auto join = [](auto a, auto b) { return kAdd ? a + b : b > a ? b : a; };
  [[maybe_unused]] constexpr bool floats = __is_same(decltype(v[0] + 0), float);
  [[maybe_unused]] constexpr bool whole = __is_same(decltype(v[0] + 0), int) && sizeof(v[0]) == 4;
#ifdef __AVX512F__
  if constexpr (floats && kLanes<V> == 16)
    return reduce<kAdd>(join(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
  if constexpr (whole && kLanes<V> == 16) {
    typedef int32_t Half __attribute__((vector_size(32)));
    const __m512i all = (__m512i)v;
    return reduce<kAdd>(join((Half)_mm512_castsi512_si256(all), (Half)_mm512_extracti32x8_epi32(all, 1)));
  }
#endif
#ifdef __AVX__
  if constexpr (floats && kLanes<V> == 8)
    return reduce<kAdd>(join(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
  if constexpr (whole && kLanes<V> == 8) {
    typedef int32_t Half __attribute__((vector_size(16)));
    const __m256i all = (__m256i)v;
    return reduce<kAdd>(join((Half)_mm256_castsi256_si128(all), (Half)_mm256_extractf128_si256(all, 1)));
  }
#endif
  if constexpr ((floats || whole) && kLanes<V> == 4) return join(join(v[0], v[2]), join(v[1], v[3]));
  auto all = v[0];
  for (int i = 1; i < kLanes<V>; ++i) all = join(all, v[i]);
  return all;
}
template <class V>
inline auto reduce_max(V v) {
  return reduce<false>(v);
}
template <class V>
inline auto reduce_add(V v) {
  return reduce<true>(v);
}

// 2^t = 2^n 2^f with n = round(t), t = u * scale / ln 2, rounded once, inside the fma that leaves f. Relative
// error 1.5e-7 with fma.
constexpr float kRound = 12582912.0f + 127.0f;  // 1.5 * 2^23: a sum with it is an integer, n + 127 in its low bits
inline F32 exp2_fraction(F32 f) {               // minimax on [-1/2, 1/2], exact at 0
  F32 p = f * 1.326472731e-3f + 9.671512991e-3f;
  p = p * f + 5.550733581e-2f;
  p = p * f + 2.402224243e-1f;
  p = p * f + 6.931470037e-1f;
  return p * f + 1.0f;
}

// exp(u * scale) of exp_lowest(scale) <= u <= 0 < scale, 0 at the lower end; of a larger u any number. NaN gives NaN.
// kExpOfAny: of a smaller one 0, only -inf gives NaN.
#ifdef __AVX512F__
template <class R>
inline constexpr bool kExpOfAny = sizeof(R) == 4;
#else
template <class R>
inline constexpr bool kExpOfAny = false;
#endif
inline F32 exp_bounded(F32 u, float scale) {
  const float c = scale * 1.44269504f;
  const F32 shifted = u * c + kRound, n = shifted - kRound;
#ifdef __AVX512F__
  return _mm512_scalef_ps(exp2_fraction(u * c - n), n);
#else
  return exp2_fraction(u * c - n) * (F32)((U32)shifted << 23);  // 2^n
#endif
}
inline float exp_lowest(float scale) {
#ifdef __AVX512F__
  return -200 / (scale * 1.44269504f);
#else
  return -127.3f / (scale * 1.44269504f);  // there n is -127, and 2^n comes out as +0
#endif
}

// exp(u * scale) for u <= 0 < scale. NaN gives NaN; below 2^-126.5 (where floats turn subnormal) exactly 0.
inline F32 exp_nonpositive(F32 u, float scale) {
  const float c = scale * 1.44269504f;
  u = max(F32{} - 127.3f / c, u);
  const F32 shifted = u * c + kRound, n = shifted - kRound, power = (F32)((U32)shifted << 23);
  return exp2_fraction(u * c - n) * power;
}

// exp(u * scale) of any u, without care: beyond the range of float the result is above 1e38 or not a number, which the
// sum it goes into shows; so may it be for u = -inf.
inline F32 exp_careless(F32 u, float scale) {
#ifdef __AVX512F__
  return exp_bounded(u, scale);
#else
  return exp_nonpositive(min(F32{} + 88.5f / scale, u), scale);
#endif
}
inline F64 exp_careless(F64 u, double scale) {
  for (int i = 0; i < kLanes<F64>; ++i) u[i] = ::exp(u[i] * scale);
  return u;
}
inline F64 exp_bounded(F64 u, double scale) { return exp_careless(u, scale); }
inline double exp_lowest(double scale) { return -800 / scale; }
inline F64 exp_nonpositive(F64 u, double scale) {  // untuned
  for (int i = 0; i < kLanes<F64>; ++i) u[i] = ::exp(u[i] * scale);
  return u;
}

// Relative error 2e-7: near 0 an odd polynomial, else from the exponential.
inline F32 tanh(F32 x) {
  const F32 size = (F32)((U32)x & 0x7fffffff), z = x * x;
  F32 p = z * -5.697378423e-3f + 2.063254081e-2f;  // minimax on [0, 0.626]
  p = p * z - 5.373779684e-2f;
  p = p * z + 1.333142072e-1f;
  p = p * z - 3.333328068e-1f;
  const F32 near = x * z * p + x;
  const F32 e = exp_nonpositive(-size, 2.0f), far = (1.0f - e) / (1.0f + e);
  const F32 signed_far = (F32)((U32)far | ((U32)x & 0x80000000));
  return size < 0.625f ? near : x == x ? signed_far : x;
}
inline F64 tanh(F64 x) {
  for (int i = 0; i < kLanes<F64>; ++i) x[i] = ::tanh(x[i]);
  return x;
}

// Of positive numbers; absolute error 5e-8, relative 1e-7 away from 1 and near it. 0 gives -88.
inline F32 log(F32 x) {
  const I32 bits = (I32)x, n = (bits - 0x3f3504f3) >> 23;  // x = 2^n (1 + f), 1 + f within sqrt(1/2)..sqrt(2)
  const F32 f = (F32)(bits - (n << 23)) - 1.0f;
  F32 p = f * 8.736121905e-2f - 1.430716933e-1f;  // minimax
  p = p * f + 1.49173534e-1f;
  p = p * f - 1.657055823e-1f;
  p = p * f + 1.996214357e-1f;
  p = p * f - 2.500175308e-1f;
  p = p * f + 3.333394812e-1f;
  p = p * f - 4.999999164e-1f;
  return p * (f * f) + (f + __builtin_convertvector(n, F32) * 0.693147181f);
}
inline F64 log(F64 x) {
  for (int i = 0; i < kLanes<F64>; ++i) x[i] = ::log(x[i]);
  return x;
}

// log(1 + x) of x >= 0, and exp(x) - 1 of x <= 0; relative error 3e-7, near 0 too.
inline F32 log1p(F32 x) {
  const F32 u = 1 + x, y = u == 1 ? x : log(u) * (x / (u - 1));  // what the sum rounded off is put back
  return x == x ? y : x;
}
inline F32 expm1(F32 x) {
  const F32 e = exp_nonpositive(x, 1.0f), y = e == 1 ? x : e == 0 ? F32{} - 1 : (e - 1) * (x / log(e));
  return x == x ? y : x;
}
inline F64 log1p(F64 x) {
  for (int i = 0; i < kLanes<F64>; ++i) x[i] = ::log1p(x[i]);
  return x;
}
inline F64 expm1(F64 x) {
  for (int i = 0; i < kLanes<F64>; ++i) x[i] = ::expm1(x[i]);
  return x;
}

inline float exp(float x) { return ::expf(x); }
inline double exp(double x) { return ::exp(x); }
// Not ::log1p and ::expm1 of a float, which are templates of the C++ library.
inline float log1p(float x) { return ::log1pf(x); }
inline double log1p(double x) { return ::log1p(x); }
inline float expm1(float x) { return ::expm1f(x); }
inline double expm1(double x) { return ::expm1(x); }
inline float log(float x) { return ::logf(x); }
inline double log(double x) { return ::log(x); }

inline int64_t row_offset(const Matrix& m, int64_t r) { return r / m.group * m.group_stride + r % m.group * m.stride; }
template <class T>
const T* row_of(const Matrix& m, int64_t r) {
  return static_cast<const T*>(m.data) + row_offset(m, r);
}

}  // namespace tamis::TAMIS_ISA
