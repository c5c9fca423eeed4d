// A gradient times the incoming one, row by row.
// Floor: one read and one write; in place and times 1, nothing.
#pragma once
#include "../common/numbers.cuh"
#include "../common/row.cuh"

namespace tamis::cuda {

// A block walks rows. out may be gradient: then rows whose multiplier is exactly 1 are left alone, so that a gradient
// that lies where it belongs costs no traffic, and the host need not know the multiplier.
template <class T>
__global__ void scale_rows_kernel(const T* gradient,      // [rows, classes]
                                  const Real<T>* grad,    // [1] with grad_step 0, or [rows] with 1
                                  const Real<T>* factor,  // [1]
                                  T* out,                 // [rows, classes]
                                  int64_t rows, int64_t classes, int64_t grad_step) {
  constexpr int64_t kVector = kLanes<T>;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const Real<T> times = grad[row * grad_step] * *factor;
    if (out == gradient && times == 1) continue;
    const T* const x = gradient + row * classes;
    T* const y = out + row * classes;
    // Both reach a multiple of 128 bits after the same `head` elements, or neither is read as vectors.
    const int64_t past = past_of(x);
    const bool together = past_of(y) == past;
    const int64_t odd = past ? min(kVector - past, classes) : 0;  // equivalent: choice: more go one by one
    const int64_t head = together ? odd : classes;                // equivalent: choice: likewise
    const int64_t vectors = (classes - head) / kVector, tail = head + vectors * kVector;
    const int64_t thread = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, threads = gridDim.x * int64_t{blockDim.x};
    for (int64_t i = thread; i < vectors; i += threads) {
      Vector<T> v = reinterpret_cast<const Vector<T>*>(x + head)[i];
#pragma unroll
      for (int k = 0; k < kVector; ++k) store(v.lane[k], load(v.lane[k]) * times);
      reinterpret_cast<Vector<T>*>(y + head)[i] = v;
    }
    for (int64_t i = thread; i < head; i += threads) store(y[i], load(x[i]) * times);
    for (int64_t i = tail + thread; i < classes; i += threads) store(y[i], load(x[i]) * times);
  }
}

}  // namespace tamis::cuda
