// Compiled at baseline: this code runs before anything is known about the machine.
#include "dispatch.h"
#include <torch/headeronly/util/Exception.h>
#include <atomic>
#include <cstdlib>
#include "isa.h"

namespace tamis {
namespace {

struct Level {
  Kernels kernels;
  bool runs;
};

const Level& level(const std::string& isa) {  // empty: the best
#define TAMIS_LEVEL(name, runs) \
  {{#name, name::distill, name::sampling, name::sparse_mlp, name::ann, name::ann_build}, runs},
  static const Level levels[] = {TAMIS_EACH_ISA(TAMIS_LEVEL)};
#undef TAMIS_LEVEL
  std::string names;
  for (const Level& l : levels) {
    if (isa.empty() ? l.runs : isa == l.kernels.isa) {
      STD_TORCH_CHECK(l.runs, "tamis: TAMIS_ISA: expected an instruction set of this machine, got ", isa);
      return l;
    }
    names += (names.empty() ? "" : ", ") + std::string(l.kernels.isa);
  }
  STD_TORCH_CHECK(!isa.empty(), "tamis: this machine runs none of ", names);
  STD_TORCH_CHECK(false, "tamis: TAMIS_ISA: expected one of ", names, ", got ", isa);
}

std::string forced() {
  const char* isa = std::getenv("TAMIS_ISA");
  return isa ? isa : "";
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{&level(forced()).kernels};
  return kernels;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

std::string isa() { return kernels().isa; }

std::string use_isa(const std::string& isa) { return chosen().exchange(&level(isa).kernels)->isa; }

}  // namespace tamis
