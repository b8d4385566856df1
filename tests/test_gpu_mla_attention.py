"""mla_attention on a GPU: every CUDA kernel and both strategies on every case, judged by the error model of the CPU's tests; every library;
problems of several pieces; streams, graphs, lengths on the device; memory."""

import functools

import attile
import cases
import gpu
import mla_attention_cases
import numpy as np
import pytest
from attile import FlashMLAConfig, explain, flash_attention, mla_attention
from machine import own_words
from mla_attention_cases import MlaAttentionCase
from tolerance_mla import Judge

pytestmark = pytest.mark.gpu

CASES = mla_attention_cases.SMALL + mla_attention_cases.EDGE + mla_attention_cases.REAL
SMALL = [case for case in mla_attention_cases.SMALL if case.dtype != "float64"]
STRATEGIES = ("rebuild", "absorb")
KERNELS = [row["name"] for row in gpu.CONFIG["kernels"] if row["device"] == "cuda" and row["function"] == "mla_attention"]


@functools.cache
def judge_of(case):
    return Judge(case.arrays())


def run(case, library, strategy=None, kernel=None, host=(), seed=0, **blocks):
    """(out, lse) as NumPy arrays; skips with the kernel's own words where it does not take the case."""
    arrays = gpu.call_on(case.arrays(seed=seed), library, host)
    if library != "jax":
        judge = judge_of(case)
        arrays["out"] = gpu.to_gpu(np.full(judge.out.shape, np.nan, judge.dtype), library)
    try:
        out, lse = mla_attention(**arrays, return_lse=True, cfg=FlashMLAConfig(strategy=strategy, kernel=kernel, **blocks))
    except NotImplementedError as error:
        pytest.skip(own_words(kernel or KERNELS[0], error))
    assert out is arrays.get("out", out)
    assert type(out) is type(lse) is type(arrays["query"])
    return gpu.to_numpy(out), gpu.to_numpy(lse)


def same_bits(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mla_kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kernel_on_every_case(case, mla_kernel, strategy):
    library = gpu.holder_of(case)
    if library is None:
        pytest.skip(f"no library here has GPU arrays that lie like {case.memory}")
    judge_of(case).check(strategy, *run(case, library, strategy, mla_kernel))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_library(case, gpu_library):
    strategy = explain(mla_attention, **gpu.call_on(case.arrays(), "torch"))["plan"]["strategy"]
    judge_of(case).check(strategy, *run(case, gpu_library))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", [case for case in SMALL if case.id.endswith(("padded", "packed", "everything"))], ids=str)
def test_lengths_on_the_host(case, gpu_library, strategy):
    """Lengths that the host knows may choose another forward kernel (one that refuses short sequences), and only then give other bits."""
    results, plans = [], []
    for host in (("cu_seqlens",), ()):
        results.append(run(case, gpu_library, strategy, host=host))
        judge_of(case).check(strategy, *results[-1])
        config = FlashMLAConfig(strategy=strategy)
        plans.append(explain(mla_attention, **gpu.call_on(case.arrays(), gpu_library, host), return_lse=True, cfg=config)["plan"])
    if plans[0] == plans[1]:
        same_bits(*results)


@pytest.mark.parametrize("splits", [1, 2, 7])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", [case for case in SMALL if case.id.endswith(("full", "everything", "packed", "rope_heads"))], ids=str)
def test_any_splits_are_right(case, strategy, splits):
    judge_of(case).check(strategy, *run(case, "torch", strategy, num_splits=splits))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", [case for case in SMALL + mla_attention_cases.REAL if case.dtype != "float16"], ids=str)
def test_the_same_bits_again(case, strategy):
    first = run(case, "torch", strategy)
    for _ in range(3):
        same_bits(first, run(case, "torch", strategy))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_other_random_numbers(case, strategy):
    Judge(case.arrays(seed=1)).check(strategy, *run(case, "torch", strategy, seed=1))


# ---- several pieces ----


def large(torch, batch, tokens, heads, rank, nope, rope, head_dim_v, dtype=None):
    """A call of random numbers, made on the GPU."""

    def random(*shape, size=1.0):
        return (torch.randn(shape, device="cuda") * size).to(dtype or torch.float32)

    torch.manual_seed(0)
    return {
        "query": random(batch, tokens, heads, nope + rope),
        "key_value": random(batch, tokens, rank),
        "w_kc": random(rank, heads, nope, size=rank**-0.5),
        "w_vc": random(rank, heads, head_dim_v, size=rank**-0.5),
        "b_k": random(batch, tokens, rope),
    }


def stored(torch, call, dtype=None):
    """The same as a call of flash_attention."""
    key, value = (torch.einsum("btl,lhd->bthd", call["key_value"].to(dtype), call[w].to(dtype)).to(call["query"].dtype) for w in ("w_kc", "w_vc"))
    rope = call["b_k"][:, :, None].expand(*key.shape[:3], -1)
    return {"query": call["query"], "key": torch.cat([key, rope], -1), "value": value}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("batch", "heads"), [(2, 10), (24, 2)], ids=["heads", "batches"])
@pytest.mark.parametrize("masked", [False, True])
def test_pieces_of_heads_and_of_batches(torch, batch, heads, strategy, masked):
    """Each array of a head or batch, and dropout's bits, are those of the whole problem."""
    tokens = 8192
    call = large(torch, batch, tokens, heads, 48, 64, 16, 64)
    options = {"sliding_window": (100, 3), "softmax_aux": torch.randn(heads, 2, device="cuda")}
    if masked:
        options |= {"dropout_prob": 0.25, "dropout_seed": 12345, "bias": torch.randn(batch, heads, 1, tokens, device="cuda")}
        options |= {"cu_seqlens": torch.arange(batch + 1, device="cuda", dtype=torch.int32) * (tokens - 100)}
    out, lse = mla_attention(**call, **options, return_lse=True, cfg=FlashMLAConfig(strategy=strategy))
    if masked:
        options["cum_seqlens_q"] = options["cum_seqlens_k"] = options.pop("cu_seqlens")
    expected, expected_lse = flash_attention(**stored(torch, call, torch.float64), **options, return_lse=True)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_deepseek_at_length(torch, dtype, strategy):
    """Against attention in float64 on some rows of each head."""
    call = large(torch, 1, 2048, 8, 512, 128, 64, 128, getattr(torch, dtype))
    out = mla_attention(**call, causal=True, cfg=FlashMLAConfig(strategy=strategy))
    wide = {name: x.double() for name, x in call.items()}
    exact = stored(torch, wide, torch.float64)
    rows = torch.tensor([0, 1, 100, 127, 128, 1000, 2047], device="cuda")
    scores = torch.einsum("bthd,bshd->bhts", exact["query"][:, rows], exact["key"]) * 192**-0.5
    scores.masked_fill_(torch.arange(2048, device="cuda") > rows[:, None], -np.inf)
    expected = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), exact["value"])
    error = (out[:, rows].double() - expected).norm() / expected.norm()
    assert error < {"bfloat16": 8e-3, "float16": 1e-3, "float32": 1e-6}[dtype]


def test_keys_and_values_are_never_stored(torch):
    """32,768 tokens and 32 heads: K and V would take 671 MB, queries and results among latents 2.3 GB."""
    call = large(torch, 1, 32_768, 32, 512, 128, 64, 128, torch.bfloat16)
    out = torch.empty(1, 32_768, 32, 128, device="cuda", dtype=torch.bfloat16)
    for strategy in STRATEGIES:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        mla_attention(**call, sliding_window=(500, 0), out=out, cfg=FlashMLAConfig(strategy=strategy))
        torch.cuda.synchronize()
        assert torch.cuda.max_memory_allocated() - before <= 112 << 20
        assert not out.isnan().any()


# ---- views, NaN, the heuristic ----


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_one_array_of_latents_and_rope_keys(torch, strategy, dtype):
    torch.manual_seed(0)
    joined = torch.randn(2, 70, 40, device="cuda").to(getattr(torch, dtype))
    query = torch.randn(2, 70, 4, 24, device="cuda").to(joined.dtype)
    w_kc, w_vc = (torch.randn(32, 4, n, device="cuda").to(joined.dtype) for n in (16, 24))
    config = FlashMLAConfig(strategy=strategy)
    apart = mla_attention(query, joined[..., :32].clone(), w_kc, w_vc, b_k=joined[..., 32:].clone(), causal=True, cfg=config)
    assert torch.equal(mla_attention(query, joined[..., :32], w_kc, w_vc, b_k=joined[..., 32:], causal=True, cfg=config), apart)


@pytest.mark.parametrize("queries", [1, 3, 40])
@pytest.mark.parametrize("rope_by_head", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_absorbed_queries_by_the_kernels_of_mla_decode(torch, dtype, rope_by_head, queries):
    """DeepSeek's dims: splits are theirs to decide (0), and forced ones, or a window that lets everything through but is one, go to the forward kernels."""
    call = large(torch, 2, 700, 16, 512, 128, 16, 128, getattr(torch, dtype))
    call["query"] = call["query"][:, :queries].contiguous()
    if rope_by_head:
        call["b_k"] = call["b_k"][:, :, None].repeat(1, 1, 16, 1)
    options = {"causal": True, "causal_alignment": "bottom_right", "softmax_aux": torch.randn(16, 2, device="cuda")}
    absorb = FlashMLAConfig(strategy="absorb")
    assert explain(mla_attention, **call, **options, cfg=absorb)["plan"]["num_splits"] == 0
    assert explain(mla_attention, **call, **options, sliding_window=(699, 0), cfg=absorb)["plan"]["num_splits"] > 0
    out, lse = mla_attention(**call, **options, return_lse=True, cfg=absorb)
    for others in ({"cfg": FlashMLAConfig(strategy="absorb", num_splits=1)}, {"cfg": absorb, "sliding_window": (699, 0)}, {"cfg": FlashMLAConfig(strategy="rebuild")}):
        expected, expected_lse = mla_attention(**call, **options, **others, return_lse=True)
        assert (out - expected).norm() < {"bfloat16": 1e-2, "float32": 1e-5}[dtype] * expected.norm()
        assert (lse - expected_lse).abs().max() < {"bfloat16": 3e-2, "float32": 1e-5}[dtype]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_nan_stays_in_its_row(torch, strategy):
    arrays = gpu.call_on(MlaAttentionCase(id="nan", batch=1).arrays(), "torch")
    config = FlashMLAConfig(strategy=strategy)
    clean = mla_attention(**arrays, cfg=config)
    arrays["query"][0, 5, 2, 3] = np.nan
    out = mla_attention(**arrays, cfg=config)
    assert out[0, 5, 2].isnan().all()
    out[0, 5, 2] = clean[0, 5, 2]
    assert torch.equal(out, clean)


@pytest.mark.parametrize(
    ("seqlen_q", "heads", "rank", "strategy"),
    [(1, 128, 512, "absorb"), (1, 4, 512, "absorb"), (2048, 128, 512, "rebuild"), (8192, 16, 512, "rebuild"), (4096, 16, 16, "absorb")],
)
def test_the_strategy_that_costs_less(torch, seqlen_q, heads, rank, strategy):
    call = large(torch, 1, 1, heads, rank, 128, 64, 128, torch.bfloat16)
    call["query"] = call["query"].expand(1, seqlen_q, heads, 192)
    call |= {name: call[name].expand(1, 8192, -1) for name in ("key_value", "b_k")}
    report = explain(mla_attention, **call)
    assert report["plan"]["strategy"] == strategy
    assert report["kernel"] in KERNELS


# ---- streams, graphs, lengths on the GPU ----


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_current_stream(torch, strategy):
    """Inputs that a side stream is still writing are read after it, and nothing waits."""
    late = gpu.call_on(MlaAttentionCase(id="stream").arrays(), "torch")
    config = FlashMLAConfig(strategy=strategy)
    expected = mla_attention(**late, cfg=config)
    arrays = {name: torch.full_like(x, float("nan")) for name, x in late.items()}
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(gpu.SLOW_CLOCKS)
        for name, x in arrays.items():
            x.copy_(late[name])
        out = mla_attention(**arrays, cfg=config)
        done = side.record_event()
    assert not done.query(), "the call waited for the GPU"
    assert torch.cuda.default_stream().query(), "work went to the default stream"
    side.synchronize()
    assert torch.equal(out, expected)


PACKED = MlaAttentionCase(id="replayed", layout="packed", lens=(5, 0, 30), seqlen_q=38, seqlen_k=38, options={"causal": True})


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_capture_and_replay_with_new_lengths(torch, layout, strategy):
    case = PACKED if layout == "packed" else MlaAttentionCase(id="replayed", batch=3, layout="padded", lens=(5, 0, 30), seqlen_q=38, seqlen_k=38)
    arrays = gpu.call_on(case.arrays(), "torch")
    for name in ("query", "key_value", "b_k"):
        arrays[name].nan_to_num_(0.5)
    config = FlashMLAConfig(strategy=strategy)
    mla_attention(**arrays, cfg=config)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mla_attention(**arrays, cfg=config)
    on_host = {name: gpu.to_numpy(x) if hasattr(x, "cpu") else x for name, x in arrays.items()}
    for lengths in ((0, 5, 5, 35), (0, 38, 38, 38), (0, 1, 3, 7), (0, 0, 0, 0)):
        arrays["cu_seqlens"].copy_(torch.tensor(lengths))
        graph.replay()
        torch.cuda.synchronize()
        Judge(on_host | {"cu_seqlens": np.array(lengths, np.int32)}).check(strategy, gpu.to_numpy(out))


def test_host_lengths_are_refused_during_capture(torch):
    arrays = gpu.call_on(PACKED.arrays(), "torch", host=("cu_seqlens",))
    mla_attention(**arrays)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        with pytest.raises(ValueError, match="^mla_attention: cu_seqlens must be on the device of the data while a graph is captured"):
            mla_attention(**arrays)
        torch.zeros(1, device="cuda")
    mla_attention(**arrays)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("lengths", [(0, 4, 99, 7), (0, -7, 5, 2), (3, 2, 1, 0), (0, 2**31 - 1, 9, 9)])
def test_bad_lengths_on_the_gpu_read_nothing_out_of_bounds(torch, lengths, strategy):
    """Run under memcheck too: what comes out is not defined, but the next call must be right."""
    arrays, config = gpu.call_on(PACKED.arrays(), "torch"), FlashMLAConfig(strategy=strategy)
    mla_attention(**arrays | {"cu_seqlens": torch.tensor(lengths, device="cuda", dtype=torch.int32)}, cfg=config)
    torch.cuda.synchronize()
    judge_of(PACKED).check(strategy, gpu.to_numpy(mla_attention(**arrays, cfg=config)))


def test_what_no_kernel_takes(torch):
    arrays = gpu.call_on(MlaAttentionCase(id="double", dtype="float64").arrays(), "torch")
    with pytest.raises(NotImplementedError) as caught:
        mla_attention(**arrays)
    for kernel in KERNELS:
        assert f"\n  {kernel}: takes float32, float16 and bfloat16 only: got float64" in str(caught.value)
    assert attile.flash_mla is mla_attention


def test_zero_strides_and_no_copies(torch):
    """A latent for all batches and a weight for all heads, as views."""
    call = large(torch, 1, 40, 4, 32, 16, 8, 24)
    wide = call | {"query": call["query"].expand(3, -1, -1, -1), "w_kc": call["w_kc"][:, :1].expand(-1, 4, -1)}
    wide |= {name: call[name].expand(3, -1, -1) for name in ("key_value", "b_k")}
    plain = {name: x.contiguous() for name, x in wide.items()}
    for strategy in STRATEGIES:
        config = FlashMLAConfig(strategy=strategy)
        assert torch.equal(mla_attention(**wide, cfg=config), mla_attention(**plain, cfg=config))
        assert cases.to_numpy(mla_attention(**plain, cfg=config).cpu()).shape == (3, 40, 4, 24)
