"""Panels of rows whose queries, keys, values and out are packed and written beside the products of other panels, on the kernel for AMX.

Without lse: out is written in chores then."""

import cases
import numpy as np
import pytest
from attile import FlashAttentionConfig, flash_attention
from machine import runnable_kernels
from small import rng
from tolerance import Judge

KERNEL = "forward_amx"

pytestmark = pytest.mark.skipif(KERNEL not in runnable_kernels(), reason="needs AMX, or a build that emulates it")


def check(seqlen_q, seqlen_k, heads=(1, 1), dims=(64, 64), dtype="bfloat16", blocks=(None, None), **options):
    r, dtype = rng(seqlen_k), cases.numpy_dtype(dtype)
    shapes = (1, seqlen_q, heads[0], dims[0]), (1, seqlen_k, heads[1], dims[0]), (1, seqlen_k, heads[1], dims[1])
    query, key, value = (r.standard_normal(shape).astype(dtype) for shape in shapes)
    call = {"query": query, "key": key, "value": value} | options
    judge = Judge(call)
    out = np.full(judge.out.shape, np.nan, dtype)
    flash_attention(**call, out=out, cfg=FlashAttentionConfig(kernel=KERNEL, block_q=blocks[0], block_k=blocks[1]))
    judge.check(out)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (80, 48), (192, 128), (40, 24)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_head_dims(dims, causal, dtype):
    check(300, 300, dims=dims, dtype=dtype, causal=causal)


@pytest.mark.parametrize("seqlen", [31, 32, 33, 64, 65, 96, 97, 129, 641])
def test_few_and_many_panels(seqlen):
    check(seqlen, seqlen, causal=True)
    check(seqlen, 100)


@pytest.mark.parametrize("heads", [(8, 1), (6, 2)], ids=str)
def test_a_group_of_heads_moves_on_by_few_keys_a_panel(heads):
    check(150, 170, heads, causal=True)


@pytest.mark.parametrize("window", [(40, 3), (0, 0), (200, 0), (64, 64)], ids=str)
def test_a_window(window):
    check(500, 500, sliding_window=window)
    check(300, 700, sliding_window=window, causal=True)


def test_panels_that_see_nothing():
    check(400, 150, causal=True)


@pytest.mark.parametrize("blocks", [(None, 32), (None, 96), (160, None), (64, 64), (96, 256)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_several_tiles_and_blocks(blocks, causal):
    check(350, 420, blocks=blocks, causal=causal)


def test_more_keys_than_a_tile_holds():
    check(600, 2300, causal=True)


@pytest.mark.parametrize("offset", [0, 16, 32], ids=lambda n: f"{n}-bytes-behind-a-line")
@pytest.mark.parametrize(("batch", "head_dim_v"), [(32, 64), (22, 96)])
def test_an_out_larger_than_l2(batch, head_dim_v, offset):
    """Whole lines of it are written past the caches."""
    r, dtype = rng(0), cases.numpy_dtype("bfloat16")
    query, key, value = (r.standard_normal((batch, 33, 16, d)).astype(dtype) for d in (64, 64, head_dim_v))
    memory = np.full(value.nbytes + 128, 0xFF, np.uint8)
    begin = -memory.ctypes.data % 64 + offset
    end = begin + value.nbytes
    out = memory[begin:end].view(dtype).reshape(value.shape)
    assert out.nbytes > 2 << 20
    flash_attention(query, key, value, causal=True, out=out, cfg=FlashAttentionConfig(kernel=KERNEL))
    assert (memory[:begin] == 0xFF).all() and (memory[end:] == 0xFF).all()
    Judge({"query": query, "key": key, "value": value, "causal": True}).check(out)
