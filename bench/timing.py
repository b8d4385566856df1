"""Times of several functions that do the same thing, taken in turns, so that a change of clock or load meets all of them."""

import gc
import statistics
import time
from dataclasses import dataclass

CLOCKS = {
    "wall": time.perf_counter,
    "cpu": time.thread_time,  # of the calling thread: for one thread on a machine that others use too
}


@dataclass(frozen=True)
class Times:
    seconds: tuple

    @property
    def median(self):
        return statistics.median(self.seconds)

    @property
    def spread(self):
        """Half the distance of the quartiles, relative to the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median


def interleaved(functions, repeats=7, clock="wall", least=2e-3):
    """{name: Times} for {name: function without arguments}. Each is called once before; calls of less than `least` seconds are repeated in a
    loop inside one measurement."""
    now = CLOCKS[clock]
    loops = {}
    for name, function in functions.items():
        function()
        start = now()
        function()
        loops[name] = max(1, int(least / max(now() - start, 1e-7)))
    seconds = {name: [] for name in functions}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, function in functions.items():
                start = now()
                for _ in range(loops[name]):
                    function()
                seconds[name].append((now() - start) / loops[name])
    finally:
        gc.enable()
    return {name: Times(tuple(s)) for name, s in seconds.items()}
