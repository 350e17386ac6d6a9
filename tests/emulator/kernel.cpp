// One file of kernels, for one element. A name such as `Wide` means another thing for each element, so every file
// has names of its own.

#include <device.cuh>

namespace {
#include KERNELS
}
