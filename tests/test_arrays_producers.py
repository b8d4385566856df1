"""Arrays of libraries that attile never heard of: whatever a DLPack capsule may hold is read, and answered in kind."""

import gc
import sys
import types

import attile
import numpy as np
import pytest
from calls import DV, HQ, TQ, B, good, read_only, same
from producers import Broken, Copying, Legacy, Patched, Versioned, needs_versions


@needs_versions
def test_versioned_producers():
    arrays = good()
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
    arrays = good()
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
    arrays = good()
    with pytest.raises(error):
        attile.flash_attention(Broken(error), Versioned(arrays["key"]), Versioned(arrays["value"]))


class WithoutStrides(Patched):
    def patch(self, tensor):
        tensor.strides = None


class WithOffset(Patched):
    def patch(self, tensor):
        tensor.data -= 640
        tensor.byte_offset = 640


@needs_versions
@pytest.mark.parametrize("kind", [WithoutStrides, WithOffset])
def test_what_capsules_may_hold(kind):
    arrays = good()
    out = attile.flash_attention(**{name: kind(array) for name, array in arrays.items()})
    assert same(out, attile.flash_attention(**arrays))


@needs_versions
def test_a_capsule_of_another_major_version_is_refused():
    class Newer(Patched):
        def patch(self, tensor):
            tensor.major = 2

    arrays = {name: Newer(array) for name, array in good().items()}
    with pytest.raises(ValueError, match=r"query cannot be taken without a copy: .*: its DLPack version is 2"):
        attile.flash_attention(**arrays)


@needs_versions
def test_a_producer_that_copies_is_refused():
    arrays = {name: Copying(array) for name, array in good().items()}
    with pytest.raises(ValueError, match=r"query cannot be taken without a copy: .*: __dlpack__\(copy=False\) returned a copy"):
        attile.flash_attention(**arrays)


@needs_versions
def test_read_only_producers_are_not_written():
    arrays = good()
    target = Versioned(read_only(np.zeros((B, TQ, HQ, DV), np.float32)))
    with pytest.raises(ValueError, match=r"out must be writable"):
        attile.flash_attention(**{name: Versioned(array) for name, array in arrays.items()}, out=target)
    assert not target.array.any()


@needs_versions
def test_two_libraries_of_producers_do_not_mix():
    class Other(Versioned):
        pass

    Other.__module__ = "other.arrays"
    arrays = {name: Versioned(array) for name, array in good().items()}
    with pytest.raises(ValueError, match=r"value must be of the library of the first argument: expected \w+, got other"):
        attile.flash_attention(**{**arrays, "value": Other(arrays["value"].array)})


@needs_versions
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])  # NumPy, which plays the library, exports no bfloat16
def test_a_library_with_from_dlpack_gets_its_own_arrays(dtype, monkeypatch):
    class Tensor(Versioned):
        pass

    Tensor.__module__ = "tinylib.tensor"
    module = types.ModuleType("tinylib")
    module.from_dlpack = lambda producer: Tensor(np.from_dlpack(producer))
    monkeypatch.setitem(sys.modules, "tinylib", module)
    arrays = good(dtype)
    out, lse = attile.flash_attention(**{name: Tensor(array) for name, array in arrays.items()}, return_lse=True)
    assert type(out) is type(lse) is Tensor
    expected, expected_lse = attile.flash_attention(**arrays, return_lse=True)
    assert same(out.array, expected)
    assert same(lse.array, expected_lse)
    assert out.array.ctypes.data % 64 == 0
    assert out.array.flags.writeable


@needs_versions
def test_array_api_strict():
    xp = pytest.importorskip("array_api_strict")
    arrays = good()
    out = attile.flash_attention(**{name: xp.asarray(array) for name, array in arrays.items()})
    assert type(out) is type(xp.asarray(0.0))
    assert same(np.from_dlpack(out), attile.flash_attention(**arrays))


@needs_versions
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
    arrays = good()
    out = attile.flash_attention(**{name: Tensor(array) for name, array in arrays.items()})
    gc.collect()  # capsules that nobody took give their reference back
    assert same(out, attile.flash_attention(**arrays))
    assert seen["device"] == (1, 0)
    assert all('"dltensor"' in text for text in seen["legacy"])
    assert '"dltensor_versioned"' in seen["versioned"]
