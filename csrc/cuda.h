// What bindings of CUDA launches share. They are built only where nvcc is found, and load beside any torch, one for the
// CPU too.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include "common.h"

extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace tamis {

inline cudaStream_t current_stream(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "tamis: expected a torch built with CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* what, cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

}  // namespace tamis
