// A row cut at multiples of 16 bytes, whatever its own address: whole slices are one load.
#pragma once
#include "block.cuh"

namespace tamis::cuda {

template <class T>
constexpr int kLanes = 16 / sizeof(T);

template <class T>
struct alignas(16) Vector {
  T lane[kLanes<T>];
};  // 128 bits: one load

// Lanes in [begin, end) lie in the row; the first is element `first`, which may be negative.
template <class T>
struct Slice {
  Vector<T> at;
  int64_t first;
  int begin, end;

  __device__ bool has(int i) const { return i >= begin && i < end; }
  __device__ bool whole() const { return end - begin == kLanes<T>; }
};

template <class T>
__device__ inline int past_of(const T* x) {  // elements from a multiple of 16 bytes
  return int(reinterpret_cast<uintptr_t>(x) % 16 / sizeof(T));
}

template <class T>
struct Row {
  const T* x;
  int64_t n;
  int past;      // elements from where its first slice begins to x
  bool aligned;  // its slices are

  __device__ Row(const T* x, int64_t n) : Row(x, n, past_of(x)) {}
  __device__ Row(const T* x, int64_t n, int past) : x(x), n(n), past(past), aligned(past_of(x) == past) {}

  __device__ int64_t slices() const { return (past + n + kLanes<T> - 1) / kLanes<T>; }
  __device__ int64_t tiles() const { return (past + n + kLanes<T> * kThreads - 1) / (kLanes<T> * kThreads); }
  // Beyond the last slice there are others, without lanes.
  __device__ Slice<T> unread(int64_t number) const {
    Slice<T> s;
    s.first = number * kLanes<T> - past;
    s.begin = int(max(-s.first, int64_t{0}));
    s.end = int(min(n - s.first, int64_t{kLanes<T>}));
    return s;
  }
  __device__ Slice<T> slice(int64_t number) const {
    Slice<T> s = unread(number);
    if (aligned && s.whole()) {
      s.at = *reinterpret_cast<const Vector<T>*>(x + s.first);
    } else {
#pragma unroll
      for (int i = 0; i < kLanes<T>; ++i) s.at.lane[i] = s.has(i) ? x[s.first + i] : T{};
    }
    return s;
  }
};

}  // namespace tamis::cuda
