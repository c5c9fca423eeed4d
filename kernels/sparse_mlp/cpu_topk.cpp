// topk: a row's k largest, exactly.
// Floor: the row read once, k values and indices written. A row that is long for its k is read twice, the second time
// from L2: first for the k-th largest of at least 4k groups' maxima, a bound that few numbers reach which are not among
// the k largest; then for those that reach it. When more are found than there is room for, the bound rises to the k-th
// largest so far, so no order of the numbers makes it slow. A short row is ranked whole.
#include "../common/select.h"
#include "cpu.h"

namespace tamis::TAMIS_ISA {
namespace {

constexpr int64_t kCounted = 64;      // at most so many are sorted by counting
constexpr int64_t kSample = 1 << 15;  // numbers of a long row that the first bound is made from
constexpr int64_t kSlack = 256;

struct Sizes {
  int64_t groups;  // 0: the row is ranked whole
  int64_t room;    // for what may be among the k largest
};
Sizes sizes(int64_t n, int64_t k) {
  const int64_t least = 4 * TAMIS_LANES, groups = (4 * k + least - 1) / least * least;
  if (n < 4 * groups) return {0, n};
  return {groups, groups + kSlack};
}

// A thread's memory, for one row after the other. Every number takes 8 bytes, whatever its type.
int64_t scratch_bytes(int64_t n, int64_t k) {
  const Sizes s = sizes(n, k);
  return 8 * (kBins + s.groups + 2 * s.room + 2 * k) + kBytes;  // keys end in a whole vector
}
template <class R>
struct Work {
  int64_t groups, room, k;
  int64_t* bins;  // [kBins]
  R* maxima;      // [groups]
  Key<R>* keys;
  int64_t* indices;  // [room], by index
  Key<R>* other_keys;
  int64_t* other_indices;  // [k]

  Work(void* scratch, int64_t n, int64_t k) : groups(sizes(n, k).groups), room(sizes(n, k).room), k(k) {
    int64_t* at = static_cast<int64_t*>(scratch);
    const auto take = [&](int64_t count) { return at += count, at - count; };
    bins = take(kBins), maxima = reinterpret_cast<R*>(take(groups));
    keys = reinterpret_cast<Key<R>*>(take(room)), indices = take(room);
    other_keys = reinterpret_cast<Key<R>*>(take(k)), other_indices = take(k);
  }
};

template <class T>
Real<T> number(const T* x) {  // one
  return load_tail(x, 1)[0];
}
inline float number(const float* x) { return *x; }
inline double number(const double* x) { return *x; }

// A bit a lane: x > bound, or x >= bound; NaN passes, and with a NaN for a bound all do.
template <bool kAbove, class V, class R>
uint64_t passing(V x, R bound) {
#if defined(__AVX512F__) && TAMIS_LANES == 16
  if constexpr (sizeof(R) == 4) return _mm512_cmp_ps_mask(x, _mm512_set1_ps(bound), kAbove ? _CMP_NLE_UQ : _CMP_NLT_UQ);
#endif
  if constexpr (kAbove) return bits_of(~(x <= bound));
  return bits_of(~(x < bound));
}

// At most the k-th largest: k groups have a maximum that reaches it. A NaN, which is larger, may be left out.
template <class R, class T>
R first_bound(const T* x, int64_t n, const Work<R>& w) {
  using V = Vector<R>;
  for (int64_t g = 0; g < w.groups; g += kLanes<V>) store(w.maxima + g, V{} - kInf);
  for (int64_t i = 0; i + w.groups <= n; i += w.groups)
    for (int64_t g = 0; g < w.groups; g += kLanes<V>) store(w.maxima + g, max(load(x + i + g), load(w.maxima + g)));
  keys_of(w.maxima, w.groups, w.keys);
  return number_of<R>(cut(w.keys, w.groups, w.k, w.bins).key);
}

// What is found on the way through a row, by index.
template <class R>
struct Found {
  const Work<R>& w;
  R bound;
  int64_t count = 0;
  bool risen = false;  // k numbers reach the bound: only what is above it can be one of the k
  bool done = false;   // they are all NaN

  void add(R x, int64_t i) {
    w.keys[count] = key_of(x), w.indices[count] = i;
    if (++count == w.room) rise();
  }
  void rise() {
    const Cut<Key<R>> at = cut(w.keys, count, w.k, w.bins);
    count = keep(at, w.keys, w.indices, count);
    bound = number_of<R>(at.key);
    risen = true, done = at.key > key_of(R(kInf));
  }
};

// From i on, until the bound first rises where it has not. How far that is.
template <bool kAbove, class R, class T>
int64_t find(const T* x, int64_t i, int64_t n, Found<R>& found) {
  constexpr int64_t lanes = kLanes<Vector<R>>;
  for (; i + 4 * lanes <= n && found.risen == kAbove && !found.done; i += 4 * lanes) {
    uint64_t bits = 0;
    for (int v = 0; v < 4; ++v) bits |= passing<kAbove>(load(x + i + v * lanes), found.bound) << v * lanes;
    for (; bits; bits &= bits - 1) {
      const int64_t at = i + __builtin_ctzll(bits);
      found.add(number(x + at), at);
    }
  }
  return i;
}

// keys and indices [k] of the row's k largest, by index.
template <class R, class T>
void select(const T* x, int64_t n, const Work<R>& w) {
  if (!w.groups) {
    keys_of(x, n, w.keys);
    for (int64_t i = 0; i < n; ++i) w.indices[i] = i;
    if (w.k < n) keep(cut(w.keys, n, w.k, w.bins), w.keys, w.indices, n);
    return;
  }
  const int64_t sample = 4 * w.groups > kSample ? 4 * w.groups : kSample;
  Found<R> found{w, first_bound(x, n < sample ? n : sample, w)};
  int64_t i = find<false>(x, 0, n, found);
  i = find<true>(x, i, n, found);
  for (; i < n && !found.done; ++i) {
    const R one = number(x + i);
    if (!(one <= found.bound)) found.add(one, i);  // k numbers before it reach the bound
  }
  if (found.count > w.k) found.rise();
}

// before [kCounted], how many of n keys come before each: the larger ones, and equal ones in front of it.
void count_before(const uint32_t* keys, int64_t n, int32_t* before) {
  int32_t ordered[kCounted + kLanes<I32>];
  for (int64_t i = 0; i < n; ++i) ordered[i] = int32_t(keys[i] ^ 0x80000000);
  I32 at;
  for (int i = 0; i < kLanes<I32>; ++i) at[i] = i;
  for (int64_t i = 0; i < n; i += kLanes<I32>, at += kLanes<I32>) {
    I32 mine, count{};
    memcpy(&mine, ordered + i, sizeof mine);
    for (int32_t j = 0; j < n; ++j) count -= (ordered[j] > mine) | ((ordered[j] == mine) & (j < at));
    memcpy(before + i, &count, sizeof count);
  }
}
void count_before(const uint64_t* keys, int64_t n, int32_t* before) {
  for (int64_t i = 0; i < n; ++i) {
    before[i] = 0;
    for (int64_t j = 0; j < n; ++j) before[i] += keys[j] > keys[i] || (keys[j] == keys[i] && j < i);
  }
}

template <class T, Dtype kDtype>
void topk(const TopK& op, int64_t begin, int64_t end, void* scratch) {
  using R = Real<T>;
  const int64_t n = op.x.classes, k = op.k;
  const Work<R> w(scratch, n, k);
  for (int64_t r = begin; r < end; ++r) {
    const T* const x = row_of<T>(op.x, r);
    const int64_t* from = w.indices;
    const bool counted = op.sorted && (n <= kCounted || k <= kCounted);
    if (counted) {
      int32_t before[kCounted + kLanes<I32>];
      const bool whole = n <= kCounted;
      whole ? keys_of(x, n, w.keys) : select(x, n, w);
      count_before(w.keys, whole ? n : k, before);
      for (int64_t i = 0; i < (whole ? n : k); ++i)
        if (before[i] < k) w.other_indices[before[i]] = whole ? i : w.indices[i];
      from = w.other_indices;
    } else {
      select(x, n, w);
      if (op.sorted) sort_descending(w.keys, w.indices, w.other_keys, w.other_indices, k, w.bins);
    }
    T* const values = static_cast<T*>(op.values) + r * k;
    int64_t* const indices = op.indices + r * k;
    for (int64_t i = 0; i < k; ++i) values[i] = x[from[i]], indices[i] = from[i];
  }
}

const RowKernel<TopK> topk_kernels[kDtypes] = {topk<float, f32>, topk<double, f64>, topk<Float16, f16>,
                                               topk<BFloat16, bf16>};

}  // namespace

const SparseMlpKernels sparse_mlp = {topk_kernels, scratch_bytes};

}  // namespace tamis::TAMIS_ISA
