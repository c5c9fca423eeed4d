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

// Adds a block, whose shifts are still open, to the row's sums: what its exponentials are relative to.
template <class R>
Tops<R> add_block(const Form<R>& form, Read<R> block, Online<R>& online) {
  const auto relative_to = [&](Tops<R> tops) {
    block.shift_s = shift_of(tops.student), block.shift_t = shift_of(tops.teacher);
    return tops;
  };
  const auto own = [&] { return Tops<R>{maximum(block.s, block.n), maximum(block.t, block.n)}; };
  const bool masked = online.top.student == -kInf || online.top.teacher == -kInf;  // so far; or the first block
  Tops<R> tops = relative_to(masked ? own() : online.top);
  Sums<R> sums = form.careless(block);
  if (!(sums.student < kTrusted && sums.teacher < kTrusted && sums.difference - sums.difference == 0 &&
        sums.hard < kTrusted)) {
    tops = relative_to(own());
    sums = form.careful(block);
  }
  online.add(form, tops, sums, block.inverse_tau);
  return tops;
}

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
  const bool outside = target < 0 || target >= op.classes;
  const bool bad =
      !(tau > 0 && tau < kInf && alpha >= 0 && alpha <= 1 && weight >= 0) || (op.target ? outside : alpha != 1);
  return {bad ? Row<R>::kBad : Row<R>::kLive, tau, alpha, 1 - alpha, weight, target};
}

// Both models' rows, block by block.
template <class S>
class Pair {
  using R = Real<S>;

 public:
  // buffers: [2 * kBlock]
  Pair(const DistillLoss& op, const Source<R>& teacher, R* buffers)
      : alone_(op.divergence == kAlone),
        op_(op),
        source_(teacher),
        f_s_(transform<R>(op.student_transform)),
        f_t_(transform<R>(op.teacher_transform)),
        buffer_s_(buffers),
        buffer_t_(buffers + kBlock) {}

  const S* student(int64_t r) const { return row_of<S>(op_.student, r); }
  const Transform<R>& transform_of_student() const { return f_s_; }

  // Classes c..c + n of row r, and where their part of a, b and h goes. Where alpha is 0 the teacher is not looked at:
  // the student stands in, and no NaN or inf of the teacher's gets in.
  Read<R> block(int64_t r, const Row<R>& row, int64_t c, int64_t n, R* a, R* b, R* h) const {
    const bool soft = row.soft != 0;
    const Source<R>& source = soft ? source_ : kSource<S>;
    const Matrix& beside = soft ? op_.teacher : op_.student;
    const char* const t = static_cast<const char*>(beside.data) + row_offset(beside, r) * source.element;
    Read<R> block{};
    block.n = n, block.a = a, block.b = b, block.h = h;
    block.inverse_tau = alone_ ? R(1) : 1 / row.tau;
    block.s = numbers(student(r) + c, n, f_s_, buffer_s_);
    block.t = alone_ ? block.s : source.numbers(t, c, n, soft ? f_t_ : f_s_, buffer_t_);
    block.next_s = (const char*)(student(r) + c) + kAhead, block.next_t = t + c * source.element + kAhead;
    block.size_s = sizeof(S), block.size_t_ = source.element;
    return block;
  }

 private:
  const bool alone_;
  const DistillLoss& op_;
  const Source<R>& source_;
  const Transform<R> f_s_, f_t_;
  R *const buffer_s_, *const buffer_t_;
};

template <class R>
struct Outcome {
  R loss;   // with the row's weight
  R label;  // what the target's class loses of its gradient
  Factors<R> factors;
};

// Of a live row, from all its sums; at_target: the target's logit, mean: that of all.
template <class R>
Outcome<R> outcome(const DistillLoss& op, const Row<R>& row, const Form<R>& form, const Online<R>& o,
                   const Compared<R>& compared, R at_target, R mean, R gradient_scale) {
  const R hard_sum = op.hard ? o.sums.hard : o.sums.student, smoothing = op.label_smoothing;
  Soft<R> d{};
  R loss = 0;
  if (row.soft != 0) {
    d = form.finish(o.sums, compared, row.tau, R(op.beta), op.classes);
    loss += R(row.soft * d.loss);
  }
  if (row.hard != 0) {
    const R shift = shift_of(o.top.student);
    R ce = log(hard_sum) + (1 - smoothing) * (shift - at_target);
    if (smoothing > 0) ce += smoothing * (shift - mean);
    loss += row.hard * ce;
  }
  const R scale = row.weight * gradient_scale, soft = scale * row.soft, hard = scale * row.hard;
  const R of_hard = row.hard != 0 ? hard / hard_sum : R(0);  // without op.hard a serves both terms
  return {row.weight * loss,
          hard * (1 - smoothing),
          {soft * d.student + (op.hard ? R(0) : of_hard), soft * d.teacher, of_hard, hard * smoothing / op.classes}};
}

// n classes' gradient, through the transform; a is used up. target: its place, if it is among them; s may be gradient.
template <class T, class R = Real<T>>
void write_gradient(T* gradient, const T* s, int64_t n, R* a, const R* b, const R* h, Terms terms, Factors<R> f,
                    int64_t target, R label, const Transform<R>& transform, bool past_caches) {
  const bool has_target = 0 <= target && target < n;
  const auto at = [&](int64_t i) {
    return terms == kStudent ? combine<kStudent>(a + i, b + i, h + i, f)
           : terms == kPair  ? combine<kPair>(a + i, b + i, h + i, f)
                             : combine<kPairAndHard>(a + i, b + i, h + i, f);
  };
  R at_target = has_target ? at(target)[0] - label : R(0);
  if (!transform.identity()) {
    for (int64_t i = 0; i < n; i += kLanes<Vector<R>>) {
      const int64_t left = n - i < kLanes<Vector<R>> ? n - i : kLanes<Vector<R>>;
      const Vector<R> slope = transform.slope(transform(load_tail(s + i, left)));
      store_tail(a + i, left, at(i) * slope);
      if (i <= target && target < i + left) at_target *= slope[target - i];
    }
    f = {1, 0, 0, 0};
  }
  terms == kStudent ? write<kStudent>(gradient, n, a, b, h, f, past_caches)
  : terms == kPair  ? write<kPair>(gradient, n, a, b, h, f, past_caches)
                    : write<kPairAndHard>(gradient, n, a, b, h, f, past_caches);
  if (has_target) store_tail(gradient + target, 1, Vector<R>{} + at_target);
}

inline Terms terms_of(const DistillLoss& op) {
  return op.divergence == kAlone ? kStudent : op.hard ? kPairAndHard : kPair;
}

}  // namespace
}  // namespace tamis::TAMIS_ISA
