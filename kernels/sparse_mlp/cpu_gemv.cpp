// Few tokens times a matrix whose rows are neurons.
// Floor: the matrix read once. Some rows together, so that a token's number is loaded once for all of them, while the
// next rows are fetched: a row is a page or so, and what the processor fetches by itself ends with the page. That pays
// for a matrix in memory, as a layer's is, and costs loads where it is in a cache already. Where the sums of all tokens
// leave room for one row only, half of the tokens go through some rows, then the others through the same, which are in
// L1 by then. `tamis bench sparse_mlp` has the fraction reached.
#include "../common/simd.h"
#include "own.h"

namespace tamis::TAMIS_ISA {
namespace {

constexpr int kSums = TAMIS_LANES == 16 ? 32 : 12;  // that fit registers

// kFetch: the next rows meanwhile, into L2.
template <class T, int kTokens, int kRows, bool kFetch>
void some_rows(const Gemv& op, int64_t r) {
  using R = Real<T>;
  using V = Vector<R>;
  constexpr int64_t lanes = kLanes<V>;
  constexpr int kLine = 64 / sizeof(T);
  const R* const x = static_cast<const R*>(op.x);
  const T* const w = static_cast<const T*>(op.w) + r * op.stride;
  V sum[kRows][kTokens] = {};
  const auto add = [&](auto number_at, auto token_at) {
    V row[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) row[i] = number_at(w + i * op.stride);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const V v = token_at(x + t * op.size);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) sum[i][t] += row[i] * v;
    }
  };
  int64_t c = 0;
  for (; c + lanes <= op.size; c += lanes) {
    if constexpr (kFetch)
#pragma GCC unroll 8
      for (int i = kRows; i < 2 * kRows; ++i)
#pragma GCC unroll 2
        for (int line = 0; line < lanes; line += kLine) __builtin_prefetch(w + i * op.stride + c + line, 0, 2);
    const auto at = [&](auto* p) { return load(p + c); };
    add(at, at);
  }
  const int64_t left = op.size - c;
  TAMIS_PROMISED(left < lanes);
  if (left > 0) {
    const auto at = [&](auto* p) { return load_tail(p + c, left, 0); };
    add(at, at);
  }
  for (int i = 0; i < kRows; ++i) {
    const R bias = op.bias ? number(static_cast<const T*>(op.bias) + r + i) : R(0);
    for (int t = 0; t < kTokens; ++t) static_cast<R*>(op.out)[t * op.out_stride + r + i] = reduce_add(sum[i][t]) + bias;
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
  constexpr bool kHalves = kSums / kTokens < 2;
  constexpr int kFirst = kHalves ? (kTokens + 1) / 2 : kTokens, kMost = kSums / kFirst;
  constexpr int kRows = kTokens == 1 && sizeof(T) > 2 ? 8 : kMost < 4 ? kMost : 4;
  const Gemv rest = past(op, kFirst, sizeof(Real<T>));
  int64_t r = begin;
  for (; r + kRows <= end; r += kRows) {
    some_rows<T, kFirst, kRows, true>(op, r);
    if constexpr (kHalves) some_rows<T, kTokens - kFirst, kRows, false>(rest, r);
  }
  TAMIS_PROMISED(end - r < kRows);
  for (; r < end; ++r) {
    some_rows<T, kFirst, 1, false>(op, r);  // the same sums, wherever a thread begins
    if constexpr (kHalves) some_rows<T, kTokens - kFirst, 1, false>(rest, r);
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
