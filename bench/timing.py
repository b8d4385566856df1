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
MORE = 3  # times the repeats


@dataclass(frozen=True)
class Times:
    seconds: tuple
    disturbed: bool = False  # no quiet CPUs were found for them

    @property
    def median(self):
        return statistics.median(self.seconds)

    @property
    def quartiles(self):
        return statistics.quantiles(self.seconds, n=4)

    @property
    def spread(self):
        """Half the distance of the quartiles, relative to the median."""
        low, _, high = self.quartiles
        return (high - low) / 2 / self.median


def in_turns(samples, turns, budget=None, cpus=None):
    """{name: Times} for {name: function that returns seconds}, one of each in a turn: what they have at one place are neighbours in time.

    `budget` and `cpus` as for interleaved(); a turn counts as a whole, if it was quiet from its first sample to its last.
    """
    end = time.perf_counter() + (float("inf") if budget is None else budget)
    counted, disturbed = [], []
    gc.collect()
    gc.disable()
    try:
        for attempt in range(turns if cpus is None else MORE * turns):
            if len(counted) == turns or (attempt >= FEWEST and time.perf_counter() > end):
                break
            if cpus is not None:
                cpus.find()
            seconds = [sample() for sample in samples.values()]
            (counted if cpus is None or cpus.still_quiet() else disturbed).append(seconds)
    finally:
        gc.enable()
        if cpus is not None:
            cpus.leave()
    few = len(counted) < FEWEST
    return {name: Times(s, few) for name, s in zip(samples, zip(*(counted + disturbed if few else counted), strict=True), strict=True)}


def ratios(of, to):
    """What in_turns() has of one thing by what it has of another, turn by turn."""
    return Times(tuple(x / y for x, y in zip(of.seconds, to.seconds, strict=True)), of.disturbed)


def interleaved(contenders, repeats=7, clock="wall", least=2e-3, budget=None, pause=0.0, cpus=None):
    """{name: Times} for {name: functions without arguments}, the first of which was called before.

    The functions of one name are the same call on different memory, taken in turns: with enough of them none finds its data in a cache. A
    measurement lasts at least `least` seconds, in a loop where a call is shorter. With a `budget` in seconds there are fewer repeats, but
    never fewer than FEWEST. `pause` seconds of sleep before each measurement let the other's threads fall asleep; the call after it, for which
    CPUs and caches have to wake too, is not timed: calls without a pause have nothing of the kind. With `cpus`, QuietCpus, only measurements
    that were quiet count, and up to MORE times as many are made, within the budget; a name that got fewer than FEWEST of them has all.
    """
    now = CLOCKS[clock]
    loops, estimate = {}, 0.0
    for name, functions in contenders.items():
        start = now()
        functions[-1]()
        once = max(now() - start, 1e-7)
        loops[name] = max(1, int(least / once))
        estimate += (loops[name] + (pause > 0)) * once + pause
    if budget is not None:
        repeats = max(FEWEST, min(repeats, int(budget / estimate)))
    end = time.perf_counter() + (budget if budget and cpus else float("inf"))
    seconds, disturbed = ({name: [] for name in contenders} for _ in range(2))
    turn = dict.fromkeys(contenders, 0)
    gc.collect()
    gc.disable()
    try:
        for attempt in range(repeats if cpus is None else MORE * repeats):
            if attempt >= FEWEST and time.perf_counter() > end:
                break
            for name, functions in contenders.items():
                if len(seconds[name]) == repeats:
                    continue
                untimed = 1 if pause > 0 else 0
                calls = [functions[(turn[name] + i) % len(functions)] for i in range(untimed + loops[name])]
                turn[name] += len(calls)
                time.sleep(pause)
                if cpus is not None:
                    cpus.find()
                for call in calls[:untimed]:
                    call()
                start = now()
                for call in calls[untimed:]:
                    call()
                once = (now() - start) / loops[name]
                (seconds if cpus is None or cpus.still_quiet() else disturbed)[name].append(once)
    finally:
        gc.enable()
        if cpus is not None:
            cpus.leave()
    return {name: Times(tuple(s)) if len(s) >= FEWEST else Times((*s, *disturbed[name]), True) for name, s in seconds.items()}
