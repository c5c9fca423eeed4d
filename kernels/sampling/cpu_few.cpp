// softmax_stats of rows of few classes, a lane a row: one by one, what ends a row would take longer than its classes.
// Floor: 4 bytes and one exponential a float32 class; the transposition is one store a class more.
#include "sweep.h"

namespace tamis::TAMIS_ISA {
namespace {

// What is found of as many rows as lanes.
template <class R>
struct Found {
  Vector<R> max, second, argmax, others, energy, squares, z, log_z;
};

// x: [classes, lanes].
template <Wanted kWanted, class R>
Found<R> survey(const R* x, int64_t classes, Vector<R> inverse_tau) {
  using V = Vector<R>;
  constexpr int64_t lanes = kLanes<V>;
  Found<R> f{V{} - kInf, V{} - kInf, V{} - 1, {}, {}, {}, {}, {}};
  for (int64_t c = 0; c < classes; ++c) {
    const V one = load(x + c * lanes);
    f.second = max(min(f.max, one), f.second);
    f.argmax = one > f.max ? V{} + R(c) : f.argmax;  // ties: the lowest index
    f.max = max(one, f.max);
  }
  const V shift = f.max == -kInf ? V{} : f.max, lowest = V{} + exp_lowest(R(1));
  // In parts: a long sum in turn rounds as often.
  for (int64_t begin = 0; begin < classes; begin += 16) {  // equivalent: bound: the last part may be empty
    V others{}, energy{}, squares{};
    for (int64_t c = begin; c < begin + 16 && c < classes; ++c) {
      const V u = max(lowest, (load(x + c * lanes) - shift) * inverse_tau), e = exp_bounded(u, R(1));
      const V other = f.argmax == R(c) ? V{} : e;
      others += other;
      energy += e * u;
      if constexpr (kWanted >= kSquares) squares += other * kSquare<R> * other;
    }
    f.others += others, f.energy += energy, f.squares += squares;
  }
  f.z = 1 + f.others, f.log_z = log1p(f.others);
  return f;
}

template <Wanted kWanted, class R>
void write(const SoftmaxStats& op, int64_t r, int64_t n, const R* x, const Found<R>& f, Vector<R> inverse_tau) {
  using V = Vector<R>;
  constexpr int64_t lanes = kLanes<V>;
  const int64_t classes = op.in.logits.classes;
  const R nan = kInf - kInf;
  const V sound = f.max > -kInf && f.max < kInf ? V{} : V{} + nan;  // added to every number
  const auto put = [&](void* out, V value) { store_upto(static_cast<R*>(out) + r, n, value); };
  put(op.max_prob, 1 / f.z + sound);
  put(op.entropy, f.log_z - f.energy / f.z + sound);
  put(op.margin, sound - expm1((f.second - f.max) * inverse_tau) / f.z);
  V logsumexp = f.max * inverse_tau + f.log_z;
  V at_target{};
  R ys[lanes] = {};
  for (int64_t i = 0; i < n; ++i) {
    op.argmax[r + i] = f.argmax[i] < 0 ? 0 : int64_t(f.argmax[i]);  // of -inf alone
    if (f.z[i] != f.z[i]) {
      int64_t c = 0;
      while (c < classes && x[c * lanes + i] == x[c * lanes + i]) ++c;  // equivalent: bound: no NaN, then anything
      if (c < classes) {
        op.argmax[r + i] = c;  // as torch's, which counts NaN as the largest
      } else {
        logsumexp[i] = f.max[i] * inverse_tau[i];  // several +inf are no NaN
      }
    }
    if constexpr (kWanted >= kSquares) {
      const int64_t y = op.in.target[r + i];
      const bool inside = y >= 0 && y < classes;
      ys[i] = inside ? R(y) : R(-1);
      at_target[i] = inside ? x[y * lanes + i] : nan;
    }
  }
  put(op.logsumexp, logsumexp);
  if constexpr (kWanted >= kSquares) {
    const V below = (f.max - at_target) * inverse_tau;
    const V u = max(V{} + exp_lowest(R(1)), -below), top = load(ys) == f.argmax ? V{} + 1 : V{};
    const V e = exp_bounded(u, R(1));
    // Off the maximum, no more than half of either sum is taken away.
    const V miss = top == 1 ? f.others : f.z - e;
    V el2n{};
    for (int64_t i = 0; i < n; ++i) {
      const double m = miss[i], squares = double(f.squares[i]) / kSquare<R>;
      const double rest = top[i] == 1 ? squares : 1 + squares - double(e[i]) * e[i];
      el2n[i] = R(::sqrt(m * m + (rest < 0 ? 0 : rest)) / f.z[i]);
    }
    put(op.nll, below + f.log_z + sound);
    put(op.el2n, el2n + sound);
  }
}

template <Wanted kWanted, class R>
void rows(const SoftmaxStats& op, const Source<R>& source, int64_t begin, int64_t end, R* buffer) {
  using V = Vector<R>;
  constexpr int64_t lanes = kLanes<V>;
  const int64_t classes = op.in.logits.classes;
  const Transform<R> f = transform<R>(op.in.transform);
  R* const x = buffer + kBlock;
  for (int64_t i = 0; i < classes * lanes; ++i) x[i] = 0;  // equivalent: bound: lanes without a row, not stored
  for (int64_t r = begin; r < end; r += lanes) {
    const int64_t n = upto(end - r, lanes);
    V inverse_tau = V{} + 1;
    for (int64_t i = 0; i < n; ++i) {
      const R* const row = reader(op.in, source, f, r + i, buffer).read(0, classes);
      for (int64_t c = 0; c < classes; ++c) x[c * lanes + i] = row[c];
      inverse_tau[i] = inverse_tau_of<R>(op.in, r + i);
    }
    write<kWanted>(op, r, n, x, survey<kWanted>(x, classes, inverse_tau), inverse_tau);
  }
}

template <class T, class R = Real<T>>
void few(const SoftmaxStats& op, int64_t begin, int64_t end, void* scratch) {
  (op.in.target ? rows<kSquares, R> : rows<kEnergy, R>)(op, kSource<T>, begin, end, static_cast<R*>(scratch));
}

}  // namespace

const RowKernel<SoftmaxStats> few_kernels[kDtypes] = {few<float>, few<double>, few<Float16>, few<BFloat16>};

}  // namespace tamis::TAMIS_ISA
