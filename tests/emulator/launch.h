// A launch, as the driver hands it to the machine.

#pragma once

#include <string>

#include "cuda.h"
#include "machine.h"

namespace emulator {

struct Launch {
    const Kernel* kernel;
    u32 grid[2];
    u32 threads;
    // Aligned as the kernel wants them.
    const void* parameters;
    // Whose memory it may touch.
    CUcontext context;
    // Of the order of blocks.
    u32 seed;
};

// A kernel by its name, or null.
const Kernel* find_kernel(const std::string& name);

// Runs all of a launch. What is wrong with it is said on stderr.
CUresult run(const Launch& launch);

}  // namespace emulator
