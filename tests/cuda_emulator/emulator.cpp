// The scheduler: blocks in random order, and at every point where threads meet or may be seen, a random thread goes on.
#include "emulator.h"
#include <sys/mman.h>
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <vector>
#include "export.h"
#include "fiber.h"
#include "runtime.h"

namespace emulator {

Here here;

namespace {

constexpr size_t kStack = 64 << 10, kMostThreads = 1024, kWarp = 32, kMostBlocks = 1 << 15;

enum State { ready, at_barrier, at_warp, ended };

struct Thread {
  Fiber fiber;
  Dim index;
  State state;
  Site site{"", 0};
  uint64_t given;
};

struct Warp {
  unsigned waiting;
  uint32_t barriers;
  uint64_t taken[kWarp];  // stands until all lanes meet again, so every lane has read it by then
};

char* stacks;
std::vector<Thread> threads;
std::vector<Warp> warps;
std::vector<uint32_t> runnable;  // in any order
Fiber host;
Thread* running;
uint32_t waiting, barriers, over;  // of the block
uint32_t blocks, launch_begins = 1;
uint64_t state = 1;
unsigned patience;  // accesses that pass without a switch, on average
char message[512];
std::vector<const void*> launched;
std::map<const void*, size_t> allowed;  // of dynamic shared memory, where a kernel asked for more than kDynamic
struct {
  void (*run)(void*);
  void* argument;
  size_t bytes;
} call;

uint32_t random(uint32_t below) {  // xorshift64*
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return uint32_t((((state * 0x2545f4914f6cdd1d) >> 32) * below) >> 32);
}

uint32_t index_of(const Thread* t) { return uint32_t(t - threads.data()); }

void leave() {  // to the scheduler
  Thread* const me = running;
  switch_fiber(me->fiber, host);
}

void fiber_main() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, const_cast<const void**>(reinterpret_cast<void**>(&host.stack)),
                                  &host.bytes);
#endif
  call.run(call.argument);
  running->state = ended;
  ++over;
  if (waiting)
    for (const Thread& t : threads)
      if (t.state == at_barrier) fail("%s:%d: a barrier that a thread ended without", t.site.file, t.site.line);
  leave();
  abort();
}

void wake(uint32_t first, uint32_t count) {
  for (uint32_t i = first; i < first + count; ++i) {
    threads[i].state = ready;
    if (&threads[i] != running) runnable.push_back(i);
  }
}

void wait_or_go() {  // those who wake others go on at a random time too
  if (running->state == ready) runnable.push_back(index_of(running));
  leave();
}

bool run_block() {
  const uint32_t count = uint32_t(here.block_dim.count());
  if (stacks == nullptr)
    stacks = static_cast<char*>(mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  threads.resize(count);
  warps.assign((count + kWarp - 1) / kWarp, Warp{});
  waiting = barriers = over = 0;
  ++blocks;
  forget_shared();
  runnable.resize(count);
  std::iota(runnable.begin(), runnable.end(), 0u);
  for (uint32_t i = 0; i < count; ++i) {
    Thread& t = threads[i];
    t.fiber.stack = stacks + i * kStack;
    t.fiber.bytes = kStack;
    t.fiber.prepare(fiber_main);
    t.index =
        Dim(i % here.block_dim.x, i / here.block_dim.x % here.block_dim.y, i / (here.block_dim.x * here.block_dim.y));
    t.state = ready;
  }
  while (!runnable.empty()) {
    const uint32_t at = random(uint32_t(runnable.size()));
    running = &threads[runnable[at]];
    runnable[at] = runnable.back();
    runnable.pop_back();
    here.thread = running->index;
    switch_fiber(host, running->fiber);
    if (message[0]) break;
  }
  running = nullptr;
  if (!message[0] && over < count)
    for (const Thread& t : threads)
      if (t.state == at_warp && !message[0])
        snprintf(message, sizeof message, "%s:%d: lanes of a warp that others do not meet", t.site.file, t.site.line);
  return !message[0];
}

}  // namespace

bool refuse(const char* why) {
  snprintf(message, sizeof message, "%s", why);
  return false;
}
bool on_stream(const void* stream) { return stream == kStream || refuse("work for another stream than the caller's"); }

bool allow_dynamic(const void* kernel, size_t bytes) {
  if (bytes > kMostDynamic) return false;
  allowed[kernel] = bytes;
  return true;
}

bool launch(const void* kernel, Dim grid, Dim block, size_t dynamic_bytes, void (*run)(void*), void* argument,
            size_t bytes) {
  if (std::find(launched.begin(), launched.end(), kernel) == launched.end()) launched.push_back(kernel);
  if (!grid.count() || !block.count() || block.count() > kMostThreads || grid.y > 65535 || grid.z > 65535) {
    snprintf(message, sizeof message, "a grid of %u x %u x %u blocks of %zu threads", grid.x, grid.y, grid.z,
             block.count());
    return false;
  }
  if (grid.count() > kMostBlocks) {
    snprintf(message, sizeof message, "%zu blocks: more than are emulated", grid.count());
    return false;
  }
  if (dynamic_bytes > kDynamic && dynamic_bytes > allowed[kernel]) {
    snprintf(message, sizeof message, "%zu bytes of dynamic shared memory, which were not asked for", dynamic_bytes);
    return false;
  }
  const Dynamic dynamic(dynamic_bytes);
  launch_begins = blocks + 1;
  call = {run, argument, bytes};
  here.block_dim = block;
  here.grid_dim = grid;
  patience = 8u << random(9);
  std::vector<size_t> order(grid.count());
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t left = order.size(); left; --left) {
    std::swap(order[left - 1], order[random(uint32_t(left))]);
    const size_t b = order[left - 1];
    here.block = Dim(unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y));
    if (!run_block()) return false;
  }
  return true;
}

void block_barrier(Site site) {
  for (const Thread& t : threads)
    if (waiting && t.state == at_barrier) {
      if (t.site == site) break;
      fail("%s:%d: a barrier while others wait at line %d", site.file, site.line, t.site.line);
    }
  if (over) fail("%s:%d: a barrier that a thread ended without", site.file, site.line);
  running->state = at_barrier;
  running->site = site;
  if (++waiting == threads.size()) {
    waiting = 0;
    ++barriers;
    wake(0, uint32_t(threads.size()));
  }
  wait_or_go();
}

namespace {
void meet(Site site, unsigned mask, uint64_t given, bool orders_memory) {
  const uint32_t w = index_of(running) / kWarp, first = w * kWarp;
  if (mask != ~0u || threads.size() % kWarp) fail("%s:%d: expected whole warps", site.file, site.line);
  Warp& warp = warps[w];
  for (uint32_t i = first; warp.waiting && i < first + kWarp; ++i)
    if (threads[i].state == at_warp && !(threads[i].site == site))
      fail("%s:%d: lanes of a warp meet others at line %d", site.file, site.line, threads[i].site.line);
  running->state = at_warp;
  running->site = site;
  running->given = given;
  if (++warp.waiting == kWarp) {
    warp.waiting = 0;
    warp.barriers += orders_memory;
    for (uint32_t i = 0; i < kWarp; ++i) warp.taken[i] = threads[first + i].given;
    wake(first, kWarp);
  }
  wait_or_go();
}
}  // namespace

void warp_barrier(Site site, unsigned mask) { meet(site, mask, 0, true); }

namespace {
template <class From>
uint64_t shuffle(Site site, unsigned mask, uint64_t bits, unsigned by, From from) {
  if (by >= kWarp) fail("%s:%d: a shuffle by %u lanes", site.file, site.line, by);
  meet(site, mask, bits, false);
  return warps[index_of(running) / kWarp].taken[from(index_of(running) % kWarp)];
}
}  // namespace

uint64_t shuffle_up(Site site, unsigned mask, uint64_t bits, unsigned delta) {
  return shuffle(site, mask, bits, delta, [=](uint32_t lane) { return lane < delta ? lane : lane - delta; });
}
uint64_t shuffle_xor(Site site, unsigned mask, uint64_t bits, unsigned lanes) {
  return shuffle(site, mask, bits, lanes, [=](uint32_t lane) { return lane ^ lanes; });
}

namespace {
template <class T>
T add(T* to, T x) {
  runnable.push_back(index_of(running));
  leave();  // others may come first
  check_access(to, sizeof(T), adds, true);
  const T before = *to;
  *to += x;
  return before;
}
}  // namespace

unsigned atomic_add(unsigned* to, unsigned x) { return add(to, x); }
unsigned long long atomic_add(unsigned long long* to, unsigned long long x) { return add(to, x); }
float atomic_add(float* to, float x) { return add(to, x); }

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int length = vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  if (length >= 0 && size_t(length) < sizeof message)
    snprintf(message + length, sizeof message - length, " (block %u %u %u, thread %u %u %u)", here.block.x,
             here.block.y, here.block.z, here.thread.x, here.thread.y, here.thread.z);
  leave();
  abort();  // never resumed
}

bool on_fiber() { return running != nullptr; }
bool on_stack(const char* p) { return size_t(p - stacks) < kStack * kMostThreads; }
Moment moment() {
  const uint32_t t = index_of(running);
  return {blocks, t, barriers, warps[t / kWarp].barriers, false};
}
uint32_t first_block() { return launch_begins; }
void may_switch() {
  if (random(patience)) return;
  runnable.push_back(index_of(running));
  leave();
}
const char* argument(size_t* bytes) {
  *bytes = call.bytes;
  return static_cast<const char*>(call.argument);
}

}  // namespace emulator

EXPORT void emulator_seed(uint64_t seed) {
  emulator::state = seed * 0x9e3779b97f4a7c15 | 1;
  emulator::message[0] = 0;
}
EXPORT const char* emulator_error() { return emulator::message; }
// Of the kernels that ran so far: an address in the library, 0 after the last.
EXPORT uint64_t emulator_launched(size_t i) {
  return i < emulator::launched.size() ? emulator::in_library(emulator::launched[i]) : 0;
}
