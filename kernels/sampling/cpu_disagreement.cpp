// disagreement of two models: both logits read once. Floor: 8 bytes and two exponentials a float32 class; jsd two
// logarithms more. Where classes are compared, the exponentials wait in the cache for both rows' sums.
#include "sweep.h"

namespace tamis::TAMIS_ISA {
namespace {

template <class R>
struct Model {
  Reader<R> row;
  R* e;       // [classes, in whole blocks] exponentials, where classes are compared
  R* shifts;  // what a block's are relative to
  Online<R> sums{};

  template <bool kKeep>
  void add(int64_t c, int64_t n) {
    const R shift = sums.template add<kTotal, kKeep>(row.block(c, n), c, R(1), kKeep ? e + c : nullptr);
    if (kKeep) shifts[c / kBlock] = shift;
  }
  bool sound() const { return sums.max > -kInf && sums.max < kInf; }
  // From a block's exponentials to probabilities.
  R factor(int64_t c) const { return exp(shifts[c / kBlock] - sums.max) / sums.total(); }
  // P log2 P of class y. Not inlined: one product of a difference would be fused, and a model differ from itself.
  __attribute__((noinline)) R entropy_term(int64_t y) const {
    const R log_p = (row.at(y) - sums.max) - sums.log_total(), p = exp(log_p);
    return p == 0 ? R(0) : p * log_p * R(1.44269504088896340736);
  }
};

// (1 + t) log(1 + t) + (1 - t) log(1 - t) of |t| <= 1: near 0 by its series, for the terms cancel.
template <class R>
Vector<R> excess(Vector<R> t) {
  using V = Vector<R>;
  const V z = t * t;
  constexpr int terms = sizeof(R) == 4 ? 6 : 10;
  V series{};
#pragma GCC unroll 10
  for (int k = terms; k > 0; --k) series = series * z + R(1.0 / (k * (2 * k - 1)));
  const V a = 1 + t, b = 1 - t;
  const V far = (a > 0 ? a * log(a) : V{}) + (b > 0 ? b * log(b) : V{});
  return z < R(sizeof(R) == 4 ? 0.09 : 0.01) ? z * series : z == z ? far : z;
}

// The part of a block in the comparison: the largest |p - q|, or the sum of the divergence.
template <Disagreement kKind, class R>
Vector<R> compare(Vector<R> p, Vector<R> q, Vector<R> so_far) {
  using V = Vector<R>;
  p = max(p, V{}), q = max(q, V{});  // else one product would be fused into the difference, and equals differ
  const V difference = p - q;
  if constexpr (kKind == Disagreement::max_abs) return max(difference < 0 ? -difference : difference, so_far);
  const V both = p + q, t = both == 0 ? V{} : difference / both;
  return so_far + both * excess<R>(t);  // times 1/4
}

template <Disagreement kKind, class R>
R compared(const Model<R>& a, const Model<R>& b, int64_t classes) {
  using V = Vector<R>;
  R all = 0;
  for (int64_t c = 0; c < classes; c += kBlock) {
    const R of_a = a.factor(c), of_b = b.factor(c);
    const int64_t end = c + block_size(classes, c);
    V part{};
    int64_t i = c;
    for (; i + kLanes<V> <= end; i += kLanes<V>)
      part = compare<kKind, R>(load(a.e + i) * of_a, load(b.e + i) * of_b, part);
    if (i < end)
      part = compare<kKind, R>(load_tail(a.e + i, end - i, 0) * of_a, load_tail(b.e + i, end - i, 0) * of_b, part);
    all = kKind == Disagreement::max_abs ? max(all, reduce_max(part)) : all + reduce_add(part) / 4;
  }
  const R z = a.sums.total() + b.sums.total();
  return z == z ? all : z;
}

template <class R>
void rows(const DisagreementOp& op, const Source<R>& of_a, const Source<R>& of_b, int64_t begin, int64_t end, R* work) {
  const int64_t classes = op.a.classes, blocks = classes / kBlock + 1, width = blocks * kBlock;
  const Transform<R> same = transform<R>({1, 0});
  const auto at = [](const Matrix& m, int64_t r, const Source<R>& source) {
    return static_cast<const char*>(m.data) + row_offset(m, r) * source.element;
  };
  R* const e = work + 2 * kBlock;
  R* const shifts = e + 2 * width;
  for (int64_t r = begin; r < end; ++r) {
    Model<R> a{{of_a, at(op.a, r, of_a), nullptr, same, work}, e, shifts};
    Model<R> b{{of_b, at(op.b, r, of_b), nullptr, same, work + kBlock}, e + width, shifts + blocks};
    for (int64_t c = 0; c < classes; c += kBlock) {
      const int64_t n = block_size(classes, c);
      if (op.kind == Disagreement::entropy_term) {
        a.template add<false>(c, n), b.template add<false>(c, n);
      } else {
        a.template add<true>(c, n), b.template add<true>(c, n);
      }
    }
    R value = kInf - kInf;
    if (a.sound() && b.sound()) {
      if (op.kind == Disagreement::max_abs) value = compared<Disagreement::max_abs>(a, b, classes);
      if (op.kind == Disagreement::jsd) value = compared<Disagreement::jsd>(a, b, classes);
      if (op.kind == Disagreement::entropy_term && op.target[r] >= 0 && op.target[r] < classes) {
        value = a.entropy_term(op.target[r]) - b.entropy_term(op.target[r]);
        value = value < 0 ? -value : value;
      }
    }
    static_cast<R*>(op.out)[r] = value;
  }
}

template <class S, class T>
void disagreement(const DisagreementOp& op, int64_t begin, int64_t end, void* scratch) {
  rows(op, kSource<S>, kSource<T>, begin, end, static_cast<Real<S>*>(scratch));
}

}  // namespace

const RowKernel<DisagreementOp> disagreement_kernels[kDtypes][kDtypes] = {
    {disagreement<float, float>, nullptr, disagreement<float, Float16>, disagreement<float, BFloat16>},
    {nullptr, disagreement<double, double>, nullptr, nullptr},
    {disagreement<Float16, float>, nullptr, disagreement<Float16, Float16>, disagreement<Float16, BFloat16>},
    {disagreement<BFloat16, float>, nullptr, disagreement<BFloat16, Float16>, disagreement<BFloat16, BFloat16>},
};

}  // namespace tamis::TAMIS_ISA
