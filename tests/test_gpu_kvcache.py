"""flash_attention_with_kvcache on a GPU: dense and paged caches, lengths and pages on either side, judged as flash_attention is."""

import cases
import gpu
import numpy as np
import pytest
from attile import flash_attention_with_kvcache
from machine import own_words
from tolerance import Judge

pytestmark = pytest.mark.gpu

HEADS_Q, HEADS_K, DIM, DIM_V = 8, 2, 64, 48
NOWHERE = 2**30


def problem(dtype, lens, seqlen_q=1, page_size=None, seed=0, shape=(HEADS_Q, HEADS_K, DIM, DIM_V), **options):
    """A call, and the same as a call of flash_attention. Rows past the lengths and unused pages are NaN, their numbers nonsense."""
    heads_q, heads_k, dim, dim_v = shape
    rng = np.random.default_rng(seed)
    dtype = cases.numpy_dtype(dtype)
    batch, longest = len(lens), max(lens)
    query, key, value = (
        rng.standard_normal((batch, n, heads, d)).astype(dtype)
        for n, heads, d in ((seqlen_q, heads_q, dim), (longest, heads_k, dim), (longest, heads_k, dim_v))
    )
    for b, length in enumerate(lens):
        key[b, length:] = value[b, length:] = np.nan
    plain = {"query": query, "key": key, "value": value, "cum_seqlens_k": np.cumsum((0, *lens)), "causal": True}
    plain |= {"causal_alignment": "bottom_right"} | options
    call = {"q": query, "k_cache": key, "v_cache": value, "cache_seqlens": np.array(lens, np.int32)} | options
    if page_size:
        used = [-(-length // page_size) for length in lens]
        pages = sum(used) + 3
        order = rng.permutation(pages)
        table = np.full((batch, max(used) + 2), NOWHERE, np.int32)
        caches = [np.full((pages, page_size, heads_k, d), np.nan, dtype) for d in (dim, dim_v)]
        next_page = iter(order)
        for b, length in enumerate(lens):
            for i in range(used[b]):
                table[b, i] = next(next_page)
                for cache, dense in zip(caches, (key, value), strict=True):
                    rows = dense[b, i * page_size : min((i + 1) * page_size, length)]
                    cache[table[b, i], : len(rows)] = rows
        call |= {"k_cache": caches[0], "v_cache": caches[1], "page_table": table}
    return call, plain


def run(call, library, host=(), **more):
    try:
        out, lse = flash_attention_with_kvcache(**gpu.call_on(call, library, host), return_lse=True, **more)
    except NotImplementedError as error:
        pytest.skip(own_words(gpu.KERNELS[0], error))
    return gpu.to_numpy(out), gpu.to_numpy(lse)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("page_size", [None, 1, 7, 64])
@pytest.mark.parametrize("seqlen_q", [1, 3, 70])
@pytest.mark.parametrize("lens", [(1, 130, 64, 0), (700,)])
def test_caches(dtype, page_size, seqlen_q, lens):
    call, plain = problem(dtype, lens, seqlen_q, page_size)
    Judge(plain).check(*run(call, "torch"))


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("options", [{"sliding_window": (40, 0)}, {"logits_soft_cap": 5.0}, {"softmax_scale": 0.3, "sliding_window": (200, -1)}], ids=str)
def test_options(page_size, options):
    call, plain = problem("bfloat16", (33, 260, 5), 2, page_size, **options)
    Judge(plain).check(*run(call, "torch"))


@pytest.mark.parametrize("splits", [1, 2, 5, 32])
@pytest.mark.parametrize("page_size", [None, 16])
def test_splits(splits, page_size):
    call, plain = problem("bfloat16", (1000, 17, 513), 1, page_size)
    Judge(plain).check(*run(call, "torch", num_splits=splits))


@pytest.mark.parametrize("host", [("cache_seqlens",), ("page_table",), ("cache_seqlens", "page_table")], ids=str)
def test_index_arrays_on_the_host(host, gpu_library):
    call, plain = problem("float32", (33, 260, 0), 2, 16)
    on_host = run(call, gpu_library, host)
    Judge(plain).check(*on_host)
    for a, b in zip(on_host, run(call, gpu_library), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_pages_and_lengths_on_the_gpu_read_nothing_out_of_bounds():
    """Run under memcheck too: what comes out is not defined, but the next call must be right."""
    call, plain = problem("bfloat16", (33, 260, 9), 2, 16)
    for name, wrong in (("page_table", np.full_like(call["page_table"], NOWHERE)), ("page_table", np.full_like(call["page_table"], -5))):
        run(call | {name: wrong, "cache_seqlens": np.array([33, 260, 9])}, "torch")
    run(call | {"cache_seqlens": np.array([NOWHERE, -3, 2**31 - 1])}, "torch")
    Judge(plain).check(*run(call, "torch"))


def test_bad_pages_and_lengths_on_the_host_are_errors():
    call, _ = problem("bfloat16", (33, 260, 9), 2, 16)
    host = ("cache_seqlens", "page_table")
    with pytest.raises(ValueError, match=r"page_table\[0, 0\] must be a page of k_cache"):
        run(call | {"page_table": np.full_like(call["page_table"], NOWHERE)}, "torch", host)
    with pytest.raises(ValueError, match=r"cache_seqlens\[1\] must be from 0 to"):
        run(call | {"cache_seqlens": np.array([33, 9999, 9])}, "torch", host)


def test_replay_with_new_lengths_and_pages():
    torch = pytest.importorskip("torch")
    first, _ = problem("bfloat16", (33, 260, 9), 1, 16)
    arrays = gpu.call_on(first, "torch")
    flash_attention_with_kvcache(**arrays)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = flash_attention_with_kvcache(**arrays, return_lse=True)
    for lens in ((33, 260, 9), (0, 17, 250), (260, 1, 31)):
        call, plain = problem("bfloat16", lens, 1, 16, seed=sum(lens))
        for name in arrays:
            x = torch.as_tensor(gpu.to_gpu(call[name], "torch"))
            if name in ("k_cache", "v_cache"):
                arrays[name][: min(len(x), len(arrays[name]))].copy_(x[: len(arrays[name])])
            elif name == "page_table":
                arrays[name].fill_(NOWHERE)
                arrays[name][:, : x.shape[1]].copy_(x[:, : arrays[name].shape[1]])
            else:
                arrays[name].copy_(x)
        graph.replay()
        torch.cuda.synchronize()
        Judge(plain).check(gpu.to_numpy(out), gpu.to_numpy(lse))
