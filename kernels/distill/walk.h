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

}  // namespace
}  // namespace tamis::TAMIS_ISA
