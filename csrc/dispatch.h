// The kernels of one instruction set, chosen once at run time.
#pragma once
#include <string>
#include "kernels/ann/cpu.h"
#include "kernels/ann/encode.h"
#include "kernels/distill/cpu.h"
#include "kernels/sampling/cpu.h"
#include "kernels/sparse_mlp/cpu.h"

namespace tamis {

struct Kernels {
  const char* isa;
  const DistillKernels& distill;
  const SamplingKernels& sampling;
  const SparseMlpKernels& sparse_mlp;
  const AnnKernels& ann;
  const AnnBuildKernels& ann_build;
};

const Kernels& kernels();  // the widest that this machine runs, or the environment's TAMIS_ISA
std::string isa();
std::string use_isa(const std::string& isa);  // tests: returns the previous one, refuses what the machine lacks

}  // namespace tamis
