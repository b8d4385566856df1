"""decode_sm90 on a Hopper GPU: every dim, number of rows and kind of page, beside the generic kernel and judged by the error model; NaN in
rows and pages that are not used; the same bits again and again; replays with other lengths; what it says when it refuses."""

import functools

import cases
import gpu
import numpy as np
import pytest
from attile import FlashAttentionConfig, explain, flash_attention, flash_attention_with_kvcache
from machine import own_words
from test_gpu_kvcache import problem
from tolerance import Judge

KERNEL = "decode_sm90"


def on_hopper():
    return any(row["name"] == KERNEL and row["available"] for row in gpu.CONFIG["kernels"])


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not on_hopper(), reason="needs a GPU of compute capability 9.0")]

GROUPED = {64: (16, 2, 64, 64), 128: (64, 8, 128, 128), 256: (8, 1, 256, 256)}
MANY = tuple(i * 37 % 90 for i in range(300))  # more units than multiprocessors
NEAR = tuple(150 + i % 7 for i in range(256))  # nearly as many as blocks, of one number of tiles: none is split


def sinks(heads, number=1):
    return np.random.default_rng(5).standard_normal((heads, number)).astype(np.float32)


def run(call, kernel=KERNEL, **more):
    """(out, lse) as NumPy arrays; the memory of out was NaN."""
    arrays = gpu.call_on(call, "torch")
    out = gpu.to_gpu(np.full((*call["q"].shape[:3], call["v_cache"].shape[3]), np.nan, call["q"].dtype), "torch")
    out, lse = flash_attention_with_kvcache(**arrays, return_lse=True, out=out, cfg=FlashAttentionConfig(kernel=kernel), **more)
    return gpu.to_numpy(out), gpu.to_numpy(lse)


@pytest.mark.parametrize("page_size", [None, 1, 2, 7, 8, 16, 48, 64, 256])
@pytest.mark.parametrize("dim", GROUPED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_pages(dtype, dim, page_size):
    call, plain = problem(dtype, (1, 700, 64, 0, 129), 1, page_size, shape=GROUPED[dim])
    judge = Judge(plain)
    judge.check(*run(call))
    judge.check(*run(call, "forward_generic_sm80"))


@pytest.mark.parametrize("lens", [(9000,), (3000, 1, 2999), MANY, NEAR], ids=["one", "three", "many", "near"])
@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("dim", GROUPED)
def test_splits(dim, page_size, lens):
    call, plain = problem("bfloat16", lens, 1, page_size, shape=(8, 1, dim, dim))
    Judge(plain).check(*run(call))


ROWS = [(1, 1, 1), (6, 3, 1), (4, 4, 3), (8, 1, 2), (17, 1, 1), (8, 2, 8), (33, 1, 1), (16, 2, 8), (1, 1, 64), (64, 1, 1)]


@pytest.mark.parametrize(("heads_q", "heads_k", "seqlen_q"), ROWS)
@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("dim", GROUPED)
def test_rows(dim, page_size, heads_q, heads_k, seqlen_q):
    call, plain = problem("bfloat16", (700, 130, 65), seqlen_q, page_size, shape=(heads_q, heads_k, dim, dim))
    Judge(plain).check(*run(call))


@pytest.mark.parametrize(
    "options",
    [
        {"causal": False},
        {"sliding_window": (40, 0)},
        {"sliding_window": (200, -1), "softmax_scale": 0.3},
        {"sliding_window": (5, 3), "causal": False},
        {"logits_soft_cap": 5.0},
        {"softmax_scale": -0.2},
        {"softmax_scale": 0.0},
        {"softmax_aux": sinks(16)},
        {"softmax_aux": sinks(16, 3), "logits_soft_cap": 5.0, "sliding_window": (100, 0)},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("page_size", [None, 7, 16])
@pytest.mark.parametrize("seqlen_q", [1, 3])
def test_options(seqlen_q, page_size, options):
    call, plain = problem("bfloat16", (33, 700, 5, 0), seqlen_q, page_size, shape=(16, 2, 128, 128), **options)
    Judge(plain).check(*run(call))


def test_more_queries_than_keys():
    call, plain = problem("bfloat16", (3, 0, 40), 5, 16, shape=(16, 2, 128, 128))
    Judge(plain).check(*run(call))


@pytest.mark.parametrize("seqlen_k", [40, 1000])
@pytest.mark.parametrize("alignment", ["top_left", "bottom_right"])
def test_flash_attention(alignment, seqlen_k):
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((3, n, h, 64)).astype(cases.numpy_dtype("float16")) for n, h in ((4, 8), (seqlen_k, 2), (seqlen_k, 2)))
    call = {"query": q, "key": k, "value": v, "causal": True, "causal_alignment": alignment}
    out, lse = flash_attention(**gpu.call_on(call, "torch"), return_lse=True, cfg=FlashAttentionConfig(kernel=KERNEL))
    Judge(call).check(gpu.to_numpy(out), gpu.to_numpy(lse))


def test_strides():
    """Caches with heads before tokens, queries out of a wider array."""
    call, plain = problem("bfloat16", (300, 77), 1, shape=(8, 2, 64, 64))
    for name in ("k_cache", "v_cache"):
        call[name] = np.ascontiguousarray(call[name].transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    wide = np.zeros((2, 1, 8, 66), call["q"].dtype)
    wide[..., :64] = call["q"]
    call["q"] = wide[..., :64]
    Judge(plain).check(*run(call))


@pytest.mark.parametrize("page_size", [None, 1, 16])
@pytest.mark.parametrize("dim", GROUPED)
@pytest.mark.parametrize("lens", [(9000,), MANY], ids=["one", "many"])
def test_the_same_bits_a_hundred_times(lens, dim, page_size):
    import torch

    call, _ = problem("bfloat16", lens, 1, page_size, shape=(16, 2, dim, dim))
    again = functools.partial(flash_attention_with_kvcache, **gpu.call_on(call, "torch"), return_lse=True, cfg=FlashAttentionConfig(kernel=KERNEL))
    first = again()
    for _ in range(100):
        for a, b in zip(first, again(), strict=True):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_bad_pages_and_lengths_read_nothing_out_of_bounds():
    """Run under memcheck too: what comes out is not defined, but the next call must be right."""
    call, plain = problem("bfloat16", (33, 260, 9), 1, 16, shape=(8, 2, 64, 64))
    for wrong in (2**30, -5):
        run(call | {"page_table": np.full_like(call["page_table"], wrong)})
    run(call | {"cache_seqlens": np.array([2**30, -3, 2**31 - 1])})
    Judge(plain).check(*run(call))


def test_replay_with_new_lengths():
    import torch

    lens = ((2000, 3), (0, 70), (1, 1999), (64, 64))
    call, _ = problem("bfloat16", (2000, 2000), 1, shape=(16, 2, 128, 128))
    arrays = gpu.call_on(call, "torch")
    config = FlashAttentionConfig(kernel=KERNEL)
    flash_attention_with_kvcache(**arrays, cfg=config)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = flash_attention_with_kvcache(**arrays, return_lse=True, cfg=config)
    for now in lens:
        arrays["cache_seqlens"].copy_(torch.tensor(now, dtype=torch.int32))
        graph.replay()
        torch.cuda.synchronize()
        plain = {"query": call["q"], "key": call["k_cache"], "value": call["v_cache"], "cum_seqlens_k": np.cumsum((0, *now)), "causal": True}
        Judge(plain | {"causal_alignment": "bottom_right"}).check(gpu.to_numpy(out), gpu.to_numpy(lse))


@pytest.mark.parametrize(
    ("shape", "more", "reason"),
    [
        ((8, 2, 64, 48), {}, "takes head dims of 64, 128 and 256"),
        ((8, 2, 96, 96), {}, "takes head dims of 64, 128 and 256"),
        ((65, 1, 64, 64), {}, "takes at most 64 query rows"),
        ((8, 2, 64, 64), {"num_splits": 2}, "splits by the lengths"),
    ],
)
def test_refusals(shape, more, reason):
    call, _ = problem("bfloat16", (33, 20), 1, 16, shape=shape)
    with pytest.raises(NotImplementedError) as error:
        run(call, **more)
    assert reason in own_words(KERNEL, error.value)


def test_explain():
    call, _ = problem("bfloat16", (33, 20), 1, 16, shape=GROUPED[128])
    told = explain(flash_attention_with_kvcache, **gpu.call_on(call, "torch"))
    assert told["kernel"] == KERNEL
