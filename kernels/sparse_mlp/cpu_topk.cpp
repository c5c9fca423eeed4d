// topk: a row's k largest, exactly.
// Floor: the row read once, k values and indices written.
#include "choose.h"
#include "own.h"

namespace tamis::TAMIS_ISA {
namespace {

template <class T>
void largest(const TopK& op, int64_t begin, int64_t end, void* scratch) {
  using R = Real<T>;
  const int64_t n = op.x.classes, k = op.k;
  const Work<R> w(scratch, n, k);
  const T* const last = row_of<T>(op.x, end - 1);
  for (int64_t r = begin; r < end; ++r) {
    const T* const x = row_of<T>(op.x, r);
    const int64_t* const from = choose(x, n, w, op.sorted, x == last ? nullptr : row_of<T>(op.x, r + 1));
    T* const values = static_cast<T*>(op.values) + r * k;
    int64_t* const indices = op.indices + r * k;
    for (int64_t i = 0; i < k; ++i) values[i] = x[from[i]], indices[i] = from[i];
  }
}

const RowKernel<TopK> topk_kernels[kDtypes] = {largest<float>, largest<double>, largest<Float16>, largest<BFloat16>};

}  // namespace

int64_t choose_scratch_bytes(int64_t n, int64_t k) {
  const int64_t one = Work<float>::bytes(n, k), other = Work<double>::bytes(n, k);
  return one > other ? one : other;
}

const SparseMlpKernels sparse_mlp = {topk_kernels,         gaussian_kernels, gaussian_backward_kernels,
                                     gemv_kernels,         select_kernels,   choose_scratch_bytes,
                                     select_scratch_bytes, gather_kernels,   compare_kernels,
                                     blocks_scratch_bytes, slope_kernels,    transpose,
                                     compress_kernels,     expand_kernels,   total_kernels};

}  // namespace tamis::TAMIS_ISA
