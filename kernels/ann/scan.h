// Queries over runs of blocks: what a query's codebooks give becomes a table of bytes, and what passes its threshold a
// candidate.
#pragma once
#include "collect.h"
#include "sums.h"

namespace tamis::TAMIS_ISA {

// A vector's score is about (sum of its entries + what its list adds) / scale + offset.
struct Table {
  const uint8_t* entries;  // [parts, centroids], zeros to a multiple of 64
  float scale, offset;
};
inline int64_t table_bytes(int bits, int64_t parts) { return ((parts << bits) + 63) & -64; }

// Of signed bytes: so that the scores of a query spread by so many, by fewer where an entry would not fit: two are
// added before they saturate. A threshold this far above a list's mean is put at kHigh by what sums start from, and
// one that is further away passes nobody.
inline constexpr float kSpread = 28;
inline constexpr int32_t kMostSigned = 63;
inline constexpr int kHigh = 80;

// Of unsigned bytes: the largest, so that the sum of all parts stays below 2^16.
inline int32_t most_of(int64_t parts) { return parts <= 257 ? 255 : (int32_t)(65535 / parts); }

template <class V>
inline V clamped(V x, V low, V high) {  // a NaN to `low`
  return x > low ? x < high ? x : high : low;
}

inline void store_bytes(uint8_t* to, I32 x) {
  const I8 bytes = __builtin_convertvector(x, I8);
  memcpy(to, &bytes, sizeof bytes);
}

inline float power_below(float x) {  // of two; of what is too little to be told from 0, 1
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= 0x7f800000;
  memcpy(&x, &bits, sizeof x);
  return x > 1e-35f ? x : 1;
}

// The scale is `finest` at most; where all of a part's entries are the same, that, or 1.
template <Lookup kLookup>
Table make_table(const float* lut, int64_t parts, int64_t centroids, uint8_t* out, float finest) {
  constexpr bool kSigned = kLookup == Lookup::s8;
  // From each part's first entry, in units of a power of two: squares neither overflow nor vanish.
  F32 furthest = {};
  for (int64_t p = 0; p < parts; ++p)
    for (int64_t i = 0; i != centroids; i += TAMIS_LANES) {
      const F32 x = load(lut + p * centroids + i) - lut[p * centroids];
      furthest = max(max(x, -x), furthest);
    }
  const float unit = power_below(reduce_max(furthest)), by = 1 / unit;
  float spread = 0, offset = 0;
  furthest = F32{};  // from its part's mean
  for (int64_t p = 0; p < parts; ++p) {
    const float* const of = lut + p * centroids;
    F32 sum = {}, squares = {}, low = F32{} + kInf, high = F32{} - kInf;
    for (int64_t i = 0; i != centroids; i += TAMIS_LANES) {
      const F32 x = (load(of + i) - of[0]) * by;
      sum += x, squares += x * x, low = min(x, low), high = max(x, high);
    }
    if (kSigned) {
      const float mean = reduce_add(sum) / centroids;
      offset += of[0] + mean * unit;
      spread += reduce_add(squares) / centroids - mean * mean;
      furthest = max(max(high - mean, mean - low), furthest);
    } else {
      const float lowest = -reduce_max(-low), span = reduce_max(high) - lowest;
      offset += of[0] + lowest * unit;
      spread = span > spread ? span : spread;
    }
  }
  const int32_t most = kSigned ? kMostSigned : most_of(parts), least = kSigned ? -most : 0;
  float scale = finest;
  if (spread > 0)
    scale = min((kSigned ? min(kSpread / sqrtf(spread), most / reduce_max(furthest)) : most / spread) * by, finest);
  if (!(scale < kInf)) scale = 1;
  for (int64_t p = 0; p < parts; ++p) {
    const float* const of = lut + p * centroids;
    F32 sum = {}, low = F32{} + kInf;
    for (int64_t i = 0; i != centroids; i += TAMIS_LANES) {
      const F32 x = (load(of + i) - of[0]) * by;
      sum += x, low = min(x, low);
    }
    const float from = (kSigned ? reduce_add(sum) / centroids : -reduce_max(-low)) * unit;
    for (int64_t i = 0; i != centroids; i += TAMIS_LANES) {
      const I32 entry = rounded((load(of + i) - of[0] - from) * scale);
      const I32 raised = entry < least ? I32{} + least : entry;
      store_bytes(out + p * centroids + i, raised > most ? I32{} + most : raised);
    }
  }
  memset(out + parts * centroids, 0, -(parts * centroids) & 63);
  return {out, scale, offset};
}

struct Run {  // of a list's blocks, whose first vector is at `position`
  const uint8_t* blocks;
  int64_t bytes, vectors, position;  // bytes: of a block
  const uint8_t* next;               // blocks that are read after these, elsewhere; null: none
};

template <class Layout>
int64_t blocks_of(const Run& run) {
  return (run.vectors + Layout::kVectors - 1) / Layout::kVectors;
}

inline constexpr int64_t kAhead = 6;  // blocks

struct Asker {
  Collector* to;
  const uint8_t* table;
  int32_t add;  // to every score of this list
};

template <Lookup kLookup>
struct Aim {  // what a query's sums start from, and what they must reach; a collector asks again
  static constexpr int kLeast = kLookup == Lookup::s8 ? -128 : 0, kMost = kLookup == Lookup::s8 ? 127 : 65535;
  int bias = 0, least = kMost;

  Aim() = default;
  explicit Aim(const Asker& q) {
    const int64_t apart = (int64_t)q.to->threshold - q.add;
    if (kLookup == Lookup::s8 && apart > kHigh) bias = (int)clamped<int64_t>(kHigh - apart, kLeast, 0);
    raise(q);
  }
  void raise(const Asker& q) { least = (int)clamped<int64_t>(wanted(q), kLeast, kMost); }
  bool passes_none(const Asker& q) const { return wanted(q) > kMost; }

 private:
  int64_t wanted(const Asker& q) const { return (int64_t)q.to->threshold - q.add + bias; }
};

inline uint64_t bits_at(const uint64_t* bits, int64_t at) {  // 64 of them; a word more than needed may be read
  const int64_t word = at / 64, by = at % 64;
  return by ? bits[word] >> by | bits[word + 1] << (64 - by) : bits[word];
}

inline constexpr int kMostQueries = 4;  // that share what is read of a block

template <class Layout>
uint64_t allowed_of(const Run& run, int64_t block, const uint64_t* allowed) {  // a bit for each vector of a block
  const int64_t first = block * Layout::kVectors, left = least(run.vectors - first, Layout::kVectors);
  const uint64_t all = ~uint64_t(0) >> (64 - left);
  return allowed ? all & bits_at(allowed, run.position + first) : all;
}

inline constexpr int64_t kChunk = 8;  // blocks whose sums are made before any is looked at: no branch between them
inline constexpr int kMany = 8;       // of a block, among which some fell behind while others were collected

// What passes of a query's sums, of which every kQueries-th is its own.
template <class Layout, Lookup kLookup, int kQueries>
__attribute__((noinline)) void collect(const Sums<Layout, kLookup>* sums, const Run& run, int64_t first, int64_t blocks,
                                       const uint64_t* allowed, const Asker& query, Aim<kLookup>& aim) {
  uint64_t found[kChunk], any = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    found[b] = sums[b * kQueries].at_least(aim.least);
    any |= uint64_t(found[b] != 0) << b;
  }
  Collector& to = *query.to;
  for (; any; any &= any - 1) {
    const int64_t b = __builtin_ctzll(any);
    const Sums<Layout, kLookup>& of = sums[b * kQueries];
    if (__builtin_popcountll(found[b]) > kMany) found[b] = of.at_least(aim.least);
    const uint64_t some = found[b] & allowed_of<Layout>(run, first + b, allowed);
    Value<kLookup> memory[kBlock];
    to.make_room(Layout::kVectors);
    to.add(some, of.values(memory), query.add - aim.bias, (uint32_t)(run.position + (first + b) * Layout::kVectors));
    to.tighten();
    aim.raise(query);
  }
}

// The sums of blocks from `first` on; near the end of a run the next one's blocks are fetched.
template <class Layout, Lookup kLookup, int kQueries>
__attribute__((always_inline)) inline void sum_blocks(const Run& run, int64_t first, int64_t blocks, int64_t parts,
                                                      const uint8_t* const* tables, const S8* starts,
                                                      Sums<Layout, kLookup> (*out)[kQueries]) {
  constexpr int kTogether = kLookup == Lookup::s8 ? Layout::kTogether : 1;
  for (int64_t b = 0, more; b < blocks; b += more) {
    for (int i = 0; i < kTogether; ++i) {
      const int64_t over = first + b + i + kAhead - blocks_of<Layout>(run);
      if (run.next && over >= 0) prefetch(run.next + over * run.bytes, run.bytes);
    }
    more = least(kTogether, blocks - b);
    const uint8_t* const codes = run.blocks + (first + b) * run.bytes;
    more == kTogether ? Layout::template sums<kQueries, kTogether>(codes, parts, tables, starts, out + b)
                      : Layout::template sums<kQueries, 1>(codes, parts, tables, starts, out + b);
  }
}

template <class Layout, Lookup kLookup, int kQueries>
void scan(const Run& run, int64_t parts, const Asker* queries, const uint64_t* allowed) {
  const uint8_t* tables[kQueries];
  Aim<kLookup> aims[kQueries];
  S8 starts[kQueries];
  for (int q = 0; q < kQueries; ++q) {
    tables[q] = queries[q].table, aims[q] = Aim<kLookup>(queries[q]);
    starts[q] = Layout::start((int8_t)aims[q].bias);
  }
  Sums<Layout, kLookup> sums[kChunk][kQueries];
  const int64_t all = blocks_of<Layout>(run);
  for (int64_t first = 0, blocks; (blocks = least(kChunk, all - first)) > 0; first += kChunk) {
    sum_blocks<Layout, kLookup, kQueries>(run, first, blocks, parts, tables, starts, sums);
    for (int q = 0; q < kQueries; ++q)
      collect<Layout, kLookup, kQueries>(sums[0] + q, run, first, blocks, allowed, queries[q], aims[q]);
  }
}

template <class Layout, Lookup kLookup>
void scan_each(const Run& run, int64_t parts, const Asker* queries, int count, const uint64_t* allowed) {
  for (; count >= 4; count -= 4, queries += 4) scan<Layout, kLookup, 4>(run, parts, queries, allowed);
  if (count == 3) scan<Layout, kLookup, 3>(run, parts, queries, allowed);
  if (count == 2) scan<Layout, kLookup, 2>(run, parts, queries, allowed);
  if (count == 1) scan<Layout, kLookup, 1>(run, parts, queries, allowed);
}

}  // namespace tamis::TAMIS_ISA
