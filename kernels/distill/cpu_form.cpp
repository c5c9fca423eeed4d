// The divergences. Compiled once per ISA.
//   forward_kl      KL(q || p)                          a = exp(s), b = exp(t)
//   reverse_kl      KL(p || q)                          a = exp(s), b = a * (s - t)
//   jsd             beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p
//   total_variation 1/2 sum |p - q|                     both: a = exp(s), b = exp(t), then b = p * the gradient's part
//   logit_mse       mean (s - t)^2                      a = s - t; b = 0 where a target counts
//   alone           no teacher: cross-entropy           a = exp(s)
//   soft target     the teacher's logits are q itself   a = exp(s), b = q
// p and q are the softmaxes of s / tau and t / tau. Every one is read in a single pass; jsd and total variation, which
// need both sums first, go over the exponentials in L2 once more, with two logarithms a class or none.
#include "form.h"

namespace tamis::TAMIS_ISA {
namespace {

enum Kind { kForward, kReverse, kSquare, kOne, kGiven };  // how a block is read

template <bool kCare, class V, class R>
V exponential(V u, R scale) {
  return kCare ? exp_nonpositive(u, scale) : exp_careless(u, scale);
}

template <bool kValue>
struct Constant {
  static constexpr bool value = kValue;
};

template <Kind kKind, bool kCare, bool kHard, bool kKeep, class R>
Sums<R> read(const Read<R>& block) {
  using V = Vector<R>;
  const Read<R> x = block;  // its fields may not change with what is stored
  V sum_s{}, sum_t{}, sum_d{}, sum_h{};
  const auto step = [&](V s, V t, int64_t i, auto care) __attribute__((always_inline)) {
    const V us = s - x.shift_s, ut = t - x.shift_t;
    V a, b;
    if constexpr (kKind == kOne) {
      a = exponential<care.value>(us, x.inverse_tau);
      sum_s += a;
    } else if constexpr (kKind == kSquare) {
      a = care.value ? (s == t ? V{} : s - t) : s - t;  // -inf in both is no difference
      sum_d += a * a;
    } else if constexpr (kKind == kGiven) {
      a = exponential<care.value>(us, x.inverse_tau), b = t;
      sum_s += a, sum_t += b;
      sum_d += care.value ? (b == 0 ? V{} : b * us) : b * us;
    } else {
      a = exponential<care.value>(us, x.inverse_tau), b = exponential<care.value>(ut, x.inverse_tau);
      sum_s += a, sum_t += b;
      const V weight = kKind == kForward ? b : a, d = weight * (kKind == kForward ? ut - us : us - ut);
      const V counted = care.value ? (weight == 0 ? V{} : d) : d;  // no probability adds nothing, also at -inf in both
      sum_d += counted;
      if (kKind == kReverse) b = counted;
    }
    if constexpr (kKeep) store(x.a + i, a);
    if constexpr (kKeep && kKind == kSquare && kHard) store(x.b + i, V{});
    if constexpr (kKeep && kKind != kOne && kKind != kSquare) store(x.b + i, b);
    if constexpr (kHard) {
      const V h = exponential<care.value>(us, R(1));
      sum_h += h;
      if constexpr (kKeep) store(x.h + i, h);
    }
  };
  int64_t i = 0;
  for (; i + kLanes<V> <= x.n; i += kLanes<V>) {
    __builtin_prefetch(x.next_s + i * x.size_s);
    if constexpr (kKind != kOne) __builtin_prefetch(x.next_t + i * x.size_t_);
    step(load(x.s + i), load(x.t + i), i, Constant<kCare>{});
  }
  if (i < x.n) {
    const V s = load_tail(x.s + i, x.n - i), t = load_tail(x.t + i, x.n - i, kKind == kGiven ? 0 : -kInf);
    step(s, t, i, Constant<true>{});
    // A careful exponential knows no u above 0: where the tail is larger than all before it, the sum must show that.
    if constexpr (!kCare && (kKind != kSquare || kHard)) {
      R above = reduce_max(s) - x.shift_s;
      if constexpr (kKind == kForward || kKind == kReverse) above = max(R(reduce_max(t) - x.shift_t), above);
      if (above * x.inverse_tau > 10 || (kHard && above > 10)) sum_s += kInf;
    }
  }
  return {reduce_add(sum_s), reduce_add(sum_t), reduce_add(sum_d), kHard ? reduce_add(sum_h) : R(0)};
}

template <class R>
R offset(Tops<R> from, Tops<R> to) {  // what t - s gains
  return (shift_of(from.teacher) - shift_of(to.teacher)) - (shift_of(from.student) - shift_of(to.student));
}

template <Kind kKind, class R>
Sums<R> moved(const Sums<R>& x, Tops<R> from, Tops<R> to, R inverse_tau) {
  const R hard = x.hard * rescale(from.student, to.student, R(1));
  if (kKind == kSquare) return {0, 0, x.difference, hard};
  const R s = rescale(from.student, to.student, inverse_tau);
  if (kKind == kOne) return {x.student * s, 0, 0, hard};
  if (kKind == kGiven) {
    const R gained = shift_of(from.student) - shift_of(to.student);
    return {x.student * s, x.teacher, x.teacher == 0 ? x.difference : x.difference + x.teacher * gained, 0};
  }
  const R t = rescale(from.teacher, to.teacher, inverse_tau);
  const R weight = kKind == kForward ? t : s, total = kKind == kForward ? x.teacher : x.student;
  const R gained = kKind == kForward ? offset(from, to) : -offset(from, to);
  return {x.student * s, x.teacher * t, total * weight == 0 ? R(0) : weight * (x.difference + total * gained), hard};
}

template <class R>
void scale(R* x, int64_t n, R factor) {
  for (int64_t i = 0; i < n; i += kLanes<Vector<R>>) store(x + i, load(x + i) * factor);
}

template <Kind kKind, bool kHard, class R>
void move(R* a, R* b, R* h, int64_t n, Tops<R> from, Tops<R> to, R inverse_tau) {
  const R s = rescale(from.student, to.student, inverse_tau);
  if (kKind == kForward) scale(b, n, rescale(from.teacher, to.teacher, inverse_tau));
  if (kKind == kReverse) {
    const R gained = -offset(from, to);
    for (int64_t i = 0; i < n; i += kLanes<Vector<R>>) {
      const Vector<R> weight = load(a + i);
      store(b + i, s * (weight == 0 ? Vector<R>{} : load(b + i) + weight * gained));
    }
  }
  if (kKind != kSquare) scale(a, n, s);
  if (kHard) scale(h, n, rescale(from.student, to.student, R(1)));
}

template <class R>
Soft<R> forward_kl(const Sums<R>& x, const Compared<R>&, R tau, double, int64_t) {
  const double teacher = x.teacher, hot = tau;  // the terms nearly cancel when it is hot: once a row, in double
  return {hot * (x.difference / teacher + hot * log(x.student / teacher)), tau / x.student, tau / x.teacher};
}

template <class R>
Soft<R> reverse_kl(const Sums<R>& x, const Compared<R>&, R tau, double, int64_t) {
  const double student = x.student, hot = tau, mean = x.difference / student;
  return {hot * (mean + hot * log(x.teacher / student)), R(-mean / student), -1 / x.student};
}

// step(p, q) returns what b becomes. Behind the last class a and b are 0, up to a whole vector.
template <class R, class Step>
void over(const Sums<R>& sums, R* a, R* b, int64_t n, const Step& step) {
  using V = Vector<R>;
  const R of_s = 1 / sums.student, of_t = 1 / sums.teacher;
  for (int64_t i = 0; i < n; i += kLanes<V>) store(b + i, step(load(a + i) * of_s, load(b + i) * of_t));
}

template <class R>
Compared<R> compare_mixed(const Sums<R>& sums, double beta, R* a, R* b, int64_t n) {
  using V = Vector<R>;
  const R of_q = beta, of_p = 1 - beta;
  const bool mostly_q = of_q > of_p;
  V apart_p{}, apart_q{};
  over(sums, a, b, n, [&](V p, V q) __attribute__((always_inline)) {
    const V m = mostly_q ? q + of_p * (p - q) : p + of_q * (q - p);  // exactly p where they are equal
    const auto counted = [&](V x) { return x == 0 || m == 0 ? V{} : x * log(x / m); };  // m: of subnormals
    const V x = counted(p);
    apart_p += x, apart_q += counted(q);
    return x;
  });
  return {reduce_add(apart_p), reduce_add(apart_q)};
}

template <class R>
Soft<R> jsd(const Sums<R>& sums, const Compared<R>& x, R tau, double beta, int64_t) {
  const R mixed = tau * (1 - beta);
  return {double(tau) * tau * (beta * x.beside + (1 - beta) * x.slope), -mixed * x.slope / sums.student, -mixed};
}

template <class R>
Compared<R> compare_apart(const Sums<R>& sums, double, R* a, R* b, int64_t n) {
  using V = Vector<R>;
  V apart{}, above{};
  over(sums, a, b, n, [&](V p, V q) __attribute__((always_inline)) {
    const V x = p > q ? p : p < q ? -p : p * 0;
    apart += max(q - p, p - q), above += x;
    return x;
  });
  return {reduce_add(above), reduce_add(apart)};
}

template <class R>
Soft<R> total_variation(const Sums<R>& sums, const Compared<R>& x, R tau, double, int64_t) {
  const R half = tau / 2;
  return {double(tau) * half * x.beside, -half * x.slope / sums.student, -half};
}

template <class R>
Soft<R> logit_mse(const Sums<R>& sums, const Compared<R>&, R, double, int64_t classes) {
  return {double(sums.difference) / classes, R(2) / classes, 0};
}

template <class R>
Soft<R> cross_entropy(const Sums<R>&, const Compared<R>&, R, double, int64_t) {
  return {};
}

template <class R>
Soft<R> soft_target(const Sums<R>& x, const Compared<R>&, R, double, int64_t) {
  return {x.teacher * log(double(x.student)) - x.difference, x.teacher / x.student, 1};
}

template <class R>
using Compare = Compared<R> (*)(const Sums<R>&, double, R*, R*, int64_t);
template <class R>
using Finish = Soft<R> (*)(const Sums<R>&, const Compared<R>&, R, double, int64_t);

template <Kind kKind, bool kHard, bool kKeep, class R>
constexpr Form<R> make(Finish<R> finish, Compare<R> compare = nullptr) {
  return {read<kKind, false, kHard, kKeep, R>,
          read<kKind, true, kHard, kKeep, R>,
          moved<kKind, R>,
          move<kKind, kHard, R>,
          compare,
          finish};
}
template <bool kHard, class R>
struct Forms {
  static constexpr Form<R> kept[kDivergences] = {
      make<kForward, kHard, true, R>(forward_kl), make<kReverse, kHard, true, R>(reverse_kl),
      make<kForward, kHard, true, R>(jsd, compare_mixed),
      make<kForward, kHard, true, R>(total_variation, compare_apart), make<kSquare, kHard, true, R>(logit_mse)};
  static constexpr Form<R> forward_kl_unkept = make<kForward, kHard, false, R>(forward_kl);
};
template <bool kHard, bool kKeep, class R>
constexpr Form<R> kCrossEntropy = make<kOne, kHard, kKeep, R>(cross_entropy);
template <bool kKeep, class R>
constexpr Form<R> kSoftCrossEntropy = make<kGiven, false, kKeep, R>(soft_target);

template <class R>
const Form<R>& chosen(Divergence divergence, bool hard, bool gradient) {
  if (divergence == kAlone)
    return hard       ? kCrossEntropy<true, true, R>
           : gradient ? kCrossEntropy<false, true, R>
                      : kCrossEntropy<false, false, R>;
  if (divergence == kSoftTarget) return gradient ? kSoftCrossEntropy<true, R> : kSoftCrossEntropy<false, R>;
  if (divergence == kForwardKl && !gradient)
    return hard ? Forms<true, R>::forward_kl_unkept : Forms<false, R>::forward_kl_unkept;
  return (hard ? Forms<true, R>::kept : Forms<false, R>::kept)[divergence];
}

}  // namespace

const Form<float>& form(float, Divergence divergence, bool hard, bool gradient) {
  return chosen<float>(divergence, hard, gradient);
}
const Form<double>& form(double, Divergence divergence, bool hard, bool gradient) {
  return chosen<double>(divergence, hard, gradient);
}

}  // namespace tamis::TAMIS_ISA
