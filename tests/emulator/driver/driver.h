// The driver's objects, and what its functions share.
//
// A handle is a number that is never given twice, so one of a destroyed object is known to be unknown. Everything
// is guarded by one lock; only kernels run without it. Work is done in the thread that asks for it, at once, so
// streams are always idle, unless they capture.

#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../cuda.h"
#include "../launch.h"

// Returns what a call refuses with, if it does.
#define TRY(call)                                                  \
    if (const CUresult tried = (call); tried != CUDA_SUCCESS) {    \
        return tried;                                              \
    }

namespace emulator {

constexpr u32 MOST_THREADS = 1024;
constexpr u32 MOST_BLOCKS[3] = {0x7fffffff, 65535, 65535};
constexpr int MULTIPROCESSORS = 4;
constexpr int WARP = 32;
constexpr int THREADS_OF_MULTIPROCESSOR = 2048;
constexpr int BLOCKS_OF_MULTIPROCESSOR = 32;

struct Context {
    CUdevice device;
    bool primary;
    // What a kernel broke stays broken.
    CUresult error = CUDA_SUCCESS;
};

struct Function {
    CUcontext context;
    CUmodule module;
    const Kernel* kernel;
    u32 most_threads;
};

// A kernel of a module's PTX.
struct Entry {
    std::vector<std::size_t> parameters;
    u32 most_threads = MOST_THREADS;
};

struct Module {
    CUcontext context;
    std::map<std::string, Entry> entries;
    std::map<std::string, CUfunction> functions;
};

// Work that a stream does now, or a graph later. It holds copies of all that it was told.
struct Work {
    enum { LAUNCH, COPY, SET, NOTHING } kind;
    // LAUNCH
    CUfunction function;
    u32 grid[2];
    u32 threads;
    std::vector<unsigned char> parameters;
    // COPY, SET
    u64 to;
    u64 from;
    std::size_t bytes;
    u32 value;
    u32 value_bytes;
};

struct Capture {
    CUstream origin;
    CUstreamCaptureMode mode;
    std::thread::id thread;
    bool invalid = false;
    std::vector<Work> work;
};

struct Stream {
    CUcontext context;
    bool blocking;
    std::shared_ptr<Capture> capture;
};

struct Event {
    CUcontext context;
    bool timing;
    // 0: not recorded.
    std::uint64_t nanoseconds = 0;
    // It was recorded in a capture: a place in the graph, not a time.
    std::weak_ptr<Capture> capture;
    bool captured = false;
};

struct Graph {
    CUcontext context;
    std::vector<Work> work;
};

struct GraphExec {
    CUcontext context;
    std::vector<Work> work;
};

std::uintptr_t next_handle();

// The objects of a kind.
template <class Handle, class Object>
class Registry {
   public:
    Handle add(Object object) {
        const Handle handle = reinterpret_cast<Handle>(next_handle());
        objects.emplace(handle, std::move(object));
        return handle;
    }
    // Null: unknown.
    Object* find(Handle handle) {
        const auto found = objects.find(handle);
        return found == objects.end() ? nullptr : &found->second;
    }
    bool remove(Handle handle) { return objects.erase(handle) != 0; }
    template <class Which>
    void remove_all(Which which) {
        for (auto next = objects.begin(); next != objects.end();) {
            next = which(next->second) ? objects.erase(next) : std::next(next);
        }
    }
    template <class Visit>
    void visit(Visit visit) {
        for (auto& [handle, object] : objects) {
            visit(object);
        }
    }

   private:
    std::map<Handle, Object> objects;
};

// Everything there is.
struct Driver {
    std::mutex lock;
    bool initialised = false;
    struct Device {
        CUcontext primary = nullptr;
        u32 retained = 0;
    };
    std::vector<Device> devices;
    Registry<CUcontext, Context> contexts;
    Registry<CUmodule, Module> modules;
    Registry<CUfunction, Function> functions;
    Registry<CUstream, Stream> streams;
    Registry<CUevent, Event> events;
    Registry<CUgraph, Graph> graphs;
    Registry<CUgraphExec, GraphExec> execs;
};
Driver& driver();

// The calling thread's contexts, the current one last.
std::vector<CUcontext>& current();
CUresult check_initialised(const Driver& driver);
// The current context, if it can still be used.
CUresult check_current(Driver& driver, CUcontext& handle, Context*& context);

// Does the work, or has the stream's capture remember it. Takes the lock over, for kernels run without it.
CUresult submit(std::unique_lock<std::mutex> lock, CUstream stream, Work work);
CUresult submit_all(std::unique_lock<std::mutex> lock, CUcontext context, const std::vector<Work>& all);
// A stream by its handle, the default ones included (null object), in the current context.
CUresult find_stream(Driver& driver, CUcontext context, CUstream handle, Stream*& stream);
// What may not be done while a stream captures. It breaks the capture, too.
CUresult refuse_in_capture(Driver& driver);

// What the calling thread has made the driver do, for tests to look at.
struct Counters {
    std::uint64_t launches = 0;
    std::uint64_t graph_launches = 0;
    std::uint64_t allocations = 0;
    std::uint64_t frees = 0;
    std::uint64_t copies = 0;
    std::uint64_t sets = 0;
    std::uint64_t synchronisations = 0;
    std::uint64_t modules = 0;
    std::uint64_t events = 0;
};
Counters& counters();

// Environment variables, read once.
struct Settings {
    // EMULATOR_DEVICES
    int devices;
    // EMULATOR_CAPABILITY, as 90 for 9.0
    int capability;
    // EMULATOR_DRIVER: the driver's version, as 12080 for 12.8
    int version;
    // EMULATOR_MEMORY: bytes of a device
    std::size_t memory;
    // EMULATOR_DRY: launches do nothing, so that what a call costs the host can be measured
    bool dry;
    // EMULATOR_SEED: of the order of blocks; absent: another one for each launch
    bool seeded;
    u32 seed;
};
const Settings& settings();

}  // namespace emulator
