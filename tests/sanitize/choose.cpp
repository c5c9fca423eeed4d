// Drives the parts of the selection without torch, as topk.cpp does the whole: what each promises to the next, where
// every buffer is as long as its numbers. A part that promises too little would only be slow, which no result shows.
#include "../../kernels/sparse_mlp/choose.h"
#include <numeric>
#include "driver.h"

namespace {

namespace isa = tamis::TAMIS_ISA;
using isa::Key;
template <class R>
constexpr int64_t kLanesOf = isa::kLanes<isa::Vector<R>>;

void sure(bool right, const char* what, int64_t n, int64_t k, int kind = 0) {
  if (right) return;
  std::printf("%s: n %lld, k %lld, kind %d\n", what, (long long)n, (long long)k, kind);
  failed();
}

// Whole below 16 k numbers; else sampled, in memory that does not grow with the row.
template <class R>
void check_sizes(int64_t k) {
  sure(isa::Sizes<R>(16 * k - 1, k).groups == 0, "a short row", 16 * k - 1, k);
  sure(isa::Sizes<R>(16 * k, k).groups >= 4 * k, "a long row", 16 * k, k);
  sure(isa::Work<R>::bytes(1000000, k) == isa::Work<R>::bytes(isa::kSample, k), "memory", 1000000, k);
}

// Each of a row's first kSample numbers is in one group, the others in none.
template <class R>
void check_maxima(int64_t n, int64_t k, const std::vector<int64_t>& places) {
  Array<char> scratch(isa::Work<R>::bytes(n, k));
  isa::Work<R> w(scratch.data(), n, k);
  Array<R> maxima(w.groups), x(n, R(0));
  w.maxima = maxima.data();
  const int64_t sampled = std::min(n, isa::kSample) / kLanesOf<R> * kLanesOf<R>;
  for (int64_t place : places) {
    std::fill(maxima.begin(), maxima.end(), R(NAN));
    x[place] = 1;
    isa::find_maxima(x.data(), w);
    x[place] = 0;
    const int64_t ones = std::count(maxima.begin(), maxima.end(), R(1));
    sure(ones == (place < sampled), "a number's group", n, place);
    sure(ones + std::count(maxima.begin(), maxima.end(), R(0)) == w.groups, "groups", n, place);
  }
}

enum Kind { kNormal, kAdjacent, kTied, kEmpty, kKinds };

template <class R>
R some(Kind kind, std::mt19937& random) {
  std::normal_distribution<double> normal;
  const R x = R(normal(random));
  const R adjacent = isa::number_of<R>(isa::key_of(R(1)) + random() % 40);
  return kind == kNormal ? x : kind == kAdjacent ? adjacent : kind == kTied ? R(random() % 4) - 2 : R(-INFINITY);
}

// A bound of some numbers, whole vectors: k reach it, and it is the k-th largest or few more do.
template <class R>
void check_reached(int64_t n, int64_t k, Kind kind, std::mt19937& random) {
  Array<R> x(n);
  for (R& v : x) v = some<R>(kind, random);
  if (kind == kEmpty) x[random() % n] = 1;
  const R bound = isa::reached(x.data(), n, k);
  const int64_t reach = std::count_if(x.begin(), x.end(), [&](R v) { return v >= bound; });
  const int64_t above = std::count_if(x.begin(), x.end(), [&](R v) { return v > bound; });
  sure(reach >= k, "too few reach the bound", n, k, kind);
  sure(above < k || reach <= k + k / 16, "too many reach the bound", n, k, kind);
}

enum Keys { kAny, kFew, kOneByte, kLastGreater, kLastLess, kEqual, kKeys };

template <class K>
K some_key(Keys kind, bool last, std::mt19937& random) {
  const K any = K(uint64_t(random()) << 32 | random());
  switch (kind) {
    case kAny:
      return any | 1;
    case kFew:
      return 5 + random() % 6;
    case kOneByte:
      return K(7) | (any & K(255) << 8);
    default:
      return kind == kEqual || !last ? K(1000) : kind == kLastGreater ? ~K(0) : K(1);
  }
}

// The k largest of some keys, and their order: against a stable sort.
template <class R>
void check_keys(int64_t n, Keys kind, std::mt19937& random) {
  using K = Key<R>;
  using C = isa::Count<R>;
  Array<K> given(n);
  for (int64_t i = 0; i < n; ++i) given[i] = some_key<K>(kind, i == n - 1, random);
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return given[i] > given[j]; });
  Array<int64_t> bins(isa::kBins);
  const auto indices_of = [&] {
    Array<int64_t> indices(n);
    std::iota(indices.begin(), indices.end(), 0);
    return indices;
  };
  for (int64_t k : {int64_t(1), int64_t(2), n / 2, n - 1}) {
    if (k < 1 || k >= n) continue;
    Array<K> keys = given;
    Array<int64_t> indices = indices_of();
    const int64_t kept = isa::keep(isa::cut(keys.data(), n, k, bins.data()), keys.data(), indices.data(), n);
    std::vector<int64_t> want(order.begin(), order.begin() + k);
    std::sort(want.begin(), want.end());
    bool right = kept == k && std::equal(want.begin(), want.end(), indices.begin());
    for (int64_t i = 0; right && i < k; ++i) right = keys[i] == given[want[i]];
    sure(right, "a cut", n, k, kind);
  }
  Array<K> keys = given, other_keys(n);
  Array<int64_t> indices = indices_of(), other_indices(n);
  isa::sort_descending(keys.data(), indices.data(), other_keys.data(), other_indices.data(), n, bins.data());
  bool right = std::equal(order.begin(), order.end(), indices.begin());
  for (int64_t i = 0; right && i < n; ++i) right = keys[i] == given[order[i]];
  sure(right, "a sort", n, n, kind);
  if (n > isa::kCounted<R>) return;
  const int64_t four = 4 * isa::kLanes<typename isa::CountOf<R>::V>;  // vectors
  Array<K> padded((n + four - 1) / four * four);
  Array<C> before(padded.size());
  std::copy(given.begin(), given.end(), padded.begin());
  isa::count_before(padded.data(), n, before.data());
  for (int64_t i = 0; right && i < n; ++i) right = before[order[i]] == i;
  sure(right, "a rank", n, n, kind);
}

template <class R>
void check_all() {
  std::mt19937 random(1);
  for (int64_t k : {16, 64, 1024}) check_sizes<R>(k);
  int64_t shortest = 1;
  while (!isa::Sizes<R>(shortest, 7).groups) ++shortest;  // those are ranked whole
  for (int64_t n : {shortest, shortest + 16, shortest + 72, shortest + 171}) {
    std::vector<int64_t> all(n);
    std::iota(all.begin(), all.end(), 0);
    check_maxima<R>(n, 7, all);
  }
  const int64_t end = isa::kSample;
  check_maxima<R>(end - 1, 7, {0, end - 100, end - 2});
  check_maxima<R>(end + 100, 7, {0, 5000, end - 1, end, end + 99});
  for (int64_t n : {16, 64, 272})
    for (int64_t k : {1, 2, 15, 16, 17, 64, 272})
      for (int kind = 0; kind < kKinds; ++kind)
        for (int i = 0; i < 20 && k <= n; ++i) check_reached<R>(n, k, Kind(kind), random);
  for (int64_t n : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 300})
    for (int kind = 0; kind < kKeys; ++kind)
      for (int i = 0; i < 5; ++i) check_keys<R>(n, Keys(kind), random);
}

}  // namespace

int main() {
  check_all<float>();
  check_all<double>();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
