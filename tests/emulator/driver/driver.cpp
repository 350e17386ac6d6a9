// What is no object: settings, counters, the names of errors.

#include "driver.h"

#include <cstdlib>
#include <cstring>

namespace emulator {

namespace {

long long setting(const char* name, long long otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr || *text == 0 ? otherwise : std::strtoll(text, nullptr, 10);
}

Settings read_settings() {
    Settings settings{};
    settings.devices = static_cast<int>(setting("EMULATOR_DEVICES", 1));
    const char* capability = std::getenv("EMULATOR_CAPABILITY");
    const char* dot = capability == nullptr ? nullptr : std::strchr(capability, '.');
    settings.capability = dot == nullptr ? 90 : 10 * std::atoi(capability) + std::atoi(dot + 1);
    settings.version = static_cast<int>(setting("EMULATOR_DRIVER", 12080));
    settings.memory = setting("EMULATOR_MEMORY", 8ll << 30);
    settings.dry = setting("EMULATOR_DRY", 0) != 0;
    settings.seeded = std::getenv("EMULATOR_SEED") != nullptr;
    settings.seed = static_cast<u32>(setting("EMULATOR_SEED", 0));
    return settings;
}

struct Name {
    CUresult result;
    const char* name;
    const char* text;
};
constexpr Name NAMES[] = {
#define RESULT(name, number, text) {name, #name, text},
    CUDA_RESULTS(RESULT)
#undef RESULT
};

const Name* name_of(CUresult result) {
    for (const Name& name : NAMES) {
        if (name.result == result) {
            return &name;
        }
    }
    return nullptr;
}

}  // namespace

const Settings& settings() {
    static const Settings settings = read_settings();
    return settings;
}

Counters& counters() {
    thread_local Counters counters;
    return counters;
}

Driver& driver() {
    // Never destroyed: what is left at the end may be used by destructors of the program.
    static Driver& driver = *new Driver;
    return driver;
}

std::uintptr_t next_handle() {
    static std::atomic<std::uintptr_t> next{0x1000};
    return next.fetch_add(16);
}

CUresult check_initialised(const Driver& driver) {
    return driver.initialised ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

}  // namespace emulator

using namespace emulator;

DRIVER cuGetErrorName(CUresult result, const char** text) {
    const Name* name = name_of(result);
    *text = name == nullptr ? nullptr : name->name;
    return name == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

DRIVER cuGetErrorString(CUresult result, const char** text) {
    const Name* name = name_of(result);
    *text = name == nullptr ? nullptr : name->text;
    return name == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

DRIVER cuDriverGetVersion(int* version) {
    *version = settings().version;
    return CUDA_SUCCESS;
}

DRIVER cuProfilerStart() { return CUDA_SUCCESS; }
DRIVER cuProfilerStop() { return CUDA_SUCCESS; }

// Not of CUDA: how often the calling thread has had the driver do something. All ones: no such counter.
extern "C" __attribute__((visibility("default"))) std::uint64_t emulator_counter(const char* name) {
    const Counters& all = counters();
    const struct {
        const char* name;
        std::uint64_t value;
    } known[] = {
        {"launches", all.launches},
        {"graph_launches", all.graph_launches},
        {"allocations", all.allocations},
        {"frees", all.frees},
        {"copies", all.copies},
        {"sets", all.sets},
        {"synchronisations", all.synchronisations},
        {"modules", all.modules},
        {"events", all.events},
    };
    for (const auto& counter : known) {
        if (std::strcmp(counter.name, name) == 0) {
            return counter.value;
        }
    }
    return ~std::uint64_t{0};
}
