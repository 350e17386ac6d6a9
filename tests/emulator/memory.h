// Device memory: allocations, each with its shadow.

#pragma once

#include <cstddef>
#include <string>

#include "cuda.h"
#include "machine.h"

namespace emulator::memory {

// New memory, full of random bytes; 0 if there is none left. `dry`: as no kernel is going to touch it, its bytes and
// its shadow are not touched either, so that it may be larger than this machine's memory.
CUdeviceptr allocate(CUcontext context, std::size_t size, bool dry);
// False: nothing begins there.
bool release(CUcontext context, CUdeviceptr start);
void release_all(CUcontext context);

// The allocation that holds all of these bytes; without `states` if there is none in the context.
Range find(CUcontext context, u64 address, std::size_t bytes);
// The same in any context, and which it is.
Range find_anywhere(u64 address, CUcontext& context);
// Where an address is, in words: in, before or behind which allocation.
std::string nearest(u64 address);

std::size_t used();

}  // namespace emulator::memory
