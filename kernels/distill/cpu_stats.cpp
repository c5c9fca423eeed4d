// Where student and teacher deviate, row by row, at temperature 1. Compiled once per ISA.
// Floor: both logits read once; two exponentials a class, one a model.
// Log-odds come from the sum without the class, never from 1 - p: the maximum's own exponential is exactly 1, so it is
// counted, and only what lies below it is summed.
#include "block.h"

namespace tamis::TAMIS_ISA {
namespace {

template <class R>
struct Sums {  // of a block or a row, relative to its maximum
  R below;     // exponentials of what is smaller
  R ties;      // how many classes are the maximum
  R energy;    // exponential * (x - max), over all
};

template <class R>
struct Block {
  const R* x;
  R max;
};

template <class R>
Sums<R> sums(Block<R> block, int64_t n, const char* next, int64_t element) {
  using V = Vector<R>;
  const R shift = shift_of(block.max);
  V below{}, ties{}, energy{};
  const auto step = [&](V u) __attribute__((always_inline)) {
    const V e = exp_nonpositive(u, R(1)), product = e * u;
    below += u == 0 ? V{} : e;
    ties += u == 0 ? V{} + 1 : V{};
    energy += e == 0 ? V{} : product;  // not 0 * -inf
  };
  int64_t i = 0;
  for (; i + kLanes<V> <= n; i += kLanes<V>) {
    __builtin_prefetch(next + i * element);
    step(load(block.x + i) - shift);
  }
  if (i < n) step(load_tail(block.x + i, n - i) - shift);
  return {reduce_add(below), reduce_add(ties), reduce_add(energy)};
}

template <class R>
struct Model {
  R max = -kInf;
  Sums<R> sums{};
  int64_t argmax = 0;  // ties: the lowest index

  R total() const { return sums.below + sums.ties; }
  R logsumexp() const { return shift_of(max) + log(total()); }

  void add(Block<R> block, int64_t at, Sums<R> s) {
    if (block.max > max) {
      int64_t i = 0;
      while (block.x[i] != block.max) ++i;
      argmax = at + i;
      merge(s, sums, max, block.max);
      max = block.max;
    } else {
      merge(sums, s, block.max, max);
    }
  }

 private:
  // to + from, where from is relative to a maximum no larger than to's.
  void merge(Sums<R> to, const Sums<R>& from, R from_max, R to_max) {
    if (from_max == to_max) {
      sums = {to.below + from.below, to.ties + from.ties, to.energy + from.energy};
    } else if (from_max == -kInf) {  // nothing, or NaN alone
      sums = {to.below + from.below, to.ties, to.energy + from.energy};
    } else {
      const R moved = from_max - to_max, scale = exp(moved), all = (from.below + from.ties) * scale;
      sums = {to.below + all, to.ties, to.energy + (scale == 0 ? R(0) : from.energy * scale + all * moved)};
    }
  }
};

template <class R>
struct Row {
  const Source<R>& source;
  const char* x;
  int64_t classes;
  const Transform<R>& f;
  R* buffer;

  Block<R> block(int64_t c, int64_t n) const {
    const R* const y = source.numbers(x, c, n, f, buffer);
    return {y, maximum(y, n)};
  }
  R at(int64_t k) const { return source.numbers(x, k, 1, f, buffer)[0]; }

  // Block c, and class k in it is -inf.
  Block<R> block_without(int64_t c, int64_t n, int64_t k) const {
    Block<R> b = block(c, n);
    if (k < c || k >= c + n) return b;  // equivalent: bound: k = c + n would be cleared past what is read
    for (int64_t i = 0; i < n; ++i) buffer[i] = b.x[i];
    buffer[k - c] = -kInf;
    return {buffer, maximum(buffer, n)};
  }

  // x_k - logsumexp of the others, relative to their own maximum: for margins at which they vanish beside x_k.
  R log_odds(int64_t k) const {
    Model<R> others;
    for (int64_t c = 0; c < classes; c += kBlock) {
      const int64_t n = block_size(classes, c);
      const Block<R> b = block_without(c, n, k);
      others.add(b, c, sums(b, n, x, 0));
    }
    return at(k) - others.logsumexp();
  }

  R log_odds(int64_t k, const Model<R>& m) const {
    const R margin = at(k) - m.max;
    if (margin != 0) return margin - log(m.total() - exp(margin));  // at most half the sum is taken away
    const R others = m.sums.below + (m.sums.ties - 1);
    return others < R(1e-30) ? log_odds(k) : -log(others);
  }

  int64_t argmax(const Model<R>& m) const {  // as torch: a NaN is the largest
    if (m.total() == m.total()) return m.argmax;
    for (int64_t c = 0; c < classes; c += kBlock) {
      const Block<R> b = block(c, block_size(classes, c));
      for (int64_t i = 0; i < block_size(classes, c); ++i)
        if (b.x[i] != b.x[i]) return c + i;
    }
    return m.argmax;
  }

  void write(void* const out[4], int64_t r, const Model<R>& m, R odds) const {
    const R z = m.total(),
            values[] = {m.logsumexp(), log(z) - m.sums.energy / z, m.max == -kInf ? R(kInf - kInf) : 1 / z, odds};
    for (int i = 0; i < 4; ++i) static_cast<R*>(out[i])[r] = values[i];
  }
};

template <class R>
void rows(const DeviationStats& op, const Source<R>& of_student, const Source<R>& of_teacher, int64_t begin,
          int64_t end, R* buffer) {
  const int64_t classes = op.student.classes;
  const Transform<R> f_s = transform<R>(op.student_transform), f_t = transform<R>(op.teacher_transform);
  for (int64_t r = begin; r < end; ++r) {
    const char* const at_s = static_cast<const char*>(op.student.data) + row_offset(op.student, r) * of_student.element;
    const char* const at_t = static_cast<const char*>(op.teacher.data) + row_offset(op.teacher, r) * of_teacher.element;
    const Row<R> student{of_student, at_s, classes, f_s, buffer},
        teacher{of_teacher, at_t, classes, f_t, buffer + kBlock};
    Model<R> s, t;
    for (int64_t c = 0; c < classes; c += kBlock) {
      const int64_t n = block_size(classes, c);
      const Block<R> bs = student.block(c, n), bt = teacher.block(c, n);
      s.add(bs, c, sums(bs, n, at_s + c * of_student.element + kAhead, of_student.element));
      t.add(bt, c, sums(bt, n, at_t + c * of_teacher.element + kAhead, of_teacher.element));
    }
    const int64_t top = op.argmax[0][r] = teacher.argmax(t);
    op.argmax[1][r] = student.argmax(s);
    op.agree[r] = top == op.argmax[1][r];
    teacher.write(op.real[0], r, t, teacher.log_odds(top, t));
    student.write(op.real[1], r, s, student.log_odds(top, s));
  }
}

template <class S, class T>
void deviation_stats(const DeviationStats& op, int64_t begin, int64_t end, void* scratch) {
  rows(op, kSource<S>, kSource<T>, begin, end, static_cast<Real<S>*>(scratch));
}

}  // namespace

const StatsKernel stats_kernels[kDtypes][kDtypes] = {
    {deviation_stats<float, float>, nullptr, deviation_stats<float, Float16>, deviation_stats<float, BFloat16>},
    {nullptr, deviation_stats<double, double>, nullptr, nullptr},
    {deviation_stats<Float16, float>, nullptr, deviation_stats<Float16, Float16>, deviation_stats<Float16, BFloat16>},
    {deviation_stats<BFloat16, float>, nullptr, deviation_stats<BFloat16, Float16>,
     deviation_stats<BFloat16, BFloat16>},
};

}  // namespace tamis::TAMIS_ISA
