// What the drivers of a search share: what is found in which order, codes, and the bytes that they are looked up in.
// All numbers are whole, or so many halves, so that plain loops know them.
#pragma once
#include "../../kernels/ann/cpu.h"
#include "driver.h"

namespace {

const auto& kernels = TAMIS_ISA::ann;
using Random = std::mt19937;

int whole(Random& random, int low, int high) { return low + int(random() % unsigned(high - low + 1)); }
bool once_in(Random& random, int n) { return random() % n == 0; }
template <class T, size_t n>
T any(Random& random, const T (&of)[n]) {
  return of[random() % n];
}

int64_t padded(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

struct Scored {
  double score;
  int64_t position;
};
using Found = std::vector<Scored>;

// The best of them, of equal ones those of the lowest position.
void keep_best(Found& x, int64_t k) {
  std::sort(x.begin(), x.end(), [](const Scored& a, const Scored& b) {
    return a.score != b.score ? a.score > b.score : a.position < b.position;
  });
  if (int64_t(x.size()) > k) x.resize(k);
}

void expect_found(const char* what, int64_t of, const Found& want, int64_t k, const float* values,
                  const int64_t* positions, double nobody) {
  for (int64_t j = 0; j < k; ++j) {
    const bool there = j < int64_t(want.size());
    const double position = there ? double(want[j].position) : -1, value = there ? want[j].score : nobody;
    expect(positions[j] == position, what, f32, f32, of, double(positions[j]), position);
    expect(values[j] == value || std::fabs(values[j] - value) <= 1e-5 * (1 + std::fabs(value)), "value", f32, f32, of,
           values[j], value);
  }
}

Array<uint64_t> drawn_bits(Random& random, int64_t n, int one_in) {
  Array<uint64_t> bits(n / 64 + 2);
  for (uint64_t& word : bits) {
    word = 0;
    for (int i = 0; i < 64; ++i) word |= uint64_t(once_in(random, one_in)) << i;
  }
  return bits;
}
bool is_set(const Array<uint64_t>& bits, int64_t i) { return bits.empty() || (bits[i / 64] >> (i % 64) & 1); }

using Rows = Array<uint8_t>;
Rows pack(const Rows& codes, int64_t n, int64_t parts, int bits) {
  const int64_t blocks = (n + block_vectors(bits) - 1) / block_vectors(bits), bytes = blocks * block_bytes(bits, parts);
  Rows out(bytes + kCodesSlack);
  const int64_t half = blocks / 2 * block_bytes(bits, parts);
  const Pack op = {codes.data(), n, parts, bits, out.data()};
  std::fill(out.begin() + half, out.begin() + bytes, 0);
  kernels.pack(op, 0, blocks / 2, nullptr);
  for (int64_t i = half; i < bytes; ++i) expect(out[i] == 0, "pack: another's block", f32, f32, n, out[i], 0);
  std::fill(out.begin(), out.begin() + bytes, 0xff);
  in_two_threads(blocks, 0, [&](int64_t begin, int64_t end, void*) { kernels.pack(op, begin, end, nullptr); });
  for (int64_t i = 0; i < kCodesSlack; ++i)
    expect(out[bytes + i] == 0xff, "pack: behind the blocks", f32, f32, n, out[bytes + i], 0xff);
  return out;
}

// The bytes that a query's sums are made of.
struct Entries {
  std::vector<int> at;  // [parts, centroids]
  float scale, offset = 0;
  int most = 0;  // how far from 0 a sum can be
};

Entries entries_of(const float* lut, int64_t parts, int64_t centroids, Lookup lookup, float finest = INFINITY) {
  const bool is_signed = lookup == Lookup::s8;
  Entries made;
  std::vector<float> from(parts);
  constexpr float kMostSigned = 63;
  float spread = 0, furthest = 0;
  double unit = 0;  // the numbers are whole in units of a power of two
  for (int64_t i = 0; i < parts * centroids; ++i) {
    const double apart = std::fabs(double(lut[i]) - lut[i / centroids * centroids]);
    unit = std::max(unit, apart > 1e-35 ? std::exp2(std::floor(std::log2(apart))) : 0);
  }
  if (unit == 0) unit = 1;
  for (int64_t p = 0; p < parts; ++p) {
    double sum = 0, squares = 0, low = INFINITY, high = -INFINITY;
    for (int64_t c = 0; c < centroids; ++c) {
      const double x = lut[p * centroids + c] / unit;
      sum += x, squares += x * x, low = std::min(low, x), high = std::max(high, x);
    }
    const double mean = sum / double(centroids);
    from[p] = float((is_signed ? mean : low) * unit);
    spread =
        is_signed ? spread + float(squares / double(centroids) - mean * mean) : std::max(spread, float(high - low));
    furthest = std::max(furthest, float(std::max(high - mean, mean - low)));
    made.offset += from[p];
  }
  made.scale = is_signed ? std::min(28 / std::sqrt(spread), kMostSigned / furthest) : 255 / spread;
  made.scale = spread > 0 ? std::min(float(made.scale / unit), finest) : finest < INFINITY ? finest : 1;
  for (int64_t p = 0; p < parts; ++p) {
    int most = 0;
    for (int64_t c = 0; c < centroids; ++c) {
      const float entry = std::nearbyint((lut[p * centroids + c] - from[p]) * made.scale);
      made.at.push_back(
          int(std::min(std::max(entry, is_signed ? -kMostSigned : 0.f), is_signed ? kMostSigned : 255.f)));
      most = std::max(most, std::abs(made.at.back()));
    }
    made.most += most;
  }
  return made;
}

int sum_of(const Entries& entries, const uint8_t* code, int64_t parts, int bits) {
  int sum = 0;
  for (int64_t p = 0; p < parts; ++p) sum += entries.at[(p << bits) + code[p]];
  return sum;
}

// So that the average over a part's centroids is whole: each has its opposite.
void draw_centroids(Random& random, float* out, int64_t centroids, int low, int high) {
  const int middle = whole(random, -2, 2);
  for (int64_t c = 0; c < centroids; c += 2) {
    const int x = whole(random, low, high);
    out[c] = float(middle + x), out[c + 1] = float(middle - x);
  }
}

void put_whole(Logits& x, int64_t r, int64_t c, int v) {  // below 256: in any dtype
  char* const at = x.memory.data() + (r * x.stride + c) * kBytes[x.dtype];
  const float f = float(v);
  uint32_t bits;
  memcpy(&bits, &f, 4);
  const int exponent = int(bits >> 23 & 255) - 127 + 15;
  const uint16_t half = v ? uint16_t(bits >> 16 & 0x8000) | uint16_t(exponent << 10) | (bits >> 13 & 1023) : 0;
  const uint16_t top = uint16_t(bits >> 16);
  memcpy(at, x.dtype == f32 ? static_cast<const void*>(&bits) : x.dtype == f16 ? &half : &top, kBytes[x.dtype]);
}

double exact_score(const float* q, const Logits& x, int64_t r, bool l2) {
  double sum = 0;
  for (int64_t i = 0; i < x.width; ++i) {
    const double of = x.at(r, i), apart = q[i] - of;
    sum += l2 ? -apart * apart : q[i] * of;
  }
  return sum;
}

}  // namespace
