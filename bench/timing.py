"""Times of several functions that do the same thing, taken in turns, so that a change of clock or load meets all of them."""

import gc
import statistics
import time
from dataclasses import dataclass

CLOCKS = {
    "wall": time.perf_counter,
    "cpu": time.thread_time,  # of the calling thread: for one thread on a machine that others use too
}
FEWEST = 3  # repeats, whatever the budget


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


def interleaved(contenders, repeats=7, clock="wall", least=2e-3, budget=None, pause=0.0):
    """{name: Times} for {name: functions without arguments}, the first of which was called before.

    The functions of one name are the same call on different memory, taken in turns: with enough of them none finds its data in a cache. A
    measurement lasts at least `least` seconds, in a loop where a call is shorter. With a `budget` in seconds there are fewer repeats, but
    never fewer than FEWEST. `pause` seconds of sleep before each measurement let the other's threads fall asleep.
    """
    now = CLOCKS[clock]
    loops, estimate = {}, 0.0
    for name, functions in contenders.items():
        start = now()
        functions[-1]()
        once = max(now() - start, 1e-7)
        loops[name] = max(1, int(least / once))
        estimate += loops[name] * once + pause
    if budget is not None:
        repeats = max(FEWEST, min(repeats, int(budget / estimate)))
    seconds = {name: [] for name in contenders}
    turn = dict.fromkeys(contenders, 0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, functions in contenders.items():
                calls = [functions[(turn[name] + i) % len(functions)] for i in range(loops[name])]
                turn[name] += len(calls)
                time.sleep(pause)
                start = now()
                for call in calls:
                    call()
                seconds[name].append((now() - start) / len(calls))
    finally:
        gc.enable()
    return {name: Times(tuple(s)) for name, s in seconds.items()}
