// The sparse_mlp family's CPU kernels: tables per ISA, filled by the cpu_*.cpp, chosen by csrc/dispatch.cpp.
#pragma once
#include "../common/matrix.h"
#include "activations.h"

namespace tamis {

struct TopK {
  Matrix x;          // [rows, classes]
  int64_t k;         // 1..classes
  bool sorted;       // descending, of equals the lowest index first; else by index
  void* values;      // out: the dtype of x [rows, k]
  int64_t* indices;  // out: [rows, k]
};

struct GaussianTopK {
  Matrix x;           // [rows, classes]
  double deviations;  // above the mean, in units of the standard deviation
  const void* grad;   // backward: x's dtype [rows, classes]
  void* out;          // [rows, classes], or x's gradient
};

// In what follows R is the arithmetic's type: double for float64, else float.

constexpr int64_t kFewTokens = 8;

// Few tokens times a matrix: out[t, r] = x[t] . w[r] + bias[r].
struct Gemv {
  int64_t tokens;    // 1..kFewTokens
  int64_t size;      // of a row
  const void* x;     // R [tokens, size]
  const void* w;     // [rows, size], rows `stride` apart
  int64_t stride;    //
  const void* bias;  // w's dtype [rows], or null
  void* out;         // R [tokens, out_stride]
  int64_t out_stride;
};

// Which neurons of a token are active: the k whose hidden value is largest, gated by magnitude; of those that are 0
// only, where pre-activations are wanted, the ones that have a gradient.
struct Select {
  Matrix up, gate;  // [tokens, d_ff]; no gate: data null
  int64_t k;
  Activation activation;
  int32_t* count;  // out: [tokens]
  int32_t* index;  // out: [tokens, k], ascending, as far as count
  void* hidden;    // out: R [tokens, k]
  void* up_at;     // out: R [tokens, k], the pre-activations there, as gate_at; null where not wanted
  void* gate_at;
};

// Entries of a sparse matrix, row by row.
struct Entries {
  const int64_t* begin;  // [rows]
  const int32_t* count;  // [rows]
  const int32_t* index;  // ascending within a row
  const int32_t* from;   // where an entry's number lies; null: where its index does
};

// A sparse matrix times a dense one: out[r] = sum of weight * b[index] over a row's entries and terms, + bias.
struct Gather {
  Entries entries;
  int terms;              // 1 or 2
  const void* weight[2];  // R
  const void* b[2];       // [b_rows, columns], rows b_stride apart
  int64_t b_rows, b_stride[2], columns;
  const void* bias;  // [columns], or null
  void* out;         // b's dtype [rows, out_stride]
  int64_t out_stride;
};

// The dense one's rows against a row each: out[entry] = b[index] . y[r].
struct Compare {
  Entries entries;  // no from
  const void* b;    // [b_rows, columns], rows b_stride apart
  int64_t b_rows, b_stride, columns;
  const void* y;  // b's dtype [rows, y_stride]
  int64_t y_stride;
  void* out;  // R
};

// From the gradient of hidden values to those of the pre-activations they came from.
struct Slope {
  Activation activation;
  const void* d_hidden;  // R [entries], as all
  const void *up_at, *gate_at;
  void *d_up, *d_gate;  // out; gate's null without one
};

// Sums of the entries of a row: a bias's gradient.
struct Total {
  Entries entries;
  const void* weight;  // R
  void* out;           // R [rows]
};

// What of a dense matrix lies where another is not 0. Counted first, where index is null.
struct Compress {
  const void* dense;  // R [rows, columns]
  const void* where;  // likewise
  int64_t columns;
  const int64_t* begin;  // [rows]
  int32_t* count;        // out: [rows]
  int32_t* index;        // out
  void* weight;          // out: R
};

// Entries where they lie in a dense matrix of zeros.
struct Expand {
  Entries entries;  // no from
  int64_t columns;
  const void* weight;  // R
  void* dense;         // out: [rows, columns]
};

// The same entries, column by column.
struct Transpose {
  Entries entries;
  int64_t rows, columns;
  int64_t* begin;  // out: [columns]
  int32_t* count;  // out: [columns]
  int32_t* index;  // out: rows
  int32_t* from;   // out
};

struct SparseMlpKernels {                   // rows begin..end
  const RowKernel<TopK>* topk;              // by dtype
  const RowKernel<GaussianTopK>* gaussian;  // by dtype, as the next
  const RowKernel<GaussianTopK>* gaussian_backward;
  const RowKernel<Gemv>* gemv;      // by w's dtype; of neurons
  const RowKernel<Select>* select;  // by up's dtype
  int64_t (*choose_scratch_bytes)(int64_t n, int64_t k);
  int64_t (*select_scratch_bytes)(int64_t d_ff, int64_t k);
  const RowKernel<Gather>* gather;  // by b's dtype, as compare
  const RowKernel<Compare>* compare;
  int64_t (*blocks_scratch_bytes)(int64_t columns);       // that those need
  const RowKernel<Slope>* slope;                          // float, double; of entries
  void (*transpose)(const Transpose& op, void* scratch);  // [columns] int64_t
  const RowKernel<Compress>* compress;                    // float, double
  const RowKernel<Expand>* expand;                        // by dtype
  const RowKernel<Total>* total;                          // float, double
};

namespace v2 {
extern const SparseMlpKernels sparse_mlp;
}
namespace v3 {
extern const SparseMlpKernels sparse_mlp;
}
namespace v4 {
extern const SparseMlpKernels sparse_mlp;
}
namespace v4x {
using v4::sparse_mlp;
}  // namespace v4x
namespace neon {
extern const SparseMlpKernels sparse_mlp;
}
namespace wide {
extern const SparseMlpKernels sparse_mlp;
}

}  // namespace tamis
