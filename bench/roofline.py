"""The machine's ceilings, measured in the same run as what is compared with them.

Multiply-adds a second of one thread in registers for each instruction set, and bytes a second read from memory. The loops are C++
(peaks.cpp), compiled on the spot; without a compiler, or on another architecture, there are no ceilings and no percentages.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FLOPS_A_LANE = 2
LANES = {"avx512": 16, "avx2": 8}


@dataclass(frozen=True)
class Roofline:
    """flops: float32 operations a second by instruction set; read: bytes a second. One thread."""

    flops: dict
    read: float | None

    def describe(self):
        if not self.flops:
            return "no compiler for bench/peaks.cpp: no percentages"
        rates = ", ".join(f"{isa} {rate / 1e9:.0f} GFLOP/s" for isa, rate in self.flops.items())
        return f"one thread: float32 multiply-add {rates}; memory read {self.read / 1e9:.1f} GB/s"


def measure(features, seconds=0.05, repeats=9):
    """The best of `repeats`: a ceiling is what the machine can do undisturbed."""
    library = compile_peaks()
    if library is None:
        return Roofline({}, None)
    flops = {}
    for isa, lanes in LANES.items():
        if features.get(isa):
            loop = getattr(library, f"fma_{isa}")
            loop.restype, loop.argtypes = ctypes.c_double, [ctypes.c_int64]
            rounds = int(1e5 * seconds / max(loop(int(1e5)), 1e-6)) + 1
            flops[isa] = rounds * library.fma_chains() * lanes * FLOPS_A_LANE / min(loop(rounds) for _ in range(repeats))
    memory = np.ones(1 << 28, np.uint8)
    read = library.read_memory
    read.restype, read.argtypes = ctypes.c_double, [ctypes.c_void_p, ctypes.c_int64]
    return Roofline(flops, memory.size / min(read(memory.ctypes.data, memory.size) for _ in range(repeats)))


def compile_peaks():
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or os.uname().machine != "x86_64":
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peaks.so"
        command = [compiler, "-std=c++20", "-O2", "-shared", "-fPIC", str(Path(__file__).with_name("peaks.cpp")), "-o", str(path)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        return ctypes.CDLL(str(path))
