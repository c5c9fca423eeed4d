// Drives the parts of a search that keep the best of what is found, where every buffer is as long as its candidates.
#include "../../kernels/ann/collect.h"
#include <numeric>
#include "driver.h"

namespace {

namespace isa = tamis::TAMIS_ISA;
using isa::Candidate;

void sure(bool right, const char* what, int64_t n, int64_t count) {
  if (right) return;
  std::printf("%s: n %lld, count %lld\n", what, (long long)n, (long long)count);
  failed();
}

// Of so many scores; positions in any order.
Array<Candidate> some(int64_t n, int scores, std::mt19937& random) {
  std::vector<uint32_t> positions(n);
  std::iota(positions.begin(), positions.end(), 0);
  std::shuffle(positions.begin(), positions.end(), random);
  Array<Candidate> x(n);
  for (int64_t i = 0; i < n; ++i) x[i] = {int32_t(random() % scores) - scores / 2, positions[i]};
  return x;
}

// The first `count` of n by score, then by position.
using Order = std::vector<std::pair<int64_t, uint32_t>>;
Order best(const Array<Candidate>& x, int64_t n, int64_t count) {
  Order all;
  for (int64_t i = 0; i < n; ++i) all.push_back({-int64_t(x[i].score), x[i].position});
  std::sort(all.begin(), all.end());
  all.resize(std::min(n, count));
  return all;
}

void check_partition(int64_t n, int64_t count, int scores, std::mt19937& random) {
  Array<Candidate> x = some(n, scores, random);
  const Order want = best(x, n, count), whole = best(x, n, n);
  Array<Candidate> spare(n);
  isa::partition(x.data(), spare.data(), n, count);
  sure(best(x, std::min(n, count), n) == want, "the first", n, count);
  sure(best(x, n, n) == whole, "all", n, count);
}

void add(isa::Collector& to, int32_t score, uint32_t position) {
  const int at = position % 64;
  int32_t values[64] = {};
  values[at] = score - 7;
  to.add(uint64_t(1) << at, values, 7, position - at);
}

// Of many at once: who reaches the threshold, in order, each counted in its bin.
void check_add(int32_t shift, std::mt19937& random) {
  Array<Candidate> found(64), spare(64);
  isa::Collector to;
  to.found = found.data(), to.spare = spare.data(), to.capacity = 64;
  to.start(5, -20, shift);
  to.threshold = int32_t(random() % 40) - 20;
  const uint64_t some = random() & uint64_t(random()) << 32;
  Array<int8_t> values(64);
  for (int8_t& value : values) value = int8_t(random() % 200 - 100);
  const int32_t more = random() % 2 ? 0 : 2000;
  to.add(some, values.data(), more, 1000);
  int64_t n = 0;
  std::vector<uint32_t> bins(isa::kScoreBins);
  for (uint32_t i = 0; i < 64; ++i) {
    const int32_t score = values[i] + more;
    if (!(some >> i & 1) || score < to.threshold) continue;
    sure(n < to.size && found[n].score == score && found[n].position == 1000 + i, "one of many", i, n);
    ++bins[std::min((score + 20) >> shift, isa::kScoreBins - 1)], ++n;
  }
  sure(to.size == n && to.kept == n, "how many", n, to.size);
  sure(std::equal(bins.begin(), bins.end(), to.bins), "bins", n, shift);
}

// Blocks of `step` candidates; scores rise as they come where `rising`, so that the memory fills.
void check_collector(int64_t wanted, int64_t capacity, int64_t step, int scores, bool rising, std::mt19937& random) {
  const int64_t n = 12 * capacity / step * step;
  Array<Candidate> x = some(n, scores, random), found(capacity), spare(capacity);
  if (rising) std::sort(x.begin(), x.end(), [](Candidate a, Candidate b) { return a.score < b.score; });
  isa::Collector to;
  to.found = found.data(), to.spare = spare.data(), to.capacity = capacity;
  to.start(wanted, -scores / 2, 0);
  for (int64_t i = 0; i < n; i += step) {
    const int64_t size = to.size, room = std::count_if(x.begin() + i, x.begin() + i + step,
                                                       [&](Candidate one) { return one.score >= to.threshold; });
    const bool full = size + step > capacity;
    to.make_room(step);
    sure(full || to.size == size, "dropped before it is full", capacity, i);
    for (int64_t j = i; j < i + step; ++j) add(to, x[j].score, x[j].position);
    sure(full || to.size == size + room, "added", capacity, i);
    to.tighten();
    const int64_t reach =
        std::count_if(x.begin(), x.begin() + i + step, [&](Candidate one) { return one.score >= to.threshold; });
    sure(reach >= std::min(wanted, i + step), "too few reach the threshold", wanted, i);
    if (scores < isa::kScoreBins && to.bin < isa::kScoreBins - 1) {
      const int64_t above =
          std::count_if(x.begin(), x.begin() + i + step, [&](Candidate one) { return one.score > to.threshold; });
      sure(above < wanted, "the threshold is not tight", wanted, i);
    }
  }
  to.settle();
  sure(best(found, to.size, n) == best(x, n, wanted), "the best", wanted, step);
}

// Blocks that come at any time, where there is room for all of them.
void check_settle(int64_t wanted, int32_t shift, std::mt19937& random) {
  const int64_t n = 1 + int64_t(random() % 70);
  const Array<Candidate> x = some(n, 40, random);
  Array<Candidate> found(n), spare(n);
  isa::Collector to;
  to.found = found.data(), to.spare = spare.data(), to.capacity = n;
  to.start(wanted, -20, shift);
  for (int64_t i = 0; i < n; ++i) {
    add(to, x[i].score, x[i].position);
    if (random() % 4 == 0 || i == n - 1) to.tighten();
  }
  to.settle();
  sure(best(found, to.size, n) == best(x, n, wanted), "settled", n, wanted);
}

// Of a full collector that keeps `left`: all of them up to half of its memory, else the best, and no histogram.
void check_shrink(int64_t capacity, int64_t left) {
  Array<Candidate> found(capacity), spare(capacity);
  isa::Collector to;
  to.found = found.data(), to.spare = spare.data(), to.capacity = capacity;
  to.start(5, 0, 0);
  for (int64_t i = 0; i < capacity; ++i) add(to, i < left, uint32_t(i));
  to.threshold = 1;
  to.shrink();
  const bool room = 2 * left <= capacity;
  sure(to.size == (room ? left : 5) && (to.bin == isa::kScoreBins - 1) == !room, "shrunk", capacity, left);
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (int64_t n = 0; n <= 12; ++n)
    for (int64_t count = 0; count <= n + 1; ++count)
      for (int round = 0; round < 60; ++round) check_partition(n, count, round % 2 ? 3 : 1000, random);
  for (const int scores : {1, 4, 60, 100000})
    for (const int64_t wanted : {1, 5, 31})
      for (const bool rising : {false, true})
        for (const int64_t step : {1, 7, 32}) check_collector(wanted, 2 * wanted + 64, step, scores, rising, random);
  for (int round = 0; round < 400; ++round) check_add(round % 4, random);
  for (int round = 0; round < 2000; ++round) check_settle(1 + round % 9, round % 3, random);
  for (const int64_t capacity : {40, 41})
    for (const int64_t left : {19, 20, 21, 22}) check_shrink(capacity, left);
  return failures > 0;
}
