// The family's table. Compiled once per ISA.
#include "block.h"

namespace tamis::TAMIS_ISA {

const DistillKernels distill = {loss_kernels, stats_kernels,  scratch_bytes,
                                plan_kernels, reduce_kernels, scale_kernels};

}  // namespace tamis::TAMIS_ISA
