"""A CuPy of a few lines, whose GPUs are the host's memory: imported before attile, it is `cupy`."""

import importlib.machinery
import sys
import types

import numpy as np
import producers

DTYPES = {"bfloat16": 4 | 16 << 8 | 1 << 16, "float8_e4m3fn": 10 | 8 << 8 | 1 << 16}  # DLDataType of what NumPy does not export
limit = None  # elements that an array may have


class ndarray(producers.OnCuda):
    """A NumPy array that says it is on cuda:id."""

    def __init__(self, array, id=0):
        super().__init__(array.view(f"u{array.itemsize}") if array.dtype.name in DTYPES else array)
        self.dtype = array.dtype
        self.id = id

    def patch(self, tensor):
        tensor.device, tensor.device_id = 2, self.id
        if self.dtype.name in DTYPES:
            tensor.dtype = DTYPES[self.dtype.name]

    def get(self):
        return self.array.view(self.dtype)

    @property
    def device(self):
        return Device(self.id)

    def __dlpack__(self, *, stream=None, **kwargs):
        assert stream == -1
        return super().__dlpack__(**kwargs)


class Device:
    now = 0

    def __init__(self, id):
        self.id = id

    def __enter__(self):
        self.before, Device.now = Device.now, self.id

    def __exit__(self, *error):
        Device.now = self.before


def empty(shape, dtype):
    if limit is not None and np.prod(shape) > limit:
        raise MemoryError("the pool is dry")
    return ndarray(np.full(shape, 255, np.uint8) if dtype == np.uint8 else np.full(shape, np.nan, dtype), Device.now)


def on(call, host=(), id=0):
    """A call's arrays on cuda:id, but for those named in `host`."""
    return {n: ndarray(x, id) if isinstance(x, np.ndarray) and n not in host else x for n, x in call.items() if n != "out"}


ndarray.__module__ = "cupy"
cupy = sys.modules["cupy"] = types.ModuleType("cupy")
cupy.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
cupy.ndarray, cupy.__version__, cupy.empty = ndarray, "14.2", empty
cupy.cuda = types.SimpleNamespace(Device=Device, get_current_stream=lambda: types.SimpleNamespace(ptr=0x50 + Device.now))
