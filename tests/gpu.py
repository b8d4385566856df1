"""Arrays on a GPU, for the tests marked `gpu`: NumPy arrays moved there with their strides, and back."""

import ctypes
import importlib.util
import os

import attile
import cases
import numpy as np
from machine import jax_64_bit

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes three quarters of the GPU's memory from the others

SLOW_CLOCKS = 400_000_000  # about 0.2 s of a GPU: longer than the host takes for any call, even where a dozen processes test at once

CONFIG = attile.show_config()
MISSING = None if CONFIG["cuda"] else CONFIG["cuda_missing"]
KERNELS = [row["name"] for row in CONFIG["kernels"] if row["device"] == "cuda" and row["function"] == "flash_attention"]
LIBRARIES = [name for name in ("torch", "cupy", "jax") if importlib.util.find_spec(name)]

# Which libraries can hold arrays that lie like this on a GPU (see cases.MEMORY).
MEMORY = {
    memory: ("torch", "cupy", "jax") if memory == "contiguous" else ("cupy",) if memory in ("bytes", "reversed") else ("torch", "cupy")
    for memory in cases.MEMORY
    if memory != "readonly"
}


def raw(x):
    """The bytes between the first and the last element of x, the address of the first byte modulo 64, and where x starts in them."""
    start = x.__array_interface__["data"][0]
    reach = [(n - 1) * stride for n, stride in zip(x.shape, x.strides, strict=True)]
    low = start + sum(min(r, 0) for r in reach)
    high = start + sum(max(r, 0) for r in reach) + x.itemsize
    return np.frombuffer((ctypes.c_uint8 * (high - low)).from_address(low), np.uint8), low % 64, start - low


def to_gpu(x, library):
    """The array on the GPU, with the same strides, and as far off alignment as it is here."""
    if library == "jax":
        import jax

        with jax_64_bit():
            return jax.device_put(np.asarray(x, order="C"), jax.devices("gpu")[0])
    plain = x.size == 0 or x.flags.c_contiguous
    if library == "torch":
        import torch

        if plain:
            return cases.convert(np.array(x, order="C"), "torch").cuda()
        data, shift, start = raw(x)
        room = torch.full(((shift + data.size) // 16 * 16 + 16,), 0xFF, dtype=torch.uint8, device="cuda")
        room[shift : shift + data.size] = torch.from_numpy(data.copy()).cuda()
        dtype = cases.convert(np.zeros(1, x.dtype), "torch").dtype
        strides = [stride // x.itemsize for stride in x.strides]
        return room.view(dtype).as_strided(x.shape, strides, (shift + start) // x.itemsize)
    import cupy

    if plain and x.ctypes.data % x.itemsize == 0:
        return cupy.asarray(np.array(x, order="C"))
    data, shift, start = raw(x)
    room = cupy.full(shift + data.size, 0xFF, np.uint8)
    room[shift:] = cupy.asarray(data.copy())
    return cupy.ndarray(x.shape, x.dtype, memptr=room.data + (shift + start), strides=x.strides)


def call_on(call, library, host=()):
    """The keyword arguments of a call with the arrays on the GPU, but for those named in `host`."""
    return {name: to_gpu(x, library) if isinstance(x, np.ndarray) and name not in host else x for name, x in call.items()}


def to_numpy(x):
    """Back to NumPy; waits for the work on the array's stream."""
    if type(x).__module__.startswith("torch"):
        return cases.to_numpy(x.cpu())
    if type(x).__module__.startswith("cupy"):
        return x.get()
    return np.asarray(x)


def holder_of(case):
    """The first installed library that can hold the case's arrays, or None."""
    return next((name for name in MEMORY.get(case.memory, ()) if name in LIBRARIES and name != "jax"), None)
