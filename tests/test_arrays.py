"""NumPy arrays of every dtype and memory layout, and what holds for any library: no copies, no leaks, no blocking.

What is right is decided elsewhere; here the same call on plain arrays is the answer that every other form must give, bit for bit.
"""

import gc
import importlib.util
import sys
import threading

import attile
import cases
import numpy as np
import pytest
from calls import DV, HK, HQ, SHAPES, TK, TQ, B, D, bits, good, read_only, same
from producers import Legacy, Versioned, needs_versions
from run_python import run_python

DTYPES = ["float64", "float32", "float16", "bfloat16"]


# ---- NumPy -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_dtypes(dtype):
    out, lse = attile.flash_attention(**good(dtype), return_lse=True)
    assert type(out) is type(lse) is np.ndarray
    assert out.dtype == cases.numpy_dtype(dtype)
    assert lse.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert out.shape == (B, TQ, HQ, DV)
    assert lse.shape == (B, HQ, TQ)
    assert out.flags.c_contiguous
    assert out.flags.owndata
    assert out.flags.writeable


def fortran_rows(array):
    """Axes in another order in memory, the last still contiguous."""
    return np.ascontiguousarray(array.transpose(2, 1, 0, 3)).transpose(2, 1, 0, 3)


def misaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    copy = raw.view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert copy.ctypes.data % array.itemsize == 1
    return copy


def gaps(array):
    wide = np.full((*array.shape[:-1], array.shape[-1] + 3), np.nan, array.dtype)
    wide[..., : array.shape[-1]] = array
    return wide[..., : array.shape[-1]]


def backwards(array):
    return array[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1]


@pytest.mark.parametrize("form", [fortran_rows, misaligned, gaps, backwards, read_only])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_memory(dtype, form):
    arrays = good(dtype)
    before = {name: array.tobytes() for name, array in arrays.items()}
    formed = {name: form(array) for name, array in arrays.items()}
    assert same(attile.flash_attention(**formed), attile.flash_attention(**arrays))
    assert {name: array.tobytes() for name, array in formed.items()} == before


def test_numpy_strides_of_one_element_mean_nothing():
    x = np.ones((1, 3, 1, 8), np.float32)
    odd = np.lib.stride_tricks.as_strided(x, x.shape, (7, 32, 13, 4))
    assert odd.strides == (7, 32, 13, 4)
    assert same(attile.flash_attention(odd, odd, odd), attile.flash_attention(x, x, x))
    column = np.lib.stride_tricks.as_strided(x, (1, 3, 1, 1), (4, 4, 4, 999))
    assert (attile.flash_attention(column, column, column) == 1).all()


def test_numpy_broadcast_arrays():
    arrays = good()
    key = np.broadcast_to(arrays["key"][:1, :, :1], SHAPES["key"])
    assert key.strides[0] == key.strides[2] == 0
    assert same(attile.flash_attention(arrays["query"], key, arrays["value"]), attile.flash_attention(arrays["query"], key.copy(), arrays["value"]))
    bias = np.broadcast_to(np.float32(0.25), (B, HQ, TQ, TK))
    assert same(attile.flash_attention(**arrays, bias=bias), attile.flash_attention(**arrays, bias=bias.copy()))


def test_numpy_subclasses(tmp_path):
    arrays = good()
    expected = attile.flash_attention(**arrays)
    arrays["key"].tofile(tmp_path / "key")
    mapped = np.memmap(tmp_path / "key", np.float32, "r", shape=SHAPES["key"])

    class Own(np.ndarray):
        pass

    out = attile.flash_attention(arrays["query"].view(Own), mapped, arrays["value"])
    assert type(out) is np.ndarray
    assert same(out, expected)
    target = np.zeros_like(expected).view(Own)
    assert attile.flash_attention(**arrays, out=target) is target
    assert same(np.asarray(target), expected)


@pytest.mark.parametrize("shape", ["batch", "query", "key", "heads"])
def test_numpy_zero_sizes(shape):
    sizes = {"batch": (0, TQ, TK, HQ, HK), "query": (B, 0, TK, HQ, HK), "key": (B, TQ, 0, HQ, HK), "heads": (B, TQ, TK, 0, 0)}[shape]
    b, tq, tk, hq, hk = sizes
    arrays = {"query": np.ones((b, tq, hq, D), np.float32), "key": np.ones((b, tk, hk, D), np.float32), "value": np.ones((b, tk, hk, DV), np.float32)}
    out, lse = attile.flash_attention(**arrays, return_lse=True)
    assert out.shape == (b, tq, hq, DV)
    assert lse.shape == (b, hq, tq)
    assert (out == 0).all()
    assert (lse == -np.inf).all()


# ---- results in place ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_out_in_place(dtype):
    arrays = good(dtype)
    expected, lse = attile.flash_attention(**arrays, return_lse=True)
    wide = np.full((B, TQ, HQ, DV + 5), 7, expected.dtype)
    out = wide[..., 2 : 2 + DV]
    got, got_lse = attile.flash_attention(**arrays, out=out, return_lse=True)
    assert got is out
    assert same(out, expected)
    assert same(got_lse, lse)
    assert (wide[..., :2] == 7).all()
    assert (wide[..., 2 + DV :] == 7).all()
    shifted = misaligned(np.zeros_like(expected))
    assert attile.flash_attention(**arrays, out=shifted) is shifted
    assert same(shifted, expected)


def test_numpy_out_beside_an_input():
    """Touching is not overlapping."""
    both = np.zeros((2, 1, 4, 1, 8), np.float32)
    both[0] = 1
    assert (attile.flash_attention(both[0], both[0], both[0], out=both[1]) == 1).all()
    assert (both[0] == 1).all()


# ---- index arrays and scalars ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("step", [1, 2, -1])
def test_index_arrays(dtype, step):
    arrays = good()
    lengths = {"cum_seqlens_q": np.array([0, 3, 8], dtype), "cum_seqlens_k": np.array([0, 7, 9], dtype)}
    expected = attile.flash_attention(**arrays, **lengths)
    strided = {name: np.repeat(x, abs(step))[:: abs(step)] if step > 0 else x[::-1].copy()[::-1] for name, x in lengths.items()}
    assert same(attile.flash_attention(**arrays, **strided), expected)


@pytest.mark.parametrize("kind", ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_mask_dtypes(kind):
    arrays = good()
    mask = np.random.default_rng(1).random((B, 1, TQ, TK)) < 0.6
    value = mask.astype(kind) * (1 if kind == "bool" else np.array(2 ** (np.dtype(kind).itemsize * 8 - 2), kind))
    assert same(attile.flash_attention(**arrays, attention_mask=value), attile.flash_attention(**arrays, attention_mask=mask))


@pytest.mark.parametrize("kind", DTYPES)
def test_bias_and_sinks_have_their_own_dtype(kind):
    arrays = good()
    extra = {"bias": np.full((TQ, TK), 0.5), "softmax_aux": np.full((HQ, 1), 0.25)}
    expected = attile.flash_attention(**arrays, **extra)
    assert same(attile.flash_attention(**arrays, **{k: v.astype(cases.numpy_dtype(kind)) for k, v in extra.items()}), expected)


# ---- nothing is copied, kept or blocked ------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced on Linux only")
@pytest.mark.parametrize("form", ["numpy", "numpy misaligned", "numpy bfloat16", "torch", "torch bfloat16", "torch subclass", "jax", "producer"])
def test_large_arrays_are_not_copied(form):
    """With 128 MiB of address space left, attention over 256 MiB of keys works only where they stay in place."""
    if importlib.util.find_spec(form.split()[0]) is None and form != "producer":
        pytest.skip(f"{form} is not installed")
    code = f"""
import pathlib, resource
import numpy as np
import attile
form = {form!r}
count = 2**26 if "bfloat16" not in form else 2**27
raw = np.ones(count + 1, np.float32) if "bfloat16" not in form else np.full(count, 0x3F80, np.uint16)
def shape(x): return x.reshape(1, -1, 1, 64)
if form == "numpy": big = shape(raw[:count])
elif form == "numpy misaligned": big = shape(raw.view(np.uint8)[3:3 + 4 * count].view(np.float32)); big[...] = 1
elif form == "numpy bfloat16": import ml_dtypes; big = shape(raw.view(ml_dtypes.bfloat16))
elif form.startswith("torch"):
    import torch
    big = shape(torch.from_numpy(raw[:count]))
    if "bfloat16" in form: big = big.view(torch.bfloat16)
    if "subclass" in form:
        class Own(torch.Tensor): pass
        big = big.as_subclass(Own)
elif form == "jax":
    import jax.numpy as jnp
    del raw
    big = jnp.ones((1, count // 64, 1, 64), jnp.float32)
else:
    class Producer:
        def __init__(self, x): self.x = x
        def __getitem__(self, i): return Producer(self.x[i])
        def __dlpack_device__(self): return (1, 0)
        def __dlpack__(self, **kw): return self.x.__dlpack__(**kw)
    big = Producer(shape(raw[:count]))
few = big[:, :4]
attile.flash_attention(few, few, few)
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**27
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    np.ones(2**26, np.float32)
    print("no limit here")
except MemoryError:
    out = attile.flash_attention(few, big, big)
    if form == "torch bfloat16": out = out.float()
    print("ok" if (np.abs(np.asarray(out, np.float32) - 1) < 1e-2).all() else out)
"""
    assert run_python(code, ATTILE_NUM_THREADS="1", JAX_PLATFORMS="cpu").strip() == "ok"


def test_references_are_given_back(library):
    arrays = {name: cases.convert(array, library) for name, array in good().items()}
    mask = attile.MaskInfo(attention_mask=cases.convert(np.ones((TQ, TK), bool), library))
    counted = [*arrays.values(), mask, mask.attention_mask, None, 0.125, type(arrays["query"])]

    def call():
        attile.flash_attention(**arrays, mask_info=mask, softmax_scale=0.125, return_lse=True)
        with pytest.raises(ValueError, match="softmax_aux"):
            attile.flash_attention(**arrays, softmax_aux=cases.convert(np.zeros(HQ, np.float32), library))

    call()
    gc.collect()
    before = [sys.getrefcount(x) for x in counted]
    for _ in range(200):
        call()
    gc.collect()
    after = [sys.getrefcount(x) for x in counted]
    assert all(abs(a - b) < 50 for a, b in zip(after, before, strict=True)), (before, after)


@pytest.mark.parametrize("kind", [pytest.param(Versioned, marks=needs_versions), Legacy])
def test_producers_are_given_back(kind):
    arrays = good()
    wrapped = {name: kind(array) for name, array in arrays.items()}
    attile.flash_attention(**wrapped)
    before = [sys.getrefcount(array) for array in arrays.values()]
    for _ in range(100):
        attile.flash_attention(**wrapped)
        with pytest.raises(ValueError, match="softmax_scale"):
            attile.flash_attention(**wrapped, softmax_scale=np.inf)
    assert [sys.getrefcount(array) for array in arrays.values()] == before


def test_other_threads_run_during_a_call(threads):
    threads(1)  # tens of milliseconds on any machine
    x = np.ones((1, 3000, 4, 64), np.float32)
    done = threading.Event()
    ticks = []

    def tick():
        while not done.wait(0.001):
            ticks.append(None)

    thread = threading.Thread(target=tick)
    thread.start()
    before = len(ticks)
    attile.flash_attention(x, x, x)
    during = len(ticks) - before
    done.set()
    thread.join()
    assert during >= 3


def test_calls_from_many_threads():
    problems = [good(seed=seed) for seed in range(8)]
    expected = [bits(attile.flash_attention(**arrays)) for arrays in problems]
    got = [None] * len(problems)

    def work(index):
        for _ in range(50):
            got[index] = bits(attile.flash_attention(**problems[index]))
            with pytest.raises(ValueError, match=f"^flash_attention: sliding_window's left .* got {-2 - index}$"):
                attile.flash_attention(**problems[index], sliding_window=-2 - index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected
