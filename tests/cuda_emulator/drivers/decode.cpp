#include "csrc/sparse_mlp_decode.cu"
#include "export.h"

EXPORT int project(int64_t dtype, const void* x, int64_t tokens, int64_t d, const void* w_up, int64_t up_stride,
                   const void* b_up, const void* w_gate, int64_t gate_stride, const void* b_gate, int64_t d_ff,
                   int64_t activation, void* hidden, void* rank) {
  return tamis::launch_project(tamis::Dtype(dtype),
                               {x,
                                tokens,
                                d,
                                {w_up, up_stride, b_up},
                                {w_gate, gate_stride, b_gate},
                                d_ff,
                                tamis::Activation(activation),
                                hidden,
                                rank},
                               caller_stream);
}
// For how many tokens the kernel that serves so many was compiled.
EXPORT int64_t project_width(int64_t tokens) {
  const auto kernel = tamis::project_of<float>(tokens);
  return kernel == tamis::cuda::project_kernel<float, 1>   ? 1
         : kernel == tamis::cuda::project_kernel<float, 2> ? 2
         : kernel == tamis::cuda::project_kernel<float, 4> ? 4
                                                           : 8;
}
EXPORT int gather_rows(int64_t dtype, const void* hidden, const int64_t* index, int64_t tokens, int64_t k, int64_t d_ff,
                       const void* w, int64_t stride, int64_t columns, const void* bias, void* out) {
  return tamis::launch_gather_rows(tamis::Dtype(dtype), {hidden, index, tokens, k, d_ff, w, stride, columns, bias, out},
                                   caller_stream);
}
