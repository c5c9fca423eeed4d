// Who is drawn, example by example, and the weights of races. Compiled once per ISA, without contraction (exact.h).
// Floor: 80 operations of Philox a vector of half as many examples as floats (60 where three-way logic is one), some
// 40 more of the race's logarithm a whole vector, 4 or 8 bytes read; a race writes 4. Philox bounds both.
#include "draw.h"
#include "exact.h"

namespace tamis::TAMIS_ISA {
namespace {

typedef float HalfF32 __attribute__((vector_size(kBytes / 2)));
constexpr int64_t kBlock = 512;  // examples whose words stay in L1
constexpr int kHalf = kLanes<U64>;

inline F64 load_wide(const double* p) { return load(p); }
inline F64 load_wide(const float* p) {
  HalfF32 v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, F64);
}

inline bool all(I64 mask) {
  int64_t m = -1;
  for (int i = 0; i < kHalf; ++i) m &= mask[i];
  return m;
}

// Word 0 < floor(p 2^32), both exact in double: word 0 + 1 <= p 2^32.
template <class T>
int64_t poisson(const Population& of, int64_t begin, int64_t end, uint64_t* mask) {
  const T* const probs = static_cast<const T*>(of.probs);
  int64_t count = 0;
  I64 valid = I64{} - 1;
  for (int64_t i = begin; i < end; i += 64) {
    const int64_t n = upto(end - i, 64);
    T tail[64] = {};
    if (n < 64) memcpy(tail, probs + i, n * sizeof(T));  // equivalent: check: of a whole word the copy is not read
    const T* const p = n < 64 ? tail : probs + i;
    uint64_t drawn = 0;
    for (int64_t k = 0; k < n; k += kGroup * kHalf) {
      Words<U64> w[kGroup];
      group_words(of.ids, i + k, n - k, of.seed, of.offset, w);
      for (int g = 0; g < kGroup; ++g) {
        const F64 next = (F64)((w[g].word[0] & 0xffffffff) | 0x4330000000000000) - (0x1p52 - 1);
        const F64 x = load_wide(p + k + g * kHalf);
        drawn |= bits_of((I64)(next <= x * 0x1p32)) << (k + g * kHalf);
        valid &= (I64)(x >= 0) & (I64)(x <= 1);
      }
    }
    mask[i / 64] = drawn;
    count += __builtin_popcountll(drawn);
  }
  return all(valid) ? count : -1;
}

template <class T>
void take_masked(const void* probs, const uint64_t* mask, int64_t begin, int64_t end, float cap, int64_t* indices,
                 float* weights) {
  const T* const p = static_cast<const T*>(probs);
  for (int64_t i = begin; i < end; i += 64)
    for (uint64_t bits = mask[i / 64]; bits; bits &= bits - 1) {
      const int64_t at = i + __builtin_ctzll(bits);
      const float weight = (float)(1 / p[at]);
      *indices++ = at, *weights++ = weight < cap ? weight : cap;
    }
}

inline F32 quotient(F32 e, const float* p) { return e / load(p); }
inline F32 quotient(F32 e, const double* p) {
  HalfF32 part[2];
  memcpy(part, &e, sizeof e);
  for (int h = 0; h < 2; ++h)
    part[h] = __builtin_convertvector(__builtin_convertvector(part[h], F64) / load(p + h * kHalf), HalfF32);
  memcpy(&e, part, sizeof e);
  return e;
}
inline I32 positive(const float* p) { return load(p) > 0; }
inline I32 positive(const double* p) {
  I32 mask;
  for (int i = 0; i < kLanes<I32>; ++i) mask[i] = -(p[i] > 0);
  return mask;
}
inline I32 finite(const float* p) {
  const F32 x = load(p);
  return (x >= 0) & (x < kInf);
}
inline I32 finite(const double* p) {
  I32 mask;
  for (int i = 0; i < kLanes<I32>; ++i) mask[i] = -(p[i] >= 0 && p[i] < (double)kInf);
  return mask;
}

template <class T>
bool race(const Population& of, int64_t begin, int64_t end, uint32_t* keys, uint32_t* histogram) {
  uint32_t word[2][kBlock];
  I32 valid = I32{} - 1;
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t n = upto(end - i, kBlock);
    for (int64_t k = 0; k < n; k += kGroup * kHalf) {
      Words<U64> w[kGroup];
      group_words(of.ids, i + k, n - k, of.seed, of.offset, w);
      for (int g = 0; g < kGroup; ++g)
        for (int j = 0; j < 2; ++j) store_words(word[j] + k + g * kHalf, w[g].word[j]);
    }
    for (int64_t k = 0; k < n; k += TAMIS_LANES) {
      const int64_t left = n - k;
      T tail[TAMIS_LANES] = {};
      const T* p = static_cast<const T*>(of.probs) + i + k;
      if (left < TAMIS_LANES) memcpy(tail, p, left * sizeof(T)), p = tail;
      U32 w[2];
      memcpy(w, word[0] + k, sizeof(U32)), memcpy(w + 1, word[1] + k, sizeof(U32));
      const U32 key = positive(p) ? (U32)quotient(exponential(w[0], w[1]), p) : U32{} + kNever;
      valid &= finite(p);
      memcpy(keys + i + k, &key, upto(left, TAMIS_LANES) * sizeof(uint32_t));
    }
    for (int64_t k = 0; k < n; ++k) ++histogram[keys[i + k] >> kBinShift];
  }
  for (int i = 0; i < TAMIS_LANES; ++i)
    if (!valid[i]) return false;
  return true;
}

inline float exposure(float p, float tau) { return p * tau; }
inline float exposure(double p, float tau) { return (float)(p * tau); }

// Which of n <= 64 keys lie within low..high.
inline uint64_t within(const uint32_t* keys, int64_t n, uint32_t low, uint32_t high) {
  uint64_t bits = 0;
  if (n < 64) {  // equivalent: check: right for 64, only slower
    for (int64_t i = 0; i < n; ++i) bits |= (uint64_t)(keys[i] >= low && keys[i] <= high) << i;
    return bits;
  }
  for (int k = 0; k < 64; k += TAMIS_LANES) {
    I32 key;
    memcpy(&key, keys + k, sizeof key);
    bits |= bits_of((key >= (int32_t)low) & (key <= (int32_t)high)) << k;
  }
  return bits;
}

// Calls visit(position) for keys within low..high; a loop that three kernels share.
template <class Visit>
inline void each_within(const uint32_t* keys, int64_t begin, int64_t end, uint32_t low, uint32_t high, Visit& visit) {
  for (int64_t i = begin; i < end; i += 64)
    for (uint64_t bits = within(keys + i, upto(end - i, 64), low, high); bits; bits &= bits - 1)
      visit(i + __builtin_ctzll(bits));
}

struct Copy {
  const uint32_t* keys;
  uint32_t* out;
  void operator()(int64_t i) { *out++ = keys[i]; }
};
struct List {
  int64_t* out;
  void operator()(int64_t i) { *out++ = i; }
};

int64_t gather(const uint32_t* keys, int64_t begin, int64_t end, uint32_t low, uint32_t high, uint32_t* out) {
  Copy copy{keys, out};
  each_within(keys, begin, end, low, high, copy);
  return copy.out - out;
}

int64_t find(const uint32_t* keys, int64_t begin, int64_t end, uint32_t low, uint32_t high, int64_t* out) {
  List list{out};
  each_within(keys, begin, end, low, high, list);
  return list.out - out;
}

int64_t count(const uint32_t* keys, int64_t begin, int64_t end, uint32_t low, uint32_t high) {
  int64_t found = 0;
  for (int64_t i = begin; i < end; i += 64)
    found += __builtin_popcountll(within(keys + i, upto(end - i, 64), low, high));
  return found;
}

uint32_t least_above(const uint32_t* keys, int64_t begin, int64_t end, uint32_t key) {
  I32 least = I32{} + (int32_t)kNever, k;  // 31 bits: signed comparisons serve
  int64_t i = begin;
  for (; i + TAMIS_LANES <= end; i += TAMIS_LANES) {  // equivalent: loop, bound: the rest would find it too
    memcpy(&k, keys + i, sizeof k);
    least = (k > (int32_t)key) & (k < least) ? k : least;
  }
  uint32_t found = (uint32_t)-reduce_max(-least);
  for (; i < end; ++i) found = keys[i] > key && keys[i] < found ? keys[i] : found;
  return found;
}

// Two histograms: of the next 11 bits, then of the last 9.
Ranked rank(const uint32_t* keys, int64_t count, int64_t rank) {
  int64_t histogram[kBins] = {}, below = 0;
  for (int64_t i = 0; i < count; ++i) ++histogram[keys[i] >> 9 & (kBins - 1)];
  uint32_t middle = 0;
  while (below + histogram[middle] <= rank) below += histogram[middle++];
  int64_t last[512] = {};
  for (int64_t i = 0; i < count; ++i)
    if ((keys[i] >> 9 & (kBins - 1)) == middle) ++last[keys[i] & 511];
  uint32_t low = 0;
  while (below + last[low] <= rank) below += last[low++];
  return {keys[0] >> kBinShift << kBinShift | middle << 9 | low, below, last[low]};
}

template <class T>
struct Take {
  const T* probs;
  const uint32_t* keys;
  Weighing how;
  int64_t* indices;
  float *weights, *out_keys;
  void operator()(int64_t i) {
    *indices++ = i;
    memcpy(out_keys++, keys + i, sizeof(float));
    *weights++ = how.inclusion ? exposure(probs[i], how.tau) : (float)(1 / probs[i]);
  }
};

template <class T>
void take_keyed(const void* probs, const uint32_t* keys, int64_t begin, int64_t end, uint32_t threshold,
                const Weighing& how, int64_t* indices, float* weights, float* out_keys) {
  Take<T> take{static_cast<const T*>(probs), keys, how, indices, weights, out_keys};
  each_within(keys, begin, end, 0, threshold, take);
  const int64_t n = take.indices - indices;
  for (int64_t i = 0; i < n; i += TAMIS_LANES) {
    const int64_t left = n - i;
    F32 w = left < TAMIS_LANES ? load_tail(weights + i, left, 1) : load(weights + i);  // equivalent: fill: any fill
    if (how.inclusion) w = 1.0f / one_minus_exp(w);
    w = w < how.cap ? w : F32{} + how.cap;
    left < TAMIS_LANES ? store_tail(weights + i, left, w) : store(weights + i, w);
  }
}

void words(const int64_t* ids, int64_t seed, int64_t offset, int64_t begin, int64_t end, int64_t* out) {
  for (int64_t i = begin; i < end; i += kHalf) {  // equivalent: bound: of nothing, nothing is put out
    const Words<U64> w = philox(ids_at(ids, i, end - i), seed, offset);
    for (int64_t k = 0; k < kHalf && i + k < end; ++k)
      for (int j = 0; j < 4; ++j) out[(i + k) * 4 + j] = w.word[j][k] & 0xffffffff;
  }
}

template <class T>
double largest(const void* probs, int64_t begin, int64_t end) {
  using V = Vector<T>;
  const T* const p = static_cast<const T*>(probs);
  V most{}, invalid{};  // p * 0 is 0 of finite numbers, else NaN; a negative number shows in the minimum
  V least{};
  int64_t i = begin;
  for (; i + kLanes<V> <= end; i += kLanes<V>) {
    const V x = load(p + i);
    most = max(x, most), least = min(x, least), invalid += x * (T)0;
  }
  if (i < end) {
    const V x = load_tail(p + i, end - i, 0);
    most = max(x, most), least = min(x, least), invalid += x * (T)0;
  }
  const bool valid = reduce_add(invalid) == 0 && -reduce_max(-least) >= 0;
  return valid ? (double)reduce_max(most) : __builtin_nan("");
}

// p is below 2^62 / n of the scale, so the product is an integer's; only what is below 1 could have been rounded.
template <class T>
inline int64_t mass_of(T p, Masses m) {
  return (int64_t)((double)p * m.first * m.second);
}

template <class T>
int64_t mass(const void* probs, const int64_t* order, int64_t begin, int64_t end, Masses masses) {
  const T* const p = static_cast<const T*>(probs);
  int64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += mass_of(p[order ? order[i] : i], masses);
  return sum;
}

// floor(random 64 bits * total / 2^64)
inline int64_t uniform(uint64_t id, int64_t seed, int64_t offset, int64_t total) {
  const Words<uint64_t> w = philox(id, seed, offset);
  const uint64_t random = (w.word[0] & 0xffffffff) | w.word[1] << 32;
  return (int64_t)((unsigned __int128)random * (uint64_t)total >> 64);
}

// floor((u + j total) / draws) of one uniform u, that of the id -1.
void systematic(int64_t seed, int64_t offset, int64_t total, int64_t draws, int64_t begin, int64_t end,
                int64_t* points) {
  const int64_t u = uniform(~(uint64_t)0, seed, offset, total);
  for (int64_t j = begin; j < end; ++j)
    points[j] = u / draws + j * (total / draws) + (u % draws + j * (total % draws)) / draws;
}

void independent(int64_t seed, int64_t offset, int64_t total, int64_t begin, int64_t end, int64_t* points) {
  for (int64_t j = begin; j < end; ++j) points[j] = uniform(j, seed, offset, total);
}

template <class T>
int64_t place(const void* probs, const int64_t* order, int64_t begin, int64_t end, Masses masses, int64_t before,
              int64_t* points, int64_t count) {
  const T* const p = static_cast<const T*>(probs);
  int64_t j = 0;
  for (int64_t i = begin; i < end && j < count; ++i) {  // equivalent: bound: of `count`, it only ends this sooner
    const int64_t at = order ? order[i] : i;
    before += mass_of(p[at], masses);
    while (j < count && points[j] < before) points[j++] = at;
  }
  return j;
}

template <class T>
void weigh(const void* probs, Masses masses, int64_t total, int64_t draws, float cap, const int64_t* indices,
           int64_t begin, int64_t end, float* weights) {
  const T* const p = static_cast<const T*>(probs);
  for (int64_t j = begin; j < end; ++j) {
    const float weight = (float)((double)total / ((double)draws * (double)mass_of(p[indices[j]], masses)));
    weights[j] = weight < cap ? weight : cap;
  }
}

}  // namespace

extern const DrawKernels draw_kernels;
const DrawKernels draw_kernels = {
    {poisson<float>, poisson<double>},
    {take_masked<float>, take_masked<double>},
    {race<float>, race<double>},
    gather,
    count,
    find,
    least_above,
    rank,
    {take_keyed<float>, take_keyed<double>},
    {largest<float>, largest<double>},
    {mass<float>, mass<double>},
    systematic,
    independent,
    {place<float>, place<double>},
    {weigh<float>, weigh<double>},
    words,
};

}  // namespace tamis::TAMIS_ISA
