// Binds the launches in distill.cu.
#include <torch/csrc/stable/library.h>
#include "cuda.h"
#include "distill_cuda.h"

namespace tamis {
namespace {

void scale_rows(const Tensor& gradient, const Tensor& grad, const Tensor& factor, Tensor out) {
  const char* const what = "tamis._scale_rows_cuda";
  STD_TORCH_CHECK(gradient.dim() >= 1 && gradient.is_contiguous() && out.is_contiguous() &&
                      out.sizes().equals(gradient.sizes()) && out.scalar_type() == gradient.scalar_type(),
                  what, ": out: expected gradient's shape and dtype, both contiguous");
  const int64_t rows = rows_of(gradient);
  const ScalarType real = real_type(gradient);
  STD_TORCH_CHECK((grad.dim() == 0 || grad.numel() == rows) && grad.is_contiguous() && grad.scalar_type() == real, what,
                  ": grad: expected a number or one per row, float32, or float64 for float64");
  STD_TORCH_CHECK(factor.numel() == 1 && factor.scalar_type() == real, what, ": factor: expected one number");
  for (const Tensor* t : {&grad, &factor, static_cast<const Tensor*>(&out)})
    STD_TORCH_CHECK(t->is_cuda() && t->get_device() == gradient.get_device(), what, ": expected all on one device");
  const torch::stable::accelerator::DeviceGuard guard(gradient.get_device());
  check_launch(what, launch_scale_rows(dtype_of(what, gradient), gradient.const_data_ptr(), grad.const_data_ptr(),
                                       factor.const_data_ptr(), out.mutable_data_ptr(), rows,
                                       gradient.size(gradient.dim() - 1), grad.dim() != 0, current_stream(gradient)));
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_FRAGMENT(tamis, m) {
  m.def("_scale_rows_cuda(Tensor gradient, Tensor grad, Tensor factor, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(tamis, CUDA, m) { m.impl("_scale_rows_cuda", TORCH_BOX(&tamis::scale_rows)); }
