"""Arrays of every library: read as they are, without copies, and answered in kind.

What is right is decided elsewhere; here the same call on plain NumPy arrays is the answer that every other form must give, bit for bit.
"""

import gc
import importlib.util
import subprocess
import sys
import threading
import types

import attile
import cases
import numpy as np
import pytest

B, TQ, TK, HQ, HK, D, DV = 2, 5, 7, 4, 2, 16, 8
SHAPES = {"query": (B, TQ, HQ, D), "key": (B, TK, HK, D), "value": (B, TK, HK, DV)}
DTYPES = ["float64", "float32", "float16", "bfloat16"]


def plain(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(cases.numpy_dtype(dtype)) for name, shape in SHAPES.items()}


def bits(array):
    """The bytes of any library's array, and what says how to read them."""
    array = cases.to_numpy(array)
    return array.dtype.name, array.shape, array.tobytes()


def same(got, expected):
    return bits(got) == bits(expected)


# ---- NumPy -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_dtypes(dtype):
    out, lse = attile.flash_attention(**plain(dtype), return_lse=True)
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


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("form", [fortran_rows, misaligned, gaps, backwards, read_only])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_memory(dtype, form):
    arrays = plain(dtype)
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
    arrays = plain()
    key = np.broadcast_to(arrays["key"][:1, :, :1], SHAPES["key"])
    assert key.strides[0] == key.strides[2] == 0
    assert same(attile.flash_attention(arrays["query"], key, arrays["value"]), attile.flash_attention(arrays["query"], key.copy(), arrays["value"]))
    bias = np.broadcast_to(np.float32(0.25), (B, HQ, TQ, TK))
    assert same(attile.flash_attention(**arrays, bias=bias), attile.flash_attention(**arrays, bias=bias.copy()))


def test_numpy_subclasses(tmp_path):
    arrays = plain()
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
    arrays = plain(dtype)
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
    arrays = plain()
    lengths = {"cum_seqlens_q": np.array([0, 3, 8], dtype), "cum_seqlens_k": np.array([0, 7, 9], dtype)}
    expected = attile.flash_attention(**arrays, **lengths)
    strided = {name: np.repeat(x, abs(step))[:: abs(step)] if step > 0 else x[::-1].copy()[::-1] for name, x in lengths.items()}
    assert same(attile.flash_attention(**arrays, **strided), expected)


@pytest.mark.parametrize("kind", ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_mask_dtypes(kind):
    arrays = plain()
    mask = np.random.default_rng(1).random((B, 1, TQ, TK)) < 0.6
    value = mask.astype(kind) * (1 if kind == "bool" else np.array(2 ** (np.dtype(kind).itemsize * 8 - 2), kind))
    assert same(attile.flash_attention(**arrays, attention_mask=value), attile.flash_attention(**arrays, attention_mask=mask))


@pytest.mark.parametrize("kind", DTYPES)
def test_bias_and_sinks_have_their_own_dtype(kind):
    arrays = plain()
    extra = {"bias": np.full((TQ, TK), 0.5), "softmax_aux": np.full((HQ, 1), 0.25)}
    expected = attile.flash_attention(**arrays, **extra)
    assert same(attile.flash_attention(**arrays, **{k: v.astype(cases.numpy_dtype(kind)) for k, v in extra.items()}), expected)


# ---- torch -----------------------------------------------------------------------------------------------------------------

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def torch_arrays(dtype="float32"):
    return {name: cases.convert(array, "torch") for name, array in plain(dtype).items()}


@needs_torch
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_dtypes(dtype):
    import torch

    expected, expected_lse = attile.flash_attention(**plain(dtype), return_lse=True)
    out, lse = attile.flash_attention(**torch_arrays(dtype), return_lse=True)
    assert type(out) is type(lse) is torch.Tensor
    assert out.dtype is getattr(torch, dtype)
    assert lse.dtype is (torch.float64 if dtype == "float64" else torch.float32)
    assert out.device == lse.device == torch.device("cpu")
    assert out.is_contiguous()
    assert not out.requires_grad
    assert same(out, expected)
    assert same(lse, expected_lse)


@needs_torch
def test_torch_memory():
    arrays = torch_arrays()
    expected = attile.flash_attention(**plain())
    views = {name: x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3) for name, x in arrays.items()}
    assert not views["query"].is_contiguous()
    assert same(attile.flash_attention(**views), expected)
    out = attile.flash_attention(**arrays).new_zeros(B, HQ, TQ, DV + 1)
    view = out.transpose(1, 2)[..., 1:]
    assert attile.flash_attention(**arrays, out=view) is view
    assert same(view.contiguous(), expected)
    assert (out[..., 0] == 0).all()


@needs_torch
def test_torch_without_grad():
    import torch

    arrays = torch_arrays()
    expected = attile.flash_attention(**arrays)
    needy = {name: torch.nn.Parameter(x) for name, x in arrays.items()}
    needy["key"] = arrays["key"].clone().requires_grad_()
    with torch.no_grad():
        out = attile.flash_attention(**needy)
    assert type(out) is torch.Tensor
    assert not out.requires_grad
    assert same(out, expected)
    with torch.inference_mode():
        inside = {name: x.clone() for name, x in arrays.items()}
        assert same(attile.flash_attention(**inside), expected)
        assert same(attile.flash_attention(**needy), expected)
    assert same(attile.flash_attention(**inside), expected)


@needs_torch
def test_torch_subclasses_go_by_dlpack():
    """The route that torch without an exchange table takes too: __dlpack__ in, torch.empty out."""
    import torch

    class Own(torch.Tensor):
        exported = 0

        def __dlpack__(self, **kwargs):
            Own.exported += 1
            assert kwargs.get("copy") is False
            return super().__dlpack__(**kwargs)

    arrays = torch_arrays()
    own = {name: x.as_subclass(Own) for name, x in arrays.items()}
    out, lse = attile.flash_attention(**own, return_lse=True)
    assert Own.exported == 3
    assert type(out) is type(lse) is torch.Tensor
    assert same(out, attile.flash_attention(**arrays))
    target = torch.zeros(B, TQ, HQ, DV).as_subclass(Own)
    assert attile.flash_attention(**own, out=target) is target
    assert same(target.as_subclass(torch.Tensor), out)
    needy = own["query"].detach().requires_grad_()
    with torch.no_grad():
        assert same(attile.flash_attention(**{**own, "query": needy}), out)
    with pytest.raises(NotImplementedError, match="query must not require grad"):
        attile.flash_attention(**{**own, "query": needy})


@needs_torch
def test_torch_bits_that_change_nothing():
    """conj() of a real tensor, neg() of a materialised one, and views of them are as they look."""
    import torch

    arrays = torch_arrays()
    expected = attile.flash_attention(**arrays)
    query = torch.complex(torch.zeros_like(arrays["query"]), -arrays["query"]).conj().imag
    assert query.is_neg()
    with pytest.raises(ValueError, match="query must not be a lazily negated"):
        attile.flash_attention(**{**arrays, "query": query})
    assert same(attile.flash_attention(**{**arrays, "query": query.resolve_neg()}), expected)
    assert same(attile.flash_attention(**{**arrays, "query": arrays["query"].conj()}), expected)


# ---- JAX -------------------------------------------------------------------------------------------------------------------


def jax_arrays(dtype="float32"):
    pytest.importorskip("jax")
    return {name: cases.convert(array, "jax") for name, array in plain(dtype).items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_jax_dtypes(dtype):
    arrays = jax_arrays(dtype)
    import jax

    expected, expected_lse = attile.flash_attention(**plain(dtype), return_lse=True)
    out, lse = attile.flash_attention(**arrays, return_lse=True)
    assert isinstance(out, jax.Array)
    assert type(out) is type(lse) is type(arrays["query"])
    assert out.dtype == dtype
    assert lse.dtype == "float32"
    assert out.devices() == arrays["query"].devices()
    assert same(out, expected)
    assert same(lse, expected_lse)


def test_jax_result_is_a_jax_array_for_good():
    """The memory lives as long as JAX needs it, also inside jit, and was not copied on the way (JAX aliases aligned memory only)."""
    arrays = jax_arrays()
    import jax

    expected = attile.flash_attention(**plain())
    results = []
    for _ in range(50):
        out = attile.flash_attention(**arrays)
        assert out.unsafe_buffer_pointer() % 64 == 0
        results.append(jax.jit(lambda x: x + 0)(out))
        results.append(out)
        del out
    gc.collect()
    assert all(same(out, expected) for out in results)


def test_jax_waits_for_its_inputs():
    pytest.importorskip("jax")
    import jax
    import jax.numpy as jnp

    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, y: jnp.tanh(y @ x), x))
    query = slow(jnp.eye(300)).reshape(1, 300, 1, 300)  # still being computed
    out = attile.flash_attention(query, query, query)
    query = np.asarray(query)
    assert same(out, attile.flash_attention(query, query, query))


def python(code, **env):
    """Runs code in a new interpreter; its last line."""
    import os

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env})
    assert run.returncode == 0, run.stderr
    return run.stdout.strip().splitlines()[-1]


def test_jax_float64_and_two_devices():
    pytest.importorskip("jax")
    code = """
import jax, attile
import numpy as np
jax.config.update("jax_enable_x64", True)
one, two = jax.devices()
x = np.random.default_rng(0).standard_normal((1, 3, 1, 8))
y = jax.device_put(x, two)
cu = np.array([0, 2])
out = attile.flash_attention(y, y, y, cum_seqlens_q=cu)
assert out.devices() == {two} and out.dtype == "float64"
assert np.array_equal(out, attile.flash_attention(x, x, x, cum_seqlens_q=cu))
try:
    attile.flash_attention(y, jax.device_put(x, one), y)
except ValueError as error:
    print(error)
from jax.sharding import Mesh, NamedSharding, PartitionSpec
spread = jax.device_put(np.ones((2, 3, 1, 8)), NamedSharding(Mesh(jax.devices(), "b"), PartitionSpec("b")))
try:
    attile.flash_attention(spread, spread, spread)
except ValueError as error:
    print(error)
    print("ok")
"""
    assert python(code, XLA_FLAGS="--xla_force_host_platform_device_count=2", JAX_PLATFORMS="cpu") == "ok"


# ---- index arrays of NumPy go with any library -----------------------------------------------------------------------------


def test_numpy_index_arrays_with_any_library(library):
    extra = {
        "cum_seqlens_q": np.array([0, 3, 8]),
        "cum_seqlens_k": np.array([0, 7, 9], np.int32),
        "q_segment_ids": np.zeros((B, TQ), np.int64),
        "kv_segment_ids": np.zeros((B, TK), np.int32),
    }
    arrays = {name: cases.convert(array, library) for name, array in plain().items()}
    expected = attile.flash_attention(**plain(), **extra)
    out = attile.flash_attention(**arrays, **extra)
    assert type(out) is type(arrays["query"])
    assert same(out, expected)
    own = {name: cases.convert(array.astype(np.int32), library) for name, array in extra.items()}
    assert same(attile.flash_attention(**arrays, **own), expected)


# ---- any producer ----------------------------------------------------------------------------------------------------------


class Versioned:
    """An array of no known library, exported as its time has it."""

    def __init__(self, array):
        self.array = array
        self.calls = []

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        self.calls.append((max_version, copy))
        return self.array.__dlpack__(max_version=max_version, copy=copy)


class Legacy(Versioned):
    def __dlpack__(self, stream=None):
        self.calls.append(stream)
        return self.array.__dlpack__()


def test_versioned_producers():
    arrays = plain()
    expected, expected_lse = attile.flash_attention(**arrays, return_lse=True)
    wrapped = {name: Versioned(array) for name, array in arrays.items()}
    out, lse = attile.flash_attention(**wrapped, return_lse=True)
    assert type(out) is type(lse) is np.ndarray  # this library has no from_dlpack
    assert same(out, expected)
    assert same(lse, expected_lse)
    assert all(x.calls == [((1, 3), False)] for x in wrapped.values())
    target = Versioned(np.zeros_like(expected))
    assert attile.flash_attention(**wrapped, out=target) is target
    assert same(target.array, expected)
    assert same(attile.flash_attention(**{name: Versioned(read_only(array)) for name, array in arrays.items()}), expected)


def test_legacy_producers():
    arrays = plain()
    expected = attile.flash_attention(**arrays)
    wrapped = {name: Legacy(array) for name, array in arrays.items()}
    assert same(attile.flash_attention(**wrapped), expected)
    assert all(x.calls == [None] for x in wrapped.values())
    # a capsule without a version does not say that its memory may be written
    target = Legacy(np.zeros_like(expected))
    with pytest.raises(ValueError, match=r"out must be writable: expected a writable array, got one that is read-only"):
        attile.flash_attention(**wrapped, out=target)
    assert not target.array.any()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_is_no_refusal_passes_through(error):
    class Interrupted(Versioned):
        def __dlpack__(self, **kwargs):
            raise error

    arrays = plain()
    with pytest.raises(error):
        attile.flash_attention(Interrupted(arrays["query"]), Versioned(arrays["key"]), Versioned(arrays["value"]))


def test_read_only_producers_are_not_written():
    arrays = plain()
    target = Versioned(read_only(np.zeros((B, TQ, HQ, DV), np.float32)))
    with pytest.raises(ValueError, match=r"out must be writable"):
        attile.flash_attention(**{name: Versioned(array) for name, array in arrays.items()}, out=target)
    assert not target.array.any()


def test_two_libraries_of_producers_do_not_mix():
    class Other(Versioned):
        pass

    Other.__module__ = "other.arrays"
    arrays = {name: Versioned(array) for name, array in plain().items()}
    with pytest.raises(ValueError, match=r"value must be of the library of the first argument: expected \w+, got other"):
        attile.flash_attention(**{**arrays, "value": Other(arrays["value"].array)})


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])  # NumPy, which plays the library, exports no bfloat16
def test_a_library_with_from_dlpack_gets_its_own_arrays(dtype, monkeypatch):
    class Tensor(Versioned):
        pass

    Tensor.__module__ = "tinylib.tensor"
    module = types.ModuleType("tinylib")
    module.from_dlpack = lambda producer: Tensor(np.from_dlpack(producer))
    monkeypatch.setitem(sys.modules, "tinylib", module)
    arrays = plain(dtype)
    out, lse = attile.flash_attention(**{name: Tensor(array) for name, array in arrays.items()}, return_lse=True)
    assert type(out) is type(lse) is Tensor
    expected, expected_lse = attile.flash_attention(**arrays, return_lse=True)
    assert same(out.array, expected)
    assert same(lse.array, expected_lse)
    assert out.array.ctypes.data % 64 == 0
    assert out.array.flags.writeable


def test_array_api_strict():
    xp = pytest.importorskip("array_api_strict")
    arrays = plain()
    out = attile.flash_attention(**{name: xp.asarray(array) for name, array in arrays.items()})
    assert type(out) is type(xp.asarray(0.0))
    assert same(np.from_dlpack(out), attile.flash_attention(**arrays))


def test_the_buffer_honours_max_version(monkeypatch):
    """Older JAX reads capsules without a version only, and NumPy makes those read-only."""
    seen = {}

    def from_dlpack(buffer):
        seen["device"] = buffer.__dlpack_device__()
        seen["legacy"] = repr(buffer.__dlpack__()), repr(buffer.__dlpack__(max_version=(0, 9)))
        seen["versioned"] = repr(buffer.__dlpack__(max_version=(1, 3), copy=False, stream=None, dl_device=None))
        return np.from_dlpack(buffer)

    module = types.ModuleType("tinylib2")
    module.from_dlpack = from_dlpack
    monkeypatch.setitem(sys.modules, "tinylib2", module)

    class Tensor(Versioned):
        pass

    Tensor.__module__ = "tinylib2"
    arrays = plain()
    out = attile.flash_attention(**{name: Tensor(array) for name, array in arrays.items()})
    gc.collect()  # capsules that nobody took give their reference back
    assert same(out, attile.flash_attention(**arrays))
    assert seen["device"] == (1, 0)
    assert all('"dltensor"' in text for text in seen["legacy"])
    assert '"dltensor_versioned"' in seen["versioned"]


# ---- nothing is copied, kept or blocked ------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced on Linux only")
@pytest.mark.parametrize("form", ["numpy", "numpy misaligned", "numpy bfloat16", "torch", "torch bfloat16", "torch subclass", "jax", "producer"])
def test_large_arrays_are_not_copied(form):
    """With 128 MiB of address space left, attention over 256 MiB of keys works only where they stay in place."""
    if importlib.util.find_spec(form.split()[0]) is None and form != "producer":
        pytest.skip(f"{form} is not installed")
    code = f"""
import resource, sys
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
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**27
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    np.ones(2**26, np.float32)
    print("no limit here")
except MemoryError:
    out = attile.flash_attention(few, big, big)
    print("ok" if bool((np.abs(np.asarray(out if "bfloat16" not in form or form.startswith("numpy") else out.float(), np.float32) - 1) < 1e-2).all()) else out)
"""
    assert python(code, ATTILE_NUM_THREADS="1", JAX_PLATFORMS="cpu") == "ok"


def test_references_are_given_back(library):
    arrays = {name: cases.convert(array, library) for name, array in plain().items()}
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


def test_producers_are_given_back():
    arrays = plain()
    wrapped = {name: Versioned(array) for name, array in arrays.items()}
    attile.flash_attention(**wrapped)
    before = [sys.getrefcount(array) for array in arrays.values()]
    for _ in range(100):
        attile.flash_attention(**wrapped)
        with pytest.raises(ValueError, match="softmax_scale"):
            attile.flash_attention(**wrapped, softmax_scale=np.inf)
    assert [sys.getrefcount(array) for array in arrays.values()] == before


def test_other_threads_run_during_a_call():
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
    problems = [plain(seed=seed) for seed in range(8)]
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
