// Binds the launches in distill.cu.
#include <torch/csrc/stable/library.h>
#include "cuda.h"
#include "distill_cuda.h"

namespace tamis {
namespace {

void scale_rows(const Tensor& gradient, const Tensor& grad, const Tensor& factor, Tensor out) {
  const char* const what = "tamis._scale_rows_cuda";
  STD_TORCH_CHECK(gradient.dim() >= 1 && gradient.is_contiguous() && out.is_contiguous() &&
                      out.sizes().equals(gradient.sizes()) && out.scalar_type() == gradient.scalar_type(),
                  what, ": out: expected gradient's shape and dtype, both contiguous");
  const int64_t rows = rows_of(gradient);
  const ScalarType real = real_type(gradient);
  STD_TORCH_CHECK((grad.dim() == 0 || grad.numel() == rows) && grad.is_contiguous() && grad.scalar_type() == real, what,
                  ": grad: expected a number or one per row, float32, or float64 for float64");
  STD_TORCH_CHECK(factor.numel() == 1 && factor.scalar_type() == real, what, ": factor: expected one number");
  for (const Tensor* t : {&grad, &factor, static_cast<const Tensor*>(&out)})
    STD_TORCH_CHECK(t->is_cuda() && t->get_device() == gradient.get_device(), what, ": expected all on one device");
  const torch::stable::accelerator::DeviceGuard guard(gradient.get_device());
  check_launch(what, launch_scale_rows(dtype_of(what, gradient), gradient.const_data_ptr(), grad.const_data_ptr(),
                                       factor.const_data_ptr(), out.mutable_data_ptr(), rows,
                                       gradient.size(gradient.dim() - 1), grad.dim() != 0, current_stream(gradient)));
}

// Rows as the kernel walks them.
Matrix walked(const char* what, const char* name, const Tensor& t, int64_t rows, int64_t classes) {
  STD_TORCH_CHECK(t.dim() >= 1 && rows_of(t) == rows && classes <= t.size(t.dim() - 1), what, ": ", name, ": expected ",
                  rows, " rows of at least ", classes, " classes");
  const std::optional<Matrix> m = walk(t);
  STD_TORCH_CHECK(m, what, ": ", name, ": expected rows that two strides walk, classes side by side");
  return {m->data, classes, m->stride, m->group, m->group_stride};
}

const void* numbers(const char* what, const char* name, const Tensor& t, ScalarType type, int64_t rows, bool or_one) {
  STD_TORCH_CHECK(t.is_contiguous() && t.scalar_type() == type && (t.numel() == rows || (or_one && t.dim() == 0)), what,
                  ": ", name, ": expected ", torch::headeronly::toString(type), ", one per row",
                  or_one ? " or a number" : "");
  return t.const_data_ptr();
}

void distill_rows(const Tensor& student, const std::optional<Tensor>& teacher, const std::optional<Tensor>& target,
                  const Tensor& temperature, const Tensor& alpha, const std::optional<Tensor>& row_weight,
                  const std::optional<Tensor>& gradient_scale, Tensor loss, const std::optional<Tensor>& gradient,
                  int64_t classes, int64_t divergence, double beta, double label_smoothing, int64_t ignore_index,
                  bool hard, double student_scale, double student_softcap, double teacher_scale, double teacher_softcap,
                  int64_t blocks) {
  const char* const what = "tamis._distill_rows_cuda";
  const auto each = [&](const auto& visit) {
    for (const Tensor* t : {&student, &temperature, &alpha, static_cast<const Tensor*>(&loss)}) visit(*t);
    for (const std::optional<Tensor>* t : {&teacher, &target, &row_weight, &gradient_scale, &gradient})
      if (*t) visit(**t);
  };
  each([&](const Tensor& t) {
    STD_TORCH_CHECK(t.is_cuda() && t.get_device() == student.get_device(), what, ": expected all on one device");
  });
  const Dtype dtype = dtype_of(what, student);
  STD_TORCH_CHECK(dtype != f64, what, ": student: expected float32, bfloat16 or float16, got float64");
  for (const std::optional<Tensor>* t : {&teacher, &gradient})
    STD_TORCH_CHECK(!*t || (*t)->scalar_type() == student.scalar_type(), what, ": expected one dtype of logits");
  STD_TORCH_CHECK(kForwardKl <= divergence && divergence <= kAlone && bool(teacher) == (divergence != kAlone), what,
                  ": divergence: expected 0 to ", int64_t{kAlone}, ", ", int64_t{kAlone}, " without a teacher, got ",
                  divergence);
  STD_TORCH_CHECK(!gradient || (gradient_scale && gradient_scale->numel() == 1 &&
                                gradient_scale->scalar_type() == ScalarType::Double),
                  what, ": gradient_scale: expected a float64 number");
  cuda::DistillRows op{};
  op.rows = rows_of(student);
  op.student = walked(what, "student", student, op.rows, classes);
  if (teacher) op.teacher = walked(what, "teacher", *teacher, op.rows, classes);
  if (gradient) {
    op.gradient = walked(what, "gradient", *gradient, op.rows, student.size(student.dim() - 1));
    op.gradient_scale = static_cast<const double*>(gradient_scale->const_data_ptr());
  }
  op.student_transform = {student_scale, student_softcap};
  op.teacher_transform = {teacher_scale, teacher_softcap};
  const auto reals = [&](const char* name, const Tensor& t, bool or_one) {
    return static_cast<const float*>(numbers(what, name, t, ScalarType::Float, op.rows, or_one));
  };
  op.temperature = reals("temperature", temperature, true);
  op.alpha = reals("alpha", alpha, true);
  op.temperature_step = temperature.dim() != 0;
  op.alpha_step = alpha.dim() != 0;
  if (target)
    op.target = static_cast<const int64_t*>(numbers(what, "target", *target, ScalarType::Long, op.rows, false));
  if (row_weight) op.row_weight = reals("row_weight", *row_weight, false);
  op.loss = const_cast<float*>(reals("loss", loss, false));
  op.ignore_index = ignore_index;
  op.hard = hard;
  op.label_smoothing = static_cast<float>(label_smoothing);
  op.beta = static_cast<float>(beta);
  const torch::stable::accelerator::DeviceGuard guard(student.get_device());
  const cudaError_t error =
      launch_distill_rows(dtype, static_cast<Divergence>(divergence), op, blocks, current_stream(student));
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_FRAGMENT(tamis, m) {
  m.def("_scale_rows_cuda(Tensor gradient, Tensor grad, Tensor factor, Tensor(a!) out) -> ()");
  m.def(
      "_distill_rows_cuda(Tensor student, Tensor? teacher, Tensor? target, Tensor temperature, Tensor alpha, "
      "Tensor? row_weight, Tensor? gradient_scale, Tensor(a!) loss, Tensor(b!)? gradient, int classes, "
      "int divergence, float beta, float label_smoothing, int ignore_index, bool hard, float student_scale, "
      "float student_softcap, float teacher_scale, float teacher_softcap, int blocks) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(tamis, CUDA, m) {
  m.impl("_scale_rows_cuda", TORCH_BOX(&tamis::scale_rows));
  m.impl("_distill_rows_cuda", TORCH_BOX(&tamis::distill_rows));
}
