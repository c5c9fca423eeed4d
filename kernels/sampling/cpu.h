// The sampling family's softmax statistics: one table per ISA, filled by cpu_stats.cpp, chosen by csrc/dispatch.cpp.
// Real below: float, or double where the logits are double.
#pragma once
#include "draw.h"

namespace tamis {

struct StatsInput {
  Matrix logits;  // [rows, classes]
  Matrix mask;    // bool [rows, classes], which classes count; data null: all
  LogitTransform transform;
  const void* temperature;  // Real: [1] with step 0, or [rows] with step 1
  int64_t temperature_step;
  const int64_t* target;  // [rows], or null
};

struct SoftmaxStats {
  StatsInput in;
  void *logsumexp, *entropy, *max_prob, *margin;  // out: Real [rows]
  int64_t* argmax;                                // out: [rows]
  void *nll, *el2n;                               // out: Real [rows], where there is a target
};

struct SoftmaxStatsBackward {
  StatsInput in;
  const void *entropy, *max_prob;                            // Real [rows], of the forward, as is
  const int64_t* argmax;                                     // [rows], each a class
  const void *d_logsumexp, *d_entropy, *d_max_prob, *d_nll;  // Real [rows]; d_nll: where there is a target
  Matrix gradient;                                           // out: the logits' dtype; may be the logits
  bool past_caches;
};

enum class Disagreement { entropy_term, max_abs, jsd };

struct DisagreementOp {
  Matrix a, b;            // [rows, classes] logits
  const int64_t* target;  // [rows], of entropy_term
  Disagreement kind;
  void* out;  // Real [rows]
};

struct SamplingKernels {                         // rows begin..end
  const RowKernel<SoftmaxStats>* softmax_stats;  // by dtype
  const RowKernel<SoftmaxStatsBackward>* softmax_stats_backward;
  const RowKernel<DisagreementOp> (*disagreement)[kDtypes];  // null where one of them alone is double
  int64_t (*scratch_bytes)(int64_t classes);                 // that any of them needs, aligned to 64
  const DrawKernels& draw;
};

namespace v2 {
extern const SamplingKernels sampling;
}
namespace v3 {
extern const SamplingKernels sampling;
}
namespace v4 {
extern const SamplingKernels sampling;
}
namespace v4x {
using v4::sampling;
}  // namespace v4x
namespace neon {
extern const SamplingKernels sampling;
}
namespace wide {
extern const SamplingKernels sampling;
}  // namespace wide

}  // namespace tamis
