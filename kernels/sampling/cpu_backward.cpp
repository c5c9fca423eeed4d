// The gradient of softmax_stats: with z = x / tau, p = exp((x - max) / tau) * max_prob and log p beside it,
//   d logsumexp = p, d nll = p - [y], d entropy = -p (log p + entropy), d max_prob = max_prob ([argmax] - p).
// Floor: 8 bytes and one exponential a float32 class.
#include "sweep.h"

namespace tamis::TAMIS_ISA {
namespace {

template <class R>
struct Factors {  // a class's gradient is p * (constant + slope * (x - max)), and more at the argmax and the target
  R constant, slope, at_argmax, at_target;
};

template <class R>
struct Point {
  R max, max_prob, inverse_tau;
  Factors<R> of;
  const Transform<R>& transform;
};

// x: transformed; -inf where the class does not count, which gets 0. extra: of the argmax or the target.
template <class R>
Vector<R> gradient(Vector<R> x, const Point<R>& at, R lowest, R extra) {
  const Vector<R> u = max(Vector<R>{} + lowest, x - at.max);
  const Vector<R> p = exp_bounded(u, at.inverse_tau) * at.max_prob;
  const Vector<R> g = (p * (u * at.of.slope + at.of.constant) + extra) * at.transform.slope(x);
  return x == -kInf ? Vector<R>{} : g;
}

template <class T, class R>
void write(T* out, const Numbers<R>& block, const Point<R>& at, R lowest, bool past_caches) {
  const R* const x = block.x;
  const int64_t n = block.n;
  constexpr int64_t lanes = kLanes<Vector<R>>, bytes = lanes * sizeof(T);
  int64_t i = 0;
  if (past_caches && (uintptr_t)out % bytes) {
    i = (bytes - (uintptr_t)out % bytes) / sizeof(T);
    if (i > n) i = n;
    store_tail(out, i, gradient(load_tail(x, i), at, lowest, R(0)));  // equivalent: fill: any fill, i are stored
  }
  for (; i + lanes <= n; i += lanes) {
    __builtin_prefetch(block.next + i * block.element);
    const Vector<R> g = gradient(load(x + i), at, lowest, R(0));
    past_caches ? stream(out + i, g) : store(out + i, g);
  }
  if (i < n) store_tail(out + i, n - i, gradient(load_tail(x + i, n - i), at, lowest, R(0)));  // equivalent: fill: any
}

template <class T>
void fill(T* p, int64_t n) {
  memset(p, 0, n * sizeof(T));
}

template <class T, class R = Real<T>>
void row(const SoftmaxStatsBackward& op, const Reader<R>& from, const Transform<R>& f, int64_t r) {
  const int64_t classes = op.in.logits.classes, argmax = op.argmax[r], y = op.in.target ? op.in.target[r] : argmax;
  T* const out = const_cast<T*>(row_of<T>(op.gradient, r));
  const auto get = [&](const void* p) { return p ? static_cast<const R*>(p)[r] : R(0); };
  const R d_lse = get(op.d_logsumexp), d_entropy = get(op.d_entropy), d_max = get(op.d_max_prob), d_nll = get(op.d_nll);
  if (d_lse == 0 && d_entropy == 0 && d_max == 0 && d_nll == 0) return fill(out, classes);
  const bool bad = argmax < 0 || argmax >= classes || y < 0 || y >= classes;
  const R nan = kInf - kInf, max_prob = get(op.max_prob), inverse_tau = bad ? nan : inverse_tau_of<R>(op.in, r);
  const R of_max = d_max * max_prob;
  const R constant = d_lse + d_nll - of_max - (d_entropy == 0 ? R(0) : d_entropy * (log(max_prob) + get(op.entropy)));
  const Point<R> at = {
      bad ? nan : from.at(argmax),
      max_prob,
      inverse_tau,
      {inverse_tau * constant, -inverse_tau * inverse_tau * d_entropy, inverse_tau * of_max, -inverse_tau * d_nll},
      f};
  const R lowest = exp_lowest(inverse_tau);
  // Before they may be overwritten: two classes that get more than the others.
  const R x_argmax = at.max, x_target = bad ? nan : from.at(y);
  for (int64_t c = 0; c < classes; c += kBlock) {
    write(out + c, from.block(c, block_size(classes, c)), at, lowest, op.past_caches);
  }
  if (bad) return;
  const R both = argmax == y ? at.of.at_target + at.of.at_argmax : at.of.at_argmax;
  store_tail(out + argmax, 1, gradient(Vector<R>{} + x_argmax, at, lowest, both));
  if (y != argmax) store_tail(out + y, 1, gradient(Vector<R>{} + x_target, at, lowest, at.of.at_target));
}

template <class T, class R = Real<T>>
void softmax_stats_backward(const SoftmaxStatsBackward& op, int64_t begin, int64_t end, void* scratch) {
  const Transform<R> f = transform<R>(op.in.transform);
  for (int64_t r = begin; r < end; ++r) row<T>(op, reader(op.in, kSource<T>, f, r, static_cast<R*>(scratch)), f, r);
  if (op.past_caches) stream_fence();
}

}  // namespace

const RowKernel<SoftmaxStatsBackward> backward_kernels[kDtypes] = {
    softmax_stats_backward<float>, softmax_stats_backward<double>, softmax_stats_backward<Float16>,
    softmax_stats_backward<BFloat16>};

}  // namespace tamis::TAMIS_ISA
