// An index whose tensors were checked, for queries that are no tensors: what tamis._native calls of the op library,
// whose bytes a tensor holds. Its buffers must live as long.
#pragma once
#include "kernels/ann/cpu.h"

namespace tamis {

struct Asked {
  const float* queries;  // [count, d]
  int64_t count, k, leaves, rerank;
  Lookup lookup;
  float* values;  // out: [count, k]
  int64_t* ids;   // out: [count, k]
};

struct OpenIndex {
  bool (*search)(const OpenIndex& index, const Asked& asked);  // whether there was memory
  Ivf ivf;
  const int64_t* ids;  // null: positions
  bool normalize;
};

}  // namespace tamis
