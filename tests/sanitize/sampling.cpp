// Drives the sampling family's softmax kernels of one instruction set without torch, as distill.cpp does its own.
#include "../../kernels/sampling/cpu.h"
#include "driver.h"

namespace {

const SamplingKernels& kernels = TAMIS_ISA::sampling;

struct Truth {  // of one row
  double logsumexp, entropy, max_prob, margin, nll, el2n;
  int64_t argmax;
  Numbers p;
};

Truth truth_of(const Numbers& z, int64_t y) {
  Truth t{logsumexp(z), 0, 0, 0, 0, 0, 0, {}};
  double second = 0, others = 0, squares = 0;
  for (size_t c = 0; c < z.size(); ++c) {
    const double p = std::exp(z[c] - t.logsumexp);
    t.p.push_back(p);
    if (p > 0) t.entropy -= p * (z[c] - t.logsumexp);
    if (int64_t(c) != y) others += p, squares += p * p;
    if (c == 0 || z[c] > z[t.argmax]) {
      if (c) second = t.max_prob;
      t.argmax = c, t.max_prob = p;
    } else if (p > second) {
      second = p;
    }
  }
  t.margin = t.max_prob - second;
  t.nll = t.logsumexp - z[y];
  t.el2n = std::sqrt(others * others + squares);
  return t;
}

template <class R>
void check_stats(Dtype dtype, int64_t classes, std::mt19937& random) {
  const int64_t rows = 33;
  Logits logits(dtype, rows, classes, 3);
  logits.fill(random, 2);
  const int64_t top = std::min<int64_t>(classes - 1, 70);
  logits.put(4, std::max<int64_t>(top - 1, 0), kTwenty), logits.put(4, top, kTwentyOne);  // the second just before
  Array<R> temperature(rows);
  Array<int64_t> target(rows), argmax(rows);
  Array<char> mask(rows * classes);
  for (int64_t r = 0; r < rows; ++r) temperature[r] = R(0.5 + r * 0.1), target[r] = random() % classes;
  for (char& m : mask) m = random() % 4 != 0;
  for (int64_t r = 0; r < rows; ++r) mask[r * classes + target[r]] = 1;
  for (int features = 0; features < 8; ++features) {
    const bool has_target = features & 1, has_mask = features & 2, capped = features & 4;
    const LogitTransform transform = {capped ? 0.7 : 1.0, capped ? 5.0 : 0.0};
    const StatsInput in = {logits.matrix(classes),
                           has_mask ? Matrix{mask.data(), classes, classes, rows, rows * classes} : Matrix{},
                           transform,
                           temperature.data(),
                           1,
                           has_target ? target.data() : nullptr};
    Array<R> out[6];
    for (auto& o : out) o.resize(rows);
    const SoftmaxStats op = {in,
                             out[0].data(),
                             out[1].data(),
                             out[2].data(),
                             out[3].data(),
                             argmax.data(),
                             has_target ? out[4].data() : nullptr,
                             has_target ? out[5].data() : nullptr};
    in_two_threads(rows, kernels.scratch_bytes(classes), [&](int64_t begin, int64_t end, void* scratch) {
      kernels.softmax_stats[dtype](op, begin, end, scratch);
    });
    // The gradient of all four, over logits of their own.
    Array<R> up[4];
    for (auto& u : up)
      for (int64_t r = 0; r < rows; ++r)
        u.push_back(R(r == 3 || r == rows - 1 ? 0 : double(random() % 1000) / 500 - 1));
    Logits gradient = logits;
    SoftmaxStatsBackward back = {in,
                                 out[1].data(),
                                 out[2].data(),
                                 argmax.data(),
                                 up[0].data(),
                                 up[1].data(),
                                 up[2].data(),
                                 has_target ? up[3].data() : nullptr,
                                 gradient.matrix(classes),
                                 features % 3 == 0};
    if (features % 2) back.in.logits = gradient.matrix(classes);  // in place
    in_two_threads(rows, kernels.scratch_bytes(classes), [&](int64_t begin, int64_t end, void* scratch) {
      kernels.softmax_stats_backward[dtype](back, begin, end, scratch);
    });
    const int64_t bytes = kBytes[dtype];
    bool gaps = true;
    for (int64_t i = 0; i < int64_t(gradient.memory.size()); ++i)
      gaps &= i / bytes % logits.stride < classes || gradient.memory[i] == logits.memory[i];
    expect(gaps, "between rows", dtype, dtype, classes, 0, 0);
    const double eps = dtype == f64 ? 1e-13 : 2e-5;
    for (int64_t r = 0; r < rows; ++r) {
      Numbers z = row(logits, r, classes, transform, temperature[r]);
      const Numbers whole = z;
      if (has_mask)
        for (int64_t c = 0; c < classes; ++c) z[c] = mask[r * classes + c] ? z[c] : -INFINITY;
      const Truth t = truth_of(z, target[r]);
      const double wanted[] = {t.logsumexp, t.entropy, t.max_prob, t.margin, t.nll, t.el2n};
      for (int k = 0; k < (has_target ? 6 : 4); ++k)
        expect(std::fabs(out[k][r] - wanted[k]) < eps * (1 + std::fabs(wanted[k])), "statistic", dtype, dtype, classes,
               out[k][r], wanted[k]);
      expect(capped || argmax[r] == t.argmax, "argmax", dtype, dtype, classes, double(argmax[r]), double(t.argmax));
      for (int64_t c = 0; c < classes; ++c) {
        const double p = t.p[c], log_p = z[c] - t.logsumexp;
        double g = up[0][r] * p + (p > 0 ? -up[1][r] * p * (log_p + t.entropy) : 0);
        g += up[2][r] * t.max_prob * ((c == argmax[r]) - p);
        if (has_target) g += up[3][r] * (p - (c == target[r]));
        const double y = whole[c] * temperature[r];
        g *= transform.scale * (capped ? 1 - y * y / 25 : 1) / temperature[r];
        if (has_mask && !mask[r * classes + c]) g = 0;
        expect(std::fabs(gradient.at(r, c) - g) < 20 * eps + 4 * kEps[dtype] * std::fabs(g), "gradient", dtype, dtype,
               classes, gradient.at(r, c), g);
      }
    }
  }
}

// Rows that are not sound: NaN is the largest, several +inf are no NaN; a target or a maximum that is no class.
template <class R>
void check_unsound(Dtype dtype, int64_t classes, std::mt19937& random) {
  const int64_t rows = 9, last = classes - 1, places[] = {last, std::min<int64_t>(1024, last), 0, last / 2};
  Logits logits(dtype, rows, classes, 0);
  logits.fill(random, 2);
  for (int64_t r = 0; r < rows; ++r)
    if (r < 4 || r == rows - 1) logits.put(r, places[r % 4], r < 4 ? kNan : kInfinity);
  logits.put(rows - 1, 0, kInfinity);
  const Array<R> temperature(1, 1), up(rows, 1);
  Array<int64_t> target(rows, 0), argmax(rows);
  target[5] = classes, target[6] = -1;
  const StatsInput in = {logits.matrix(classes), {}, {1, 0}, temperature.data(), 0, target.data()};
  Array<R> out[6];
  for (auto& o : out) o.resize(rows);
  const SoftmaxStats op = {
      in, out[0].data(), out[1].data(), out[2].data(), out[3].data(), argmax.data(), out[4].data(), out[5].data()};
  Array<char> scratch((kernels.scratch_bytes(classes) + 63) / 64 * 64, 0x41);
  kernels.softmax_stats[dtype](op, 0, rows, scratch.data());
  for (int64_t r = 0; r < rows; ++r) {
    const bool sound = r >= 4 && r < rows - 1, inside = target[r] == 0;
    const int64_t want = r == rows - 1 ? 0 : places[r % 4];
    expect(sound || argmax[r] == want, "argmax", dtype, dtype, classes, double(argmax[r]), double(want));
    expect(std::isnan(out[2][r]) == !sound, "max_prob", dtype, dtype, classes, out[2][r], 0);
    for (int k = 4; k < 6; ++k)
      expect(std::isnan(out[k][r]) == !(sound && inside), "of a target", dtype, dtype, classes, out[k][r], 0);
  }
  expect(std::isinf(out[0][rows - 1]), "logsumexp", dtype, dtype, classes, out[0][rows - 1], HUGE_VAL);

  argmax[7] = classes;
  Logits gradient(dtype, rows, classes, 0);
  const SoftmaxStatsBackward back = {in,
                                     out[1].data(),
                                     out[2].data(),
                                     argmax.data(),
                                     up.data(),
                                     up.data(),
                                     up.data(),
                                     up.data(),
                                     gradient.matrix(classes),
                                     false};
  kernels.softmax_stats_backward[dtype](back, 4, 8, scratch.data());
  for (int64_t r = 4; r < 8; ++r)
    for (int64_t c = 0; c < classes; ++c)
      expect(std::isnan(gradient.at(r, c)) == (r > 4), "gradient", dtype, dtype, classes, gradient.at(r, c), 0);
}

template <class R>
void check_disagreement(Dtype s, Dtype t, int64_t classes, std::mt19937& random) {
  const int64_t rows = 9;
  Logits a(s, rows, classes, 0), b(t, rows, classes, 5);
  a.fill(random, 2), b.fill(random, 2);
  Array<int64_t> target(rows);
  for (auto& y : target) y = random() % classes;
  for (Disagreement kind : {Disagreement::entropy_term, Disagreement::max_abs, Disagreement::jsd}) {
    Array<R> out(rows);
    const DisagreementOp op = {a.matrix(classes), b.matrix(classes), target.data(), kind, out.data()};
    in_two_threads(rows, kernels.scratch_bytes(classes), [&](int64_t begin, int64_t end, void* scratch) {
      kernels.disagreement[s][t](op, begin, end, scratch);
    });
    for (int64_t r = 0; r < rows; ++r) {
      const Numbers x = row(a, r, classes, {1, 0}, 1), y = row(b, r, classes, {1, 0}, 1);
      const Truth p = truth_of(x, target[r]), q = truth_of(y, target[r]);
      double want = 0;
      for (int64_t c = 0; c < classes; ++c) {
        const double u = p.p[c], v = q.p[c], m = (u + v) / 2;
        if (kind == Disagreement::max_abs) want = std::max(want, std::fabs(u - v));
        if (kind == Disagreement::jsd && m > 0)
          want += ((u > 0 ? u * std::log(u / m) : 0) + (v > 0 ? v * std::log(v / m) : 0)) / 2;
      }
      if (kind == Disagreement::entropy_term)
        want = std::fabs(std::exp(-p.nll) * p.nll - std::exp(-q.nll) * q.nll) / std::log(2);
      const double eps = s == f64 ? 1e-13 : 1e-5;
      expect(std::fabs(out[r] - want) < eps, "disagreement", s, t, classes, out[r], want);
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (int64_t classes : {1, 2, 7, 15, 16, 33, 64, 100, 256, 257, 1023, 1024, 1025, 2064}) {
    check_stats<float>(f32, classes, random), check_unsound<float>(f32, classes, random);
    check_stats<double>(f64, classes, random), check_unsound<double>(f64, classes, random);
    check_stats<float>(f16, classes, random), check_unsound<float>(f16, classes, random);
    check_stats<float>(bf16, classes, random), check_unsound<float>(bf16, classes, random);
    for (Dtype s : {f32, f16, bf16})
      for (Dtype t : {f32, f16, bf16}) check_disagreement<float>(s, t, classes, random);
    check_disagreement<double>(f64, f64, classes, random);
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
