// A stack to run a function on, and to leave in its midst. ucontext makes two system calls a switch (500 ns); on x86-64
// a few instructions do (10 ns).
#pragma once
#include <cstddef>
#include <cstdint>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

#if defined(__x86_64__)
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#endif

struct Fiber {
  char* stack = nullptr;  // none: the system's own
  size_t bytes = 0;
#if defined(__x86_64__)
  void* top = nullptr;
#else
  ucontext_t context;
#endif

  void prepare(void (*entry)()) {  // must not return
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack, bytes);  // what ran here before may have been left in its midst
#endif
#if defined(__x86_64__)
    void** at = reinterpret_cast<void**>(stack + bytes);
    *--at = nullptr;  // where a return address would be: the stack as a call leaves it
    *--at = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--at = nullptr;
    top = at;
#else
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
#endif
  }
};

inline void switch_fiber(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  void* fake;
  __sanitizer_start_switch_fiber(&fake, to.stack, to.bytes);
#endif
#if defined(__x86_64__)
  emulator_switch(&from.top, to.top);
#else
  swapcontext(&from.context, &to.context);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

}  // namespace emulator
