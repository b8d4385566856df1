"""The machine's ceilings, measured in the same run as what is compared with them.

Operations a second in registers for each instruction set, and bytes a second read from memory (the best of 1, 4 and 8 streams), for each
number of threads. The loops are C++ (peaks.cpp), compiled on the spot, or taken from a peaks.so beside it; without either, or on another
architecture, there are no ceilings and no percentages.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("peaks.cpp")
FLAGS = ("-std=c++20", "-O2", "-shared", "-fPIC", "-pthread", "-static-libstdc++")


@dataclass(frozen=True)
class Roofline:
    """flops: operations a second by instruction (avx2, avx512: float32 multiply-add; avx512_bf16, amx_bf16: dot products);
    reads: bytes a second by number of streams."""

    threads: int
    flops: dict = field(default_factory=dict)
    reads: dict = field(default_factory=dict)

    @property
    def read(self):
        return max(self.reads.values(), default=None)

    @property
    def fastest_read(self):
        """The name of the loop."""
        return max(self.reads, key=self.reads.get)

    def roof(self, isa, dtype):
        """(name, operations a second) of the fastest instruction for this dtype in a kernel's instruction set.

        Tiles take a float16 as the sum of two bfloat16, three products each: a third of their rate, "amx_bf16x3".
        """
        if dtype == "float16" and "amx" in isa and "amx_bf16" in self.flops:
            return "amx_bf16x3", self.flops["amx_bf16"] / 3
        names = ["avx2"] if "avx2" in isa else ["avx512"] if isa.startswith(("avx512", "amx")) else []
        if dtype == "bfloat16" and names == ["avx512"]:
            names = ["amx_bf16"] if "amx" in isa else ["avx512", "avx512_bf16"]
        return max(((name, self.flops[name]) for name in names if name in self.flops), key=lambda pair: pair[1], default=(None, None))

    def describe(self):
        rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in self.flops.items())
        reads = ", ".join(f"{rate / 1e9:.1f} ({name.removeprefix('read')} streams)" for name, rate in self.reads.items())
        return f"{self.threads} thread(s): {rates}; memory read GB/s {reads}" if rates else "no compiler for peaks.cpp: no percentages"


def measure(threads, cpus=None, seconds=0.01, repeats=15):
    """The best of `repeats`: a ceiling is what the machine can do undisturbed. With `cpus`, QuietCpus, a third of them in each of three places."""
    library = load()
    peaks = Roofline(threads)
    if library is None:
        return peaks
    memory = np.ones((threads, memory_bytes()), np.uint8)
    places = 1 if cpus is None else 3
    for _ in range(places):
        if cpus is not None:
            cpus.find(stay=False)
            os.sched_setaffinity(0, cpus.here)
        for peak in filter(library.peak_here, range(library.peaks())):
            name, operations = library.peak_name(peak).decode(), library.peak_operations(peak)

            def run(rounds, peak=peak):
                return library.peak_seconds(peak, threads, rounds, memory.ctypes.data, memory.shape[1])

            if operations:
                rounds = int(1e4 * seconds / max(run(10_000), 1e-6)) + 1
                rate = threads * rounds * operations / min(run(rounds) for _ in range(repeats // places))
                peaks.flops[name] = max(rate, peaks.flops.get(name, 0.0))
            else:
                rate = memory.size / min(run(0) for _ in range(max(3, repeats // places // 3)))
                peaks.reads[name] = max(rate, peaks.reads.get(name, 0.0))
    if cpus is not None:
        cpus.leave()
    return peaks


class Reader:
    """Reads the same number of bytes by one of the loops on any number of threads, which it starts in the context together(); what no cache has."""

    SPAN = 1 << 26  # bytes at a time

    def __init__(self, name, together):
        self.loops, self.together = load(), together
        self.peak = next(i for i in range(self.loops.peaks()) if self.loops.peak_name(i).decode() == name)
        self.memory = np.ones((memory_bytes() // self.SPAN, self.SPAN), np.uint8)
        self.turn = 0

    def seconds(self, threads):
        span = self.memory[self.turn % len(self.memory)]
        self.turn += 1
        with self.together():
            return self.loops.peak_seconds(self.peak, threads, 0, span.ctypes.data, self.SPAN // threads)


def memory_bytes():
    """For each thread: twice the last cache, so that reading it again finds nothing there."""
    return max(1 << 28, 2 * last_cache_bytes())


def last_cache_bytes():
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(text[:-1]) * units[text[-1]] for path in sizes if (text := path.read_text().strip())[-1] in units), default=32 << 20)


def load():
    """peaks.cpp as a library; None where it cannot be had."""
    if platform.machine() != "x86_64":
        return None
    ready = SOURCE.with_suffix(".so")
    if ready.exists():
        return declare(ctypes.CDLL(str(ready)))
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ready.name
        if subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(path)], capture_output=True, check=False).returncode:
            return None
        return declare(ctypes.CDLL(str(path)))


def declare(library):
    library.peak_name.restype = ctypes.c_char_p
    library.peak_operations.restype = library.peak_seconds.restype = ctypes.c_double
    library.peak_seconds.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64]
    return library
