// topk_mlp: checks, allocates, parallelises; the arithmetic is in kernels/sparse_mlp, and torch's GEMM. Nothing inside
// parallel_for may throw.
#include <torch/csrc/stable/library.h>
#include "common.h"
#include "dispatch.h"

namespace tamis {
namespace {

using Maybe = std::optional<Tensor>;

constexpr const char* kWhat = "tamis.topk_mlp";

Activation activation_of(const std::string& name) {
  static const char* const names[kActivations] = {"relu", "squared_relu", "gelu", "gelu_tanh", "silu"};
  for (int i = 0; i < kActivations; ++i)
    if (name == names[i]) return static_cast<Activation>(i);
  STD_TORCH_CHECK(false, kWhat, ": activation: expected relu, squared_relu, gelu, gelu_tanh or silu, got ", name);
}

void check(const char* name, const Tensor& t, const Tensor& like, const std::vector<int64_t>& sizes) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == like.scalar_type() && shape(t) == sizes, kWhat, ": ", name,
                  ": expected a CPU tensor of x's dtype and a shape that fits");
  STD_TORCH_CHECK(t.dim() < 2 || t.size(1) == 1 || t.stride(1) == 1, kWhat, ": ", name,
                  ": expected numbers side by side");
}
void check(const char* name, const Maybe& t, const Tensor& like, const std::vector<int64_t>& sizes) {
  if (t) check(name, *t, like, sizes);
}

Maybe side_by_side(const Maybe& t) { return t ? Maybe(torch::stable::contiguous(*t)) : t; }
const void* data(const Maybe& t) { return t ? t->const_data_ptr() : nullptr; }
template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* const_data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

Tensor as_rows(const Tensor& x) {  // [tokens, d], side by side
  return torch::stable::contiguous(torch::stable::reshape(x, {rows_of(x), x.size(x.dim() - 1)}));
}

Tensor linear(const Tensor& x, const Tensor& w, const Maybe& b) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(x), from(w), from(b)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// x w^T + b: of few tokens in `real`, by our own kernel; else by torch's in x's dtype.
Tensor project(const Tensor& x, const Tensor& w, const Maybe& b) {
  const int64_t tokens = x.size(0), rows = w.size(0), size = w.size(1);
  if (tokens > kFewTokens || tokens == 0) return linear(x, w, b);
  const ScalarType real = real_type(x);
  const Tensor wide = x.scalar_type() == real ? x : torch::stable::to(x, real);
  Tensor out = torch::stable::new_empty(x, {tokens, rows}, real);
  const Maybe bias = side_by_side(b);
  const Gemv op = {tokens,      size,       wide.const_data_ptr(),  w.const_data_ptr(),
                   w.stride(0), data(bias), out.mutable_data_ptr(), rows};
  const auto kernel = kernels().sparse_mlp.gemv[dtype_of(kWhat, w)];
  torch::stable::parallel_for(0, rows, grain(size),
                              [&](int64_t begin, int64_t end) { kernel(op, begin, end, nullptr); });
  return out;
}

struct Sparse {  // of tokens, or of neurons
  Tensor begin, count, index;
  Maybe from;
  Entries entries() const {
    return {const_data<int64_t>(begin), const_data<int32_t>(count), const_data<int32_t>(index),
            from ? const_data<int32_t>(*from) : nullptr};
  }
  int64_t rows() const { return count.numel(); }
};

Sparse by_token(const Tensor& count, const Tensor& index) {
  Tensor begin = torch::stable::new_empty(count, {count.numel()}, ScalarType::Long);
  for (int64_t t = 0; t < count.numel(); ++t) mutable_data<int64_t>(begin)[t] = t * index.size(1);
  return {begin, count, index, std::nullopt};
}

Sparse by_neuron(const Sparse& tokens, int64_t neurons) {
  const Tensor& like = tokens.index;
  Sparse s{torch::stable::new_empty(like, {neurons}, ScalarType::Long), torch::stable::new_empty(like, {neurons}),
           torch::stable::new_empty(like, {like.numel()}), torch::stable::new_empty(like, {like.numel()})};
  const Scratch next(8 * neurons);
  STD_TORCH_CHECK(next.data(), kWhat, ": out of memory");
  kernels().sparse_mlp.transpose(
      {tokens.entries(), tokens.rows(), neurons, mutable_data<int64_t>(s.begin), mutable_data<int32_t>(s.count),
       mutable_data<int32_t>(s.index), mutable_data<int32_t>(*s.from)},
      next.data());
  return s;
}

struct Term {
  const Tensor& weight;  // real [entries]
  const Tensor& b;       // [b_rows, columns]
};

Tensor gather(const Sparse& s, const std::vector<Term>& terms, const Maybe& bias_) {
  const Maybe bias = side_by_side(bias_);
  const Tensor& b = terms[0].b;
  const int64_t rows = s.rows(), columns = b.size(1), width = b.element_size();
  Tensor out = advise_huge_pages(torch::stable::new_empty(b, {rows, columns}));
  if (rows == 0 || columns == 0) return out;
  Gather op = {s.entries(), int(terms.size()),      {},     {}, b.size(0), {}, columns,
               data(bias),  out.mutable_data_ptr(), columns};
  for (size_t t = 0; t < terms.size(); ++t) {
    op.weight[t] = terms[t].weight.const_data_ptr(), op.b[t] = terms[t].b.const_data_ptr();
    op.b_stride[t] = terms[t].b.stride(0);
  }
  const auto kernel = kernels().sparse_mlp.gather[dtype_of(kWhat, b)];
  const auto scratch_bytes = kernels().sparse_mlp.blocks_scratch_bytes;
  if (rows > kFewTokens) {
    over_rows(kWhat, rows, columns * 16, scratch_bytes(columns),
              [&](int64_t begin, int64_t end, void* scratch) { kernel(op, begin, end, scratch); });
    return out;
  }
  constexpr int64_t kPiece = 256;  // of the columns of few rows
  over_rows(kWhat, (columns + kPiece - 1) / kPiece, kPiece * 64, scratch_bytes(columns),
            [&](int64_t begin, int64_t end, void* scratch) {
              Gather part = op;
              const int64_t first = begin * kPiece, last = end * kPiece < columns ? end * kPiece : columns;
              const auto shifted = [&](const void* p) {
                return p ? static_cast<const char*>(p) + first * width : nullptr;
              };
              part.columns = last - first, part.bias = shifted(op.bias);
              for (int t = 0; t < op.terms; ++t) part.b[t] = shifted(op.b[t]);
              part.out = static_cast<char*>(op.out) + first * width;
              kernel(part, 0, rows, scratch);
            });
  return out;
}

// b[index] . y[row] for each entry; shaped as `like`.
Tensor compare(const Sparse& s, const Tensor& b, const Tensor& y, const Tensor& like) {
  Tensor out = torch::stable::new_empty(like, shape(like));
  const Compare op = {s.entries(), b.const_data_ptr(), b.size(0),   b.stride(0),
                      b.size(1),   y.const_data_ptr(), y.stride(0), out.mutable_data_ptr()};
  const auto kernel = kernels().sparse_mlp.compare[dtype_of(kWhat, b)];
  torch::stable::parallel_for(0, s.rows(), grain(b.size(1) * 16),
                              [&](int64_t begin, int64_t end) { kernel(op, begin, end, nullptr); });
  return out;
}

Tensor with_axes(const Tensor& rows, const Tensor& like) {
  std::vector<int64_t> axes = leading(like);
  axes.push_back(rows.size(1));
  return torch::stable::reshape(rows, axes);
}

Tensors forward(const Tensor& x_, const Tensor& w_up, const Maybe& b_up, const Tensor& w_down, const Maybe& b_down,
                int64_t k, const Maybe& w_gate, const Maybe& b_gate, const std::string& activation, bool saves) {
  STD_TORCH_CHECK(x_.is_cpu() && x_.dim() >= 1, kWhat, ": x: expected a CPU tensor with at least one axis");
  dtype_of("tamis.topk_mlp: x", x_);
  STD_TORCH_CHECK(w_up.dim() == 2 && w_down.dim() == 2, kWhat, ": w_up, w_down: expected [d_ff, d]");
  const int64_t d = x_.size(x_.dim() - 1), d_ff = w_up.size(0), columns = w_down.size(1);
  check("w_up", w_up, x_, {d_ff, d});
  check("b_up", b_up, x_, {d_ff});
  check("w_down", w_down, x_, {d_ff, columns});
  check("b_down", b_down, x_, {columns});
  check("w_gate", w_gate, x_, {d_ff, d});
  check("b_gate", b_gate, x_, {d_ff});
  STD_TORCH_CHECK(w_gate || !b_gate, kWhat, ": b_gate: expected none without w_gate");
  STD_TORCH_CHECK(1 <= k && k <= d_ff && d_ff <= INT32_MAX, kWhat, ": k: expected 1 to ", d_ff, ", got ", k);
  const Activation act = activation_of(activation);
  const Tensor x = as_rows(x_);
  const int64_t tokens = x.size(0);
  STD_TORCH_CHECK(tokens <= INT32_MAX / k, kWhat, ": x: expected less than 2^31 active neurons in all");
  const Tensor up = project(x, w_up, b_up);
  const Maybe gate = w_gate ? Maybe(project(x, *w_gate, b_gate)) : std::nullopt;
  const ScalarType real = real_type(x);
  const auto entries = [&](ScalarType type) { return torch::stable::new_empty(x, {tokens, k}, type); };
  Tensor count = torch::stable::new_empty(x, {tokens}, ScalarType::Int), index = entries(ScalarType::Int);
  Tensor hidden = entries(real);
  Tensors out = {x_, count, index, hidden};
  if (saves) out.push_back(entries(real));
  if (saves && gate) out.push_back(entries(real));
  const Matrix none{};
  const Select op = {{up.const_data_ptr(), d_ff, up.stride(0), tokens ? tokens : 1, 0},
                     gate ? Matrix{gate->const_data_ptr(), d_ff, gate->stride(0), tokens ? tokens : 1, 0} : none,
                     k,
                     act,
                     mutable_data<int32_t>(count),
                     mutable_data<int32_t>(index),
                     hidden.mutable_data_ptr(),
                     saves ? out[4].mutable_data_ptr() : nullptr,
                     saves && gate ? out[5].mutable_data_ptr() : nullptr};
  const auto select = kernels().sparse_mlp.select[dtype_of(kWhat, up)];
  over_rows(kWhat, tokens, d_ff, kernels().sparse_mlp.select_scratch_bytes(d_ff, k),
            [&](int64_t begin, int64_t end, void* scratch) { select(op, begin, end, scratch); });
  out[0] = with_axes(gather(by_token(count, index), {{hidden, w_down}}, b_down), x_);
  return out;
}

// The gradients of x, w_up, b_up, w_down, w_gate, b_gate, those that are wanted.
Tensors backward(const Tensor& grad_, const Tensor& x_, const Tensor& w_up, const Tensor& w_down, const Maybe& w_gate,
                 const Tensor& count, const Tensor& index, const Tensor& hidden, const Tensor& up_at,
                 const Maybe& gate_at, const std::string& activation, const std::vector<bool>& wanted) {
  STD_TORCH_CHECK(wanted.size() == 6, kWhat, ": wanted: expected 6, got ", wanted.size());
  STD_TORCH_CHECK(x_.is_cpu() && x_.dim() >= 1 && grad_.is_cpu() && grad_.dim() >= 1 && w_up.dim() == 2 &&
                      w_down.dim() == 2 && count.dim() == 1 && index.dim() == 2,
                  kWhat, ": expected x and grad [*, d], w_up and w_down [d_ff, d], count [tokens], index [tokens, k]");
  STD_TORCH_CHECK(grad_.scalar_type() == x_.scalar_type(), kWhat, ": grad: expected x's dtype");
  dtype_of("tamis.topk_mlp: x", x_);
  STD_TORCH_CHECK(w_gate || !(wanted[4] || wanted[5]), kWhat, ": wanted: expected no gradient of a gate without one");
  const int64_t d_ff = w_up.size(0), tokens = count.numel(), k = index.size(1);
  const ScalarType real = real_type(x_);
  STD_TORCH_CHECK(index.size(0) == tokens && rows_of(x_) == tokens && rows_of(grad_) == tokens &&
                      count.scalar_type() == ScalarType::Int && index.scalar_type() == ScalarType::Int &&
                      index.is_contiguous() && count.is_contiguous() && grad_.size(grad_.dim() - 1) == w_down.size(1),
                  kWhat, ": count, index: expected int32 of as many tokens as x has, and a gradient of the result");
  check("w_up", w_up, x_, {d_ff, x_.size(x_.dim() - 1)});
  check("w_down", w_down, x_, {d_ff, w_down.size(1)});
  check("w_gate", w_gate, x_, {d_ff, x_.size(x_.dim() - 1)});
  STD_TORCH_CHECK(!w_gate == !gate_at, kWhat, ": gate_at: expected beside w_gate and only there");
  for (const Tensor* t : {&hidden, &up_at, gate_at ? &*gate_at : &up_at})
    STD_TORCH_CHECK(t->is_contiguous() && t->numel() == tokens * k && t->scalar_type() == real, kWhat,
                    ": hidden, up_at, gate_at: expected one number for each index");
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t has = const_data<int32_t>(count)[t];
    STD_TORCH_CHECK(0 <= has && has <= k, kWhat, ": count: expected 0 to ", k, ", got ", has);
    for (int64_t e = t * k; e < t * k + has; ++e) {
      const int32_t i = const_data<int32_t>(index)[e];
      STD_TORCH_CHECK(0 <= i && i < d_ff, kWhat, ": index: expected 0 to ", d_ff - 1, ", got ", i);
    }
  }
  const Tensor grad = as_rows(grad_), x = as_rows(x_);
  const Sparse tokens_ = by_token(count, index);
  const Tensor d_hidden = compare(tokens_, w_down, grad, hidden);
  Tensor d_up = torch::stable::new_empty(hidden, {tokens, k});
  const Maybe d_gate = w_gate ? Maybe(torch::stable::new_empty(hidden, {tokens, k})) : std::nullopt;
  const Slope slope = {activation_of(activation), d_hidden.const_data_ptr(),
                       up_at.const_data_ptr(),    data(gate_at),
                       d_up.mutable_data_ptr(),   d_gate ? d_gate->mutable_data_ptr() : nullptr};
  const auto slope_kernel = kernels().sparse_mlp.slope[real == ScalarType::Double];
  torch::stable::parallel_for(0, tokens, grain(k),
                              [&](int64_t begin, int64_t end) { slope_kernel(slope, begin * k, end * k, nullptr); });
  Tensors out;
  if (wanted[0]) {
    std::vector<Term> terms = {{d_up, w_up}};
    if (d_gate) terms.push_back({*d_gate, *w_gate});
    out.push_back(with_axes(gather(tokens_, terms, std::nullopt), x_));
  }
  const Sparse neurons = by_neuron(tokens_, d_ff);
  const auto bias = [&](const Tensor& weight) {
    Tensor sum = torch::stable::new_empty(weight, {d_ff});
    const Total op = {neurons.entries(), weight.const_data_ptr(), sum.mutable_data_ptr()};
    kernels().sparse_mlp.total[real == ScalarType::Double](op, 0, d_ff, nullptr);
    return x.scalar_type() == real ? sum : torch::stable::to(sum, x.scalar_type());
  };
  if (wanted[1]) out.push_back(gather(neurons, {{d_up, x}}, std::nullopt));
  if (wanted[2]) out.push_back(bias(d_up));
  if (wanted[3]) out.push_back(gather(neurons, {{hidden, grad}}, std::nullopt));
  if (wanted[4]) out.push_back(gather(neurons, {{*d_gate, x}}, std::nullopt));
  if (wanted[5]) out.push_back(bias(*d_gate));
  return out;
}

Tensor project_few(const Tensor& x, const Tensor& w, const Maybe& b) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2 && w.dim() == 2, kWhat, ": x, w: expected [tokens, d] and [d_ff, d]");
  dtype_of("tamis.topk_mlp: x", x);
  STD_TORCH_CHECK(0 < x.size(0) && x.size(0) <= kFewTokens, kWhat, ": x: expected 1 to ", kFewTokens, " tokens");
  check("w", w, x, {w.size(0), x.size(1)});
  check("b", b, x, {w.size(0)});
  return project(as_rows(x), w, b);
}

struct Active {
  Sparse entries;
  Tensor weight;  // real
};

Active active(const Tensor& hidden_, const Tensor& where_) {  // [tokens, d_ff]
  const Tensor hidden = torch::stable::contiguous(hidden_);
  const int64_t tokens = hidden.size(0), d_ff = hidden.size(1);
  const ScalarType real = real_type(hidden);
  const auto wide = [&](const Tensor& t) { return t.scalar_type() == real ? t : torch::stable::to(t, real); };
  const Tensor dense = wide(hidden), where = torch::stable::contiguous(wide(where_));
  Tensor begin = torch::stable::new_empty(hidden, {tokens}, ScalarType::Long);
  Tensor count = torch::stable::new_empty(hidden, {tokens}, ScalarType::Int);
  Compress op = {
      dense.const_data_ptr(), where.const_data_ptr(), d_ff, nullptr, mutable_data<int32_t>(count), nullptr, nullptr};
  const auto kernel = kernels().sparse_mlp.compress[real == ScalarType::Double];
  const auto run = [&] {
    torch::stable::parallel_for(0, tokens, grain(d_ff),
                                [&](int64_t first, int64_t last) { kernel(op, first, last, nullptr); });
  };
  run();
  int64_t all = 0;
  for (int64_t t = 0; t < tokens; ++t) mutable_data<int64_t>(begin)[t] = all, all += const_data<int32_t>(count)[t];
  STD_TORCH_CHECK(all <= INT32_MAX, kWhat, ": hidden: expected less than 2^31 active neurons in all");
  Tensor index = torch::stable::new_empty(hidden, {all}, ScalarType::Int);
  Tensor weight = torch::stable::new_empty(hidden, {all}, real);
  op.begin = const_data<int64_t>(begin), op.index = mutable_data<int32_t>(index), op.weight = weight.mutable_data_ptr();
  run();
  return {{begin, count, index, std::nullopt}, weight};
}

void check_hidden(const Tensor& hidden, const Tensor& where, const Tensor& w) {
  STD_TORCH_CHECK(hidden.is_cpu() && w.is_cpu() && hidden.dim() == 2 && w.dim() == 2 && hidden.size(1) == w.size(0) &&
                      w.size(0) <= INT32_MAX && (w.stride(1) == 1 || w.size(1) == 1) &&
                      (hidden.scalar_type() == w.scalar_type() || hidden.scalar_type() == real_type(w)),
                  kWhat, ": hidden: expected [tokens, d_ff] of w's dtype, or float32, and w [d_ff, d]");
  dtype_of(kWhat, hidden);
  STD_TORCH_CHECK(where.is_cpu() && shape(where) == shape(hidden), kWhat, ": where: expected hidden's shape");
  dtype_of(kWhat, where);
}

Tensor sparse_linear(const Tensor& hidden, const Tensor& where, const Tensor& w, const Maybe& b) {
  check_hidden(hidden, where, w);
  check("b", b, w, {w.size(1)});
  const Active a = active(hidden, where);
  return gather(a.entries, {{a.weight, w}}, b);
}

Tensors sparse_linear_backward(const Tensor& grad_, const Tensor& hidden_, const Tensor& where, const Tensor& w,
                               const std::vector<bool>& wanted) {
  check_hidden(hidden_, where, w);
  const Tensor grad = torch::stable::contiguous(grad_), hidden = torch::stable::contiguous(hidden_);
  STD_TORCH_CHECK(wanted.size() == 2 && shape(grad) == std::vector<int64_t>({hidden.size(0), w.size(1)}), kWhat,
                  ": grad: expected the result's shape");
  check("grad", grad, w, shape(grad));
  const Active a = active(hidden, where);
  Tensors out;
  if (wanted[0]) {
    const Tensor at = compare(a.entries, w, grad, a.weight);
    Tensor d = torch::stable::new_zeros(hidden, shape(hidden));
    const Expand op = {a.entries.entries(), hidden.size(1), at.const_data_ptr(), d.mutable_data_ptr()};
    const auto kernel = kernels().sparse_mlp.expand[dtype_of(kWhat, hidden)];
    torch::stable::parallel_for(0, hidden.size(0), grain(hidden.size(1)),
                                [&](int64_t begin, int64_t end) { kernel(op, begin, end, nullptr); });
    out.push_back(d);
  }
  if (wanted[1]) out.push_back(gather(by_neuron(a.entries, w.size(0)), {{a.weight, grad}}, std::nullopt));
  return out;
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_IMPL(tamis, CPU, m) {
  m.impl("_project", TORCH_BOX(&tamis::project_few));
  m.impl("_sparse_linear", TORCH_BOX(&tamis::sparse_linear));
  m.impl("_sparse_linear_backward", TORCH_BOX(&tamis::sparse_linear_backward));
  m.impl("_topk_mlp_forward", TORCH_BOX(&tamis::forward));
  m.impl("_topk_mlp_backward", TORCH_BOX(&tamis::backward));
}
