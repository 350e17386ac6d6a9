"""A tensor in device memory, of no library: what DLPack asks for, over the driver's own functions."""

import ctypes

import numpy as np

CUDA, FLOAT, BFLOAT = 2, 2, 4


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


def capsule_of(record):
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(record), b"dltensor", None)


class Driver:
    """Device 0 by its primary context."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *arguments):
        status = getattr(self.cuda, name)(*arguments)
        assert status == 0, f"{name}: {status}"

    def stream(self):
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), 1)
        return stream.value

    def synchronize(self):
        self.call("cuCtxSynchronize")

    def upload(self, array, every=1):
        return DeviceArray(self, array, every)


class DeviceArray:
    """``every``: a view of every second element, or third, along the last axis."""

    def __init__(self, driver, array, every=1):
        self.driver, self.host, self.every = driver, np.ascontiguousarray(array), every
        address = ctypes.c_uint64()
        driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(self.host.nbytes))
        self.address, self.streams = address.value, []
        driver.call(
            "cuMemcpyHtoD_v2", address, self.host.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(self.host.nbytes)
        )

    def download(self):
        result = np.empty_like(self.host)
        size = ctypes.c_size_t(result.nbytes)
        self.driver.call("cuMemcpyDtoH_v2", result.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint64(self.address), size)
        return result

    def __dlpack_device__(self):
        return CUDA, 0

    def __dlpack__(self, stream=None):
        self.streams.append(stream)
        view, item = self.host[..., :: self.every], self.host.itemsize
        shape = view.shape
        numbers = ctypes.c_int64 * len(shape)
        self.shape = numbers(*shape)
        self.strides = numbers(*(stride // item for stride in view.strides))
        code = BFLOAT if self.host.dtype.name == "bfloat16" else FLOAT
        self.record = Tensor(
            self.address, CUDA, 0, len(shape), code, 8 * item, 1, self.shape, self.strides, 0, None, None
        )
        return capsule_of(self.record)
