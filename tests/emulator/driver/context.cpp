// Devices, contexts, and which of them a thread works in.

#include <cstdio>
#include <cstring>

#include "../memory.h"
#include "driver.h"

namespace emulator {

std::vector<CUcontext>& current() {
    thread_local std::vector<CUcontext> stack;
    return stack;
}

CUresult check_current(Driver& driver, CUcontext& handle, Context*& context) {
    if (!driver.initialised) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    handle = current().empty() ? nullptr : current().back();
    if (handle == nullptr) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    context = driver.contexts.find(handle);
    return context == nullptr ? CUDA_ERROR_CONTEXT_IS_DESTROYED : context->error;
}

namespace {

CUresult check_device(const Driver& driver, CUdevice device) {
    if (!driver.initialised) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    const bool known = device >= 0 && static_cast<std::size_t>(device) < driver.devices.size();
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

// With everything that is in it.
void destroy(Driver& driver, CUcontext context) {
    const auto inside = [context](const auto& object) { return object.context == context; };
    driver.modules.remove_all(inside);
    driver.functions.remove_all(inside);
    driver.streams.remove_all(inside);
    driver.events.remove_all(inside);
    driver.graphs.remove_all(inside);
    driver.execs.remove_all(inside);
    memory::release_all(context);
    driver.contexts.remove(context);
}

// Attributes that matter to somebody; the rest are 0.
int attribute_value(int attribute) {
    switch (attribute) {
        case 1:  // MAX_THREADS_PER_BLOCK
        case 2:  // MAX_BLOCK_DIM_X
        case 3:  // MAX_BLOCK_DIM_Y
            return MOST_THREADS;
        case 4:  // MAX_BLOCK_DIM_Z
            return 64;
        case 5:  // MAX_GRID_DIM_X
        case 6:  // MAX_GRID_DIM_Y
        case 7:  // MAX_GRID_DIM_Z
            return MOST_BLOCKS[attribute - 5];
        case 8:  // MAX_SHARED_MEMORY_PER_BLOCK
            return 48 << 10;
        case 9:  // TOTAL_CONSTANT_MEMORY
            return 64 << 10;
        case 10:  // WARP_SIZE
            return WARP;
        case 12:  // MAX_REGISTERS_PER_BLOCK
        case 82:  // MAX_REGISTERS_PER_MULTIPROCESSOR
            return 65536;
        case 13:  // CLOCK_RATE
        case 36:  // MEMORY_CLOCK_RATE
            return 1000000;
        case 16:  // MULTIPROCESSOR_COUNT
            return MULTIPROCESSORS;
        case 19:  // CAN_MAP_HOST_MEMORY
        case 31:  // CONCURRENT_KERNELS
        case 41:  // UNIFIED_ADDRESSING
        case 115:  // MEMORY_POOLS_SUPPORTED
            return 1;
        case 37:  // GLOBAL_MEMORY_BUS_WIDTH
            return 64;
        case 38:  // L2_CACHE_SIZE
            return 1 << 20;
        case 39:  // MAX_THREADS_PER_MULTIPROCESSOR
            return THREADS_OF_MULTIPROCESSOR;
        case 75:  // COMPUTE_CAPABILITY_MAJOR
            return settings().capability / 10;
        case 76:  // COMPUTE_CAPABILITY_MINOR
            return settings().capability % 10;
        case 106:  // MAX_BLOCKS_PER_MULTIPROCESSOR
            return BLOCKS_OF_MULTIPROCESSOR;
        default:
            return 0;
    }
}

CUresult uuid_of(CUuuid* uuid, CUdevice device) {
    std::lock_guard guard(driver().lock);
    const CUresult result = check_device(driver(), device);
    if (result == CUDA_SUCCESS) {
        std::memset(uuid, 0, sizeof *uuid);
        std::memcpy(uuid, "emulator", 8);
        uuid->bytes[15] = static_cast<unsigned char>(device);
    }
    return result;
}

CUresult create_context(CUcontext* context, CUdevice device) {
    std::lock_guard guard(driver().lock);
    const CUresult result = check_device(driver(), device);
    if (result == CUDA_SUCCESS) {
        *context = driver().contexts.add(Context{device, false});
        current().push_back(*context);
    }
    return result;
}

}  // namespace

}  // namespace emulator

using namespace emulator;

DRIVER cuInit(unsigned flags) {
    if (flags != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (settings().devices == 0) {
        return CUDA_ERROR_NO_DEVICE;
    }
    std::lock_guard guard(driver().lock);
    driver().initialised = true;
    driver().devices.resize(settings().devices);
    return CUDA_SUCCESS;
}

DRIVER cuDeviceGetCount(int* count) {
    std::lock_guard guard(driver().lock);
    *count = static_cast<int>(driver().devices.size());
    return check_initialised(driver());
}

DRIVER cuDeviceGet(CUdevice* device, int ordinal) {
    std::lock_guard guard(driver().lock);
    *device = ordinal;
    return check_device(driver(), ordinal);
}

DRIVER cuDeviceGetName(char* name, int size, CUdevice device) {
    std::lock_guard guard(driver().lock);
    const CUresult result = check_device(driver(), device);
    if (result == CUDA_SUCCESS) {
        std::snprintf(name, size, "emulator");
    }
    return result;
}

DRIVER cuDeviceGetUuid(CUuuid* uuid, CUdevice device) { return uuid_of(uuid, device); }
DRIVER cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) { return uuid_of(uuid, device); }

DRIVER cuDeviceTotalMem_v2(std::size_t* bytes, CUdevice device) {
    std::lock_guard guard(driver().lock);
    *bytes = settings().memory;
    return check_device(driver(), device);
}

DRIVER cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    std::lock_guard guard(driver().lock);
    *value = attribute_value(attribute);
    return check_device(driver(), device);
}

DRIVER cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    std::lock_guard guard(driver().lock);
    TRY(check_device(driver(), device));
    Driver::Device& owner = driver().devices[device];
    if (owner.primary == nullptr) {
        owner.primary = driver().contexts.add(Context{device, true});
    }
    owner.retained++;
    *context = owner.primary;
    return CUDA_SUCCESS;
}

DRIVER cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    std::lock_guard guard(driver().lock);
    TRY(check_device(driver(), device));
    Driver::Device& owner = driver().devices[device];
    if (owner.retained == 0) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (--owner.retained == 0) {
        destroy(driver(), owner.primary);
        owner.primary = nullptr;
    }
    return CUDA_SUCCESS;
}

DRIVER cuDevicePrimaryCtxReset_v2(CUdevice device) {
    std::lock_guard guard(driver().lock);
    const CUresult result = check_device(driver(), device);
    if (result == CUDA_SUCCESS && driver().devices[device].primary != nullptr) {
        destroy(driver(), driver().devices[device].primary);
        driver().devices[device] = {};
    }
    return result;
}

DRIVER cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
    std::lock_guard guard(driver().lock);
    const CUresult result = check_device(driver(), device);
    if (result == CUDA_SUCCESS) {
        *flags = 0;
        *active = driver().devices[device].primary != nullptr;
    }
    return result;
}

DRIVER cuCtxCreate_v2(CUcontext* context, unsigned, CUdevice device) { return create_context(context, device); }
DRIVER cuCtxCreate_v3(CUcontext* context, void*, int, unsigned, CUdevice device) {
    return create_context(context, device);
}
DRIVER cuCtxCreate_v4(CUcontext* context, void*, unsigned, CUdevice device) { return create_context(context, device); }

DRIVER cuCtxDestroy_v2(CUcontext context) {
    std::lock_guard guard(driver().lock);
    const Context* found = driver().contexts.find(context);
    if (found == nullptr || found->primary) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    destroy(driver(), context);
    if (!current().empty() && current().back() == context) {
        current().pop_back();
    }
    return CUDA_SUCCESS;
}

DRIVER cuCtxGetCurrent(CUcontext* context) {
    std::lock_guard guard(driver().lock);
    *context = current().empty() ? nullptr : current().back();
    return check_initialised(driver());
}

DRIVER cuCtxSetCurrent(CUcontext context) {
    std::lock_guard guard(driver().lock);
    if (!driver().initialised) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (context != nullptr && driver().contexts.find(context) == nullptr) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (!current().empty()) {
        current().pop_back();
    }
    if (context != nullptr) {
        current().push_back(context);
    }
    return CUDA_SUCCESS;
}

DRIVER cuCtxPushCurrent_v2(CUcontext context) {
    std::lock_guard guard(driver().lock);
    if (!driver().initialised) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (driver().contexts.find(context) == nullptr) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    current().push_back(context);
    return CUDA_SUCCESS;
}

DRIVER cuCtxPopCurrent_v2(CUcontext* context) {
    std::lock_guard guard(driver().lock);
    if (!driver().initialised) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (current().empty()) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (context != nullptr) {
        *context = current().back();
    }
    current().pop_back();
    return CUDA_SUCCESS;
}

DRIVER cuCtxGetDevice(CUdevice* device) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context = nullptr;
    const CUresult result = check_current(driver(), handle, context);
    if (context != nullptr) {
        *device = context->device;
        return CUDA_SUCCESS;
    }
    return result;
}

DRIVER cuCtxGetApiVersion(CUcontext context, unsigned* version) {
    std::lock_guard guard(driver().lock);
    *version = 3020;
    return driver().contexts.find(context) == nullptr ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

DRIVER cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -1;
    return CUDA_SUCCESS;
}

DRIVER cuCtxSynchronize() {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    TRY(check_current(driver(), handle, context));
    counters().synchronisations++;
    return refuse_in_capture(driver());
}
