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

Tensor gaussian(const char* what, const Tensor& x_, double deviations, const std::optional<Tensor>& grad) {
  const Tensor x = logits(what, x_);
  Tensor out = advise_huge_pages(torch::stable::new_empty(x, shape(x)));
  const Tensor of_out = grad ? torch::stable::contiguous(*grad) : x;
  STD_TORCH_CHECK(!grad || (shape(of_out) == shape(x) && of_out.scalar_type() == x.scalar_type()), what,
                  ": grad: expected x's shape and dtype");
  const int64_t n = x.size(x.dim() - 1);
  const GaussianTopK op = {*walk(x), deviations, grad ? of_out.const_data_ptr() : nullptr, out.mutable_data_ptr()};
  const auto& k = kernels().sparse_mlp;
  const auto kernel = (grad ? k.gaussian_backward : k.gaussian)[dtype_of(what, x)];
  torch::stable::parallel_for(0, rows_of(x), grain(n),
                              [&](int64_t begin, int64_t end) { kernel(op, begin, end, nullptr); });
  return out;
}

Tensor gaussian_cut(const Tensor& x, double deviations) {
  return gaussian("tamis.gaussian_topk: x", x, deviations, std::nullopt);
}
Tensor gaussian_cut_backward(const Tensor& grad, const Tensor& x, double deviations) {
  return gaussian("tamis.gaussian_topk: x", x, deviations, grad);
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_IMPL(tamis, CPU, m) {
  m.impl("topk", TORCH_BOX(&tamis::topk));
  m.impl("_gaussian_cut", TORCH_BOX(&tamis::gaussian_cut));
  m.impl("_gaussian_cut_backward", TORCH_BOX(&tamis::gaussian_cut_backward));
}
