"""flash_attention_backward on a GPU: the cases of the CPU's tests against float64 formulas, with NaN in what may not be read; every library;
bits that repeat; dropout's mask; streams and graphs."""

import attile
import cases
import gpu
import numpy as np
import pytest
import reference_gradients
from attile import FlashAttentionConfig, Gradients, flash_attention, flash_attention_backward
from machine import own_words

pytestmark = pytest.mark.gpu

CASES = [case for case in cases.SMALL + cases.EDGE + cases.REAL if reference_gradients.judged(case)]
SMALL = [case for case in cases.SMALL if reference_gradients.judged(case)]
INDICES = ("cum_seqlens_q", "cum_seqlens_k", "q_segment_ids", "kv_segment_ids")


def prepared(case, library, host=(), seed=7):
    """The case on the host, gradients of its results, and the keyword arguments on the GPU."""
    call = case.arrays()
    dout, dlse = reference_gradients.gradients_of_results(case, call, seed)
    arrays = gpu.call_on(call, library, host)
    out, lse = flash_attention(**arrays, return_lse=True)
    results = gpu.call_on({"dout": dout} | ({} if dlse is None else {"dlse": dlse}), library)
    return call, dout, dlse, arrays | results | {"out": out, "lse": lse}


def run(arguments, **options):
    """Gradients as NumPy arrays; skips with the kernel's own words where it does not take the case."""
    try:
        made = flash_attention_backward(**arguments, **options)
    except NotImplementedError as error:
        pytest.skip(own_words("backward_generic_sm80", error))
    assert type(made) is Gradients
    assert all(type(x) is type(arguments["query"]) for x in made if x is not None)
    return Gradients(*(x if x is None else gpu.to_numpy(x) for x in made))


def same_bits(a, b):
    return all(x is y is None or (x.view(np.uint8) == y.view(np.uint8)).all() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case(case):
    library = gpu.holder_of(case)
    if library is None:
        pytest.skip(f"no library here has GPU arrays that lie like {case.memory}")
    call, dout, dlse, arguments = prepared(case, library)
    reference_gradients.check(call, dout, dlse, *(run(arguments, deterministic=d) for d in (False, True)))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_library(case, gpu_library):
    call, dout, dlse, arguments = prepared(case, gpu_library)
    reference_gradients.check(call, dout, dlse, run(arguments))


@pytest.mark.parametrize("case", [case for case in SMALL if case.id.endswith(("segments", "padded", "packed", "everything"))], ids=str)
def test_index_arrays_on_the_host(case, gpu_library):
    call, dout, dlse, arguments = prepared(case, gpu_library, host=INDICES)
    reference_gradients.check(call, dout, dlse, run(arguments))


@pytest.mark.parametrize("case", [case for case in CASES if case in SMALL or case in cases.REAL], ids=str)
def test_deterministic_bits(case):
    arguments = prepared(case, "torch")[3]
    first = run(arguments, deterministic=True)
    for _ in range(3):
        assert same_bits(first, run(arguments, deterministic=True))


def test_deterministic_bits_of_many_blocks():
    """With blocks enough that they run in another order each time: 64 tiles of keys add to each row of queries."""
    case = cases.Case(id="many", seqlen_q=4096, seqlen_k=4096, heads_q=4, heads_k=2, head_dim=64, head_dim_v=64, dtype="bfloat16")
    arrays = gpu.call_on(case.arrays(), "torch")
    out, lse = flash_attention(**arrays, return_lse=True)
    arguments = arrays | {"dout": out, "out": out, "lse": lse}
    first = run(arguments, deterministic=True)
    assert all(same_bits(first, run(arguments, deterministic=True)) for _ in range(5))
    free = run(arguments)
    for a, b in zip(first[:3], free[:3], strict=True):
        a, b = a.astype(np.float64), b.astype(np.float64)
        assert np.linalg.norm(a - b) <= 2e-3 * np.linalg.norm(a)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("prob", "seed"), [(0.5, 1), (0.1, 2**64 - 1), (0.9, 2**32)])
@pytest.mark.parametrize("lens", [None, (37, 3, 70)])
def test_dropout_drops_what_the_forward_call_dropped(dtype, prob, seed, lens):
    """Equal scores, one-hot values and one-hot gradients show both masks: dv[j, i] = dropout(p)[i, j]."""
    batch, n, heads, keys = 3, 70, 2, 130
    dtype = cases.numpy_dtype(dtype)
    one_hot = {m: np.ascontiguousarray(np.broadcast_to(np.eye(m, keys, dtype=dtype)[None, :, None], (batch, m, heads, keys))) for m in (n, keys)}
    call = {
        "query": np.zeros((batch, n, heads, 8), dtype),
        "key": np.zeros((batch, keys, heads, 8), dtype),
        "value": one_hot[keys],
        "dropout_prob": prob,
        "dropout_seed": seed,
    }
    if lens:
        call["cum_seqlens_q"] = np.cumsum((0, *lens)).astype(np.int32)
    kept = flash_attention(**call) > 0
    arrays = gpu.call_on(call, "torch")
    out, lse = flash_attention(**arrays, return_lse=True)
    gradients = run(arrays | {"dout": gpu.to_gpu(one_hot[n], "torch"), "out": out, "lse": lse})
    np.testing.assert_array_equal(gradients.value[:, :, :, :n].transpose(0, 3, 2, 1) > 0, kept)


def test_explain_and_show_config():
    case = next(case for case in SMALL if case.dtype == "bfloat16")
    arguments = prepared(case, "torch")[3]
    told = attile.explain(flash_attention_backward, **arguments)
    assert told["function"] == "flash_attention_backward"
    assert told["kernel"] == "backward_generic_sm80"
    assert told["workspace_bytes"] > attile.explain(flash_attention_backward, **arguments, deterministic=True)["workspace_bytes"] > 0
    rows = [row["name"] for row in attile.show_config()["kernels"] if row["function"] == "flash_attention_backward"]
    assert rows == ["backward_generic_sm80"]
    with pytest.raises(NotImplementedError, match="backward_generic_sm80: cfg.block_q must be 64 for these head dims and options: got 32"):
        flash_attention_backward(**arguments, cfg=FlashAttentionConfig(block_q=32))


def test_on_the_current_stream():
    torch = pytest.importorskip("torch")
    case = next(case for case in SMALL if case.id.endswith("everything") and case.dtype == "bfloat16")
    call, dout, dlse, late = prepared(case, "torch")
    reference_gradients.check(call, dout, dlse, run(late))  # kernels are loaded
    arrays = {n: x.clone() if n in ("query", "dout") else x for n, x in late.items()}
    arrays["query"].zero_()
    arrays["dout"].zero_()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(gpu.SLOW_CLOCKS)
        arrays["query"].copy_(late["query"])
        arrays["dout"].copy_(late["dout"])
        made = flash_attention_backward(**arrays)
        done = side.record_event()
    assert not done.query(), "the call waited for the GPU"
    side.synchronize()
    reference_gradients.check(call, dout, dlse, Gradients(*(x if x is None else gpu.to_numpy(x) for x in made)))


@pytest.mark.parametrize("deterministic", [False, True])
def test_graph_capture(deterministic):
    torch = pytest.importorskip("torch")
    case = next(case for case in SMALL if case.id.endswith("packed") and case.dtype == "bfloat16")
    call, dout, dlse, arguments = prepared(case, "torch")
    flash_attention_backward(**arguments, deterministic=deterministic)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = flash_attention_backward(**arguments, deterministic=deterministic)
    for _ in range(2):  # sums of a replay start at zero
        for x in made:
            if x is not None:
                x.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        reference_gradients.check(call, dout, dlse, Gradients(*(x if x is None else gpu.to_numpy(x) for x in made)))
