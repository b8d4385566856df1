"""A bfloat16 bias through tiles, and the groups of keys that are too large for it, on the kernel for AMX."""

import cases
import numpy as np
import pytest
from attile import FlashAttentionConfig, flash_attention
from machine import runnable_kernels
from small import rng
from tolerance import Judge

BF16 = cases.numpy_dtype("bfloat16")
LEAST = float.fromhex("-0x1.fep127")  # of bfloat16

KERNEL = "forward_amx"

pytestmark = pytest.mark.skipif(KERNEL not in runnable_kernels(), reason="needs AMX, or a build that emulates it")


def check(bias, head_dim=64, seqlen_q=70, heads_q=2, heads_k=1, has_lse=True, **options):
    """Both forms of the softmax: with lse and without. has_lse: whether it is one that fits."""
    r, seqlen_k = rng(head_dim), bias.shape[-1]
    query, key, value = (
        r.standard_normal(shape).astype(BF16)
        for shape in ((1, seqlen_q, heads_q, head_dim), (1, seqlen_k, heads_k, head_dim), (1, seqlen_k, heads_k, 48))
    )
    call = {"query": query, "key": key, "value": value, "bias": bias} | options
    judge = Judge(call)
    cfg = FlashAttentionConfig(kernel=KERNEL)
    out, lse = flash_attention(**call, return_lse=True, cfg=cfg)
    judge.check(out, lse if has_lse else None)
    judge.check(flash_attention(**call, cfg=cfg))


def normal(seqlen_k=389, seqlen_q=70, spread=3.0):
    return (spread * rng(7).standard_normal((1, 1, seqlen_q, seqlen_k))).astype(BF16)


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("seqlen_k", [1, 31, 64, 97, 389, 1100])
def test_shapes(head_dim, seqlen_k):
    check(normal(seqlen_k), head_dim)


@pytest.mark.parametrize(
    "options", [{"causal": True}, {"sliding_window": (90, 5)}, {"softmax_scale": 1.7}, {"softmax_scale": 2.0**-9}], ids=str
)
def test_options(options):
    check(normal(seqlen_q=300), seqlen_q=300, **options)


def test_a_large_bias_decides():
    check(normal(spread=200.0))


@pytest.mark.parametrize("large", [-np.inf, LEAST, -(2.0**101), 2.0**99])
def test_some_large_elements(large):
    bias = normal()
    bias[rng(1).random(bias.shape) < 0.02] = large
    check(bias)


@pytest.mark.parametrize("large", [-np.inf, LEAST, -(2.0**110)])
def test_rows_and_groups_of_large_elements(large):
    bias = normal()
    bias[..., 3, :] = large
    bias[..., :, 64:192] = large
    bias[..., 40, 300:] = large
    check(bias, has_lse=large != LEAST)  # times log2(e) it is beyond float32


def test_what_lies_beside_the_bias_is_not_read():
    wide = np.full((1, 1, 70, 520), np.nan, np.float32).astype(BF16)
    wide[..., 60:449] = normal()
    check(wide[..., 60:449])
