// What the losses of this family share on torch's side.
#pragma once
#include <functional>
#include "common.h"
#include "dispatch.h"

namespace tamis {

// What an op and its models are called in errors.
struct Names {
  const char *op, *student, *teacher;
};

// jsd with beta 0 is forward_kl and with 1 reverse_kl: by convention, the formula would give 0.
Divergence divergence_of(const char* what, const std::string& name, double beta);

// What the row kernel is given, with the tensors it points into.
struct Rows {
  Names names;
  DistillLoss op;
  int64_t rows, classes, width;
  bool wide;  // the arithmetic is in double
  Tensor student, teacher, temperature, alpha, loss;
  std::optional<Tensor> target, row_weight;

  std::vector<int64_t> axes() const { return leading(student); }
};

// teacher_logits: none where a kernel reads none. of_classes: of a whole row, where student_logits are a tile.
Rows prepare(const Names& names, const Tensor& student_logits, const std::optional<Tensor>& teacher_logits,
             const std::optional<Tensor>& target, const Tensor& temperature, const Tensor& alpha, Divergence divergence,
             double beta, double label_smoothing, int64_t ignore_index, const std::optional<Tensor>& row_weight,
             std::optional<int64_t> vocab_size, std::optional<double> student_softcap,
             std::optional<double> teacher_softcap, double student_logit_scale, double teacher_logit_scale,
             std::optional<int64_t> of_classes = {});

LossKernel loss_kernel(const Rows& r);

// Whether the gradient may be written over the logits as they lie: rows that do not overlap, and the teacher's numbers
// apart, `width` of each row.
void check_overwritable(const Rows& r, const Tensor& student_logits, const Tensor& teacher, int64_t width);

enum class Gradient { none, fresh, over_logits };

// Lets run() fill the rows' losses and, where one is wanted, the gradient with the reduction folded in: [loss, fresh
// gradient, the gradient's factor still to come].
Tensors reduced(Rows& r, Gradient kind, const std::string& reduction, const std::optional<Tensor>& num_items_in_batch,
                const std::function<void()>& run);

}  // namespace tamis
