// Binds the launches in distill.cu. Built only where nvcc is found; loads beside any torch, one for the CPU too.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include "common.h"
#include "distill_cuda.h"

extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace tamis {
namespace {

cudaStream_t current_stream(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "tamis: expected a torch built with CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device(), &stream));
  return static_cast<cudaStream_t>(stream);
}

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
  const cudaError_t error = launch_scale_rows(
      dtype_of(what, gradient), gradient.const_data_ptr(), grad.const_data_ptr(), factor.const_data_ptr(),
      out.mutable_data_ptr(), rows, gradient.size(gradient.dim() - 1), grad.dim() != 0, current_stream(gradient));
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

}  // namespace
}  // namespace tamis

STABLE_TORCH_LIBRARY_FRAGMENT(tamis, m) {
  m.def("_scale_rows_cuda(Tensor gradient, Tensor grad, Tensor factor, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(tamis, CUDA, m) { m.impl("_scale_rows_cuda", TORCH_BOX(&tamis::scale_rows)); }
