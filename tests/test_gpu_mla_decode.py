"""mla_decode on a GPU: every kernel on every case of mla_cases, judged as on the CPU; libraries, index arrays on either side, splits, streams,
graphs replayed with other lengths, the same bits twice."""

import functools

import attile
import gpu
import mla_cases
import numpy as np
import pytest
from attile import FlashMLAConfig, mla_decode
from machine import own_words
from reference_mla import expanded_decode
from tolerance import Judge

pytestmark = pytest.mark.gpu

KERNELS = [row["name"] for row in gpu.CONFIG["kernels"] if row["device"] == "cuda" and row["function"] == "mla_decode"]
CASES = [case for case in mla_cases.SMALL + mla_cases.EDGE + mla_cases.REAL if case.dtype != "float64"]
NOWHERE = 2**30


@functools.cache
def judge_of(case):
    return Judge(expanded_decode(**case.arrays()))


def decode(call, library="torch", host=(), kernel=None, **more):
    """(out, lse) as NumPy arrays; skips with the kernel's own words where it does not take the call."""
    if kernel:
        more["cfg"] = FlashMLAConfig(kernel=kernel)
    try:
        out, lse = mla_decode(**gpu.call_on(call, library, host), return_lse=True, **more)
    except NotImplementedError as error:
        if kernel is None:
            raise
        pytest.skip(own_words(kernel, error))
    return gpu.to_numpy(out), gpu.to_numpy(lse)


@pytest.mark.parametrize("mla_kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kernel_on_every_case(case, mla_kernel):
    judge_of(case).check(*decode(case.arrays(), kernel=mla_kernel))


@pytest.mark.parametrize("case", [case for case in mla_cases.SMALL if case.id.endswith(("-dense", "-everything"))], ids=str)
def test_every_library(case, gpu_library):
    if case.dtype == "float64" or (case.joined and gpu_library == "jax"):
        pytest.skip("no CUDA kernel, or no such strides")
    judge_of(case).check(*decode(case.arrays(), gpu_library))


@pytest.mark.parametrize("splits", [1, 2, 7, 32])
@pytest.mark.parametrize("mla_kernel", KERNELS)
@pytest.mark.parametrize("case", [case for case in CASES if case.id.startswith(("long", "tokens4-", "deepseek-b"))], ids=str)
def test_splits(case, splits, mla_kernel):
    judge_of(case).check(*decode(case.arrays(), kernel=mla_kernel, num_splits=splits))


@pytest.mark.parametrize("block_q", [16, 32, 64])
@pytest.mark.parametrize("case", [case for case in mla_cases.SMALL + mla_cases.REAL if case.dtype in ("bfloat16", "float16")], ids=str)
def test_every_tile_of_the_generic_kernel(case, block_q):
    cfg = FlashMLAConfig(kernel="mla_decode_generic_sm80", block_q=block_q)
    judge_of(case).check(*decode(case.arrays(), cfg=cfg))


# ---- a float8_e4m3 cache ---------------------------------------------------------------------------------------------------

FLOAT8 = [case for case in CASES if case.dtype == "bfloat16" and case.latent % 16 == 0 and not case.id.startswith("long")]


def float8_call(case, scale):
    """The case with its cache rounded to float8_e4m3, and the judge of what that cache stands for: with such scales bfloat16 holds it."""
    import ml_dtypes

    call = case.arrays()
    narrow = call["ckv"].astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    meant = (narrow.astype(np.float32) * (scale or 1)).astype(call["ckv"].dtype)
    return call | {"ckv": narrow, "ckv_scale": scale}, Judge(expanded_decode(**(call | {"ckv": meant})))


def every_float8():
    """A call whose one key holds every number of the format, and those numbers, times 4."""
    import ml_dtypes

    numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    numbers = np.where(np.isnan(numbers), numbers.dtype.type(0), numbers)
    query = np.zeros((1, 1, 1, 256), ml_dtypes.bfloat16)
    call = {"q_nope": query, "q_pe": None, "ckv": numbers[None, None], "kpe": None, "ckv_scale": 4.0, "softmax_scale": 1.0}
    return call, (4 * numbers.astype(np.float32)).astype(ml_dtypes.bfloat16)


def float8_on_gpu(call):
    torch = pytest.importorskip("torch")
    arrays = gpu.call_on({name: x for name, x in call.items() if name != "ckv"}, "torch")
    return arrays | {"ckv": torch.from_numpy(np.array(call["ckv"]).view(np.uint8)).cuda().view(torch.float8_e4m3fn)}


@pytest.mark.parametrize("scale", [0.5, None])
@pytest.mark.parametrize("case", FLOAT8, ids=str)
def test_float8(case, scale):
    call, judge = float8_call(case, scale)
    out, lse = mla_decode(**float8_on_gpu(call), return_lse=True)
    judge.check(gpu.to_numpy(out), gpu.to_numpy(lse))


def test_every_number_of_float8():
    call, expected = every_float8()
    np.testing.assert_array_equal(gpu.to_numpy(mla_decode(**float8_on_gpu(call))).reshape(-1), expected)


@pytest.mark.parametrize("host", [("kv_lens",), ("page_table",), ("kv_lens", "page_table")], ids=str)
def test_index_arrays_on_the_host(host, gpu_library):
    case = mla_cases.MlaCase(id="host", page_size=16, kv_lens=(70, 0, 33), batch=3, seqlen_q=2)
    on_host = decode(case.arrays(), gpu_library, host)
    judge_of(case).check(*on_host)
    for a, b in zip(on_host, decode(case.arrays(), gpu_library), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mla_kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_same_bits_a_hundred_times(mla_kernel, dtype):
    case = mla_cases.MlaCase(id="repeat", dtype=dtype, page_size=16, kv_lens=(3000, 70, 1500), batch=3, heads=20)
    call = gpu.call_on(case.arrays(), "torch")
    cfg = FlashMLAConfig(kernel=mla_kernel)
    try:
        first = gpu.to_numpy(mla_decode(**call, cfg=cfg))
    except NotImplementedError as error:
        pytest.skip(own_words(mla_kernel, error))
    for _ in range(100):
        assert gpu.to_numpy(mla_decode(**call, cfg=cfg)).tobytes() == first.tobytes()


def test_bad_pages_and_lengths_on_the_gpu_read_nothing_out_of_bounds():
    """Run under memcheck too: what comes out is not defined, but the next call must be right."""
    case = mla_cases.MlaCase(id="bad", dtype="bfloat16", page_size=16, kv_lens=(70, 33, 9), batch=3)
    call = case.arrays()
    for wrong in (NOWHERE, -5, -(2**31)):
        decode(call | {"page_table": np.full_like(call["page_table"], wrong)})
    decode(call | {"kv_lens": np.array([NOWHERE, -3, 2**31 - 1])})
    judge_of(case).check(*decode(call))


def test_bad_pages_and_lengths_on_the_host_are_errors():
    call = mla_cases.MlaCase(id="bad", page_size=16, kv_lens=(70, 33)).arrays()
    host = ("kv_lens", "page_table")
    with pytest.raises(ValueError, match=r"page_table\[0, 0\] is out of range"):
        decode(call | {"page_table": np.full_like(call["page_table"], NOWHERE)}, host=host)
    with pytest.raises(ValueError, match=r"kv_lens\[1\] is out of range"):
        decode(call | {"kv_lens": np.array([70, 9999])}, host=host)


def test_float64_is_refused_with_the_reason():
    with pytest.raises(NotImplementedError, match=r"mla_decode_generic_sm80: takes float32, float16 and bfloat16 only: got float64"):
        decode(mla_cases.MlaCase(id="wide", dtype="float64").arrays())


@pytest.mark.parametrize("mla_kernel", KERNELS)
def test_replay_with_new_lengths_and_pages(mla_kernel):
    torch = pytest.importorskip("torch")
    shape = {"dtype": "bfloat16", "page_size": 16, "batch": 3, "latent": 512, "rope": 64}
    first = mla_cases.MlaCase(id="graph", kv_lens=(260, 33, 9), **shape).arrays()
    arrays = gpu.call_on(first, "torch")
    cfg = FlashMLAConfig(kernel=mla_kernel)
    try:
        mla_decode(**arrays, cfg=cfg)
    except NotImplementedError as error:
        pytest.skip(own_words(mla_kernel, error))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = mla_decode(**arrays, return_lse=True, cfg=cfg)
    for lens in ((260, 33, 9), (0, 17, 250), (260, 1, 31)):
        case = mla_cases.MlaCase(id="graph", kv_lens=lens, **shape)
        call = case.arrays(seed=sum(lens))
        for name, x in call.items():
            if not isinstance(x, np.ndarray):
                continue
            new = gpu.to_gpu(x, "torch")
            if name in ("ckv", "kpe"):
                arrays[name][: len(new)].copy_(new[: len(arrays[name])])
            elif name == "page_table":
                arrays[name].fill_(NOWHERE)
                arrays[name][:, : x.shape[1]].copy_(new[:, : arrays[name].shape[1]])
            else:
                arrays[name].copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        Judge(expanded_decode(**call)).check(gpu.to_numpy(out), gpu.to_numpy(lse))


def test_host_lengths_are_refused_during_capture():
    torch = pytest.importorskip("torch")
    call = gpu.call_on(mla_cases.MlaCase(id="graph", page_size=16, kv_lens=(70, 33)).arrays(), "torch", ("kv_lens",))
    mla_decode(**call)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        with pytest.raises(ValueError, match=r"mla_decode: kv_lens must be on the device of the data while a graph is captured"):
            mla_decode(**call)
        torch.zeros(1, device="cuda")  # torch warns of an empty graph


def test_current_stream():
    """Inputs that a side stream is still writing are read after it, and the call waits for nothing."""
    torch = pytest.importorskip("torch")
    case = mla_cases.MlaCase(id="stream", dtype="bfloat16", page_size=16, kv_lens=(260, 33))
    late = gpu.call_on(case.arrays(), "torch")
    mla_decode(**late)
    data = [name for name, x in late.items() if torch.is_tensor(x) and x.is_floating_point()]
    arrays = late | {name: torch.full_like(late[name], float("nan")) for name in data}
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(gpu.SLOW_CLOCKS)
        for name in data:
            arrays[name].copy_(late[name])
        out, lse = mla_decode(**arrays, return_lse=True)
        done = side.record_event()
    assert not done.query(), "the call waited for the GPU"
    side.synchronize()
    judge_of(case).check(gpu.to_numpy(out), gpu.to_numpy(lse))


@pytest.mark.parametrize("mla_kernel", KERNELS)
def test_a_cache_of_more_than_2_to_31_elements(mla_kernel):
    """The last pages of a cache whose offsets need 64 bits."""
    torch = pytest.importorskip("torch")
    case = mla_cases.MlaCase(id="far", dtype="bfloat16", page_size=64, kv_lens=(200, 65), latent=512, rope=64)
    call = case.arrays()
    pages = 2**31 // (64 * 512) + len(call["ckv"])
    if torch.cuda.mem_get_info()[0] < pages * 64 * 576 * 2 * 1.2:
        pytest.skip("too little memory")
    arrays = gpu.call_on(call, "torch")
    for name in ("ckv", "kpe"):
        x = arrays[name]
        arrays[name] = torch.empty((pages, *x.shape[1:]), dtype=x.dtype, device="cuda")
        arrays[name][-len(x) :] = x
    used = torch.arange(arrays["page_table"].shape[1], device="cuda")[None] * 64 < arrays["kv_lens"][:, None]
    arrays["page_table"] = torch.where(used, arrays["page_table"] + (pages - len(call["ckv"])), NOWHERE)
    try:
        out, lse = mla_decode(**arrays, return_lse=True, cfg=FlashMLAConfig(kernel=mla_kernel))
    except NotImplementedError as error:
        pytest.skip(own_words(mla_kernel, error))
    judge_of(case).check(gpu.to_numpy(out), gpu.to_numpy(lse))


def test_explain_names_kernel_and_plan():
    case = mla_cases.MlaCase(id="explain", dtype="bfloat16", kv_lens=(70, 33), page_size=16)
    report = attile.explain(mla_decode, **gpu.call_on(case.arrays(), "torch"), cfg=FlashMLAConfig(kernel="mla_decode_generic_sm80"))
    assert (report["kernel"], report["isa"]) == ("mla_decode_generic_sm80", "sm80")
    assert report["plan"]["block_q"] == 16
