// Memory: allocating, copying, asking about addresses.

#include "../memory.h"

#include <cstdlib>
#include <cstring>

#include "driver.h"

namespace emulator {

namespace {

// Not of CUDA: allocations that the calling thread will still be granted before one is refused.
thread_local std::uint64_t granted = ~std::uint64_t{0};

bool refuse_allocation() {
    static std::atomic<std::uint64_t> of_all{[]() -> std::uint64_t {
        const char* text = std::getenv("EMULATOR_FAIL_ALLOCATION");
        return text == nullptr ? ~std::uint64_t{0} : std::strtoull(text, nullptr, 10) - 1;
    }()};
    const bool mine = granted == 0;
    granted -= granted != ~std::uint64_t{0};
    return mine | (of_all.load() != ~std::uint64_t{0} && of_all.fetch_sub(1) == 0);
}

CUresult allocate(CUdeviceptr* address, std::size_t size, CUcontext context) {
    counters().allocations++;
    if (size == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const bool room = memory::used() <= settings().memory && size <= settings().memory - memory::used();
    *address = room && !refuse_allocation() ? memory::allocate(context, size, settings().dry) : 0;
    return *address == 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

// Work on device memory, after a look at the addresses.
enum Side { HOST, DEVICE };
CUresult copy(CUstream stream, bool waits, Side to_side, u64 to, Side from_side, u64 from, std::size_t bytes) {
    std::unique_lock lock(driver().lock);
    CUcontext handle;
    Context* context;
    TRY(check_current(driver(), handle, context));
    if (waits) {
        TRY(refuse_in_capture(driver()));
    }
    if (bytes == 0) {
        return CUDA_SUCCESS;
    }
    const auto known = [&](Side side, u64 address) {
        return side == HOST ? address != 0 : memory::find(handle, address, bytes).states != nullptr;
    };
    if (!known(to_side, to) || !known(from_side, from)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    counters().copies++;
    counters().synchronisations += waits;
    Work work{};
    work.kind = Work::COPY;
    work.to = to;
    work.from = from;
    work.bytes = bytes;
    return submit(std::move(lock), stream, std::move(work));
}

CUresult set(CUstream stream, bool waits, CUdeviceptr to, u32 value, u32 value_bytes, std::size_t count) {
    std::unique_lock lock(driver().lock);
    CUcontext handle;
    Context* context;
    TRY(check_current(driver(), handle, context));
    if (waits) {
        TRY(refuse_in_capture(driver()));
    }
    const std::size_t bytes = count * value_bytes;
    if (bytes == 0) {
        return CUDA_SUCCESS;
    }
    if (to % value_bytes != 0 || memory::find(handle, to, bytes).states == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    counters().sets++;
    Work work{};
    work.kind = Work::SET;
    work.to = to;
    work.bytes = bytes;
    work.value = value;
    work.value_bytes = value_bytes;
    return submit(std::move(lock), stream, std::move(work));
}

u64 address_of(const void* host) { return reinterpret_cast<u64>(host); }

CUresult free_memory(CUdeviceptr address) {
    CUcontext handle;
    Context* context;
    CUresult result = check_current(driver(), handle, context);
    if (result != CUDA_SUCCESS || address == 0) {
        return result;
    }
    counters().frees++;
    return memory::release(handle, address) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // namespace

}  // namespace emulator

using namespace emulator;

extern "C" __attribute__((visibility("default"))) void emulator_fail_allocation(std::uint64_t n) { granted = n - 1; }

DRIVER cuMemAlloc_v2(CUdeviceptr* address, std::size_t size) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    CUresult result = check_current(driver(), handle, context);
    if (result == CUDA_SUCCESS) {
        result = refuse_in_capture(driver());
    }
    return result == CUDA_SUCCESS ? allocate(address, size, handle) : result;
}

DRIVER cuMemAllocAsync(CUdeviceptr* address, std::size_t size, CUstream stream) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    Stream* found = nullptr;
    CUresult result = check_current(driver(), handle, context);
    if (result == CUDA_SUCCESS) {
        result = find_stream(driver(), handle, stream, found);
    }
    if (result == CUDA_SUCCESS && found != nullptr && found->capture) {
        // A real driver would make a node of it.
        result = CUDA_ERROR_NOT_SUPPORTED;
    }
    return result == CUDA_SUCCESS ? allocate(address, size, handle) : result;
}

DRIVER cuMemFree_v2(CUdeviceptr address) {
    std::lock_guard guard(driver().lock);
    const CUresult result = refuse_in_capture(driver());
    return result == CUDA_SUCCESS ? free_memory(address) : result;
}

DRIVER cuMemFreeAsync(CUdeviceptr address, CUstream stream) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    Stream* found = nullptr;
    CUresult result = check_current(driver(), handle, context);
    if (result == CUDA_SUCCESS) {
        result = find_stream(driver(), handle, stream, found);
    }
    if (result == CUDA_SUCCESS && found != nullptr && found->capture) {
        result = CUDA_ERROR_NOT_SUPPORTED;
    }
    return result == CUDA_SUCCESS ? free_memory(address) : result;
}

DRIVER cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    *total = settings().memory;
    *free = *total - std::min(*total, memory::used());
    return check_current(driver(), handle, context);
}

DRIVER cuMemHostAlloc(void** memory, std::size_t size, unsigned) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    CUresult result = check_current(driver(), handle, context);
    if (result == CUDA_SUCCESS) {
        result = refuse_in_capture(driver());
    }
    if (result == CUDA_SUCCESS) {
        *memory = std::malloc(size);
        result = *memory == nullptr ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
    }
    return result;
}

DRIVER cuMemFreeHost(void* memory) {
    std::free(memory);
    return CUDA_SUCCESS;
}

DRIVER cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, std::size_t bytes) {
    return copy(nullptr, true, DEVICE, to, HOST, address_of(from), bytes);
}
DRIVER cuMemcpyDtoH_v2(void* to, CUdeviceptr from, std::size_t bytes) {
    return copy(nullptr, true, HOST, address_of(to), DEVICE, from, bytes);
}
DRIVER cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {
    return copy(nullptr, true, DEVICE, to, DEVICE, from, bytes);
}
DRIVER cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream) {
    return copy(stream, false, DEVICE, to, HOST, address_of(from), bytes);
}
DRIVER cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    return copy(stream, false, HOST, address_of(to), DEVICE, from, bytes);
}
DRIVER cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    return copy(stream, false, DEVICE, to, DEVICE, from, bytes);
}

DRIVER cuMemsetD8_v2(CUdeviceptr to, unsigned char value, std::size_t count) {
    return set(nullptr, true, to, value, 1, count);
}
DRIVER cuMemsetD8Async(CUdeviceptr to, unsigned char value, std::size_t count, CUstream stream) {
    return set(stream, false, to, value, 1, count);
}
DRIVER cuMemsetD32_v2(CUdeviceptr to, unsigned value, std::size_t count) {
    return set(nullptr, true, to, value, 4, count);
}
DRIVER cuMemsetD32Async(CUdeviceptr to, unsigned value, std::size_t count, CUstream stream) {
    return set(stream, false, to, value, 4, count);
}

DRIVER cuMemGetAddressRange_v2(CUdeviceptr* start, std::size_t* size, CUdeviceptr address) {
    CUcontext context;
    const Range range = memory::find_anywhere(address, context);
    if (range.states == nullptr) {
        return CUDA_ERROR_NOT_FOUND;
    }
    if (start != nullptr) {
        *start = range.start;
    }
    if (size != nullptr) {
        *size = range.size;
    }
    return CUDA_SUCCESS;
}

DRIVER cuPointerGetAttribute(void* value, int attribute, CUdeviceptr address) {
    std::lock_guard guard(driver().lock);
    CUcontext handle = nullptr;
    const Range range = memory::find_anywhere(address, handle);
    const Context* context = driver().contexts.find(handle);
    if (range.states == nullptr || context == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const auto answer = [value](auto content) {
        std::memcpy(value, &content, sizeof content);
        return CUDA_SUCCESS;
    };
    switch (attribute) {
        case 1:  // CONTEXT
            return answer(handle);
        case 2:  // MEMORY_TYPE: device
            return answer(2u);
        case 3:  // DEVICE_POINTER
            return answer(address);
        case 8:  // IS_MANAGED
            return answer(0u);
        case 9:  // DEVICE_ORDINAL
            return answer(context->device);
        case 11:  // RANGE_START_ADDR
            return answer(range.start);
        case 12:  // RANGE_SIZE
            return answer(range.size);
        default:
            return CUDA_ERROR_NOT_SUPPORTED;
    }
}
