// Few tokens times a matrix whose rows are neurons.
// Floor: the matrix read once. A row at a time: rows side by side are one stream, which memory prefetches best; several
// rows at once, a power of two apart, were up to twice as slow. Each number is used for every token while it is at
// hand.
#include "../common/simd.h"
#include "own.h"

namespace tamis::TAMIS_ISA {
namespace {

template <class T, int kTokens>
void rows(const Gemv& op, int64_t begin, int64_t end) {
  using R = Real<T>;
  using V = Vector<R>;
  constexpr int64_t lanes = kLanes<V>;
  constexpr int kChains = kTokens == 1 ? 4 : kTokens <= 4 ? 2 : 1;  // sums that do not wait for each other
  const R* const x = static_cast<const R*>(op.x);
  for (int64_t r = begin; r < end; ++r) {
    const T* const w = static_cast<const T*>(op.w) + r * op.stride;
    V sum[kTokens][kChains] = {};
    int64_t i = 0;
    for (; i + kChains * lanes <= op.size; i += kChains * lanes)
      for (int c = 0; c < kChains; ++c) {
        const V v = load(w + i + c * lanes);
        for (int t = 0; t < kTokens; ++t) sum[t][c] += v * load(x + t * op.size + i + c * lanes);
      }
    for (; i < op.size; i += lanes) {
      const int64_t left = op.size - i;
      const V v = left < lanes ? load_tail(w + i, left, 0) : load(w + i);
      for (int t = 0; t < kTokens; ++t) {
        const R* const at = x + t * op.size + i;
        sum[t][0] += v * (left < lanes ? load_tail(at, left, 0) : load(at));
      }
    }
    const R bias = op.bias ? number(static_cast<const T*>(op.bias) + r) : R(0);
    for (int t = 0; t < kTokens; ++t) {
      V all = sum[t][0];
      for (int c = 1; c < kChains; ++c) all += sum[t][c];
      static_cast<R*>(op.out)[t * op.out_stride + r] = reduce_add(all) + bias;
    }
  }
}

template <class T>
void gemv(const Gemv& op, int64_t begin, int64_t end, void*) {
  constexpr void (*kernels[kFewTokens])(const Gemv&, int64_t, int64_t) = {
      rows<T, 1>, rows<T, 2>, rows<T, 3>, rows<T, 4>, rows<T, 5>, rows<T, 6>, rows<T, 7>, rows<T, 8>};
  kernels[op.tokens - 1](op, begin, end);
}

}  // namespace

const RowKernel<Gemv> gemv_kernels[kDtypes] = {gemv<float>, gemv<double>, gemv<Float16>, gemv<BFloat16>};

}  // namespace tamis::TAMIS_ISA
