"""flash_attention on a GPU: every CUDA kernel on every case, judged by the error model of the CPU's tests; every library; dropout's
bits; memory that must not be read; arrays of more than 2^31 elements."""

import functools

import cases
import gpu
import numpy as np
import pytest
from attile import FlashAttentionConfig, explain, flash_attention
from machine import own_words, takes
from tolerance import Judge

pytestmark = pytest.mark.gpu

CASES = cases.SMALL + cases.EDGE + cases.REAL
INDICES = ("cum_seqlens_q", "cum_seqlens_k", "q_segment_ids", "kv_segment_ids")


@functools.cache
def judge_of(case):
    return Judge(case.arrays())


def run(case, library, kernel=None, host=(), seed=0, **blocks):
    """(out, lse) as NumPy arrays; skips with the kernel's own words where it does not take the case."""
    arrays = gpu.call_on(case.arrays(seed=seed), library, host)
    if library != "jax":
        judge = judge_of(case)
        arrays["out"] = gpu.to_gpu(np.full(judge.out.shape, np.nan, judge.dtype), library)
    try:
        out, lse = flash_attention(**arrays, return_lse=True, cfg=FlashAttentionConfig(kernel=kernel, **blocks))
    except NotImplementedError as error:
        pytest.skip(own_words(kernel or gpu.KERNELS[0], error))
    assert out is arrays.get("out", out)
    assert type(out) is type(lse) is type(arrays["query"])
    return gpu.to_numpy(out), gpu.to_numpy(lse)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kernel_on_every_case(case, cuda_kernel):
    library = gpu.holder_of(case)
    if library is None:
        pytest.skip(f"no library here has GPU arrays that lie like {case.memory}")
    judge_of(case).check(*run(case, library, cuda_kernel))


def test_every_kernel_takes_a_case(cuda_kernel):
    assert any(takes(cuda_kernel, **gpu.call_on(case.arrays(), "torch")) for case in cases.SMALL + cases.EDGE if gpu.holder_of(case) == "torch")


@pytest.mark.parametrize("case", [case for case in cases.SMALL + cases.EDGE if case in cases.SMALL or case.id.startswith("memory")], ids=str)
def test_every_library(case, gpu_library):
    if gpu_library not in gpu.MEMORY.get(case.memory, ()):
        pytest.skip(f"{gpu_library} has no GPU arrays that lie like {case.memory}")
    judge_of(case).check(*run(case, gpu_library))


@pytest.mark.parametrize("case", [case for case in cases.SMALL if case.id.endswith(("segments", "padded", "packed", "everything"))], ids=str)
def test_index_arrays_on_the_host(case, gpu_library):
    """Lengths that the host knows may choose another kernel (one that refuses short sequences), and only then give other bits."""
    results, plans = [], []
    for host in (INDICES, ()):
        results.append(run(case, gpu_library, host=host))
        judge_of(case).check(*results[-1])
        report = explain(flash_attention, **gpu.call_on(case.arrays(), gpu_library, host), return_lse=True)
        plans.append((report["kernel"], report["plan"]))
    if plans[0] == plans[1]:
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@pytest.mark.parametrize("splits", [1, 2, 7])
@pytest.mark.parametrize("case", [case for case in cases.SMALL if case.id.endswith(("full", "everything", "packed"))], ids=str)
def test_any_splits_are_right(case, splits, cuda_kernel):
    judge_of(case).check(*run(case, "torch", cuda_kernel, num_splits=splits))


@pytest.mark.parametrize("case", [case for case in cases.SMALL + cases.REAL if case.dtype != "float64"], ids=str)
def test_the_same_bits_again(case):
    first = run(case, "torch")
    for _ in range(3):
        for a, b in zip(first, run(case, "torch"), strict=True):
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("case", [case for case in cases.SMALL if case.dtype != "float64"], ids=str)
def test_other_random_numbers(case, seed):
    Judge(case.arrays(seed=seed)).check(*run(case, "torch", seed=seed))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("prob", "seed"), [(0.5, 1), (0.1, 2**64 - 1), (0.9, 2**32)])
@pytest.mark.parametrize("lens", [None, (37, 3, 70)])
def test_dropout_masks_are_those_of_the_cpu(dtype, prob, seed, lens):
    """Equal scores and one-hot values show the mask itself."""
    batch, n, heads, keys = 3, 70, 2, 130
    dtype = cases.numpy_dtype(dtype)
    call = {
        "query": np.zeros((batch, n, heads, 8), dtype),
        "key": np.zeros((batch, keys, heads, 8), dtype),
        "value": np.ascontiguousarray(np.broadcast_to(np.eye(keys, dtype=dtype)[None, :, None, :], (batch, keys, heads, keys))),
        "dropout_prob": prob,
        "dropout_seed": seed,
    }
    if lens:
        call["cum_seqlens_q"] = np.cumsum((0, *lens)).astype(np.int32)
    kept = flash_attention(**call) > 0
    assert 0 < kept.mean() < 1
    np.testing.assert_array_equal(gpu.to_numpy(flash_attention(**gpu.call_on(call, "torch"))) > 0, kept)


# ---- large memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["batch", "token", "head"])
def test_offsets_of_more_than_31_bits(axis):
    """k and v are views with a stride of 2^31 + 8 elements in a buffer of 4 GB for each step."""
    import torch

    case = cases.Case(id="far", batch=2, seqlen_q=5, seqlen_k=2, heads_q=2, heads_k=2, head_dim=64, head_dim_v=64, dtype="bfloat16")
    judge, arrays = judge_of(case), gpu.call_on(case.arrays(), "torch")
    far, width = 2**31 + 8, case.head_dim + case.head_dim_v
    if torch.cuda.mem_get_info()[0] < 2 * far + 2**30:
        pytest.skip("needs 6 GB of GPU memory")
    room = torch.empty(far + 16 * width, dtype=torch.bfloat16, device="cuda")
    near = {"batch": (far, 2 * width, width), "token": (2 * width, far, width), "head": (2 * width, width, far)}[axis]
    key = room.as_strided(arrays["key"].shape, (*near, 1))
    value = room.as_strided(arrays["value"].shape, (*near, 1), case.head_dim)
    key.copy_(arrays["key"])
    value.copy_(arrays["value"])
    out, lse = flash_attention(**{**arrays, "key": key, "value": value}, return_lse=True)
    judge.check(gpu.to_numpy(out), gpu.to_numpy(lse))


def test_outputs_of_more_than_31_bits():
    import torch

    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GB of GPU memory")
    # Zero strides: 2^33 bytes of out from 64 KB of query.
    query = torch.randn(1, 32, 16, 64, device="cuda").bfloat16().expand(2**17, 32, 16, 64)
    key = torch.randn(1, 3, 16, 64, device="cuda").bfloat16().expand(2**17, 3, 16, 64)
    out = flash_attention(query, key, key)
    few = [x[:2] for x in (query, key, key)]  # two, not one: the same strides, for which kernels are chosen
    assert explain(flash_attention, *few)["kernel"] == explain(flash_attention, query, key, key)["kernel"]
    first = flash_attention(*few)[:1]
    assert out.numel() == 2**32
    for part in (out[:2], out[2**16 - 1 : 2**16 + 1], out[-2:]):
        assert torch.equal(part, first.expand_as(part))
