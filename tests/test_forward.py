"""flash_attention: every kernel on every case, judged by the error model; and every array library on a part of them."""

import functools

import cases
import numpy as np
import pytest
from attile import FlashAttentionConfig, flash_attention
from machine import own_words, takes
from small import problem
from tolerance import Judge

CASES = cases.SMALL + cases.EDGE + cases.REAL


@functools.cache
def judge_of(case):
    return Judge(case.arrays())


def poisoned(judge, dtype=None):
    """An array for the result, full of NaN."""
    return np.full(judge.out.shape, np.nan, dtype or judge.dtype)


def run(kernel, case, out, **blocks):
    """(out, lse) from this kernel; skips with the kernel's own words where it does not take the case."""
    try:
        return flash_attention(**case.arrays(), return_lse=True, out=out, cfg=FlashAttentionConfig(kernel=kernel, **blocks))
    except NotImplementedError as error:
        pytest.skip(own_words(kernel, error))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kernel_on_every_case(case, kernel):
    judge = judge_of(case)
    out = poisoned(judge)
    result, lse = run(kernel, case, out)
    assert result is out
    judge.check(out, lse)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_single_score_of_minus_infinity_is_unseen(dtype, runnable_kernel):
    query, key, value = problem(17, 1, heads_q=1, heads_k=1, head_dim=1, dtype=cases.numpy_dtype(dtype))
    call = {"query": query, "key": np.abs(key), "value": value}
    query[0, 0] = -np.inf
    if not takes(runnable_kernel, **call):
        pytest.skip(f"{runnable_kernel} does not take this")
    out, lse = flash_attention(**call, return_lse=True, cfg=FlashAttentionConfig(kernel=runnable_kernel))
    Judge(call).check(out)
    assert (out[0, 0] == 0).all()
    np.testing.assert_array_equal(np.isneginf(lse[0, 0]), np.arange(17) == 0)


@pytest.mark.parametrize("number", [np.inf, -np.inf])
@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("sizes", [(2, 70, 8), (40, 70, 8), (70, 600, 64)], ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_infinities(dtype, sizes, where, number, runnable_kernel):
    """One among finite numbers. A kernel that takes numbers apart meets products of it that are not there."""
    seqlen_q, seqlen_k, head_dim = sizes
    arrays = problem(seqlen_q, seqlen_k, heads_q=2, heads_k=1, head_dim=head_dim, dtype=cases.numpy_dtype(dtype))
    call = dict(zip(("query", "key", "value"), arrays, strict=True))
    call["key"][..., 0] = np.abs(call["key"][..., 0])  # a query's infinity makes all of its scores the same one
    call[where][:, seqlen_q % len(call[where][0]), 0, 0] = number
    if not takes(runnable_kernel, **call):
        pytest.skip(f"{runnable_kernel} does not take this")
    judge, config = Judge(call), FlashAttentionConfig(kernel=runnable_kernel)
    judge.check(*flash_attention(**call, return_lse=True, cfg=config))
    judge.check(flash_attention(**call, cfg=config))
    judge.check(*flash_attention(**call, return_lse=True, cfg=FlashAttentionConfig(kernel=runnable_kernel, block_k=64, num_splits=2)))


def test_every_kernel_takes_a_case(runnable_kernel):
    assert any(takes(runnable_kernel, **case.arrays()) for case in cases.SMALL)


@pytest.mark.parametrize("case", cases.SMALL + [case for case in cases.EDGE if case.id.startswith(("memory", "packed", "edge-no"))], ids=str)
def test_every_library(case, library):
    if library not in case.libraries:
        pytest.skip(f"{library} has no arrays that lie like {case.memory}")
    arrays = case.arrays(library)
    out, lse = flash_attention(**arrays, return_lse=True)
    assert type(out) is type(lse) is type(arrays["query"])
    judge_of(case).check(cases.to_numpy(out), cases.to_numpy(lse))


@pytest.mark.parametrize("case", cases.SMALL, ids=str)
def test_without_lse_and_out_the_bits_are_the_same(case):
    out, _ = flash_attention(**case.arrays(), return_lse=True)
    np.testing.assert_array_equal(flash_attention(**case.arrays()).view(np.uint8), out.view(np.uint8))


@pytest.mark.parametrize("blocks", [(1, 1), (1, 16), (16, 1), (5, 7), (64, 128), (4096, 4096)])
@pytest.mark.parametrize("splits", [1, 2, 7])
@pytest.mark.parametrize("case", [case for case in cases.SMALL if case.id.endswith(("full", "everything", "packed"))], ids=str)
def test_any_tiles_and_splits_are_right(case, blocks, splits, runnable_kernel):
    judge = judge_of(case)
    out = poisoned(judge)
    _, lse = run(runnable_kernel, case, out, block_q=blocks[0], block_k=blocks[1], num_splits=splits)
    judge.check(out, lse)


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("case", cases.SMALL, ids=str)
def test_other_random_numbers(case, seed):
    arrays = case.arrays(seed=seed)
    Judge(arrays).check(*flash_attention(**arrays, return_lse=True))
