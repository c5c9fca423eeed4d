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
  for (; i + kLanes<V> <= n; i += kLanes<V>) total += load(x + i) - shift;  // equivalent: loop, bound: the rest can
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

// Adds a block, whose shifts are still open, to the row's sums: what its exponentials are relative to. of_student: the
// sum of its a.
template <class R>
Tops<R> add_block(const Form<R>& form, Read<R> block, Online<R>& online, R& of_student) {
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
  of_student = sums.student;
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

// What stands beside a row of the student's; source null: nothing.
template <class R>
struct Beside {
  const Source<R>* source;
  const char* row;
  Transform<R> transform;
};

// Where alpha is 0 the teacher is not looked at: the student stands in, and no NaN or inf of the teacher's gets in.
template <class S, class R = Real<S>>
Beside<R> beside(const DistillLoss& op, int64_t r, const Row<R>& row, const Source<R>& teacher) {
  if (op.divergence == kAlone) return {};
  const bool looked = row.soft != 0;
  const Source<R>& source = looked ? teacher : kSource<S>;
  const Matrix& m = looked ? op.teacher : op.student;
  return {&source, static_cast<const char*>(m.data) + row_offset(m, r) * source.element,
          transform<R>(looked ? op.teacher_transform : op.student_transform)};
}

// Classes c..c + n of a row s, its shifts still open. buffers: [2 * kBlock].
template <class S, class R = Real<S>>
Read<R> block_of(const S* s, const Transform<R>& f_s, const Beside<R>& t, int64_t c, int64_t n, R inverse_tau,
                 R* buffers) {
  Read<R> block{};
  block.n = n, block.inverse_tau = inverse_tau;
  block.s = numbers(s + c, n, f_s, buffers);
  block.t = t.source ? t.source->numbers(t.row, c, n, t.transform, buffers + kBlock) : block.s;
  block.size_s = sizeof(S), block.size_t_ = t.source ? t.source->element : 0;
  block.next_s = (const char*)(s + c) + kAhead;
  block.next_t = t.source ? t.row + c * block.size_t_ + kAhead : block.next_s;
  return block;
}

// At temperature 1, from the sum of exponentials relative to shift; mean: of all logits.
template <class R>
R cross_entropy(const DistillLoss& op, R sum, R shift, R at_target, R mean) {
  const R smoothing = op.label_smoothing;
  const R ce = log(sum) + (1 - smoothing) * (shift - at_target);
  return smoothing > 0 ? ce + smoothing * (shift - mean) : ce;
}

template <class R>
struct Slope {  // a row's gradient
  int64_t target = -1;
  R label;  // what the target's class loses
  Factors<R> factors;
};

// The cross-entropy's part of it; the divergence's is the caller's.
template <class R>
Slope<R> slope_of_target(const DistillLoss& op, const Row<R>& row, R hard_sum, R gradient_scale) {
  const R hard = row.weight * gradient_scale * row.hard, smoothing = op.label_smoothing;
  const R of_hard = row.hard != 0 ? hard / hard_sum : R(0);
  return {row.hard != 0 ? row.target : -1, hard * (1 - smoothing), {0, 0, of_hard, hard * smoothing / op.classes}};
}

template <class R>
struct Outcome {
  R loss;  // with the row's weight
  Slope<R> slope;
};

// Of a row of two models, from all its sums.
template <class R>
Outcome<R> outcome(const DistillLoss& op, const Row<R>& row, const Form<R>& form, const Online<R>& o,
                   const Compared<R>& compared, R at_target, R mean, R gradient_scale) {
  const R hard_sum = op.hard ? o.sums.hard : o.sums.student;
  const Soft<R> d = row.soft != 0 ? form.finish(o.sums, compared, row.tau, op.beta, op.classes) : Soft<R>{};
  R loss = row.soft != 0 ? R(row.soft * d.loss) : R(0);
  if (row.hard != 0) loss += row.hard * cross_entropy(op, hard_sum, shift_of(o.top.student), at_target, mean);
  Slope<R> slope = slope_of_target(op, row, hard_sum, gradient_scale);
  const R soft = row.weight * gradient_scale * row.soft;
  Factors<R>& f = slope.factors;
  f.student = soft * d.student + (op.hard ? R(0) : f.hard);  // without op.hard a serves both terms
  f.teacher = soft * d.teacher;
  return {row.weight * loss, slope};
}

inline Terms terms_of(const DistillLoss& op) {
  if (op.divergence == kAlone || (op.divergence == kLogitMse && !op.hard)) return kStudent;
  return op.hard ? kPairAndHard : kPair;
}

// n classes' gradient, from class `first` on, through the transform; a is used up, s may be gradient.
template <class T, class R = Real<T>>
void write_gradient(T* gradient, const T* s, int64_t n, R* a, const R* b, const R* h, Terms terms,
                    const Slope<R>& slope, int64_t first, const Transform<R>& transform, bool past_caches) {
  Factors<R> f = slope.factors;
  const int64_t target = slope.target - first;
  const bool has_target = 0 <= target && target < n;
  const auto at = [&](int64_t i) {
    return terms == kStudent ? combine<kStudent>(a + i, b + i, h + i, f)
           : terms == kPair  ? combine<kPair>(a + i, b + i, h + i, f)
                             : combine<kPairAndHard>(a + i, b + i, h + i, f);
  };
  R at_target = has_target ? at(target)[0] - slope.label : R(0);
  if (!transform.identity()) {
    for (int64_t i = 0; i < n; i += kLanes<Vector<R>>) {
      const int64_t left = upto(n - i, kLanes<Vector<R>>);
      const Vector<R> dy = transform.slope(transform(load_upto(s + i, left)));  // equivalent: fill: any fill
      store_upto(a + i, left, at(i) * dy);
      if (i <= target && target < i + left) at_target *= dy[target - i];
    }
    f = {1, 0, 0, 0};
  }
  terms == kStudent ? write<kStudent>(gradient, n, a, b, h, f, past_caches)
  : terms == kPair  ? write<kPair>(gradient, n, a, b, h, f, past_caches)
                    : write<kPairAndHard>(gradient, n, a, b, h, f, past_caches);
  if (has_target) store_tail(gradient + target, 1, Vector<R>{} + at_target);
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
      : op_(op), form_(form), terms_(terms), classes_(op.classes), f_s_(transform<R>(op.student_transform)) {
    buffers_ = static_cast<R*>(scratch);
    const int64_t kept = padded(classes_);
    a_ = buffers_ + 2 * kBlock, b_ = a_ + kept, h_ = b_ + kept;
    parts_ = reinterpret_cast<Part<R>*>(h_ + kept);
  }

  struct Pending {  // a row whose exponentials lie in the scratch, its gradient written up to class `written`
    int64_t row = -1, written;
    Slope<R> slope;
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

  // The sums of row r. mean: of s, where the row is smoothed.
  Online<R> sums(int64_t r, const Row<R>& row, const Beside<R>& t, R inverse_tau, R& mean) {
    const bool smooth = row.hard != 0 && op_.label_smoothing > 0;
    Online<R> online;
    R total = 0, origin = 0;  // total: sum of s - origin
    for (int64_t c = 0; c < classes_; c += kBlock) {
      const int64_t n = block_size(classes_, c);
      write_pending(c + n);
      Read<R> block = block_of(student(r), f_s_, t, c, n, inverse_tau, buffers_);
      block.a = a_ + c, block.b = b_ + c, block.h = h_ + c;
      R in_block;
      const Tops<R> tops = add_block(form_, block, online, in_block);
      parts_[c / kBlock] = {tops, in_block};
      if (c == 0) origin = shift_of(tops.student);
      if (smooth) total += sum(block.s, n, origin);
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

  R target_logit(int64_t r, int64_t target) const { return f_s_(load_tail(student(r) + target, 1))[0]; }

  // The pending row's gradient up to class `end` at least, and on to where the next vector of memory starts.
  void write_pending(int64_t end) {
    if (pending_.row < 0) return;
    const Pending& p = pending_;
    const int64_t begin = p.written;
    S* const g = gradient(p.row);
    end += (kBytes - (uintptr_t)(g + end) % kBytes) % kBytes / sizeof(S);
    if (end > classes_) end = classes_;  // equivalent: check: the rest may be written sooner
    write_gradient(g + begin, student(p.row) + begin, end - begin, a_ + begin, b_ + begin, h_ + begin, terms_, p.slope,
                   begin, f_s_, op_.stream_gradient);
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
  R* buffers_;      // [2 * kBlock]
  R *a_, *b_, *h_;  // [classes, padded]
  Part<R>* parts_;  // [blocks]
  Pending pending_;
};

}  // namespace
}  // namespace tamis::TAMIS_ISA
