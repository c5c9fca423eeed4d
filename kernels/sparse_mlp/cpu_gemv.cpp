// Few tokens times a matrix whose rows are neurons.
// Floor: the matrix read once. One token: as many rows at once as memory reads streams best. Zen 4, whose vectors have
// 16 lanes, reads eight of float32 a sixth faster than one, but of 2 bytes one row after the other; Zen 3 reads four
// streams half as fast again as one. More tokens: some rows together, so that a token's number is loaded once for all
// of them, by turns of one vector. Where the sums of all tokens leave room for one or two rows only, half of the tokens
// go through some rows, then the others through the same, which are in L1 by then.
#include "../common/simd.h"
#include "own.h"

namespace tamis::TAMIS_ISA {
namespace {

constexpr int kSums = TAMIS_LANES == 16 ? 24 : 12;  // that fit registers

template <class T, int kTokens, int kRows, int kChains>
void some_rows(const Gemv& op, int64_t r) {
  using R = Real<T>;
  using V = Vector<R>;
  constexpr int64_t lanes = kLanes<V>;
  const R* const x = static_cast<const R*>(op.x);
  const T* const w = static_cast<const T*>(op.w) + r * op.stride;
  V sum[kRows][kTokens][kChains] = {};
  const auto add = [&](int chain, auto number_at, auto token_at) {
    V row[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) row[i] = number_at(w + i * op.stride);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const V v = token_at(x + t * op.size);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) sum[i][t][chain] += row[i] * v;
    }
  };
  int64_t c = 0;
  for (; c + kChains * lanes <= op.size; c += kChains * lanes)
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) {
      const auto at = [&](auto* p) { return load(p + c + chain * lanes); };
      add(chain, at, at);
    }
  TAMIS_PROMISED(op.size - c < kChains * lanes);
  for (; c < op.size; c += lanes) {
    const int64_t left = op.size - c;
    const auto at = [&](auto* p) { return left < lanes ? load_tail(p + c, left, 0) : load(p + c); };
    add(0, at, at);
  }
  for (int i = 0; i < kRows; ++i) {
    const R bias = op.bias ? number(static_cast<const T*>(op.bias) + r + i) : R(0);
    for (int t = 0; t < kTokens; ++t) {
      V all = sum[i][t][0];
      for (int chain = 1; chain < kChains; ++chain) all += sum[i][t][chain];
      static_cast<R*>(op.out)[t * op.out_stride + r + i] = reduce_add(all) + bias;
    }
  }
}

Gemv past(const Gemv& op, int64_t tokens, int64_t bytes) {
  Gemv rest = op;
  rest.x = static_cast<const char*>(op.x) + tokens * op.size * bytes;
  rest.out = static_cast<char*>(op.out) + tokens * op.out_stride * bytes;
  return rest;
}

template <class T, int kTokens>
void rows(const Gemv& op, int64_t begin, int64_t end) {
  constexpr bool kHalves = kSums / kTokens < 3;
  constexpr int kFirst = kHalves ? (kTokens + 1) / 2 : kTokens, kMost = kSums / kFirst;
  constexpr bool kOne = kTokens == 1, kWide = kOne && TAMIS_LANES == 16, kEight = kWide && sizeof(T) == 4;
  constexpr int kRows = kEight ? 8 : kWide ? 1 : kMost < 4 ? kMost : 4;
  constexpr int kChains = kEight ? 1 : kWide ? 4 : kOne ? 2 : 1;
  const Gemv rest = past(op, kFirst, sizeof(Real<T>));
  int64_t r = begin;
  for (; r + kRows <= end; r += kRows) {
    some_rows<T, kFirst, kRows, kChains>(op, r);
    if constexpr (kHalves) some_rows<T, kTokens - kFirst, kRows, 1>(rest, r);
  }
  TAMIS_PROMISED(end - r < kRows);
  for (; r < end; ++r) {
    some_rows<T, kFirst, 1, kChains>(op, r);  // the same sums, wherever a thread begins
    if constexpr (kHalves) some_rows<T, kTokens - kFirst, 1, 1>(rest, r);
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
