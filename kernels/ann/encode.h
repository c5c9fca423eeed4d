// What builds an index of the ann family: product quantizer codes, and the nearest of many centroids. One table per
// ISA, filled by the cpu_*.cpp, chosen by csrc/dispatch.cpp.
#pragma once
#include "../common/matrix.h"

namespace tamis {

// A product quantizer cuts d dimensions into `parts`; part p is dimensions cut(d, parts, p) to cut(d, parts, p + 1).
// Static: each ISA's own copy.
static inline int64_t cut(int64_t d, int64_t parts, int64_t p) { return p * d / parts; }

// In what follows R is the arithmetic's type: double for float64, else float.

struct Codebooks {
  const void* data;  // R [parts, centroids, ceil(d / parts)]: behind a narrower part's end anything
  int64_t d, parts, centroids;
};

struct PqEncode {
  Matrix x;             // [n, d]: what is quantized
  Matrix directions;    // [n, d] of x's dtype, rows of length 1, or data null: errors along them count eta times
  Codebooks codebooks;  //
  const void* tables;   // made of them
  double eta;           // 1 or more
  int64_t rounds;       // of coordinate descent, at most
  uint8_t* codes;       // out: [n, parts]
};

struct Centroids {
  const void* data;  // R [count, d]
  int64_t d, count;
  bool ip;  // the nearest is that of the largest inner product; else of the smallest distance
};

struct Assign {
  Matrix x;             // [n, d]
  Centroids centroids;  //
  const void* tables;   // made of them
  int64_t* indices;     // out: [n]
  void* distances;      // out: R [n], squared; of ip inner products
};

struct Rank {                  // queries begin..end
  const float* queries;        // [queries, d]
  const int64_t* targets;      // [queries, count]: rows of vectors; < 0: nobody
  int64_t count, d, n, total;  // total: of the weights
  const void* vectors;         // [n, d] of a dtype
  const int32_t* weights;      // [n], as how many vectors each counts, below 2^31 in all; null: 1
  bool l2;                     // nearer is a smaller distance; else a larger inner product
  bool last;                   // of equals each gets the last place; else the first
  int64_t* ranks;              // out: [queries, count], from 1; -1 of nobody
};

// By R, float and double: tables are what a kernel reads instead of what it is given, made once for all rows.
template <class Given>
struct Tables {
  int64_t (*bytes)(const Given& given);
  void (*make)(const Given& given, void* tables);
};

struct AnnBuildKernels {  // rows begin..end
  Tables<Codebooks> encode_tables[2];
  int64_t (*encode_scratch_bytes[2])(const Codebooks& codebooks);
  const RowKernel<PqEncode>* encode;  // by x's dtype, as assign
  Tables<Centroids> assign_tables[2];
  int64_t (*assign_scratch_bytes[2])(const Centroids& centroids);
  const RowKernel<Assign>* assign;
  int64_t (*rank_scratch_bytes)(const Rank& op);
  const RowKernel<Rank>* rank;  // by the vectors' dtype; there is none for double
};

namespace v2 {
extern const AnnBuildKernels ann_build;
}
namespace v3 {
extern const AnnBuildKernels ann_build;
}
namespace v4 {
extern const AnnBuildKernels ann_build;
}
namespace v4x {
using v4::ann_build;
}  // namespace v4x
namespace neon {
extern const AnnBuildKernels ann_build;
}
namespace wide {
extern const AnnBuildKernels ann_build;
}

}  // namespace tamis
