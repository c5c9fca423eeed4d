// The distill family's kernels: one table per ISA, filled by cpu_loss.cpp, chosen by csrc/dispatch.cpp.
// Real below: float, or double where the logits are double.
#pragma once
#include "../common/matrix.h"
#include "divergence.h"

namespace tamis {

struct DistillLoss {
  int64_t classes;          // of a whole row; student's and teacher's own may be a tile of them
  Matrix student, teacher;  // [rows, classes]: the classes that count, not the padding; kAlone: no teacher
  LogitTransform student_transform, teacher_transform;
  const void *temperature, *alpha;  // Real: [1] with step 0, or [rows] with step 1
  int64_t temperature_step, alpha_step;
  const int64_t* target;   // [rows], or null
  const void* row_weight;  // Real [rows], or null
  Divergence divergence;   // the plan kernel makes it kAlone where every alpha is 0: cross-entropy
  double beta;             // of jsd, within (0, 1)
  int64_t ignore_index;
  double label_smoothing;
  void* loss;             // out: Real [rows], with the row's weight
  Matrix gradient;        // out: student's dtype, [rows, classes and padding]; data null: none is wanted, classes stay
  double gradient_scale;  // the reduction's factor, folded into the gradient
  bool stream_gradient;   // past the caches
  // By the plan kernel:
  bool hard;           // some row needs the student's softmax at temperature 1 and what is kept does not hold it
  double kept_weight;  // the sum over the rows that count
  int64_t kept_rows;   // how many they are
};

enum TileStage { kSum, kCompare, kGradient };
constexpr int64_t kTileState = 11;  // Real numbers a row

// Classes first..first + student.classes of all rows: they join the row's state; or, once every class is in it, are
// compared or get their gradient, over student.
struct DistillTile {
  DistillLoss op;  // loss: written with the last tile that changes it
  TileStage stage;
  int64_t first;
  void* state;       // Real [rows, kTileState]; set where first is 0
  const void* grad;  // kGradient: Real [1] with step 0, or [rows] with step 1, times op.gradient_scale
  int64_t grad_step;
};

// A teacher of whom K entries of each row are given. What they say is compared as dense logits of K + 1 classes would
// be: the last stands for all others together.
struct TopkLoss {
  DistillLoss loss;        // no teacher; its divergence is that of the K + 1
  const void* values;      // Real [rows, entries]: the teacher's logits, or probabilities (kSoftTarget)
  const int64_t* indices;  // [rows, entries]: their classes, each at most once a row; checked here
  int64_t entries;         // K, 1 or more, at most the classes
  const void* logsumexp;   // Real [rows]: of all the teacher's logits / temperature; null: the others have nothing
};

struct DeviationStats {
  Matrix student, teacher;
  LogitTransform student_transform, teacher_transform;
  void* real[2][4];    // out: teacher's, student's; Real [rows] each: logsumexp, entropy, max_prob, log_odds
  int64_t* argmax[2];  // out: [rows] each
  bool* agree;         // out: [rows]
};

using LossKernel = void (*)(const DistillLoss& op, int64_t begin, int64_t end, void* scratch);
using TileKernel = void (*)(const DistillTile& tile, int64_t begin, int64_t end, void* scratch);
using TopkKernel = void (*)(const TopkLoss& op, int64_t begin, int64_t end, void* scratch);
using StatsKernel = void (*)(const DeviationStats& op, int64_t begin, int64_t end, void* scratch);
// The first entry of rows begin..end of [rows, entries] that is no class or comes twice in its row, counted from row 0,
// or -1. scratch: a bit a class, in whole 64s.
using IndexCheck = int64_t (*)(const int64_t* indices, int64_t entries, int64_t classes, int64_t begin, int64_t end,
                               void* scratch);
// The first row of begin..end that has a negative number or does not sum to 1 within tolerance, or -1.
using DistributionCheck = int64_t (*)(Matrix probs, double tolerance, int64_t begin, int64_t end);
using PlanKernel = void (*)(DistillLoss& op, int64_t rows);
using ReduceKernel = void (*)(const void* loss, int64_t rows, double divisor, void* out);
using ScaleKernel = void (*)(Matrix gradient, const void* grad, int64_t grad_step, double factor, int64_t begin,
                             int64_t end, bool past_caches, Matrix out);

struct DistillKernels {
  // Rows begin..end. By the student's dtype, then the teacher's; null where one of them alone is double.
  const LossKernel (*distill_loss)[kDtypes];
  const TileKernel (*distill_tile)[kDtypes];
  const TopkKernel* topk_loss;  // by the student's dtype
  const StatsKernel (*deviation_stats)[kDtypes];
  int64_t (*scratch_bytes)(int64_t classes);  // that distill_loss or deviation_stats needs, aligned to 64
  int64_t (*topk_scratch_bytes)(int64_t classes, int64_t entries);
  const PlanKernel* plan;      // float, double
  const ReduceKernel* reduce;  // float, double: the sum in order, divided; out: Real [1]
  // By dtype: out = gradient * grad[row * grad_step] * factor; out may be gradient.
  const ScaleKernel* scale_rows;
  IndexCheck bad_index;
  const DistributionCheck* bad_distribution;  // by dtype
};

namespace v2 {
extern const DistillKernels distill;
}
namespace v3 {
extern const DistillKernels distill;
}
namespace v4 {
extern const DistillKernels distill;
}
namespace v4x {
using v4::distill;
}  // namespace v4x
namespace neon {
extern const DistillKernels distill;
}
namespace wide {
extern const DistillKernels distill;
}  // namespace wide

}  // namespace tamis
