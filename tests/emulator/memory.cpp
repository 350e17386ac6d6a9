#include "memory.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <shared_mutex>

namespace emulator::memory {

namespace {

// As the driver aligns.
constexpr std::size_t ALIGNMENT = 256;

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

struct Allocation {
    CUcontext context;
    std::size_t size;
    // To the byte, so that AddressSanitizer sees what goes past it by a plain pointer.
    std::unique_ptr<void, Free> bytes;
    // Zeros, that is, never touched; pages that no kernel touches are never there.
    std::unique_ptr<State, Free> states;

    Range range(u64 start) const { return Range{start, size, states.get()}; }
};

std::shared_mutex lock;
std::map<u64, Allocation> allocations;
std::size_t bytes_used = 0;

// The allocation that begins at an address or before it.
std::map<u64, Allocation>::const_iterator before(u64 address) {
    auto next = allocations.upper_bound(address);
    return next == allocations.begin() ? allocations.end() : --next;
}

// Nothing may count on what new memory holds.
void fill(void* bytes, std::size_t size) {
    static std::atomic<u64> made{std::random_device{}()};
    u64 x = made.fetch_add(1) * 0x9e3779b97f4a7c15ull | 1;
    for (std::size_t i = 0; i < size; i += sizeof x) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        std::memcpy(static_cast<char*>(bytes) + i, &x, std::min(sizeof x, size - i));
    }
}

}  // namespace

CUdeviceptr allocate(CUcontext context, std::size_t size, bool dry) {
    void* bytes = nullptr;
    if (posix_memalign(&bytes, ALIGNMENT, size) != 0) {
        return 0;
    }
    Allocation made{context, size, std::unique_ptr<void, Free>(bytes), {}};
    made.states.reset(static_cast<State*>(std::calloc(dry ? 1 : size / GRANULE + 1, sizeof(State))));
    if (!made.states) {
        return 0;
    }
    if (!dry) {
        fill(bytes, size);
    }
    const u64 start = reinterpret_cast<u64>(bytes);
    std::unique_lock guard(lock);
    bytes_used += size;
    allocations.emplace(start, std::move(made));
    return start;
}

bool release(CUcontext context, CUdeviceptr start) {
    std::unique_lock guard(lock);
    const auto found = allocations.find(start);
    if (found == allocations.end() || found->second.context != context) {
        return false;
    }
    bytes_used -= found->second.size;
    allocations.erase(found);
    return true;
}

void release_all(CUcontext context) {
    std::unique_lock guard(lock);
    for (auto next = allocations.begin(); next != allocations.end();) {
        if (next->second.context == context) {
            bytes_used -= next->second.size;
            next = allocations.erase(next);
        } else {
            ++next;
        }
    }
}

Range find(CUcontext context, u64 address, std::size_t bytes) {
    std::shared_lock guard(lock);
    const auto found = before(address);
    if (found == allocations.end() || found->second.context != context) {
        return {};
    }
    const u64 offset = address - found->first;
    const std::size_t size = found->second.size;
    return offset < size && size - offset >= bytes ? found->second.range(found->first) : Range{};
}

Range find_anywhere(u64 address, CUcontext& context) {
    std::shared_lock guard(lock);
    const auto found = before(address);
    if (found == allocations.end() || address - found->first >= found->second.size) {
        return {};
    }
    context = found->second.context;
    return found->second.range(found->first);
}

std::string nearest(u64 address) {
    std::shared_lock guard(lock);
    char text[160];
    auto found = before(address);
    const auto next = allocations.upper_bound(address);
    const auto distance = [&](auto side) { return address - (side->first + side->second.size); };
    if (found != allocations.end() && address - found->first < found->second.size) {
        std::snprintf(text, sizeof text, "byte %llu of the %zu allocated at 0x%llx", address - found->first,
                      found->second.size, found->first);
    } else if (found != allocations.end() &&
               (next == allocations.end() || distance(found) < next->first - address)) {
        std::snprintf(text, sizeof text, "%llu bytes behind the end of the %zu allocated at 0x%llx", distance(found),
                      found->second.size, found->first);
    } else if (next != allocations.end()) {
        std::snprintf(text, sizeof text, "%llu bytes before the %zu allocated at 0x%llx", next->first - address,
                      next->second.size, next->first);
    } else {
        return "nothing is allocated";
    }
    return text;
}

std::size_t used() {
    std::shared_lock guard(lock);
    return bytes_used;
}

}  // namespace emulator::memory
