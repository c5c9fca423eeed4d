// What a kernel reads and writes. g++ -fsanitize=thread puts a call before each access; these are the calls. Each says
// whether the access is in bounds, aligned, of something that was written, and ordered against those of other threads,
// by barriers alone: whatever order the threads ran in, a missing barrier shows.
#include <link.h>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>
#include "export.h"
#include "runtime.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

// What `extern __shared__` names. In assembly, so that there is a guard before it, too.
extern __thread char tamis_dynamic_shared[] __attribute__((visibility("hidden")));
asm(R"(
.pushsection .tbss,"awT",%nobits
.balign 256
.zero 4096
.globl tamis_dynamic_shared
.hidden tamis_dynamic_shared
.type tamis_dynamic_shared, %object
.size tamis_dynamic_shared, 227 * 1024 + 4096
tamis_dynamic_shared:
.zero 227 * 1024 + 4096
.popsection
)");

namespace emulator {
namespace {

constexpr size_t kDynamicGuard = 4096;  // as above

struct Cell {
  Moment write, read, other_read;  // two last readers, of different threads
  bool written, added;             // added: by an atomic
  uint32_t owner;                  // of shared memory: the block that all this is of
};

struct Buffer {
  char* begin;
  size_t bytes, granule;
  bool writable;
  std::vector<Cell> cells;

  Buffer(char* begin, size_t bytes, size_t granule, bool writable, bool written)
      : begin(begin), bytes(bytes), granule(granule), writable(writable) {
    cells.assign(bytes / granule, Cell{{}, {}, {}, written, false, 0});
  }
  bool holds(const char* p) const { return size_t(p - begin) < bytes; }
};

bool watched;             // the driver was compiled with the calls
const void* last_access;  // where in the code
std::vector<std::unique_ptr<Buffer>> buffers;
std::unique_ptr<Buffer> shared, dynamic;  // dynamic: while a launch has some
thread_local volatile char anchor = 1;    // makes this module's thread-local memory be there

struct Module {  // this library, where it is loaded
  char* base;
  char* thread_local_memory;
  size_t thread_local_bytes;
};

Module module() {
  if (!anchor) abort();
  Module found{};
  const auto look = [](dl_phdr_info* info, size_t, void* to) {
    bool mine = false;
    size_t bytes = 0;
    char* const base = reinterpret_cast<char*>(info->dlpi_addr);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& h = info->dlpi_phdr[i];
      const size_t me = size_t(reinterpret_cast<char*>(&module) - base);
      if (h.p_type == PT_LOAD && me - h.p_vaddr < h.p_memsz) mine = true;
      if (h.p_type == PT_TLS) bytes = h.p_memsz;
    }
    if (mine) *static_cast<Module*>(to) = {base, static_cast<char*>(info->dlpi_tls_data), bytes};
    return int{mine};
  };
  dl_iterate_phdr(look, &found);
  return found;
}

Buffer* shared_memory() {  // the library's thread-local variables: __shared__ is nothing else
  if (!shared) {
    const Module m = module();
    shared = std::make_unique<Buffer>(m.thread_local_memory, m.thread_local_bytes / 2 * 2, 2, true, false);
  }
  return shared.get();
}

bool is_shared(const Buffer& b) { return &b == shared.get() || &b == dynamic.get(); }

bool in_dynamic(const char* p) {  // or in its guards
  return size_t(p - tamis_dynamic_shared + kDynamicGuard) < kMostDynamic + 2 * kDynamicGuard;
}

Buffer* find(const char* p) {
  if (in_dynamic(p)) return dynamic && dynamic->holds(p) ? dynamic.get() : nullptr;
  if (shared_memory()->holds(p)) return shared.get();
  for (auto& b : buffers)
    if (b->holds(p)) return b.get();
  return nullptr;
}

bool ordered(const Moment& before, const Moment& now) {
  constexpr uint32_t kWarp = 32;
  if (before.block != now.block || before.many_blocks) return before.block < first_block();
  if (before.thread == now.thread || before.barriers < now.barriers) return true;
  return before.thread / kWarp == now.thread / kWarp && before.warp_barriers < now.warp_barriers;
}

[[noreturn]] void fail_at(const Buffer& b, const char* p, const char* what) {
  if (is_shared(b)) fail("%s, shared memory", what);
  fail("%s, element %zu of a buffer of %zu", what, size_t(p - b.begin) / b.granule, b.bytes / b.granule);
}

}  // namespace

uint64_t in_library(const void* code) { return code ? uint64_t(static_cast<const char*>(code) - module().base) : 0; }

void check_access(const void* address, size_t bytes, Kind kind, bool aligned) {
  if (!on_fiber() || !watched) return;
  const char* const p = static_cast<const char*>(address);
  if (on_stack(p) || (p >= reinterpret_cast<char*>(&here) && p < reinterpret_cast<char*>(&here + 1))) return;
  size_t argument_bytes;
  const char* const given = argument(&argument_bytes);
  if (kind == reads && p >= given && p < given + argument_bytes) return;
  Buffer* const b = find(p);
  if (!b || !b->holds(p + bytes - 1)) {
    if (in_dynamic(p))
      fail("%s out of bounds, %zu bytes at byte %ld of dynamic shared memory of %zu",
           kind == reads ? "a read" : "a write", bytes, long(p - tamis_dynamic_shared), dynamic ? dynamic->bytes : 0);
    for (auto& near : buffers)
      if (p + 256 > near->begin && p < near->begin + near->bytes + 256)
        fail("%s out of bounds, %zu bytes at byte %ld of a buffer of %zu", kind == reads ? "a read" : "a write", bytes,
             long(p - near->begin), near->bytes);
    fail("%s out of bounds, %zu bytes", kind == reads ? "a read" : "a write", bytes);
  }
  if (aligned && reinterpret_cast<uintptr_t>(p) % bytes) fail_at(*b, p, "a misaligned access");
  if (kind != reads && !b->writable) fail_at(*b, p, "a write to an input");
  const Moment now = moment();
  for (size_t i = size_t(p - b->begin) / b->granule; i <= size_t(p + bytes - 1 - b->begin) / b->granule; ++i) {
    Cell& c = b->cells[i];
    if (is_shared(*b) && c.owner != now.block) c = Cell{{}, {}, {}, false, false, now.block};
    const bool both_add = kind == adds && c.added;
    if (kind != writes && !c.written) fail_at(*b, p, "a read of what was never written");
    if (!both_add && !ordered(c.write, now))
      fail_at(*b, p, kind == reads ? "a race: a read beside another thread's write" : "a race: two threads' writes");
    if (kind == reads) {
      if (c.read.thread != now.thread || c.read.block != now.block) c.other_read = c.read;
      c.read = now;
    } else {
      if (!ordered(c.read, now) || !ordered(c.other_read, now))
        fail_at(*b, p, "a race: a write beside another thread's read");
      const Moment others = c.write;
      c.write = now;
      if (both_add && !ordered(others, now)) {  // nobody's: only a barrier for all orders it
        c.write.thread = ~0u;
        c.write.many_blocks = others.block != now.block || others.many_blocks;
      }
      c.written = true;
      c.added = kind == adds;
    }
  }
}

void forget_shared() {
  Buffer& b = *shared_memory();
  const char kept = anchor;
  const size_t before = size_t(tamis_dynamic_shared - b.begin) - kDynamicGuard;
  char* const behind = tamis_dynamic_shared + kMostDynamic + kDynamicGuard;
  memset(b.begin, 0xa5, before);
  memset(behind, 0xa5, size_t(b.begin + b.bytes - behind));
  if (dynamic) memset(dynamic->begin, 0xa5, dynamic->bytes);
  anchor = kept;  // the cells are forgotten as they are met
}

Dynamic::Dynamic(size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(tamis_dynamic_shared - kDynamicGuard, kMostDynamic + 2 * kDynamicGuard);
  __asan_unpoison_memory_region(tamis_dynamic_shared, bytes);
#endif
  if (bytes) dynamic = std::make_unique<Buffer>(tamis_dynamic_shared, bytes, 2, true, false);
}

Dynamic::~Dynamic() {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(tamis_dynamic_shared - kDynamicGuard, kMostDynamic + 2 * kDynamicGuard);
#endif
  dynamic.reset();
}

bool fill(void* to, int value, size_t bytes) {
  if (!bytes) return true;
  Buffer* const b = find(static_cast<char*>(to));
  if (!b || !b->writable || !b->holds(static_cast<char*>(to) + bytes - 1)) return refuse("a fill out of bounds");
  memset(to, value, bytes);
  const size_t first = size_t(static_cast<char*>(to) - b->begin);
  for (size_t i = first / b->granule; i * b->granule < first + bytes; ++i) b->cells[i].written = true;
  return true;
}

namespace {
void access(const void* p, size_t bytes, Kind kind, bool aligned, const void* caller) {
  if (!on_fiber() || on_stack(static_cast<const char*>(p))) return;
  may_switch();
  last_access = caller;
  check_access(p, bytes, kind, aligned);
  last_access = nullptr;
}
}  // namespace
}  // namespace emulator

// A kernel may touch nothing else. The guards on both sides are the caller's: poisoned where AddressSanitizer looks.
EXPORT void emulator_buffer(char* begin, size_t bytes, size_t granule, bool writable, bool written, size_t guard) {
  using namespace emulator;
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(begin - guard, guard);
  __asan_poison_memory_region(begin + bytes, guard);
  __asan_unpoison_memory_region(begin, bytes);
#else
  (void)guard;
#endif
  buffers.push_back(std::make_unique<Buffer>(begin, bytes, granule, writable, written));
}
EXPORT void emulator_forget_buffers(size_t guard) {
#ifdef __SANITIZE_ADDRESS__
  for (auto& b : emulator::buffers) __asan_unpoison_memory_region(b->begin - guard, b->bytes + 2 * guard);
#else
  (void)guard;
#endif
  emulator::buffers.clear();
}
// Of the access that failed. 0: it was none.
EXPORT uint64_t emulator_error_address() { return emulator::in_library(emulator::last_access); }

#define CALLS(n)                                                                  \
  extern "C" void __tsan_read##n(void* p) {                                       \
    emulator::access(p, n, emulator::reads, true, __builtin_return_address(0));   \
  }                                                                               \
  extern "C" void __tsan_write##n(void* p) {                                      \
    emulator::access(p, n, emulator::writes, true, __builtin_return_address(0));  \
  }                                                                               \
  extern "C" void __tsan_unaligned_read##n(void* p) {                             \
    emulator::access(p, n, emulator::reads, false, __builtin_return_address(0));  \
  }                                                                               \
  extern "C" void __tsan_unaligned_write##n(void* p) {                            \
    emulator::access(p, n, emulator::writes, false, __builtin_return_address(0)); \
  }
CALLS(1) CALLS(2) CALLS(4) CALLS(8) CALLS(16) extern "C" void __tsan_read_range(void* p, size_t n) {
  emulator::access(p, n, emulator::reads, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* p, size_t n) {
  emulator::access(p, n, emulator::writes, false, __builtin_return_address(0));
}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() { emulator::watched = true; }

// -fsanitize=bounds: the index of an array whose length the compiler knows, as in shared memory.
extern "C" void __ubsan_handle_out_of_bounds(void*, uintptr_t index) {
  if (emulator::on_fiber()) emulator::fail("an array's end passed, index %ld", long(index));
}
