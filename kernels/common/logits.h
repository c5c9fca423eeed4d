// A row of logits as kernels walk it: block by block, each block in the arithmetic's type and transformed. A block and
// the exponentials made from it stay in L1.
#pragma once
#include "simd.h"

namespace tamis::TAMIS_ISA {
namespace {

constexpr int64_t kBlock = 1024;  // elements
constexpr int64_t kAhead = 4096;  // bytes from what is read to what is prefetched; past a row's end lies the next

template <class R>
struct Transform {  // LogitTransform, for vectors
  R scale, cap, inverse_cap;
  Vector<R> operator()(Vector<R> x) const { return cap > 0 ? cap * tanh(x * scale * inverse_cap) : x * scale; }
  // dy/dx, from y
  Vector<R> slope(Vector<R> y) const {
    return cap > 0 ? scale * (1 - y * inverse_cap * (y * inverse_cap)) : Vector<R>{} + scale;
  }
  bool identity() const { return scale == 1 && cap == 0; }
};
template <class R>
Transform<R> transform(const LogitTransform& t) {
  return {R(t.scale), R(t.cap), t.cap > 0 ? R(1 / t.cap) : R(0)};
}

// n numbers as the arithmetic wants them: x itself, or in buffer [kBlock].
template <class T, class R = Real<T>>
const R* numbers(const T* x, int64_t n, const Transform<R>& f, R* buffer) {
  if constexpr (__is_same(T, R))
    if (f.identity()) return x;
  int64_t i = 0;
  for (; i + kLanes<Vector<R>> <= n; i += kLanes<Vector<R>>) store(buffer + i, f(load(x + i)));
  if (i < n) store(buffer + i, f(load_tail(x + i, n - i)));  // equivalent: fill: any fill, nobody reads past n
  return buffer;
}

// The same for memory of a type that only the table knows: classes c..c+n of a row.
template <class R>
struct Source {
  const R* (*numbers)(const char* row, int64_t c, int64_t n, const Transform<R>& f, R* buffer);
  int64_t element;  // bytes
};
template <class T, class R = Real<T>>
inline constexpr Source<R> kSource = {[](const char* row, int64_t c, int64_t n, const Transform<R>& f, R* buffer) {
                                        return numbers(reinterpret_cast<const T*>(row) + c, n, f, buffer);
                                      },
                                      sizeof(T)};

// A NaN is not in it: it reaches the results through the sums.
template <class R>
R maximum(const R* x, int64_t n) {
  Vector<R> top = Vector<R>{} - kInf;
  int64_t i = 0;
  for (; i + kLanes<Vector<R>> <= n; i += kLanes<Vector<R>>) top = max(load(x + i), top);
  if (i < n) top = max(load_tail(x + i, n - i), top);
  return reduce_max(top);
}

// What exponents are relative to: where every class is -inf, the maximum would give inf - inf.
template <class R>
R shift_of(R max) {
  return max == -kInf ? R(0) : max;
}

inline int64_t block_size(int64_t classes, int64_t c) { return upto(classes - c, kBlock); }

}  // namespace
}  // namespace tamis::TAMIS_ISA
