// What the files of this family fill in of its table.
#pragma once
#include "cpu.h"

namespace tamis::TAMIS_ISA {

extern const RowKernel<GaussianTopK> gaussian_kernels[kDtypes];
extern const RowKernel<GaussianTopK> gaussian_backward_kernels[kDtypes];
extern const RowKernel<Compress> compress_kernels[2];
extern const RowKernel<Expand> expand_kernels[kDtypes];
extern const RowKernel<Gemv> gemv_kernels[kDtypes];
extern const RowKernel<Select> select_kernels[kDtypes];
extern const RowKernel<Slope> slope_kernels[2];
extern const RowKernel<Gather> gather_kernels[kDtypes];
extern const RowKernel<Compare> compare_kernels[kDtypes];
extern const RowKernel<Total> total_kernels[2];
int64_t choose_scratch_bytes(int64_t n, int64_t k);
int64_t select_scratch_bytes(int64_t n, int64_t k);
int64_t blocks_scratch_bytes(int64_t columns);  // enough for fewer columns, too: those have more rows in a tile
void transpose(const Transpose& op, void* scratch);

}  // namespace tamis::TAMIS_ISA
