// Shadow memory: for each granule of device memory, who touched it last in this launch.
//
// Two threads' accesses to a granule, one of them a write, are a race unless a barrier of their block lies between
// them. Time is cut into intervals: one begins with each block of a launch and at each of its barriers. Blocks run
// one after the other, so the intervals of a block follow each other, and comparing an interval with the first of
// the launch and the first of the block tells whether it was another launch's (which is over), another block's, or
// this block's before its last barrier. Nothing is ever cleared.
//
// One state a granule is enough, without a set of readers: of the accesses that a later one could race with, it
// keeps the last and, in the flags, what else matters.

#pragma once

#include <cstdint>

namespace emulator {

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Bytes of a granule: the smallest access.
constexpr u32 GRANULE = 2;

// A state: interval, thread, flags. 0: never touched.
typedef u64 State;
constexpr int INTERVAL_SHIFT = 16;
constexpr int THREAD_SHIFT = 4;
// The last access is a write.
constexpr State WROTE = 1;
// The last access is a read, and this block has written before.
constexpr State WRITTEN = 2;
// Other threads of the block have read in the same interval.
constexpr State MANY_THREADS = 4;
// Other blocks have read.
constexpr State MANY_BLOCKS = 8;
constexpr State FLAGS = 15;

constexpr State state_of(u64 interval, u32 thread) {
    return interval << INTERVAL_SHIFT | static_cast<u64>(thread) << THREAD_SHIFT;
}
constexpr u64 interval_of(State state) { return state >> INTERVAL_SHIFT; }
constexpr u32 thread_of(State state) { return state >> THREAD_SHIFT & 1023; }

// The present, as states are compared with it.
struct Now {
    // The least states of the launch's first interval, of the block's first, and of this one.
    State launch = 0;
    State block = 0;
    State interval = 0;
    // That of the running thread.
    State thread = 0;
};

// Nothing that the launch has done to the granule is in the way of a write. What a write leaves is the same always.
inline bool can_write(State state, const Now& now) {
    const bool over = state < now.launch;
    const bool behind_barrier = state >= now.block && state < now.interval && !(state & MANY_BLOCKS);
    const bool own = (state & ~(WROTE | WRITTEN)) == now.thread;
    return over | behind_barrier | own;
}

// The state after a read that is no race.
constexpr State RACE = ~0ull;
inline State after_read(State state, const Now& now) {
    const bool written = state & (WROTE | WRITTEN);
    if (state < now.launch) {
        return now.thread;
    }
    if (state < now.block || state >= now.interval + (1 << INTERVAL_SHIFT)) {
        return written ? RACE : now.thread | MANY_BLOCKS;
    }
    if (state < now.interval) {
        return now.thread | (written ? WRITTEN : 0) | (state & MANY_BLOCKS);
    }
    if (thread_of(state) == thread_of(now.thread)) {
        return state;
    }
    return state & WROTE ? RACE : now.thread | MANY_THREADS | (state & (WRITTEN | MANY_BLOCKS));
}

}  // namespace emulator
