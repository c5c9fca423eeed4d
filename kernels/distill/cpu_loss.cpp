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
  Walk(const DistillLoss& op, const Source<R>& teacher, void* scratch)
      : op_(op),
        source_(teacher),
        form_(form(R(), op.divergence, op.hard, op.gradient.data)),
        terms_(op.divergence == kAlone ? kStudent
               : op.hard               ? kPairAndHard
                                       : kPair),
        f_s_(transform<R>(op.student_transform)),
        f_t_(transform<R>(op.teacher_transform)) {
    buffer_s_ = static_cast<R*>(scratch);
    buffer_t_ = buffer_s_ + kBlock;
    const int64_t kept = padded(op.student.classes);
    a_ = buffer_t_ + kBlock, b_ = a_ + kept, h_ = b_ + kept;
    tops_ = reinterpret_cast<Tops<R>*>(h_ + kept);
  }

  void rows(int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Row<R> row = row_at<R>(op_, r);
      if (row.state == Row<R>::kLive) {
        read(r, row);
      } else {
        const float value = row.state == Row<R>::kBad ? __builtin_nanf("") : 0.0f;
        static_cast<R*>(op_.loss)[r] = value;
        if (op_.gradient.data) fill(gradient(r), op_.student.classes, value);
      }
      if (op_.gradient.data) fill(gradient(r) + op_.student.classes, op_.gradient.classes - op_.student.classes, 0);
    }
    write_pending(op_.student.classes);
    if (op_.stream_gradient) stream_fence();
  }

 private:
  struct Pending {  // a row whose exponentials lie in the scratch, its gradient written up to class `written`
    int64_t row = -1, written, target;
    R label;  // what the target's class loses
    Factors<R> factors;
  };

  const S* student(int64_t r) const { return row_of<S>(op_.student, r); }
  S* gradient(int64_t r) const { return const_cast<S*>(row_of<S>(op_.gradient, r)); }

  void read(int64_t r, const Row<R>& row) {
    const int64_t classes = op_.student.classes;
    // Where alpha is 0 the teacher is not looked at: the student stands in, and no NaN or inf of the teacher's gets in.
    const Source<R>& source = row.soft != 0 ? source_ : kSource<S>;
    const Transform<R>& f_t = row.soft != 0 ? f_t_ : f_s_;
    const Matrix& beside = row.soft != 0 ? op_.teacher : op_.student;
    const char* const teacher = static_cast<const char*>(beside.data) + row_offset(beside, r) * source.element;
    const R inverse_tau = terms_ == kStudent ? R(1) : 1 / row.tau;
    const bool smooth = row.hard != 0 && op_.label_smoothing > 0;
    Online<R> online;
    R total = 0, origin = 0;  // total: sum of s - origin
    for (int64_t c = 0; c < classes; c += kBlock) {
      const int64_t n = block_size(classes, c);
      write_pending(c + n);
      const char* const next_s = (const char*)(student(r) + c) + kAhead;
      const char* const next_t = teacher + c * source.element + kAhead;
      const R* const s = numbers(student(r) + c, n, f_s_, buffer_s_);
      const R* const t = terms_ == kStudent ? s : source.numbers(teacher, c, n, f_t, buffer_t_);
      const bool masked = online.top.student == -kInf || online.top.teacher == -kInf;  // so far; or the first block
      Tops<R> tops = masked ? Tops<R>{maximum(s, n), maximum(t, n)} : online.top;
      const auto block = [&] {
        return Read<R>{s,
                       t,
                       n,
                       shift_of(tops.student),
                       shift_of(tops.teacher),
                       inverse_tau,
                       next_s,
                       next_t,
                       sizeof(S),
                       source.element,
                       a_ + c,
                       b_ + c,
                       h_ + c};
      };
      Sums<R> sums = form_.careless(block());
      if (!(sums.student < kTrusted && sums.teacher < kTrusted && sums.difference - sums.difference == 0 &&
            sums.hard < kTrusted)) {
        tops = {maximum(s, n), maximum(t, n)};
        sums = form_.careful(block());
      }
      online.add(form_, tops, sums, inverse_tau);
      tops_[c / kBlock] = tops;
      if (c == 0) origin = shift_of(tops.student);
      if (smooth) total += sum(s, n, origin);
    }
    finish(r, row, inverse_tau, online, origin + total / classes);
  }

  void finish(int64_t r, const Row<R>& row, R inverse_tau, const Online<R>& o, R mean) {
    const R hard_sum = op_.hard ? o.sums.hard : o.sums.student, smoothing = op_.label_smoothing;
    const int64_t classes = op_.student.classes;
    if (op_.gradient.data || form_.compare)
      for (int64_t c = 0; c < classes; c += kBlock) move(c, o.top, inverse_tau);
    Soft<R> d{};
    R loss = 0;
    if (row.soft != 0) {
      const R beta = op_.beta;
      const Compared<R> compared = form_.compare ? form_.compare(o.sums, beta, a_, b_, classes) : Compared<R>{};
      d = form_.finish(o.sums, compared, row.tau, beta, classes);
      loss += R(row.soft * d.loss);
    }
    if (row.hard != 0) {
      const R shift = shift_of(o.top.student);
      R ce = log(hard_sum) + (1 - smoothing) * (shift - target_logit(r, row.target));
      if (smoothing > 0) ce += smoothing * (shift - mean);
      loss += row.hard * ce;
    }
    static_cast<R*>(op_.loss)[r] = row.weight * loss;
    if (!op_.gradient.data) return;
    const R scale = row.weight * R(op_.gradient_scale), soft = scale * row.soft, hard = scale * row.hard;
    const R of_hard = row.hard != 0 ? hard / hard_sum : R(0);  // without op_.hard a serves both terms
    pending_ = {
        r,
        0,
        row.hard != 0 ? row.target : -1,
        hard * (1 - smoothing),
        {soft * d.student + (op_.hard ? R(0) : of_hard), soft * d.teacher, of_hard, hard * smoothing / classes}};
  }

  // Brings a block, relative to its own tops, to the row's.
  void move(int64_t c, Tops<R> to, R inverse_tau) {
    const Tops<R> from = tops_[c / kBlock];
    if (from.student == to.student && from.teacher == to.teacher) return;
    form_.move(a_ + c, b_ + c, h_ + c, block_size(op_.student.classes, c), from, to, inverse_tau);
  }

  R target_logit(int64_t r, int64_t target) const { return f_s_(load_tail(student(r) + target, 1))[0]; }

  // The pending row's gradient up to class `end` at least, and on to where the next vector of memory starts.
  void write_pending(int64_t end) {
    if (pending_.row < 0) return;
    const Pending& p = pending_;
    const int64_t classes = op_.student.classes, begin = p.written;
    S* const g = gradient(p.row);
    end += (kBytes - (uintptr_t)(g + end) % kBytes) % kBytes / sizeof(S);
    if (end > classes) end = classes;
    Factors<R> f = p.factors;
    R *const a = a_ + begin, *const b = b_ + begin, *const h = h_ + begin;
    const int64_t target = p.target - begin;
    const bool has_target = 0 <= target && target < end - begin;
    const auto at = [&](int64_t i) {
      return terms_ == kStudent ? combine<kStudent>(a + i, b + i, h + i, f)
             : terms_ == kPair  ? combine<kPair>(a + i, b + i, h + i, f)
                                : combine<kPairAndHard>(a + i, b + i, h + i, f);
    };
    R at_target = has_target ? at(target)[0] - p.label : R(0);
    if (!f_s_.identity()) {  // through the transform
      for (int64_t i = 0; i < end - begin; i += kLanes<Vector<R>>) {
        const int64_t n = end - begin - i < kLanes<Vector<R>> ? end - begin - i : kLanes<Vector<R>>;
        const Vector<R> slope = f_s_.slope(f_s_(load_tail(student(p.row) + begin + i, n)));
        store_tail(a + i, n, at(i) * slope);
        if (i <= target && target < i + n) at_target *= slope[target - i];
      }
      f = {1, 0, 0, 0};
    }
    terms_ == kStudent ? write<kStudent>(g + begin, end - begin, a, b, h, f, op_.stream_gradient)
    : terms_ == kPair  ? write<kPair>(g + begin, end - begin, a, b, h, f, op_.stream_gradient)
                       : write<kPairAndHard>(g + begin, end - begin, a, b, h, f, op_.stream_gradient);
    if (has_target) store_tail(g + p.target, 1, Vector<R>{} + at_target);
    pending_.written = end;
    if (end == classes) pending_.row = -1;
  }

  const DistillLoss& op_;
  const Source<R>& source_;
  const Form<R>& form_;
  const Terms terms_;
  const Transform<R> f_s_, f_t_;
  R *buffer_s_, *buffer_t_;  // [kBlock]
  R *a_, *b_, *h_;           // [classes, padded]
  Tops<R>* tops_;            // [blocks]: what they are relative to
  Pending pending_;
};

template <class S, class T>
void distill_loss(const DistillLoss& op, int64_t begin, int64_t end, void* scratch) {
  Walk<S>(op, kSource<T>, scratch).rows(begin, end);
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

const DistillKernels distill = {loss_kernels, stats_kernels,  scratch_bytes,
                                plan_kernels, reduce_kernels, scale_kernels};

}  // namespace tamis::TAMIS_ISA
