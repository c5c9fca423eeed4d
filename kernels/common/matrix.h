// What a binding hands to a kernel. Read at baseline and at every ISA, so data only, no code.
#pragma once
#ifndef __CUDACC_RTC__  // device.cuh has them there
#include <stdint.h>
#endif

namespace tamis {

enum Dtype { f32, f64, f16, bf16, kDtypes };

// Logits with any leading axes that two strides can walk: row r lies at (r / group) * group_stride + (r % group) *
// stride elements. So `logits[:, :-1]` of a language model is read in place. Classes lie side by side.
struct Matrix {
  const void* data;
  int64_t classes, stride, group, group_stride;
};

// Rows begin..end; scratch is the thread's own.
template <class Op>
using RowKernel = void (*)(const Op& op, int64_t begin, int64_t end, void* scratch);

struct LogitTransform {  // x -> cap * tanh(scale * x / cap); cap 0: scale * x
  double scale, cap;
};

}  // namespace tamis
