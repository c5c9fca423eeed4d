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

inline U8 select(uint8_t mask, U8 a, U8 b) {
#if TAMIS_LANES == 16
  constexpr int kChoose = 0xca;
  return (U8)simde_mm512_ternarylogic_epi32((Register)(U8{} + mask), (Register)a, (Register)b, kChoose);
#else
  return (a & mask) | (b & (uint8_t)~mask);
#endif
}

// Two sums of 16 vectors each, in the 16 bytes of each lane, to 32 of them: to as many registers as those fill.
inline S8 sum_of(S8 a, S8 b) { return add_saturated(a, b); }
inline W16 sum_of(W16 a, W16 b) { return a + b; }
template <class V>
void join(V low, V high, V* out) noexcept {  // else, not inlined, its callers have handlers
#if TAMIS_LANES == 16
  const V outer = sum_of((V)__builtin_shufflevector((I64)low, (I64)high, 0, 1, 2, 3, 8, 9, 10, 11),
                         (V)__builtin_shufflevector((I64)low, (I64)high, 4, 5, 6, 7, 12, 13, 14, 15));
  out[0] = sum_of((V)__builtin_shufflevector((I64)outer, (I64)outer, 0, 1, 4, 5, 0, 1, 4, 5),
                  (V)__builtin_shufflevector((I64)outer, (I64)outer, 2, 3, 6, 7, 2, 3, 6, 7));
#elif TAMIS_LANES == 8
  out[0] = sum_of((V)__builtin_shufflevector((I64)low, (I64)high, 0, 1, 4, 5),
                  (V)__builtin_shufflevector((I64)low, (I64)high, 2, 3, 6, 7));
#else
  out[0] = low, out[1] = high;
#endif
}

// Unsigned bytes to sums of 16 bits: those at even places, with 256 times their neighbours, and these alone.
struct Exact {
  W16 both = {}, odd = {};
  void add(U8 x) {
    both += (W16)x;
    odd += (W16)x >> 8;
  }
  W16 even() const { return both - (odd << 8); }
};

// What a block's vectors score. A layout has the sums of kBlocks blocks for kQueries queries: signed ones of as many as
// kTogether, exact ones of one.
template <class Layout, Lookup kLookup>
struct Sums {  // signed bytes
  S8 of[Layout::kRegisters];

  uint64_t at_least(int threshold) const {  // a bit each; behind the block's vectors anything
    uint64_t bits = 0;
#pragma GCC unroll 4
    for (int i = 0; i < Layout::kRegisters; ++i) bits |= not_less(of[i], (int8_t)threshold) << (i * kBytes % 64);
    return bits;
  }
  const int8_t* values(int8_t*) const { return reinterpret_cast<const int8_t*>(of); }
};
template <class Layout>
struct Sums<Layout, Lookup::u16> {
  W16 even[Layout::kRegisters], odd[Layout::kRegisters];  // of the vectors at even places, and at odd ones

  uint64_t at_least(int threshold) const {
    const W16 than = W16{} + (uint16_t)threshold;
    uint64_t bits = 0;
#pragma GCC unroll 4
    for (int i = 0; i < Layout::kRegisters; ++i) {
      const W16 below = ((W16)(even[i] < than) & 0xff) | ((W16)(odd[i] < than) & 0xff00);  // a byte each, in order
      bits |= not_less((S8)below, 0) << (i * kBytes % 64);
    }
    return bits;
  }
  const uint16_t* values(uint16_t* out) const {
    for (int i = 0; i < Layout::kRegisters; ++i)
      for (int j = 0; j < kBytes / 2; ++j)
        out[i * kBytes + 2 * j] = even[i][j], out[i * kBytes + 2 * j + 1] = odd[i][j];
    return out;
  }
};

struct Four {  // bits: 16 bytes of codes and of table a part, kBytes / 16 parts at once
  static constexpr int kVectors = 32, kRegisters = kBytes < 32 ? 2 : 1, kTogether = 1;

  static S8 start(int8_t bias) {  // joined lanes have it once
    S8 first = {};
    for (int i = 0; i < 16; ++i) first[i] = bias;
    return first;
  }

  template <int kQueries, int kBlocks>
  __attribute__((always_inline)) static void sums(const uint8_t* codes, int64_t parts, const uint8_t* const* tables,
                                                  const S8* starts, Sums<Four, Lookup::s8> (*out)[kQueries]) {
    S8 low[kQueries], high[kQueries];
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) low[q] = high[q] = starts[q];
    const auto unpack = [&](int64_t from, U8& first, U8& second) {
      const U8 code = load_bytes(codes + from);
      first = code & 15, second = code >> 4;
    };
    int64_t at = 0;
    for (; at + 2 * kBytes <= parts * 16; at += 2 * kBytes) {  // equivalent: loop, bound: one at a time is slower
      // Two entries fit a byte: kMostSigned.
      U8 first[2], second[2];
      unpack(at, first[0], second[0]), unpack(at + kBytes, first[1], second[1]);
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) {
        const U8 one = load_bytes(tables[q] + at), two = load_bytes(tables[q] + at + kBytes);
        low[q] = add_saturated(low[q], (S8)(lookup16(one, first[0]) + lookup16(two, first[1])));
        high[q] = add_saturated(high[q], (S8)(lookup16(one, second[0]) + lookup16(two, second[1])));
      }
    }
    for (; at < parts * 16; at += kBytes) {  // equivalent: bound: of an odd end a register is the same
      U8 first, second;
      unpack(at, first, second);
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) {
        const U8 table = load_bytes(tables[q] + at);
        low[q] = add_saturated(low[q], (S8)lookup16(table, first));
        high[q] = add_saturated(high[q], (S8)lookup16(table, second));
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) join(low[q], high[q], out[0][q].of);
  }

  template <int kQueries, int kBlocks>
  __attribute__((always_inline)) static void sums(const uint8_t* codes, int64_t parts, const uint8_t* const* tables,
                                                  const S8*, Sums<Four, Lookup::u16> (*out)[kQueries]) {
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) {
      Exact low, high;
      for (int64_t at = 0; at < parts * 16; at += kBytes) {  // equivalent: bound: likewise
        const U8 code = load_bytes(codes + at), table = load_bytes(tables[q] + at);
        low.add(lookup16(table, code & 15));
        high.add(lookup16(table, code >> 4));
      }
      join(low.even(), high.even(), out[0][q].even);
      join(low.odd, high.odd, out[0][q].odd);
    }
  }
};

struct Six {  // bits: four parts in 192 bytes, of which each third looks up 64 codes
  static constexpr int kVectors = 64, kRegisters = 64 / kBytes;
  static constexpr int kTogether = kBytes == 64 ? 2 : 1;  // blocks that share what is read of a table

  static S8 start(int8_t bias) { return S8{} + bias; }

  // The codes of four parts; the high bits are anything: see Lookup64.
  static void unpack(const uint8_t* c, U8* code) {
    for (int i = 0; i < 3; ++i) code[i] = load_bytes(c + 64 * i);
    const U8 two = select(3, (U8)((W16)code[0] >> 6), (U8)((W16)code[1] >> 4));
    code[3] = select(15, two, (U8)((W16)code[2] >> 2));
  }

  template <int kQueries, int kBlocks>
  __attribute__((always_inline)) static void sums(const uint8_t* codes, int64_t parts, const uint8_t* const* tables,
                                                  const S8* starts, Sums<Six, Lookup::s8> (*out)[kQueries]) {
    for (int first = 0; first < kRegisters; ++first) {
      S8 sum[kBlocks][kQueries];
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q)
        for (int b = 0; b < kBlocks; ++b) sum[b][q] = starts[q];
      for (int64_t group = 0; group < parts / 4; ++group) {
        U8 code[kBlocks][4];
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) unpack(codes + b * parts * 48 + 192 * group + first * kBytes, code[b]);
#pragma GCC unroll 4
        for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 2
          for (int i = 0; i < 4; i += 2) {  // two entries fit a byte: kMostSigned
            const uint8_t* const table = tables[q] + 256 * group + 64 * i;
            const Lookup64 one(table), two(table + 64);
#pragma GCC unroll 2
            for (int b = 0; b < kBlocks; ++b)
              sum[b][q] = add_saturated(sum[b][q], (S8)(one(code[b][i]) + two(code[b][i + 1])));
          }
      }
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q)
        for (int b = 0; b < kBlocks; ++b) out[b][q].of[first] = sum[b][q];
    }
  }

  template <int kQueries, int kBlocks>
  __attribute__((always_inline)) static void sums(const uint8_t* codes, int64_t parts, const uint8_t* const* tables,
                                                  const S8*, Sums<Six, Lookup::u16> (*out)[kQueries]) {
    for (int first = 0; first < kRegisters; ++first) {
      Exact sum[kQueries];
      for (int64_t group = 0; group < parts / 4; ++group) {
        U8 code[4];
        unpack(codes + 192 * group + first * kBytes, code);
#pragma GCC unroll 4
        for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) sum[q].add(Lookup64(tables[q] + 256 * group + 64 * i)(code[i]));
      }
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) out[0][q].even[first] = sum[q].even(), out[0][q].odd[first] = sum[q].odd;
    }
  }
};

}  // namespace tamis::TAMIS_ISA
