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


class OnCuda(Versioned):
    """On a CUDA device, as far as its capsule tells."""

    device = 2

    def __dlpack_device__(self):
        return (self.device, 0)

    def __dlpack__(self, **kwargs):
        # DLManagedTensorVersioned: 32 bytes, then data (8 bytes) and the device type.
        capsule = super().__dlpack__(**kwargs)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        ctypes.c_int32.from_address(pointer(capsule, b"dltensor_versioned") + 40).value = self.device
        return capsule


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
