"""Arrays of torch and JAX: read as they are, and answered in kind.

The same call on NumPy arrays is the answer that every other library must give, bit for bit.
"""

import ctypes
import gc
import importlib.util

import attile
import cases
import numpy as np
import pytest
from attile import arrays as arrays_module
from calls import DV, HQ, TK, TQ, B, good, same
from producers import (
    capsule_address,
)
from run_python import run_python

DTYPES = ["float64", "float32", "float16", "bfloat16"]

# ---- torch -----------------------------------------------------------------------------------------------------------------

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def torch_arrays(dtype="float32"):
    return {name: cases.convert(array, "torch") for name, array in good(dtype).items()}


@needs_torch
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_dtypes(dtype):
    import torch

    expected, expected_lse = attile.flash_attention(**good(dtype), return_lse=True)
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
    expected = attile.flash_attention(**good())
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
def test_torch_before_versioned_capsules():
    """Its capsules do not say that they may be written, but torch has no read-only tensors."""
    import torch

    class Old(torch.Tensor):
        def __dlpack__(self, stream=None):
            return super().__dlpack__()

    arrays = torch_arrays()
    old = {name: x.as_subclass(Old) for name, x in arrays.items()}
    assert '"dltensor"' in repr(old["query"].__dlpack__())
    target = torch.zeros(B, TQ, HQ, DV).as_subclass(Old)
    assert attile.flash_attention(**old, out=target) is target
    assert same(target.as_subclass(torch.Tensor), attile.flash_attention(**arrays))


class ExchangeTable(ctypes.Structure):
    """DLPackExchangeAPI."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_from_object", ctypes.c_void_p),
        ("managed_to_object", ctypes.c_void_p),
        ("tensor_from_object", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
    ]


@needs_torch
@pytest.mark.parametrize("kind", ["without the optional function", "newer, with an older one behind it", "newer alone"])
def test_exchange_tables(kind, monkeypatch):
    import torch

    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch has no exchange table")
    name = b"dlpack_exchange_api"
    original = capsule_address(torch.Tensor.__dlpack_c_exchange_api__, name)
    table = ExchangeTable.from_buffer_copy(ExchangeTable.from_address(original))
    if kind == "without the optional function":
        table.tensor_from_object = None
    else:
        table = ExchangeTable(major=2, previous=None if "alone" in kind else original)
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    exported = []

    class Own(torch.Tensor):
        __dlpack_c_exchange_api__ = make(ctypes.addressof(table), name, None)

        def __dlpack__(self, **kwargs):
            exported.append(self)
            return super().__dlpack__(**kwargs)

    route = arrays_module.Torch.route
    monkeypatch.setattr(arrays_module.Torch, "route", lambda self, cls: "exchange" if cls is Own else route(self, cls))
    arrays = torch_arrays()
    out, lse = attile.flash_attention(**{k: x.as_subclass(Own) for k, x in arrays.items()}, return_lse=True)
    assert type(out) is torch.Tensor
    assert same(out, attile.flash_attention(**arrays))
    assert len(exported) == (3 if "alone" in kind else 0)
    target = torch.zeros(B, TQ, HQ, DV).as_subclass(Own)
    assert attile.flash_attention(*(x.as_subclass(Own) for x in arrays.values()), out=target) is target
    assert same(target.as_subclass(torch.Tensor), out)


@needs_torch
def test_torch_knows_that_out_was_written():
    """What autograd saved and attile overwrote is an error of torch, not a wrong gradient."""
    import torch

    arrays = torch_arrays()
    saved = torch.ones(B, TQ, HQ, DV)
    weight = torch.ones((), requires_grad=True)
    loss = (weight * saved).sum()
    attile.flash_attention(**arrays, out=saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        attile.flash_attention(**arrays, out=torch.ones(B, TQ, HQ, DV))


@needs_torch
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")
def test_torch_compile_falls_back_to_the_call():
    import torch

    arrays = torch_arrays()
    compiled = torch.compile(lambda q, k, v: attile.flash_attention(q * 1, k, v) + 0, backend="eager")
    assert same(compiled(*arrays.values()), attile.flash_attention(**arrays))


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
    return {name: cases.convert(array, "jax") for name, array in good(dtype).items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_jax_dtypes(dtype):
    arrays = jax_arrays(dtype)
    import jax

    expected, expected_lse = attile.flash_attention(**good(dtype), return_lse=True)
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

    expected = attile.flash_attention(**good())
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
"""
    output = run_python(code, XLA_FLAGS="--xla_force_host_platform_device_count=2", JAX_PLATFORMS="cpu").splitlines()
    assert output[0] == "flash_attention: key must be on the device of query: expected cpu:1, got cpu:0"
    assert output[1] == "flash_attention: query must be on one device: expected 1, got an array sharded over 2"


# ---- index arrays of NumPy go with any library -----------------------------------------------------------------------------


def test_numpy_index_arrays_with_any_library(library):
    extra = {
        "cum_seqlens_q": np.array([0, 3, 8]),
        "cum_seqlens_k": np.array([0, 7, 9], np.int32),
        "q_segment_ids": np.zeros((B, TQ), np.int64),
        "kv_segment_ids": np.zeros((B, TK), np.int32),
    }
    arrays = {name: cases.convert(array, library) for name, array in good().items()}
    expected = attile.flash_attention(**good(), **extra)
    out = attile.flash_attention(**arrays, **extra)
    assert type(out) is type(arrays["query"])
    assert same(out, expected)
    own = {name: cases.convert(array.astype(np.int32), library) for name, array in extra.items()}
    assert same(attile.flash_attention(**arrays, **own), expected)
