// What distill_rows_kernel is given, for the binding too, which no CUDA compiler reads.
#pragma once
#include "../common/matrix.h"
#include "divergence.h"

namespace tamis::cuda {

struct DistillRows {
  int64_t rows;
  Matrix student, teacher;  // [rows, classes]: the classes that count; kAlone: no teacher
  LogitTransform student_transform, teacher_transform;
  const float *temperature, *alpha;  // [1] with step 0, or [rows] with step 1
  int64_t temperature_step, alpha_step;
  const int64_t* target;    // [rows], or null
  const float* row_weight;  // [rows], or null
  int64_t ignore_index;
  float label_smoothing, beta;   // beta: of jsd, within (0, 1)
  bool hard;                     // some row may need exp(s), and what it has for the divergence is not that
  float* loss;                   // out: [rows], with the row's weight
  Matrix gradient;               // out: [rows, classes and padding]; null: none is wanted; may be the student
  const double* gradient_scale;  // [1]: the reduction's factor, folded into the gradient
};

}  // namespace tamis::cuda
