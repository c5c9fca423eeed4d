// The instruction sets that kernels are compiled for, best first, and whether this machine runs them. Compiled at
// baseline: this code runs before anything is known about the machine.
#pragma once

namespace tamis {

struct Isa {
  const char* name;
  bool runs;  // every CPUID bit that its compile flags use, and the operating system saves the registers
};

#if defined(__x86_64__)
inline bool has_v2() { return __builtin_cpu_supports("x86-64-v2"); }
inline bool has_v3() { return __builtin_cpu_supports("x86-64-v3"); }
inline bool has_v4() { return __builtin_cpu_supports("x86-64-v4"); }
inline bool has_v4x() {
  return has_v4() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512bf16");
}
// TAMIS_EACH_ISA(X) calls X(name, runs); X pastes the name into a namespace.
#ifdef TAMIS_WIDE
#define TAMIS_EACH_ISA(X) X(v4x, has_v4x()) X(v4, has_v4()) X(v3, has_v3()) X(v2, has_v2()) X(wide, has_v3())
#else
#define TAMIS_EACH_ISA(X) X(v4x, has_v4x()) X(v4, has_v4()) X(v3, has_v3()) X(v2, has_v2())
#endif
#elif defined(__aarch64__)
#define TAMIS_EACH_ISA(X) X(neon, true)
#else
#error "tamis: built for x86-64 and arm64"
#endif

}  // namespace tamis
