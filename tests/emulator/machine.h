// The machine that kernels run on, as they see it: where the running thread is, memory that is watched, a barrier.

#pragma once

#include "shadow.h"

namespace emulator {

// A kernel that was compiled in. There is one static object of each.
struct Kernel {
    const char* name;
    u32 parameter_bytes;
    // Runs one thread.
    void (*run)(const void* parameters);

    Kernel(const char* name, u32 parameter_bytes, void (*run)(const void* parameters));
};

// Device memory that the launch may touch.
struct Range {
    u64 start = 0;
    u64 size = 0;
    State* states = nullptr;
};

// The running thread.
struct Running {
    u32 thread;
    u32 threads;
    u32 block_x;
    u32 block_y;
    Now now;
    // Where it last read and wrote: usually where it will again.
    Range read;
    Range written;
};

// Initial-exec: reached by one instruction instead of a call.
extern thread_local Running* running __attribute__((tls_model("initial-exec"), visibility("hidden")));

// Waits for all threads of the block.
void barrier();

// Finds the memory of an access that is not in the last range, or fails the launch.
Range find_range(u64 address, u32 bytes, bool write);
// Goes through an access's granules one by one, and fails the launch if there is a race.
void touch_slowly(State* states, u64 address, u32 bytes, bool write);

template <bool WRITE, u32 BYTES>
inline __attribute__((always_inline)) void touch(u64 address) {
    Running& run = *running;
    Range& range = WRITE ? run.written : run.read;
    u64 offset = address - range.start;
    if (__builtin_expect(offset >= range.size || range.size - offset < BYTES || address % BYTES != 0, 0)) {
        range = find_range(address, BYTES, WRITE);
        offset = address - range.start;
    }
    State* const states = range.states + offset / GRANULE;
    const Now now = run.now;
    bool quick = true;
    for (u32 i = 0; i < BYTES / GRANULE; i++) {
        quick &= WRITE ? can_write(states[i], now) : states[i] < now.launch;
    }
    if (__builtin_expect(!quick, 0)) {
        touch_slowly(states, address, BYTES, WRITE);
        return;
    }
    for (u32 i = 0; i < BYTES / GRANULE; i++) {
        states[i] = now.thread | (WRITE ? WROTE : 0);
    }
}

}  // namespace emulator
