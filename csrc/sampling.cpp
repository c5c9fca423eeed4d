// Checks, allocates, parallelises; the arithmetic is in kernels/sampling. Nothing inside parallel_for may throw.
#include <torch/csrc/stable/library.h>
#include "common.h"
#include "dispatch.h"

namespace tamis {
namespace {

// What the kernels are given of the logits, with the tensors it points into.
struct Input {
  const char* what;
  StatsInput in;
  int64_t rows, classes;
  ScalarType real;
  Tensor logits, temperature;
  std::optional<Tensor> target, mask;

  std::vector<int64_t> axes() const { return leading(logits); }
};

Tensor checked_target(const char* what, const Tensor& target, const std::vector<int64_t>& axes) {
  STD_TORCH_CHECK(target.scalar_type() == ScalarType::Long, what, ": target: expected int64, got ",
                  torch::headeronly::toString(target.scalar_type()));
  return scalars((std::string(what) + ": target").c_str(), target, ScalarType::Long, axes, Count::each);
}

Input prepare(const char* what, const Tensor& logits_, const std::optional<Tensor>& target, const Tensor& temperature,
              const std::optional<Tensor>& valid_mask, std::optional<double> softcap, double logit_scale) {
  const std::string of = std::string(what) + ": ";
  const Tensor x = logits((of + "logits").c_str(), logits_);
  const ScalarType real = real_type(x);
  Input i{what,
          {},
          rows_of(x),
          x.size(x.dim() - 1),
          real,
          x,
          scalars((of + "temperature").c_str(), temperature, real, leading(x), Count::either),
          {},
          {}};
  if (target) i.target = checked_target(what, *target, i.axes());
  if (valid_mask) {
    STD_TORCH_CHECK(valid_mask->is_cpu() && valid_mask->scalar_type() == ScalarType::Bool, what,
                    ": valid_mask: expected bool on CPU, got ", torch::headeronly::toString(valid_mask->scalar_type()));
    const Tensor mask = expand((of + "valid_mask").c_str(), *valid_mask, shape(x));
    i.mask = walk(mask) ? mask : torch::stable::contiguous(mask);
    i.in.mask = *walk(*i.mask);
  }
  i.in.logits = *walk(x);
  i.in.transform = transform(logit_scale, softcap);
  i.in.temperature = i.temperature.const_data_ptr(), i.in.temperature_step = i.temperature.dim() != 0;
  i.in.target = i.target ? static_cast<const int64_t*>(i.target->const_data_ptr()) : nullptr;
  return i;
}

Tensors softmax_stats(const Tensor& logits, const std::optional<Tensor>& target, const Tensor& temperature,
                      const std::optional<Tensor>& valid_mask, std::optional<double> softcap, double logit_scale) {
  const Input i = prepare("tamis.softmax_stats", logits, target, temperature, valid_mask, softcap, logit_scale);
  Tensors out;
  for (int64_t k = 0; k < (target ? 7 : 5); ++k)
    out.push_back(torch::stable::new_empty(i.logits, i.axes(), k == 4 ? ScalarType::Long : i.real));
  const auto at = [&](size_t k) { return k < out.size() ? out[k].mutable_data_ptr() : nullptr; };
  const SoftmaxStats op = {i.in, at(0), at(1), at(2), at(3), static_cast<int64_t*>(at(4)), at(5), at(6)};
  const auto kernel = kernels().sampling.softmax_stats[dtype_of(i.what, i.logits)];
  over_rows(i.what, i.rows, i.classes, kernels().sampling.scratch_bytes(i.classes),
            [&](int64_t begin, int64_t end, void* scratch) { kernel(op, begin, end, scratch); });
  return out;
}

// The gradient of the logits, into `out`, which may be the logits.
void backward(const Input& i, const Tensor& entropy, const Tensor& max_prob, const Tensor& argmax,
              const Tensor& d_logsumexp, const Tensor& d_entropy, const Tensor& d_max_prob,
              const std::optional<Tensor>& d_nll, Tensor& out, bool past_caches) {
  const std::vector<int64_t> axes = i.axes();
  const std::string of = std::string(i.what) + ": ";
  const auto numbers = [&](const char* name, const Tensor& t) {
    return scalars((of + name).c_str(), t, i.real, axes, Count::each);
  };
  const Tensor given[] = {numbers("entropy", entropy), numbers("max_prob", max_prob),
                          numbers("d_logsumexp", d_logsumexp), numbers("d_entropy", d_entropy),
                          numbers("d_max_prob", d_max_prob)};
  STD_TORCH_CHECK(argmax.scalar_type() == ScalarType::Long, i.what, ": argmax: expected int64");
  const Tensor at = scalars((of + "argmax").c_str(), argmax, ScalarType::Long, axes, Count::each);
  STD_TORCH_CHECK(d_nll.has_value() == i.target.has_value(), i.what,
                  ": d_nll: expected beside a target and only there");
  std::optional<Tensor> of_nll;
  if (d_nll) of_nll = numbers("d_nll", *d_nll);
  const auto pointer = [&](int k) { return given[k].const_data_ptr(); };
  const SoftmaxStatsBackward op = {i.in,       pointer(0), pointer(1), static_cast<const int64_t*>(at.const_data_ptr()),
                                   pointer(2), pointer(3), pointer(4), of_nll ? of_nll->const_data_ptr() : nullptr,
                                   *walk(out), past_caches};
  const auto kernel = kernels().sampling.softmax_stats_backward[dtype_of(i.what, i.logits)];
  over_rows(i.what, i.rows, i.classes, kernels().sampling.scratch_bytes(i.classes),
            [&](int64_t begin, int64_t end, void* scratch) { kernel(op, begin, end, scratch); });
}

Tensor softmax_stats_backward(const Tensor& logits, const std::optional<Tensor>& target, const Tensor& temperature,
                              const std::optional<Tensor>& valid_mask, std::optional<double> softcap,
                              double logit_scale, const Tensor& entropy, const Tensor& max_prob, const Tensor& argmax,
                              const Tensor& d_logsumexp, const Tensor& d_entropy, const Tensor& d_max_prob,
                              const std::optional<Tensor>& d_nll) {
  const char* const what = "tamis._softmax_stats_backward";
  const Input i = prepare(what, logits, target, temperature, valid_mask, softcap, logit_scale);
  Tensor out = advise_huge_pages(
      torch::stable::empty(i.logits.sizes(), i.logits.scalar_type(), std::nullopt, i.logits.device()));
  backward(i, entropy, max_prob, argmax, d_logsumexp, d_entropy, d_max_prob, d_nll, out,
           out.numel() * out.element_size() >= kLarge);
  return out;
}

void softmax_stats_backward_(Tensor logits, const std::optional<Tensor>& target, const Tensor& temperature,
                             const std::optional<Tensor>& valid_mask, std::optional<double> softcap, double logit_scale,
                             const Tensor& entropy, const Tensor& max_prob, const Tensor& argmax,
                             const Tensor& d_logsumexp, const Tensor& d_entropy, const Tensor& d_max_prob,
                             const std::optional<Tensor>& d_nll) {
  const char* const what = "tamis._softmax_stats_backward_";
  STD_TORCH_CHECK(logits.is_contiguous(), what, ": logits: expected contiguous rows");
  const Input i = prepare(what, logits, target, temperature, valid_mask, softcap, logit_scale);
  backward(i, entropy, max_prob, argmax, d_logsumexp, d_entropy, d_max_prob, d_nll, logits, false);
}

Tensor disagreement(const Tensor& logits_a, const Tensor& logits_b, const std::optional<Tensor>& target,
                    const std::string& kind) {
  const char* const what = "tamis.disagreement";
  const char* const names[] = {"entropy_term", "max_abs", "jsd"};
  int chosen = 0;
  while (chosen < 3 && kind != names[chosen]) ++chosen;
  STD_TORCH_CHECK(chosen < 3, what, ": kind: expected entropy_term, max_abs or jsd, got ", kind);
  const Tensor a = logits("tamis.disagreement: logits_a", logits_a),
               b = logits("tamis.disagreement: logits_b", logits_b);
  STD_TORCH_CHECK(shape(a) == shape(b), what, ": logits_b: expected the shape of logits_a, ", a.numel(),
                  " numbers, got ", b.numel());
  STD_TORCH_CHECK(chosen != 0 || target, what, ": target: expected a tensor for entropy_term");
  std::optional<Tensor> labels;
  if (target) labels = checked_target(what, *target, leading(a));
  Tensor out = torch::stable::new_empty(a, leading(a), real_type(a));
  const DisagreementOp op = {*walk(a), *walk(b),
                             labels ? static_cast<const int64_t*>(labels->const_data_ptr()) : nullptr,
                             Disagreement(chosen), out.mutable_data_ptr()};
  const auto kernel = kernels().sampling.disagreement[dtype_of(what, a)][dtype_of(what, b)];
  STD_TORCH_CHECK(kernel, what, ": logits_b: expected float64 beside float64 and only there");
  const int64_t classes = op.a.classes;
  over_rows(what, rows_of(a), classes, kernels().sampling.scratch_bytes(classes),
            [&](int64_t begin, int64_t end, void* scratch) { kernel(op, begin, end, scratch); });
  return out;
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_IMPL(tamis, CPU, m) {
  m.impl("softmax_stats", TORCH_BOX(&tamis::softmax_stats));
  m.impl("_softmax_stats_backward", TORCH_BOX(&tamis::softmax_stats_backward));
  m.impl("_softmax_stats_backward_", TORCH_BOX(&tamis::softmax_stats_backward_));
  m.impl("disagreement", TORCH_BOX(&tamis::disagreement));
}
