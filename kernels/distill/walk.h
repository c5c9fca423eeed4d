// What every walk over a row of logits shares: the sums so far, what a row asks for, and how its gradient is written.
#pragma once
#include "form.h"

namespace tamis::TAMIS_ISA {
namespace {

// sum of x - shift
template <class R>
R sum(const R* x, int64_t n, R shift) {
  using V = Vector<R>;
  V total{};
  int64_t i = 0;
  for (; i + kLanes<V> <= n; i += kLanes<V>) total += load(x + i) - shift;
  R rest = 0;
  for (; i < n; ++i) rest += x[i] - shift;
  return reduce_add(total) + rest;
}

// The gradient of one block is a * student - b * teacher + h * hard - uniform.
template <class R>
struct Factors {
  R student, teacher, hard, uniform;
};

enum Terms { kStudent, kPair, kPairAndHard };  // which of a, b, h hold something

template <Terms kTerms, class R>
Vector<R> combine(const R* a, const R* b, const R* h, const Factors<R>& f) {
  if constexpr (kTerms == kStudent) return load(a) * f.student - f.uniform;
  const Vector<R> taken = load(b) * f.teacher + f.uniform;
  if constexpr (kTerms == kPairAndHard) return load(a) * f.student + (load(h) * f.hard - taken);
  return load(a) * f.student - taken;
}

template <Terms kTerms, class T, class R>
void write(T* gradient, int64_t n, const R* a, const R* b, const R* h, const Factors<R>& f, bool past_caches) {
  constexpr int64_t lanes = kLanes<Vector<R>>, bytes = lanes * sizeof(T);
  int64_t i = 0;
  if (past_caches && (uintptr_t)gradient % bytes) {
    i = (bytes - (uintptr_t)gradient % bytes) / sizeof(T);
    if (i > n) i = n;
    store_tail(gradient, i, combine<kTerms>(a, b, h, f));
  }
  for (; i + lanes <= n; i += lanes) {
    const Vector<R> g = combine<kTerms>(a + i, b + i, h + i, f);
    past_caches ? stream(gradient + i, g) : store(gradient + i, g);
  }
  if (i < n) store_tail(gradient + i, n - i, combine<kTerms>(a + i, b + i, h + i, f));
}

template <class T>
void fill(T* p, int64_t n, float value) {
  constexpr int64_t lanes = kLanes<Vector<Real<T>>>;
  const Vector<Real<T>> v = Vector<Real<T>>{} + value;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(p + i, v);
  if (i < n) store_tail(p + i, n - i, v);
}

template <class R>
struct Online {  // a row's sums so far, relative to `top`, or to 0 while that is -inf
  Tops<R> top{-kInf, -kInf};
  Sums<R> sums{};

  // A block's sums, relative to its tops.
  void add(const Form<R>& form, Tops<R> tops, const Sums<R>& block, R inverse_tau) {
    const Tops<R> to = {tops.student > top.student ? tops.student : top.student,
                        tops.teacher > top.teacher ? tops.teacher : top.teacher};
    const Sums<R> a = form.moved(sums, top, to, inverse_tau), b = form.moved(block, tops, to, inverse_tau);
    sums = {a.student + b.student, a.teacher + b.teacher, a.difference + b.difference, a.hard + b.hard};
    top = to;
  }
};

// What row r asks for.
template <class R>
struct Row {
  enum { kSkipped, kBad, kLive } state;
  R tau, soft, hard, weight;  // weight * (soft * tau^2 * KL + hard * CE)
  int64_t target;
};

template <class R>
Row<R> row_at(const DistillLoss& op, int64_t r) {
  const R tau = static_cast<const R*>(op.temperature)[r * op.temperature_step];
  const R alpha = static_cast<const R*>(op.alpha)[r * op.alpha_step];
  const R weight = op.row_weight ? static_cast<const R*>(op.row_weight)[r] : R(1);
  const int64_t target = op.target ? op.target[r] : -1;
  if ((op.target && target == op.ignore_index) || weight == 0) return {Row<R>::kSkipped, tau, 0, 0, 0, target};
  const bool outside = target < 0 || target >= op.student.classes;
  const bool bad =
      !(tau > 0 && tau < kInf && alpha >= 0 && alpha <= 1 && weight >= 0) || (op.target ? outside : alpha != 1);
  return {bad ? Row<R>::kBad : Row<R>::kLive, tau, alpha, 1 - alpha, weight, target};
}

template <class R>
struct Part {    // of a row: one block
  Tops<R> tops;  // what its exponentials are relative to
  R student;     // the sum of a
};

// A walk over the student's rows: each is read once and its exponentials kept, and its gradient is written while the
// next one is read.
template <class S>
class Walk {
 protected:
  using R = Real<S>;

  Walk(const DistillLoss& op, const Form<R>& form, Terms terms, void* scratch)
      : op_(op), form_(form), terms_(terms), classes_(op.student.classes), f_s_(transform<R>(op.student_transform)) {
    buffer_s_ = static_cast<R*>(scratch);
    buffer_t_ = buffer_s_ + kBlock;
    const int64_t kept = padded(classes_);
    a_ = buffer_t_ + kBlock, b_ = a_ + kept, h_ = b_ + kept;
    parts_ = reinterpret_cast<Part<R>*>(h_ + kept);
  }

  struct Pending {  // a row whose exponentials lie in the scratch, its gradient written up to class `written`
    int64_t row = -1, written, target;
    R label;  // what the target's class loses
    Factors<R> factors;
    int64_t members;  // classes whose gradient is known already
    const int64_t* index;
    const R* value;
  };

  // read(r, row) for every row that counts.
  template <class Each>
  void rows(int64_t begin, int64_t end, const Each& read) {
    for (int64_t r = begin; r < end; ++r) {
      const Row<R> row = row_at<R>(op_, r);
      if (row.state == Row<R>::kLive) {
        read(r, row);
      } else {
        const float value = row.state == Row<R>::kBad ? __builtin_nanf("") : 0.0f;
        static_cast<R*>(op_.loss)[r] = value;
        if (op_.gradient.data) fill(gradient(r), classes_, value);
      }
      if (op_.gradient.data) fill(gradient(r) + classes_, op_.gradient.classes - classes_, 0);
    }
    write_pending(classes_);
    if (op_.stream_gradient) stream_fence();
  }

  const S* student(int64_t r) const { return row_of<S>(op_.student, r); }
  S* gradient(int64_t r) const { return const_cast<S*>(row_of<S>(op_.gradient, r)); }

  // The sums of row r beside a teacher's row, or alone (source null). mean: of s, where the row is smoothed.
  Online<R> sums(int64_t r, const Row<R>& row, const Source<R>* source, const char* teacher, const Transform<R>& f_t,
                 R inverse_tau, R& mean) {
    const bool smooth = row.hard != 0 && op_.label_smoothing > 0;
    Online<R> online;
    R total = 0, origin = 0;  // total: sum of s - origin
    for (int64_t c = 0; c < classes_; c += kBlock) {
      const int64_t n = block_size(classes_, c), element = source ? source->element : 0;
      write_pending(c + n);
      const char* const next_s = (const char*)(student(r) + c) + kAhead;
      const char* const next_t = source ? teacher + c * element + kAhead : next_s;
      const R* const s = numbers(student(r) + c, n, f_s_, buffer_s_);
      const R* const t = source ? source->numbers(teacher, c, n, f_t, buffer_t_) : s;
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
                       element,
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
      parts_[c / kBlock] = {tops, sums.student};
      if (c == 0) origin = shift_of(tops.student);
      if (smooth) total += sum(s, n, origin);
    }
    mean = origin + total / classes_;
    return online;
  }

  // Brings what is kept of every block, relative to its own tops, to the row's.
  void move(Tops<R> to, R inverse_tau) {
    for (int64_t c = 0; c < classes_; c += kBlock) {
      auto& [from, student] = parts_[c / kBlock];
      if (from.student == to.student && from.teacher == to.teacher) continue;
      form_.move(a_ + c, b_ + c, h_ + c, block_size(classes_, c), from, to, inverse_tau);
      student *= rescale(from.student, to.student, inverse_tau);
    }
  }

  // At temperature 1; hard_sum is relative to shift.
  R cross_entropy(int64_t r, const Row<R>& row, R hard_sum, R shift, R mean) const {
    const R smoothing = op_.label_smoothing;
    const R ce = log(hard_sum) + (1 - smoothing) * (shift - target_logit(r, row.target));
    return smoothing > 0 ? ce + smoothing * (shift - mean) : ce;
  }

  // The cross-entropy's part of the gradient; the divergence's is the caller's.
  Pending pending(int64_t r, const Row<R>& row, R hard_sum) const {
    const R hard = row.weight * R(op_.gradient_scale) * row.hard, smoothing = op_.label_smoothing;
    const R of_hard = row.hard != 0 ? hard / hard_sum : R(0);
    const int64_t target = row.hard != 0 ? row.target : -1;
    return {r, 0, target, hard * (1 - smoothing), {0, 0, of_hard, hard * smoothing / classes_}, 0, nullptr, nullptr};
  }

  R target_logit(int64_t r, int64_t target) const { return f_s_(load_tail(student(r) + target, 1))[0]; }

  // The pending row's gradient up to class `end` at least, and on to where the next vector of memory starts.
  void write_pending(int64_t end) {
    if (pending_.row < 0) return;
    const Pending& p = pending_;
    const int64_t begin = p.written;
    S* const g = gradient(p.row);
    end += (kBytes - (uintptr_t)(g + end) % kBytes) % kBytes / sizeof(S);
    if (end > classes_) end = classes_;
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
    if (end < classes_) return;
    for (int64_t k = 0; k < p.members; ++k) store_tail(g + p.index[k], 1, Vector<R>{} + p.value[k]);
    pending_.row = -1;
  }

  const DistillLoss& op_;
  const Form<R>& form_;
  const Terms terms_;
  const int64_t classes_;
  const Transform<R> f_s_;
  R *buffer_s_, *buffer_t_;  // [kBlock]
  R *a_, *b_, *h_;           // [classes, padded]
  Part<R>* parts_;           // [blocks]
  Pending pending_;
};

}  // namespace
}  // namespace tamis::TAMIS_ISA
