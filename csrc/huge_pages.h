// Large memory in huge pages, where the system has them: 4 KiB pages cost a fault each, and a walk each time that one
// of many is read.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace tamis {

inline constexpr int64_t kLarge = 4 << 20;  // bytes

// Memory that nobody has touched gets them as it is; `now`: what is there is moved into them, from Linux 6.1 on.
inline void advise_huge_pages(void* data, int64_t bytes, bool now = false) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  static const bool wanted = [] {
    const char* const choice = std::getenv("TAMIS_HUGE_PAGES");
    return !choice || std::strcmp(choice, "0") != 0;
  }();
  if (!wanted || bytes < kLarge) return;
  const uintptr_t page = 4096, begin = ((uintptr_t)data + page - 1) / page * page;
  const uintptr_t end = ((uintptr_t)data + bytes) / page * page;
  madvise((void*)begin, end - begin, MADV_HUGEPAGE);  // advice: a refusal changes nothing
  constexpr int kCollapse = 25;                       // MADV_COLLAPSE, which older headers lack
  if (now) madvise((void*)begin, end - begin, kCollapse);
#endif
}

}  // namespace tamis
