// Binds the launches in sparse_mlp.cu.
#include "sparse_mlp_cuda.h"
#include <torch/csrc/stable/library.h>
#include "cuda.h"

namespace tamis {
namespace {

// Of the last axis, in the row's order, or for k up to kTopkSortMost sorted.
std::tuple<Tensor, Tensor> topk(const Tensor& x_, int64_t k, bool sorted) {
  const char* const what = "tamis._topk_cuda";
  STD_TORCH_CHECK(x_.is_cuda() && x_.dim() >= 1, what, ": x: expected a CUDA tensor with at least one axis");
  const int64_t n = x_.size(x_.dim() - 1);
  STD_TORCH_CHECK(k >= 1 && k <= n, what, ": k: expected 1 to ", n, ", got ", k);
  STD_TORCH_CHECK(!sorted || k <= kTopkSortMost, what, ": sorted: expected false above k = ", kTopkSortMost);
  STD_TORCH_CHECK(rows_of(x_) <= INT32_MAX, what, ": x: expected at most ", INT32_MAX, " rows, got ", rows_of(x_));
  const Dtype dtype = dtype_of("tamis._topk_cuda: x", x_);
  const torch::stable::accelerator::DeviceGuard guard(x_.get_device());
  const cudaStream_t stream = current_stream(x_);
  std::optional<Matrix> rows_at = walk(x_);
  const int64_t rows = rows_of(x_);
  const bool one_stride = rows_at && rows_at->group >= rows;
  const Tensor x = one_stride ? x_ : torch::stable::contiguous(x_);
  if (!one_stride) rows_at = walk(x);
  std::vector<int64_t> axes = leading(x);
  axes.push_back(k);
  Tensor values = torch::stable::new_empty(x, axes), indices = torch::stable::new_empty(x, axes, ScalarType::Long);
  const int64_t chunks = topk_chunks(dtype, rows, n);
  const int64_t words = topk_workspace_bytes(dtype, rows, chunks) / 8;
  Tensor workspace = torch::stable::new_empty(x, {words}, ScalarType::Long);
  int64_t* const at = static_cast<int64_t*>(indices.mutable_data_ptr());
  check_launch(what, launch_topk(dtype, x.const_data_ptr(), rows, n, rows_at->stride, k, values.mutable_data_ptr(), at,
                                 chunks, workspace.mutable_data_ptr(), stream));
  if (!sorted) return {values, indices};
  Tensor sorted_values = torch::stable::new_empty(values, axes),
         sorted_indices = torch::stable::new_empty(indices, axes);
  check_launch(what, launch_topk_sort(dtype, values.const_data_ptr(), at, rows, k, sorted_values.mutable_data_ptr(),
                                      static_cast<int64_t*>(sorted_indices.mutable_data_ptr()), stream));
  return {sorted_values, sorted_indices};
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_FRAGMENT(tamis, m) { m.def("_topk_cuda(Tensor x, int k, bool sorted) -> (Tensor, Tensor)"); }

STABLE_TORCH_LIBRARY_IMPL(tamis, CUDA, m) { m.impl("_topk_cuda", TORCH_BOX(&tamis::topk)); }
