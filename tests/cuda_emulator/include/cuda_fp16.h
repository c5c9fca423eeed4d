// float16, rounded to nearest, ties to even.
#pragma once
#include <cmath>
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};

inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float size = exponent == 31 ? (fraction ? __builtin_nanf("") : __builtin_inff())
                     : exponent     ? std::ldexp(float(1024 + fraction), exponent - 25)
                                    : std::ldexp(float(fraction), -24);
  return x.bits >> 15 ? -size : size;
}

inline __half __float2half_rn(float f) {
  if (f != f) return {0x7fff};
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  const float size = std::fabs(f);
  if (size >= 65520) return {uint16_t(sign | 0x7c00)};  // halfway to the first that is too large
  int exponent = std::ilogb(size);
  if (size == 0 || exponent < -14) exponent = -14;
  const int count = int(std::nearbyint(std::ldexp(size, 10 - exponent)));  // of last places; 2048 carries over
  return {uint16_t(sign | (count < 1024 ? count : ((exponent + 14) << 10) + count))};
}
