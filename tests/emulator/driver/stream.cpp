// Streams, events, launches, and graphs of them.

#include <chrono>
#include <cstring>
#include <random>

#include "../memory.h"
#include "driver.h"

namespace emulator {

namespace {

constexpr unsigned NON_BLOCKING = 1;
constexpr unsigned NO_TIMING = 2;
// The handles of the default streams, besides null.
const CUstream LEGACY = reinterpret_cast<CUstream>(1);
const CUstream PER_THREAD = reinterpret_cast<CUstream>(2);

std::uint64_t nanoseconds() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

u32 order_seed() {
    static std::atomic<u32> next{std::random_device{}()};
    return settings().seeded ? settings().seed : next.fetch_add(0x9e3779b9u);
}

// Without the driver's lock.
CUresult launch(CUcontext context, const Function& function, const Work& work) {
    // To the byte, so that AddressSanitizer sees what is read behind them.
    const std::size_t alignment = 16;
    void* parameters = nullptr;
    if (posix_memalign(&parameters, alignment, work.parameters.size()) != 0) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    std::memcpy(parameters, work.parameters.data(), work.parameters.size());
    const CUresult result = run(Launch{
        function.kernel, {work.grid[0], work.grid[1]}, work.threads, parameters, context, order_seed()});
    std::free(parameters);
    return result;
}

void set(const Work& work) {
    for (std::size_t i = 0; i < work.bytes; i += work.value_bytes) {
        std::memcpy(reinterpret_cast<char*>(work.to) + i, &work.value, work.value_bytes);
    }
}

CUresult check_stream(CUstream stream, CUcontext& handle, Context*& context, Stream*& found) {
    const CUresult result = check_current(driver(), handle, context);
    return result == CUDA_SUCCESS ? find_stream(driver(), handle, stream, found) : result;
}

CUresult check_event(CUevent event, CUcontext handle, Event*& found) {
    found = driver().events.find(event);
    return found == nullptr || found->context != handle ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

}  // namespace

CUresult find_stream(Driver& driver, CUcontext context, CUstream handle, Stream*& stream) {
    stream = nullptr;
    if (handle == nullptr || handle == LEGACY) {
        // The legacy stream waits for all blocking ones of its context.
        CUresult result = CUDA_SUCCESS;
        driver.streams.visit([&](Stream& other) {
            if (other.context == context && other.blocking && other.capture) {
                other.capture->invalid = true;
                result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
            }
        });
        return result;
    }
    if (handle == PER_THREAD) {
        return CUDA_SUCCESS;
    }
    stream = driver.streams.find(handle);
    return stream == nullptr || stream->context != context ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

CUresult refuse_in_capture(Driver& driver) {
    CUresult result = CUDA_SUCCESS;
    driver.streams.visit([&](Stream& stream) {
        if (!stream.capture) {
            return;
        }
        const bool here = stream.capture->thread == std::this_thread::get_id();
        if (stream.capture->mode == CAPTURE_GLOBAL || (stream.capture->mode == CAPTURE_THREAD_LOCAL && here)) {
            stream.capture->invalid = true;
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    });
    return result;
}

CUresult submit_all(std::unique_lock<std::mutex> lock, CUcontext context, const std::vector<Work>& all) {
    for (const Work& work : all) {
        CUresult result = CUDA_SUCCESS;
        if (work.kind == Work::LAUNCH) {
            const Function* found = driver().functions.find(work.function);
            if (found == nullptr) {
                return CUDA_ERROR_INVALID_HANDLE;
            }
            const Function function = *found;
            lock.unlock();
            result = launch(context, function, work);
            lock.lock();
        } else if (work.kind == Work::COPY) {
            std::memmove(reinterpret_cast<void*>(work.to), reinterpret_cast<const void*>(work.from), work.bytes);
        } else if (work.kind == Work::SET) {
            set(work);
        }
        if (result != CUDA_SUCCESS) {
            if (Context* broken = driver().contexts.find(context)) {
                broken->error = result;
            }
            return result;
        }
    }
    return CUDA_SUCCESS;
}

CUresult submit(std::unique_lock<std::mutex> lock, CUstream stream, Work work) {
    CUcontext handle;
    Context* context;
    Stream* found;
    TRY(check_stream(stream, handle, context, found));
    if (found != nullptr && found->capture) {
        if (found->capture->invalid) {
            return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        }
        found->capture->work.push_back(std::move(work));
        return CUDA_SUCCESS;
    }
    std::vector<Work> all;
    all.push_back(std::move(work));
    return submit_all(std::move(lock), handle, all);
}

}  // namespace emulator

using namespace emulator;

DRIVER cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void** parameters,
                      void** extra) {
    std::unique_lock lock(driver().lock);
    CUcontext handle;
    Context* context;
    TRY(check_current(driver(), handle, context));
    const Function* found = driver().functions.find(function);
    if (found == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (found->context != handle) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    const unsigned grid[3] = {grid_x, grid_y, grid_z};
    for (int i = 0; i < 3; i++) {
        if (grid[i] == 0 || grid[i] > MOST_BLOCKS[i]) {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    const u64 threads = static_cast<u64>(block_x) * block_y * block_z;
    if (threads == 0 || threads > found->most_threads || block_z > 64 || shared > 48 << 10) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (grid_z != 1 || block_y != 1 || block_z != 1 || static_cast<u64>(grid_x) * grid_y > MOST_BLOCKS[0]) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (settings().dry) {
        return CUDA_SUCCESS;
    }
    Work work{};
    work.kind = Work::LAUNCH;
    work.function = function;
    work.grid[0] = grid_x;
    work.grid[1] = grid_y;
    work.threads = block_x;
    // Each parameter's address, or all of them in one buffer: a list of keys and values that ends with 0.
    const std::size_t bytes = found->kernel->parameter_bytes;
    const void* from = parameters == nullptr ? nullptr : parameters[0];
    std::size_t given = bytes;
    for (; parameters == nullptr && extra != nullptr && *extra != nullptr; extra += 2) {
        if (*extra == reinterpret_cast<void*>(1)) {
            from = extra[1];
        } else if (*extra == reinterpret_cast<void*>(2)) {
            given = *static_cast<const std::size_t*>(extra[1]);
        }
    }
    if (from == nullptr || given != bytes) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    work.parameters.assign(static_cast<const unsigned char*>(from), static_cast<const unsigned char*>(from) + bytes);
    counters().launches++;
    return submit(std::move(lock), stream, std::move(work));
}

DRIVER cuLaunchHostFunc(CUstream stream, void (*function)(void*), void* data) {
    {
        std::lock_guard guard(driver().lock);
        CUcontext handle;
        Context* context;
        Stream* found;
        TRY(check_stream(stream, handle, context, found));
        if (found != nullptr && found->capture) {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
    }
    function(data);
    return CUDA_SUCCESS;
}

DRIVER cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    const CUresult result = check_current(driver(), handle, context);
    if (result == CUDA_SUCCESS) {
        *stream = driver().streams.add(Stream{handle, (flags & NON_BLOCKING) == 0, {}});
    }
    return result;
}

DRIVER cuStreamCreate(CUstream* stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }

DRIVER cuStreamDestroy_v2(CUstream stream) {
    std::lock_guard guard(driver().lock);
    return driver().streams.remove(stream) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

static CUresult wait_for(CUstream stream) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    Stream* found;
    TRY(check_stream(stream, handle, context, found));
    if (found != nullptr && found->capture) {
        found->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return CUDA_SUCCESS;
}

DRIVER cuStreamSynchronize(CUstream stream) {
    counters().synchronisations++;
    return wait_for(stream);
}
DRIVER cuStreamQuery(CUstream stream) { return wait_for(stream); }

DRIVER cuStreamGetCtx(CUstream stream, CUcontext* context) {
    std::lock_guard guard(driver().lock);
    Context* object;
    CUresult result = check_current(driver(), *context, object);
    if (result == CUDA_SUCCESS && stream != nullptr && stream != LEGACY && stream != PER_THREAD) {
        const Stream* found = driver().streams.find(stream);
        result = found == nullptr ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
        *context = found == nullptr ? nullptr : found->context;
    }
    return result;
}

DRIVER cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    Stream* found;
    TRY(check_stream(stream, handle, context, found));
    const Event* awaited = driver().events.find(event);
    if (awaited == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const std::shared_ptr<Capture> capture = awaited->capture.lock();
    if (!awaited->captured) {
        if (found != nullptr && found->capture) {
            found->capture->invalid = true;
            return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        }
        return CUDA_SUCCESS;
    }
    if (!capture || found == nullptr) {
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    if (found->capture && found->capture != capture) {
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    // The stream joins the capture.
    found->capture = capture;
    return CUDA_SUCCESS;
}

DRIVER cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    Stream* found;
    TRY(check_stream(stream, handle, context, found));
    if (found == nullptr) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (found->capture) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    found->capture = std::make_shared<Capture>();
    found->capture->origin = stream;
    found->capture->mode = mode;
    found->capture->thread = std::this_thread::get_id();
    return CUDA_SUCCESS;
}

DRIVER cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    Stream* found;
    TRY(check_stream(stream, handle, context, found));
    *graph = nullptr;
    if (found == nullptr || !found->capture) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const std::shared_ptr<Capture> capture = found->capture;
    if (capture->origin != stream) {
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    }
    if (capture->mode != CAPTURE_RELAXED && capture->thread != std::this_thread::get_id()) {
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    driver().streams.visit([&](Stream& other) {
        if (other.capture == capture) {
            other.capture.reset();
        }
    });
    if (capture->invalid) {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    *graph = driver().graphs.add(Graph{handle, std::move(capture->work)});
    return CUDA_SUCCESS;
}

DRIVER cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    Stream* found;
    const CUresult result = check_stream(stream, handle, context, found);
    if (result == CUDA_SUCCESS) {
        const bool captures = found != nullptr && found->capture;
        *status = !captures ? CAPTURE_NONE : found->capture->invalid ? CAPTURE_INVALIDATED : CAPTURE_ACTIVE;
    }
    return result;
}

DRIVER cuGraphGetNodes(CUgraph graph, CUgraphNode* nodes, std::size_t* count) {
    std::lock_guard guard(driver().lock);
    const Graph* found = driver().graphs.find(graph);
    if (found == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    // How many there are is all that can be asked.
    if (nodes != nullptr) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    *count = found->work.size();
    return CUDA_SUCCESS;
}

DRIVER cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long) {
    std::lock_guard guard(driver().lock);
    const Graph* found = driver().graphs.find(graph);
    if (found == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *exec = driver().execs.add(GraphExec{found->context, found->work});
    return CUDA_SUCCESS;
}

DRIVER cuGraphUpload(CUgraphExec exec, CUstream) {
    std::lock_guard guard(driver().lock);
    return driver().execs.find(exec) == nullptr ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

DRIVER cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    std::unique_lock lock(driver().lock);
    CUcontext handle;
    Context* context;
    Stream* found;
    TRY(check_stream(stream, handle, context, found));
    const GraphExec* graph = driver().execs.find(exec);
    if (graph == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (graph->context != handle) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    counters().graph_launches++;
    const std::vector<Work> all = graph->work;
    if (found != nullptr && found->capture) {
        std::vector<Work>& work = found->capture->work;
        work.insert(work.end(), all.begin(), all.end());
        return CUDA_SUCCESS;
    }
    return submit_all(std::move(lock), handle, all);
}

DRIVER cuGraphDestroy(CUgraph graph) {
    std::lock_guard guard(driver().lock);
    return driver().graphs.remove(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

DRIVER cuGraphExecDestroy(CUgraphExec exec) {
    std::lock_guard guard(driver().lock);
    return driver().execs.remove(exec) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

DRIVER cuEventCreate(CUevent* event, unsigned flags) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    const CUresult result = check_current(driver(), handle, context);
    if (result == CUDA_SUCCESS) {
        Event made{};
        made.context = handle;
        made.timing = (flags & NO_TIMING) == 0;
        *event = driver().events.add(std::move(made));
        counters().events++;
    }
    return result;
}

DRIVER cuEventDestroy_v2(CUevent event) {
    std::lock_guard guard(driver().lock);
    return driver().events.remove(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

DRIVER cuEventRecord(CUevent event, CUstream stream) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    Stream* found;
    TRY(check_stream(stream, handle, context, found));
    Event* recorded;
    TRY(check_event(event, handle, recorded));
    recorded->captured = found != nullptr && found->capture;
    if (recorded->captured) {
        recorded->capture = found->capture;
    } else {
        recorded->nanoseconds = nanoseconds();
    }
    return CUDA_SUCCESS;
}

static CUresult ask_event(CUevent event) {
    std::lock_guard guard(driver().lock);
    CUcontext handle;
    Context* context;
    CUresult result = check_current(driver(), handle, context);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    Event* found;
    result = check_event(event, handle, found);
    return result == CUDA_SUCCESS && found->captured ? CUDA_ERROR_CAPTURED_EVENT : result;
}

DRIVER cuEventSynchronize(CUevent event) {
    counters().synchronisations++;
    return ask_event(event);
}
DRIVER cuEventQuery(CUevent event) { return ask_event(event); }

static CUresult elapsed(float* milliseconds, CUevent start, CUevent end) {
    std::lock_guard guard(driver().lock);
    const Event* from = driver().events.find(start);
    const Event* to = driver().events.find(end);
    if (from == nullptr || to == nullptr || from->context != to->context) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (!from->timing || !to->timing || from->nanoseconds == 0 || to->nanoseconds == 0) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *milliseconds = static_cast<float>(static_cast<double>(to->nanoseconds - from->nanoseconds) * 1e-6);
    return CUDA_SUCCESS;
}
DRIVER cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) { return elapsed(milliseconds, start, end); }
DRIVER cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) {
    return elapsed(milliseconds, start, end);
}
