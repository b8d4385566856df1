"""mla_attention: every kernel and both strategies on every case, judged by the error model; and every array library on a part of them."""

import functools

import cases
import mla_attention_cases
import numpy as np
import pytest
from attile import FlashMLAConfig, explain, mla_attention
from machine import own_words, runnable_kernels
from tolerance_mla import Judge

CASES = mla_attention_cases.SMALL + mla_attention_cases.EDGE + mla_attention_cases.REAL
STRATEGIES = ("rebuild", "absorb")
KERNELS = runnable_kernels("mla_attention")


@functools.cache
def judge_of(case):
    return Judge(case.arrays())


def poisoned(judge):
    """An array for the result, full of NaN."""
    return np.full(judge.out.shape, np.nan, judge.dtype)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mla_kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kernel_on_every_case(case, mla_kernel, strategy):
    judge = judge_of(case)
    out = poisoned(judge)
    try:
        result, lse = mla_attention(**case.arrays(), return_lse=True, out=out, cfg=FlashMLAConfig(strategy=strategy, kernel=mla_kernel))
    except NotImplementedError as error:
        pytest.skip(own_words(mla_kernel, error))
    assert result is out
    judge.check(strategy, out, lse)


@pytest.mark.parametrize("case", mla_attention_cases.SMALL, ids=str)
def test_the_choice_of_the_heuristic_is_right(case):
    arrays = case.arrays()
    strategy = explain(mla_attention, **arrays)["plan"]["strategy"]
    judge_of(case).check(strategy, *mla_attention(**arrays, return_lse=True))


@pytest.mark.parametrize("case", mla_attention_cases.SMALL, ids=str)
def test_every_library(case, library):
    arrays = case.arrays(library)
    out, lse = mla_attention(**arrays, return_lse=True)
    assert type(out) is type(lse) is type(arrays["query"])
    strategy = explain(mla_attention, **arrays)["plan"]["strategy"]
    judge_of(case).check(strategy, cases.to_numpy(out), cases.to_numpy(lse))


@pytest.mark.parametrize("blocks", [(1, 1), (1, 16), (16, 1), (5, 7), (64, 128), (4096, 4096)])
@pytest.mark.parametrize("splits", [1, 2, 7])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", [case for case in mla_attention_cases.SMALL if case.id.endswith(("full", "everything", "packed", "rope_heads"))], ids=str)
def test_any_tiles_and_splits_are_right(case, strategy, blocks, splits):
    judge = judge_of(case)
    out = poisoned(judge)
    config = FlashMLAConfig(strategy=strategy, block_q=blocks[0], block_k=blocks[1], num_splits=splits)
    _, lse = mla_attention(**case.arrays(), return_lse=True, out=out, cfg=config)
    judge.check(strategy, out, lse)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", mla_attention_cases.SMALL, ids=str)
def test_other_random_numbers(case, strategy):
    for seed in (1, 2):
        arrays = case.arrays(seed=seed)
        Judge(arrays).check(strategy, *mla_attention(**arrays, return_lse=True, cfg=FlashMLAConfig(strategy=strategy)))
