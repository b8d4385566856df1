"""mla_attention_backward on a GPU: the cases of the forward call against float64 formulas, with NaN in what may not be read; torch's autograd; every
library; problems of several pieces; bits that repeat; streams, graphs, lengths on either side."""

import attile
import gpu
import mla_attention_cases
import numpy as np
import pytest
import reference_mla_gradients
from attile import FlashMLAConfig, MLAGradients, flash_attention, flash_attention_backward, mla_attention, mla_attention_backward
from machine import own_words
from mla_attention_cases import MlaAttentionCase
from test_gpu_mla_attention import large, same_bits, stored

pytestmark = pytest.mark.gpu

CASES = mla_attention_cases.SMALL + mla_attention_cases.EDGE + mla_attention_cases.REAL
SMALL = [case for case in mla_attention_cases.SMALL if reference_mla_gradients.judged(case)]
KERNEL = "mla_backward_generic_sm80"
PACKED = next(case for case in SMALL if case.id == "bfloat16-packed")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def prepared(case, library, host=(), seed=7):
    """The case on the host, gradients of its results, and the keyword arguments on the GPU."""
    call = case.arrays()
    dout, dlse = reference_mla_gradients.gradients_of_results(case, call, seed)
    arrays = gpu.call_on(call, library, host)
    try:
        out, lse = mla_attention(**arrays, return_lse=True, cfg=FlashMLAConfig(strategy="rebuild"))
    except NotImplementedError as error:
        pytest.skip(own_words("mla_generic_sm80", error))
    results = gpu.call_on({"dout": dout} | ({} if dlse is None else {"dlse": dlse}), library)
    return call, dout, dlse, arrays | results | {"out": out, "lse": lse}


def run(arguments, **options):
    """Gradients as NumPy arrays."""
    made = mla_attention_backward(**arguments, **options)
    assert type(made) is MLAGradients
    assert all(type(x) is type(arguments["query"]) for x in made if x is not None)
    return on_host(made)


def on_host(made):
    return MLAGradients(*(x if x is None else gpu.to_numpy(x) for x in made))


def given(gradients):
    return [x for x in gradients if x is not None]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case(case):
    library = gpu.holder_of(case)
    if library is None:
        pytest.skip(f"no library here has GPU arrays that lie like {case.memory}")
    call, dout, dlse, arguments = prepared(case, library)
    reference_mla_gradients.check(call, dout, dlse, *(run(arguments, deterministic=d) for d in (False, True)))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_library(case, gpu_library):
    call, dout, dlse, arguments = prepared(case, gpu_library)
    reference_mla_gradients.check(call, dout, dlse, run(arguments))


@pytest.mark.parametrize("case", [case for case in SMALL if case.id.endswith(("padded", "packed", "everything"))], ids=str)
def test_lengths_on_the_host(case, gpu_library):
    call, dout, dlse, arguments = prepared(case, gpu_library, host=("cu_seqlens",))
    reference_mla_gradients.check(call, dout, dlse, run(arguments))


@pytest.mark.parametrize("case", [case for case in SMALL + mla_attention_cases.REAL if case.dtype != "float16"], ids=str)
def test_deterministic_bits(case):
    arguments = prepared(case, "torch")[3]
    first = run(arguments, deterministic=True)
    for _ in range(3):
        same_bits(given(first), given(run(arguments, deterministic=True)))


def autograd(torch, call, dout, softmax_scale):
    """Gradients by torch's autograd in float64, causal."""
    leaves = {name: x.double().requires_grad_() for name, x in call.items()}
    exact = stored(torch, leaves, torch.float64)
    scores = torch.einsum("bthd,bshd->bhts", exact["query"], exact["key"]) * softmax_scale
    n = scores.shape[-1]
    scores = scores.masked_fill(torch.ones(n, n, device="cuda", dtype=torch.bool).triu(1), -np.inf)
    torch.einsum("bhts,bshd->bthd", scores.softmax(-1), exact["value"]).backward(dout.double())
    return {name: x.grad for name, x in leaves.items()}


# torch's autograd has a thread of its own, whose first product finds no context current there and sets one.
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("rank", "nope", "rope", "head_dim_v"), [(512, 128, 64, 128), (256, 64, 32, 64)], ids=["deepseek", "small"])
def test_autograd(torch, dtype, deterministic, rank, nope, rope, head_dim_v):
    """DeepSeek's head dims, many tiles of everything."""
    call = large(torch, 1, 1500, 5, rank, nope, rope, head_dim_v, getattr(torch, dtype))
    dout = torch.randn(1, 1500, 5, head_dim_v, device="cuda").to(call["query"].dtype)
    out, lse = mla_attention(**call, causal=True, return_lse=True)
    got = mla_attention_backward(dout, **call, out=out, lse=lse, causal=True, deterministic=deterministic)
    for name, expected in autograd(torch, call, dout, (nope + rope) ** -0.5).items():
        error = (getattr(got, name).double() - expected).norm() / expected.norm()
        assert error < {"bfloat16": 7e-3, "float16": 9e-4, "float32": 2e-6}[dtype], name


@pytest.mark.parametrize(("batch", "heads"), [(2, 10), (24, 2)], ids=["heads", "batches"])
def test_pieces_of_heads_and_of_batches(torch, batch, heads):
    """The gradients of stored keys and values, taken on by torch; dropout's bits are those of the whole problem."""
    tokens = 8192
    call = large(torch, batch, tokens, heads, 48, 64, 16, 64)
    options = {"sliding_window": (100, 3), "softmax_aux": torch.randn(2, device="cuda").expand(1, 2), "dropout_prob": 0.25, "dropout_seed": 12345}
    options |= {"bias": torch.randn(1, heads, 1, tokens, device="cuda")}
    cu = torch.arange(batch + 1, device="cuda", dtype=torch.int32) * (tokens - 100)
    dout = torch.randn(batch, tokens, heads, 64, device="cuda")
    out, lse = mla_attention(**call, **options, cu_seqlens=cu, return_lse=True)
    got = mla_attention_backward(dout, **call, **options, cu_seqlens=cu, out=out, lse=lse, deterministic=True)
    plain = stored(torch, call, torch.float64)
    lengths = {"cum_seqlens_q": cu, "cum_seqlens_k": cu}
    out, lse = flash_attention(**plain, **options, **lengths, return_lse=True)
    flat = flash_attention_backward(dout, **plain, **options, **lengths, out=out, lse=lse, deterministic=True)
    dk, dv = flat.key[..., :64].double(), flat.value.double()
    latent, w_kc, w_vc = (call[name].double() for name in ("key_value", "w_kc", "w_vc"))
    expected = {
        "query": flat.query,
        "key_value": torch.einsum("bthd,lhd->btl", dk, w_kc) + torch.einsum("bthd,lhd->btl", dv, w_vc),
        "w_kc": torch.einsum("btl,bthd->lhd", latent, dk),
        "w_vc": torch.einsum("btl,bthd->lhd", latent, dv),
        "b_k": flat.key[..., 64:].double().sum(2),
        "bias": flat.bias,
        "softmax_aux": flat.softmax_aux,
    }
    for name, x in expected.items():
        error = (getattr(got, name).double() - x.double()).norm() / x.double().norm()
        assert error < 2e-5, name


def test_keys_and_values_are_never_stored(torch):
    """32,768 tokens and 32 heads: K, V and their gradients would take 1.3 GB."""
    call = large(torch, 1, 32_768, 32, 512, 128, 64, 128, torch.bfloat16)
    dout = torch.randn(1, 32_768, 32, 128, device="cuda").to(torch.bfloat16)
    out, lse = mla_attention(**call, sliding_window=(500, 0), return_lse=True)
    outputs = sum(x.numel() * x.element_size() for x in call.values())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    got = mla_attention_backward(dout, **call, out=out, lse=lse, sliding_window=(500, 0))
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= outputs + (260 << 20)
    assert not any(x.isnan().any() for x in given(got))


def test_unseen_latents_may_be_anything(torch):
    """By position alone: what no query's band reaches gives no gradient and takes none."""
    call = large(torch, 2, 300, 4, 64, 32, 8, 40)
    call["query"] = call["query"][:, :50]
    dout = torch.randn(2, 50, 4, 40, device="cuda")
    options = {"causal": True, "sliding_window": (20, 0)}
    out, lse = mla_attention(**call, **options, return_lse=True)
    clean = mla_attention_backward(dout, **call, **options, out=out, lse=lse, deterministic=True)
    call["b_k"][:, 50:] = np.nan
    assert torch.equal(clean.key_value[:, 50:], torch.zeros_like(clean.key_value[:, 50:]))
    call["key_value"][:, 50:] = np.nan
    for a, b in zip(given(mla_attention_backward(dout, **call, **options, out=out, lse=lse, deterministic=True)), given(clean), strict=True):
        assert torch.equal(a, b)


def test_explain_and_show_config(torch):
    arguments = prepared(PACKED, "torch")[3]
    told = attile.explain(mla_attention_backward, **arguments)
    assert told["function"] == "mla_attention_backward"
    assert told["kernel"] == KERNEL
    assert told["plan"]["strategy"] == "rebuild"
    rows = [row["name"] for row in attile.show_config()["kernels"] if row["function"] == "mla_attention_backward"]
    assert rows == [KERNEL]
    for config, words in (
        (FlashMLAConfig(strategy="absorb"), "computes gradients of rebuilt keys and values: cfg.strategy must be rebuild: got absorb"),
        (FlashMLAConfig(block_q=32), "cfg.block_q must be 64 for these head dims and options: got 32"),
    ):
        with pytest.raises(NotImplementedError, match=f"{KERNEL}: {words}"):
            mla_attention_backward(**arguments, cfg=config)


def test_what_no_kernel_takes(torch):
    call = gpu.call_on(MlaAttentionCase(id="double", dtype="float64").arrays(), "torch")
    out = torch.zeros(*call["query"].shape[:-1], 24, device="cuda", dtype=torch.float64)
    lse = torch.zeros(2, 4, 37, device="cuda", dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=f"{KERNEL}: takes float32, float16 and bfloat16 only: got float64"):
        mla_attention_backward(out, **call, out=out, lse=lse)


@pytest.mark.parametrize("deterministic", [False, True])
def test_graph_capture(torch, deterministic):
    """Replayed with other lengths."""
    call, dout, dlse, arguments = prepared(PACKED, "torch")
    mla_attention_backward(**arguments, deterministic=deterministic)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = mla_attention_backward(**arguments, deterministic=deterministic)
    for lens in (PACKED.lens, (30, 5, 0)):
        other = MlaAttentionCase(**{f: getattr(PACKED, f) for f in PACKED.__dataclass_fields__} | {"lens": lens})
        call, dout, dlse, fresh = prepared(other, "torch")
        for name, x in arguments.items():
            if torch.is_tensor(x):
                x.copy_(fresh[name])
        for x in given(made):  # sums of a replay start at zero
            x.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        reference_mla_gradients.check(call, dout, dlse, on_host(made))


def test_on_the_current_stream(torch):
    case = next(case for case in SMALL if case.id == "bfloat16-everything")
    call, dout, dlse, late = prepared(case, "torch")
    reference_mla_gradients.check(call, dout, dlse, run(late))  # kernels are loaded
    arrays = late | {name: torch.zeros_like(late[name]) for name in ("query", "dout", "key_value")}
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(gpu.SLOW_CLOCKS)
        for name in ("query", "dout", "key_value"):
            arrays[name].copy_(late[name])
        made = mla_attention_backward(**arrays)
        done = side.record_event()
    assert not done.query(), "the call waited for the GPU"
    side.synchronize()
    reference_mla_gradients.check(call, dout, dlse, on_host(made))


@pytest.mark.parametrize("lengths", [(0, 4, 99, 7), (0, -7, 5, 2), (3, 2, 1, 0), (0, 2**31 - 1, 9, 9)])
def test_bad_lengths_on_the_gpu_read_nothing_out_of_bounds(torch, lengths):
    """Run under memcheck too: what comes out is not defined, but the next call must be right."""
    call, dout, dlse, arguments = prepared(PACKED, "torch")
    mla_attention_backward(**arguments | {"cu_seqlens": torch.tensor(lengths, device="cuda", dtype=torch.int32)})
    torch.cuda.synchronize()
    reference_mla_gradients.check(call, dout, dlse, run(arguments))
