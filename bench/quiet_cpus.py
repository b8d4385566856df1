"""CPUs that nobody else disturbs, on a machine that is shared without its knowing.

A virtual CPU can run at half or a quarter of its rate for some tenths of a second and be quiet again. So before each measurement the process goes
to CPUs where a probe, a short call of constant work for every thread at once, takes as long as it takes on the best of them; what was measured counts
if the probe still does afterwards. Threads on hyperthreads of one core disturb each other too.
"""

import contextlib
import os
import random
import time
from pathlib import Path

import numpy as np
from cases import numpy_dtype

import attile

TOLERATED = 1.2  # times the best probe
CALLS = 4  # in a probe
TRIES = 40  # CPUs that are tried before one measurement


class QuietCpus:
    """For measurements on `threads` threads: `find()` before, `still_quiet()` after, `leave()` in the end; on the CPUs `here`."""

    def __init__(self, threads):
        self.threads, self.all = threads, available()
        if threads > len(self.all):
            raise ValueError(f"QuietCpus: threads must be at most the CPUs here: expected up to {len(self.all)}, got {threads}")
        shape, rng = (threads, 256, 1, 128), np.random.default_rng(0)
        self._call = {name: rng.standard_normal(shape, np.float32).astype(numpy_dtype("bfloat16")) for name in ("query", "key", "value")}
        self._call |= {"out": np.empty_like(self._call["query"]), "cfg": attile.FlashAttentionConfig(block_q=256)}
        attile.flash_attention(**self._call)
        self._random, self.here = random.Random(0), self.all
        self.best = float("inf")
        for _ in range(2):
            for cpus in self._sets():
                self._go(cpus)
                self.best = min(self.best, self._probe())

    def find(self, stay=True):
        """Go where it is quiet, if there is such a place; `stay` where it is quiet already."""
        for cpus in ([None] if stay else []) + self._sets():
            if cpus is not None:
                self._go(cpus)
            if self.still_quiet():
                return

    def still_quiet(self):
        seconds = self._probe()
        self.best = min(self.best, seconds)
        return seconds <= TOLERATED * self.best

    @contextlib.contextmanager
    def together(self):
        """The calling thread on all CPUs `here`: where it starts threads, and where attile looks how many CPUs it has. Told to take two
        threads by a thread with one CPU, its helpers would not spin: every call would wake them."""
        os.sched_setaffinity(0, self.here)
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.here[:1])

    def leave(self):
        for thread in threads_of_process():
            set_affinity(thread, self.all)

    def _sets(self):
        """CPUs for every thread, in a random order."""
        if self.threads == 1:
            return [[cpu] for cpu in self._random.sample(self.all, len(self.all))]
        return [self._random.sample(self.all, self.threads) for _ in range(TRIES)]

    def _go(self, cpus):
        """This thread to the first, all others of the process to the rest."""
        if self.threads > 1:
            for thread in threads_of_process():
                set_affinity(thread, cpus[1:])
        os.sched_setaffinity(0, cpus[:1])
        self.here = cpus

    def _probe(self):
        """Seconds: the best of a few calls, of which the first finds its data in no cache and may wake threads."""
        seconds = []
        for _ in range(CALLS):
            start = time.perf_counter()
            attile.flash_attention(**self._call)
            seconds.append(time.perf_counter() - start)
        return min(seconds)


def available():
    return sorted(os.sched_getaffinity(0))


def threads_of_process():
    return [int(path.name) for path in Path("/proc/self/task").iterdir()]


def set_affinity(thread, cpus):
    try:
        os.sched_setaffinity(thread, cpus)
    except ProcessLookupError:  # it has ended
        pass
