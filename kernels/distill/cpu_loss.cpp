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
// Beside the floor stands the scratch, 16 bytes a class through L2 (a and b, out and in). On a Zen 4 with AVX-512, 256
// x 50257, one thread (benchmarks/results/zen4-v4x.json): forward_kl 0.70 ns a class, without a gradient 0.41, where
// moving its 12 bytes takes 0.33; logit_mse, which needs neither sums nor scratch, 0.36.
#include "walk.h"

namespace tamis::TAMIS_ISA {
namespace {

template <class S>
class Pairs : Walk<S> {
  using R = Real<S>;
  using W = Walk<S>;
  using W::a_, W::b_, W::f_s_, W::form_, W::op_, W::pending_;

 public:
  Pairs(const DistillLoss& op, const Source<R>& teacher, void* scratch)
      : W(op, form(R(), op.divergence, op.hard, op.gradient.data), terms_of(op), scratch), teacher_(teacher) {}

  void rows(int64_t begin, int64_t end) {
    const bool squares = op_.divergence == kLogitMse && !op_.hard;
    W::rows(begin, end, [&](int64_t r, const Row<R>& row) { squares ? read_squares(r, row) : read(r, row); });
  }

 private:
  void read(int64_t r, const Row<R>& row) {
    const R inverse_tau = op_.divergence == kAlone ? R(1) : 1 / row.tau;
    R mean;
    const Online<R> o = W::sums(r, row, beside<S>(op_, r, row, teacher_), inverse_tau, mean);
    if (op_.gradient.data || form_.compare) W::move(o.top, inverse_tau);
    Compared<R> compared{};
    if (form_.compare && row.soft != 0) compared = form_.compare(o.sums, op_.beta, a_, b_, op_.classes);
    const R at_target = row.hard != 0 ? W::target_logit(r, row.target) : R(0);
    const Outcome<R> x = outcome(op_, row, form_, o, compared, at_target, mean, R(op_.gradient_scale));
    static_cast<R*>(op_.loss)[r] = x.loss;
    if (op_.gradient.data) pending_ = {r, 0, x.slope, 0, nullptr, nullptr};
  }

  // Of logit_mse, whose gradient asks for no sum: both in one go. A packed gradient's vectors are aligned by a first
  // block of less than one; it is so without a gradient too, for equal sums.
  void read_squares(int64_t r, const Row<R>& row) {
    using V = Vector<R>;
    constexpr int64_t lanes = kLanes<V>, kNear = 512;  // bytes ahead: there is little to do meanwhile
    const auto outcome_of = [&](R squares) {
      return outcome(op_, row, form_, {{}, {0, 0, squares, 0}}, {}, R(0), R(0), R(op_.gradient_scale));
    };
    const Beside<R> beside_s = beside<S>(op_, r, row, teacher_);
    const R factor = outcome_of(0).slope.factors.student;
    S* const gradient = op_.gradient.data ? W::gradient(r) : nullptr;
    const int64_t past = r * op_.gradient.classes % lanes, head = past ? lanes - past : 0;
    const bool streamed = op_.stream_gradient && (uintptr_t)(gradient + head) % (lanes * sizeof(S)) == 0;
    V squares{};
    for (int64_t c = 0, n; c < op_.classes; c += n) {
      n = block_size(op_.classes, c);
      if (c == 0 && head && n > head) n = head;
      const Read<R> x = block_of(W::student(r), f_s_, beside_s, c, n, R(1), W::buffers_);
      V part{};
      const auto slope = [&](V s, V t) __attribute__((always_inline)) {
        const V d = s == t ? V{} : s - t;  // -inf in both is no difference
        part += d * d;
        return f_s_.identity() ? d * factor : d * factor * f_s_.slope(s);
      };
      int64_t i = 0;
      for (; i + lanes <= n; i += lanes) {
        __builtin_prefetch(x.next_s + i * x.size_s - kAhead + kNear);
        __builtin_prefetch(x.next_t + i * x.size_t_ - kAhead + kNear);
        const V g = slope(load(x.s + i), load(x.t + i));
        if (gradient) streamed ? stream(gradient + c + i, g) : store(gradient + c + i, g);
      }
      if (i < n) {
        const V g = slope(load_tail(x.s + i, n - i), load_tail(x.t + i, n - i));
        if (gradient) store_tail(gradient + c + i, n - i, g);
      }
      squares += part;
    }
    static_cast<R*>(op_.loss)[r] = outcome_of(reduce_add(squares)).loss;
  }

  const Source<R>& teacher_;
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
      store_tail(y, i, load_tail(x, i) * g);  // equivalent: fill: any fill, i are stored
    }
    for (; i + lanes <= gradient.classes; i += lanes) {
      __builtin_prefetch((const char*)(x + i) + kAhead);
      past_caches ? stream(y + i, load(x + i) * g) : store(y + i, load(x + i) * g);
    }
    if (i < gradient.classes)
      store_tail(y + i, gradient.classes - i, load_tail(x + i, gradient.classes - i) * g);  // equivalent: fill: any
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

const DistillKernels distill = {loss_kernels,  tile_kernels,       topk_kernels,       stats_kernels,
                                scratch_bytes, topk_scratch_bytes, plan_kernels,       reduce_kernels,
                                scale_kernels, bad_index,          distribution_checks};

}  // namespace tamis::TAMIS_ISA
