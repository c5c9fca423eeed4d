// The drawing kernels, filled in by cpu_draw.cpp.
// Probabilities are float or double, and kernels of them come in this order.
#pragma once
#include "../common/matrix.h"

namespace tamis {

struct Population {
  const void* probs;   // [n]
  const int64_t* ids;  // [n], or null: of the example at position i it is i
  int64_t seed, offset;
};

// Of races: float bits, 31 of them, which order as integers do.
constexpr uint32_t kNever = 0x7fffffff;  // the key of a probability of 0
constexpr int64_t kBins = 2048;          // of a histogram of keys
constexpr int kBinShift = 20;

// The key of a given rank among `count` keys of one bin.
struct Ranked {
  uint32_t key;
  int64_t below, equal;  // how many keys are
};

struct Weighing {
  float cap;  // a weight at most
  bool inclusion;
  float tau;  // inclusion: the key that the weights are conditional on
};

// Masses floor(p * first * second), whose sum is below 2^62; first and second are powers of two.
struct Masses {
  double first, second;
};

struct DrawKernels {
  // Begin is a multiple of 64, a bit of mask says who was drawn; their number, or -1 where some p is not within 0..1.
  int64_t (*poisson[2])(const Population& of, int64_t begin, int64_t end, uint64_t* mask);
  void (*take_masked[2])(const void* probs, const uint64_t* mask, int64_t begin, int64_t end, float cap,
                         int64_t* indices, float* weights);
  // Keys, and how many fall into each bin; false where some p is negative or not finite.
  bool (*race[2])(const Population& of, int64_t begin, int64_t end, uint32_t* keys, uint32_t* histogram);
  // Keys within low..high: copied, counted; their positions.
  int64_t (*gather)(const uint32_t* keys, int64_t begin, int64_t end, uint32_t low, uint32_t high, uint32_t* out);
  int64_t (*count)(const uint32_t* keys, int64_t begin, int64_t end, uint32_t low, uint32_t high);
  int64_t (*find)(const uint32_t* keys, int64_t begin, int64_t end, uint32_t low, uint32_t high, int64_t* out);
  uint32_t (*least_above)(const uint32_t* keys, int64_t begin, int64_t end, uint32_t key);
  Ranked (*rank)(const uint32_t* keys, int64_t count, int64_t rank);
  void (*take_keyed[2])(const void* probs, const uint32_t* keys, int64_t begin, int64_t end, uint32_t threshold,
                        const Weighing& how, int64_t* indices, float* weights, float* out_keys);
  // The largest p; NaN where some is negative or not finite.
  double (*largest[2])(const void* probs, int64_t begin, int64_t end);
  int64_t (*mass[2])(const void* probs, const int64_t* order, int64_t begin, int64_t end, Masses masses);
  // Points within 0..total, in the order of the draws; those of `systematic` ascend.
  void (*systematic)(int64_t seed, int64_t offset, int64_t total, int64_t draws, int64_t begin, int64_t end,
                     int64_t* points);
  void (*independent)(int64_t seed, int64_t offset, int64_t total, int64_t begin, int64_t end, int64_t* points);
  // Ascending points below the sum of masses up to `end` become the positions that they fall on; before: the sum up to
  // `begin`. How many there were.
  int64_t (*place[2])(const void* probs, const int64_t* order, int64_t begin, int64_t end, Masses masses,
                      int64_t before, int64_t* points, int64_t count);
  void (*weigh[2])(const void* probs, Masses masses, int64_t total, int64_t draws, float cap, const int64_t* indices,
                   int64_t begin, int64_t end, float* weights);
  void (*words)(const int64_t* ids, int64_t seed, int64_t offset, int64_t begin, int64_t end, int64_t* out);  // [n, 4]
};

}  // namespace tamis
