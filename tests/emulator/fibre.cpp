#include "fibre.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

namespace {

constexpr std::size_t PAGE = 4096;
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t STACK = 64 * PAGE;
#else
constexpr std::size_t STACK = 8 * PAGE;
#endif
// Below it is a page that may not be touched. With it the distance of two stacks is an odd number of pages, so that
// hundreds of stacks in turns do not all want the same lines of the cache.
constexpr std::size_t MAPPED = STACK + PAGE;

// The same within a page: stacks begin at different lines.
std::size_t colour() {
    static unsigned made = 0;
    return __atomic_fetch_add(&made, 1, __ATOMIC_RELAXED) % 24 * 128;
}

}  // namespace

#if defined(__x86_64__)
// emulator_switch(void** from, void* to): what a function must keep is pushed, stacks are exchanged, what was kept
// there is popped. emulator_enter: the first one lands here, with the fibre in r12.
extern "C" __attribute__((visibility("hidden"))) void emulator_switch(void** from, void* to);
extern "C" __attribute__((visibility("hidden"))) void emulator_enter();
extern "C" __attribute__((visibility("hidden"), used)) void emulator_loop(void* fibre) {
    Fibre::loop(static_cast<Fibre*>(fibre));
}
asm(R"(
    .text
    .hidden emulator_switch
    .type emulator_switch, @function
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
    .size emulator_switch, . - emulator_switch

    .hidden emulator_enter
    .type emulator_enter, @function
emulator_enter:
    .cfi_startproc
    .cfi_undefined rip
    movq %r12, %rdi
    call emulator_loop
    ud2
    .cfi_endproc
    .size emulator_enter, . - emulator_enter
)");
#endif

Fibre::Fibre(void (*work)(void*), void* argument) : work(work), argument(argument) {
    void* mapped = mmap(nullptr, MAPPED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped, PAGE, PROT_NONE) != 0) {
        std::perror("emulator: a stack");
        std::abort();
    }
    stack = static_cast<char*>(mapped) + PAGE;
    top = stack + STACK - colour();
    reset();
}

Fibre::~Fibre() { munmap(stack - PAGE, MAPPED); }

void Fibre::reset() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack, STACK);
    fake_inside = nullptr;
#endif
#if defined(__x86_64__)
    // What `emulator_switch` pops: six registers, and where to return to; the stack is then aligned for a call.
    void** frame = reinterpret_cast<void**>(top) - 9;
    std::memset(frame, 0, 9 * sizeof(void*));
    frame[3] = this;
    frame[6] = reinterpret_cast<void*>(emulator_enter);
    inside = frame;
#else
    getcontext(&inside);
    inside.uc_stack.ss_sp = stack;
    inside.uc_stack.ss_size = top - stack;
    inside.uc_link = nullptr;
    const std::uintptr_t self = reinterpret_cast<std::uintptr_t>(this);
    // makecontext passes ints.
    makecontext(&inside, reinterpret_cast<void (*)()>(enter), 2, static_cast<unsigned>(self),
                static_cast<unsigned>(static_cast<std::uint64_t>(self) >> 32));
#endif
}

#if !defined(__x86_64__)
void Fibre::enter(unsigned low, unsigned high) {
    loop(reinterpret_cast<Fibre*>(static_cast<std::uintptr_t>(static_cast<std::uint64_t>(high) << 32 | low)));
}
#endif

void Fibre::resume() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake_outside;
    __sanitizer_start_switch_fiber(&fake_outside, stack, STACK);
#endif
#if defined(__x86_64__)
    emulator_switch(&outside, inside);
#else
    swapcontext(&outside, &inside);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_outside, nullptr, nullptr);
#endif
}

void Fibre::suspend() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_inside, outside_bottom, outside_size);
#endif
#if defined(__x86_64__)
    emulator_switch(&inside, outside);
#else
    swapcontext(&inside, &outside);
#endif
    switched_in();
}

void Fibre::switched_in() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_inside, &outside_bottom, &outside_size);
#endif
}

void Fibre::loop(Fibre* fibre) {
    fibre->switched_in();
    for (;;) {
        fibre->work(fibre->argument);
        fibre->suspend();
    }
}

}  // namespace emulator
