// A stack of its own, on which a function runs that can stop in the middle and go on later.

#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

class Fibre {
   public:
    // Runs `work(argument)` at each resumption that does not go on with the last one.
    Fibre(void (*work)(void*), void* argument);
    ~Fibre();
    Fibre(const Fibre&) = delete;
    Fibre& operator=(const Fibre&) = delete;

    // From outside: goes on until the work is done or suspends itself.
    void resume();
    // From inside.
    void suspend();
    // Forgets what was suspended. What lies on the stack is not destroyed, so there must be nothing to destroy.
    void reset();

    // The bottom of every stack.
    static void loop(Fibre* fibre);

   private:
    void switched_in();

    void (*work)(void*);
    void* argument;
    char* stack;
    // Where the stack begins, from above.
    char* top;
#if defined(__x86_64__)
    void* inside;
    void* outside;
#else
    static void enter(unsigned low, unsigned high);
    ucontext_t inside;
    ucontext_t outside;
#endif
    // What AddressSanitizer wants to know about both stacks.
    void* fake_inside = nullptr;
    const void* outside_bottom = nullptr;
    std::size_t outside_size = 0;
};

}  // namespace emulator
