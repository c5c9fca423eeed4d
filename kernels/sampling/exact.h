// Arithmetic whose bits are the same on every instruction set and in the twins of triton_draw.py and
// draw_reference.py: IEEE products, sums and quotients of float, each rounded, in this order. No fma, which v2 lacks:
// files that include this are compiled with -ffp-contract=off.
#pragma once
#include "philox.h"

namespace tamis::TAMIS_ISA {

// -log of a uniform number, from 48 bits of it: v = (a + b / 2^24) / 2^24, b odd, so that 1 - v is another such number.
// Below 1/2 it is -log1p(-v), above -log(1 - v), so that both ends are precise: relative error 1.8e-7.
inline F32 exponential(U32 word0, U32 word1) {
  const I32 a = (I32)(word0 >> 8), b = (I32)(word1 >> 8 | 1), upper = a >= 1 << 23;
  const F32 t = __builtin_convertvector(upper ? 0xffffff - a : a, F32) * 0x1p-24f +
                __builtin_convertvector(upper ? (1 << 24) - b : b, F32) * 0x1p-48f;
  // The logarithm of t, or of 1 - t, is n ln 2 + log(1 + f), 1 + f within sqrt(1/2)..sqrt(2); f is exact.
  const I32 bits = (I32)t, exponent = (bits - 0x3f3504f3) >> 23, far = t >= 0.292893231f;  // 0 or -1
  const I32 n = upper ? exponent : far;
  const F32 f = upper ? (F32)(bits - (exponent << 23)) - 1.0f : far ? 1.0f - (t + t) : -t;
  F32 p = f * 0.0873612165f + -0.143071696f;  // minimax
  p = p * f + 0.149173528f;
  p = p * f + -0.165705577f;
  p = p * f + 0.199621439f;
  p = p * f + -0.250017524f;
  p = p * f + 0.333339483f;
  p = p * f + -0.499999911f;
  return -(p * (f * f) + (f + __builtin_convertvector(n, F32) * 0.693147182f));
}

// 1 - exp(-x) of x >= 0; relative error 1e-7. exp(-x) = 2^n (1 + q), q = expm1(r).
inline F32 one_minus_exp(F32 x) {
  const F32 y = -(x < 32.0f ? x : F32{} + 32.0f);
  const F32 n = (y * 1.44269502f + 12582912.0f) - 12582912.0f;
  const F32 r = (y - n * 0.693359375f) - n * -0.000212194442f;  // ln 2 in two parts, the first product exact
  F32 p = r * 0.000198756912f + 0.00139819994f;                 // minimax
  p = p * r + 0.00833345205f;
  p = p * r + 0.0416657962f;
  p = p * r + 0.166666657f;
  p = p * r + 0.5f;
  const F32 q = p * (r * r) + r, power = (F32)((__builtin_convertvector(n, I32) + 127) << 23);
  return (1.0f - power) - power * q;
}

}  // namespace tamis::TAMIS_ISA
