"""BatchMLAPagedAttentionWrapper and append_paged_mla_kv_cache on a GPU: index arrays on either side, libraries, graphs whose plan changes
between replays, what breaks a contract on the GPU."""

import cases
import gpu
import mla_cases
import numpy as np
import pytest
from attile.mla import BatchMLAPagedAttentionWrapper, append_paged_mla_kv_cache
from reference_mla import expanded_decode
from test_mla_wrapper import CASES, PLAN, append_problem, flat_pages
from tolerance import Judge

pytestmark = pytest.mark.gpu

INDICES = ("qo_indptr", "kv_indptr", "kv_indices", "kv_len_arr")
GPU_CASES = [case for case in CASES if case.dtype != "float64"]


def arguments(case, extra=(2**30,)):
    """Index arrays and settings of plan(), arrays of run(); as NumPy arrays."""
    call = case.arrays(seed=sum(case.kv_lens))
    kv_indptr, kv_indices = flat_pages(call["page_table"], call["kv_lens"], case.page_size, extra)
    qo_indptr = np.arange(case.batch + 1, dtype=np.int32) * case.seqlen_q
    indices = dict(zip(INDICES, (qo_indptr, kv_indptr, kv_indices, call["kv_lens"]), strict=True))
    causal = case.options.get("causal", True)
    settings = (case.heads, case.latent, case.rope, case.page_size, causal, call["softmax_scale"], case.dtype, case.dtype)
    arrays = {name: None if call[name] is None else call[name].reshape(-1, *call[name].shape[2:]) for name in ("q_nope", "q_pe")}
    arrays |= {"ckv_cache": call["ckv"], "kpe_cache": call["kpe"]}
    return indices, dict(zip(PLAN, settings, strict=True)), arrays, Judge(expanded_decode(**call))


def check(case, judge, out, lse):
    """out [total,H,L] and lse [total,H], natural."""
    out, lse = gpu.to_numpy(out), gpu.to_numpy(lse)
    shape = (case.batch, case.seqlen_q, case.heads)
    judge.check(out.reshape(*shape, case.latent), lse.reshape(shape).transpose(0, 2, 1))


@pytest.mark.parametrize("indices_on", ["host", "gpu"])
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_cases(case, indices_on):
    indices, settings, arrays, judge = arguments(case)
    wrapper = BatchMLAPagedAttentionWrapper()
    wrapper.plan(**(gpu.call_on(indices, "torch") if indices_on == "gpu" else indices), **settings)
    run = gpu.call_on(arrays, "torch")
    for _ in range(2):
        check(case, judge, *wrapper.run(**run, return_lse=True, return_lse_base_on_e=True))
    _, binary = wrapper.run(**run, return_lse=True)
    np.testing.assert_allclose(gpu.to_numpy(binary) * np.log(2), gpu.to_numpy(wrapper.run(**run, return_lse=True, return_lse_base_on_e=True)[1]), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_library(dtype, gpu_library):
    case = mla_cases.MlaCase(id="library", batch=3, heads=5, page_size=4, kv_lens=(30, 0, 9), dtype=dtype)
    indices, settings, arrays, judge = arguments(case)
    wrapper = BatchMLAPagedAttentionWrapper()
    wrapper.plan(**indices, **settings)
    run = gpu.call_on(arrays, gpu_library)
    out, lse = wrapper.run(**run, return_lse=True, return_lse_base_on_e=True)
    assert type(out) is type(run["q_nope"])
    check(case, judge, out, lse)


def test_sequences_of_different_lengths_and_rows_behind_them():
    """1, 0, 5 and 2 queries; two rows belong to no sequence."""
    case = mla_cases.MlaCase(id="mixed", batch=4, heads=20, page_size=4, kv_lens=(30, 7, 90, 2), dtype="bfloat16")
    counts = (1, 0, 5, 2)
    call = case.arrays()
    rng = np.random.default_rng(5)
    q_nope, q_pe = (rng.standard_normal((10, 20, n)).astype(call["ckv"].dtype) for n in (64, 8))
    kv_indptr, kv_indices = flat_pages(call["page_table"], call["kv_lens"], 4)
    wrapper = BatchMLAPagedAttentionWrapper()
    indptr = np.cumsum((0, *counts))
    wrapper.plan(indptr, kv_indptr, kv_indices, call["kv_lens"], 20, 64, 8, 4, True, 0.1, "bfloat16", "bfloat16")
    run = gpu.call_on({"q_nope": q_nope, "q_pe": q_pe, "ckv_cache": call["ckv"], "kpe_cache": call["kpe"]}, "torch")
    out, lse = (gpu.to_numpy(x) for x in wrapper.run(**run, return_lse=True, return_lse_base_on_e=True))
    for b, n in enumerate(counts):
        rows = slice(indptr[b], indptr[b + 1])
        one = {"q_nope": q_nope[None, rows], "q_pe": q_pe[None, rows], "ckv": call["ckv"], "kpe": call["kpe"], "softmax_scale": 0.1}
        one |= {"kv_lens": call["kv_lens"][b : b + 1], "page_table": call["page_table"][b : b + 1]}
        if n:
            Judge(expanded_decode(**one)).check(out[None, rows], lse[None, rows].transpose(0, 2, 1))
    assert (out[8:] == 0).all()
    assert np.isneginf(lse[8:]).all()


@pytest.mark.parametrize("given_on", ["host", "gpu"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_replay_with_a_new_plan(dtype, given_on):
    """plan() writes into the constructor's buffers; the captured run reads them."""
    torch = pytest.importorskip("torch")
    shape = {"batch": 3, "heads": 16, "page_size": 16, "dtype": dtype, "latent": 128, "rope": 64}
    buffers = {name: torch.zeros(n, dtype=torch.int32, device="cuda") for name, n in zip(INDICES, (4, 4, 64, 3), strict=True)}
    wrapper = BatchMLAPagedAttentionWrapper(use_cuda_graph=True, **buffers)
    cache = {name: torch.full((40, 16, n), float("nan"), dtype=getattr(torch, dtype), device="cuda") for name, n in (("ckv_cache", 128), ("kpe_cache", 64))}
    queries = {name: torch.zeros((3, 16, n), dtype=getattr(torch, dtype), device="cuda") for name, n in (("q_nope", 128), ("q_pe", 64))}
    graph = torch.cuda.CUDAGraph()
    for i, lens in enumerate(((260, 33, 9), (0, 17, 250), (100, 1, 300))):
        case = mla_cases.MlaCase(id="graph", kv_lens=lens, **shape)
        indices, settings, arrays, judge = arguments(case, extra=())
        wrapper.plan(**(gpu.call_on(indices, "torch") if given_on == "gpu" else indices), **settings)
        for name, x in gpu.call_on(arrays, "torch").items():
            (queries[name] if name in queries else cache[name][: len(x)]).copy_(x)
        if i == 0:
            wrapper.run(**queries, **cache)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                out, lse = wrapper.run(**queries, **cache, return_lse=True, return_lse_base_on_e=True)
        graph.replay()
        torch.cuda.synchronize()
        check(case, judge, out, lse)


def test_a_plan_of_host_arrays_is_refused_during_capture():
    torch = pytest.importorskip("torch")
    case = GPU_CASES[0]
    indices, settings, arrays, _ = arguments(case)
    run = gpu.call_on(arrays, "torch")
    wrapper = BatchMLAPagedAttentionWrapper()
    wrapper.plan(**indices, **settings)
    wrapper.run(**run)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        with pytest.raises(ValueError, match=r"plan must be on the device while a graph is captured"):
            wrapper.run(**run)
        torch.zeros(1, device="cuda")  # torch warns of an empty graph


def test_plan_waits_for_nothing():
    torch = pytest.importorskip("torch")
    case = GPU_CASES[0]
    indices, settings, arrays, judge = arguments(case)
    run, given = gpu.call_on(arrays, "torch"), gpu.call_on(indices, "torch")
    wrapper = BatchMLAPagedAttentionWrapper()
    wrapper.plan(**given, **settings)
    wrapper.run(**run)
    torch.cuda.synchronize()
    torch.cuda._sleep(gpu.SLOW_CLOCKS)
    wrapper.plan(**given, **settings)
    out, lse = wrapper.run(**run, return_lse=True, return_lse_base_on_e=True)
    event = torch.cuda.Event()
    event.record()
    assert not event.query(), "plan or run waited for the GPU"
    torch.cuda.synchronize()
    check(case, judge, out, lse)


def test_streams():
    """A plan of host arrays serves runs on two streams."""
    torch = pytest.importorskip("torch")
    case = GPU_CASES[1]
    indices, settings, arrays, judge = arguments(case)
    run = gpu.call_on(arrays, "torch")
    wrapper = BatchMLAPagedAttentionWrapper()
    wrapper.plan(**indices, **settings)
    torch.cuda.synchronize()
    results = []
    for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            results.append(wrapper.run(**run, return_lse=True, return_lse_base_on_e=True))
    torch.cuda.synchronize()
    for result in results:
        check(case, judge, *result)


def test_workspace():
    torch = pytest.importorskip("torch")
    case = mla_cases.MlaCase(id="workspace", batch=1, heads=16, page_size=16, kv_lens=(3000,), dtype="bfloat16")
    indices, settings, arrays, judge = arguments(case)
    run = gpu.call_on(arrays, "torch")
    small = BatchMLAPagedAttentionWrapper(torch.zeros(16, dtype=torch.uint8, device="cuda"))
    small.plan(**indices, **settings)
    with pytest.raises(ValueError, match=r"float_workspace_buffer is too small: expected at least \d+ bytes, got 16$") as error:
        small.run(**run)
    needed = int(str(error.value).split("at least ")[1].split()[0])
    exact = BatchMLAPagedAttentionWrapper(torch.full((needed + 64,), 255, dtype=torch.uint8, device="cuda"))
    exact.plan(**indices, **settings)
    check(case, judge, *exact.run(**run, return_lse=True, return_lse_base_on_e=True))
    wrong = BatchMLAPagedAttentionWrapper(torch.zeros(16, dtype=torch.uint8))
    wrong.plan(**indices, **settings)
    with pytest.raises(ValueError, match=r"float_workspace_buffer must be on the device of q_nope: expected cuda:0, got cpu$"):
        wrong.run(**run)


def test_bad_indices_on_the_gpu_read_nothing_out_of_bounds():
    """Run under memcheck too: what comes out is not defined, but the next call must be right."""
    case = GPU_CASES[0]
    indices, settings, arrays, judge = arguments(case)
    run = gpu.call_on(arrays, "torch")
    wrapper = BatchMLAPagedAttentionWrapper()
    for name in INDICES:
        for wrong in (2**30, -7):
            wrapper.plan(**gpu.call_on(indices | {name: np.full_like(indices[name], wrong)}, "torch"), **settings)
            wrapper.run(**run)
    wrapper.plan(**gpu.call_on(indices, "torch"), **settings)
    check(case, judge, *wrapper.run(**run, return_lse=True, return_lse_base_on_e=True))


def test_index_arrays_on_two_sides_are_refused():
    indices, settings, _, _ = arguments(GPU_CASES[0])
    mixed = gpu.call_on(indices, "torch", ("kv_len_arr",))
    with pytest.raises(ValueError, match=r"kv_len_arr must be on the device of qo_indptr: expected cuda:0, got cpu:0$"):
        BatchMLAPagedAttentionWrapper().plan(**mixed, **settings)


# ---- append ----------------------------------------------------------------------------------------------------------------

DATA = (0, 1, 4, 5)  # of the arguments; the others are index arrays


@pytest.mark.parametrize("indices_on", ["host", "gpu"])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_append(dtype, joined, indices_on, gpu_library):
    given, expected = append_problem(dtype, joined)
    arrays = [gpu.to_gpu(x, gpu_library) if i in DATA or indices_on == "gpu" else x for i, x in enumerate(given)]
    result = append_paged_mla_kv_cache(*arrays)
    got = result if gpu_library == "jax" else arrays[4:6]
    assert gpu_library == "jax" or result is None
    for x, e in zip(got, expected, strict=True):
        assert gpu.to_numpy(x).tobytes() == e.tobytes()


@pytest.mark.parametrize("indices_on", ["host", "gpu"])
def test_append_of_many_tokens(indices_on):
    rng = np.random.default_rng(0)
    lens, size, dims = (1000, 1, 700), 16, (512, 64)
    counts = [-(-n // size) for n in lens]
    pages = rng.permutation(sum(counts) + 5)[: sum(counts)]
    indptr, last = np.cumsum((0, *counts)), np.array([(n - 1) % size + 1 for n in lens])
    batch, positions = np.repeat(np.arange(3), lens), np.concatenate([np.arange(n) for n in lens])
    tokens = [rng.standard_normal((sum(lens), n)).astype(np.float16) for n in dims]
    caches = [np.full((sum(counts) + 5, size, n), 7, np.float16) for n in dims]
    given = (*tokens, batch, positions, *caches, pages, indptr, last)
    arrays = [gpu.to_gpu(x, "torch") if i in DATA or indices_on == "gpu" else x for i, x in enumerate(given)]
    append_paged_mla_kv_cache(*arrays)
    for x, cache, rows in zip(arrays[4:6], caches, tokens, strict=True):
        cache[pages[indptr[batch] + positions // size], positions % size] = rows
        np.testing.assert_array_equal(gpu.to_numpy(x), cache)


def test_append_skips_what_breaks_the_contract_on_the_gpu():
    given, expected = append_problem()
    for i in (2, 3, 6, 7):
        for wrong in (2**30, -7):
            arrays = [gpu.to_gpu(np.full_like(x, wrong) if n == i else x, "torch") for n, x in enumerate(given)]
            append_paged_mla_kv_cache(*arrays)
    arrays = [gpu.to_gpu(x, "torch") for x in given]
    append_paged_mla_kv_cache(*arrays)
    np.testing.assert_array_equal(gpu.to_numpy(arrays[4]), expected[0])


def test_append_is_captured():
    torch = pytest.importorskip("torch")
    given, expected = append_problem()
    arrays = [gpu.to_gpu(x, "torch") for x in given]
    before = [x.clone() for x in arrays[4:6]]
    append_paged_mla_kv_cache(*arrays)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        append_paged_mla_kv_cache(*arrays)
    for x, old in zip(arrays[4:6], before, strict=True):
        x.copy_(old)
    graph.replay()
    for x, e in zip(arrays[4:6], expected, strict=True):
        np.testing.assert_array_equal(gpu.to_numpy(x), e)
