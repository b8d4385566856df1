// A fiber's context: what switching from one to another saves and restores. By fifteen instructions on x86-64, elsewhere by the C library.
#pragma once

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulation {

#ifdef __x86_64__

// Saves on its stack what a call preserves.
using Context = void*;
extern "C" void attile_switch(Context* from, Context to);
asm(R"(
.text
.type attile_switch, @function
attile_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
.size attile_switch, . - attile_switch
)");

inline void switch_to(Context& from, Context& to) { attile_switch(&from, to); }

inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes - 64);
  *--top = nullptr;  // where a call would return to: entry finds the alignment it expects
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}

#else

using Context = ucontext_t;

inline void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }

inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  makecontext(&context, entry, 0);
}

#endif

}  // namespace emulation
