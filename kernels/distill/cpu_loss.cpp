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
class Walk {
  using R = Real<S>;

 public:
  Walk(const DistillLoss& op, const Source<R>& teacher, R* scratch)
      : op_(op),
        pair_(op, teacher, scratch),
        form_(form(R(), op.divergence, op.hard, op.gradient.data)),
        kept_(padded(op.classes)),
        a_(scratch + 2 * kBlock),
        b_(a_ + kept_),
        h_(b_ + kept_),
        tops_(reinterpret_cast<Tops<R>*>(h_ + kept_)) {}

  void rows(int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Row<R> row = row_at<R>(op_, r);
      if (row.state == Row<R>::kLive) {
        read(r, row);
      } else {
        const float value = row.state == Row<R>::kBad ? __builtin_nanf("") : 0.0f;
        static_cast<R*>(op_.loss)[r] = value;
        if (op_.gradient.data) fill(gradient(r), op_.classes, value);
      }
      if (op_.gradient.data) fill(gradient(r) + op_.classes, op_.gradient.classes - op_.classes, 0);
    }
    write_pending(op_.classes);
    if (op_.stream_gradient) stream_fence();
  }

 private:
  struct Pending {  // a row whose exponentials lie in the scratch, its gradient written up to class `written`
    int64_t row = -1, written, target;
    R label;
    Factors<R> factors;
  };

  S* gradient(int64_t r) const { return const_cast<S*>(row_of<S>(op_.gradient, r)); }

  void read(int64_t r, const Row<R>& row) {
    const bool smooth = row.hard != 0 && op_.label_smoothing > 0;
    Online<R> online;
    R total = 0, origin = 0;  // total: sum of s - origin
    for (int64_t c = 0; c < op_.classes; c += kBlock) {
      const int64_t n = block_size(op_.classes, c);
      write_pending(c + n);
      const Read<R> block = pair_.block(r, row, c, n, a_ + c, b_ + c, h_ + c);
      const Tops<R> tops = add_block(form_, block, online);
      tops_[c / kBlock] = tops;
      if (c == 0) origin = shift_of(tops.student);
      if (smooth) total += sum(block.s, n, origin);
    }
    finish(r, row, online, origin + total / op_.classes);
  }

  void finish(int64_t r, const Row<R>& row, const Online<R>& o, R mean) {
    if (op_.gradient.data || form_.compare)
      for (int64_t c = 0; c < op_.classes; c += kBlock) move(c, o.top, op_.divergence == kAlone ? R(1) : 1 / row.tau);
    const Compared<R> compared =
        form_.compare && row.soft != 0 ? form_.compare(o.sums, R(op_.beta), a_, b_, op_.classes) : Compared<R>{};
    const R at_target = row.hard != 0 ? target_logit(r, row.target) : R(0);
    const Outcome<R> x = outcome(op_, row, form_, o, compared, at_target, mean, R(op_.gradient_scale));
    static_cast<R*>(op_.loss)[r] = x.loss;
    if (op_.gradient.data) pending_ = {r, 0, row.hard != 0 ? row.target : -1, x.label, x.factors};
  }

  // Brings a block, relative to its own tops, to the row's.
  void move(int64_t c, Tops<R> to, R inverse_tau) {
    const Tops<R> from = tops_[c / kBlock];
    if (from.student == to.student && from.teacher == to.teacher) return;
    form_.move(a_ + c, b_ + c, h_ + c, block_size(op_.classes, c), from, to, inverse_tau);
  }

  R target_logit(int64_t r, int64_t target) const {
    return pair_.transform_of_student()(load_tail(pair_.student(r) + target, 1))[0];
  }

  // The pending row's gradient up to class `end` at least, and on to where the next vector of memory starts.
  void write_pending(int64_t end) {
    if (pending_.row < 0) return;
    const Pending& p = pending_;
    const int64_t begin = p.written;
    S* const g = gradient(p.row);
    end += (kBytes - (uintptr_t)(g + end) % kBytes) % kBytes / sizeof(S);
    if (end > op_.classes) end = op_.classes;
    write_gradient(g + begin, pair_.student(p.row) + begin, end - begin, a_ + begin, b_ + begin, h_ + begin,
                   terms_of(op_), p.factors, p.target - begin, p.label, pair_.transform_of_student(),
                   op_.stream_gradient);
    pending_.written = end;
    if (end == op_.classes) pending_.row = -1;
  }

  const DistillLoss& op_;
  const Pair<S> pair_;
  const Form<R>& form_;
  const int64_t kept_;
  R *const a_, *const b_, *const h_;  // [classes, padded]
  Tops<R>* const tops_;               // [blocks]: what they are relative to
  Pending pending_;
};

template <class S, class T>
void distill_loss(const DistillLoss& op, int64_t begin, int64_t end, void* scratch) {
  Walk<S>(op, kSource<T>, static_cast<Real<S>*>(scratch)).rows(begin, end);
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

const LossKernel loss_kernels[kDtypes][kDtypes] = {
    {distill_loss<float, float>, nullptr, distill_loss<float, Float16>, distill_loss<float, BFloat16>},
    {nullptr, distill_loss<double, double>, nullptr, nullptr},
    {distill_loss<Float16, float>, nullptr, distill_loss<Float16, Float16>, distill_loss<Float16, BFloat16>},
    {distill_loss<BFloat16, float>, nullptr, distill_loss<BFloat16, Float16>, distill_loss<BFloat16, BFloat16>},
};
const PlanKernel plan_kernels[2] = {plan<float>, plan<double>};
const ReduceKernel reduce_kernels[2] = {reduce<float>, reduce<double>};
const ScaleKernel scale_kernels[kDtypes] = {scale_rows<float>, scale_rows<double>, scale_rows<Float16>,
                                            scale_rows<BFloat16>};

}  // namespace

const DistillKernels distill = {loss_kernels, tile_kernels,   stats_kernels, scratch_bytes,
                                plan_kernels, reduce_kernels, scale_kernels};

}  // namespace tamis::TAMIS_ISA
