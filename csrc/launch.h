// A launch by the runtime's own function: arguments are checked against the kernel's, and any C++ compiler reads it.
#pragma once
#include <cuda_runtime.h>
#include <mutex>

namespace tamis {

// shared: bytes that the kernel finds as its dynamic shared memory.
template <class... P, class... A>
cudaError_t launch_with(size_t shared, void (*kernel)(P...), dim3 grid, unsigned threads, cudaStream_t stream,
                        A... arguments) {
  static std::mutex mutex;  // what a kernel may ask for is the kernel's: another thread may want less
  std::unique_lock<std::mutex> lock(mutex, std::defer_lock);
  if (shared) {  // equivalent: check: 0 may be asked for
    lock.lock();
    const void* const name = reinterpret_cast<const void*>(kernel);
    const cudaError_t error = cudaFuncSetAttribute(name, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, unsigned threads, cudaStream_t stream, A... arguments) {
  return launch_with(0, kernel, grid, threads, stream, arguments...);
}

}  // namespace tamis
