"""What is timed: one call, on one or several sets of arrays, with its cost, its check and its rivals.

A check compares with the float64 reference by the tests' own error model, on some rows of every head, and is made before anything is timed. A rival
may be less accurate than we ask of ourselves, but not wrong: off by more than a few roundings of its dtype, it is reported and not timed.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import roofline
import timing
import tolerance
from cases import Case, numpy_dtype
from quiet_cpus import QuietCpus

import attile

COLD_CACHES = 3  # a working set of so many last caches is read from memory
CHECKED_ROWS = 16
PAUSE = 0.01  # seconds: OpenMP's threads spin for a while after a call


class Refused(Exception):
    """A rival that does not take this problem, and why."""


@dataclass(frozen=True)
class Contender:
    """The same call on different memory, and how its result becomes [B,Tq,Hq,Dv] in NumPy."""

    calls: list[Callable]
    to_numpy: Callable = np.asarray


class Sample:
    """Seconds of a call on so many threads, from `calls` without end, in a loop of at least `least` seconds behind one that is not timed: in
    that helpers wake and caches find the code again. The number of threads is set in the context together()."""

    def __init__(self, calls, threads, threads_after, least, together):
        self.calls, self.threads, self.threads_after, self.together = calls, threads, threads_after, together
        self.loops = 1
        self.loops = max(1, int(least / self()))

    def __call__(self):
        self._set(self.threads)
        next(self.calls)()
        start = time.perf_counter()
        for call in itertools.islice(self.calls, self.loops):
            call()
        seconds = (time.perf_counter() - start) / self.loops
        self._set(self.threads_after)
        return seconds

    def _set(self, threads):
        with self.together():
            attile.set_num_threads(threads)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Common to all: `id`, `threads`, a forced `kernel`, whether caches are `cold`, which rivals take part."""

    id: str
    rivals: tuple[str, ...] = ()
    threads: int = 1
    kernel: str | None = None
    cold: bool = False
    bound: str = "flops"  # or bytes: what the roof is

    @property
    def place(self):
        """What is measured together with the ceilings: so many threads, or the GPU."""
        return self.threads

    def ceilings(self, quiet):
        attile.set_num_threads(self.threads)
        return roofline.measure(self.threads, QuietCpus(self.threads) if quiet else None)

    def ready(self, calls):
        """What `times` takes in place of a contender's calls."""
        return calls

    def times(self, contenders, args, budget):
        pause = PAUSE if self.threads > 1 else 0.0
        cpus = QuietCpus(self.threads) if args.quiet else None
        return timing.interleaved(contenders, args.repeats, args.clock, args.least, budget, pause, cpus)

    def turns(self, calls, args, budget, peaks):
        """Times in turns (timing.in_turns) on the same CPUs and on the same arrays: "one" thread and "all", and of reading memory, where there are
        ceilings, "read one" and "read all"; none on one thread."""
        if self.threads == 1:
            return {}
        cpus = QuietCpus(self.threads) if args.quiet else None
        together = contextlib.nullcontext if cpus is None else cpus.together
        sets = itertools.cycle(calls)
        samples = {name: Sample(sets, threads, self.threads, args.least, together) for name, threads in (("one", 1), ("all", self.threads))}
        if peaks.reads:
            reader = roofline.Reader(peaks.fastest_read, together)
            samples |= {"read one": lambda: reader.seconds(1), "read all": lambda: reader.seconds(self.threads)}
        return timing.in_turns(samples, args.repeats, budget, cpus)

    @property
    def config(self):
        return attile.FlashAttentionConfig(kernel=self.kernel) if self.kernel else None

    def sets_of(self, first, nbytes):
        """`first` and copies of it, such that none is in a cache when its turn comes."""
        count = -(-COLD_CACHES * roofline.last_cache_bytes() // nbytes) + 1 if self.cold else 1
        return [{name: on_lines(x.shape, x.dtype, x) if isinstance(x, np.ndarray) else x for name, x in first.items()} for _ in range(count)]


def on_lines(shape, dtype, values=None):
    """An array that begins with a cache line, as torch's and JAX's do; NumPy's large ones begin 16 bytes behind one."""
    line, dtype = 64, np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(nbytes + line, np.uint8)
    begin = -memory.ctypes.data % line
    x = memory[begin : begin + nbytes].view(dtype).reshape(shape)
    if values is not None:
        x[...] = values
    return x


@dataclass(frozen=True, kw_only=True)
class Attention(Problem):
    """flash_attention of a Case; [B,T,H,D] arrays."""

    case: Case
    function = "flash_attention"

    @property
    def dtype(self):
        return self.case.dtype

    def flops(self):
        return self.case.flops()

    def bytes(self):
        return self.case.bytes()

    def arrays(self):
        """Keyword arguments of as many calls as there are sets; the same numbers in each."""
        return self.sets_of(self.case.numpy_arrays(np.random.default_rng(0)), self.bytes())

    def explain(self, sets):
        return attile.explain(attile.flash_attention, **sets[0], cfg=self.config)

    def attile(self, sets):
        query, value = sets[0]["query"], sets[0]["value"]
        out, config = on_lines(query.shape[:-1] + value.shape[-1:], query.dtype), self.config
        return Contender([lambda call=call: attile.flash_attention(**call, cfg=config, out=out) for call in sets])

    def judges(self, sets):
        """(index, Judge of out[index]) for rows at the start, in the middle and at the end."""
        return row_judges(sets[0])


def row_judges(call):
    """Judges of a few query rows of a plain call: full, or causal in either alignment, with a bias at most."""
    seqlen_q, seqlen_k = call["query"].shape[1], call["key"].shape[1]
    first_rows = {max(0, min(at, seqlen_q - CHECKED_ROWS)) for at in (0, seqlen_q // 2 - 5, seqlen_q)}
    shift = seqlen_k - seqlen_q if call.get("causal_alignment") == "bottom_right" else 0
    for start in sorted(first_rows):
        rows = slice(start, min(start + CHECKED_ROWS, seqlen_q))
        part = call | {"query": call["query"][:, rows]}
        keys = slice(None)
        if call.get("causal"):
            keys = slice(0, rows.stop + shift)
            part |= {"key": call["key"][:, keys], "value": call["value"][:, keys], "causal_alignment": "bottom_right"}
        if "bias" in call:
            part["bias"] = call["bias"][..., rows, keys]
        yield np.s_[:, rows], tolerance.Judge(part)


@dataclass(frozen=True, kw_only=True)
class Cached(Problem):
    """flash_attention_with_kvcache: one or few new positions of a Case against a cache, dense or in shuffled pages."""

    case: Case
    page_size: int | None = None
    function = "flash_attention_with_kvcache"

    dtype, flops, bytes = Attention.dtype, Attention.flops, Attention.bytes

    def arrays(self):
        sets = Attention.arrays(self)
        if self.page_size is not None:
            rng = np.random.default_rng(1)
            for call in sets:
                batch, keys = call["key"].shape[:2]
                table = rng.permutation(batch * keys // self.page_size).reshape(batch, -1).astype(np.int32)
                call["page_table"] = table
                for name in ("key", "value"):
                    pages = call[name].reshape(table.size, self.page_size, *call[name].shape[2:])
                    shuffled = on_lines(pages.shape, pages.dtype)
                    shuffled[table.ravel()] = pages
                    call[name + "_pages"] = shuffled
        return sets

    def call(self, call):
        named = {"q": call["query"], "k_cache": call["key"], "v_cache": call["value"], "cfg": self.config}
        if self.page_size is not None:
            lengths = np.full(call["query"].shape[0], call["key"].shape[1], np.int32)
            named |= {"k_cache": call["key_pages"], "v_cache": call["value_pages"], "page_table": call["page_table"], "cache_seqlens": lengths}
        return named

    def explain(self, sets):
        return attile.explain(attile.flash_attention_with_kvcache, **self.call(sets[0]))

    def attile(self, sets):
        query, value = sets[0]["query"], sets[0]["value"]
        out = on_lines(query.shape[:-1] + value.shape[-1:], query.dtype)
        calls = [self.call(call) for call in sets]
        return Contender([lambda call=call: attile.flash_attention_with_kvcache(**call, out=out) for call in calls])

    def judges(self, sets):
        plain = {name: sets[0][name] for name in ("query", "key", "value")}
        return row_judges(plain | {"causal": True, "causal_alignment": "bottom_right"})


def check(problem, out, judges):
    """Raise AssertionError unless our own answer is right."""
    assert out.dtype == numpy_dtype(problem.dtype), f"{problem.id}: expected dtype {problem.dtype}, got {out.dtype}"
    for index, judge in judges:
        judge.check(out[index])


def wrong(out, dtype, judges):
    """What is wrong with a rival's answer, or None."""
    limit = 8 * tolerance.epsilon(numpy_dtype(dtype)) + 1e-4
    for index, judge in judges:
        got, expected = np.asarray(out[index], np.float64), judge.out.astype(np.float64)
        if got.shape != expected.shape:
            return f"shape {got.shape}, expected {expected.shape}"
        error = np.abs(got - expected).max()
        if not error <= limit * max(1.0, np.abs(expected).max()):
            return f"off by {error:.3g}"
    return None
