"""Calls that XLA runs on its own buffers. On CUDA that is how JAX arrays are computed; here the CPU's arrays are sent the same way."""

import pathlib
import shutil
import subprocess

import attile
import cases
import numpy as np
import pytest
from attile import arrays as arrays_module
from calls import cu, good, packed, same
from machine import jax_64_bit
from test_kvcache import Cache
from test_merge import states

jax = pytest.importorskip("jax")
if not hasattr(jax, "ffi"):
    pytest.skip("jax before 0.5 has no jax.ffi", allow_module_level=True)

BINDINGS = pathlib.Path(__file__).parent.parent / "src" / "cpp" / "bindings"


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    """Sends the CPU's arrays to XLA too. The recipes that went there, one a call."""
    seen = []
    program = arrays_module._xla_program

    def watch(recipe, *more):
        seen.append(recipe)
        return program(recipe, *more)

    monkeypatch.setattr(arrays_module.JAX, "deferred_platforms", ("cpu", "gpu"))
    monkeypatch.setattr(arrays_module, "_xla_program", watch)
    return seen


def on_jax(call, host=()):
    return {name: cases.convert(x, "jax") if isinstance(x, np.ndarray) and name not in host else x for name, x in call.items()}


@pytest.mark.parametrize("case", [case for case in cases.SMALL + cases.REAL if not case.options.get("dropout_prob")], ids=str)
def test_the_bits_of_numpy(case, programs):
    expected, expected_lse = attile.flash_attention(**case.arrays(), return_lse=True)
    out, lse = attile.flash_attention(**case.arrays("jax"), return_lse=True)
    assert len(programs) == 1
    assert isinstance(out, jax.Array)
    assert isinstance(lse, jax.Array)
    assert same(out, expected)
    assert same(lse, expected_lse)
    assert same(attile.flash_attention(**case.arrays("jax")), expected)


def test_dropout_is_computed_by_ourselves(programs):
    """Its seed would be part of a program: one compilation for each."""
    call = good() | {"dropout_prob": 0.5, "dropout_seed": 7}
    assert same(attile.flash_attention(**on_jax(call)), attile.flash_attention(**call))
    assert not programs


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("host", [(), ("cache_seqlens", "page_table")], ids=["indices of JAX", "indices of NumPy"])
@pytest.mark.parametrize("page_size", [0, 16])
def test_caches(page_size, host, index, programs):
    call, _ = Cache(page_size=page_size, index=index, options=(("return_lse", True),)).call()
    expected = attile.flash_attention_with_kvcache(**call)
    got = attile.flash_attention_with_kvcache(**on_jax(call, host))
    assert len(programs) == 1
    assert all(map(same, got, expected))


@pytest.mark.parametrize("function", ["mla_attention", "mla_decode"])
def test_latent_attention(function, programs):
    rng = np.random.default_rng(0)
    batch, keys, heads, rank, rope = 2, 40, 4, 32, 16

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    if function == "mla_attention":
        call = {"query": normal(batch, 5, heads, 24 + rope), "key_value": normal(batch, keys, rank), "w_kc": normal(rank, heads, 24)}
        call |= {"w_vc": normal(rank, heads, 8), "b_k": normal(batch, keys, rope), "causal": True, "causal_alignment": "bottom_right"}
    else:
        call = {"q_nope": normal(batch, 2, heads, rank), "q_pe": normal(batch, 2, heads, rope), "ckv": normal(batch, keys, rank)}
        call |= {"kpe": normal(batch, keys, rope), "softmax_scale": 0.2, "kv_lens": np.array([40, 17])}
    function = getattr(attile, function)
    expected = function(**call, return_lse=True)
    assert all(map(same, function(**on_jax(call), return_lse=True), expected))
    assert len(programs) == 1


def test_merge_states(programs):
    arguments = states("bfloat16")
    expected = attile.merge_states(*arguments)
    assert all(map(same, attile.merge_states(*[cases.convert(x, "jax") for x in arguments]), expected))
    assert len(programs) == 1


def test_indices_of_64_bits_keep_them():
    """Ids that agree in their lower half only are different segments."""
    call = good()
    batch, keys, queries = 2, 7, 5
    call["q_segment_ids"] = np.full((batch, queries), 1, np.int64)
    call["kv_segment_ids"] = np.where(np.arange(keys) < 3, 1, 1 + 2**32)[None].repeat(batch, 0)
    expected = attile.flash_attention(**call)
    assert same(attile.flash_attention(**on_jax(call)), expected)
    assert same(attile.flash_attention(**on_jax(call, ("q_segment_ids", "kv_segment_ids"))), expected)


def test_a_program_serves_arrays_of_its_kind(programs):
    for seed in (1, 2):
        assert same(attile.flash_attention(**on_jax(good(seed=seed))), attile.flash_attention(**good(seed=seed)))
    assert programs[0] == programs[1]
    attile.flash_attention(**on_jax(good()), causal=True)
    assert programs[2] != programs[1]


def test_config_and_kernel_are_part_of_it(programs):
    config = attile.FlashAttentionConfig(kernel="forward_portable", num_splits=2)
    expected = attile.flash_attention(**good(), cfg=config)
    assert same(attile.flash_attention(**on_jax(good()), cfg=config), expected)
    attile.flash_attention(**on_jax(good()))
    assert programs[0] != programs[1]
    assert attile.explain(attile.flash_attention, **on_jax(good()), cfg=config)["kernel"] == "forward_portable"


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"key": np.ones((2, 7, 2, 8), np.float32)}, ValueError, "key.shape\\[3\\] must equal query.shape\\[3\\]: expected 16, got 8"),
        ({"query": np.ones((2, 5, 4, 16), np.complex64)}, TypeError, "query"),
        ({"cum_seqlens_q": cu(0, 4, 3)}, ValueError, "cum_seqlens_q"),
        ({"cum_seqlens_k": cu(0, 4, 30)}, ValueError, "cum_seqlens_k"),
        ({"out": np.zeros((2, 5, 4, 8), np.float32)}, ValueError, "immutable"),
    ],
)
def test_errors_come_before_anything_is_computed(change, error, text, programs):
    call = {**good(), **change}
    with pytest.raises(error, match=text):
        attile.flash_attention(**on_jax(call, ("cum_seqlens_q",)))
    assert not programs


def test_deleted_arrays():
    call = on_jax(good())
    call["key"].delete()
    with pytest.raises(ValueError, match="key must hold data"):
        attile.flash_attention(**call)


def test_empty_and_packed(programs):
    nothing = {name: x[:0] for name, x in good().items()}
    assert attile.flash_attention(**on_jax(nothing)).shape == attile.flash_attention(**nothing).shape
    call = packed()
    del call["out"]
    assert same(attile.flash_attention(**on_jax(call)), attile.flash_attention(**call))
    assert len(programs) == 2


@pytest.mark.parametrize("text", ["", "zz", "00" * 16, "ff" * 64, "00" * 4000])
def test_recipes_of_another_build_are_refused(text):
    with pytest.raises(Exception, match="attile: the text of a call"):
        jax.block_until_ready(arrays_module._xla_program(text, (((1,), "float32"),), "cpu")(np.ones(1, np.float32)))


def test_whatever_precision_jax_is_in():
    call = good("float64")
    out = attile.flash_attention(**on_jax(call))
    assert out.dtype == np.float64
    with jax_64_bit():
        again = attile.flash_attention(**on_jax(call))
    assert same(out, attile.flash_attention(**call))
    assert same(again, out)


# Our name, XLA's name, fields as ours: theirs.
STRUCTS = {
    "Extension": ("Extension_Base", {"type": "type", "next": "next"}),
    "Version": ("Api_Version", {"major": "major_version", "minor": "minor_version"}),
    "Metadata": ("Metadata", {"version": "api_version", "traits": "traits"}),
    "MetadataExtension": ("Metadata_Extension", {"base": "extension_base", "metadata": "metadata"}),
    "Buffer": ("Buffer", {"dtype": "dtype", "data": "data", "rank": "rank", "dims": "dims"}),
    "Span": ("ByteSpan", {"data": "ptr", "size": "len"}),
    "Buffers": ("Args", {"size": "size", "types": "types", "items": "args"}),
    "Attributes": ("Attrs", {"size": "size", "types": "types", "names": "names", "values": "attrs"}),
    "ErrorCreate": ("Error_Create_Args", {"message": "message", "code": "errc"}),
    "StreamGet": ("Stream_Get_Args", {"context": "ctx", "stream": "stream"}),
    "Allocate": ("DeviceMemory_Allocate_Args", {"context": "ctx", "size": "size", "alignment": "alignment", "data": "data"}),
    "Api": ("Api", {"error_create": "XLA_FFI_Error_Create", "stream_get": "XLA_FFI_Stream_Get", "allocate": "XLA_FFI_DeviceMemory_Allocate"}),
    "Frame": (
        "CallFrame",
        {"api": "api", "context": "ctx", "stage": "stage", "arguments": "args", "results": "rets", "attributes": "attrs"},
    ),
}
GROWN = {"Metadata", "Api", "Frame"}  # later versions have more fields at the end
CONSTANTS = {
    "kMetadataExtension": "XLA_FFI_Extension_Metadata",
    "kStringAttribute": "XLA_FFI_AttrType_STRING",
    "(int)ErrorCode::invalid_argument": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    "(int)ErrorCode::resource_exhausted": "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED",
    "(int)ErrorCode::unimplemented": "XLA_FFI_Error_Code_UNIMPLEMENTED",
    "(int)ErrorCode::internal": "XLA_FFI_Error_Code_INTERNAL",
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_our_declarations_are_those_of_jaxlib(tmp_path):
    lines = ['#include "xla/ffi/api/c_api.h"', '#include "xla_ffi_abi.hpp"', "using namespace attile::python::xla;"]
    for ours, (theirs, fields) in STRUCTS.items():
        relation = "<=" if ours in GROWN else "=="
        lines.append(f"static_assert(sizeof({ours}) {relation} sizeof(XLA_FFI_{theirs}));")
        lines += [f"static_assert(offsetof({ours}, {a}) == offsetof(XLA_FFI_{theirs}, {b}));" for a, b in fields.items()]
    lines += [f"static_assert((int){a} == (int){b});" for a, b in CONSTANTS.items()]
    source = tmp_path / "abi.cpp"
    source.write_text("\n".join(lines) + "\n")
    include = [f"-I{BINDINGS}", "-isystem", jax.ffi.include_dir()]
    subprocess.run(["g++", "-std=c++20", "-fsyntax-only", *include, str(source)], check=True)
