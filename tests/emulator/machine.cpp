#include "machine.h"

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "fibre.h"
#include "launch.h"
#include "memory.h"

namespace emulator {

thread_local Running* running = nullptr;

namespace {

// What ends a launch. Kernels have nothing to destroy, so it need not unwind more than one thread.
struct Fault {
    CUresult result;
    std::string message;
};

// Runs one launch at a time, block after block.
class Machine : public Running {
   public:
    Machine() : Running{} {}

    CUresult run(const Launch& launch);
    [[noreturn]] void fail(CUresult result, const char* format, ...) __attribute__((format(printf, 3, 4)));
    void barrier();
    Range find(u64 address, u32 bytes, bool write);
    void touch_slowly(State* states, u64 address, u32 bytes, bool write);

   private:
    struct Waiting {
        Fibre* fibre;
        u32 thread;
    };

    static void work(void* machine);
    void run_block(u32 block);
    void enter_interval(u64 interval);
    void enter_thread(u32 thread);
    void go_on(Fibre* fibre);
    u32 nth_thread(u32 n) const { return backwards ? threads - 1 - n : n; }
    std::string block_name(u32 block) const;
    std::string here() const;

    const Launch* launch = nullptr;
    // Intervals of earlier launches on memory that this one may touch are smaller.
    u64 interval = 0;
    // The first intervals of the launch's blocks, and those blocks.
    std::vector<std::pair<u64, u32>> begun;
    bool backwards = false;
    // Threads of the block that have begun.
    u32 started = 0;
    std::vector<std::unique_ptr<Fibre>> fibres;
    std::vector<Fibre*> idle;
    Fibre* current = nullptr;
    std::vector<Waiting> waiting;
    std::vector<Waiting> woken;
    u32 barriers = 0;
    // The thread that was the last to leave the block.
    u32 finished = 0;
    bool failed = false;
    Fault fault;
};

Machine& machine() { return *static_cast<Machine*>(running); }

std::string text(const char* format, std::va_list arguments) {
    char buffer[1024];
    std::vsnprintf(buffer, sizeof buffer, format, arguments);
    return buffer;
}

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    std::string result = text(format, arguments);
    va_end(arguments);
    return result;
}

// The end of all intervals of launches that are over.
std::atomic<u64> intervals{1};

void Machine::fail(CUresult result, const char* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    std::string message = text(format, arguments);
    va_end(arguments);
    throw Fault{result, std::move(message)};
}

std::string Machine::block_name(u32 block) const {
    return text("block (%u, %u)", block % launch->grid[0], block / launch->grid[0]);
}

std::string Machine::here() const {
    return text("%s, block (%u, %u), thread %u", launch->kernel->name, block_x, block_y, thread);
}

void Machine::enter_interval(u64 next) {
    interval = next;
    now.interval = state_of(interval, 0);
}

void Machine::enter_thread(u32 next) {
    thread = next;
    now.thread = state_of(interval, thread);
}

// Threads run one after the other on one stack, until one comes to a barrier: it keeps that stack and waits, and
// another stack takes the next threads. A kernel without barriers is a plain loop so.
void Machine::work(void* argument) {
    Machine& machine = *static_cast<Machine*>(argument);
    Fibre* const fibre = machine.current;
    try {
        while (machine.started < machine.threads) {
            machine.enter_thread(machine.nth_thread(machine.started++));
            machine.launch->kernel->run(machine.launch->parameters);
            machine.finished = machine.thread;
        }
    } catch (Fault& fault) {
        machine.failed = true;
        machine.fault = std::move(fault);
    }
    machine.idle.push_back(fibre);
}

void Machine::go_on(Fibre* fibre) {
    current = fibre;
    fibre->resume();
}

void Machine::barrier() {
    Fibre* const fibre = current;
    waiting.push_back({fibre, thread});
    fibre->suspend();
}

void Machine::run_block(u32 block) {
    block_x = block % launch->grid[0];
    block_y = block / launch->grid[0];
    enter_interval(interval + 1);
    now.block = now.interval;
    begun.emplace_back(interval, block);
    started = 0;
    barriers = 0;
    waiting.clear();
    while (started < threads && !failed) {
        if (idle.empty()) {
            fibres.push_back(std::make_unique<Fibre>(work, this));
            idle.push_back(fibres.back().get());
        }
        Fibre* fibre = idle.back();
        idle.pop_back();
        go_on(fibre);
    }
    while (!waiting.empty() && !failed) {
        barriers++;
        if (waiting.size() != threads) {
            failed = true;
            fault.result = CUDA_ERROR_LAUNCH_FAILED;
            fault.message = text("barrier: %s, %s: thread %u waits at barrier %u of the block, and thread %u never comes",
                                 launch->kernel->name, block_name(block).c_str(), waiting[0].thread, barriers, finished);
            break;
        }
        enter_interval(interval + 1);
        woken.clear();
        std::swap(waiting, woken);
        for (const Waiting& next : woken) {
            enter_thread(next.thread);
            go_on(next.fibre);
            if (failed) {
                break;
            }
        }
    }
}

CUresult Machine::run(const Launch& what) {
    launch = &what;
    threads = what.threads;
    read = Range{};
    written = Range{};
    begun.clear();
    failed = false;
    enter_interval(intervals.load());
    now.launch = state_of(interval + 1, 0);

    // Any order of blocks must do, so each launch takes another one.
    std::minstd_rand random(what.seed);
    backwards = random() % 2 != 0;
    std::vector<u32> order(static_cast<std::size_t>(what.grid[0]) * what.grid[1]);
    for (u32 i = 0; i < order.size(); i++) {
        const u32 other = random() % (i + 1);
        order[i] = order[other];
        order[other] = i;
    }
    running = this;
    for (std::size_t i = 0; i < order.size() && !failed; i++) {
        run_block(order[i]);
    }
    running = nullptr;

    // Launches that touch the same memory later begin after this.
    u64 end = intervals.load();
    while (end < interval + 1 && !intervals.compare_exchange_weak(end, interval + 1)) {
    }
    if (!failed) {
        return CUDA_SUCCESS;
    }
    std::fprintf(stderr, "emulator: %s (EMULATOR_SEED=%u repeats the order of blocks)\n", fault.message.c_str(),
                 what.seed);
    // Threads that stopped in the middle never go on.
    idle.clear();
    for (const std::unique_ptr<Fibre>& fibre : fibres) {
        fibre->reset();
        idle.push_back(fibre.get());
    }
    return fault.result;
}

Range Machine::find(u64 address, u32 bytes, bool write) {
    const char* verb = write ? "writes" : "reads";
    if (address % bytes != 0) {
        fail(CUDA_ERROR_MISALIGNED_ADDRESS, "alignment: %s %s %u bytes at 0x%llx, %s", here().c_str(), verb, bytes,
             address, memory::nearest(address).c_str());
    }
    const Range range = memory::find(launch->context, address, bytes);
    if (range.states == nullptr) {
        fail(CUDA_ERROR_ILLEGAL_ADDRESS, "address: %s %s %u bytes at 0x%llx, %s", here().c_str(), verb, bytes, address,
             memory::nearest(address).c_str());
    }
    return range;
}

void Machine::touch_slowly(State* states, u64 address, u32 bytes, bool write) {
    for (u32 i = 0; i < bytes / GRANULE; i++) {
        const State before = states[i];
        const State after = write ? (can_write(before, now) ? now.thread | WROTE : RACE) : after_read(before, now);
        if (after != RACE) {
            states[i] = after;
            continue;
        }
        // The last block that began before the other access.
        const auto later = std::upper_bound(begun.begin(), begun.end(), std::pair(interval_of(before), ~0u));
        const bool wrote = before & WROTE;
        fail(CUDA_ERROR_LAUNCH_FAILED, "race: %s %s 0x%llx (%s), which %s, thread %u %s%s, with no barrier between",
             here().c_str(), write ? "writes" : "reads", address + i * GRANULE,
             memory::nearest(address + i * GRANULE).c_str(),
             later == begun.begin() ? "another launch" : block_name((later - 1)->second).c_str(), thread_of(before),
             wrote ? "wrote" : "read", before & (MANY_THREADS | MANY_BLOCKS) ? ", and others" : "");
    }
}

// Kernels that were compiled in, by name. Static objects fill it in any order, so it is made when first needed.
std::map<std::string, const Kernel*>& kernels() {
    static std::map<std::string, const Kernel*> all;
    return all;
}

// Machines that have run and can run again: their stacks are worth keeping.
std::mutex idle_lock;
std::vector<std::unique_ptr<Machine>> idle_machines;

}  // namespace

Kernel::Kernel(const char* name, u32 parameter_bytes, void (*run)(const void* parameters))
    : name(name), parameter_bytes(parameter_bytes), run(run) {
    kernels().emplace(name, this);
}

const Kernel* find_kernel(const std::string& name) {
    const auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : found->second;
}

void barrier() { machine().barrier(); }
Range find_range(u64 address, u32 bytes, bool write) { return machine().find(address, bytes, write); }
void touch_slowly(State* states, u64 address, u32 bytes, bool write) {
    machine().touch_slowly(states, address, bytes, write);
}

CUresult run(const Launch& launch) {
    std::unique_ptr<Machine> machine;
    {
        std::lock_guard<std::mutex> guard(idle_lock);
        if (!idle_machines.empty()) {
            machine = std::move(idle_machines.back());
            idle_machines.pop_back();
        }
    }
    if (!machine) {
        machine = std::make_unique<Machine>();
    }
    const CUresult result = machine->run(launch);
    std::lock_guard<std::mutex> guard(idle_lock);
    idle_machines.push_back(std::move(machine));
    return result;
}

}  // namespace emulator
