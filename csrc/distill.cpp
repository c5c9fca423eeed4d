// Checks, allocates, parallelises; the arithmetic is in kernels/distill. Nothing inside parallel_for may throw.
#include "distill.h"
#include <torch/csrc/stable/library.h>
#include <atomic>
#include <utility>

namespace tamis {
namespace {

int64_t counted_classes(const Names& names, const Tensor& student, const Tensor& teacher,
                        std::optional<int64_t> vocab_size) {
  const char* const what = names.op;
  const int64_t s = student.size(student.dim() - 1), t = teacher.size(teacher.dim() - 1);
  STD_TORCH_CHECK(leading(student) == leading(teacher), what, ": ", names.teacher, ": expected the leading axes of ",
                  names.student, ", ", rows_of(student), " rows, got ", rows_of(teacher));
  STD_TORCH_CHECK(vocab_size || s == t, what, ": vocab_size: expected a number for ", s, " and ", t, " classes");
  const int64_t classes = vocab_size.value_or(s);
  STD_TORCH_CHECK(0 < classes && classes <= s && classes <= t, what, ": vocab_size: expected 1 to ", s < t ? s : t,
                  ", got ", classes);
  return classes;
}

// From the first byte of what a tensor's rows span to past the last; width: elements a row.
std::pair<uintptr_t, uintptr_t> extent(const Tensor& t, int64_t width) {
  const Matrix m = *walk(t);
  const int64_t rows = rows_of(t), groups = rows ? (rows - 1) / m.group : 0, in_group = rows < m.group ? rows : m.group;
  const int64_t elements = rows ? groups * m.group_stride + (in_group - 1) * m.stride + width : 0;
  const uintptr_t begin = (uintptr_t)m.data;
  return {begin, begin + elements * t.element_size()};
}

const int64_t kStats = 11;

struct Stats {
  StatsKernel kernel;
  DeviationStats op;
  Tensors out;
};

// student and teacher as logits() gives them.
Stats prepare_stats(const char* what, const Tensor& student, const Tensor& teacher, int64_t classes,
                    const LogitTransform& of_student, const LogitTransform& of_teacher) {
  Stats s{kernels().distill.deviation_stats[dtype_of(what, student)][dtype_of(what, teacher)],
          {first_classes(student, classes), first_classes(teacher, classes), of_student, of_teacher, {}, {}, {}},
          {}};
  STD_TORCH_CHECK(s.kernel, what, ": teacher_logits: expected float64 beside float64 and only there");
  for (int64_t i = 0; i < kStats; ++i)
    s.out.push_back(torch::stable::new_empty(student, leading(student),
                                             i == 6 || i == 7 ? ScalarType::Long
                                             : i == 10        ? ScalarType::Bool
                                                              : real_type(student)));
  for (int model = 0; model < 2; ++model) {
    for (int i = 0; i < 4; ++i) s.op.real[model][i] = s.out[(i < 3 ? 2 * i : 8) + model].mutable_data_ptr();
    s.op.argmax[model] = static_cast<int64_t*>(s.out[6 + model].mutable_data_ptr());
  }
  s.op.agree = static_cast<bool*>(s.out[10].mutable_data_ptr());
  return s;
}

Tensors deviation_stats(const Tensor& student_logits, const Tensor& teacher_logits, std::optional<int64_t> vocab_size,
                        std::optional<double> student_softcap, std::optional<double> teacher_softcap,
                        double student_logit_scale, double teacher_logit_scale) {
  const char* const what = "tamis.deviation_stats";
  const Tensor student = logits("tamis.deviation_stats: student_logits", student_logits);
  const Tensor teacher = logits("tamis.deviation_stats: teacher_logits", teacher_logits);
  const int64_t classes = counted_classes({what, "student_logits", "teacher_logits"}, student, teacher, vocab_size);
  Stats stats = prepare_stats(what, student, teacher, classes, transform(student_logit_scale, student_softcap),
                              transform(teacher_logit_scale, teacher_softcap));
  over_rows(what, rows_of(student), classes, kernels().distill.scratch_bytes(classes),
            [&](int64_t begin, int64_t end, void* scratch) { stats.kernel(stats.op, begin, end, scratch); });
  return stats.out;
}

}  // namespace

Divergence divergence_of(const char* what, const std::string& name, double beta) {
  const char* const names[] = {"forward_kl", "reverse_kl", "jsd", "total_variation", "logit_mse"};
  for (int i = 0; i < kDivergences; ++i) {
    if (name != names[i]) continue;
    STD_TORCH_CHECK(i != kJsd || (0 <= beta && beta <= 1), what, ": beta: expected 0 to 1, got ", beta);
    return i != kJsd || (0 < beta && beta < 1) ? Divergence(i) : beta == 0 ? kForwardKl : kReverseKl;
  }
  STD_TORCH_CHECK(false, what, ": divergence: expected forward_kl, reverse_kl, jsd, total_variation or logit_mse, got ",
                  name);
}

Rows prepare(const Names& names, const Tensor& student_logits, const std::optional<Tensor>& teacher_logits,
             const std::optional<Tensor>& target, const Tensor& temperature, const Tensor& alpha, Divergence divergence,
             double beta, double label_smoothing, int64_t ignore_index, const std::optional<Tensor>& row_weight,
             std::optional<int64_t> vocab_size, std::optional<double> student_softcap,
             std::optional<double> teacher_softcap, double student_logit_scale, double teacher_logit_scale,
             std::optional<int64_t> of_classes) {
  const char* const what = names.op;
  const std::string of = std::string(what) + ": ";
  STD_TORCH_CHECK(0 <= label_smoothing && label_smoothing <= 1, what, ": label_smoothing: expected 0 to 1, got ",
                  label_smoothing);
  const Tensor student = logits((of + names.student).c_str(), student_logits);
  const Tensor teacher = teacher_logits ? logits((of + names.teacher).c_str(), *teacher_logits) : student;
  const int64_t classes = counted_classes(names, student, teacher, vocab_size);
  const ScalarType real = real_type(student);
  const std::vector<int64_t> axes = leading(student);
  const auto numbers = [&](const char* name, const Tensor& t, Count count) {
    return scalars((of + name).c_str(), t, real, axes, count);
  };
  Rows r{names,
         {},
         rows_of(student),
         classes,
         student.size(student.dim() - 1),
         real == ScalarType::Double,
         student,
         teacher,
         numbers("temperature", temperature, Count::either),
         numbers("alpha", alpha, Count::either),
         torch::stable::new_empty(student, axes, real),
         {},
         {}};
  if (target) {
    STD_TORCH_CHECK(target->scalar_type() == ScalarType::Long, what, ": target: expected int64, got ",
                    torch::headeronly::toString(target->scalar_type()));
    r.target = scalars((of + "target").c_str(), *target, ScalarType::Long, axes, Count::each);
  }
  if (row_weight) r.row_weight = numbers("row_weight", *row_weight, Count::each);

  DistillLoss& op = r.op;
  op.student = first_classes(student, classes), op.teacher = first_classes(teacher, classes);
  op.student_transform = transform(student_logit_scale, student_softcap);
  op.teacher_transform = transform(teacher_logit_scale, teacher_softcap);
  op.temperature = r.temperature.const_data_ptr(), op.temperature_step = r.temperature.dim() != 0;
  op.alpha = r.alpha.const_data_ptr(), op.alpha_step = r.alpha.dim() != 0;
  op.target = r.target ? static_cast<const int64_t*>(r.target->const_data_ptr()) : nullptr;
  op.row_weight = r.row_weight ? r.row_weight->const_data_ptr() : nullptr;
  op.divergence = divergence, op.beta = beta;
  op.ignore_index = ignore_index, op.label_smoothing = label_smoothing;
  op.classes = of_classes.value_or(classes);
  op.loss = r.loss.mutable_data_ptr();
  op.gradient.classes = r.width;
  kernels().distill.plan[r.wide](op, r.rows);
  return r;
}

LossKernel loss_kernel(const Rows& r) {
  const auto kernel = kernels().distill.distill_loss[dtype_of(r.names.op, r.student)][dtype_of(r.names.op, r.teacher)];
  STD_TORCH_CHECK(kernel, r.names.op, ": ", r.names.teacher, ": expected float64 beside float64 and only there");
  return kernel;
}

void check_overwritable(const Rows& r, const Tensor& student_logits, const Tensor& teacher, int64_t width) {
  STD_TORCH_CHECK(r.student.data_ptr() == student_logits.data_ptr(), r.names.op,
                  ": overwrite_logits: expected logits that two strides walk, classes side by side");
  const Matrix m = *walk(r.student);
  const int64_t groups = r.rows ? (r.rows - 1) / m.group + 1 : 0;
  const auto apart = [&](int64_t inner, int64_t count, int64_t outer) {  // `count` rows, then the next lot
    return inner >= r.width && outer >= (count - 1) * inner + r.width;
  };
  STD_TORCH_CHECK(
      r.rows < 2 || (groups < 2 ? m.stride >= r.width
                                : apart(m.stride, m.group, m.group_stride) || apart(m.group_stride, groups, m.stride)),
      r.names.op, ": overwrite_logits: expected rows that do not overlap");
  if (r.op.divergence == kAlone) return;
  const auto mine = extent(r.student, r.width), other = extent(teacher, width);
  STD_TORCH_CHECK(mine.second <= other.first || other.second <= mine.first, r.names.op, ": overwrite_logits: expected ",
                  r.names.teacher, " in memory apart from student_logits");
}

Tensors reduced(Rows& r, Gradient kind, const std::string& reduction, const std::optional<Tensor>& num_items_in_batch,
                const std::function<void()>& run) {
  const char* const what = r.names.op;
  STD_TORCH_CHECK(reduction == "mean" || reduction == "sum" || reduction == "none", what,
                  ": reduction: expected mean, sum or none, got ", reduction);
  DistillLoss& op = r.op;
  const Tensor& student = r.student;
  double divisor = 1;
  if (reduction == "mean") {
    divisor = op.kept_weight;
    if (num_items_in_batch) divisor = number((std::string(what) + ": num_items_in_batch").c_str(), *num_items_in_batch);
    if (op.kept_weight == 0 && divisor == 0) divisor = 1;  // nothing kept: 0, not 0 / 0
  }
  // A half-precision gradient divided by the number of rows would underflow before a gradient scaler multiplies it, and
  // weights far from 1 would do as much: there only weights relative to their mean go into it.
  const bool fold = student.scalar_type() != ScalarType::Half;
  const double mean = op.kept_weight / op.kept_rows, level = mean > 0 && mean * 0 == 0 ? mean : 1;
  op.gradient_scale = fold ? 1 / divisor : 1 / level;

  std::optional<Tensor> gradient;
  if (kind == Gradient::fresh)
    gradient =
        advise_huge_pages(torch::stable::empty(student.sizes(), student.scalar_type(), std::nullopt, student.device()));
  if (kind == Gradient::over_logits) gradient = student;
  if (gradient) {
    op.gradient = first_classes(*gradient, r.width);
    op.stream_gradient = kind == Gradient::fresh && gradient->numel() * gradient->element_size() >= kLarge;
  }
  run();

  Tensors out;
  if (reduction == "none") {
    out.push_back(r.loss);
  } else {
    Tensor total = torch::stable::new_empty(student, {}, r.loss.scalar_type());
    kernels().distill.reduce[r.wide](r.loss.const_data_ptr(), r.rows, divisor, total.mutable_data_ptr());
    out.push_back(total);
  }
  if (kind == Gradient::fresh) out.push_back(*gradient);
  if (kind != Gradient::none) {
    Tensor factor = torch::stable::new_empty(student, {}, r.loss.scalar_type());
    torch::stable::fill_(factor, fold ? 1 : level / divisor);
    out.push_back(factor);
  }
  return out;
}

namespace {

const Names kNames = {"tamis.distill_loss", "student_logits", "teacher_logits"};

// The losses, the gradient where op has one, and the statistics where they are wanted.
Tensors run(Rows& r, bool return_stats) {
  const LossKernel kernel = loss_kernel(r);
  std::optional<Stats> stats;
  if (return_stats)
    stats = prepare_stats(r.names.op, r.student, r.teacher, r.classes, r.op.student_transform, r.op.teacher_transform);
  over_rows(r.names.op, r.rows, r.classes, kernels().distill.scratch_bytes(r.classes),
            [&](int64_t begin, int64_t end, void* scratch) {
              if (!stats) return kernel(r.op, begin, end, scratch);
              for (int64_t i = begin; i < end; ++i) {  // the row is read from memory once; before its gradient may
                stats->kernel(stats->op, i, i + 1, scratch);  // overwrite it
                kernel(r.op, i, i + 1, scratch);
              }
            });
  return stats ? stats->out : Tensors{};
}

template <Gradient kGradient>
Tensors distill_loss(const Tensor& student_logits, const Tensor& teacher_logits, const std::optional<Tensor>& target,
                     const Tensor& temperature, const Tensor& alpha, const std::string& divergence, double beta,
                     double label_smoothing, int64_t ignore_index, const std::string& reduction,
                     const std::optional<Tensor>& row_weight, const std::optional<Tensor>& num_items_in_batch,
                     std::optional<int64_t> vocab_size, std::optional<double> student_softcap,
                     std::optional<double> teacher_softcap, double student_logit_scale, double teacher_logit_scale,
                     bool overwrite_logits, bool return_stats) {
  STD_TORCH_CHECK(!overwrite_logits || kGradient == Gradient::over_logits, kNames.op,
                  ": overwrite_logits: the raw op changes no argument; tamis.distill.distill_loss does");
  Rows r = prepare(kNames, student_logits, teacher_logits, target, temperature, alpha,
                   divergence_of(kNames.op, divergence, beta), beta, label_smoothing, ignore_index, row_weight,
                   vocab_size, student_softcap, teacher_softcap, student_logit_scale, teacher_logit_scale);
  if (kGradient == Gradient::over_logits) check_overwritable(r, student_logits, r.teacher, r.classes);
  Tensors stats;
  Tensors out = reduced(r, kGradient, reduction, num_items_in_batch, [&] { stats = run(r, return_stats); });
  out.insert(out.end(), stats.begin(), stats.end());
  return out;
}

void check_teacher(const Rows& r, const std::optional<Tensor>& teacher_logits) {
  STD_TORCH_CHECK(teacher_logits || r.op.divergence == kAlone || r.op.kept_rows == 0, r.names.op,
                  ": teacher_logits: expected a tensor where alpha is not 0");
}

Tensors distill_rows_(Tensor student_logits, const std::optional<Tensor>& teacher_logits,
                      const std::optional<Tensor>& target, const Tensor& temperature, const Tensor& alpha,
                      const std::string& divergence, double beta, double label_smoothing, int64_t ignore_index,
                      const std::optional<Tensor>& row_weight, std::optional<int64_t> vocab_size,
                      std::optional<double> student_softcap, std::optional<double> teacher_softcap,
                      double student_logit_scale, double teacher_logit_scale,
                      const std::optional<Tensor>& gradient_scale, bool return_stats) {
  Rows r = prepare(kNames, student_logits, teacher_logits, target, temperature, alpha,
                   divergence_of(kNames.op, divergence, beta), beta, label_smoothing, ignore_index, row_weight,
                   vocab_size, student_softcap, teacher_softcap, student_logit_scale, teacher_logit_scale);
  check_teacher(r, teacher_logits);
  if (gradient_scale) {
    check_overwritable(r, student_logits, r.teacher, r.classes);
    r.op.gradient = first_classes(r.student, r.width);
    r.op.gradient_scale = number("tamis._distill_rows_: gradient_scale", *gradient_scale);
  }
  Tensors out = run(r, return_stats);
  out.insert(out.begin(), r.loss);
  return out;
}

Tensor distill_tile_(Tensor student_logits, const std::optional<Tensor>& teacher_logits,
                     const std::optional<Tensor>& target, const Tensor& temperature, const Tensor& alpha,
                     const std::string& divergence, double beta, double label_smoothing, int64_t ignore_index,
                     const std::optional<Tensor>& row_weight, std::optional<int64_t> vocab_size,
                     std::optional<double> student_softcap, std::optional<double> teacher_softcap,
                     double student_logit_scale, double teacher_logit_scale, Tensor state, int64_t first,
                     int64_t classes, const std::string& stage, const std::optional<Tensor>& grad,
                     const std::optional<Tensor>& gradient_scale) {
  const Names names = {"tamis._distill_tile_", "student_logits", "teacher_logits"};
  const char* const what = names.op;
  STD_TORCH_CHECK(stage == "sum" || stage == "compare" || stage == "gradient", what,
                  ": stage: expected sum, compare or gradient, got ", stage);
  const Rows r =
      prepare(names, student_logits, teacher_logits, target, temperature, alpha, divergence_of(what, divergence, beta),
              beta, label_smoothing, ignore_index, row_weight, vocab_size, student_softcap, teacher_softcap,
              student_logit_scale, teacher_logit_scale, classes);
  check_teacher(r, teacher_logits);
  STD_TORCH_CHECK(0 <= first && first + r.width <= classes, what, ": first: expected a tile of ", r.width,
                  " classes within ", classes, ", got ", first);
  STD_TORCH_CHECK(state.is_cpu() && state.is_contiguous() && state.scalar_type() == r.loss.scalar_type() &&
                      shape(state) == std::vector<int64_t>({r.rows, kTileState}),
                  what, ": state: expected [", r.rows, ", ", kTileState, "], contiguous, of the loss's dtype");
  DistillTile tile{r.op, kSum, first, state.mutable_data_ptr(), nullptr, 0};
  std::optional<Tensor> grads;
  if (stage == "compare") tile.stage = kCompare;
  if (stage == "gradient") {
    STD_TORCH_CHECK(grad && gradient_scale, what, ": grad, gradient_scale: expected tensors");
    check_overwritable(r, student_logits, r.teacher, r.width);
    tile.stage = kGradient;
    grads = scalars("tamis._distill_tile_: grad", *grad, r.loss.scalar_type(), leading(r.student), Count::either);
    tile.grad = grads->const_data_ptr(), tile.grad_step = grads->dim() != 0;
    tile.op.gradient_scale = number("tamis._distill_tile_: gradient_scale", *gradient_scale);
  }
  const auto kernel = kernels().distill.distill_tile[dtype_of(what, r.student)][dtype_of(what, r.teacher)];
  STD_TORCH_CHECK(kernel, what, ": teacher_logits: expected float64 beside float64 and only there");
  over_rows(what, r.rows, r.width, kernels().distill.scratch_bytes(r.width),
            [&](int64_t begin, int64_t end, void* scratch) { kernel(tile, begin, end, scratch); });
  return r.loss;
}

void scale(const Tensor& gradient, const Tensor& grad, const Tensor& factor, Tensor& out, bool past_caches) {
  const char* const what = "tamis._scale_rows: gradient";
  const int64_t rows = rows_of(gradient), classes = gradient.size(gradient.dim() - 1);
  const ScalarType real = real_type(gradient);
  const Tensor g = scalars("tamis._scale_rows: grad", grad, real, leading(gradient), Count::either);
  const double times = number("tamis._scale_rows: factor", factor);
  const auto kernel = kernels().distill.scale_rows[dtype_of(what, gradient)];
  const Matrix from = *walk(gradient), to = *walk(out);
  torch::stable::parallel_for(0, rows, grain(classes), [&](int64_t begin, int64_t end) {
    kernel(from, g.const_data_ptr(), g.dim() != 0, times, begin, end, past_caches, to);
  });
}

Tensor scale_rows(const Tensor& gradient, const Tensor& grad, const Tensor& factor) {
  const Tensor from = logits("tamis._scale_rows: gradient", gradient);
  Tensor out = advise_huge_pages(torch::stable::empty(from.sizes(), from.scalar_type(), std::nullopt, from.device()));
  scale(from, grad, factor, out, out.numel() * out.element_size() >= kLarge);
  return out;
}

void scale_rows_(Tensor gradient, const Tensor& grad, const Tensor& factor) {
  STD_TORCH_CHECK(walk(gradient), "tamis._scale_rows_: gradient: expected rows that two strides walk");
  scale(gradient, grad, factor, gradient, false);
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_IMPL(tamis, CPU, m) {
  m.impl("distill_loss", TORCH_BOX(&tamis::distill_loss<tamis::Gradient::none>));
  m.impl("_distill_loss_forward", TORCH_BOX(&tamis::distill_loss<tamis::Gradient::fresh>));
  m.impl("_distill_loss_forward_", TORCH_BOX(&tamis::distill_loss<tamis::Gradient::over_logits>));
  m.impl("_distill_rows_", TORCH_BOX(&tamis::distill_rows_));
  m.impl("_distill_tile_", TORCH_BOX(&tamis::distill_tile_));
  m.impl("_scale_rows", TORCH_BOX(&tamis::scale_rows));
  m.impl("_scale_rows_", TORCH_BOX(&tamis::scale_rows_));
  m.impl("deviation_stats", TORCH_BOX(&tamis::deviation_stats));
}
