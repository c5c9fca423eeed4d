// The ann family: one table per ISA, filled by cpu_*.cpp, chosen by csrc/dispatch.cpp. Scores: the larger the nearer.
#pragma once
#include "../common/matrix.h"
#include "encode.h"

namespace tamis {

// Codes lie by blocks of vectors. 4 bits, 16 centroids a part: blocks of 32 vectors, 16 bytes a part, whose low halves
// are the vectors 0 to 15 and whose high halves 16 to 31; parts even. 6 bits, 64 centroids: blocks of 64 vectors, 192
// bytes for four parts: three times 64 bytes, the low six bits of byte v being vector v's code of the first, second,
// third part, and the high two bits, lowest first, those of the fourth; parts a multiple of 4.
static inline int64_t block_vectors(int bits) { return bits == 4 ? 32 : 64; }
static inline int64_t block_bytes(int bits, int64_t parts) { return bits == 4 ? parts * 16 : parts * 48; }
inline constexpr int64_t kCodesSlack = 64;  // bytes after the last block that a kernel may read

struct Pack {            // blocks begin..end
  const uint8_t* codes;  // [n, parts]
  int64_t n, parts;
  int bits;
  uint8_t* out;  // blocks
};

// What a scan adds up: signed bytes that saturate, scaled by the spread of a query's scores, or unsigned bytes in 16
// bits, exactly.
enum class Lookup { s8, u16 };
inline constexpr int kLookups = 2;
inline constexpr int64_t kMostExact = 4096;  // parts, whose unsigned bytes are then of four bits

struct Codes {
  const uint8_t* blocks;
  int bits;
  int64_t parts;
};

struct Scan {        // queries begin..end of a flat list
  const float* lut;  // [queries, parts, 1 << bits]
  Codes codes;
  int64_t n;
  Lookup lookup;
  const uint64_t* allowed;  // bits, or null: all
  int64_t k;
  float* values;     // out: [queries, k]
  int64_t* indices;  // out: [queries, k]; -1 and -inf where fewer are allowed
};

struct Vectors {     // to rerank with, by position
  const void* data;  // [n, d] of a dtype, rows `stride` numbers apart; null: there are none
  int64_t stride;
};

struct Ivf {
  int64_t n, d, leaves;
  const uint8_t* centroids;  // [ceil(leaves / 16), ceil(d / 4), 16, 4]: 128 + round(c / centroid_scale)
  float centroid_scale;
  const float* order_bias;  // [leaves]: taken from q.c where leaves are put in order
  const float* score_bias;  // [leaves]: added to q.c where vectors are scored
  const int64_t* start;     // [leaves + 1]: positions
  const int64_t* block;     // [leaves + 1]
  const float* codebooks;   // [parts - extra, width, centroids]
  const float* constants;   // [extra, centroids]: what the last parts add whatever the query, as norms do for l2
  int64_t extra;
  Codes codes;
  Vectors bytes;  // uint8: 128 + round(x / byte_scale), d rounded up to 64
  float byte_scale;
  const float* half_norms;  // [n]: |x|^2 / 2, for l2; null: inner product
  Vectors exact;
  Dtype exact_dtype;
  const float* center;  // [d]: taken from every query, as it was from all vectors; null: nothing
};

struct Search {  // queries begin..end
  const Ivf* index;
  const float* queries;  // [queries, d]
  bool normalize;        // to length 1
  int64_t k, leaves, rerank;
  Lookup lookup;
  const uint64_t* allowed;  // by position
  float* values;            // out: [queries, k]
  int64_t* positions;       // out: [queries, k]
};

struct Rerank {               // queries begin..end
  const float* queries;       // [queries, d]
  const int64_t* candidates;  // [queries, count]; < 0: none
  int64_t count, d, k;        // scratch: twice count candidates
  Vectors vectors;
  Dtype dtype;
  bool l2;
  float* values;     // out: [queries, k]
  int64_t* indices;  // out
};

struct AnnSearch {
  const RowKernel<Search> search[2][kLookups];                  // by whether codes have 6 bits
  int64_t (*scratch_bytes)(const Search& op, int64_t queries);  // for as many at once, aligned to 64
};

struct AnnKernels {
  const RowKernel<Pack> pack;
  const RowKernel<Scan> scan[2][kLookups];
  int64_t (*scan_scratch_bytes)(const Scan&);
  const AnnSearch& search;
  const RowKernel<Rerank> rerank;
};

#define TAMIS_ANN(isa)         \
  namespace isa {              \
  extern const AnnKernels ann; \
  }
TAMIS_ANN(v2)
TAMIS_ANN(v3)
TAMIS_ANN(v4)
TAMIS_ANN(v4x)
TAMIS_ANN(neon)
TAMIS_ANN(wide)
#undef TAMIS_ANN

}  // namespace tamis
