#include "csrc/distill.cu"
#include "export.h"

EXPORT int scale_rows(int64_t dtype, const void* gradient, const void* grad, const void* factor, void* out,
                      int64_t rows, int64_t classes, int64_t grad_step) {
  return tamis::launch_scale_rows(tamis::Dtype(dtype), gradient, grad, factor, out, rows, classes, grad_step,
                                  caller_stream);
}

namespace {
template <class T>
int on_grid(dim3 grid, unsigned threads, const void* gradient, const void* grad, const void* factor, void* out,
            int64_t rows, int64_t classes, int64_t grad_step) {
  using R = tamis::cuda::Real<T>;
  return tamis::launch(tamis::cuda::scale_rows_kernel<T>, grid, threads, caller_stream, static_cast<const T*>(gradient),
                       static_cast<const R*>(grad), static_cast<const R*>(factor), static_cast<T*>(out), rows, classes,
                       grad_step);
}
}  // namespace

// The kernel on a grid that the launch would choose for far larger sizes.
EXPORT int scale_rows_on_grid(int64_t dtype, int64_t x, int64_t y, int64_t threads, const void* gradient,
                              const void* grad, const void* factor, void* out, int64_t rows, int64_t classes,
                              int64_t grad_step) {
  const auto run = dtype == tamis::f32   ? on_grid<float>
                   : dtype == tamis::f64 ? on_grid<double>
                   : dtype == tamis::f16 ? on_grid<__half>
                                         : on_grid<__nv_bfloat16>;
  return run(dim3(unsigned(x), unsigned(y)), unsigned(threads), gradient, grad, factor, out, rows, classes, grad_step);
}
