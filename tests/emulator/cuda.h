// As much of the CUDA driver's interface as the emulator has. Numbers are part of that interface.

#pragma once

#include <cstddef>
#include <cstdint>

typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st* CUcontext;
typedef struct CUmod_st* CUmodule;
typedef struct CUfunc_st* CUfunction;
typedef struct CUstream_st* CUstream;
typedef struct CUevent_st* CUevent;
typedef struct CUgraph_st* CUgraph;
typedef struct CUgraphExec_st* CUgraphExec;
typedef struct CUgraphNode_st* CUgraphNode;

#define CUDA_RESULTS(RESULT)                                                                  \
    RESULT(CUDA_SUCCESS, 0, "no error")                                                       \
    RESULT(CUDA_ERROR_INVALID_VALUE, 1, "invalid argument")                                   \
    RESULT(CUDA_ERROR_OUT_OF_MEMORY, 2, "out of memory")                                      \
    RESULT(CUDA_ERROR_NOT_INITIALIZED, 3, "initialization error")                             \
    RESULT(CUDA_ERROR_NO_DEVICE, 100, "no CUDA-capable device is detected")                   \
    RESULT(CUDA_ERROR_INVALID_DEVICE, 101, "invalid device ordinal")                          \
    RESULT(CUDA_ERROR_INVALID_IMAGE, 200, "device kernel image is invalid")                   \
    RESULT(CUDA_ERROR_INVALID_CONTEXT, 201, "invalid device context")                         \
    RESULT(CUDA_ERROR_NO_BINARY_FOR_GPU, 209, "no kernel image is available for the device")  \
    RESULT(CUDA_ERROR_INVALID_PTX, 218, "a PTX JIT compilation failed")                       \
    RESULT(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, 222, "the PTX was made by a newer toolchain")  \
    RESULT(CUDA_ERROR_INVALID_HANDLE, 400, "invalid resource handle")                         \
    RESULT(CUDA_ERROR_NOT_FOUND, 500, "named symbol not found")                               \
    RESULT(CUDA_ERROR_NOT_READY, 600, "device not ready")                                     \
    RESULT(CUDA_ERROR_ILLEGAL_ADDRESS, 700, "an illegal memory access was encountered")       \
    RESULT(CUDA_ERROR_CONTEXT_IS_DESTROYED, 709, "context is destroyed")                      \
    RESULT(CUDA_ERROR_MISALIGNED_ADDRESS, 716, "misaligned address")                          \
    RESULT(CUDA_ERROR_LAUNCH_FAILED, 719, "unspecified launch failure")                       \
    RESULT(CUDA_ERROR_NOT_SUPPORTED, 801, "operation not supported")                          \
    RESULT(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 900,                                        \
           "operation not permitted when stream is capturing")                                \
    RESULT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 901,                                        \
           "operation failed due to a previous error during capture")                         \
    RESULT(CUDA_ERROR_STREAM_CAPTURE_MERGE, 902, "operation would merge two captures")        \
    RESULT(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, 903, "capture was not initiated in this stream") \
    RESULT(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, 905,                                          \
           "dependency created on uncaptured work in another stream")                         \
    RESULT(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, 906,                                           \
           "operation would make the legacy stream depend on a capturing blocking stream")    \
    RESULT(CUDA_ERROR_CAPTURED_EVENT, 907,                                                    \
           "operation not permitted on an event last recorded in a capturing stream")         \
    RESULT(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, 908,                                       \
           "attempt to terminate a thread-local capture sequence from another thread")

enum CUresult : int {
#define RESULT(name, number, text) name = number,
    CUDA_RESULTS(RESULT)
#undef RESULT
};

enum CUstreamCaptureStatus : int { CAPTURE_NONE = 0, CAPTURE_ACTIVE = 1, CAPTURE_INVALIDATED = 2 };
enum CUstreamCaptureMode : int { CAPTURE_GLOBAL = 0, CAPTURE_THREAD_LOCAL = 1, CAPTURE_RELAXED = 2 };

struct CUuuid {
    unsigned char bytes[16];
};

// A function of the driver.
#define DRIVER extern "C" __attribute__((visibility("default"))) CUresult
