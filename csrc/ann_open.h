// An index whose tensors were checked, for one query without a tensor: what tamis._native calls of the op library,
// whose bytes a tensor holds. Its buffers must live as long.
#pragma once
#include "kernels/ann/cpu.h"

namespace tamis {

struct OneSearch {
  const float* query;  // [d]
  int64_t k, leaves, rerank;
  Lookup lookup;
  float* values;  // out: [k]
  int64_t* ids;   // out: [k]
};

struct OpenIndex {
  bool (*search)(const OpenIndex& index, const OneSearch& op);  // whether there was memory
  Ivf ivf;
  const int64_t* ids;  // null: positions
  bool normalize;
};

}  // namespace tamis
