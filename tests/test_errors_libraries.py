"""Bad calls with arrays of torch and JAX: autograd, transforms, tracers, lazy and fake tensors, and libraries that mix."""

import importlib.util

import attile
import numpy as np
import pytest
from calls import DV, HK, HQ, PATTERN, TK, TQ, B, D, good, normal, packed, sentinel

VALUE, TYPE, NOT = ValueError, TypeError, NotImplementedError

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")

# ---- torch -----------------------------------------------------------------------------------------------------------------

def torch_arrays():
    import torch

    return {name: torch.from_numpy(array) for name, array in good().items()}


def torch_kinds():
    import torch

    def fake():
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            return torch.ones(B, TQ, HQ, D)

    grad = "query must not require grad"
    return {
        "requires grad": (lambda: {"query": torch.ones(B, TQ, HQ, D, requires_grad=True)}, NOT, grad + r": expected requires_grad False, .*, got True"),
        "parameter": (lambda: {"query": torch.nn.Parameter(torch.ones(B, TQ, HQ, D))}, NOT, grad),
        "bias requires grad": (lambda: {"bias": torch.zeros(TQ, TK, requires_grad=True)}, NOT, "bias must not require grad"),
        "requires grad and out": (
            lambda: {"query": torch.ones(B, TQ, HQ, D, requires_grad=True), "out": torch.full((B, TQ, HQ, DV), float(PATTERN))},
            VALUE,
            grad + r" when out is given: expected requires_grad False, got True",
        ),
        "out requires grad": (lambda: {"out": torch.full((B, TQ, HQ, DV), float(PATTERN), requires_grad=True)}, VALUE, "out must not require grad when out is given"),
        "negative bit": (
            lambda: {"query": torch.ones(B, TQ, HQ, D, dtype=torch.complex64).conj().imag},
            VALUE,
            r"query must not be a lazily negated or conjugated view: .*resolve_neg",
        ),
        "sparse": (lambda: {"query": torch.ones(B, TQ, HQ, D).to_sparse()}, TYPE, r"query must be a dense tensor: expected layout torch.strided, got torch.sparse_coo"),
        "fake": (lambda: {"query": fake()}, NOT, r"query must hold data: expected a tensor in memory, got FakeTensor"),
        "meta": (lambda: {"query": torch.ones(B, TQ, HQ, D, device="meta")}, NOT, r"query must hold data: .* on device meta"),
        "complex": (lambda: {"query": torch.ones(B, TQ, HQ, D, dtype=torch.complex64)}, TYPE, r"query has an unsupported dtype: .* got complex64"),
        "int": (lambda: {"key": torch.ones(B, TK, HK, D, dtype=torch.int32)}, TYPE, r"key.dtype must equal query.dtype: expected float32, got int32"),
        "NumPy key": (lambda: {"key": normal(B, TK, HK, D)}, VALUE, r"key must be of the library of the first argument: expected torch, got numpy"),
        "NumPy bias": (lambda: {"bias": normal(TQ, TK)}, VALUE, r"bias must be of the library of the first argument: expected torch, got numpy"),
        "NumPy mask": (lambda: {"attention_mask": np.ones((TQ, TK), bool)}, VALUE, r"attention_mask must be of the library .* expected torch, got numpy"),
        "NumPy out": (lambda: {"out": sentinel()}, VALUE, r"out must be of the library of the first argument: expected torch, got numpy"),
        "scale is a tensor": (lambda: {"softmax_scale": torch.tensor(0.1)}, TYPE, r"softmax_scale must be a number: .* got torch.Tensor"),
        "seed is a tensor": (lambda: {"dropout_prob": 0.5, "dropout_seed": torch.tensor(1)}, TYPE, r"dropout_seed must be an integer: .* got torch.Tensor"),
        "last dimension": (lambda: {"query": torch.ones(B, TQ, D, HQ).transpose(2, 3)}, VALUE, r"query must be contiguous in its last dimension"),
    }  # fmt: skip


TORCH_KINDS = torch_kinds() if importlib.util.find_spec("torch") else {}


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_a_bad_call_with_torch(kind):
    import torch

    change, error, message = TORCH_KINDS[kind]
    changed = change()
    # the message differs where out is given and an input requires grad
    needs_no_out = error is NOT and "grad" in message
    arguments = {**torch_arrays(), **({} if needs_no_out else {"out": torch.full((B, TQ, HQ, DV), float(PATTERN))}), **changed}
    with pytest.raises(error, match=f"^flash_attention: {message}") as caught:
        attile.flash_attention(**arguments)
    assert type(caught.value) is error
    if not needs_no_out:
        out = arguments["out"]
        assert (np.asarray(out.detach() if isinstance(out, torch.Tensor) else out) == PATTERN).all()


@needs_torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_torch_function_transforms(transform):
    import torch

    x = torch.ones(1, 2, 1, 8)
    call = lambda q: attile.flash_attention(q, x, x).sum()  # noqa: E731
    with pytest.raises(NotImplementedError, match=r"^flash_attention: query must not be inside a function transform"):
        if transform == "vmap":
            torch.func.vmap(call)(x[None])
        elif transform == "grad":
            torch.func.grad(call)(x)
        else:
            torch.func.jvp(call, (x,), (x,))


@needs_torch
def test_torch_dual_tensors():
    import torch
    from torch.autograd import forward_ad

    x = torch.ones(1, 2, 1, 8)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match=r"^flash_attention: value must not carry a tangent: .*, got a dual tensor"):
            attile.flash_attention(x, x, dual)
        assert (attile.flash_attention(x, x, x) == 1).all()
    assert (attile.flash_attention(x, x, x) == 1).all()


@needs_torch
def test_torch_index_arrays_do_not_go_with_numpy():
    import torch

    arguments = packed(cum_seqlens_q=torch.tensor([0, 4, 9]))
    with pytest.raises(ValueError, match=r"cum_seqlens_q must be of the library of the first argument: expected numpy, got torch"):
        attile.flash_attention(**arguments)
    assert (arguments["out"] == PATTERN).all()


# ---- JAX -------------------------------------------------------------------------------------------------------------------


def jax_arrays():
    import jax.numpy as jnp

    return {name: jnp.asarray(array) for name, array in good().items()}


@needs_jax
@pytest.mark.parametrize("transform", ["jit", "grad", "vmap"])
def test_jax_tracers(transform):
    arrays = jax_arrays()
    import jax

    call = {
        "jit": lambda: jax.jit(attile.flash_attention)(**arrays),
        "grad": lambda: jax.grad(lambda q: attile.flash_attention(q, arrays["key"], arrays["value"]).sum())(arrays["query"]),
        "vmap": lambda: jax.vmap(attile.flash_attention)(*(a[None] for a in arrays.values())),
    }[transform]
    with pytest.raises(NotImplementedError, match=r"^flash_attention: query must not be traced: expected a concrete jax.Array, got \w*Tracer"):
        call()


@needs_jax
def test_jax_traced_scalar():
    arrays = jax_arrays()
    import jax

    with pytest.raises(TypeError, match=r"^flash_attention: softmax_scale must be a number: expected a Python or NumPy number, got jax.*Tracer"):
        jax.jit(lambda scale: attile.flash_attention(**arrays, softmax_scale=scale))(0.5)


@needs_jax
def test_jax_out():
    import jax.numpy as jnp

    arrays = jax_arrays()
    out = jnp.full((B, TQ, HQ, DV), PATTERN)
    with pytest.raises(ValueError, match=r"^flash_attention: out cannot be written: expected None, for arrays of jax are immutable"):
        attile.flash_attention(**arrays, out=out)
    assert (np.asarray(out) == PATTERN).all()


@needs_jax
def test_jax_other_kinds():
    arrays = jax_arrays()
    import jax
    import jax.numpy as jnp

    with pytest.raises(ValueError, match=r"key must be of the library of the first argument: expected jax, got numpy"):
        attile.flash_attention(**{**arrays, "key": np.asarray(arrays["key"])})
    deleted = jnp.ones((B, TQ, HQ, D))
    deleted.delete()
    with pytest.raises(ValueError, match=r"query must hold data: expected a live jax.Array, got one that was deleted or donated"):
        attile.flash_attention(**{**arrays, "query": deleted})
    with pytest.raises(TypeError, match=r"query has an unsupported dtype: expected a numeric dtype, got key<"):
        attile.flash_attention(**{**arrays, "query": jax.random.key(0)})
