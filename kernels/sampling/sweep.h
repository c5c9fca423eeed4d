// A row's softmax statistics in one go over its logits. The maximum is counted apart from the others: its exponential
// is exactly 1, so that log1p(others) and 1 - p keep their digits where it has nearly all the probability.
#pragma once
#include "cpu.h"
#include "../common/logits.h"

namespace tamis::TAMIS_ISA {

extern const DrawKernels draw_kernels;
extern const RowKernel<SoftmaxStats> few_kernels[kDtypes];  // of rows of at most kFew classes
extern const RowKernel<SoftmaxStatsBackward> backward_kernels[kDtypes];
extern const RowKernel<DisagreementOp> disagreement_kernels[kDtypes][kDtypes];

namespace {

constexpr int64_t kFew = 256;  // as many as fit in L1 for every lane

// What squares are counted in: those of exponentials down to 1e-32 are floats, of 1000 too.
template <class R>
inline constexpr R kSquare = sizeof(R) == 4 ? R(0x1p90) : R(1);

template <class R>
struct Sums {                // of e = exp((x - shift) / tau)
  R total, energy, squares;  // of e, of e * (x - shift), of e * e * kSquare
  R max;                     // of x
};

template <class R>
struct Numbers {  // of a block, and what is read next
  const R* x;
  int64_t n;
  const char* next;
  int64_t element;  // bytes there
};

enum Wanted { kTotal, kEnergy, kSquares };  // each includes what is before it

template <class R>
struct Lanes {
  Vector<R> total{}, energy{}, squares{}, max = Vector<R>{} - kInf;

  // kBounded: an x of -inf adds 0; without, which is sooner, it may make any sum NaN.
  template <Wanted kWanted, bool kBounded>
  Vector<R> add(Vector<R> x, R shift, R inverse_tau, R lowest) {
    max = tamis::TAMIS_ISA::max(x, max);
    Vector<R> u = x - shift;
    if constexpr (kBounded) u = tamis::TAMIS_ISA::max(Vector<R>{} + lowest, u);
    const Vector<R> e = exp_bounded(u, inverse_tau);
    total += e;
    if constexpr (kWanted >= kEnergy) energy += e * u;
    if constexpr (kWanted >= kSquares) squares += e * kSquare<R> * e;
    return e;
  }
};

// e: where the exponentials go, where they are kept.
template <Wanted kWanted, bool kKeep, bool kBounded, class R>
Sums<R> sweep(const Numbers<R>& block, R shift, R inverse_tau, R* e) {
  constexpr int64_t lanes = kLanes<Vector<R>>;
  const R lowest = exp_lowest(inverse_tau);
  Lanes<R> sums;
  int64_t i = 0;
  for (; i + lanes <= block.n; i += lanes) {
    __builtin_prefetch(block.next + i * block.element);
    const Vector<R> one = sums.template add<kWanted, kBounded>(load(block.x + i), shift, inverse_tau, lowest);
    if constexpr (kKeep) store(e + i, one);
  }
  if (i < block.n) {
    const Vector<R> x = load_tail(block.x + i, block.n - i);
    const Vector<R> one = sums.template add<kWanted, true>(x, shift, inverse_tau, lowest);
    if constexpr (kKeep) store_tail(e + i, block.n - i, one);
  }
  return {reduce_add(sums.total), reduce_add(sums.energy), reduce_add(sums.squares), reduce_max(sums.max)};
}

// Sums of the classes but k, which is the maximum.
template <Wanted kWanted, bool kKeep, class R>
Sums<R> sweep_without(int64_t k, const Numbers<R>& block, R shift, R inverse_tau, R* e) {
  constexpr int64_t lanes = kLanes<Vector<R>>;
  const int64_t at = k / lanes * lanes, n = upto(block.n - at, lanes);
  R few[lanes];
  for (int64_t i = 0; i < n; ++i) few[i] = at + i == k ? R(-kInf) : block.x[at + i];
  const Numbers<R> parts[] = {
      {block.x, at, block.next, 0}, {few, n, block.next, 0}, {block.x + at + n, block.n - at - n, block.next, 0}};
  const int64_t begins[] = {0, at, at + n};
  Sums<R> all{};
  for (int i = 0; i < 3; ++i) {
    const Sums<R> s = sweep<kWanted, kKeep, true>(parts[i], shift, inverse_tau, e + begins[i]);
    all.total += s.total, all.energy += s.energy, all.squares += s.squares;
  }
  if (kKeep) e[k] = 1;
  return all;
}

template <class R>
struct Place {
  int64_t k;  // the first that is the maximum
  R second;   // the largest of the others
};

template <class R>
Place<R> place_of(R top, const R* x, int64_t n) {
  constexpr int64_t kStride = 64;
  Place<R> at = {-1, -kInf};
  for (int64_t i = 0; i < n; i += kStride) {
    const int64_t few = upto(n - i, kStride);
    const R most = maximum(x + i, few);
    if (at.k >= 0 || most != top) {
      if (most > at.second) at.second = most;
      continue;
    }
    at.k = i;
    while (x[at.k] != top) ++at.k;
    const R before = maximum(x + i, at.k - i), after = maximum(x + at.k + 1, i + few - at.k - 1);
    at.second = max(max(before, after), at.second);
  }
  return at;
}

// A row's sums so far, relative to its maximum; that one is in none of them.
template <class R>
struct Online {
  R max = -kInf, second = -kInf, others = 0, energy = 0, squares = 0;
  int64_t argmax = 0;            // ties: the lowest index
  bool bounded = !kExpOfAny<R>;  // whether an -inf has been seen

  // Classes from `at` on. Returns what e is relative to.
  template <Wanted kWanted, bool kKeep = false>
  R add(const Numbers<R>& block, int64_t at, R inverse_tau, R* e = nullptr) {
    // Relative to the maximum so far; of the first block to one near enough to its own.
    const R shift = max != -kInf ? max : block.n > kGuess ? maximum(block.x, kGuess) : R(-kInf);
    if (shift != -kInf) {
      const Sums<R> s = sums<kWanted, kKeep>(block, shift, inverse_tau, e);
      if (s.max <= max) {
        join(s);
        if (s.max > second) second = s.max;
        return shift;
      }
      // The new maximum's own part may be taken out of sums that are not mostly it, and whose squares are floats.
      const R moved = s.max - shift, own = exp(moved * inverse_tau), rest = (counted() + others) + (s.total - own);
      if (own <= 4 * rest && own < (kWanted >= kSquares ? R(1e3) : R(1e12))) {
        const R scale = 1 / own, energies = energy + (s.energy - own * moved);
        others = rest * scale;
        energy = energies * scale - others * moved;
        squares = (counted() * kSquare<R> + squares + (s.squares - own * kSquare<R> * own)) * (scale * scale);
        if (!(squares >= 0)) squares = squares != squares ? squares : R(0);
        found(s.max, block, at);
        return shift;
      }
    }
    const R top = maximum(block.x, block.n);
    if (!(top > max)) {  // NaN among smaller ones; or -inf and NaN alone
      join(sweep<kWanted, kKeep, true>(block, shift_of(max), inverse_tau, e));
      return shift_of(max);
    }
    const R moved = max - top, scale = max == -kInf ? R(0) : exp(moved * inverse_tau), all = (1 + others) * scale;
    energy = scale == 0 ? R(0) : energy * scale + all * moved;
    squares = (kSquare<R> + squares) * scale * scale;
    others = max == -kInf ? others : all;  // there 0 or NaN
    found(top, block, at);
    join(sweep_without<kWanted, kKeep>(argmax - at, block, top, inverse_tau, e));
    return top;
  }

  R total() const { return 1 + others; }
  R log_total() const { return log1p(others); }

 private:
  static constexpr int64_t kGuess = 64;

  R counted() const { return max == -kInf ? R(0) : R(1); }
  void join(const Sums<R>& s) { others += s.total, energy += s.energy, squares += s.squares; }
  void found(R top, const Numbers<R>& block, int64_t at) {
    const Place<R> place = place_of(top, block.x, block.n);
    second = max > place.second ? max : place.second;
    max = top, argmax = at + place.k;
  }

  template <Wanted kWanted, bool kKeep>
  Sums<R> sums(const Numbers<R>& block, R shift, R inverse_tau, R* e) {
    if (!bounded) {
      const Sums<R> s = sweep<kWanted, kKeep, false>(block, shift, inverse_tau, e);
      if (s.total + s.energy == s.total + s.energy) return s;
      bounded = true;
    }
    return sweep<kWanted, kKeep, true>(block, shift, inverse_tau, e);
  }
};

// The row's first NaN, or -1.
template <class R>
int64_t first_nan(const R* x, int64_t n) {
  int64_t i = 0;
  while (i < n && x[i] == x[i]) ++i;
  return i < n ? i : -1;
}

// How a row's logits are read: transformed, -inf where they do not count.
template <class R>
struct Reader {
  const Source<R>& source;
  const char* row;
  const bool* mask;  // or null
  const Transform<R>& transform;
  R* buffer;  // [kBlock]

  const R* read(int64_t c, int64_t n) const {
    const R* const x = source.numbers(row, c, n, transform, buffer);
    if (!mask) return x;
    int64_t i = 0;
    if constexpr (__is_same(R, float))
      for (; i + kLanes<F32> <= n; i += kLanes<F32>)  // equivalent: loop, bound: the rest can do all
        store(buffer + i, load_mask(mask + c + i) ? load(x + i) : F32{} - kInf);
    for (; i < n; ++i) buffer[i] = mask[c + i] ? x[i] : R(-kInf);
    return buffer;
  }
  Numbers<R> block(int64_t c, int64_t n) const {
    return {read(c, n), n, row + c * source.element + kAhead, source.element};
  }
  R at(int64_t k) const { return read(k, 1)[0]; }
};

template <class R>
R inverse_tau_of(const StatsInput& in, int64_t r) {
  const R tau = static_cast<const R*>(in.temperature)[r * in.temperature_step];
  return tau > 0 && tau < kInf ? 1 / tau : R(kInf - kInf);
}

template <class R>
Reader<R> reader(const StatsInput& in, const Source<R>& source, const Transform<R>& f, int64_t r, R* buffer) {
  const bool* const mask = in.mask.data ? static_cast<const bool*>(in.mask.data) + row_offset(in.mask, r) : nullptr;
  return {source, static_cast<const char*>(in.logits.data) + row_offset(in.logits, r) * source.element, mask, f,
          buffer};
}

}  // namespace
}  // namespace tamis::TAMIS_ISA
