// What the emulator's two halves, the scheduler and the memory, say to each other.
#pragma once
#include <cstddef>
#include <cstdint>
#include "emulator.h"

namespace emulator {

// The moment of an access. Of one thread: in turn. Of one block: ordered by barriers, of one warp also by __syncwarp.
// Of two blocks: by the launch's end alone.
struct Moment {
  uint32_t block = 0;  // counted through all launches; 0: never
  uint32_t thread = 0, barriers = 0, warp_barriers = 0;
  bool many_blocks = false;
};

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
bool refuse(const char* why);  // a call of the host
bool on_fiber();
bool on_stack(const char* p);  // of any fiber: a thread's own memory
Moment moment();
uint32_t first_block();  // of this launch
void may_switch();       // now and then, as the seed has it
const char* argument(size_t* bytes);

uint64_t in_library(const void* code);  // what addr2line asks for

enum Kind { reads, writes, adds };
void check_access(const void* p, size_t bytes, Kind kind, bool aligned);
void forget_shared();  // a block begins: nothing in shared memory is of use

struct Dynamic {  // shared memory that a launch adds, as long as it runs
  explicit Dynamic(size_t bytes);
  ~Dynamic();
};

}  // namespace emulator
