// The C ABI from C++17: the header as it is, handles in smart pointers, errors of each thread apart.
#include "common.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

template <auto free_it> struct Free {
    template <class T> void operator()(T *handle) const { free_it(handle); }
};
using Rope = std::unique_ptr<pie_rope_rope, Free<pie_rope_rope_free>>;
using Plan = std::unique_ptr<pie_rope_plan, Free<pie_rope_plan_free>>;
using Rotations = std::unique_ptr<pie_rope_rotations, Free<pie_rope_rotations_free>>;
using Cpu = std::unique_ptr<pie_rope_cpu, Free<pie_rope_cpu_free>>;

// What a function makes, owned.
template <class Owner, class Make> Owner made(Make make) {
    typename Owner::pointer handle = nullptr;
    OK(make(&handle));
    return Owner(handle);
}

extern "C" int edit(float *keys[2], float *values[2]);
extern "C" int shift(void *cache_k[2], const int32_t *positions, size_t cells, int32_t p0, int32_t p1, int32_t delta);

int main() {
    auto rope = made<Rope>([](auto out) {
        return pie_rope_rope_from_theta(THETA, DIM, PIE_ROPE_HALF_SPLIT, 0, LAYERS, out);
    });
    auto cpu = made<Cpu>([](auto out) { return pie_rope_cpu_new(0, out); });
    pie_rope_edit gone{};
    gone.struct_size = sizeof gone;
    gone.start = 3;
    gone.end = 8;
    auto plan = made<Plan>([&](auto out) { return pie_rope_plan_from_edits(0, ROWS, &gone, 1, out); });
    auto rotations = made<Rotations>([&](auto out) { return pie_rope_rotations_new(plan.get(), rope.get(), out); });

    // Keys alone, of one layer.
    std::vector<float> keys(LEN), before(LEN);
    put_numbers(keys.data(), 1);
    before = keys;
    pie_rope_layout layout{};
    layout.struct_size = sizeof layout;
    OK(pie_rope_layout_bshd(PIE_ROPE_F32, 1, ROWS, HEADS, DIM, &layout));
    pie_rope_layer layer{};
    layer.struct_size = sizeof layer;
    layer.keys = keys.data();
    layer.keys_len = keys.size();
    pie_rope_cache cache{};
    cache.struct_size = sizeof cache;
    cache.keys = &layout;
    cache.layers = &layer;
    cache.layers_len = 1;
    size_t first = 0;
    auto one = made<Rotations>([&](auto out) { return pie_rope_rotations_select(rotations.get(), &first, 1, out); });
    REFUSED(pie_rope_cpu_splice(cpu.get(), rotations.get(), &cache), PIE_ROPE_ERROR_ARGUMENT, "layers: 1 given");
    CHECK(same(keys.data(), before.data()));
    OK(pie_rope_cpu_splice(cpu.get(), one.get(), &cache));
    for (int row = 8; row < ROWS; row++)
        for (int head = 0; head < HEADS; head++)
            for (int dim = 0; dim < DIM; dim++) {
                double scale;
                double expected = turned(before.data() + (row * HEADS + head) * DIM, dim, -5, &scale);
                float now = keys[static_cast<size_t>(((row - 5) * HEADS + head) * DIM + dim)];
                CHECK(apart(now, expected) <= scale * 1.1920929e-7);
            }

    // Each thread has its own last error.
    CHECK(pie_rope_cpu_splice(nullptr, one.get(), &cache) == PIE_ROPE_ERROR_ARGUMENT);
    std::string other;
    std::thread([&] {
        CHECK(std::string(pie_rope_last_error()).empty());
        CHECK(pie_rope_cpu_splice(cpu.get(), nullptr, &cache) == PIE_ROPE_ERROR_ARGUMENT);
        other = pie_rope_last_error();
    }).join();
    CHECK(std::string(pie_rope_last_error()) == "cpu: it is null");
    CHECK(other == "rotations: it is null");

    // The README's snippets. Each number is its own, so that none can stand in for another.
    const size_t room = 4 * 64 * 64;
    std::vector<float> buffers(4 * room);
    for (size_t at = 0; at < buffers.size(); at++) buffers[at] = 1.0f + static_cast<float>(at) * 0x1p-17f;
    const std::vector<float> as_it_was = buffers;
    float *snippet_keys[2] = {&buffers[0], &buffers[room]}, *snippet_values[2] = {&buffers[2 * room], &buffers[3 * room]};
    OK(edit(snippet_keys, snippet_values));
    for (size_t at = 0; at < buffers.size(); at++) {
        const size_t dim = at % 64, to = at / 64 % 64, lane = at / 64 / 64;
        const size_t from = to >= 13 && to < 43 ? to - 3 : to;
        const float *old = &as_it_was[(lane * 64 + from) * 64];
        if (at >= 2 * room || from == to) {
            check_bits("snippet.c", &buffers[at], old + dim, 1);
            continue;
        }
        const double angle = 3 * std::pow(10000.0, -2.0 * double(dim % 32) / 64);
        const double a = old[dim % 32], b = old[dim % 32 + 32];
        const double right = dim < 32 ? a * std::cos(angle) - b * std::sin(angle) : b * std::cos(angle) + a * std::sin(angle);
        CHECK(apart(buffers[at], right) <= 1.71 * ulp(PIE_ROPE_F32, std::hypot(a, b)));
    }

    // Cell i holds position 39 - i, or is another sequence's; those from position 20 on move back by 5.
    const size_t cells = 40, row = 4 * 64;
    std::vector<uint16_t> cell_keys(2 * cells * row);
    for (size_t i = 0; i < cell_keys.size(); i++)
        cell_keys[i] = static_cast<uint16_t>((i * 40503u & 0x83ffu) | (10 + i % 6) << 10);
    const std::vector<uint16_t> cells_before = cell_keys;
    std::vector<int32_t> positions(cells);
    for (size_t i = 0; i < cells; i++) positions[i] = i % 4 == 1 ? -1 : 39 - static_cast<int32_t>(i);
    void *cache_k[2] = {cell_keys.data(), cell_keys.data() + cells * row};
    OK(shift(cache_k, positions.data(), cells, 20, -1, -5));
    for (size_t i = 0; i < 2 * cells * row; i += 2) {
        if (positions[i / row % cells] < 20) {
            CHECK(cell_keys[i] == cells_before[i] && cell_keys[i + 1] == cells_before[i + 1]);
            continue;
        }
        const double angle = -5 * std::pow(10000.0, -double(i % 64) / 64);
        const double a = number(PIE_ROPE_F16, cells_before[i]), b = number(PIE_ROPE_F16, cells_before[i + 1]);
        // Half a unit of f16 at the magnitude of the pair.
        const double allowed = 0.5003 * ulp(PIE_ROPE_F16, std::hypot(a, b));
        CHECK(apart(number(PIE_ROPE_F16, cell_keys[i]), a * std::cos(angle) - b * std::sin(angle)) <= allowed);
        CHECK(apart(number(PIE_ROPE_F16, cell_keys[i + 1]), b * std::cos(angle) + a * std::sin(angle)) <= allowed);
    }

    std::printf("C++, pie-rope %s: ok\n", pie_rope_version());
}
