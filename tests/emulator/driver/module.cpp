// Modules and functions. The machine code is the emulator's own; a module's PTX says which of it may be had, and
// must agree with it, so that what is launched here is what a GPU would find in the same PTX.

#include <cctype>
#include <cstdio>
#include <cstring>

#include "driver.h"

namespace emulator {

namespace {

// The PTX version that a driver takes: 12.1 takes 8.1.
int newest_ptx(int version) {
    const int major = version / 1000, minor = version % 1000 / 10;
    if (major >= 13) {
        return 90 + 10 * (major - 13) + minor;
    }
    return 10 * (major - 4) + (major == 12 && minor > 5 ? minor - 1 : minor);
}

// The number after a word, a dot in it left out: 81 of ".version 8.1"; -1 if there is none.
int number_after(const std::string& text, const char* word) {
    std::size_t at = text.find(word);
    if (at == std::string::npos) {
        return -1;
    }
    int number = -1;
    for (at += std::strlen(word); text[at] == ' ' || text[at] == '\t'; at++) {
    }
    for (; std::isdigit(static_cast<unsigned char>(text[at])) || text[at] == '.'; at++) {
        number = text[at] == '.' ? number : 10 * std::max(number, 0) + (text[at] - '0');
    }
    return number;
}

// Comments say nothing.
std::string without_comments(const char* text) {
    std::string plain;
    for (const char* at = text; *at != 0; at++) {
        if (at[0] == '/' && at[1] == '/') {
            at = std::strchr(at, '\n');
            if (at == nullptr) {
                break;
            }
        } else if (at[0] == '/' && at[1] == '*') {
            at = std::strstr(at, "*/");
            if (at == nullptr) {
                break;
            }
            at++;
            continue;
        }
        plain += *at;
    }
    return plain;
}

// Bytes of one declaration, `.param .align 16 .b8 name[4096]`.
std::size_t parameter_bytes(const std::string& declaration) {
    std::size_t bytes = 0;
    for (const char* type : {".b8", ".u8", ".s8", ".b16", ".u16", ".s16", ".f16", ".b32", ".u32", ".s32", ".f32",
                             ".b64", ".u64", ".s64", ".f64"}) {
        if (declaration.find(std::string(type) + " ") != std::string::npos) {
            bytes = std::atoi(type + 2) / 8;
        }
    }
    const int count = number_after(declaration, "[");
    return count < 0 ? bytes : bytes * count;
}

std::map<std::string, Entry> entries_of(const std::string& ptx) {
    static const char START[] = ".visible .entry ";
    std::map<std::string, Entry> entries;
    std::size_t at = 0;
    while ((at = ptx.find(START, at)) != std::string::npos) {
        at += std::strlen(START);
        const std::size_t open = ptx.find('(', at), close = ptx.find(')', at), body = ptx.find('{', at);
        if (open == std::string::npos || close == std::string::npos || body == std::string::npos) {
            break;
        }
        Entry entry;
        for (std::size_t next = open + 1; (next = ptx.find(".param", next)) < close;) {
            const std::size_t end = std::min(ptx.find(',', next), close);
            entry.parameters.push_back(parameter_bytes(ptx.substr(next, end - next)));
            next = end;
        }
        const int most = number_after(ptx.substr(close, body - close), ".maxntid");
        entry.most_threads = most < 0 ? MOST_THREADS : static_cast<u32>(most);
        std::string name = ptx.substr(at, open - at);
        name.erase(name.find_last_not_of(" \t\n") + 1);
        entries.emplace(name, entry);
    }
    return entries;
}

CUresult refuse(CUresult result, const std::string& why) {
    std::fprintf(stderr, "emulator: module refused: %s\n", why.c_str());
    return result;
}

CUresult check_image(const char* image, std::map<std::string, Entry>& entries) {
    if (std::memcmp(image, "\x7f"
                           "ELF",
                    4) == 0) {
        return refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, "a cubin; only PTX can be read here");
    }
    const std::string ptx = without_comments(image);
    const int version = number_after(ptx, ".version"), target = number_after(ptx, ".target sm_");
    if (version < 0 || target < 0) {
        return refuse(CUDA_ERROR_INVALID_IMAGE, "no PTX");
    }
    if (version > newest_ptx(settings().version)) {
        return refuse(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "PTX " + std::to_string(version) + " is newer than the driver");
    }
    if (target > settings().capability) {
        return refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, "made for sm_" + std::to_string(target));
    }
    entries = entries_of(ptx);
    if (entries.empty()) {
        return refuse(CUDA_ERROR_INVALID_IMAGE, "no kernel in it");
    }
    for (const auto& [name, entry] : entries) {
        const Kernel* kernel = find_kernel(name);
        std::size_t bytes = 0;
        for (const std::size_t one : entry.parameters) {
            bytes += one;
        }
        if (kernel == nullptr) {
            return refuse(CUDA_ERROR_INVALID_IMAGE, name + " is in no kernels/*.cu");
        }
        if (entry.parameters.size() != 1 || bytes != kernel->parameter_bytes) {
            return refuse(CUDA_ERROR_INVALID_IMAGE, name + " takes " + std::to_string(bytes) + " bytes, in its source " +
                                                        std::to_string(kernel->parameter_bytes));
        }
        if (bytes > 4096 && (version < 81 || target < 70)) {
            return refuse(CUDA_ERROR_INVALID_PTX, name + " takes more than 4096 bytes, which need PTX 8.1 and sm_70");
        }
    }
    return CUDA_SUCCESS;
}

CUresult load(CUmodule* module, const void* image) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    CUresult result = check_current(driver(), handle, context);
    if (result == CUDA_SUCCESS) {
        result = refuse_in_capture(driver());
    }
    if (result != CUDA_SUCCESS) {
        return result;
    }
    Module loaded{handle, {}, {}};
    result = check_image(static_cast<const char*>(image), loaded.entries);
    if (result == CUDA_SUCCESS) {
        *module = driver().modules.add(std::move(loaded));
        counters().modules++;
    }
    return result;
}

}  // namespace

}  // namespace emulator

using namespace emulator;

DRIVER cuModuleLoadData(CUmodule* module, const void* image) { return load(module, image); }
DRIVER cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, int*, void**) { return load(module, image); }

DRIVER cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    TRY(check_current(driver(), handle, context));
    Module* found = driver().modules.find(module);
    if (found == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const auto entry = found->entries.find(name);
    if (entry == found->entries.end()) {
        return CUDA_ERROR_NOT_FOUND;
    }
    CUfunction& known = found->functions[name];
    if (known == nullptr) {
        known = driver().functions.add(
            Function{found->context, module, find_kernel(name), entry->second.most_threads});
    }
    *function = known;
    return CUDA_SUCCESS;
}

DRIVER cuModuleUnload(CUmodule module) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    CUresult result = check_current(driver(), handle, context);
    if (result == CUDA_SUCCESS) {
        result = refuse_in_capture(driver());
    }
    if (result != CUDA_SUCCESS) {
        return result;
    }
    const Module* found = driver().modules.find(module);
    if (found == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (found->context != handle) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    driver().functions.remove_all([module](const Function& function) { return function.module == module; });
    driver().modules.remove(module);
    return CUDA_SUCCESS;
}

DRIVER cuFuncGetAttribute(int* value, int attribute, CUfunction function) {
    std::lock_guard guard(driver().lock);
    const Function* found = driver().functions.find(function);
    if (found == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    // MAX_THREADS_PER_BLOCK; no shared or local memory, and no registers to count.
    *value = attribute == 0 ? static_cast<int>(found->most_threads) : 0;
    return CUDA_SUCCESS;
}

DRIVER cuFuncSetAttribute(CUfunction function, int, int) {
    std::lock_guard guard(driver().lock);
    return driver().functions.find(function) == nullptr ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

DRIVER cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction function, int threads,
                                                             std::size_t, unsigned) {
    std::lock_guard guard(driver().lock);
    if (driver().functions.find(function) == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (threads <= 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *blocks = std::min(THREADS_OF_MULTIPROCESSOR / threads, BLOCKS_OF_MULTIPROCESSOR);
    return CUDA_SUCCESS;
}

DRIVER cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int threads, std::size_t bytes) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, bytes, 0);
}
