// The k largest of a row, exactly.
// A row that is long for its k, 16 times and more, is read twice, the second time from L2: first for a bound that at
// least k numbers reach, and few more, from the maxima of about 4k groups; then for those that reach it. When more are
// found than there is room for, the bound rises to the k-th largest so far, so no order of the numbers makes it slow. A
// short row is ranked whole.
#pragma once
#include "../common/select.h"

namespace tamis::TAMIS_ISA {
namespace {

constexpr int64_t kSample = 1 << 15;  // numbers of a long row that the first bound is made from
constexpr int64_t kSlack = 256;
constexpr int64_t kBlock = 4;      // vectors
constexpr int64_t kStreams = 8;    // chunks
constexpr int64_t kSegment = 128;  // blocks

template <class R>
struct Sizes {
  int64_t vectors = 0, chunk = 0;  // of a row's beginning, by chunks: each lane of a chunk is a group
  int64_t groups = 0;              // 0: the row is ranked whole
  int64_t room;                    // for what may be among the k largest
  int64_t apart() const { return vectors / chunk / kStreams * chunk; }  // from stream to stream

  Sizes(int64_t n, int64_t k) : room(n) {
    constexpr int64_t lanes = kLanes<Vector<R>>;
    const int64_t wanted = (4 * k + lanes - 1) / lanes, parts = n / (4 * lanes);
    if (parts < 4 || parts < wanted) return;
    const int64_t chunks = wanted < kStreams ? upto(parts, kStreams) : wanted, least = 4 * lanes * chunks;
    const int64_t sample = n < kSample ? n : kSample;
    vectors = (sample > least ? sample : least) / lanes, chunk = vectors / chunks;
    groups = (vectors + chunk - 1) / chunk * lanes;
    room = groups + kSlack;
  }
};

// A thread's memory, for one row after the other. Every number takes 8 bytes, whatever its type.
template <class R>
struct Work : Sizes<R> {
  int64_t k;
  int64_t* bins;  // [kBins]
  R* maxima;      // [groups]
  Key<R>* keys;
  int64_t* indices;  // [room], by index
  Key<R>* other_keys;
  int64_t* other_indices;  // [enough]

  Work(void* scratch, int64_t n, int64_t k) : Sizes<R>(n, k), k(k) {
    int64_t* at = static_cast<int64_t*>(scratch);
    const auto take = [&](int64_t count) {
      int64_t* const taken = at;
      at += count;
      return taken;
    };
    bins = take(kBins), maxima = reinterpret_cast<R*>(take(this->groups));
    indices = take(this->room), keys = reinterpret_cast<Key<R>*>(take(this->room + kBytes / 2));  // whole vectors
    other_indices = take(enough(k)), other_keys = reinterpret_cast<Key<R>*>(take(enough(k)));
  }
  static int64_t enough(int64_t k) { return k + k / 2 + kCounted<R>; }  // to be sorted
  static int64_t bytes(int64_t n, int64_t k) {
    const Sizes<R> s(n, k);
    return 8 * (kBins + s.groups + 2 * s.room + kBytes / 2 + 2 * enough(k));
  }
};
// The maxima of kStreams chunks that lie `apart` vectors from each other, read side by side: memory gives more so.
template <class R, class T>
void find_maxima(const T* x, int64_t chunk, int64_t apart, R* out) {
  using V = Vector<R>;
  constexpr int64_t lanes = kLanes<V>;
  V top[kStreams];
  for (V& t : top) t = V{} - kInf;
  for (int64_t j = 0; j < chunk; ++j)
#pragma GCC unroll 8  // else the maxima go to memory and back
    for (int s = 0; s < kStreams; ++s) top[s] = max(load(x + (s * apart + j) * lanes), top[s]);
  for (int s = 0; s < kStreams; ++s) store(out + s * (apart / chunk) * lanes, top[s]);
}

// The maximum of each lane of each chunk. A NaN, which is larger, may be left out.
template <class R, class T>
void find_maxima(const T* x, const Work<R>& w) {
  using V = Vector<R>;
  constexpr int64_t lanes = kLanes<V>;
  R* out = w.maxima;
  const int64_t apart = w.apart(), each = apart / w.chunk;
  for (int64_t c = 0; c < each; ++c, out += lanes) find_maxima(x + c * w.chunk * lanes, w.chunk, apart, out);
  out += (kStreams - 1) * each * lanes;
  for (int64_t i = kStreams * apart; i < w.vectors; i += w.chunk, out += lanes) {
    const int64_t end = i + upto(w.vectors - i, w.chunk);
    V top[kBlock];
    for (V& t : top) t = V{} - kInf;
    int64_t j = i;
    for (; j + kBlock <= end; j += kBlock)
      for (int v = 0; v < kBlock; ++v) top[v] = max(load(x + (j + v) * lanes), top[v]);
    TAMIS_PROMISED(end - j < kBlock);
    for (; j < end; ++j) top[0] = max(load(x + j * lanes), top[0]);
    store(out, max(max(top[0], top[1]), max(top[2], top[3])));
  }
}

// A bit a lane: x > bound, or x >= bound; NaN passes, and with a NaN for a bound all do.
template <bool kAbove, class V, class R>
uint64_t passing(V x, R bound) {
#if defined(__AVX512F__) && TAMIS_LANES == 16
  if constexpr (sizeof(R) == 4) return _mm512_cmp_ps_mask(x, _mm512_set1_ps(bound), kAbove ? _CMP_NLE_UQ : _CMP_NLT_UQ);
#endif
  if constexpr (kAbove) return bits_of(~(x <= bound));
  return bits_of(~(x < bound));
}
template <bool kAbove, class T, class R>
uint64_t passing_block(const T* x, R bound) {
  constexpr int64_t lanes = kLanes<Vector<R>>;
  uint64_t bits = 0;
  for (int v = 0; v < kBlock; ++v) bits |= passing<kAbove>(load(x + v * lanes), bound) << v * lanes;
  return bits;
}
template <bool kAbove, class T, class R>
bool some_pass(const T* x, R bound) {
  constexpr int64_t lanes = kLanes<Vector<R>>;
#if defined(__AVX512F__) && TAMIS_LANES == 16
  uint64_t bits = 0;
  for (int v = 0; v < kBlock; ++v) bits |= passing<kAbove>(load(x + v * lanes), bound);
  return bits;
#else
  auto below = kAbove ? load(x) <= bound : load(x) < bound;
  for (int v = 1; v < kBlock; ++v) below &= kAbove ? load(x + v * lanes) <= bound : load(x + v * lanes) < bound;
  return bits_of(~below);
#endif
}

// A number that at least k of some reach, and no more than are needed to be near the k-th largest. x [n], whole
// vectors.
template <class R>
R reached(const R* x, int64_t n, int64_t k) {
  using V = Vector<R>;
  V low = load(x), high = low;
  for (int64_t i = kLanes<V>; i < n; i += kLanes<V>)  // equivalent: bound: whole vectors
    low = min(load(x + i), low), high = max(load(x + i), high);
  if (k == 1) return reduce_max(high);
  Key<R> least = key_of(-reduce_max(-low)), most = key_of(reduce_max(high));
  while (least < most) {
    const Key<R> middle = least + (most - least + 1) / 2;
    const R bound = number_of<R>(middle);
    int64_t reach = 0;
    for (int64_t i = 0; i < n; i += kLanes<V>)  // equivalent: bound: whole vectors
      reach += __builtin_popcountll(passing<false>(load(x + i), bound));
    if (reach < k)
      most = middle - 1;
    else if (least = middle; reach <= k + k / 16)  // equivalent: check, bound: it may be nearer
      break;
  }
  return number_of<R>(least);
}

// What is found on the way through a row, by index.
template <class T, class R = Real<T>>
struct Found {
  const T* x;
  const Work<R>& w;
  R bound;
  const T* next;  // row, or null
  int64_t count = 0, keyed = 0;
  bool risen = false;  // k numbers reach the bound: only what is above it can be one of the k
  bool done = false;   // they are all NaN

  void add(int64_t i) {
    w.indices[count] = i;
    if (++count == w.room) rise();
  }
  void key() {
    for (; keyed < count; ++keyed) w.keys[keyed] = key_of(number(x + w.indices[keyed]));
  }
  void rise() {
    key();
    const Cut<Key<R>> at = cut(w.keys, count, w.k, w.bins);
    keyed = count = keep(at, w.keys, w.indices, count);
    bound = number_of<R>(at.key);
    risen = true, done = at.key > key_of(R(kInf));
  }
};

// From i on, until the bound first rises where it has not. How far that is.
template <bool kAbove, class T>
int64_t find(int64_t i, int64_t n, Found<T>& found) {
  constexpr int64_t block = kBlock * kLanes<Vector<Real<T>>>;
  const int64_t apart = found.w.apart() * kLanes<Vector<Real<T>>>;
  while (i + block <= n && found.risen == kAbove && !found.done) {  // equivalent: bound: what follows can do all
    const int64_t blocks = upto((n - i) / block, kSegment);
    int32_t hits[kSegment];  // first all of them, without a branch
    int64_t count = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      hits[count] = b;
      count += some_pass<kAbove>(found.x + i + b * block, found.bound);
      if (found.next) {  // what is read first of it: a line for 64 numbers here, as much as memory gives meanwhile
        const int64_t line = (i + b * block) / 64;
        const T* const stream = found.next + line % kStreams * apart;
        __builtin_prefetch(reinterpret_cast<const char*>(stream) + line / kStreams * 64);
      }
    }
    for (int64_t h = 0; h < count && !found.done; ++h) {
      const int64_t first = i + hits[h] * block;
      uint64_t bits = found.risen ? passing_block<true>(found.x + first, found.bound)
                                  : passing_block<false>(found.x + first, found.bound);
      for (; bits; bits &= bits - 1) found.add(first + __builtin_ctzll(bits));
    }
    i += blocks * block;
  }
  return i;
}

// keys and indices of what holds the row's k largest, by index: at most `room`. How many.
template <class R, class T>
int64_t candidates(const T* x, int64_t n, const Work<R>& w, const T* next) {
  if (!w.groups) {
    keys_of(x, n, w.keys);
    for (int64_t i = 0; i < n; ++i) w.indices[i] = i;
    return n;
  }
  find_maxima(x, w);
  Found<T> found{x, w, reached(w.maxima, w.groups, w.k), n > kSample ? nullptr : next};
  int64_t i = find<false>(0, n, found);
  i = find<true>(i, n, found);
  TAMIS_PROMISED(found.done || n - i < kBlock * kLanes<Vector<R>>);
  for (; i < n && !found.done; ++i) {
    const R one = number(x + i);
    if (found.risen ? !(one <= found.bound) : !(one < found.bound)) found.add(i);
  }
  found.key();
  return found.count;
}

// Indices of the k largest: descending, of equals the lowest first; or as they are in the row. In w until the next row,
// which is fetched meanwhile where it is known.
template <class R, class T>
const int64_t* choose(const T* x, int64_t n, const Work<R>& w, bool sorted, const T* next = nullptr) {
  int64_t count = candidates(x, n, w, next);
  if (count <= kCounted<R>) {
    Count<R> before[kCounted<R>];
    count_before(w.keys, count, before);
    for (int64_t i = 0, kept = 0; i < count; ++i) {
      w.other_indices[sorted ? before[i] : kept] = w.indices[i];
      kept += before[i] < w.k;
    }
    return w.other_indices;
  }
  if (count > w.k + w.k / 2 || (!sorted && count > w.k))  // equivalent: bound: how many more are sorted is speed
    count = keep(cut(w.keys, count, w.k, w.bins), w.keys, w.indices, count);
  if (sorted) sort_descending(w.keys, w.indices, w.other_keys, w.other_indices, count, w.bins);
  return w.indices;
}

}  // namespace
}  // namespace tamis::TAMIS_ISA
