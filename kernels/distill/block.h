// What the files of this family share.
#pragma once
#include "cpu.h"
#include "../common/logits.h"

namespace tamis::TAMIS_ISA {

extern const LossKernel loss_kernels[kDtypes][kDtypes];
extern const TopkKernel topk_kernels[kDtypes];
extern const StatsKernel stats_kernels[kDtypes][kDtypes];
extern const TileKernel tile_kernels[kDtypes][kDtypes];
extern const DistributionCheck distribution_checks[kDtypes];
int64_t topk_scratch_bytes(int64_t classes, int64_t entries);
int64_t bad_index(const int64_t* indices, int64_t entries, int64_t classes, int64_t begin, int64_t end, void* scratch);

namespace {

// Elements of scratch a row of exponentials takes: whole vectors, wherever they start.
inline int64_t padded(int64_t classes) { return (classes + 2 * kLanes<F32> - 1) / kLanes<F32> * kLanes<F32>; }
// Of a walk over both models: two blocks, three rows of exponentials, three numbers a block, all as wide as a double.
inline int64_t scratch_bytes(int64_t classes) {
  return 8 * (2 * kBlock + 3 * padded(classes) + 3 * (classes / kBlock + 1));
}

}  // namespace
}  // namespace tamis::TAMIS_ISA
