"""Times of calls on a GPU: CUDA events around the call alone, the L2 cache flushed before it. A call of less than 200 us is timed as a
replay of a CUDA graph that flushes, records, calls and records, so that the host's share of a launch is not in the figure."""

import statistics

from timing import FEWEST, Times

FLUSHED = 256 << 20  # bytes that are written between calls: several L2 caches
GRAPH_BELOW = 200e-6
WARM = 0.03  # seconds of calls before any counts: behind gigabytes of other arrays the first 90 calls of 70 us take 8 us more
EACH = 3  # measurements of one repeat, whose median counts


class Cuda:
    """What is asked of torch.cuda, in one place.

    The flush writes: L2 is then full of lines that have to go to memory, some of them while the call is timed. With `reads` it reads as many bytes
    behind that, and leaves nothing to be written back. That is how a short call is compared with the read ceiling: of the gigabytes by which that
    is measured, those lines are nothing; of 150 MB they are a tenth.
    """

    reads = False

    def __init__(self):
        import torch

        self.torch = torch
        self.flushed = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
        self.read = torch.zeros(FLUSHED // 4, dtype=torch.float32, device="cuda") if self.reads else None

    def event(self):
        return self.torch.cuda.Event(enable_timing=True, external=True)  # external: recorded by a graph, too

    def flush(self):
        self.flushed.zero_()
        if self.reads:
            self.read.amax()

    def synchronize(self):
        self.torch.cuda.synchronize()

    def capture(self, work):
        """A function that replays what `work` queues."""
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            work()
        return graph.replay


class Timer:
    """The seconds of one call, time after time."""

    def __init__(self, call, cuda):
        self.cuda, self.call = cuda, call
        self.begin, self.end = cuda.event(), cuda.event()
        self.queue = self.work
        for _ in range(2):  # the first may load the kernel
            self.seconds()
        if self.seconds() < GRAPH_BELOW:
            self.queue = cuda.capture(self.work)
        warm = 0.0
        while warm < WARM:
            warm += self.seconds()

    def work(self):
        self.cuda.flush()
        self.begin.record()
        self.call()
        self.end.record()

    def seconds(self):
        self.queue()
        self.cuda.synchronize()
        return self.begin.elapsed_time(self.end) * 1e-3


def interleaved(timers, repeats=7, budget=None):
    """{name: Times} for {name: Timer}, taken in turns. With a `budget` in seconds fewer repeats, but never fewer than timing.FEWEST."""
    if budget is not None:
        once = EACH * sum(timer.seconds() for timer in timers.values())
        repeats = max(FEWEST, min(repeats, int(budget / max(once, 1e-9))))
    seconds = {name: [] for name in timers}
    for _ in range(repeats):
        for name, timer in timers.items():
            seconds[name].append(statistics.median(timer.seconds() for _ in range(EACH)))
    return {name: Times(tuple(s)) for name, s in seconds.items()}
