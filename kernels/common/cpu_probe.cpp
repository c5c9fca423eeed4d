// The probes. Compiled once per ISA. Results go to memory and memory is clobbered between passes, so that no pass can
// be dropped or merged with the next.
#include <simde/x86/avx512/permutexvar.h>
#include <simde/x86/avx512/shuffle.h>
#include "probe.h"
#include "simd.h"

namespace tamis::TAMIS_ISA {
namespace {

typedef uint8_t U8 __attribute__((vector_size(kBytes)));

#define TAMIS_NEXT_PASS asm volatile("" ::: "memory")

constexpr int64_t kAhead = 1024;  // bytes from what is read to what is prefetched
constexpr int kStreams = 8;       // independent sums: latency of an addition times additions a cycle

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kChains = 24;  // of 32 registers; Apple's four pipes of latency 4 want 16
#elif TAMIS_LANES > 8
constexpr int kChains = 6;  // each is two registers
#else
constexpr int kChains = 12;  // of 16 registers
#endif

double copy(const char* from, char* to, int64_t bytes, int64_t passes) {
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t i = 0; i < bytes; i += 64) {
      __builtin_prefetch(from + i + kAhead);
      for (int64_t j = i; j < i + 64; j += kBytes) stream((float*)(to + j), load((const float*)(from + j)));
    }
    stream_fence();
    TAMIS_NEXT_PASS;
  }
  return 2.0 * bytes * passes;
}

double read(const char* from, char* to, int64_t bytes, int64_t passes) {
  F32 sum[kStreams] = {};
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t i = 0; i < bytes; i += kStreams * kBytes) {
      for (int64_t j = 0; j < kStreams * kBytes; j += 64) __builtin_prefetch(from + i + j + kAhead);
#pragma GCC unroll 8
      for (int j = 0; j < kStreams; ++j) sum[j] += load((const float*)(from + i + j * kBytes));
    }
    TAMIS_NEXT_PASS;
  }
#pragma GCC unroll 8
  for (int j = 0; j < kStreams; ++j) store((float*)to + j * TAMIS_LANES, sum[j]);
  return double(bytes) * passes;
}

double fma(const char* from, char* to, int64_t, int64_t passes) {
  constexpr int kInner = 256;
  const F32 factor = load((const float*)from), term = load((const float*)from + TAMIS_LANES);
  F32 chain[kChains];
#pragma GCC unroll 24
  for (int j = 0; j < kChains; ++j) chain[j] = factor + float(j);
  for (int64_t i = 0; i < passes * kInner; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kChains; ++j) chain[j] = chain[j] * factor + term;
  }
#pragma GCC unroll 24
  for (int j = 0; j < kChains; ++j) store((float*)to + j * TAMIS_LANES, chain[j]);
  return 2.0 * kChains * kInner * TAMIS_LANES * passes;
}

double exponential(const char* from, char* to, int64_t bytes, int64_t passes) {
  F32 sum[4] = {};
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t i = 0; i < bytes; i += 4 * kBytes) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[j] += exp_careless(load((const float*)(from + i + j * kBytes)), 1.0f);
    }
    TAMIS_NEXT_PASS;
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) store((float*)to + j * TAMIS_LANES, sum[j]);
  return double(bytes / 4) * passes;
}

// Each byte of `index`, its low bits, looked up in `table`: within 16 bytes, or over all 64 where VBMI does so at once.
U8 lookup(U8 table, U8 index) {
#if TAMIS_LANES == 16 && defined(__AVX512VBMI__)
  return (U8)simde_mm512_permutexvar_epi8((simde__m512i)index, (simde__m512i)table);
#elif TAMIS_LANES == 16
  return (U8)simde_mm512_shuffle_epi8((simde__m512i)table, (simde__m512i)index);
#elif TAMIS_LANES == 8
  return (U8)simde_mm256_shuffle_epi8((simde__m256i)table, (simde__m256i)index);
#else
  return (U8)simde_mm_shuffle_epi8((simde__m128i)table, (simde__m128i)index);
#endif
}

double shuffle(const char* from, char* to, int64_t bytes, int64_t passes) {
  U8 table, sum[4] = {};
  memcpy(&table, from, sizeof table);
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t i = 0; i < bytes; i += 4 * kBytes) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        U8 index;
        memcpy(&index, from + i + j * kBytes, sizeof index);
        sum[j] ^= lookup(table, index);
      }
    }
    TAMIS_NEXT_PASS;
  }
  memcpy(to, sum, sizeof sum);
  return double(bytes) * passes;
}

}  // namespace

const ProbeKernels probe = {copy, read, fma, exponential, shuffle};

}  // namespace tamis::TAMIS_ISA
