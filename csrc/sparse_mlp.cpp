// Checks, allocates, parallelises; the arithmetic is in kernels/sparse_mlp. Nothing inside parallel_for may throw.
#include <torch/csrc/stable/library.h>
#include "common.h"
#include "dispatch.h"

namespace tamis {
namespace {

std::tuple<Tensor, Tensor> topk(const Tensor& x_, int64_t k, int64_t dim, bool sorted) {
  const char* const what = "tamis.topk";
  STD_TORCH_CHECK(x_.dim() >= 1 && dim >= -x_.dim() && dim < x_.dim(), what, ": dim: expected an axis of x, got ", dim);
  const bool last = dim == -1 || dim == x_.dim() - 1;
  const int64_t size = x_.size(dim < 0 ? dim + x_.dim() : dim);
  STD_TORCH_CHECK(k >= 1 && k <= size, what, ": k: expected 1 to ", size, ", got ", k);
  const Tensor x = logits("tamis.topk: x", last ? x_ : torch::stable::transpose(x_, dim, -1));
  std::vector<int64_t> axes = leading(x);
  axes.push_back(k);
  Tensor values = advise_huge_pages(torch::stable::new_empty(x, axes));
  Tensor indices = advise_huge_pages(torch::stable::new_empty(x, axes, ScalarType::Long));
  const TopK op = {*walk(x), k, sorted, values.mutable_data_ptr(), static_cast<int64_t*>(indices.mutable_data_ptr())};
  const auto kernel = kernels().sparse_mlp.topk[dtype_of(what, x)];
  over_rows(what, rows_of(x), size, kernels().sparse_mlp.choose_scratch_bytes(size, k),
            [&](int64_t begin, int64_t end, void* scratch) { kernel(op, begin, end, scratch); });
  if (last) return {values, indices};
  return {torch::stable::transpose(values, dim, -1), torch::stable::transpose(indices, dim, -1)};
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_IMPL(tamis, CPU, m) { m.impl("topk", TORCH_BOX(&tamis::topk)); }
