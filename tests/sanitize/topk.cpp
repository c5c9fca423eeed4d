// Drives the top-k kernels of one instruction set without torch: under sanitizers (`make sanitize`), or another CPU's
// emulator. Every buffer is as long as its numbers and no longer, two threads share the rows, and results are held
// against a stable sort.
#include "../../kernels/sparse_mlp/cpu.h"
#include <numeric>
#include "driver.h"

namespace {

enum Order { random_order, ascending, ties, nans };

void arrange(Logits& x, Order order, std::mt19937& random) {
  x.fill(random, 3);
  if (order == random_order) return;
  for (int64_t r = 0; r < x.rows; ++r)
    for (int64_t c = 0; c < x.width; ++c) {
      char* const p = x.memory.data() + (r * x.stride + c) * kBytes[x.dtype];
      const float zero = c % 2 ? -0.0f : 0.0f;
      const float value = order == ascending ? float(c)
                          : order == nans    ? (c % 2 ? NAN : -INFINITY)
                          : c % 3 == 1       ? zero
                                             : float(c % 3) - 1;
      const double wide = value;
      uint32_t bits;
      memcpy(&bits, &value, 4);
      const uint16_t top = bits >> 16, half = order == ascending ? uint16_t(c % 0x7c00)  // subnormals first
                                              : order == nans    ? uint16_t(c % 2 ? 0x7e00 : 0xfc00)
                                              : value != 0       ? uint16_t(value > 0 ? 0x3c00 : 0xbc00)
                                                                 : uint16_t(c % 2 ? 0x8000 : 0);
      const void* const from = x.dtype == f64   ? static_cast<const void*>(&wide)
                               : x.dtype == f32 ? static_cast<const void*>(&value)
                               : x.dtype == f16 ? static_cast<const void*>(&half)
                                                : static_cast<const void*>(&top);
      memcpy(p, from, kBytes[x.dtype]);
    }
}

void check(Dtype dtype, int64_t n, int64_t k, Order order, bool sorted) {
  std::mt19937 random(unsigned(n * 31 + k));
  const int64_t rows = 3;
  Logits x(dtype, rows, n, 5);
  arrange(x, order, random);
  Array<char> values(rows * k * kBytes[dtype]);
  Array<int64_t> indices(rows * k);
  const TopK op = {x.matrix(n), k, sorted, values.data(), indices.data()};
  const auto& kernels = TAMIS_ISA::sparse_mlp;
  in_two_threads(rows, kernels.choose_scratch_bytes(n, k),
                 [&](int64_t begin, int64_t end, void* scratch) { kernels.topk[dtype](op, begin, end, scratch); });
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<int64_t> wanted(n);
    std::iota(wanted.begin(), wanted.end(), 0);
    std::stable_sort(wanted.begin(), wanted.end(), [&](int64_t i, int64_t j) {
      const double a = x.at(r, i), b = x.at(r, j);
      return std::isnan(a) ? !std::isnan(b) : a > b;
    });
    wanted.resize(k);
    if (!sorted) std::sort(wanted.begin(), wanted.end());
    bool right = std::equal(wanted.begin(), wanted.end(), indices.begin() + r * k);
    for (int64_t i = 0; right && i < k; ++i)
      right = !memcmp(values.data() + (r * k + i) * kBytes[dtype],
                      x.memory.data() + (r * x.stride + wanted[i]) * kBytes[dtype], kBytes[dtype]);
    if (right) continue;
    std::printf("%s: n %ld, k %ld, order %d, %s, row %ld\n", kNames[dtype], long(n), long(k), int(order),
                sorted ? "sorted" : "by index", long(r));
    failed();
  }
}

}  // namespace

int main() {
  for (int dtype = 0; dtype < kDtypes; ++dtype)
    for (int64_t n : {1, 5, 63, 64, 65, 127, 300, 1024, 5001})
      for (int64_t k : {int64_t(1), int64_t(7), int64_t(64), int64_t(65), n / 2, n - 1, n})
        for (Order order : {random_order, ascending, ties, nans})
          for (bool sorted : {true, false})
            if (k >= 1 && k <= n) check(Dtype(dtype), n, k, order, sorted);
  for (Order order : {random_order, ascending, ties, nans}) check(f32, 20001, 70, order, true);  // some segments
  std::printf("%d failures\n", failures);
  return failures != 0;
}
