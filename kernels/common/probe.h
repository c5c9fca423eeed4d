// What this machine can do at best: one table of probes per ISA, timed by csrc/native.cpp.
#pragma once
#include <stdint.h>

namespace tamis {

// Works `passes` times through from [bytes] and perhaps to [bytes], both aligned to 64, bytes a multiple of kProbeStep.
// Returns the work done, in the probe's unit.
using Probe = double (*)(const char* from, char* to, int64_t bytes, int64_t passes);

inline constexpr int64_t kProbeStep = 4096;

struct ProbeKernels {
  Probe copy;     // bytes read and bytes written, past the caches
  Probe read;     // bytes
  Probe fma;      // floating-point operations on float32, two a multiply-add; from and to: one step
  Probe exp;      // exponentials of float32, by the fastest the package has; from: floats <= 0 that stay in L1
  Probe shuffle;  // bytes looked up in a table of a register: 16 of them, or 64 with VBMI; from stays in L1
};

namespace v2 {
extern const ProbeKernels probe;
}
namespace v3 {
extern const ProbeKernels probe;
}
namespace v4 {
extern const ProbeKernels probe;
}
namespace v4x {
extern const ProbeKernels probe;
}
namespace neon {
extern const ProbeKernels probe;
}
namespace wide {
extern const ProbeKernels probe;
}  // namespace wide

}  // namespace tamis
