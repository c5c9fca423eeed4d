// Distillation loss of each row, and its gradient. Compiled once per ISA.
//   loss = weight * (alpha * tau^2 * D(softmax(t / tau), softmax(s / tau)) + (1 - alpha) * CE(s, target))
// Floor: both logits read once and the gradient written once, 12 bytes a class in float32; two exponentials a class
// (none for logit_mse; one more where a target counts and tau != 1 or D is not forward_kl), about 14 vector
// instructions each; jsd two logarithms, about 20 each.
//
// The tricks: each exponential is computed once, relative to its block's maximum, into scratch that stays in L2, and
// the gradient only rescales it by block; the next block is prefetched while this one is exponentiated; a block of the
// last row's gradient is written just before its slot in the scratch is filled again, so that reads, arithmetic and
// writes overlap; a large gradient goes past the caches. What a divergence does with a row is in cpu_form.cpp.
#include "walk.h"

namespace tamis::TAMIS_ISA {
namespace {

template <class S>
class Pairs : Walk<S> {
  using R = Real<S>;
  using W = Walk<S>;
  using W::a_, W::b_, W::classes_, W::f_s_, W::form_, W::op_, W::pending_, W::terms_;

 public:
  Pairs(const DistillLoss& op, const Source<R>& teacher, void* scratch)
      : W(op, form(R(), op.divergence, op.hard, op.gradient.data),
          op.divergence == kAlone ? kStudent
          : op.hard               ? kPairAndHard
                                  : kPair,
          scratch),
        source_(teacher),
        f_t_(transform<R>(op.teacher_transform)) {}

  void rows(int64_t begin, int64_t end) {
    W::rows(begin, end, [this](int64_t r, const Row<R>& row) { read(r, row); });
  }

 private:
  void read(int64_t r, const Row<R>& row) {
    // Where alpha is 0 the teacher is not looked at: the student stands in, and no NaN or inf of the teacher's gets in.
    const bool looked = row.soft != 0, alone = terms_ == kStudent;
    const Source<R>& source = looked ? source_ : kSource<S>;
    const Matrix& beside = looked ? op_.teacher : op_.student;
    const char* const teacher = static_cast<const char*>(beside.data) + row_offset(beside, r) * source.element;
    const R inverse_tau = alone ? R(1) : 1 / row.tau;
    R mean;
    const Online<R> o = W::sums(r, row, alone ? nullptr : &source, teacher, looked ? f_t_ : f_s_, inverse_tau, mean);
    const R hard_sum = op_.hard ? o.sums.hard : o.sums.student;
    if (op_.gradient.data || form_.compare) W::move(o.top, inverse_tau);
    Soft<R> d{};
    R loss = 0;
    if (row.soft != 0) {
      const R beta = op_.beta;
      const Compared<R> compared = form_.compare ? form_.compare(o.sums, beta, a_, b_, classes_) : Compared<R>{};
      d = form_.finish(o.sums, compared, row.tau, beta, classes_);
      loss += R(row.soft * d.loss);
    }
    if (row.hard != 0) loss += row.hard * W::cross_entropy(r, row, hard_sum, shift_of(o.top.student), mean);
    static_cast<R*>(op_.loss)[r] = row.weight * loss;
    if (!op_.gradient.data) return;
    const R scale = row.weight * R(op_.gradient_scale), soft = scale * row.soft;
    pending_ = W::pending(r, row, hard_sum);
    Factors<R>& f = pending_.factors;
    f.student = soft * d.student + (op_.hard ? R(0) : f.hard), f.teacher = soft * d.teacher;
  }

  const Source<R>& source_;
  const Transform<R> f_t_;
};

template <class S, class T>
void distill_loss(const DistillLoss& op, int64_t begin, int64_t end, void* scratch) {
  Pairs<S>(op, kSource<T>, scratch).rows(begin, end);
}

template <class R>
void plan(DistillLoss& op, int64_t rows) {
  bool soft = false;
  op.hard = false;
  op.kept_weight = op.kept_rows = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const Row<R> row = row_at<R>(op, r);
    if (row.state == Row<R>::kSkipped) continue;
    op.kept_weight += row.weight;
    ++op.kept_rows;
    soft |= row.soft != 0;
    op.hard |= row.hard != 0 && (row.tau != 1 || op.divergence != kForwardKl);
  }
  if (!soft && op.target) op.divergence = kAlone, op.hard = false;
}

template <class R>
void reduce(const void* loss, int64_t rows, double divisor, void* out) {
  double total = 0;
  for (int64_t r = 0; r < rows; ++r) total += static_cast<const R*>(loss)[r];
  *static_cast<R*>(out) = total / divisor;
}

// One read, one write.
template <class T>
void scale_rows(Matrix gradient, const void* grad, int64_t grad_step, double factor, int64_t begin, int64_t end,
                bool past_caches, Matrix out) {
  using V = Vector<Real<T>>;
  constexpr int64_t lanes = kLanes<V>, bytes = lanes * sizeof(T);
  for (int64_t r = begin; r < end; ++r) {
    const Real<T> g = static_cast<const Real<T>*>(grad)[r * grad_step] * Real<T>(factor);
    const T* const x = row_of<T>(gradient, r);
    T* const y = const_cast<T*>(row_of<T>(out, r));
    int64_t i = 0;
    if (past_caches && (uintptr_t)y % bytes) {
      i = (bytes - (uintptr_t)y % bytes) / sizeof(T);
      if (i > gradient.classes) i = gradient.classes;
      store_tail(y, i, load_tail(x, i) * g);
    }
    for (; i + lanes <= gradient.classes; i += lanes) {
      __builtin_prefetch((const char*)(x + i) + kAhead);
      past_caches ? stream(y + i, load(x + i) * g) : store(y + i, load(x + i) * g);
    }
    if (i < gradient.classes) store_tail(y + i, gradient.classes - i, load_tail(x + i, gradient.classes - i) * g);
  }
  if (past_caches) stream_fence();
}

const PlanKernel plan_kernels[2] = {plan<float>, plan<double>};
const ReduceKernel reduce_kernels[2] = {reduce<float>, reduce<double>};
const ScaleKernel scale_kernels[kDtypes] = {scale_rows<float>, scale_rows<double>, scale_rows<Float16>,
                                            scale_rows<BFloat16>};

}  // namespace

const LossKernel loss_kernels[kDtypes][kDtypes] = {
    {distill_loss<float, float>, nullptr, distill_loss<float, Float16>, distill_loss<float, BFloat16>},
    {nullptr, distill_loss<double, double>, nullptr, nullptr},
    {distill_loss<Float16, float>, nullptr, distill_loss<Float16, Float16>, distill_loss<Float16, BFloat16>},
    {distill_loss<BFloat16, float>, nullptr, distill_loss<BFloat16, Float16>, distill_loss<BFloat16, BFloat16>},
};

const DistillKernels distill = {loss_kernels, topk_kernels,   stats_kernels, scratch_bytes, topk_scratch_bytes,
                                plan_kernels, reduce_kernels, scale_kernels, bad_index,     distribution_checks};

}  // namespace tamis::TAMIS_ISA
