"""Calls on CUDA arrays without a GPU: libattile_cuda.so is replaced by tests/cpp/fake_cuda.cpp and CuPy by a few lines, so that everything
between them is as in earnest: devices, streams, scratch, index arrays on either side, errors."""

import subprocess

import pytest
from other_cuda import COMPILER, NEEDS, ROOT, copy_package, run
from producers import needs_versions

pytestmark = [needs_versions, *NEEDS]

START = """
import numpy as np
import fake_cupy
from fake_cupy import ndarray, on
import attile
from calls import cu, good, packed

def check(call, host=(), id=0, function=attile.flash_attention):
    out = function(**on(call, host, id))
    assert type(out) is ndarray and out.id == id
    np.testing.assert_allclose(out.get(), function(**{n: x for n, x in call.items() if n != "out"}), rtol=1e-5, atol=1e-6)

def error(call, **more):
    try:
        attile.flash_attention(**on(call, **more))
    except Exception as e:
        print(type(e).__name__, e)
"""


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """A copy of the installed package with the fake library in it."""
    folder = tmp_path_factory.mktemp("fake")
    includes = [f"-I{ROOT / path}" for path in ("src", "src/cpp", "src/cpp/include")]
    source = str(ROOT / "tests/cpp/fake_cuda.cpp")
    command = [COMPILER, "-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", *includes, source]
    subprocess.run([*command, "-o", str(copy_package(folder))], check=True)
    return folder


def test_device_and_stream_of_the_arrays(package):
    assert run(package, START + "check(good())\ncheck(good(), id=1)") == ["device 0 of 2, stream 0x50", "device 1 of 2, stream 0x51"]


def test_index_arrays_on_either_side(package):
    script = """
call = packed(query=good()["query"].reshape(10, 4, 16)[:9], key=np.resize(good()["key"], (11, 2, 16)), value=np.resize(good()["value"], (11, 2, 8)))
call |= {"q_segment_ids": np.arange(9) // 4, "kv_segment_ids": np.arange(22)[::2].astype(np.int32) // 8}
indices = [name for name in call if "cum" in name or "ids" in name]
for host in ((), indices, indices[:1], indices[1:]):
    check(call, host)
rank_4 = good() | {"cum_seqlens_k": cu(0, 3, 9)[::1], "q_segment_ids": np.zeros((2, 10), int)[:, ::2], "kv_segment_ids": np.zeros((2, 7), np.int32)}
check(rank_4)
check(rank_4, ("cum_seqlens_k", "q_segment_ids", "kv_segment_ids"))
print(attile.explain(attile.flash_attention, **on(rank_4))["plan"]["block_k"], "known to the host:",
      attile.explain(attile.flash_attention, **on(rank_4, ("cum_seqlens_k",)))["plan"]["block_k"])
"""
    assert run(package, START + script)[-1] == "7 known to the host: 6"


def test_caches(package):
    script = """
kv = attile.flash_attention_with_kvcache
rng = np.random.default_rng(0)
caches = [rng.standard_normal((5, 4, 2, 16)).astype(np.float32) for _ in range(2)]
table = np.array([[4, 0, 9999], [2, 3, 1]])
call = {"q": good()["query"][:, :1], "k_cache": caches[0], "v_cache": caches[1], "page_table": table, "cache_seqlens": cu(7, 10)}
for host in ((), ("page_table",), ("cache_seqlens",), ("page_table", "cache_seqlens")):
    check(call, host, function=kv)
try:
    kv(**on(call | {"cache_seqlens": cu(7, 99)}, ("page_table", "cache_seqlens")))
except ValueError as e:
    print(e)
"""
    assert run(package, START + script)[-1].startswith("flash_attention_with_kvcache: cache_seqlens[1] must be from 0 to")


def test_errors_of_cuda_name_the_call_and_leave_nothing_behind(package):
    script = """
import os
os.environ["FAKE_CUDA_FAIL"] = "1"
error(good(), id=1)
del os.environ["FAKE_CUDA_FAIL"]
check(good(), id=1)
error(good(), id=2)
fake_cupy.limit = 10
error(good())
fake_cupy.limit = None
check(good())
os.environ["FAKE_CUDA_CAPTURING"] = "1"
error(packed(), host=("cum_seqlens_q",))
check(good())
error(good("float64"))
try:
    attile.merge_states(*[ndarray(np.ones(s, np.float32)) for s in ((1, 1, 1, 1), (1, 1, 1)) * 2])
except RuntimeError as e:
    print(e)
"""
    lines = [line for line in run(package, START + script) if not line.startswith("device")]
    assert lines == [
        "RuntimeError flash_attention: on cuda:1 (Fake 1), launching the fake kernel: out of fakes",
        "RuntimeError flash_attention: the arrays are on cuda:2, but the driver knows 2 GPUs",
        "MemoryError flash_attention: memory on cuda:0 ran out: expected 1280 bytes, got an error of the library: the pool is dry",
        "ValueError flash_attention: cum_seqlens_q must be on the device of the data while a graph is captured: expected cuda:0, got an array in host memory",
        "NotImplementedError flash_attention: no kernel takes this problem:",
        "  forward_fake: takes float32 only",
        "merge_states: on cuda:0 (Fake 0), launching the fake merge: out of fakes",
    ]


def test_no_driver(package):
    script = """
error(good())
print(attile.show_config()["cuda_missing"])
os = __import__("os")
os.environ["FAKE_CUDA_COUNT"] = "1"
check(good())
print([gpu["name"] for gpu in attile.show_config()["gpus"]])
"""
    lines = run(package, START + script, FAKE_CUDA_COUNT="0")
    missing = "no driver was found; a driver is needed"
    assert lines == [
        f"RuntimeError flash_attention: the arrays are on cuda:0, but {missing}",
        missing,
        "device 0 of 1, stream 0x50",
        "['Fake 0']",
    ]
