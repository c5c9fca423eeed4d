// Runs a kernel on the CPU: a block's threads are fibers, and a seed decides which of them goes on, and which block is
// next. A barrier that some threads miss, an access that nothing orders before another's, or one out of bounds, ends
// the launch with a message.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

struct Dim {
  unsigned x, y, z;
  constexpr Dim(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr size_t count() const { return size_t{x} * y * z; }
};

struct Here {
  Dim thread, block, block_dim, grid_dim;
};
extern Here here;  // of the fiber that runs

struct Site {  // a place in the source
  const char* file;
  int line;
  Site(const char* file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line) {}
  bool operator==(const Site& other) const { return file == other.file && line == other.line; }
};

// One fiber a thread runs call(argument). False where the launch failed; emulator_error() says why.
bool launch(const void* kernel, Dim grid, Dim block, size_t dynamic_bytes, void (*call)(void*), void* argument,
            size_t argument_bytes);
bool allow_dynamic(const void* kernel, size_t bytes);  // of its shared memory; unasked it may have kDynamic
constexpr size_t kDynamic = 48 << 10, kMostDynamic = 227 << 10;
bool fill(void* to, int value, size_t bytes);
bool on_stream(const void* stream);  // the caller's; false fails the call
inline void* const kStream = reinterpret_cast<void*>(uintptr_t{1} << 20);

void block_barrier(Site site);
// Of whole warps. A shuffle does not order memory, a barrier does.
void warp_barrier(Site site, unsigned mask);
uint64_t shuffle_up(Site site, unsigned mask, uint64_t bits, unsigned delta);
uint64_t shuffle_xor(Site site, unsigned mask, uint64_t bits, unsigned lanes);

unsigned atomic_add(unsigned* to, unsigned x);
unsigned long long atomic_add(unsigned long long* to, unsigned long long x);
float atomic_add(float* to, float x);

}  // namespace emulator
