// What the drivers of the CPU kernels share: memory that ends where its numbers do, logits in it, and what is expected
// of a row.
#pragma once
#include "../../kernels/common/matrix.h"
#include <sys/mman.h>
#include <unistd.h>
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
  if (exponent == 31) return fraction ? NAN : h >> 15 ? -INFINITY : INFINITY;
  return h >> 15 ? -size : size;
}

// Ends at a page that nobody may touch, which stops masked loads too; AddressSanitizer does not see those, but what
// lies in front. Not yet written: bytes of 0xff, NaN in every type. A write within a page in front shows when it is
// given back.
template <class T>
struct Exact {
  using value_type = T;
  Exact() = default;
  template <class U>
  Exact(const Exact<U>&) {}
  bool operator==(const Exact&) const { return true; }
  bool operator!=(const Exact&) const { return false; }
#ifdef __SANITIZE_ADDRESS__
  T* allocate(size_t n) {
    const size_t bytes = n * sizeof(T);
    return static_cast<T*>(memset(bytes % 64 ? malloc(bytes) : std::aligned_alloc(64, bytes), 0xff, bytes));
  }
  void deallocate(T* p, size_t) { std::free(p); }
#else
  static size_t page() { return sysconf(_SC_PAGESIZE); }
  static size_t span(size_t bytes) { return (bytes + page() - 1) / page() * page() + page(); }
  T* allocate(size_t n) {
    const size_t bytes = n * sizeof(T), size = span(bytes);
    void* const p = mmap(nullptr, size + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char* const end = static_cast<char*>(p) + size;
    if (p == MAP_FAILED || mprotect(end, page(), PROT_NONE)) std::abort();
    memset(p, 0xff, size);
    return reinterpret_cast<T*>(end - bytes);
  }
  void deallocate(T* p, size_t n) {
    const size_t bytes = n * sizeof(T), size = span(bytes);
    char* const begin = reinterpret_cast<char*>(p) + bytes - size;
    for (const char* at = begin; at < reinterpret_cast<char*>(p); ++at)
      if (*at != char(0xff)) std::printf("written in front of a buffer\n"), std::abort();
    munmap(begin, size + page());
  }
#endif
  template <class U>
  void construct(U*) {}  // stays as allocated
  template <class U, class... Args>
  void construct(U* p, Args&&... args) {
    ::new (static_cast<void*>(p)) U(std::forward<Args>(args)...);
  }
};
template <class T>
using Array = std::vector<T, Exact<T>>;

enum Special { kTwenty, kTwentyOne, kHundred, kFiveHundred, kInfinity, kNan };

struct Logits {  // [rows, width], `gap` numbers between two rows, nothing after the last; aligned: up to 63 bytes
  Dtype dtype;
  int64_t rows, width, stride;
  Array<char> memory;

  Logits(Dtype d, int64_t r, int64_t w, int64_t gap, bool aligned = false)
      : dtype(d), rows(r), width(w), stride(w + gap), memory(size() + (aligned ? -size() & 63 : 0)) {}
  int64_t size() const { return ((rows - 1) * stride + width) * kBytes[dtype]; }
  bool gaps_untouched() const {
    const int64_t bytes = kBytes[dtype];
    for (int64_t i = 0; i < int64_t(memory.size()); ++i)
      if (i / bytes % stride >= width || i >= size())
        if (memory[i] != char(0xff)) return false;
    return true;
  }
  Matrix matrix(int64_t classes) { return {memory.data(), classes, stride, rows, rows * stride}; }
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
  void put(int64_t r, int64_t c, Special what) {
    const uint64_t bits[6][kDtypes] = {
        {0x41a00000, 0x4034000000000000, 0x4d00, 0x41a0}, {0x41a80000, 0x4035000000000000, 0x4d40, 0x41a8},
        {0x42c80000, 0x4059000000000000, 0x5640, 0x42c8}, {0x43fa0000, 0x407f400000000000, 0x5fd0, 0x43fa},
        {0x7f800000, 0x7ff0000000000000, 0x7c00, 0x7f80}, {0x7fc00000, 0x7ff8000000000000, 0x7e00, 0x7fc0}};
    memcpy(memory.data() + (r * stride + c) * kBytes[dtype], &bits[what][dtype], kBytes[dtype]);
  }
  Logits part(int64_t first, int64_t classes) const {  // some classes, in memory of their own
    Logits x(dtype, rows, classes, 0);
    const int64_t bytes = kBytes[dtype];
    for (int64_t r = 0; r < rows; ++r)
      memcpy(x.memory.data() + r * classes * bytes, memory.data() + (r * stride + first) * bytes, classes * bytes);
    return x;
  }
  void fill(std::mt19937& random, double scale, double mean = 0, double step = 0) {  // step: from block to block
    std::normal_distribution<double> normal(mean, scale);
    for (int64_t i = 0; i < int64_t(memory.size()) / kBytes[dtype]; ++i) {
      const double d = normal(random) + step * (i % stride / 1024);
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

using Numbers = std::vector<double>;
Numbers row(const Logits& x, int64_t r, int64_t classes, const LogitTransform& t, double tau) {
  Numbers y(classes);
  for (int64_t c = 0; c < classes; ++c) y[c] = transformed(x.at(r, c), t) / tau;
  return y;
}

double logsumexp(const Numbers& x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double v : x) sum += std::exp(v - top);
  return top + std::log(sum);
}

// TAMIS_STOP: a mutation run asks for one failure.
int failures = 0;
void failed() {
  ++failures;
#ifdef TAMIS_STOP
  std::fflush(stdout), std::_Exit(1);
#endif
}
void expect(bool right, const char* what, Dtype s, Dtype t, int64_t classes, double got, double want) {
  if (right) return;
  std::printf("%s: %s beside %s, %lld classes: got %.9g, expected %.9g\n", what, kNames[s], kNames[t],
              (long long)classes, got, want);
  failed();
}

template <class Work>
void in_two_threads(int64_t rows, int64_t scratch_bytes, const Work& work) {
  const auto part = [&](int64_t begin, int64_t end) {
    Array<char> scratch((scratch_bytes + 63) / 64 * 64);
    if (begin) std::fill(scratch.begin(), scratch.end(), 0x41);  // numbers that nothing may come of, after NaN
    work(begin, end, scratch.data());
  };
  std::thread first(part, 0, rows / 2);
  part(rows / 2, rows);
  first.join();
}

}  // namespace
