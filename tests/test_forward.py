"""flash_attention: every kernel on every case, judged by the error model; and every array library on a part of them."""

import functools

import cases
import numpy as np
import pytest
from attile import FlashAttentionConfig, flash_attention
from machine import own_words, takes
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
