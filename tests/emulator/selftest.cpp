// The emulator's own test: sound kernels pass, bit for bit, and what a driver refuses is refused. It fails if there
// is a fault in the kernels; scripts/planted-faults counts on that.
//
//   selftest LIBCUDA [guarded|exact]     with keys between guards alone, or in allocations of their size alone
//
// It launches the kernels as src/cuda does, on the simplest cache: [heads][rows][dim] in f16, paired half-split.

#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda.h"

#define ELEMENT F16
#include <rows.cuh>

namespace emulator {
// Nothing of a kernel is run on this side.
Kernel::Kernel(const char* name, u32 bytes, void (*run)(const void*)) : name(name), parameter_bytes(bytes), run(run) {}
}  // namespace emulator

namespace {

void* library;

template <class... Arguments>
CUresult call(const char* name, Arguments... arguments) {
    void* function = dlsym(library, name);
    if (function == nullptr) {
        std::printf("no %s\n", name);
        std::exit(2);
    }
    return reinterpret_cast<CUresult (*)(Arguments...)>(function)(arguments...);
}

void expect(bool holds, const char* what) {
    if (!holds) {
        std::printf("FAILED: %s\n", what);
        std::exit(1);
    }
}

void expect(CUresult result, CUresult wanted, const char* what) {
    if (result != wanted) {
        std::printf("FAILED: %s: %d, expected %d\n", what, result, wanted);
        std::exit(1);
    }
}

u64 count(const char* name) {
    return reinterpret_cast<u64 (*)(const char*)>(dlsym(library, "emulator_counter"))(name);
}

// PTX with as much in it as the emulator reads.
std::string ptx(const std::vector<std::pair<std::string, u32>>& kernels, const char* version = "8.1",
                const char* target = "sm_75") {
    std::string text = std::string("//\n.version ") + version + "\n.target " + target + "\n.address_size 64\n\n";
    for (const auto& [name, bytes] : kernels) {
        text += ".visible .entry " + name + "(\n\t.param .align 16 .b8 " + name + "_param_0[" +
                std::to_string(bytes) + "]\n)\n.maxntid 256, 1, 1\n{\n\tret;\n}\n";
    }
    return text;
}

constexpr u32 HEADS = 2, DIM = 64, ROWS = 200, PAIRS = DIM / 2, GROUP = 4;
constexpr std::size_t ELEMENTS = HEADS * ROWS * DIM;

Side side() {
    Side side{};
    side.batch_stride = 2 * ELEMENTS;
    side.block_stride = 2 * ROWS * DIM;
    side.row_stride = 2 * DIM;
    side.head_stride = 2 * ROWS * DIM;
    side.pack_stride = 2 * DIM;
    side.pack = DIM;
    side.block_rows = 1u << 31;
    // One block: every row divided by it is 0.
    side.magic = 1;
    side.shift = 31;
    side.table_at = NONE;
    return side;
}

// One call on one layer's keys, wide or narrow.
Parameters<SMALL> call_of(u64 keys, const std::vector<Span>& spans, u32 rows, bool in_place, bool wide,
                          const float* cos_sin) {
    Parameters<SMALL> parameters{};
    u32* words = parameters.words;
    u32 end = sizeof(Header) / 4;
    const auto push = [&](const void* from, u32 bytes) {
        const u32 start = (end + 3) / 4 * 4;
        std::memcpy(words + start, from, bytes);
        end = start + (bytes + 3) / 4;
        return start;
    };
    Shape shape{};
    shape.source = shape.destination = side();
    shape.batches = 1;
    shape.heads = HEADS;
    shape.items = shape.turning_items = wide ? PAIRS / 8 : PAIRS;
    shape.window_width = DIM;
    shape.item_step = wide ? 8 : 1;
    shape.partner = PAIRS;
    shape.pairs = PAIRS;
    shape.cos_sin_at = push(cos_sin, 2 * PAIRS * 4);
    shape.group = GROUP;
    shape.head_group = 1;
    shape.wide = wide;
    Header header{};
    header.rows = rows;
    header.steps = 16;
    header.spans = static_cast<u32>(spans.size());
    header.spans_at = push(spans.data(), static_cast<u32>(spans.size() * sizeof(Span)));
    header.sources_at = header.destinations_at = push(&keys, 8);
    const u32 shape_of = 0;
    header.shape_of_at = push(&shape_of, 4);
    header.shapes_at = push(&shape, sizeof shape);
    header.in_place = in_place;
    std::memcpy(words, &header, sizeof header);
    return parameters;
}

// A row of one head, turned; what this processor's own numbers say, one by one.
void turn_row(u16* row, const float* cos_sin) {
    for (u32 i = 0; i < PAIRS; i++) {
        float a = from_f16(row[i]), b = from_f16(row[i + PAIRS]);
        turn_pair(a, b, cos_sin[i], cos_sin[PAIRS + i]);
        row[i] = to_f16(a);
        row[i + PAIRS] = to_f16(b);
    }
}

CUcontext context;
CUfunction rotate_kernel, splice_kernel;

CUresult launch(CUfunction function, u32 blocks, u32 threads, Parameters<SMALL>& parameters, CUstream stream = nullptr) {
    void* list[] = {&parameters};
    return call("cuLaunchKernel", function, blocks, 1u, 1u, threads, 1u, 1u, 0u, stream, static_cast<void**>(list),
                static_cast<void**>(nullptr));
}

// Keys in device memory: all of an allocation, so that what goes past them is illegal, or between guards.
class Keys {
   public:
    Keys(bool guarded, std::mt19937& random) : guard(guarded ? 128 : 0), host(ELEMENTS + 2 * guard) {
        // Any bits: NaNs, infinities and subnormals among them.
        for (u16& key : host) {
            key = static_cast<u16>(random());
        }
        expect(call("cuMemAlloc_v2", &memory, bytes()), CUDA_SUCCESS, "allocate");
        expect(call("cuMemcpyHtoD_v2", memory, static_cast<const void*>(host.data()), bytes()), CUDA_SUCCESS, "copy");
    }
    ~Keys() { expect(call("cuMemFree_v2", memory), CUDA_SUCCESS, "free"); }
    Keys(const Keys&) = delete;
    Keys& operator=(const Keys&) = delete;

    CUdeviceptr address() const { return memory + 2 * guard; }
    u16* row(u32 head, u32 row) { return &host[guard + (head * ROWS + row) * DIM]; }
    // What the device has, guards included, is what the host has.
    bool are_there() const {
        std::vector<u16> back(host.size());
        expect(call("cuMemcpyDtoH_v2", static_cast<void*>(back.data()), memory, bytes()), CUDA_SUCCESS, "copy back");
        return back == host;
    }

   private:
    std::size_t bytes() const { return 2 * host.size(); }

    std::size_t guard;
    std::vector<u16> host;
    CUdeviceptr memory = 0;
};

// Some of a block's threads have nothing to do.
constexpr u32 THREADS = 66;

u32 blocks_of(bool wide) { return (wide ? PAIRS / 8 : PAIRS) / GROUP * HEADS; }

// Two spans that move further than a block's tiles reach, so that the order of rows matters.
constexpr u32 MOVED = 150;
std::vector<Span> spans_of(bool right) {
    if (right) {
        return {{100, 140, 60, 0, 0, 0}, {5, 45, 90, 60, 0, 0}};
    }
    return {{45, 5, 90, 0, 0, 0}, {140, 100, 60, 90, 0, 0}};
}

void check_splice(bool right, bool wide, bool guarded, std::mt19937& random, const std::vector<float>& cos_sin) {
    const std::vector<Span> spans = spans_of(right);
    Keys keys(guarded, random);
    Parameters<SMALL> parameters = call_of(keys.address(), spans, MOVED, false, wide, cos_sin.data());
    expect(launch(splice_kernel, blocks_of(wide), THREADS, parameters), CUDA_SUCCESS, "splice");
    for (u32 head = 0; head < HEADS; head++) {
        const std::vector<u16> before(keys.row(head, 0), keys.row(head, 0) + ROWS * DIM);
        for (const Span& span : spans) {
            for (u32 i = 0; i < span.len; i++) {
                std::memcpy(keys.row(head, span.dst + i), &before[(span.src + i) * DIM], 2 * DIM);
                turn_row(keys.row(head, span.dst + i), cos_sin.data());
            }
        }
    }
    expect(keys.are_there(), right ? "rows after a splice to the right" : "rows after a splice to the left");
}

Parameters<SMALL> rotate_of(const Keys& keys, bool wide, const std::vector<float>& cos_sin) {
    return call_of(keys.address(), {{0, 0, ROWS, 0, 0, 0}}, ROWS, true, wide, cos_sin.data());
}

void turn_all(Keys& keys, const std::vector<float>& cos_sin) {
    for (u32 row = 0; row < HEADS * ROWS; row++) {
        turn_row(keys.row(0, row), cos_sin.data());
    }
}

void check_rotate(bool wide, bool guarded, std::mt19937& random, const std::vector<float>& cos_sin) {
    Keys keys(guarded, random);
    Parameters<SMALL> parameters = rotate_of(keys, wide, cos_sin);
    expect(launch(rotate_kernel, blocks_of(wide), THREADS, parameters), CUDA_SUCCESS, "rotate");
    turn_all(keys, cos_sin);
    expect(keys.are_there(), "rows after rotate");
}

void set_up() {
    expect(call("cuCtxSynchronize"), CUDA_ERROR_NOT_INITIALIZED, "nothing before cuInit");
    expect(call("cuInit", 0u), CUDA_SUCCESS, "cuInit");
    expect(call("cuCtxSynchronize"), CUDA_ERROR_INVALID_CONTEXT, "nothing without a context");
    expect(call("cuDevicePrimaryCtxRetain", &context, 0), CUDA_SUCCESS, "retain");
    expect(call("cuCtxSetCurrent", context), CUDA_SUCCESS, "current");
    CUmodule module;
    const u32 small = sizeof(Parameters<SMALL>), large = sizeof(Parameters<LARGE>);
    const auto load = [&](const std::string& text) {
        return call("cuModuleLoadData", &module, static_cast<const void*>(text.c_str()));
    };
    std::fprintf(stderr, "(refusals follow)\n");
    expect(load("nonsense"), CUDA_ERROR_INVALID_IMAGE, "no PTX");
    expect(load(ptx({{"rotate_f16_small", small}}, "9.9")), CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "new PTX");
    expect(load(ptx({{"rotate_f16_small", small}}, "8.1", "sm_120")), CUDA_ERROR_NO_BINARY_FOR_GPU, "sm_120");
    expect(load(ptx({{"rotate_f16_small", small + 4}})), CUDA_ERROR_INVALID_IMAGE, "another size");
    expect(load(ptx({{"rotate_f64_small", small}})), CUDA_ERROR_INVALID_IMAGE, "a stranger");
    expect(load(ptx({{"rotate_f16_large", large}}, "8.0")), CUDA_ERROR_INVALID_PTX, "large parameters in PTX 8.0");
    expect(load(ptx({{"rotate_f16_small", small}, {"splice_f16_small", small}})), CUDA_SUCCESS, "load");
    const auto get = [&](CUfunction* function, const char* name) {
        return call("cuModuleGetFunction", function, module, name);
    };
    expect(get(&rotate_kernel, "rotate_f16_large"), CUDA_ERROR_NOT_FOUND, "not in this PTX");
    expect(get(&rotate_kernel, "rotate_f16_small"), CUDA_SUCCESS, "rotate");
    expect(get(&splice_kernel, "splice_f16_small"), CUDA_SUCCESS, "splice");
}

void check_launches(std::mt19937& random, const std::vector<float>& cos_sin) {
    Keys keys(false, random);
    Parameters<SMALL> parameters = rotate_of(keys, true, cos_sin);
    expect(launch(rotate_kernel, 2, 257, parameters), CUDA_ERROR_INVALID_VALUE, "more threads than .maxntid");
    expect(launch(rotate_kernel, 0, 64, parameters), CUDA_ERROR_INVALID_VALUE, "no blocks");
    expect(launch(reinterpret_cast<CUfunction>(1), 2, 64, parameters), CUDA_ERROR_INVALID_HANDLE, "no function");
    expect(keys.are_there(), "a refused launch does nothing");
}

// A launch that is captured happens at each replay, with what its parameters were.
void check_capture(std::mt19937& random, const std::vector<float>& cos_sin) {
    Keys keys(false, random);
    Parameters<SMALL> parameters = rotate_of(keys, true, cos_sin);
    CUstream stream;
    expect(call("cuStreamCreate", &stream, 1u), CUDA_SUCCESS, "stream");
    expect(call("cuStreamBeginCapture_v2", stream, 0), CUDA_SUCCESS, "capture");
    const u64 launches = count("launches"), waits = count("synchronisations"), copies = count("copies");
    expect(launch(rotate_kernel, blocks_of(true), THREADS, parameters, stream), CUDA_SUCCESS, "captured launch");
    expect(count("launches") == launches + 1 && count("synchronisations") == waits && count("copies") == copies,
           "one launch and nothing else");
    CUgraph graph;
    expect(call("cuStreamEndCapture", stream, &graph), CUDA_SUCCESS, "end of capture");
    expect(keys.are_there(), "a captured launch does nothing yet");
    std::memset(&parameters, 0, sizeof parameters);
    CUgraphExec exec;
    expect(call("cuGraphInstantiateWithFlags", &exec, graph, 0ull), CUDA_SUCCESS, "instantiate");
    expect(call("cuGraphDestroy", graph), CUDA_SUCCESS, "destroy");
    expect(call("cuGraphDestroy", graph), CUDA_ERROR_INVALID_HANDLE, "destroy twice");
    for (int replay = 0; replay < 2; replay++) {
        expect(call("cuGraphLaunch", exec, stream), CUDA_SUCCESS, "replay");
        turn_all(keys, cos_sin);
        expect(keys.are_there(), "a replay turns");
    }
    expect(call("cuStreamBeginCapture_v2", stream, 0), CUDA_SUCCESS, "capture");
    CUdeviceptr other;
    expect(call("cuMemAlloc_v2", &other, std::size_t{8}), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "allocate in capture");
    expect(call("cuStreamEndCapture", stream, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "a broken capture");
}

void check_memory() {
    CUdeviceptr memory;
    reinterpret_cast<void (*)(u64)>(dlsym(library, "emulator_fail_allocation"))(1);
    expect(call("cuMemAlloc_v2", &memory, std::size_t{64}), CUDA_ERROR_OUT_OF_MEMORY, "a refused allocation");
    expect(call("cuMemAlloc_v2", &memory, std::size_t{64}), CUDA_SUCCESS, "the next one");
    expect(call("cuMemcpyDtoD_v2", memory + 2, memory, std::size_t{64}), CUDA_ERROR_INVALID_VALUE, "past the end");
    expect(call("cuMemFree_v2", memory + 2), CUDA_ERROR_INVALID_VALUE, "free the middle");
    expect(call("cuMemFree_v2", memory), CUDA_SUCCESS, "free");
    expect(call("cuMemFree_v2", memory), CUDA_ERROR_INVALID_VALUE, "free twice");
}

void check_context() {
    // Memory that is gone is illegal, and the context is lost with the launch.
    CUdeviceptr memory;
    expect(call("cuMemAlloc_v2", &memory, 2 * ELEMENTS), CUDA_SUCCESS, "allocate");
    expect(call("cuMemFree_v2", memory), CUDA_SUCCESS, "free");
    const std::vector<float> none(2 * PAIRS);
    Parameters<SMALL> parameters = call_of(memory, {{0, 0, ROWS, 0, 0, 0}}, ROWS, true, true, none.data());
    std::fprintf(stderr, "(an illegal address follows)\n");
    expect(launch(rotate_kernel, 2, 64, parameters), CUDA_ERROR_ILLEGAL_ADDRESS, "memory that is gone");
    expect(call("cuCtxSynchronize"), CUDA_ERROR_ILLEGAL_ADDRESS, "it stays so");
    expect(call("cuDevicePrimaryCtxRelease_v2", 0), CUDA_SUCCESS, "release");
    expect(call("cuCtxSynchronize"), CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context is gone");
    expect(call("cuDevicePrimaryCtxRelease_v2", 0), CUDA_ERROR_INVALID_CONTEXT, "release twice");
}

// How fast the emulator is.
void measure(std::mt19937& random, const std::vector<float>& cos_sin) {
    Keys keys(false, random);
    constexpr double REPEATS = 200;
    const auto time = [](CUfunction function, bool wide, Parameters<SMALL> parameters) {
        const auto start = std::chrono::steady_clock::now();
        for (u32 i = 0; i < REPEATS; i++) {
            expect(launch(function, blocks_of(wide), THREADS, parameters), CUDA_SUCCESS, "a timed launch");
        }
        return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count() / REPEATS;
    };
    const auto print = [](const char* what, double nanoseconds, double accesses) {
        std::printf("%s: %.1f ns for each access\n", what, nanoseconds / accesses);
    };
    const double wide = HEADS * PAIRS / 8, narrow = HEADS * PAIRS;
    print("rotate, 16 bytes", time(rotate_kernel, true, rotate_of(keys, true, cos_sin)), 4 * wide * ROWS);
    print("rotate, 2 bytes", time(rotate_kernel, false, rotate_of(keys, false, cos_sin)), 4 * narrow * ROWS);
    const auto splice = [&](bool wide) {
        return call_of(keys.address(), spans_of(true), MOVED, false, wide, cos_sin.data());
    };
    // A thread has two rows for each barrier, that is eight accesses.
    print("splice, 16 bytes and an eighth of a barrier", time(splice_kernel, true, splice(true)), 4 * wide * MOVED);
    print("splice, 2 bytes and an eighth of a barrier", time(splice_kernel, false, splice(false)), 4 * narrow * MOVED);
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 2 || (library = dlopen(arguments[1], RTLD_NOW)) == nullptr) {
        std::printf("selftest LIBCUDA: %s\n", count < 2 ? "no library" : dlerror());
        return 2;
    }
    const u32 seed = std::random_device{}();
    std::mt19937 random(seed);
    std::printf("seed %u\n", seed);
    std::vector<float> cos_sin(2 * PAIRS);
    for (u32 i = 0; i < PAIRS; i++) {
        const float angle = static_cast<float>(random()) * 1e-9f;
        cos_sin[i] = __builtin_cosf(angle);
        cos_sin[PAIRS + i] = __builtin_sinf(angle);
    }
    set_up();
    for (const bool wide : {true, false}) {
        for (const bool guarded : {true, false}) {
            if (count == 3 && guarded != (std::strcmp(arguments[2], "guarded") == 0)) {
                continue;
            }
            check_rotate(wide, guarded, random, cos_sin);
            check_splice(false, wide, guarded, random, cos_sin);
            check_splice(true, wide, guarded, random, cos_sin);
        }
    }
    check_launches(random, cos_sin);
    check_capture(random, cos_sin);
    check_memory();
    measure(random, cos_sin);
    check_context();
    std::printf("passed\n");
    return 0;
}
