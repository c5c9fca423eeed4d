// Drives the drawing kernels of one instruction set without torch: under sanitizers (`make sanitize`), or another CPU's
// emulator. Every buffer is as long as its numbers and no longer, two threads share the examples, and results are held
// against the formulas in double.
#include "../../kernels/sampling/cpu.h"
#include "driver.h"

namespace {

const DrawKernels& kernels = TAMIS_ISA::sampling.draw;

void expect(bool right, const char* what, int64_t n, int wide) {
  if (right) return;
  std::printf("%s: n %ld, %s\n", what, long(n), wide ? "float64" : "float32");
  failed();
}

template <class Task>
void in_two(int64_t n, const Task& task) {  // halves that begin at a multiple of 64
  const int64_t half = n / 2 / 64 * 64;
  std::thread other([&] { task(0, int64_t(0), half); });
  task(1, half, n);
  other.join();
}

struct Words {
  uint64_t word[4];
};
Words philox(int64_t id, int64_t seed, int64_t offset) {
  int64_t out[4];
  kernels.words(&id, seed, offset, 0, 1, out);
  return {{uint64_t(out[0]), uint64_t(out[1]), uint64_t(out[2]), uint64_t(out[3])}};
}

double exponential(const Words& w) {  // of Philox's words, in double
  const double v = std::ldexp(double((w.word[0] >> 8 << 24) + (w.word[1] >> 8 | 1)), -48);
  return v < 0.5 ? -std::log1p(-v) : -std::log(1 - v);
}

bool close(double a, double b) { return std::fabs(a - b) <= 1e-6 * std::fabs(b); }

template <class T>
void check(int64_t n, bool with_ids) {
  const int wide = sizeof(T) == 8;
  const int64_t seed = -5, offset = int64_t(3) << 33;
  std::mt19937_64 random(n);
  Array<T> probs(n);
  Array<int64_t> ids(n);
  for (int64_t i = 0; i < n; ++i) probs[i] = T(random() % 1000) / 999, ids[i] = int64_t(random() >> 1) - (1ll << 61);
  for (int64_t i = 0; i < n; i += 5) probs[i] = i % 2;
  if (n > 3) probs[1] = T(1e-45), probs[2] = std::nextafter(T(1), T(0));
  const Population of{probs.data(), with_ids ? ids.data() : nullptr, seed, offset};
  std::vector<Words> words(n);
  for (int64_t i = 0; i < n; ++i) words[i] = philox(with_ids ? ids[i] : i, seed, offset);

  Array<int64_t> all(4 * n);
  Array<int64_t> positions(n);
  for (int64_t i = 0; i < n; ++i) positions[i] = i;
  kernels.words(with_ids ? ids.data() : positions.data(), seed, offset, 0, n, all.data());
  for (int64_t i = 0; i < 4 * n; ++i) expect(uint64_t(all[i]) == words[i / 4].word[i % 4], "words", n, wide);

  Array<uint64_t> mask((n + 63) / 64);
  int64_t drawn[2];
  in_two(n, [&](int t, int64_t a, int64_t b) { drawn[t] = kernels.poisson[wide](of, a, b, mask.data()); });
  Array<int64_t> indices(drawn[0] + drawn[1]), want;
  Array<float> weights(indices.size());
  in_two(n, [&](int t, int64_t a, int64_t b) {
    const int64_t to = t ? drawn[0] : 0;
    kernels.take_masked[wide](probs.data(), mask.data(), a, b, 50, indices.data() + to, weights.data() + to);
  });
  for (int64_t i = 0; i < n; ++i)
    if (double(words[i].word[0]) < std::floor(std::ldexp(double(probs[i]), 32))) want.push_back(i);
  expect(indices == want, "poisson", n, wide);
  for (size_t i = 0; i < weights.size(); ++i)
    expect(close(weights[i], std::min(50.0, 1 / double(probs[indices[i]]))), "poisson's weight", n, wide);

  Array<uint32_t> keys(n), histogram[2] = {Array<uint32_t>(kBins, 0), Array<uint32_t>(kBins, 0)};
  bool valid[2];
  in_two(n, [&](int t, int64_t a, int64_t b) {
    valid[t] = kernels.race[wide](of, a, b, keys.data(), histogram[t].data());
  });
  expect(valid[0] && valid[1], "valid", n, wide);
  for (int64_t i = 0; i < n; ++i) {
    float key;
    memcpy(&key, &keys[i], 4);
    const double true_key = exponential(words[i]) / double(probs[i]);
    expect(probs[i] > 0 ? true_key > 3e38 ? key > 3e38f : close(key, true_key) : keys[i] == kNever, "key", n, wide);
  }
  Array<uint32_t> sorted = keys;
  std::sort(sorted.begin(), sorted.end());
  for (int64_t k = 1; k <= n; k += 1 + n / 7) {
    const uint32_t threshold = sorted[k - 1], low = threshold >> kBinShift << kBinShift;
    const uint32_t high = low | ((1u << kBinShift) - 1);
    const int64_t in_bin = kernels.count(keys.data(), 0, n, low, high);
    expect(in_bin == histogram[0][low >> kBinShift] + histogram[1][low >> kBinShift], "histogram", n, wide);
    Array<uint32_t> candidates(in_bin);
    kernels.gather(keys.data(), 0, n, low, high, candidates.data());
    const int64_t below = std::lower_bound(sorted.begin(), sorted.end(), low) - sorted.begin();
    const Ranked at = kernels.rank(candidates.data(), in_bin, k - below - 1);
    const auto equal = std::equal_range(sorted.begin(), sorted.end(), threshold);
    expect(at.key == threshold && below + at.below == equal.first - sorted.begin() &&
               at.equal == equal.second - equal.first,
           "rank", n, wide);
    Array<int64_t> ties(at.equal);
    expect(kernels.find(keys.data(), 0, n, threshold, threshold, ties.data()) == at.equal, "find", n, wide);
    const uint32_t above = kernels.least_above(keys.data(), 0, n, threshold);
    expect(above == (equal.second == sorted.end() ? kNever : *equal.second), "least_above", n, wide);
    if (threshold == kNever) continue;
    const int64_t upto = kernels.count(keys.data(), 0, n, 0, threshold);
    Array<int64_t> winners(upto);
    Array<float> weight(upto), key(upto);
    float tau = __builtin_inff();
    if (above != kNever) memcpy(&tau, &above, 4);
    kernels.take_keyed[wide](probs.data(), keys.data(), 0, n, threshold, {1e30f, true, tau}, winners.data(),
                             weight.data(), key.data());
    for (int64_t i = 0; i < upto; ++i)
      expect(close(weight[i], std::min(1e30, -1 / std::expm1(-double(probs[winners[i]]) * tau))) || tau == 0,
             "inclusion", n, wide);
  }

  Array<uint32_t> last(n, 8);
  last[n - 1] = 7;
  expect(kernels.least_above(last.data(), 0, n, 6) == 7, "the last above", n, wide);

  const double most = kernels.largest[wide](probs.data(), 0, n);
  expect(most == *std::max_element(probs.begin(), probs.end()), "largest", n, wide);
  if (most > 0) {
    const Masses masses{std::ldexp(1, 10), std::ldexp(1, 20)};
    Array<int64_t> order(n), points(2 * n + 1);
    for (int64_t i = 0; i < n; ++i) order[i] = n - 1 - i;
    const int64_t* const by = with_ids ? order.data() : nullptr;
    const int64_t total = kernels.mass[wide](probs.data(), by, 0, n, masses), draws = points.size();
    kernels.independent(seed, offset, total, 0, draws, points.data());
    expect(
        *std::min_element(points.begin(), points.end()) >= 0 && *std::max_element(points.begin(), points.end()) < total,
        "independent", n, wide);
    kernels.systematic(seed, offset, total, draws, 0, draws, points.data());
    expect(std::is_sorted(points.begin(), points.end()) && points[0] >= 0 && points.back() < total, "points", n, wide);
    const int64_t half = n / 2, upto = kernels.mass[wide](probs.data(), by, 0, half, masses);
    const int64_t first = std::lower_bound(points.begin(), points.end(), upto) - points.begin();
    expect(kernels.place[wide](probs.data(), by, 0, half, masses, 0, points.data(), draws) == first, "place", n, wide);
    expect(kernels.place[wide](probs.data(), by, half, n, masses, upto, &points[first], draws - first) == draws - first,
           "place", n, wide);
    std::vector<double> count(n);
    for (const int64_t at : points) ++count[at];
    Array<float> weight(draws);
    kernels.weigh[wide](probs.data(), masses, total, draws, 1e30f, points.data(), 0, draws, weight.data());
    for (int64_t i = 0; i < n; ++i)
      expect(std::fabs(count[i] - draws * std::floor(std::ldexp(double(probs[i]), 30)) / total) < 1, "counts", n, wide);
    for (int64_t j = 0; j < draws; ++j)
      expect(close(weight[j], total / (draws * std::floor(std::ldexp(double(probs[points[j]]), 30)))), "weigh", n,
             wide);
  }

  for (const T bad : {T(-1), T(NAN), T(INFINITY)}) {
    probs[n - 1] = bad;
    expect(kernels.poisson[wide](of, 0, n, mask.data()) == -1, "bad coin", n, wide);
    expect(!kernels.race[wide](of, 0, n, keys.data(), histogram[0].data()), "bad key", n, wide);
    expect(std::isnan(kernels.largest[wide](probs.data(), 0, n)), "bad mass", n, wide);
  }
}

}  // namespace

int main() {
  for (const int64_t n : {1, 2, 7, 63, 64, 65, 511, 512, 513, 1000, 3077})
    for (const bool with_ids : {false, true}) check<float>(n, with_ids), check<double>(n, with_ids);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
