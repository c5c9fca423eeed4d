// Draws from probabilities; the arithmetic is in kernels/sampling. Nothing inside parallel_for may throw.
#include <torch/csrc/stable/library.h>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include "common.h"
#include "dispatch.h"

namespace tamis {
namespace {

using Positions = std::vector<int64_t>;

const char* const kOp = "tamis.importance_sample";
const int64_t kChunk = 1 << 15;  // examples a task, the same for any number of threads

struct Draw {
  Tensor probs;
  std::optional<Tensor> ids;
  Population of;
  int64_t n, draws;
  bool wide;  // float64
  float cap;

  int64_t chunks() const { return (n + kChunk - 1) / kChunk; }
  int64_t end(int64_t begin) const { return std::min(n, begin + kChunk); }
  Tensor fresh(int64_t size, ScalarType type) const {
    return advise_huge_pages(torch::stable::new_empty(probs, {size}, type));
  }
};

template <class Task>
void over_chunks(const Draw& d, const Task& task) {  // task(chunk, begin, end)
  torch::stable::parallel_for(0, d.chunks(), 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) task(c, c * kChunk, d.end(c * kChunk));
  });
}

// Sizes become where each begins; the sum.
int64_t places(Positions& sizes) {
  int64_t total = 0;
  for (int64_t& size : sizes) total += std::exchange(size, total);
  return total;
}

template <class T>
[[noreturn]] void refuse(const Draw& d, bool poisson) {
  const T* const p = static_cast<const T*>(d.of.probs);
  int64_t i = 0;
  while (i + 1 < d.n && p[i] >= 0 && (poisson ? p[i] <= 1 : std::isfinite(p[i]))) ++i;
  STD_TORCH_CHECK(false, kOp, ": probs: expected ", poisson ? "0 to 1" : "finite numbers of 0 or above", ", got ", p[i],
                  " at ", i);
  std::abort();
}
[[noreturn]] void refuse(const Draw& d, bool poisson) {
  d.wide ? refuse<double>(d, poisson) : refuse<float>(d, poisson);
}

Tensors poisson(const Draw& d) {
  const DrawKernels& kernel = kernels().sampling.draw;
  const Tensor mask = d.fresh((d.n + 63) / 64, ScalarType::Long);
  uint64_t* const bits = static_cast<uint64_t*>(mask.mutable_data_ptr());
  Positions first(d.chunks());
  over_chunks(
      d, [&](int64_t c, int64_t begin, int64_t end) { first[c] = kernel.poisson[d.wide](d.of, begin, end, bits); });
  if (std::count(first.begin(), first.end(), -1)) refuse(d, true);
  const int64_t total = places(first);
  const Tensor indices = d.fresh(total, ScalarType::Long), weights = d.fresh(total, ScalarType::Float);
  int64_t* const out = static_cast<int64_t*>(indices.mutable_data_ptr());
  float* const weight = static_cast<float*>(weights.mutable_data_ptr());
  over_chunks(d, [&](int64_t c, int64_t begin, int64_t end) {
    kernel.take_masked[d.wide](d.of.probs, bits, begin, end, d.cap, out + first[c], weight + first[c]);
  });
  return {indices, weights};
}

void sort_by_id(const Draw& d, Positions& positions) {  // equal ids: by position
  const int64_t* const ids = d.of.ids;
  std::sort(positions.begin(), positions.end(),
            [&](int64_t a, int64_t b) { return ids[a] != ids[b] ? ids[a] < ids[b] : a < b; });
}

// Of `equal` keys at the threshold only `wanted` are drawn, of the least ids: the others' keys become kNever.
void break_ties(const Draw& d, uint32_t* keys, uint32_t threshold, int64_t equal, int64_t wanted) {
  Positions ties(equal);
  kernels().sampling.draw.find(keys, 0, d.n, threshold, threshold, ties.data());
  if (d.of.ids) sort_by_id(d, ties);
  for (int64_t i = wanted; i < equal; ++i) keys[ties[i]] = kNever;
}

Tensors race(const Draw& d, bool inclusion) {
  const DrawKernels& kernel = kernels().sampling.draw;
  const Tensor scratch = d.fresh(d.n, ScalarType::Int);
  uint32_t* const keys = static_cast<uint32_t*>(scratch.mutable_data_ptr());
  std::vector<uint32_t> histograms(d.chunks() * kBins);
  std::atomic<bool> valid{true};
  over_chunks(d, [&](int64_t c, int64_t begin, int64_t end) {
    if (!kernel.race[d.wide](d.of, begin, end, keys, histograms.data() + c * kBins)) valid.store(false);
  });
  if (!valid) refuse(d, false);
  Positions bins(kBins);
  for (size_t i = 0; i < histograms.size(); ++i) bins[i % kBins] += histograms[i];
  const int64_t positive = d.n - bins[kNever >> kBinShift];
  STD_TORCH_CHECK(d.draws <= positive, kOp, ": num_samples: expected at most ", positive,
                  ", how many probabilities are above 0, got ", d.draws);

  // The draws-th key is in this bin, and there the how-manieth.
  int64_t bin = 0, below = 0;
  while (below + bins[bin] < d.draws) below += bins[bin++];
  Positions first(d.chunks());
  for (int64_t c = 0; c < d.chunks(); ++c) first[c] = histograms[c * kBins + bin];
  places(first);
  const uint32_t low = bin << kBinShift, high = low | ((1u << kBinShift) - 1);
  std::vector<uint32_t> candidates(bins[bin]);
  over_chunks(d, [&](int64_t c, int64_t begin, int64_t end) {
    kernel.gather(keys, begin, end, low, high, candidates.data() + first[c]);
  });
  const Ranked at = kernel.rank(candidates.data(), bins[bin], d.draws - below - 1);

  std::atomic<uint32_t> next{at.key};  // the key after the last drawn
  const int64_t wanted = d.draws - below - at.below;
  if (wanted < at.equal) {
    break_ties(d, keys, at.key, at.equal, wanted);
  } else if (inclusion) {
    next = kNever;
    over_chunks(d, [&](int64_t, int64_t begin, int64_t end) {
      const uint32_t least = kernel.least_above(keys, begin, end, at.key);
      uint32_t before = next.load();
      while (least < before && !next.compare_exchange_weak(before, least)) {}
    });
  }
  Weighing how{d.cap, inclusion, __builtin_inff()};
  if (const uint32_t tau = next; tau != kNever) memcpy(&how.tau, &tau, sizeof tau);

  over_chunks(d, [&](int64_t c, int64_t begin, int64_t end) { first[c] = kernel.count(keys, begin, end, 0, at.key); });
  const int64_t total = places(first);
  const Tensor indices = d.fresh(total, ScalarType::Long), weights = d.fresh(total, ScalarType::Float);
  const Tensor drawn = d.fresh(total, ScalarType::Float);
  int64_t* const out = static_cast<int64_t*>(indices.mutable_data_ptr());
  float* const weight = static_cast<float*>(weights.mutable_data_ptr());
  float* const key = static_cast<float*>(drawn.mutable_data_ptr());
  over_chunks(d, [&](int64_t c, int64_t begin, int64_t end) {
    const int64_t to = first[c];
    kernel.take_keyed[d.wide](d.of.probs, keys, begin, end, at.key, how, out + to, weight + to, key + to);
  });
  return {indices, weights, drawn};
}

// The positions by ascending id, or none where they ascend already.
Positions by_id(const Draw& d) {
  const int64_t* const ids = d.of.ids;
  if (!ids || std::is_sorted(ids, ids + d.n)) return {};
  Positions order(d.n);
  std::iota(order.begin(), order.end(), 0);
  sort_by_id(d, order);
  return order;
}

// The largest scale at which n masses of at most `most` surely sum to less than 2^62.
Masses masses_of(double most, int64_t n) {
  int exponent = 0;
  std::frexp(most, &exponent);
  const int scale = 62 - exponent - (64 - __builtin_clzll(n)), half = scale >> 1;
  return {std::ldexp(1, half), std::ldexp(1, scale - half)};
}

Tensors with_replacement(const Draw& d, bool systematic) {
  const DrawKernels& kernel = kernels().sampling.draw;
  std::vector<double> largest(d.chunks());
  over_chunks(
      d, [&](int64_t c, int64_t begin, int64_t end) { largest[c] = kernel.largest[d.wide](d.of.probs, begin, end); });
  for (double x : largest)
    if (x != x) refuse(d, false);
  const double most = *std::max_element(largest.begin(), largest.end());
  STD_TORCH_CHECK(most > 0, kOp, ": probs: expected one above 0, got none");

  const Masses masses = masses_of(most, d.n);
  const Positions order = by_id(d);
  const int64_t* const by = order.empty() ? nullptr : order.data();
  Positions before(d.chunks());  // each chunk, the sum of all masses before it
  over_chunks(d, [&](int64_t c, int64_t begin, int64_t end) {
    before[c] = kernel.mass[d.wide](d.of.probs, by, begin, end, masses);
  });
  const int64_t total = places(before), k = d.draws;
  const Tensor indices = d.fresh(k, ScalarType::Long), weights = d.fresh(k, ScalarType::Float);
  int64_t* const points = static_cast<int64_t*>(indices.mutable_data_ptr());
  torch::stable::parallel_for(0, k, kChunk, [&](int64_t begin, int64_t end) {
    if (systematic)
      kernel.systematic(d.of.seed, d.of.offset, total, k, begin, end, points);
    else
      kernel.independent(d.of.seed, d.of.offset, total, begin, end, points);
  });
  if (!systematic) std::sort(points, points + k);
  Positions first(d.chunks() + 1, k);
  for (int64_t c = 0; c < d.chunks(); ++c) first[c] = std::lower_bound(points, points + k, before[c]) - points;
  over_chunks(d, [&](int64_t c, int64_t begin, int64_t end) {
    kernel.place[d.wide](d.of.probs, by, begin, end, masses, before[c], points + first[c], first[c + 1] - first[c]);
  });
  if (by) std::sort(points, points + k);
  float* const weight = static_cast<float*>(weights.mutable_data_ptr());
  torch::stable::parallel_for(0, k, kChunk, [&](int64_t begin, int64_t end) {
    kernel.weigh[d.wide](d.of.probs, masses, total, k, d.cap, points, begin, end, weight);
  });
  return {indices, weights};
}

std::optional<Tensor> checked_ids(const char* what, const std::optional<Tensor>& ids, int64_t n) {
  if (!ids) return std::nullopt;
  STD_TORCH_CHECK(ids->is_cpu() && ids->scalar_type() == ScalarType::Long && ids->dim() == 1 && ids->size(0) == n, what,
                  ": ids: expected int64 [", n, "] on CPU, got ", torch::headeronly::toString(ids->scalar_type()),
                  " of ", ids->numel(), " numbers");
  return torch::stable::contiguous(*ids);
}

Tensors importance_sample(const Tensor& probs, std::optional<int64_t> num_samples, const std::string& method,
                          const std::optional<Tensor>& ids, int64_t seed, int64_t offset, std::optional<double> cap,
                          const std::string& weights) {
  const bool coins = method == "poisson", racing = method == "race", systematic = method == "systematic";
  STD_TORCH_CHECK(coins || racing || systematic || method == "alias", kOp,
                  ": method: expected poisson, race, systematic or alias, got ", method);
  const bool inclusion = weights == "inclusion";
  STD_TORCH_CHECK(weights == "draw" || (inclusion && (coins || racing)), kOp, ": weights: expected draw",
                  coins || racing ? " or inclusion" : " with replacement", ", got ", weights);
  STD_TORCH_CHECK(probs.is_cpu() && probs.dim() == 1, kOp, ": probs: expected [n] on CPU, got rank ", probs.dim());
  const bool wide = probs.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(wide || probs.scalar_type() == ScalarType::Float, kOp, ": probs: expected float32 or float64, got ",
                  torch::headeronly::toString(probs.scalar_type()));
  STD_TORCH_CHECK(coins ? !num_samples : num_samples && 1 <= *num_samples && *num_samples < int64_t(1) << 31, kOp,
                  ": num_samples: expected ", coins ? "none for poisson" : "1 to 2^31 - 1", ", got ",
                  num_samples ? std::to_string(*num_samples) : "none");
  const float most = cap ? (float)*cap : __builtin_inff();
  STD_TORCH_CHECK(most > 0, kOp, ": cap: expected a positive number, got ", *cap);
  const int64_t n = probs.size(0);
  STD_TORCH_CHECK(coins || n, kOp, ": probs: expected one above 0, got none");
  Draw d{torch::stable::contiguous(probs), checked_ids(kOp, ids, n), {}, n, num_samples.value_or(0), wide, most};
  d.of = {d.probs.const_data_ptr(), d.ids ? static_cast<const int64_t*>(d.ids->const_data_ptr()) : nullptr, seed,
          offset};
  return coins ? poisson(d) : racing ? race(d, inclusion) : with_replacement(d, systematic);
}

Tensor philox(const Tensor& ids, int64_t seed, int64_t offset) {
  const Tensor of = *checked_ids("tamis._philox", ids, ids.numel());
  const int64_t n = of.size(0);
  Tensor out = advise_huge_pages(torch::stable::new_empty(of, {n, 4}));
  const int64_t* const from = static_cast<const int64_t*>(of.const_data_ptr());
  int64_t* const to = static_cast<int64_t*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, n, kChunk, [&](int64_t begin, int64_t end) {
    kernels().sampling.draw.words(from, seed, offset, begin, end, to);
  });
  return out;
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_IMPL(tamis, CPU, m) {
  m.impl("importance_sample", TORCH_BOX(&tamis::importance_sample));
  m.impl("_philox", TORCH_BOX(&tamis::philox));
}
