/* The CUDA part of the C ABI: the CPU's bits, and its errors. It asks the driver for what an engine would have:
 * a context, a stream and memory. */
#include "common.h"

#include <dlfcn.h>

typedef unsigned long long address;

/* The driver's functions, declared here: no toolkit is needed. */
static struct {
    int (*init)(unsigned);
    int (*device)(int *, int);
    int (*retain)(void **, int);
    int (*set_current)(void *);
    int (*stream)(void **, unsigned);
    int (*wait)(void *);
    int (*alloc)(address *, size_t);
    int (*release)(address);
    int (*to)(address, const void *, size_t);
    int (*from)(void *, address, size_t);
} cuda;

static void *library;

/* ISO C has no cast from an object's pointer to a function's. */
static void find(const char *name, void *function) {
    void *found = dlsym(library, name);
    if (found == NULL) {
        fprintf(stderr, "the driver has no %s\n", name);
        exit(1);
    }
    memcpy(function, &found, sizeof found);
}

static address upload(const float *numbers) {
    address to;
    CHECK(cuda.alloc(&to, LEN * sizeof(float)) == 0);
    CHECK(cuda.to(to, numbers, LEN * sizeof(float)) == 0);
    return to;
}

/* An angle for every row, more than a launch's parameters hold. */
static void workspace(pie_rope_cuda *gpu, pie_rope_cpu *cpu, void *stream, const pie_rope_rope *rope) {
    enum { MANY = 2000 };
    static float keys[MANY * DIM], got[MANY * DIM];
    static int32_t before[MANY], after[MANY];
    for (int i = 0; i < MANY; i++) {
        before[i] = i;
        after[i] = i * 7 % MANY;
        for (int dim = 0; dim < DIM; dim++) keys[i * DIM + dim] = (float)(i % 17 - dim) / 8.0f;
    }
    pie_rope_plan *plan;
    pie_rope_rotations *rotations;
    OK(pie_rope_plan_from_positions(before, after, MANY, &plan));
    OK(pie_rope_rotations_new(plan, rope, &rotations));
    pie_rope_layout layout = {0};
    layout.struct_size = sizeof layout;
    OK(pie_rope_layout_bshd(PIE_ROPE_F32, 1, MANY, 1, DIM, &layout));
    pie_rope_cuda_layer on_gpu = {sizeof on_gpu, 0, MANY * DIM, 0, 0};
    address buffer;
    CHECK(cuda.alloc(&buffer, sizeof keys) == 0 && cuda.to(buffer, keys, sizeof keys) == 0);
    on_gpu.keys = buffer;
    pie_rope_layer on_cpu = {sizeof on_cpu, keys, MANY * DIM, NULL, 0};
    pie_rope_cuda_cache gpu_cache = {sizeof gpu_cache, &layout, NULL, &on_gpu, 1};
    pie_rope_cache cpu_cache = {sizeof cpu_cache, &layout, NULL, &on_cpu, 1};

    size_t needed;
    address space;
    OK(pie_rope_cuda_workspace_len(gpu, rotations, &gpu_cache, NULL, &needed));
    CHECK(needed > 0 && cuda.alloc(&space, needed) == 0);
    REFUSED(pie_rope_cuda_rotate(gpu, stream, rotations, &gpu_cache, 0, 0), PIE_ROPE_ERROR_ARGUMENT, "workspace: ");
    OK(pie_rope_cuda_rotate(gpu, stream, rotations, &gpu_cache, space, needed));
    OK(pie_rope_cpu_rotate(cpu, rotations, &cpu_cache));
    CHECK(cuda.wait(stream) == 0 && cuda.from(got, on_gpu.keys, sizeof got) == 0);
    CHECK(memcmp(got, keys, sizeof got) == 0);
    CHECK(cuda.release(space) == 0 && cuda.release(on_gpu.keys) == 0);
    pie_rope_rotations_free(rotations);
    pie_rope_plan_free(plan);
}

int main(void) {
    library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "there is no CUDA driver: %s\n", dlerror());
        return 1;
    }
    find("cuInit", &cuda.init);
    find("cuDeviceGet", &cuda.device);
    find("cuDevicePrimaryCtxRetain", &cuda.retain);
    find("cuCtxSetCurrent", &cuda.set_current);
    find("cuStreamCreate", &cuda.stream);
    find("cuStreamSynchronize", &cuda.wait);
    find("cuMemAlloc_v2", &cuda.alloc);
    find("cuMemFree_v2", &cuda.release);
    find("cuMemcpyHtoD_v2", &cuda.to);
    find("cuMemcpyDtoH_v2", &cuda.from);

    pie_rope_cuda *gpu = NULL;
    int device;
    void *context, *stream;
    CHECK(cuda.init(0) == 0 && cuda.device(&device, 0) == 0);
    REFUSED(pie_rope_cuda_new_current(&gpu), PIE_ROPE_ERROR_ARGUMENT, "context: no CUDA context is current");
    CHECK(gpu == NULL);
    CHECK(cuda.retain(&context, device) == 0 && cuda.set_current(context) == 0);
    CHECK(cuda.stream(&stream, 1) == 0);
    OK(pie_rope_cuda_new_current(&gpu));
    OK(pie_rope_cuda_prepare(gpu, PIE_ROPE_F32));
    REFUSED(pie_rope_cuda_prepare(gpu, 3), PIE_ROPE_ERROR_ARGUMENT, "element");

    pie_rope_cpu *cpu;
    pie_rope_rope *rope;
    pie_rope_plan *plan, *in_place;
    pie_rope_rotations *moving, *staying;
    pie_rope_edit edits[2] = {{sizeof(pie_rope_edit), 4, 7, 1}, {sizeof(pie_rope_edit), 20, 20, 3}};
    OK(pie_rope_cpu_new(1, &cpu));
    OK(pie_rope_rope_from_theta(THETA, DIM, PIE_ROPE_INTERLEAVED, 0, 1, &rope));
    OK(pie_rope_plan_from_edits(0, 30, edits, 2, &plan));
    OK(pie_rope_plan_in_place(plan, &in_place));
    OK(pie_rope_rotations_new(plan, rope, &moving));
    OK(pie_rope_rotations_new(in_place, rope, &staying));
    pie_rope_layout layout = {0}, lower, upper;
    layout.struct_size = sizeof layout;
    OK(pie_rope_layout_bshd(PIE_ROPE_F32, 1, ROWS, HEADS, DIM, &layout));
    /* Pages of 2 rows, from 0 on and from 10 on: for copies inside a buffer. */
    lower = upper = layout;
    OK(pie_rope_layout_nhd(PIE_ROPE_F32, ROWS / 2, 2, HEADS, DIM, &lower));
    upper = lower;
    const uint32_t from_pages[] = {0, 1, 2, 3}, to_pages[] = {9, 8, 7, 6, 5};
    lower.table = from_pages;
    lower.table_len = 4;
    upper.table = to_pages;
    upper.table_len = 5;
    pie_rope_edit small = {sizeof small, 1, 1, 2};
    pie_rope_plan *short_plan;
    pie_rope_rotations *turning;
    OK(pie_rope_plan_from_edits(0, 8, &small, 1, &short_plan));
    OK(pie_rope_rotations_new(short_plan, rope, &turning));

    for (int verb = 0; verb < 4; verb++) {
        static float keys[LEN], values[LEN], to_keys[LEN], to_values[LEN], got[LEN];
        put_numbers(keys, 1);
        put_numbers(values, 2);
        put_numbers(to_keys, 3);
        put_numbers(to_values, 4);
        pie_rope_cuda_layer on_gpu = {sizeof on_gpu, upload(keys), LEN, upload(values), LEN};
        pie_rope_cuda_layer to_gpu = {sizeof to_gpu, upload(to_keys), LEN, upload(to_values), LEN};
        pie_rope_layer on_cpu = {sizeof on_cpu, keys, LEN, values, LEN};
        pie_rope_layer to_cpu = {sizeof to_cpu, to_keys, LEN, to_values, LEN};
        pie_rope_layout *here = verb == 3 ? &lower : &layout;
        pie_rope_cuda_cache gpu_cache = {sizeof gpu_cache, here, here, &on_gpu, 1};
        pie_rope_cuda_cache gpu_to = {sizeof gpu_to, &layout, &layout, &to_gpu, 1};
        pie_rope_cache cpu_cache = {sizeof cpu_cache, here, here, &on_cpu, 1};
        pie_rope_cache cpu_to = {sizeof cpu_to, &layout, &layout, &to_cpu, 1};
        size_t needed = 1;
        OK(pie_rope_cuda_workspace_len(gpu, moving, &gpu_cache, verb == 2 ? &gpu_to : NULL, &needed));
        CHECK(needed == 0);
        switch (verb) {
        case 0:
            /* Refused before anything is launched. */
            on_gpu.keys_len--;
            REFUSED(pie_rope_cuda_rotate(gpu, stream, staying, &gpu_cache, 0, 0), PIE_ROPE_ERROR_LAYOUT,
                    "layer 0, keys");
            on_gpu.keys_len = LEN;
            on_gpu.struct_size = 0;
            REFUSED(pie_rope_cuda_rotate(gpu, stream, staying, &gpu_cache, 0, 0), PIE_ROPE_ERROR_ARGUMENT,
                    "layers: struct_size is 0");
            on_gpu.struct_size = sizeof on_gpu;
            REFUSED(pie_rope_cuda_rotate(NULL, stream, staying, &gpu_cache, 0, 0), PIE_ROPE_ERROR_ARGUMENT,
                    "cuda: it is null");
            OK(pie_rope_cuda_rotate(gpu, stream, staying, &gpu_cache, 0, 0));
            OK(pie_rope_cpu_rotate(cpu, staying, &cpu_cache));
            break;
        case 1:
            OK(pie_rope_cuda_splice(gpu, stream, moving, &gpu_cache, 0, 0));
            OK(pie_rope_cpu_splice(cpu, moving, &cpu_cache));
            break;
        case 2:
            OK(pie_rope_cuda_copy(gpu, stream, moving, &gpu_cache, &gpu_to, 0, 0));
            OK(pie_rope_cpu_copy(cpu, moving, &cpu_cache, &cpu_to));
            break;
        default:
            OK(pie_rope_cuda_copy_within(gpu, stream, turning, &gpu_cache, &upper, &upper, 0, 0));
            OK(pie_rope_cpu_copy_within(cpu, turning, &cpu_cache, &upper, &upper));
        }
        CHECK(cuda.wait(stream) == 0);
        const float *expected[4] = {keys, values, to_keys, to_values};
        const address there[4] = {on_gpu.keys, on_gpu.values, to_gpu.keys, to_gpu.values};
        for (int buffer = 0; buffer < 4; buffer++) {
            CHECK(cuda.from(got, there[buffer], sizeof got) == 0);
            CHECK(same(got, expected[buffer]));
            CHECK(cuda.release(there[buffer]) == 0);
        }
        /* And that something happened: keys of `rotate` and `splice`, the destination of copies. */
        put_numbers(got, verb == 2 ? 3 : 1);
        CHECK(!same(got, expected[verb == 2 ? 2 : 0]));
    }

    workspace(gpu, cpu, stream, rope);

    pie_rope_rotations_free(turning);
    pie_rope_rotations_free(moving);
    pie_rope_rotations_free(staying);
    pie_rope_plan_free(short_plan);
    pie_rope_plan_free(in_place);
    pie_rope_plan_free(plan);
    pie_rope_rope_free(rope);
    pie_rope_cpu_free(cpu);
    pie_rope_cuda_free(gpu);
    printf("C, CUDA, pie-rope %s: ok\n", pie_rope_version());
    return 0;
}
