// Every op of the package. A public schema is a promise: a test freezes it. A name with _ is private.
// Raw ops take the public function's arguments in its order; a number or a tensor is a Tensor here. Ops that may also
// give statistics return a list: the loss, then the fields of DeviationStats in order, where they were asked for.
#include <torch/csrc/stable/library.h>
#include "dispatch.h"

// What the losses share, and each with its private forms: what follows student_logits.
#define TAMIS_OPTIONS                                                                                            \
  "Tensor temperature, Tensor alpha, str divergence=\"forward_kl\", float beta=0.5, float label_smoothing=0.0, " \
  "int ignore_index=-100, str reduction=\"mean\", Tensor? row_weight=None, Tensor? num_items_in_batch=None, "    \
  "SymInt? vocab_size=None, float? student_softcap=None, float? teacher_softcap=None, "                          \
  "float student_logit_scale=1.0, float teacher_logit_scale=1.0, bool overwrite_logits=False"
#define TAMIS_DISTILL "Tensor teacher_logits, Tensor? target, " TAMIS_OPTIONS ", bool return_stats=False) -> Tensor[]"
#define TAMIS_TOPK_DISTILL                                                                                  \
  "Tensor teacher_topk_values, Tensor teacher_topk_indices, Tensor teacher_logsumexp, Tensor? target, str " \
  "tail, " TAMIS_OPTIONS ") -> Tensor[]"
#define TAMIS_SOFT \
  "(Tensor logits, Tensor probs, Tensor? indices=None, str reduction=\"mean\", Tensor? row_weight=None) -> "

// Of the linear losses' private forms: what linear_distill_loss takes, the teacher optional.
#define TAMIS_LINEAR_ARGUMENTS                                                                                     \
  "Tensor student_hidden, Tensor student_weight, Tensor? teacher_hidden, Tensor? teacher_weight, Tensor? target, " \
  "Tensor? student_bias, Tensor? teacher_bias, SymInt? chunk_size, Tensor temperature, Tensor alpha, "             \
  "str divergence, float beta, float label_smoothing, int ignore_index, str reduction, Tensor? row_weight, "       \
  "Tensor? num_items_in_batch, SymInt? vocab_size, float? student_softcap, float? teacher_softcap, "               \
  "float student_logit_scale, float teacher_logit_scale, bool return_stats"

#define TAMIS_STATS_OPTIONS \
  "Tensor? target, Tensor temperature, Tensor? valid_mask=None, float? softcap=None, float logit_scale=1.0"
#define TAMIS_STATS "Tensor logits, " TAMIS_STATS_OPTIONS
#define TAMIS_STATS_SAVED                                                                                       \
  "Tensor? target, Tensor temperature, Tensor? valid_mask, float? softcap, float logit_scale, Tensor entropy, " \
  "Tensor max_prob, Tensor argmax, Tensor d_logsumexp, Tensor d_entropy, Tensor d_max_prob, Tensor? d_nll"
#define TAMIS_STATS_BACKWARD "Tensor logits, " TAMIS_STATS_SAVED
#define TAMIS_STATS_BACKWARD_ "Tensor(a!) logits, " TAMIS_STATS_SAVED

// An index's buffers.
#define TAMIS_IVF                                                                                                    \
  "Tensor centroids, float centroid_scale, Tensor order_bias, Tensor score_bias, Tensor start, Tensor block, "       \
  "Tensor codebooks, Tensor? constants, Tensor codes, Tensor? bytes, float byte_scale, Tensor? half_norms, Tensor? " \
  "exact, Tensor? ids, Tensor? center"

STABLE_TORCH_LIBRARY(tamis, m) {
  // distill
  m.def("distill_loss(Tensor student_logits, " TAMIS_DISTILL);
  // The loss, the gradient of student_logits with the reduction folded in, its factor still to come, the statistics.
  m.def("_distill_loss_forward(Tensor student_logits, " TAMIS_DISTILL);
  // The same; the gradient is written over student_logits and not returned.
  m.def("_distill_loss_forward_(Tensor(a!) student_logits, " TAMIS_DISTILL);
  // Likewise.
  m.def("topk_distill_loss(Tensor student_logits, " TAMIS_TOPK_DISTILL);
  m.def("_topk_distill_loss_forward(Tensor student_logits, " TAMIS_TOPK_DISTILL);
  m.def("_topk_distill_loss_forward_(Tensor(a!) student_logits, " TAMIS_TOPK_DISTILL);
  m.def("soft_cross_entropy" TAMIS_SOFT "Tensor");
  m.def("_soft_cross_entropy_forward" TAMIS_SOFT "Tensor[]");
  // The first number of indices [*, K] that is no class or comes twice in its row, or -1.
  m.def("_bad_index(Tensor indices, int classes) -> int");
  // The first row of probs [*, classes] that has a negative number or does not sum to 1 within tolerance, or -1.
  m.def("_bad_distribution(Tensor probs, float tolerance) -> int");
  // One chunk of a linear loss: the weighted loss of each row, the statistics; gradient_scale (0-d) times the gradient
  // goes over student_logits where it is given. No teacher where every alpha is 0.
  m.def(
      "_distill_rows_(Tensor(a!) student_logits, Tensor? teacher_logits, Tensor? target, Tensor temperature, "
      "Tensor alpha, str divergence, float beta, float label_smoothing, int ignore_index, Tensor? row_weight, "
      "SymInt? vocab_size, float? student_softcap, float? teacher_softcap, float student_logit_scale, "
      "float teacher_logit_scale, Tensor? gradient_scale, bool return_stats) -> Tensor[]");
  // gradient [*, classes] times grad (0-d, or [*]) times factor (0-d).
  m.def("_scale_rows(Tensor gradient, Tensor grad, Tensor factor) -> Tensor");
  m.def("_scale_rows_(Tensor(a!) gradient, Tensor grad, Tensor factor) -> ()");
  m.def(
      "linear_distill_loss(Tensor student_hidden, Tensor student_weight, Tensor teacher_hidden, Tensor teacher_weight, "
      "Tensor? target, Tensor? student_bias, Tensor? teacher_bias, SymInt? chunk_size, Tensor temperature, "
      "Tensor alpha, str divergence=\"forward_kl\", float beta=0.5, float label_smoothing=0.0, int ignore_index=-100, "
      "str reduction=\"mean\", Tensor? row_weight=None, Tensor? num_items_in_batch=None, SymInt? vocab_size=None, "
      "float? student_softcap=None, float? teacher_softcap=None, float student_logit_scale=1.0, "
      "float teacher_logit_scale=1.0, bool return_stats=False) -> Tensor[]");
  m.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor target, Tensor? bias=None, float label_smoothing=0.0, "
      "int ignore_index=-100, str reduction=\"mean\", Tensor? row_weight=None, Tensor? num_items_in_batch=None, "
      "SymInt? vocab_size=None, float? softcap=None, float logit_scale=1.0, SymInt? chunk_size=None) -> Tensor");
  // The loss, the factor still to come of its gradients, these as far as wanted (hidden, weight, bias), the statistics.
  m.def("_linear_loss_forward(" TAMIS_LINEAR_ARGUMENTS ", bool[] wanted) -> Tensor[]");
  // The loss, the rows' sums that the backward computes the logits' gradient from, the statistics.
  m.def("_linear_loss_sums(" TAMIS_LINEAR_ARGUMENTS ") -> Tensor[]");
  m.def("_linear_loss_backward(Tensor grad, Tensor state, " TAMIS_LINEAR_ARGUMENTS ", bool[] wanted) -> Tensor[]");
  // Some classes of every row, from `first` on, of `classes`. stage "sum": they join state [rows, 11], which is set
  // where first is 0. "compare": so does what jsd and total_variation sum over once all sums are known. "gradient":
  // grad (0-d or [rows]) times gradient_scale (0-d) times the gradient goes over student_logits. Returns the weighted
  // loss of each row: right once every class is in state.
  m.def(
      "_distill_tile_(Tensor(a!) student_logits, Tensor? teacher_logits, Tensor? target, Tensor temperature, "
      "Tensor alpha, str divergence, float beta, float label_smoothing, int ignore_index, Tensor? row_weight, "
      "SymInt? vocab_size, float? student_softcap, float? teacher_softcap, float student_logit_scale, "
      "float teacher_logit_scale, Tensor(b!) state, SymInt first, SymInt classes, str stage, Tensor? grad, "
      "Tensor? gradient_scale) -> Tensor");
  m.def(
      "deviation_stats(Tensor student_logits, Tensor teacher_logits, SymInt? vocab_size=None, "
      "float? student_softcap=None, float? teacher_softcap=None, float student_logit_scale=1.0, "
      "float teacher_logit_scale=1.0) -> Tensor[]");

  // sampling
  // The fields of SoftmaxStats in order: nll and el2n where there is a target.
  m.def("softmax_stats(" TAMIS_STATS ") -> Tensor[]");
  // What of the forward it needs, then the gradients of logsumexp, entropy, max_prob and, with a target, nll.
  m.def("_softmax_stats_backward(" TAMIS_STATS_BACKWARD ") -> Tensor");
  // The same; the gradient goes over the logits.
  m.def("_softmax_stats_backward_(" TAMIS_STATS_BACKWARD_ ") -> ()");
  m.def("linear_softmax_stats(Tensor hidden, Tensor weight, Tensor? bias, " TAMIS_STATS_OPTIONS
        ", SymInt? chunk_size=None) -> Tensor[]");
  // Those wanted of the gradients of hidden, weight and bias.
  m.def(
      "_linear_softmax_stats_backward(Tensor hidden, Tensor weight, Tensor? bias, Tensor? target, Tensor temperature, "
      "Tensor? valid_mask, float? softcap, float logit_scale, SymInt? chunk_size, Tensor entropy, Tensor max_prob, "
      "Tensor argmax, Tensor d_logsumexp, Tensor d_entropy, Tensor d_max_prob, Tensor? d_nll, bool[] wanted) "
      "-> Tensor[]");
  m.def("disagreement(Tensor logits_a, Tensor logits_b, Tensor? target=None, str kind=\"entropy_term\") -> Tensor");
  m.def(
      "importance_sample(Tensor probs, SymInt? num_samples, str method, Tensor? ids, SymInt seed, SymInt offset=0, "
      "float? cap=None, str weights=\"draw\") -> Tensor[]");
  // Philox-4x32-10 with key seed of the counters (id, offset): [n, 4] words of 32 bits.
  m.def("_philox(Tensor ids, SymInt seed, SymInt offset) -> Tensor");

  // ann
  m.def("kmeans_assign(Tensor x, Tensor centroids, str metric=\"l2\") -> (Tensor indices, Tensor distances)");
  m.def("pq_encode(Tensor x, Tensor codebooks, Tensor? directions=None, float eta=1.0, int rounds=10) -> Tensor");
  m.def(
      "rank_of(Tensor queries, Tensor targets, Tensor vectors, Tensor? weights=None, str metric=\"ip\", "
      "str ties=\"first\") -> Tensor");

  // sparse_mlp
  m.def("gaussian_topk(Tensor x, SymInt k) -> Tensor");
  m.def(
      "topk_mlp(Tensor x, Tensor w_up, Tensor? b_up, Tensor w_down, Tensor? b_down, SymInt k, Tensor? w_gate=None, "
      "Tensor? b_gate=None, str activation=\"relu\", str selection=\"exact\") -> Tensor");
  // The result; int32: how many neurons each token has active, and which [tokens, k]; their hidden values and, where it
  // saves them for the backward, pre-activations, up and then gate.
  m.def(
      "_topk_mlp_forward(Tensor x, Tensor w_up, Tensor? b_up, Tensor w_down, Tensor? b_down, int k, Tensor? w_gate, "
      "Tensor? b_gate, str activation, bool saves) -> Tensor[]");
  // Those wanted of the gradients of x, w_up, b_up, w_down, w_gate, b_gate.
  m.def(
      "_topk_mlp_backward(Tensor grad, Tensor x, Tensor w_up, Tensor w_down, Tensor? w_gate, Tensor count, "
      "Tensor index, Tensor hidden, Tensor up_at, Tensor? gate_at, str activation, bool[] wanted) -> Tensor[]");
  // relu(x - mean - deviations * std) of each row.
  m.def("_gaussian_cut(Tensor x, float deviations) -> Tensor");
  m.def("_gaussian_cut_backward(Tensor grad, Tensor x, float deviations) -> Tensor");
  // x w^T + b: of few tokens in the arithmetic's dtype, by a kernel of our own.
  m.def("_project(Tensor x, Tensor w, Tensor? b) -> Tensor");
  // hidden [tokens, d_ff] w + b, by what of hidden lies where another is not 0; the gradients of it there, and of w,
  // those wanted.
  m.def("_sparse_linear(Tensor hidden, Tensor where, Tensor w, Tensor? b) -> Tensor");
  m.def("_sparse_linear_backward(Tensor grad, Tensor hidden, Tensor where, Tensor w, bool[] wanted) -> Tensor[]");
  m.def("topk(Tensor x, SymInt k, int dim=-1, bool sorted=True) -> (Tensor values, Tensor indices)");

  // ann
  // codes [n, parts] as scans read them.
  m.def("_pq_pack(Tensor codes, int bits) -> Tensor");
  m.def("pq_lut(Tensor queries, Tensor codebooks) -> Tensor");
  m.def(
      "pq_scan(Tensor lut, Tensor codes, SymInt n, SymInt k, str lookup=\"s8\", Tensor? allowed=None) "
      "-> (Tensor values, Tensor indices)");
  m.def(
      "rerank(Tensor queries, Tensor candidates, Tensor vectors, SymInt k, str metric=\"ip\") "
      "-> (Tensor values, Tensor indices)");
  m.def("ivf_search(Tensor queries, SymInt k, int leaves, int rerank, " TAMIS_IVF
        ", str lookup=\"s8\", Tensor? allowed=None, bool normalize=False) -> (Tensor values, Tensor indices)");
  // The bytes of an index whose buffers were checked: see csrc/ann_open.h.
  m.def("_ivf_open(int d, " TAMIS_IVF ", bool normalize) -> Tensor");

  m.def("_isa() -> str");
  m.def("_use_isa(str isa) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(tamis, CompositeExplicitAutograd, m) {
  m.impl("_isa", TORCH_BOX(&tamis::isa));
  m.impl("_use_isa", TORCH_BOX(&tamis::use_isa));
}
