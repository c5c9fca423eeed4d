// Activations and their slopes. NaN gives NaN.
#pragma once
#include "../common/simd.h"
#include "cpu.h"

namespace tamis::TAMIS_ISA {
namespace {

// Of a normal variable, P(< x): Abramowitz and Stegun 7.1.26, whose error is 1.5e-7, on the side where it is small.
inline F32 normal_cdf(F32 x) {
  const F32 z = (F32)((U32)x & 0x7fffffff) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
  F32 p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const F32 tail = 0.5f * p * t * exp_nonpositive(-z * z, 1.0f);
  return x < 0 ? tail : 1.0f - tail;
}
inline F64 normal_cdf(F64 x) {
  for (int i = 0; i < kLanes<F64>; ++i) x[i] = 0.5 * ::erfc(-x[i] * 0.70710678118654752);
  return x;
}
template <class V>
using NumberOf = decltype(V{}[0] + 0);
template <class V>
V normal_pdf(V x) {
  return exp_nonpositive(-0.5f * x * x, 1.0f) * NumberOf<V>(0.398942280401432678);
}
template <class V>
V sigmoid(V x) {
  const V e = exp_nonpositive(x < 0 ? x : -x, 1.0f), s = 1 / (1 + e);
  return x < 0 ? e * s : s;
}
// The tanh form of gelu is x * sigmoid(2u).
template <class V>
V gelu_exponent(V x) {
  return x * (NumberOf<V>(1.59576912160573081) + NumberOf<V>(0.0713548162726009) * x * x);
}

template <Activation kActivation, class V>
V act(V x) {
  switch (kActivation) {
    case relu:
      return x < 0 ? V{} : x;
    case squared_relu:
      return x < 0 ? V{} : x * x;
    case gelu:
      return x * normal_cdf(x);
    case gelu_tanh:
      return x * sigmoid(gelu_exponent(x));
    default:
      return x * sigmoid(x);
  }
}

template <Activation kActivation, class V>
V slope(V x) {
  switch (kActivation) {
    case relu:
      return x > 0 ? V{} + 1 : V{};
    case squared_relu:
      return x > 0 ? 2 * x : V{};
    case gelu:
      return normal_cdf(x) + x * normal_pdf(x);
    case gelu_tanh: {
      const V s = sigmoid(gelu_exponent(x));
      return s + x * s * (1 - s) * (NumberOf<V>(1.59576912160573081) + NumberOf<V>(0.2140644488178027) * x * x);
    }
    default: {
      const V s = sigmoid(x);
      return s + x * s * (1 - s);
    }
  }
}

// use.run<activation>() of the one asked for.
template <class Use>
auto with_activation(Activation a, Use use) {
  switch (a) {
    case relu:
      return use.template run<relu>();
    case squared_relu:
      return use.template run<squared_relu>();
    case gelu:
      return use.template run<gelu>();
    case gelu_tanh:
      return use.template run<gelu_tanh>();
    default:
      return use.template run<silu>();
  }
}

}  // namespace
}  // namespace tamis::TAMIS_ISA
