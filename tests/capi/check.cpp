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
                CHECK(std::fabs(now - expected) <= scale * 1.1920929e-7);
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

    // The README's snippets.
    std::vector<float> buffers(4 * 4 * 64 * 64, 1.0f);
    float *at = buffers.data();
    float *snippet_keys[2] = {at, at + 4 * 64 * 64}, *snippet_values[2] = {at + 8 * 64 * 64, at + 12 * 64 * 64};
    OK(edit(snippet_keys, snippet_values));
    CHECK(snippet_keys[1][9 * 64] == 1.0f && snippet_keys[1][13 * 64] != 1.0f);

    // Cell i holds position 39 - i, or is another sequence's; those from position 20 on move back by 5. Every pair is (1, 0) to begin with.
    const size_t cells = 40, row = 4 * 64;
    std::vector<uint16_t> cell_keys(2 * cells * row);
    for (size_t i = 0; i < cell_keys.size(); i += 2) cell_keys[i] = 0x3c00;
    std::vector<int32_t> positions(cells);
    for (size_t i = 0; i < cells; i++) positions[i] = i % 4 == 1 ? -1 : 39 - static_cast<int32_t>(i);
    void *cache_k[2] = {cell_keys.data(), cell_keys.data() + cells * row};
    OK(shift(cache_k, positions.data(), cells, 20, -1, -5));
    for (size_t i = 0; i < 2 * cells * row; i += 2) {
        double angle = positions[i / row % cells] >= 20 ? -5 * std::pow(10000.0, -double(i % 64) / 64) : 0;
        // Half a unit of f16 at 1, the magnitude of the pair.
        CHECK(std::fabs(number(PIE_ROPE_F16, cell_keys[i]) - std::cos(angle)) <= 0.5003 * ulp(PIE_ROPE_F16, 1.0));
        CHECK(std::fabs(number(PIE_ROPE_F16, cell_keys[i + 1]) - std::sin(angle)) <= 0.5003 * ulp(PIE_ROPE_F16, 1.0));
    }

    std::printf("C++, pie-rope %s: ok\n", pie_rope_version());
}
