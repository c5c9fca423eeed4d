// Binds the launches in sparse_mlp_decode.cu: a few tokens through topk_mlp.
#include <torch/csrc/stable/library.h>
#include "cuda.h"
#include "sparse_mlp_cuda.h"

namespace tamis {
namespace {

using Maybe = std::optional<Tensor>;

void check(const char* what, const char* name, const Tensor& t, const Tensor& like, const std::vector<int64_t>& sizes) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device() == like.get_device() && shape(t) == sizes, what, ": ", name,
                  ": expected a tensor on x's device, of a shape that fits");
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), what, ": ", name, ": expected x's dtype");
  STD_TORCH_CHECK(t.dim() < 2 || t.size(1) == 1 || t.stride(1) == 1, what, ": ", name,
                  ": expected numbers side by side");
}
void check(const char* what, const char* name, const Maybe& t, const Tensor& like, const std::vector<int64_t>& sizes) {
  if (t) check(what, name, *t, like, sizes);
}

Maybe side_by_side(const Maybe& t) { return t ? Maybe(torch::stable::contiguous(*t)) : t; }
const void* data(const Maybe& t) { return t ? t->const_data_ptr() : nullptr; }
Projection projection(const Maybe& w, const Maybe& b) { return {data(w), w ? w->stride(0) : 0, data(b)}; }

void check_tokens(const char* what, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cuda() && x.dim() == 2 && 0 < x.size(0) && x.size(0) <= kDecodeTokens, what,
                  ": x: expected [tokens, d] on a CUDA device, 1 to ", kDecodeTokens, " tokens");
}

// hidden * w + bias, [tokens, columns].
Tensor gather_rows(const char* what, Dtype dtype, const Tensor& hidden, const int64_t* index, int64_t k,
                   const Tensor& w, const Maybe& bias_) {
  const Maybe bias = side_by_side(bias_);
  Tensor out = torch::stable::new_empty(w, {hidden.size(0), w.size(1)});
  check_launch(what,
               launch_gather_rows(dtype,
                                  {hidden.const_data_ptr(), index, hidden.size(0), k, w.size(0), w.const_data_ptr(),
                                   w.stride(0), w.size(1), data(bias), out.mutable_data_ptr()},
                                  current_stream(w)));
  return out;
}

// An exact selection.
Tensor topk_mlp(const Tensor& x_, const Tensor& w_up, const Maybe& b_up_, const Tensor& w_down, const Maybe& b_down,
                int64_t k, const Maybe& w_gate, const Maybe& b_gate_, int64_t activation) {
  const char* const what = "tamis._topk_mlp_cuda";
  check_tokens(what, x_);
  STD_TORCH_CHECK(w_up.dim() == 2 && w_down.dim() == 2, what, ": w_up, w_down: expected [d_ff, d]");
  const int64_t tokens = x_.size(0), d = x_.size(1), d_ff = w_up.size(0), columns = w_down.size(1);
  check(what, "w_up", w_up, x_, {d_ff, d});
  check(what, "b_up", b_up_, x_, {d_ff});
  check(what, "w_down", w_down, x_, {d_ff, columns});
  check(what, "b_down", b_down, x_, {columns});
  check(what, "w_gate", w_gate, x_, {d_ff, d});
  check(what, "b_gate", b_gate_, x_, {d_ff});
  STD_TORCH_CHECK(w_gate || !b_gate_, what, ": b_gate: expected none without w_gate");
  STD_TORCH_CHECK(1 <= k && k <= d_ff, what, ": k: expected 1 to ", d_ff, ", got ", k);
  STD_TORCH_CHECK(0 <= activation && activation < kActivations, what, ": activation: expected 0 to ", kActivations - 1,
                  ", got ", activation);
  const Dtype dtype = dtype_of("tamis._topk_mlp_cuda: x", x_), real = dtype == f64 ? f64 : f32;
  const torch::stable::accelerator::DeviceGuard guard(x_.get_device());
  const cudaStream_t stream = current_stream(x_);
  const Tensor x = torch::stable::contiguous(x_);
  const Maybe b_up = side_by_side(b_up_), b_gate = side_by_side(b_gate_);
  const std::vector<int64_t> entries = {tokens, k};
  Tensor hidden = torch::stable::new_empty(x, {tokens, d_ff}, real_type(x));
  Tensor rank = w_gate ? torch::stable::new_empty(hidden, {tokens, d_ff}) : hidden;
  check_launch(what, launch_project(dtype,
                                    {x.const_data_ptr(), tokens, d, projection(w_up, b_up), projection(w_gate, b_gate),
                                     d_ff, static_cast<Activation>(activation), hidden.mutable_data_ptr(),
                                     w_gate ? rank.mutable_data_ptr() : nullptr},
                                    stream));
  Tensor values = torch::stable::new_empty(hidden, entries);
  Tensor index = torch::stable::new_empty(hidden, entries, ScalarType::Long);
  int64_t* const at = static_cast<int64_t*>(index.mutable_data_ptr());
  const int64_t chunks = topk_chunks(real, tokens, d_ff);
  Tensor workspace =
      torch::stable::new_empty(hidden, {topk_workspace_bytes(real, tokens, chunks) / 8}, ScalarType::Long);
  check_launch(what, launch_topk(real, rank.const_data_ptr(), tokens, d_ff, d_ff, k, values.mutable_data_ptr(), at,
                                 chunks, workspace.mutable_data_ptr(), stream));
  return gather_rows(what, dtype, hidden, at, k, w_down, b_down);
}

Tensor project(const Tensor& x_, const Tensor& w, const Maybe& b_) {
  const char* const what = "tamis._project";
  check_tokens(what, x_);
  STD_TORCH_CHECK(w.dim() == 2 && w.size(0) > 0, what, ": w: expected [d_ff, d], at least one row");
  const int64_t tokens = x_.size(0), d = x_.size(1), d_ff = w.size(0);
  check(what, "w", w, x_, {d_ff, d});
  check(what, "b", b_, x_, {d_ff});
  const torch::stable::accelerator::DeviceGuard guard(x_.get_device());
  const Tensor x = torch::stable::contiguous(x_);
  const Maybe b = side_by_side(b_);
  Tensor out = torch::stable::new_empty(x, {tokens, d_ff}, real_type(x));
  check_launch(
      what,
      launch_project(
          dtype_of("tamis._project: x", x),
          {x.const_data_ptr(), tokens, d, projection(w, b), {}, d_ff, kActivations, out.mutable_data_ptr(), nullptr},
          current_stream(x)));
  return out;
}

// What of hidden lies where another is 0 is 0 too, as a cut leaves it.
Tensor sparse_linear(const Tensor& hidden_, const Tensor&, const Tensor& w, const Maybe& b) {
  const char* const what = "tamis._sparse_linear";
  STD_TORCH_CHECK(hidden_.is_cuda() && hidden_.dim() == 2 && w.dim() == 2 && hidden_.scalar_type() == real_type(w),
                  what, ": expected hidden [tokens, d_ff] of the arithmetic's dtype and w [d_ff, columns]");
  STD_TORCH_CHECK(hidden_.get_device() == w.get_device() && hidden_.size(0) <= 65535, what,
                  ": hidden: expected w's device, and at most 65535 tokens");
  check(what, "w", w, w, {hidden_.size(1), w.size(1)});
  STD_TORCH_CHECK(w.size(0) > 0, what, ": w: expected [d_ff, columns], at least one row");
  check(what, "b", b, w, {w.size(1)});
  const torch::stable::accelerator::DeviceGuard guard(w.get_device());
  return gather_rows(what, dtype_of("tamis._sparse_linear: w", w), torch::stable::contiguous(hidden_), nullptr,
                     w.size(0), w, b);
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_FRAGMENT(tamis, m) {
  m.def(
      "_topk_mlp_cuda(Tensor x, Tensor w_up, Tensor? b_up, Tensor w_down, Tensor? b_down, int k, Tensor? w_gate, "
      "Tensor? b_gate, int activation) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tamis, CUDA, m) {
  m.impl("_topk_mlp_cuda", TORCH_BOX(&tamis::topk_mlp));
  m.impl("_project", TORCH_BOX(&tamis::project));
  m.impl("_sparse_linear", TORCH_BOX(&tamis::sparse_linear));
}
