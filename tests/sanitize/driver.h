// What the drivers of the CPU kernels share: logits in memory of their own, and what is expected of a row.
#pragma once
#include "../../kernels/common/matrix.h"
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

using namespace tamis;

namespace {

const int64_t kBytes[kDtypes] = {4, 8, 2, 2};
const double kEps[kDtypes] = {6e-8, 1e-16, 5e-4, 4e-3};
const char* const kNames[kDtypes] = {"float32", "float64", "float16", "bfloat16"};

double half_value(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return h >> 15 ? -size : size;
}

struct Logits {  // [rows, width], `gap` numbers between two rows, nothing after the last
  Dtype dtype;
  int64_t rows, width, stride;
  std::vector<char> memory;

  Logits(Dtype d, int64_t r, int64_t w, int64_t gap)
      : dtype(d), rows(r), width(w), stride(w + gap), memory(((r - 1) * (w + gap) + w) * kBytes[d]) {}
  Matrix matrix(int64_t classes) { return {memory.data(), classes, stride, rows, 0}; }
  double at(int64_t r, int64_t c) const {
    const char* const p = memory.data() + (r * stride + c) * kBytes[dtype];
    double f64_value;
    float f32_value;
    uint16_t bits;
    switch (dtype) {
      case f64:
        return memcpy(&f64_value, p, 8), f64_value;
      case f32:
        return memcpy(&f32_value, p, 4), f32_value;
      case f16:
        return memcpy(&bits, p, 2), half_value(bits);
      default:
        memcpy(&bits, p, 2);
        const uint32_t wide = uint32_t(bits) << 16;
        return memcpy(&f32_value, &wide, 4), f32_value;
    }
  }
  Logits part(int64_t first, int64_t classes) const {  // some classes, in memory of their own
    Logits x(dtype, rows, classes, 0);
    const int64_t bytes = kBytes[dtype];
    for (int64_t r = 0; r < rows; ++r)
      memcpy(x.memory.data() + r * classes * bytes, memory.data() + (r * stride + first) * bytes, classes * bytes);
    return x;
  }
  void fill(std::mt19937& random, double scale) {
    std::normal_distribution<double> normal(0, scale);
    for (int64_t i = 0; i < int64_t(memory.size()) / kBytes[dtype]; ++i) {
      const double d = normal(random);
      const float f = float(d);
      uint32_t bits;
      memcpy(&bits, &f, 4);
      const uint16_t top = bits >> 16, any = random() & 0xb3ff;  // any half below 0.5: subnormals too
      const void* const from = dtype == f64   ? static_cast<const void*>(&d)
                               : dtype == f32 ? static_cast<const void*>(&f)
                               : dtype == f16 ? static_cast<const void*>(&any)
                                              : static_cast<const void*>(&top);
      memcpy(memory.data() + i * kBytes[dtype], from, kBytes[dtype]);
    }
  }
};

double transformed(double x, const LogitTransform& t) {
  return t.cap > 0 ? t.cap * std::tanh(t.scale * x / t.cap) : t.scale * x;
}

std::vector<double> row(const Logits& x, int64_t r, int64_t classes, const LogitTransform& t, double tau) {
  std::vector<double> y(classes);
  for (int64_t c = 0; c < classes; ++c) y[c] = transformed(x.at(r, c), t) / tau;
  return y;
}

double logsumexp(const std::vector<double>& x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double v : x) sum += std::exp(v - top);
  return top + std::log(sum);
}

int failures = 0;
void expect(bool right, const char* what, Dtype s, Dtype t, int64_t classes, double got, double want) {
  if (right) return;
  ++failures;
  std::printf("%s: %s beside %s, %lld classes: got %.9g, expected %.9g\n", what, kNames[s], kNames[t],
              (long long)classes, got, want);
}

template <class Work>
void in_two_threads(int64_t rows, int64_t scratch_bytes, const Work& work) {
  const auto part = [&](int64_t begin, int64_t end) {
    void* const scratch = std::aligned_alloc(64, (scratch_bytes + 63) / 64 * 64);
    work(begin, end, scratch);
    std::free(scratch);
  };
  std::thread first(part, 0, rows / 2);
  part(rows / 2, rows);
  first.join();
}

}  // namespace
