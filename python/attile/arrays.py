"""What is special to each array library: one class a library.

The binding asks `recognise` once for each array type and keeps the answer. It reads the arrays itself, without copies, by
one of three routes: "numpy" (the C struct of an ndarray), "exchange" (the C table ``__dlpack_c_exchange_api__`` of the type),
"protocol" (``__dlpack__``). To add a library, add a class here and to `LIBRARIES`.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np


class Array(Protocol):
    """Any object that exports its memory by DLPack."""

    def __dlpack__(self, **kwargs: Any) -> Any:
        """Export as a capsule."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Device type and id."""


class ArrayLibrary:
    """An array library; the base class knows DLPack only.

    Attributes
    ----------
    name : str
        In messages; arrays of one call have the same.
    mutable : bool
        Whether `out=` may be one of its arrays.
    legacy_writable : bool
        Whether that holds for a capsule without a version, which cannot say that it is read-only.
    synchronizes : bool
        Whether CUDA work has to be waited for, as the library would not order its own work after it.
    export_stream : int, optional
        For ``__dlpack__(stream=...)``, where the library's default would not do.
    flags : tuple of str
        Attributes: when one is true, `check` sees the array before it is read.
    part_flags : tuple of str
        Methods without arguments, of arrays of a dtype that parts of complex ones have: likewise.
    """

    name = ""
    mutable = True
    legacy_writable = False
    synchronizes = False
    export_stream: int | None = None
    flags: tuple[str, ...] = ()
    part_flags: tuple[str, ...] = ()

    # written(array), where the library wants to know that an array was written in place.
    written: Callable[[Any], None] | None = None

    # Where the library itself runs calls on arrays that it may still be computing. describe(array, function, argument): shape, code and
    # bits of the dtype, DLPack's device type and id; None for an array that is to be read now. launch(recipe, arrays, results): runs the
    # recipe and returns a list of arrays, results being shapes and names of dtypes.
    describe: Callable[[Any, str, str], tuple | None] | None = None
    launch: Callable[[str, list, tuple], list] | None = None

    def watch(self) -> tuple[Any, str, Any] | None:
        """Object, attribute and value: while the attribute has another value, `check` sees every array before it is read."""
        return None

    def route(self, cls: type) -> str | None:
        """How arrays of this type are read; None when the type is not this library's, "refused" when `check` always raises."""
        raise NotImplementedError

    def check(self, array: Any, function: str, argument: str, in_place: bool) -> Any:
        """Raise the reason why an array cannot be taken, or return what is to be read in its place.

        Called when a flag is true, when the route is "refused", or when the library failed to export the array.
        """
        return array

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Allocate an array on the device of `like`; None when the library has to adopt a buffer, which lies on the CPU."""
        return None

    def stream(self, device: int) -> int:
        """Handle of the stream that is current for a CUDA device; 0 is the legacy default stream."""
        raise NotImplementedError(f"attile: CUDA arrays of {self.name} are not taken: expected arrays of torch, CuPy or JAX")

    def adopt(self, buffer: Any, like: Any) -> Any:
        """Turn a filled buffer, a DLPack producer of ours, into an array on the device of `like`, without a copy."""
        raise NotImplementedError


def _numpy_dtype(name: str) -> np.dtype:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


class NumPy(ArrayLibrary):
    """numpy.ndarray; bfloat16 by ml_dtypes. Subclasses give plain arrays."""

    name = "numpy"

    def route(self, cls):
        if issubclass(cls, np.ma.MaskedArray):
            return "refused"
        return "numpy" if issubclass(cls, np.ndarray) else None

    def check(self, array, function, argument, in_place):
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(
                f"{function}: {argument} must not be a masked array, whose mask would be ignored: expected "
                "numpy.ndarray (see attention_mask), got numpy.ma.MaskedArray"
            )
        return array


class Torch(ArrayLibrary):
    """torch.Tensor. The exchange table sees neither autograd, nor lazy negation, nor what a subclass means by its data."""

    name = "torch"
    legacy_writable = True  # no tensor is read-only
    flags = ("requires_grad",)
    part_flags = ("is_neg",)

    def watch(self):
        forward_ad = getattr(sys.modules["torch"].autograd, "forward_ad", None)
        return (forward_ad, "_current_level", -1) if hasattr(forward_ad, "_current_level") else None

    def written(self, array):
        if not array.is_inference():
            sys.modules["torch"].autograd.graph.increment_version(array)

    def route(self, cls):
        torch = sys.modules.get("torch")
        if torch is None or not issubclass(cls, torch.Tensor):
            return None
        fake = sys.modules.get("torch._subclasses.fake_tensor")
        if fake is not None and issubclass(cls, fake.FakeTensor):
            return "refused"
        plain = (torch.Tensor, torch.nn.Parameter, getattr(torch.nn, "Buffer", None))
        return "exchange" if cls in plain else "protocol"

    def check(self, array, function, argument, in_place):
        torch = sys.modules["torch"]
        where = f"{function}: {argument}"
        functorch = getattr(torch._C, "_functorch", None)
        if functorch is not None and functorch.is_functorch_wrapped_tensor(array):
            raise NotImplementedError(
                f"{where} must not be inside a function transform: expected a plain torch.Tensor, got one of "
                "torch.func (vmap, grad, jvp), for which no operator is registered"
            )
        if array.requires_grad and torch.is_grad_enabled():
            if in_place:
                raise ValueError(f"{where} must not require grad when out is given: expected requires_grad False, got True")
            raise NotImplementedError(
                f"{where} must not require grad: expected requires_grad False, or a call under torch.no_grad(), got True "
                "(no backward is registered with torch)"
            )
        forward_ad = torch.autograd.forward_ad
        if getattr(forward_ad, "_current_level", -1) >= 0 and forward_ad.unpack_dual(array).tangent is not None:
            raise NotImplementedError(
                f"{where} must not carry a tangent: expected a plain torch.Tensor, got a dual tensor of forward-mode AD "
                "(no derivative is registered with torch)"
            )
        if array.layout is not torch.strided or array.is_nested or array.is_quantized:
            got = "nested" if array.is_nested else "quantized" if array.is_quantized else str(array.layout)
            raise TypeError(f"{where} must be a dense tensor: expected layout torch.strided, got {got}")
        if array.is_neg() or array.is_conj():
            raise ValueError(
                f"{where} must not be a lazily negated or conjugated view: expected its values in memory "
                "(resolve_neg(), resolve_conj()), got the bit set"
            )
        fake = sys.modules.get("torch._subclasses.fake_tensor")
        if array.device.type == "meta" or (fake is not None and isinstance(array, fake.FakeTensor)):
            raise NotImplementedError(
                f"{where} must hold data: expected a tensor in memory, got {type(array).__name__} on device {array.device} "
                "(no operator is registered for fake and meta tensors)"
            )
        return array.detach()

    def empty(self, shape, dtype, like):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)

    def stream(self, device):
        return sys.modules["torch"].cuda.current_stream(device).cuda_stream


def with_64_bit(jax: Any, wanted: bool) -> contextlib.AbstractContextManager:
    """Context in which JAX makes arrays of 64 bits.

    Parameters
    ----------
    jax : module
        The imported package.
    wanted : bool
        False: JAX stays as it is.

    Returns
    -------
    context manager
        Enters the mode and leaves it again.
    """
    # jax.enable_x64 is a context since jax 0.8.
    if not wanted or jax.config.jax_enable_x64:
        return contextlib.nullcontext()
    return (jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64)(True)


# DLPack's codes, by the beginning of a dtype's name.
_CODES = {"float8_e4m3fn": 10, "bfloat": 4, "float": 2, "int": 0, "uint": 1, "bool": 6}


@functools.lru_cache(maxsize=1024)
def _xla_program(recipe: str, results: tuple[tuple[tuple[int, ...], str], ...], platform: str) -> Callable[..., list]:
    jax = sys.modules["jax"]
    _register_with_xla(platform)
    made = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results]
    call = jax.ffi.ffi_call("attile", made)
    return jax.jit(lambda *arrays: call(*arrays, call=recipe))


@functools.cache
def _register_with_xla(platform: str) -> None:
    from attile import _core

    sys.modules["jax"].ffi.register_ffi_target("attile", _core.xla_handler(), platform=platform)


class JAX(ArrayLibrary):
    """Concrete jax.Array. Its arrays are immutable: on the CPU a result is computed into memory that JAX adopts. On CUDA XLA runs the call,
    on its stream and with its memory, and nothing waits. Where it cannot (dropout, whose seed would be compiled into a program each, and
    planned batches), ``__dlpack__`` waits for the inputs, and the call for its result, which is an array that nobody has seen yet."""

    name = "jax"
    mutable = False
    synchronizes = True
    deferred_platforms = ("gpu",)

    def route(self, cls):
        jax = sys.modules.get("jax")
        if jax is None or not issubclass(cls, (jax.Array, jax.core.Tracer)):
            return None
        return "protocol" if hasattr(cls, "__dlpack__") and not issubclass(cls, jax.core.Tracer) else "refused"

    def check(self, array, function, argument, in_place):
        jax = sys.modules["jax"]
        where = f"{function}: {argument}"
        if isinstance(array, jax.core.Tracer):
            raise NotImplementedError(
                f"{where} must not be traced: expected a concrete jax.Array, got {type(array).__name__} (jit, grad and "
                "vmap need a kernel registered with XLA, which this build of attile has not)"
            )
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
            raise TypeError(f"{where} has an unsupported dtype: expected a numeric dtype, got {array.dtype}")
        if array.is_deleted():
            raise ValueError(f"{where} must hold data: expected a live jax.Array, got one that was deleted or donated")
        if len(array.devices()) > 1:
            raise ValueError(f"{where} must be on one device: expected 1, got an array sharded over {len(array.devices())}")
        return array

    def describe(self, array, function, argument):
        self.check(array, function, argument, False)
        device = next(iter(array.devices()))
        if device.platform not in self.deferred_platforms or not hasattr(sys.modules["jax"], "ffi"):
            return None
        dtype = np.dtype(array.dtype)
        code = next((code for name, code in _CODES.items() if dtype.name.startswith(name)), 5)  # 5: complex, which no call takes
        return array.shape, code, 8 * dtype.itemsize, 1 if device.platform == "cpu" else 2, device.local_hardware_id or 0

    def launch(self, recipe, arrays, results):
        jax = sys.modules["jax"]
        platform = "cpu" if next(iter(arrays[0].devices())).platform == "cpu" else "CUDA"
        with with_64_bit(jax, any(np.dtype(x.dtype).itemsize == 8 for x in arrays)):  # else 64 bits would become 32
            return _xla_program(recipe, results, platform)(*arrays)

    def empty(self, shape, dtype, like):
        jax = sys.modules["jax"]
        if next(iter(like.devices())).platform == "cpu":
            return None
        if dtype == "uint8":  # scratch: XLA compiles for each size, so let there be few
            shape = (1 << (shape[0] - 1).bit_length(),)
        with with_64_bit(jax, dtype == "float64"):
            return jax.numpy.empty(shape, dtype, device=like.sharding)

    def stream(self, device):
        return 2  # the default stream of the calling thread

    def adopt(self, buffer, like):
        jax = sys.modules["jax"]
        with with_64_bit(jax, like.dtype == np.float64):  # else JAX would turn float64 made in that mode into float32
            array = jax.dlpack.from_dlpack(buffer)
        return array if array.devices() == like.devices() else jax.device_put(array, like.sharding)


class CuPy(ArrayLibrary):
    """cupy.ndarray, on CUDA."""

    name = "cupy"
    legacy_writable = True
    export_stream = -1  # our work is on the stream that is current anyway: no waiting

    def route(self, cls):
        cupy = sys.modules.get("cupy")
        return "protocol" if cupy is not None and issubclass(cls, cupy.ndarray) else None

    def empty(self, shape, dtype, like):
        with like.device:
            return sys.modules["cupy"].empty(shape, _numpy_dtype(dtype))

    def stream(self, device):
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(device):
            return cupy.cuda.get_current_stream().ptr


class Producer(ArrayLibrary):
    """Any other type with ``__dlpack__``; the library is named by the top package of the type."""

    def __init__(self, cls: type) -> None:
        self.name = cls.__module__.partition(".")[0]

    def route(self, cls):
        return "exchange" if "__dlpack_c_exchange_api__" in vars(cls) else "protocol"

    def _from_dlpack(self, like):
        namespace = getattr(like, "__array_namespace__", lambda: sys.modules.get(self.name))()
        return getattr(namespace, "from_dlpack", None)

    def empty(self, shape, dtype, like):
        return None if self._from_dlpack(like) else np.empty(shape, _numpy_dtype(dtype))

    def adopt(self, buffer, like):
        return self._from_dlpack(like)(buffer)


LIBRARIES: list[ArrayLibrary] = [NumPy(), Torch(), JAX(), CuPy()]


def recognise(array_type: type) -> tuple[ArrayLibrary, str] | None:
    """Library of an array type, and the route by which its arrays are read.

    Parameters
    ----------
    array_type : type
        The type of an argument.

    Returns
    -------
    tuple of ArrayLibrary and str, or None
        None when the type is no array type.
    """
    for library in LIBRARIES:
        route = library.route(array_type)
        if route is not None:
            return library, route
    if not hasattr(array_type, "__dlpack__"):
        return None
    producer = Producer(array_type)
    return producer, producer.route(array_type)


def frameworks() -> list[dict[str, str]]:
    """Array libraries that are imported, with version and route.

    Returns
    -------
    list of dict
        The keys are name, version and route. No library is imported by this.
    """
    types = {"numpy": "ndarray", "torch": "Tensor", "jax": "Array", "cupy": "ndarray"}
    found = []
    for library in LIBRARIES:
        module = sys.modules.get(library.name)
        if module is None or not hasattr(module, types[library.name]):  # an import that is under way
            continue
        cls = getattr(module, types[library.name])
        route = "__dlpack__"
        if library.route(cls) == "numpy":
            route = "NumPy's C struct"
        elif library.route(cls) == "exchange" and hasattr(cls, "__dlpack_c_exchange_api__"):
            route = "DLPack C exchange API"
        found.append({"name": library.name, "version": module.__version__, "route": route})
    return found
