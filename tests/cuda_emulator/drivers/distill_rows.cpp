#include "csrc/distill_rows.cu"
#include "export.h"

namespace {
tamis::Matrix matrix(const void* data, const int64_t* n) { return {data, n[0], n[1], n[2], n[3]}; }
}  // namespace

// n: rows; classes or width, stride, group, group_stride of student, teacher, gradient; temperature_step, alpha_step,
// ignore_index, hard. x: scale, cap of student, teacher; label_smoothing, beta.
EXPORT int distill_rows(int64_t dtype, int64_t divergence, const int64_t* n, const double* x, const void* student,
                        const void* teacher, const int64_t* target, const float* temperature, const float* alpha,
                        const float* row_weight, const double* gradient_scale, float* loss, void* gradient,
                        int64_t blocks) {
  tamis::cuda::DistillRows op{};
  op.rows = n[0];
  op.student = matrix(student, n + 1);
  op.teacher = matrix(teacher, n + 5);
  op.gradient = matrix(gradient, n + 9);
  op.student_transform = {x[0], x[1]};
  op.teacher_transform = {x[2], x[3]};
  op.temperature = temperature;
  op.alpha = alpha;
  op.temperature_step = n[13];
  op.alpha_step = n[14];
  op.target = target;
  op.row_weight = row_weight;
  op.ignore_index = n[15];
  op.hard = n[16];
  op.label_smoothing = float(x[4]);
  op.beta = float(x[5]);
  op.loss = loss;
  op.gradient_scale = gradient_scale;
  return tamis::launch_distill_rows(tamis::Dtype(dtype), tamis::Divergence(divergence), op, blocks, caller_stream);
}
EXPORT int64_t distill_rows_shared(int64_t dtype, int64_t divergence, int64_t classes) {
  return tamis::distill_rows_shared(tamis::Dtype(dtype), tamis::Divergence(divergence), classes);
}
