// Vectors of bytes: lookups, saturating sums, dot products of bytes. Shuffles through SIMDe, so that one source serves
// every width, also where a machine lacks it.
#pragma once
#include <simde/x86/avx512/adds.h>
#include <simde/x86/avx512/broadcast.h>
#include <simde/x86/avx512/cmpgt.h>
#include <simde/x86/avx512/cvt.h>
#include <simde/x86/avx512/dpbusd.h>
#include <simde/x86/avx512/madd.h>
#include <simde/x86/avx512/permutexvar.h>
#include <simde/x86/avx512/shuffle.h>
#include <simde/x86/avx512/ternarylogic.h>
#include "../common/simd.h"

namespace tamis::TAMIS_ISA {

typedef uint8_t U8 __attribute__((vector_size(kBytes)));
typedef int8_t S8 __attribute__((vector_size(kBytes)));
typedef int16_t S16 __attribute__((vector_size(kBytes)));
typedef uint16_t W16 __attribute__((vector_size(kBytes)));
typedef uint8_t U8x16 __attribute__((vector_size(16)));

#if TAMIS_LANES == 16
typedef simde__m512i Register;
#define TAMIS_SIMDE(name) simde_mm512_##name
#elif TAMIS_LANES == 8
typedef simde__m256i Register;
#define TAMIS_SIMDE(name) simde_mm256_##name
#else
typedef simde__m128i Register;
#define TAMIS_SIMDE(name) simde_mm_##name
#endif

inline U8 load_bytes(const void* p) {
  U8 v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline S8 add_saturated(S8 a, S8 b) { return (S8)TAMIS_SIMDE(adds_epi8)((Register)a, (Register)b); }

// Each byte of `index` below 16, looked up in its own 16 bytes of `table`; from 128 on, 0.
inline U8 lookup16(U8 table, U8 index) { return (U8)TAMIS_SIMDE(shuffle_epi8)((Register)table, (Register)index); }

inline U8 repeat16(const void* p) {
  U8x16 v;
  memcpy(&v, p, sizeof v);
#if TAMIS_LANES == 16
  return (U8)simde_mm512_broadcast_i32x4((simde__m128i)v);
#elif TAMIS_LANES == 8
  return (U8)simde_mm256_broadcastsi128_si256((simde__m128i)v);
#else
  return v;
#endif
}

// 64 bytes in which the low six bits of each byte of an index are looked up.
#ifdef __AVX512VBMI__
class Lookup64 {
 public:
  explicit Lookup64(const uint8_t* table) : entries_(load_bytes(table)) {
    asm("" : "+v"(entries_));  // read once: else each lookup reads them for itself
  }
  U8 operator()(U8 index) const {
    return (U8)simde_mm512_permutexvar_epi8((simde__m512i)index, (simde__m512i)entries_);
  }

 private:
  U8 entries_;
};
#else
class Lookup64 {
 public:
  explicit Lookup64(const uint8_t* table) : table_(table) {}
  U8 operator()(U8 index) const {
    const U8 code = index & 63;
    U8 found = {};
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter)  // a code of another quarter looks past 127
      found |= lookup16(repeat16(table_ + 16 * quarter), (code ^ (uint8_t)(16 * quarter)) + 112);
    return found;
  }

 private:
  const uint8_t* table_;
};
#endif

// To the nearest, ties to even.
inline I32 rounded(F32 x) {
#if TAMIS_LANES == 16
  return (I32)simde_mm512_cvtps_epi32((simde__m512)x);
#elif TAMIS_LANES == 8
  return (I32)simde_mm256_cvtps_epi32((simde__m256)x);
#else
  return (I32)simde_mm_cvtps_epi32((simde__m128)x);
#endif
}

inline uint64_t not_less(S8 a, int8_t than) {  // a bit each
#if TAMIS_LANES == 16
  return ~simde_mm512_cmpgt_epi8_mask(simde_mm512_set1_epi8(than), (Register)a);
#else
  return (uint32_t)TAMIS_SIMDE(movemask_epi8)((Register)(a >= than));
#endif
}

// Inlined: a call of what only prefetches does nothing, says GCC, and drops it.
__attribute__((always_inline)) inline void prefetch(const void* from, int64_t bytes) {
  for (const char* at = static_cast<const char*>(from); bytes > 0; bytes -= 64, at += 64) __builtin_prefetch(at);
}

#ifdef __AVX512VNNI__
// To each number of `sum` the dot product of its four bytes of a, below 256, and of b, signed.
inline I32 dot4(I32 sum, U8 a, S8 b) { return (I32)simde_mm512_dpbusd_epi32((Register)sum, (Register)a, (Register)b); }

// Four bytes that many are multiplied by.
struct Factor {
  int32_t bytes;
  explicit Factor(const int8_t* b) { memcpy(&bytes, b, 4); }
};
inline I32 dot4(I32 sum, U8 a, Factor b) { return dot4(sum, a, (S8)(I32{} + b.bytes)); }
#else
inline I32 dot4(I32 sum, U8 a, S16 even, S16 odd) {
  sum += (I32)TAMIS_SIMDE(madd_epi16)((Register)((W16)a & 255), (Register)even);
  return sum + (I32)TAMIS_SIMDE(madd_epi16)((Register)((W16)a >> 8), (Register)odd);
}
inline I32 dot4(I32 sum, U8 a, S8 b) { return dot4(sum, a, (S16)b << 8 >> 8, (S16)b >> 8); }

struct Factor {  // as they are multiplied
  int16_t even[2], odd[2];
  explicit Factor(const int8_t* b) : even{b[0], b[2]}, odd{b[1], b[3]} {}
};
inline I32 dot4(I32 sum, U8 a, Factor b) {
  int32_t even, odd;
  memcpy(&even, b.even, 4), memcpy(&odd, b.odd, 4);
  return dot4(sum, a, (S16)(I32{} + even), (S16)(I32{} + odd));
}
#endif

}  // namespace tamis::TAMIS_ISA
