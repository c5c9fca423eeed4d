// Losses against K entries of a row, and soft targets; the arithmetic is in kernels/distill. Nothing inside
// parallel_for may throw.
#include <torch/csrc/stable/library.h>
#include <atomic>
#include "distill.h"

namespace tamis {
namespace {

// What the kernel reads of K entries a row, with the tensors it points into.
struct Entries {
  Tensor values, indices;
  std::optional<Tensor> logsumexp;
  TopkLoss op;
};

// `values_name`, `indices_name`: in errors.
Entries entries_of(const Rows& r, const char* values_name, const Tensor& values, const char* indices_name,
                   const Tensor& indices, const std::optional<Tensor>& logsumexp) {
  const char* const what = r.names.op;
  const std::string of = std::string(what) + ": ";
  const Tensor given = logits((of + values_name).c_str(), values);
  const int64_t entries = given.size(given.dim() - 1);
  STD_TORCH_CHECK((real_type(given) == ScalarType::Double) == r.wide, what, ": ", values_name,
                  ": expected float64 beside float64 and only there");
  STD_TORCH_CHECK(leading(given) == r.axes(), what, ": ", values_name, ": expected the leading axes of ",
                  r.names.student, ", ", r.rows, " rows, got ", rows_of(given));
  STD_TORCH_CHECK(entries <= r.classes, what, ": ", values_name, ": expected at most ", r.classes, " a row, got ",
                  entries);
  STD_TORCH_CHECK(indices.is_cpu() && indices.scalar_type() == ScalarType::Long && shape(indices) == shape(given), what,
                  ": ", indices_name, ": expected int64 on CPU in the shape of ", values_name, ", got ",
                  torch::headeronly::toString(indices.scalar_type()), " of ", indices.numel(), " numbers");
  const ScalarType real = r.loss.scalar_type();
  Entries e{torch::stable::contiguous(given.scalar_type() == real ? given : torch::stable::to(given, real)),
            torch::stable::contiguous(indices),
            {},
            {}};
  if (logsumexp) e.logsumexp = scalars((of + "teacher_logsumexp").c_str(), *logsumexp, real, r.axes(), Count::each);
  e.op.values = e.values.const_data_ptr(), e.op.indices = static_cast<const int64_t*>(e.indices.const_data_ptr());
  e.op.entries = entries;
  e.op.logsumexp = e.logsumexp ? e.logsumexp->const_data_ptr() : nullptr;
  return e;
}

void run(const Rows& r, Entries& e) {
  e.op.loss = r.op;
  const TopkKernel kernel = kernels().distill.topk_loss[dtype_of(r.names.op, r.student)];
  over_rows(r.names.op, r.rows, r.classes, kernels().distill.topk_scratch_bytes(r.classes, e.op.entries),
            [&](int64_t begin, int64_t end, void* scratch) { kernel(e.op, begin, end, scratch); });
}

void run(const Rows& r) {
  const LossKernel kernel = loss_kernel(r);
  over_rows(r.names.op, r.rows, r.classes, kernels().distill.scratch_bytes(r.classes),
            [&](int64_t begin, int64_t end, void* scratch) { kernel(r.op, begin, end, scratch); });
}

template <Gradient kGradient>
Tensors topk_distill_loss(const Tensor& student_logits, const Tensor& teacher_topk_values,
                          const Tensor& teacher_topk_indices, const Tensor& teacher_logsumexp,
                          const std::optional<Tensor>& target, const std::string& tail, const Tensor& temperature,
                          const Tensor& alpha, const std::string& divergence, double beta, double label_smoothing,
                          int64_t ignore_index, const std::string& reduction, const std::optional<Tensor>& row_weight,
                          const std::optional<Tensor>& num_items_in_batch, std::optional<int64_t> vocab_size,
                          std::optional<double> student_softcap, std::optional<double> teacher_softcap,
                          double student_logit_scale, double teacher_logit_scale, bool overwrite_logits) {
  const Names names = {"tamis.topk_distill_loss", "student_logits", "teacher_topk_values"};
  const bool bucket = tail == "bucket";
  STD_TORCH_CHECK(bucket || tail == "renorm", names.op, ": tail: expected bucket or renorm, got ", tail);
  STD_TORCH_CHECK(!overwrite_logits || kGradient == Gradient::over_logits, names.op,
                  ": overwrite_logits: the raw op changes no argument; tamis.distill.topk_distill_loss does");
  const Divergence kind = divergence_of(names.op, divergence, beta);
  STD_TORCH_CHECK(bucket ? kind != kLogitMse : divergence == "forward_kl", names.op, ": divergence: expected ",
                  bucket ? "any but logit_mse" : "forward_kl for tail renorm", ", got ", divergence);
  // Planned as forward KL: there, too, the student's exponentials serve its cross-entropy where the temperature is 1.
  Rows r = prepare(names, student_logits, std::nullopt, target, temperature, alpha, kForwardKl, beta, label_smoothing,
                   ignore_index, row_weight, vocab_size, student_softcap, teacher_softcap, student_logit_scale,
                   teacher_logit_scale);
  const bool alone = r.op.divergence == kAlone;
  if (!alone) r.op.divergence = kind;
  Entries e = entries_of(r, names.teacher, teacher_topk_values, "teacher_topk_indices", teacher_topk_indices,
                         teacher_logsumexp);
  if (!bucket) e.op.logsumexp = nullptr;
  if (kGradient == Gradient::over_logits) check_overwritable(r, student_logits, e.values, e.op.entries);
  return reduced(r, kGradient, reduction, num_items_in_batch, [&] { alone ? run(r) : run(r, e); });
}

template <Gradient kGradient>
Tensors soft_cross_entropy(const Tensor& logits, const Tensor& probs, const std::optional<Tensor>& indices,
                           const std::string& reduction, const std::optional<Tensor>& row_weight) {
  const Names names = {"tamis.soft_cross_entropy", "logits", "probs"};
  const Tensor one = torch::stable::fill_(torch::stable::new_empty(logits, {}, real_type(logits)), 1);
  const std::optional<Tensor> dense = indices ? std::nullopt : std::optional<Tensor>(probs);
  STD_TORCH_CHECK(indices || shape(probs) == shape(logits), names.op,
                  ": probs: expected the shape of logits where there are no indices, got ", probs.numel(), " for ",
                  logits.numel(), " numbers");
  Rows r = prepare(names, logits, dense, std::nullopt, one, one, kSoftTarget, 0, 0, 0, row_weight, std::nullopt,
                   std::nullopt, std::nullopt, 1, 1);
  if (!indices) return reduced(r, kGradient, reduction, std::nullopt, [&] { run(r); });
  Entries e = entries_of(r, names.teacher, probs, "indices", *indices, std::nullopt);
  return reduced(r, kGradient, reduction, std::nullopt, [&] { run(r, e); });
}

Tensor soft_cross_entropy_loss(const Tensor& logits, const Tensor& probs, const std::optional<Tensor>& indices,
                               const std::string& reduction, const std::optional<Tensor>& row_weight) {
  return soft_cross_entropy<Gradient::none>(logits, probs, indices, reduction, row_weight)[0];
}

// The least of what check(begin, end, scratch) finds in the rows, or -1.
template <class Check>
int64_t first(const char* what, int64_t rows, int64_t classes, int64_t scratch_bytes, const Check& check) {
  const int64_t none = INT64_MAX;
  std::atomic<int64_t> found{none};
  over_rows(what, rows, classes, scratch_bytes, [&](int64_t begin, int64_t end, void* scratch) {
    const int64_t at = check(begin, end, scratch);
    int64_t before = found.load();
    while (at >= 0 && at < before && !found.compare_exchange_weak(before, at)) {}
  });
  return found == none ? -1 : found.load();
}

int64_t bad_index(const Tensor& indices, int64_t classes) {
  const char* const what = "tamis._bad_index";
  STD_TORCH_CHECK(indices.is_cpu() && indices.scalar_type() == ScalarType::Long && indices.dim() >= 1 && classes > 0,
                  what, ": indices: expected int64 [*, K] on CPU");
  const Tensor packed = torch::stable::contiguous(indices);
  const int64_t* const data = static_cast<const int64_t*>(packed.const_data_ptr());
  const int64_t entries = packed.size(packed.dim() - 1), bytes = (classes + 63) / 64 * 8;
  return first(what, rows_of(packed), entries, bytes, [&](int64_t begin, int64_t end, void* scratch) {
    return kernels().distill.bad_index(data, entries, classes, begin, end, scratch);
  });
}

int64_t bad_distribution(const Tensor& probs, double tolerance) {
  const Tensor packed = logits("tamis._bad_distribution: probs", probs);
  const Matrix in = *walk(packed);
  const auto kernel = kernels().distill.bad_distribution[dtype_of("tamis._bad_distribution: probs", packed)];
  return first("tamis._bad_distribution", rows_of(packed), in.classes, 64,
               [&](int64_t begin, int64_t end, void*) { return kernel(in, tolerance, begin, end); });
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_IMPL(tamis, CPU, m) {
  m.impl("topk_distill_loss", TORCH_BOX(&tamis::topk_distill_loss<tamis::Gradient::none>));
  m.impl("_topk_distill_loss_forward", TORCH_BOX(&tamis::topk_distill_loss<tamis::Gradient::fresh>));
  m.impl("_topk_distill_loss_forward_", TORCH_BOX(&tamis::topk_distill_loss<tamis::Gradient::over_logits>));
  m.impl("soft_cross_entropy", TORCH_BOX(&tamis::soft_cross_entropy_loss));
  m.impl("_soft_cross_entropy_forward", TORCH_BOX(&tamis::soft_cross_entropy<tamis::Gradient::fresh>));
  m.impl("_bad_index", TORCH_BOX(&tamis::bad_index));
  m.impl("_bad_distribution", TORCH_BOX(&tamis::bad_distribution));
}
