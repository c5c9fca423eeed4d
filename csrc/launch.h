// A launch by the runtime's own function: arguments are checked against the kernel's, and any C++ compiler reads it.
#pragma once
#include <cuda_runtime.h>

namespace tamis {

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, unsigned threads, cudaStream_t stream, A... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}

}  // namespace tamis
