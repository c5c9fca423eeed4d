// The sparse_mlp family's CPU kernels: one table per ISA, filled by cpu_topk.cpp, chosen by csrc/dispatch.cpp.
#pragma once
#include "../common/matrix.h"

namespace tamis {

struct TopK {
  Matrix x;          // [rows, classes]
  int64_t k;         // 1..classes
  bool sorted;       // descending, of equals the lowest index first; else by index
  void* values;      // out: the dtype of x [rows, k]
  int64_t* indices;  // out: [rows, k]
};

struct SparseMlpKernels {       // rows begin..end
  const RowKernel<TopK>* topk;  // by dtype
  int64_t (*topk_scratch_bytes)(int64_t classes, int64_t k);
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
}  // namespace wide

}  // namespace tamis
