#include "csrc/sparse_mlp.cu"
#include "export.h"

EXPORT int64_t topk_chunks(int64_t dtype, int64_t rows, int64_t n) {
  return tamis::topk_chunks(tamis::Dtype(dtype), rows, n);
}
EXPORT int64_t topk_workspace_bytes(int64_t dtype, int64_t rows, int64_t chunks) {
  return tamis::topk_workspace_bytes(tamis::Dtype(dtype), rows, chunks);
}
EXPORT int topk(int64_t dtype, const void* x, int64_t rows, int64_t n, int64_t stride, int64_t k, void* values,
                int64_t* indices, int64_t chunks, void* workspace) {
  return tamis::launch_topk(tamis::Dtype(dtype), x, rows, n, stride, k, values, indices, chunks, workspace,
                            caller_stream);
}
EXPORT int topk_sort(int64_t dtype, const void* values, const int64_t* indices, int64_t rows, int64_t k,
                     void* sorted_values, int64_t* sorted_indices) {
  return tamis::launch_topk_sort(tamis::Dtype(dtype), values, indices, rows, k, sorted_values, sorted_indices,
                                 caller_stream);
}
