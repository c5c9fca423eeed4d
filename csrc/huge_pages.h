// Large memory in huge pages, where the system has them: 4 KiB pages cost a fault each, and a walk each time that one
// of many is read.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace tamis {

inline constexpr int64_t kLarge = 4 << 20;  // bytes

#ifdef __linux__
inline bool allow_huge_pages() {  // the system; a collapse would not look
  static const bool never = [] {
    char line[64] = "";
    if (std::FILE* const file = std::fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r")) {
      if (!std::fgets(line, sizeof line, file)) line[0] = 0;
      std::fclose(file);
    }
    return std::strstr(line, "[never]") != nullptr;
  }();
  return !never;
}
#endif

// Memory that nobody has touched gets them as it is; `now`: what is there is moved into them, from Linux 6.1 on.
inline void advise_huge_pages(void* data, int64_t bytes, bool now = false) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  static const bool wanted = [] {
    const char* const choice = std::getenv("TAMIS_HUGE_PAGES");
    return !choice || std::strcmp(choice, "0") != 0;
  }();
  if (!wanted || bytes < kLarge) return;
  const uintptr_t page = sysconf(_SC_PAGESIZE), begin = ((uintptr_t)data + page - 1) / page * page;
  const uintptr_t end = ((uintptr_t)data + bytes) / page * page;
  madvise((void*)begin, end - begin, MADV_HUGEPAGE);  // advice: a refusal changes nothing
  constexpr int kCollapse = 25;                       // MADV_COLLAPSE, which older headers lack
  if (now && allow_huge_pages()) madvise((void*)begin, end - begin, kCollapse);
#endif
}

}  // namespace tamis
