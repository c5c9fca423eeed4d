// Philox-4x32-10 (Salmon et al. 2011, constants of Random123): key = seed, counter = (id, offset), low halves first.
// Words live in the low halves of 64 bits, where one instruction multiplies them; what lies above is anything. A round
// of one vector: 2 multiplications, 2 shifts, 4 exclusive ors.
#pragma once
#include "../common/simd.h"
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif

namespace tamis::TAMIS_ISA {

typedef uint64_t U64 __attribute__((vector_size(kBytes)));
typedef uint32_t HalfU32 __attribute__((vector_size(kBytes / 2)));

// Of the low halves.
inline uint64_t product(uint64_t a, uint32_t b) { return (a & 0xffffffff) * b; }
inline U64 product(U64 a, uint32_t b) {
#if defined(__AVX512F__) && TAMIS_LANES == 16
  return (U64)_mm512_maskz_mul_epu32(-1, (__m512i)a, _mm512_set1_epi64(b));  // GCC 12 warns of the plain one
#elif defined(__AVX2__) && TAMIS_LANES == 8
  return (U64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__) && TAMIS_LANES == 4
  return (U64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#elif defined(__ARM_NEON) && TAMIS_LANES == 4
  return (U64)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(b));
#else
  return (a & 0xffffffff) * (uint64_t)b;
#endif
}

template <class V>
struct Words {
  V word[4];
};

// Of K vectors at once: a round waits for the one before, so that others fill the time.
template <int K, class V>
inline void philox(const V (&id)[K], uint64_t seed, uint64_t offset, Words<V> (&out)[K]) {
  V a[K], b[K], c[K], d[K];
  for (int k = 0; k < K; ++k)
    a[k] = id[k], b[k] = id[k] >> 32, c[k] = V{} + (offset & 0xffffffff), d[k] = V{} + (offset >> 32);
  uint32_t low = (uint32_t)seed, high = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round, low += 0x9e3779b9, high += 0xbb67ae85) {
    const V key0 = V{} + (uint64_t)low, key1 = V{} + (uint64_t)high;
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      const V p = product(a[k], 0xd2511f53), q = product(c[k], 0xcd9e8d57);
      a[k] = q >> 32 ^ b[k] ^ key0, b[k] = q;
      c[k] = p >> 32 ^ d[k] ^ key1, d[k] = p;
    }
  }
  for (int k = 0; k < K; ++k) out[k] = {{a[k], b[k], c[k], d[k]}};
}
template <class V>  // U64, or uint64_t for one
inline Words<V> philox(V id, uint64_t seed, uint64_t offset) {
  const V ids[1] = {id};
  Words<V> out[1];
  philox(ids, seed, offset, out);
  return out[0];
}
constexpr int kGroup = TAMIS_LANES == 16 ? 4 : 2;  // vectors at once: as many as there are registers for

inline void store_words(uint32_t* p, U64 word) {
  const HalfU32 low = __builtin_convertvector(word, HalfU32);
  memcpy(p, &low, sizeof low);
}

// The ids of positions i.., of which `left` are there: lanes behind them hold anything.
inline U64 ids_at(const int64_t* ids, int64_t i, int64_t left) {
  U64 v;
  if (!ids) {
    for (int k = 0; k < kLanes<U64>; ++k) v[k] = k;
    return v + (uint64_t)i;
  }
  if (left >= kLanes<U64>) {
    memcpy(&v, ids + i, sizeof v);
    return v;
  }
  v = U64{};
  for (int k = 0; k < left; ++k) v[k] = ids[i + k];
  return v;
}

// kGroup vectors of them, and their words.
inline void group_words(const int64_t* ids, int64_t i, int64_t left, uint64_t seed, uint64_t offset,
                        Words<U64> (&out)[kGroup]) {
  U64 id[kGroup];
  for (int k = 0; k < kGroup; ++k) id[k] = ids_at(ids, i + k * kLanes<U64>, left - k * kLanes<U64>);
  philox(id, seed, offset, out);
}

}  // namespace tamis::TAMIS_ISA
