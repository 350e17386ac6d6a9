/* What candle wants of NVIDIA's other libraries when it opens a device, and the verbs do not use: a handle of each.
 * Built as libcublas, libcublasLt, libcudart, libcurand and libnvrtc by scripts/candle. */
#include <stdio.h>
#include <stdlib.h>

static int handle;

int cublasCreate_v2(void **out) { return *out = &handle, 0; }
int cublasDestroy_v2(void *blas) { return blas != &handle; }
int cublasSetStream_v2(void *blas, void *stream) { return (void)stream, blas != &handle; }
int curandCreateGenerator(void **out, int kind) { return (void)kind, *out = &handle, 0; }
int curandDestroyGenerator(void *generator) { return generator != &handle; }
int curandSetStream(void *generator, void *stream) { return (void)stream, generator != &handle; }
int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) {
    return (void)seed, generator != &handle;
}

/* Linked, and never called. */
#define ABSENT(name)                                                    \
    void name(void) {                                                   \
        fputs(#name " is not here: tests/emulator/candle.c\n", stderr); \
        abort();                                                        \
    }
ABSENT(cuMemcpyPeerAsync)
ABSENT(cuModuleLoad)
