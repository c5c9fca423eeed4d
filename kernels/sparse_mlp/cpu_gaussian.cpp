// gaussian_topk: relu(x - mean - deviations * std) of each row, and its gradient.
// Floor: the row read and written once; it is read three times, the last two from cache.
#include "../common/simd.h"
#include "own.h"

namespace tamis::TAMIS_ISA {
namespace {

template <class T, class Use>
void for_each_vector(const T* x, int64_t n, const Use& use) {  // use(i, how many, vector); 0 behind the end
  constexpr int64_t lanes = kLanes<decltype(load(x))>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) use(i, lanes, load(x + i));
  if (i < n) use(i, n - i, load_tail(x + i, n - i, 0));  // equivalent: fill: any fill, each use leaves it out
}
template <class T, class V>
void store_some(T* p, int64_t count, V v) {
  count < kLanes<V> ? store_tail(p, count, v) : store(p, v);
}
template <class V>
V lanes_below(int64_t count, V v) {  // others 0
  if (count == kLanes<V>) return v;
  for (int64_t i = count; i < kLanes<V>; ++i) v[i] = 0;
  return v;
}

template <class R>
struct Moments {
  R mean, std;
};
template <class T>
Moments<Real<T>> moments(const T* x, int64_t n) {
  using R = Real<T>;
  using V = Vector<R>;
  constexpr R kTiny = sizeof(R) == 4 ? R(1e-17) : R(1e-145);
  const R first = number(x);  // equal numbers have exactly that for a mean
  V sum{};
  for_each_vector(x, n, [&](int64_t, int64_t count, V v) { sum += lanes_below(count, v - first); });
  const R mean = first + reduce_add(sum) / n;
  const auto of_squares = [&](R scale) {
    V squares{};
    for_each_vector(x, n, [&](int64_t, int64_t count, V v) {
      const V d = (v - mean) / scale;
      squares += lanes_below(count, d * d);
    });
    return R(::sqrt(double(reduce_add(squares) / n))) * scale;
  };
  const R std = of_squares(1);
  if (std > kTiny && std * std < R(kInf)) return {mean, std};
  V size{};  // squares that leave the range
  for_each_vector(x, n, [&](int64_t, int64_t count, V v) {
    const V d = v < mean ? mean - v : v - mean;
    size = max(lanes_below(count, d), size);
  });
  const R most = reduce_max(size);
  return {mean, most > 0 && most < R(kInf) ? of_squares(most) : std};
}

template <class T>
void forward(const GaussianTopK& op, int64_t begin, int64_t end, void*) {
  using R = Real<T>;
  using V = Vector<R>;
  const int64_t n = op.x.classes;
  for (int64_t r = begin; r < end; ++r) {
    const T* const x = row_of<T>(op.x, r);
    const Moments<R> of = moments(x, n);
    const R cut = of.mean + of.std * R(op.deviations);
    T* const out = static_cast<T*>(op.out) + r * n;
    for_each_vector(x, n, [&](int64_t i, int64_t count, V v) {
      const V y = v - cut;
      store_some(out + i, count, y < 0 ? V{} : y);
    });
  }
}

template <class T>
void backward(const GaussianTopK& op, int64_t begin, int64_t end, void*) {
  using R = Real<T>;
  using V = Vector<R>;
  const int64_t n = op.x.classes;
  for (int64_t r = begin; r < end; ++r) {
    const T *const x = row_of<T>(op.x, r), *const grad = static_cast<const T*>(op.grad) + r * n;
    const Moments<R> of = moments(x, n);
    const R cut = of.mean + of.std * R(op.deviations);
    const auto passed = [&](int64_t i, int64_t count, V v) {
      const V g = count < kLanes<V> ? load_tail(grad + i, count, 0) : load(grad + i);
      return v - cut > 0 ? g : V{};
    };
    V sum{};
    for_each_vector(x, n, [&](int64_t i, int64_t count, V v) { sum += passed(i, count, v); });
    const R by_mean = reduce_add(sum) / n, by_std = of.std > 0 ? by_mean * R(op.deviations) / of.std : R(0);
    T* const out = static_cast<T*>(op.out) + r * n;
    for_each_vector(x, n, [&](int64_t i, int64_t count, V v) {
      store_some(out + i, count, passed(i, count, v) - by_mean - by_std * (v - of.mean));
    });
  }
}

}  // namespace

const RowKernel<GaussianTopK> gaussian_kernels[kDtypes] = {forward<float>, forward<double>, forward<Float16>,
                                                           forward<BFloat16>};
const RowKernel<GaussianTopK> gaussian_backward_kernels[kDtypes] = {backward<float>, backward<double>,
                                                                    backward<Float16>, backward<BFloat16>};

}  // namespace tamis::TAMIS_ISA
