// Scores of one block of codes for some queries at once: a lookup and an addition a code, of as many bytes as a
// register has. Signed bytes saturate, in an order that is the width's own; unsigned ones are exact in 16 bits.
#pragma once
#include "bytes.h"
#include "cpu.h"

namespace tamis::TAMIS_ISA {

inline constexpr int kBlock = 64;  // vectors of the larger blocks

template <Lookup kLookup>
struct ValueOf {
  using type = int8_t;
};
template <>
struct ValueOf<Lookup::u16> {
  using type = uint16_t;
};
template <Lookup kLookup>
using Value = typename ValueOf<kLookup>::type;

inline U8 select(uint8_t mask, U8 a, U8 b) { return (a & mask) | (b & (uint8_t)~mask); }

// Two sums of 16 vectors each, in the 16 bytes of each lane, to 32 of them.
inline void join(S8 low, S8 high, int8_t* out) {
#if TAMIS_LANES == 16
  const S8 outer = add_saturated((S8)__builtin_shufflevector((I64)low, (I64)high, 0, 1, 2, 3, 8, 9, 10, 11),
                                 (S8)__builtin_shufflevector((I64)low, (I64)high, 4, 5, 6, 7, 12, 13, 14, 15));
  const S8 all = add_saturated((S8)__builtin_shufflevector((I64)outer, (I64)outer, 0, 1, 4, 5, 0, 1, 4, 5),
                               (S8)__builtin_shufflevector((I64)outer, (I64)outer, 2, 3, 6, 7, 2, 3, 6, 7));
  memcpy(out, &all, 32);
#elif TAMIS_LANES == 8
  const S8 all = add_saturated((S8)__builtin_shufflevector((I64)low, (I64)high, 0, 1, 4, 5),
                               (S8)__builtin_shufflevector((I64)low, (I64)high, 2, 3, 6, 7));
  memcpy(out, &all, 32);
#else
  memcpy(out, &low, 16);
  memcpy(out + 16, &high, 16);
#endif
}

// Unsigned bytes to sums of 16 bits: those at even places, with 256 times their neighbours, and these alone.
struct Exact {
  W16 even = {}, odd = {};
  void add(U8 x) {
    even += (W16)x;
    odd += (W16)x >> 8;
  }
  void add_to(uint16_t* out) const {  // [kBytes]
    const W16 own = even - (odd << 8);
    for (int i = 0; i < kBytes / 2; ++i) out[2 * i] += own[i], out[2 * i + 1] += odd[i];
  }
};

struct Four {  // bits: 16 bytes of codes and of table a part, kBytes / 16 parts at once
  static constexpr int kVectors = 32;

  template <int kQueries>
  static void sums(const uint8_t* codes, int64_t parts, const uint8_t* const* tables, const int8_t* bias,
                   int8_t (*out)[kBlock]) {
    S8 low[kQueries] = {}, high[kQueries] = {};
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) {
      const U8x16 first = U8x16{} + (uint8_t)bias[q];
      memcpy(&low[q], &first, sizeof first);
      high[q] = low[q];
    }
    for (int64_t at = 0; at < parts * 16; at += kBytes) {  // equivalent: of an odd end a register is the same
      const U8 code = load_bytes(codes + at), first = code & 15, second = code >> 4;
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) {
        const U8 table = load_bytes(tables[q] + at);
        low[q] = add_saturated(low[q], (S8)lookup16(table, first));
        high[q] = add_saturated(high[q], (S8)lookup16(table, second));
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) join(low[q], high[q], out[q]);
  }

  template <int kQueries>
  static void sums(const uint8_t* codes, int64_t parts, const uint8_t* const* tables, const int8_t*,
                   uint16_t (*out)[kBlock]) {
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) {
      Exact low, high;
      for (int64_t at = 0; at < parts * 16; at += kBytes) {  // equivalent: likewise
        const U8 code = load_bytes(codes + at), table = load_bytes(tables[q] + at);
        low.add(lookup16(table, code & 15));
        high.add(lookup16(table, code >> 4));
      }
      uint16_t each[2][kBytes] = {};
      low.add_to(each[0]);
      high.add_to(each[1]);
      for (int i = 0; i < 32; ++i) {
        out[q][i] = 0;
        for (int lane = 0; lane < kBytes; lane += 16) out[q][i] += each[i / 16][lane + i % 16];
      }
    }
  }
};

struct Six {  // bits: four parts in 192 bytes, of which each third looks up 64 codes
  static constexpr int kVectors = 64;

  template <int kQueries, class Add>
  static void walk(const uint8_t* codes, int64_t parts, const uint8_t* const* tables, const Add& add) {
    for (int64_t group = 0; group < parts / 4; ++group) {
      const uint8_t* const c = codes + 192 * group;
      U8 code[4] = {load_bytes(c), load_bytes(c + 64), load_bytes(c + 128)};  // the high bits: see lookup64
      const U8 two = select(3, (U8)((W16)code[0] >> 6), (U8)((W16)code[1] >> 4));
      code[3] = select(15, two, (U8)((W16)code[2] >> 2));
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) add(q, i, lookup64(tables[q] + 256 * group + 64 * i, code[i]));
    }
  }

  template <int kQueries>
  static void sums(const uint8_t* codes, int64_t parts, const uint8_t* const* tables, const int8_t* bias,
                   int8_t (*out)[kBlock]) {
    for (int first = 0; first < kBlock; first += kBytes) {
      S8 sum[kQueries][2];
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) sum[q][0] = S8{} + bias[q], sum[q][1] = S8{};
      walk<kQueries>(codes + first, parts, tables,
                     [&](int q, int i, U8 x) { sum[q][i % 2] = add_saturated(sum[q][i % 2], (S8)x); });
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) {
        const S8 all = add_saturated(sum[q][0], sum[q][1]);
        memcpy(out[q] + first, &all, sizeof all);
      }
    }
  }

  template <int kQueries>
  static void sums(const uint8_t* codes, int64_t parts, const uint8_t* const* tables, const int8_t*,
                   uint16_t (*out)[kBlock]) {
    for (int first = 0; first < kBlock; first += kBytes)
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) {
        Exact sum;
        walk<1>(codes + first, parts, tables + q, [&](int, int, U8 x) { sum.add(x); });
        memset(out[q] + first, 0, kBytes * 2);
        sum.add_to(out[q] + first);
      }
  }
};

// Which of a block's values are above `than`, a bit each.
template <class Layout>
inline uint64_t above(const int8_t* values, int than) {
  uint64_t bits = 0;
  for (int first = 0; first < Layout::kVectors; first += kBytes) {
    uint64_t some;
    if constexpr (kBytes > Layout::kVectors) {
      S8 x = {};
      memcpy(&x, values, Layout::kVectors);
      some = greater(x, (int8_t)than) & 0xffffffff;
    } else {
      some = greater((S8)load_bytes(values + first), (int8_t)than);
    }
    bits |= some << first;
  }
  return bits;
}
template <class Layout>
inline uint64_t above(const uint16_t* values, int than) {
  uint64_t bits = 0;
  for (int i = 0; i < Layout::kVectors; ++i) bits |= (uint64_t)(values[i] > than) << i;
  return bits;
}

}  // namespace tamis::TAMIS_ISA
