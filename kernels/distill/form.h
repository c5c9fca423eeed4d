// What a divergence does with a row, in the arithmetic's type alone: compiled once, not again for every dtype of
// logits.
#pragma once
#include "block.h"

namespace tamis::TAMIS_ISA {

template <class R>
struct Tops {  // maxima
  R student, teacher;
};

template <class R>
struct Sums {          // of a block or a row
  R student, teacher;  // of exp((x - shift) / tau); of logit_mse 0
  R difference;        // as the form defines it
  R hard;              // of exp(s - shift), where that is wanted
};

// One block of both models, n <= kBlock classes, and where its part of a, b and h lies in the scratch.
template <class R>
struct Read {
  const R *s, *t;
  int64_t n;
  R shift_s, shift_t, inverse_tau;
  const char *next_s, *next_t;  // prefetched as the block is read
  int64_t size_s, size_t_;      // bytes an element there
  R *a, *b, *h;                 // [n, padded]
};

template <class R>
struct Compared {  // of a block or a row, where a divergence compares one class's two probabilities
  R slope, beside;
};

template <class R>
struct Soft {  // tau^2 times the divergence, and its gradient as a * student - b * teacher
  double loss;
  R student, teacher;
};

template <class R>
struct Form {
  // Fills a, b and h (exp(s - shift), where a target counts) and returns the block's sums; each exponential is computed
  // once. Without care it is right where every sum comes out below kTrusted.
  Sums<R> (*careless)(const Read<R>& block);
  Sums<R> (*careful)(const Read<R>& block);
  // Brings what is relative to one pair of maxima to another: sums, and a block's a, b, h.
  Sums<R> (*moved)(const Sums<R>& sums, Tops<R> from, Tops<R> to, R inverse_tau);
  void (*move)(R* a, R* b, R* h, int64_t n, Tops<R> from, Tops<R> to, R inverse_tau);
  // Null, or what it sums over n classes once the row's sums are known; b becomes what the gradient is made of.
  Compared<R> (*compare)(const Sums<R>& sums, double beta, R* a, R* b, int64_t n);
  Soft<R> (*finish)(const Sums<R>& sums, const Compared<R>& compared, R tau, double beta, int64_t classes);
};

// hard: some target counts, and a is not its exponential.
const Form<float>& form(float, Divergence divergence, bool hard, bool gradient);
const Form<double>& form(double, Divergence divergence, bool hard, bool gradient);

namespace {

// Exponentials are taken relative to the first block's maximum, without care and without looking for each block's own.
// A sum that is larger than this, or no number, has its block done again with care, relative to its own maximum: where
// logits grow along the row, overflow, or are -inf or NaN.
constexpr double kTrusted = 1e6;

template <class R>
R rescale(R from, R to, R inverse_tau) {  // of sums relative to `from`; inf - inf would be NaN
  return from == to ? R(1) : from == -kInf ? R(0) : exp((from - to) * inverse_tau);
}

}  // namespace
}  // namespace tamis::TAMIS_ISA
