// Checks, shapes and allocation that every binding needs.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>
#include "huge_pages.h"
#include "kernels/common/matrix.h"

namespace tamis {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// `what` names an argument in errors: "tamis.distill_loss: student_logits".
inline Dtype dtype_of(const char* what, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return f32;
    case ScalarType::Double:
      return f64;
    case ScalarType::Half:
      return f16;
    case ScalarType::BFloat16:
      return bf16;
    default:
      STD_TORCH_CHECK(false, what, ": expected float32, bfloat16, float16 or float64, got ",
                      torch::headeronly::toString(t.scalar_type()));
  }
}

// Of sums and statistics: double for double, else float.
inline ScalarType real_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Large results: glibc gives their pages back at every free, and 4 KiB page faults then cost more than the arithmetic.
inline Tensor advise_huge_pages(Tensor t) {
  advise_huge_pages(t.data_ptr(), t.numel() * t.element_size());
  return t;
}

inline std::vector<int64_t> shape(const Tensor& t) {
  std::vector<int64_t> sizes(t.dim());
  for (int64_t i = 0; i < t.dim(); ++i) sizes[i] = t.size(i);
  return sizes;
}

inline std::vector<int64_t> leading(const Tensor& t) {
  std::vector<int64_t> sizes = shape(t);
  sizes.pop_back();
  return sizes;
}

inline int64_t rows_of(const Tensor& t) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < t.dim(); ++i) rows *= t.size(i);
  return rows;
}

// How leading axes are walked, or nothing where two strides cannot or the classes do not lie side by side.
inline std::optional<Matrix> walk(const Tensor& t) {
  const int64_t classes = t.size(t.dim() - 1), rows = rows_of(t);
  if (rows == 0) return Matrix{t.const_data_ptr(), classes, classes, 1, 0};
  if (classes > 1 && t.stride(t.dim() - 1) != 1) return std::nullopt;
  struct Axis {
    int64_t size, stride;
  } axes[2] = {};  // outer first
  int count = 0;
  for (int64_t i = 0; i + 1 < t.dim(); ++i) {
    const Axis axis = {t.size(i), t.stride(i)};
    if (axis.size == 1) continue;
    if (count && axes[count - 1].stride == axis.size * axis.stride) {
      axes[count - 1] = {axes[count - 1].size * axis.size, axis.stride};
    } else if (count == 2) {
      return std::nullopt;
    } else {
      axes[count++] = axis;
    }
  }
  switch (count) {
    case 0:
      return Matrix{t.const_data_ptr(), classes, classes, rows, 0};
    case 1:
      return Matrix{t.const_data_ptr(), classes, axes[0].stride, rows, 0};
    default:
      return Matrix{t.const_data_ptr(), classes, axes[1].stride, axes[1].size, axes[0].stride};
  }
}

// A view that repeats axes of size 1.
inline Tensor expand(const char* what, const Tensor& t, const std::vector<int64_t>& sizes) {
  const int64_t lacks = int64_t(sizes.size()) - t.dim();
  bool fits = lacks >= 0;
  for (int64_t i = 0; fits && i < t.dim(); ++i) fits = t.size(i) == 1 || t.size(i) == sizes[i + lacks];
  STD_TORCH_CHECK(fits, what, ": expected a shape that broadcasts to the logits', got ", t.numel(), " numbers of rank ",
                  t.dim());
  using torch::stable::detail::from;
  StableIValue stack[] = {from(t), from(torch::headeronly::IntHeaderOnlyArrayRef(sizes)), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::expand", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// How a kernel is given them.
inline Matrix first_classes(const Tensor& t, int64_t classes) {
  Matrix m = *walk(t);
  m.classes = classes;
  return m;
}

inline LogitTransform transform(double scale, std::optional<double> cap) { return {scale, cap.value_or(0)}; }

// Checked logits; copied only where walk() cannot.
inline Tensor logits(const char* what, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cpu(), what, ": expected a CPU tensor");
  STD_TORCH_CHECK(t.dim() >= 1 && t.size(t.dim() - 1) > 0, what,
                  ": expected [*, classes] with at least one class, got ", t.dim() ? "none" : "a number");
  dtype_of(what, t);
  return walk(t) ? t : torch::stable::contiguous(t);
}

enum class Count { one, each, either };

// A number for all rows, or one each in the shape of the leading axes; as `real`.
inline Tensor scalars(const char* what, const Tensor& t, ScalarType real, const std::vector<int64_t>& rows,
                      Count count) {
  STD_TORCH_CHECK(t.is_cpu(), what, ": expected a CPU tensor");
  const bool one = t.dim() == 0 && count != Count::each, each = shape(t) == rows && count != Count::one;
  STD_TORCH_CHECK(one || each, what, ": expected ",
                  count == Count::one    ? "a number"
                  : count == Count::each ? "one number per row"
                                         : "a number or one per row",
                  " in the shape of the leading axes, got ", t.numel(), " numbers of rank ", t.dim());
  return torch::stable::contiguous(t.scalar_type() == real ? t : torch::stable::to(t, real));
}

// One number, from the host.
inline double number(const char* what, const Tensor& t) {
  const Tensor x = scalars(what, t, ScalarType::Double, {}, Count::one);
  return *static_cast<const double*>(x.const_data_ptr());
}

// Rows per task: enough elements that starting a thread pays.
inline int64_t grain(int64_t classes) { return 1 + 32768 / (1 + classes); }

// Aligned memory that a kernel works in; null where there is none, which a worker must report and not throw.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : data_(std::aligned_alloc(64, (bytes + 63) / 64 * 64)) {}
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

// Runs a kernel over rows, on all threads.
using RowsKernel = std::function<void(int64_t begin, int64_t end, void* scratch)>;
inline void over_rows(const char* what, int64_t rows, int64_t classes, int64_t scratch_bytes,
                      const RowsKernel& kernel) {
  std::atomic<bool> starved{false};
  torch::stable::parallel_for(0, rows, grain(classes), [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_bytes);
    scratch.data() ? kernel(begin, end, scratch.data()) : starved.store(true);
  });
  STD_TORCH_CHECK(!starved, what, ": out of memory");
}

}  // namespace tamis
