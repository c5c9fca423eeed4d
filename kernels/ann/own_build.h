// What the files that build an index fill in of their table.
#pragma once
#include "encode.h"

namespace tamis::TAMIS_ISA {

extern const Tables<Centroids> assign_tables[2];
extern int64_t (*const assign_scratch_bytes[2])(const Centroids& centroids);
extern const RowKernel<Assign> assign_kernels[kDtypes];
int64_t rank_scratch_bytes(const Rank& op);
extern const RowKernel<Rank> rank_kernels[kDtypes];

}  // namespace tamis::TAMIS_ISA
