"""Arrays of no known library, exported by DLPack in the ways that exist."""

import ctypes

import numpy as np
import pytest

# Older NumPy, which plays the foreign library here, knows neither max_version nor copy.
needs_versions = pytest.mark.skipif(
    tuple(map(int, np.__version__.split(".")[:2])) < (2, 1), reason="NumPy before 2.1 exports no capsules with a version"
)


class Versioned:
    """Of today: a capsule with a version, which says whether it may be written."""

    def __init__(self, array):
        self.array = array
        self.calls = []

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        self.calls.append((max_version, copy))
        return self.array.__dlpack__(max_version=max_version, copy=copy)


class Legacy(Versioned):
    """Of before 2023: no keyword but stream, a capsule without a version."""

    def __dlpack__(self, stream=None):
        self.calls.append(stream)
        return self.array.__dlpack__()


class ManagedTensor(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dtype", ctypes.c_uint32),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


def capsule_address(capsule, name):
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return get(capsule, name)


class Patched(Versioned):
    """Its capsule is changed by `patch` before it is given away."""

    patch = staticmethod(lambda tensor: None)

    def __dlpack__(self, **kwargs):
        capsule = super().__dlpack__(**kwargs)
        self.patch(ManagedTensor.from_address(capsule_address(capsule, b"dltensor_versioned")))
        return capsule


class OnCuda(Patched):
    """On a CUDA device, as far as its capsule tells."""

    device = 2

    def __dlpack_device__(self):
        return (self.device, 0)

    def patch(self, tensor):
        tensor.device = self.device


class OnCpu(OnCuda):
    device = 1


class OnMetal(OnCuda):
    device = 8


class Copying(Versioned):
    """Copies where it was asked not to."""

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(max_version=(1, 3), copy=True)


class Broken(Versioned):
    """Exports nothing."""

    def __init__(self, error=BufferError):
        super().__init__(None)
        self.error = error

    def __dlpack__(self, **kwargs):
        raise self.error("the data is lent out")


class WrongCapsule(Broken):
    def __dlpack__(self, **kwargs):
        return "no capsule"
