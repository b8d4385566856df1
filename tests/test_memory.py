"""Memory: a call needs a few tiles a thread whatever the lengths are, and offsets are 64-bit."""

import json
import mmap
import subprocess
import sys
import textwrap
from pathlib import Path

import attile
import cases
import numpy as np
import pytest
import reference
from attile import FlashAttentionConfig, flash_attention
from machine import takes
from tolerance import Judge

LONG = 65_536
MOST_EXTRA_MIB = 4  # a thread; the scores of one head at this length are 16,384 MiB

linux_only = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux's /proc")

MEASURE = """
    import json, sys
    import numpy as np
    import attile

    def status(field):
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(field))

    def reset_peak():
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")

    spec = json.loads(sys.argv[1])
    n, m, heads, dim = spec["n"], spec["m"], spec["heads"], spec["dim"]
    rng = np.random.default_rng(0)
    def arrays(n, m):
        q, k = (rng.standard_normal((1, rows, h, dim), dtype=np.float32).astype(spec["dtype"]) for rows, h in ((n, heads), (m, 1)))
        return q, k, k
    options = spec["options"]
    attile.set_num_threads(spec["threads"])
    attile.flash_attention(*arrays(512, 512), return_lse=True, **options)  # threads, scratch
    q, k, v = arrays(n, m)
    out = np.full(q.shape, np.nan, q.dtype)
    if spec["packed"]:
        q, k, v, out = q[0], k[0], v[0], out[0]
        options |= {"cum_seqlens_q": np.arange(0, n + 1, n // spec["packed"]), "cum_seqlens_k": np.arange(0, m + 1, m // spec["packed"])}
    if spec["bias"]:
        options["bias"] = rng.standard_normal((1, m), dtype=np.float32)
    call = lambda: attile.flash_attention(q, k, v, out=out, **options)
    reset_peak()
    before = status("VmRSS")
    call()
    print(json.dumps({"extra_kib": status("VmHWM") - before, "nan": bool(np.isnan(out.astype(np.float32)).any())}))
"""


def extra_mib(script=MEASURE, **spec):
    """Megabytes that a call of this size needs beyond its inputs and outputs, measured in a process of its own."""
    spec = {"n": LONG, "m": LONG, "heads": 1, "dim": 8, "dtype": "float32", "threads": 1, "packed": 0, "bias": False, "options": {}} | spec
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), json.dumps(spec)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert not measured["nan"]
    return measured["extra_kib"] / 1024


@linux_only
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "spec",
    [
        {"options": {"causal": True}},
        {"options": {"sliding_window": 100}},
        {"options": {"sliding_window": 100, "dropout_prob": 0.1, "dropout_seed": 1}},
        {"n": 64, "heads": 4, "bias": True},
        {"m": 64, "heads": 4},
        {"n": 1, "m": 16 * LONG, "dim": 32},
        {"dtype": "float16", "options": {"sliding_window": 100}},
        {"dtype": "float64", "options": {"sliding_window": 100}},
        {"packed": LONG},
        {"packed": 256},
    ],
    ids=str,
)
def test_a_long_call_needs_a_few_tiles_a_thread(spec, threads):
    assert extra_mib(threads=threads, **spec) <= MOST_EXTRA_MIB * threads


@linux_only
def test_the_measurement_sees_what_it_looks_for():
    """The same script around an attention that stores its scores."""
    stored = MEASURE.replace("call()", "s = np.einsum('bihd,bjhd->bij', q, k)\n    out[...] = s[..., :1, None] + s[:, :, :1, None]")
    assert extra_mib(stored, n=4096, m=4096) > 60


def test_workspace_does_not_grow_with_length():
    def workspace(n):
        x = np.lib.stride_tricks.as_strided(np.zeros(64, np.float32), (1, n, 1, 64), (0, 0, 0, 4))
        return attile.explain(flash_attention, x, x, x)["workspace_bytes"]

    # both are long enough for blocks of full size; beside the tiles there is a list of the units of work: a fraction of a byte a query
    assert workspace(2**20) - workspace(2**16) <= 2**20 // 4


# ---- nothing is read or written beside an array

GUARDED = """
    import ctypes, mmap, sys
    import numpy as np
    import attile
    sys.path.insert(0, sys.argv[1])
    import cases

    PAGE = mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    kept = []

    def guarded(x, side):
        \"\"\"The same values, so that the byte before (or after) them is on a page that must not be touched.\"\"\"
        pages = -(-max(x.nbytes, 1) // PAGE)
        room = mmap.mmap(-1, (pages + 2) * PAGE)
        kept.append(room)
        base = ctypes.addressof(ctypes.c_char.from_buffer(room))
        for page in (0, pages + 1):
            assert libc.mprotect(base + page * PAGE, PAGE, 0) == 0
        offset = PAGE if side == "before" else (pages + 1) * PAGE - x.nbytes
        view = np.frombuffer(room, x.dtype, x.size, offset).reshape(x.shape)
        view[...] = x
        return view

    kernel = attile.FlashAttentionConfig(kernel=sys.argv[2])
    taken = 0
    for case in cases.SMALL + [case for case in cases.EDGE if case.id.startswith(("edge-dims", "packed", "padded", "bias", "mask", "length17"))]:
        if case.head_dim * case.head_dim_v > 20000 or case.memory != "contiguous":
            continue
        call = case.arrays()
        shape = call["query"].shape[:-1] + call["value"].shape[-1:]
        for side in ("before", "after"):
            placed = {name: guarded(x, side) if isinstance(x, np.ndarray) else x for name, x in call.items()}
            out = guarded(np.full(shape, np.nan, call["query"].dtype), side)
            print(case.id, side, file=sys.stderr)
            try:
                attile.flash_attention(**placed, out=out, cfg=kernel)
            except NotImplementedError:
                continue
            taken += 1
            if not np.array_equal(out, attile.flash_attention(**call, cfg=kernel)):
                sys.exit("another result")
    if taken == 0:
        sys.exit("the kernel took no case")
"""


@linux_only
def test_nothing_is_read_or_written_beside_an_array(runnable_kernel):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(GUARDED), Path(__file__).parent, runnable_kernel], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit status {done.returncode} after {done.stderr[-300:]}"


# ---- more than 2^31 elements; the pages between those that are used are never touched, so they cost nothing


def sparse(elements, dtype):
    """Zeros that take no memory until they are written."""
    dtype = np.dtype(dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return np.frombuffer(mmap.mmap(-1, elements * dtype.itemsize, flags=flags), dtype)


def spread(x, stride):
    """The same values with `stride` elements from one token to the next."""
    room = sparse((x.shape[1] - 1) * stride + x[0, 0].size, x.dtype)
    view = np.lib.stride_tricks.as_strided(room, x.shape, [0, stride * x.itemsize, *x.strides[2:]])
    view[...] = x
    return view


def dtype_and_tokens(kernel, dtypes, *, fewest):
    """The first dtype that the kernel takes and how many query rows; a decode kernel takes but 8."""
    for tokens in (40, 8):
        for dtype in map(cases.numpy_dtype, dtypes):
            x = np.ones((1, tokens, 2, 16), dtype)
            if tokens >= fewest and takes(kernel, query=x, key=x, value=x):
                return dtype, tokens
    pytest.skip(f"{kernel} is for few query rows")


@pytest.mark.parametrize("far", ["query", "key", "value", "out"])
def test_offsets_beyond_2_to_the_31_elements(far, runnable_kernel):
    rng = np.random.default_rng(0)
    dtype, tokens = dtype_and_tokens(runnable_kernel, ("float16", "bfloat16"), fewest=8)
    shape = (1, tokens, 2, 16)
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name in ("query", "key", "value")}
    judge = Judge(dict(arrays))
    out = np.full(judge.out.shape, np.nan, dtype)
    stride = 2**27 + 32 if tokens == 40 else 2**30 + 32  # all tokens reach over 2^32 elements
    if far == "out":
        out = spread(out, stride)
    else:
        arrays[far] = spread(arrays[far], stride)
    flash_attention(**arrays, out=out, cfg=FlashAttentionConfig(kernel=runnable_kernel))
    judge.check(out)


@pytest.mark.parametrize("name", ["bias", "attention_mask"])
def test_bias_and_mask_of_more_than_2_to_the_31_elements(name, runnable_kernel):
    n = 50_000
    rng = np.random.default_rng(0)
    dtype, _ = dtype_and_tokens(runnable_kernel, ("float32", "bfloat16"), fewest=40)
    query, key, value = (rng.standard_normal((1, n, 1, 4)).astype(dtype) for _ in range(3))
    x = sparse(n * n, np.float16 if name == "bias" else np.uint8).reshape(n, n)
    last = np.arange(n - 70, n)
    x[last[:, None], last[None, :]] = np.where(rng.random((70, 70)) < 0.5, 1, 0)
    out = flash_attention(query, key, value, sliding_window=(50, 0), **{name: x}, cfg=FlashAttentionConfig(kernel=runnable_kernel))
    # the last rows alone; those before their first key belong to other pages
    part = {name: x[-70:, -70:]}
    expected = reference.flash_attention(query[:, -70:], key[:, -70:], value[:, -70:], sliding_window=(50, 0), **part)
    tolerance = 2e-6 if dtype == np.float32 else 0.05
    np.testing.assert_allclose(out[:, -20:].astype(float), expected[:, -20:], atol=tolerance)


@pytest.mark.slow
def test_results_of_more_than_2_to_the_31_elements():
    tokens, heads, dim = 2**16 + 3, 64, 512
    available = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    if available < 7 * 2**20:
        pytest.skip(f"needs 7 GiB of memory, {available / 2**20:.1f} GiB are free")
    rng = np.random.default_rng(0)
    query = rng.standard_normal((1, tokens, heads, 1)).astype(np.float16)
    key, value = rng.standard_normal((1, 2, heads, 1)).astype(np.float16), rng.standard_normal((1, 2, heads, dim)).astype(np.float16)
    out, lse = flash_attention(query, key, value, return_lse=True)
    assert out.size > 2**31
    for i in (0, 2**15, 2**16 - 1, tokens - 1):
        judge = Judge({"query": query[:, i : i + 1], "key": key, "value": value})
        judge.check(out[:, i : i + 1], lse[..., i : i + 1])
