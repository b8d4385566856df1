"""Bad calls: each kind by its exception and message, and `out` untouched.

A row of BAD says what differs from a good call. The message must name the function, the argument, what was expected and what
was found; `out` is full of a pattern that must still be there.
"""

import re

import attile
import numpy as np
import pytest
from calls import (
    DV,
    HK,
    HQ,
    PATTERN,
    TK,
    TQ,
    B,
    D,
    cu,
    good,
    normal,
    packed,
    read_only,
    sentinel,
)
from machine import kernel_rows
from producers import Broken, OnCpu, OnCuda, OnMetal, WrongCapsule, needs_versions
from run_python import run_python


def half_bytes(shape):
    """A float32 array whose rows are an odd number of bytes apart."""
    raw = np.zeros(int(np.prod(shape)) * 8 + 64, np.uint8)
    strides = (shape[1] * shape[2] * (shape[3] * 4 + 2), shape[2] * (shape[3] * 4 + 2), shape[3] * 4 + 2, 4)
    return np.lib.stride_tricks.as_strided(raw.view(np.float32), shape, strides)


def fused_out():
    """query and out in one buffer."""
    both = sentinel((B, TQ, HQ, D + DV))
    both[..., :D] = 1
    return {"query": both[..., :D], "out": both[..., D:]}


def repeated_out():
    return {"out": np.lib.stride_tricks.as_strided(sentinel((TQ, HQ, DV)), (B, TQ, HQ, DV), (0, HQ * DV * 4, DV * 4, 4))}


def overlapping_rows():
    return {"out": np.lib.stride_tricks.as_strided(sentinel((B * TQ * HQ * DV,)), (B, TQ, HQ, DV), (TQ * HQ * DV * 4, HQ * DV * 4, DV * 2, 4))}


class Masks:
    attention_mask = None
    q_segment_ids = None
    kv_segment_ids = None

    def __init__(self, **fields):
        vars(self).update(fields)


def ids(*shape, dtype=np.int32):
    return np.zeros(shape, dtype)


HUGE = 10**400
VALUE, TYPE, NOT = ValueError, TypeError, NotImplementedError

# (kind, what differs from a good call, exception, message)
BAD = [
    # ---- no array
    ("query None", {"query": None}, TYPE, r"query must be an array: expected .*, got NoneType"),
    ("query list", {"query": [[1.0]]}, TYPE, r"query must be an array: expected .*, got list"),
    ("key float", {"key": 1.0}, TYPE, r"key must be an array: expected .*, got float"),
    ("key None", {"key": None}, TYPE, r"key must be an array: .* got NoneType"),
    ("value NumPy scalar", {"value": np.float32(1)}, TYPE, r"value must be an array: .* got numpy.float32"),
    ("value None", {"value": None}, TYPE, r"value must be an array: .* got NoneType"),
    ("value string", {"value": "v"}, TYPE, r"value must be an array: .* got str"),
    ("query memoryview", {"query": memoryview(b"1234")}, TYPE, r"query must be an array: .* got memoryview"),
    ("bias list", {"bias": [[0.0]]}, TYPE, r"bias must be an array: .* got list"),
    ("bias float", {"bias": 0.5}, TYPE, r"bias must be an array: .* got float"),
    ("cum_seqlens_q list", {"cum_seqlens_q": [0, 5, 10]}, TYPE, r"cum_seqlens_q must be an array: .* got list"),
    ("cum_seqlens_k tuple", {"cum_seqlens_k": (0, 7, 14)}, TYPE, r"cum_seqlens_k must be an array: .* got tuple"),
    ("softmax_aux float", {"softmax_aux": 0.0}, TYPE, r"softmax_aux must be an array: .* got float"),
    ("attention_mask bool", {"attention_mask": True}, TYPE, r"attention_mask must be an array: .* got bool"),
    ("q_segment_ids list", {"q_segment_ids": [[0]]}, TYPE, r"q_segment_ids must be an array: .* got list"),
    ("out list", {"out": [0.0]}, TYPE, r"out must be an array: .* got list"),
    ("masked array", {"query": np.ma.masked_array(normal(B, TQ, HQ, D))}, TYPE, r"query must not be a masked array.*: expected numpy.ndarray"),
    ("producer fails", {"key": Broken()}, VALUE, r"key must be of the library of the first argument: expected numpy, got "),
    # ---- dtype
    ("complex query", {"query": normal(B, TQ, HQ, D, dtype=np.complex64)}, TYPE, r"query has an unsupported dtype: expected .*, got complex64"),
    ("int query", {"query": ids(B, TQ, HQ, D)}, TYPE, r"query has an unsupported dtype: expected float64, float32, .*, got int32"),
    ("bool query", {"query": np.ones((B, TQ, HQ, D), bool)}, TYPE, r"query has an unsupported dtype: .* got bool"),
    ("object query", {"query": np.zeros((B, TQ, HQ, D), object)}, TYPE, r"query has an unsupported dtype: .* got object"),
    ("string query", {"query": np.zeros((B, TQ, HQ, D), "U3")}, TYPE, r"query has an unsupported dtype: .* got <U3"),
    ("structured key", {"key": np.zeros((B, TK, HK, D), [("a", "f4")])}, TYPE, r"key has an unsupported dtype"),
    ("long double query", {"query": normal(B, TQ, HQ, D, dtype=np.longdouble)}, TYPE, r"query has an unsupported dtype: .* got float128"),
    ("key float64", {"key": normal(B, TK, HK, D, dtype=np.float64)}, TYPE, r"key.dtype must equal query.dtype: expected float32, got float64"),
    ("value float16", {"value": normal(B, TK, HK, DV, dtype=np.float16)}, TYPE, r"value.dtype must equal query.dtype: expected float32, got float16"),
    ("big-endian query", {"query": normal(B, TQ, HQ, D, dtype=">f4")}, TYPE, r"query.dtype must be in native byte order: .*'>f4'"),
    ("big-endian lengths", {"cum_seqlens_q": cu(0, 5, 10, dtype=">i4")}, TYPE, r"cum_seqlens_q.dtype must be in native byte order"),
    ("int bias", {"bias": ids(TQ, TK)}, TYPE, r"bias has an unsupported dtype: expected float64, .*, got int32"),
    ("float mask", {"attention_mask": normal(TQ, TK)}, TYPE, r"attention_mask has an unsupported dtype: expected bool or an integer type, got float32"),
    ("float lengths", {"cum_seqlens_k": np.array([0.0, 7, 14])}, TYPE, r"cum_seqlens_k must hold indices: expected int32 or int64, got float64"),
    ("int16 lengths", {"cum_seqlens_q": cu(0, 5, 10, dtype=np.int16)}, TYPE, r"cum_seqlens_q must hold indices: .* got int16"),
    ("float ids", {"q_segment_ids": normal(B, TQ), "kv_segment_ids": ids(B, TK)}, TYPE, r"q_segment_ids must hold indices: .* got float32"),
    ("uint8 ids", {"q_segment_ids": ids(B, TQ), "kv_segment_ids": ids(B, TK, dtype=np.uint8)}, TYPE, r"kv_segment_ids must hold indices: .* got uint8"),
    ("int sinks", {"softmax_aux": ids(HQ, 1)}, TYPE, r"softmax_aux has an unsupported dtype: .* got int32"),
    ("out float64", {"out": sentinel(dtype=np.float64)}, TYPE, r"out.dtype is wrong: expected float32, got float64"),
    ("logits_dtype int", {"logits_dtype": "int32"}, TYPE, r"logits_dtype is unsupported: expected float32, .*, got int32"),
    ("logits_dtype float64", {"logits_dtype": np.float64}, TYPE, r"logits_dtype is unsupported: expected float32, .*, got float64"),
    ("logits_dtype Python type", {"logits_dtype": float}, TYPE, r"logits_dtype has the wrong type: expected a dtype of .*, got <class 'float'>"),
    ("logits_dtype number", {"logits_dtype": 32}, TYPE, r"logits_dtype has the wrong type: .* got 32"),
    # ---- shape
    ("query rank 2", {"query": normal(TQ, D)}, VALUE, r"query must have rank 3 or 4: expected .*, got 2"),
    ("query rank 5", {"query": normal(1, B, TQ, HQ, D)}, VALUE, r"query must have rank 3 or 4: .* got 5"),
    ("query rank 9", {"query": np.zeros((1,) * 9, np.float32)}, VALUE, r"query has too many dimensions: expected at most 8, got 9"),
    ("key rank 3", {"key": normal(TK, HK, D)}, VALUE, r"key must have rank 4: expected 4, got 3"),
    ("value rank 2", {"value": normal(TK, DV)}, VALUE, r"value must have rank 4: expected 4, got 2"),
    ("batch of key", {"key": normal(B + 1, TK, HK, D)}, VALUE, r"key.shape\[0\] must equal query.shape\[0\]: expected 2, got 3"),
    ("batch of value", {"value": normal(1, TK, HK, DV)}, VALUE, r"value.shape\[0\] must equal query.shape\[0\]: expected 2, got 1"),
    ("head_dim", {"key": normal(B, TK, HK, D // 2)}, VALUE, r"key.shape\[3\] must equal query.shape\[3\]: expected 16, got 8"),
    ("lengths of key and value", {"value": normal(B, TK + 1, HK, DV)}, VALUE, r"value.shape\[1\] must equal key.shape\[1\]: expected 7, got 8"),
    ("heads of key and value", {"value": normal(B, TK, 1, DV)}, VALUE, r"value.shape\[2\] must equal key.shape\[2\]: expected 2, got 1"),
    ("heads not a multiple", {"query": normal(B, TQ, 3, D)}, VALUE, r"query.shape\[2\] must be a multiple of key.shape\[2\]: expected a multiple of 2, got 3"),
    ("no key heads", {"key": normal(B, TK, 0, D), "value": normal(B, TK, 0, DV)}, VALUE, r"query.shape\[2\] must be a multiple of key.shape\[2\]: .* got 4"),
    ("head_dim 0", {"query": normal(B, TQ, HQ, 0), "key": normal(B, TK, HK, 0)}, VALUE, r"query.shape\[3\] is out of range: expected 1 to 576, got 0"),
    ("head_dim 577", {"query": normal(1, 1, 1, 577), "key": normal(1, 1, 1, 577), "value": normal(1, 1, 1, 8)}, VALUE, r"query.shape\[3\] is out of range: .* got 577"),
    ("head_dim_v 513", {"value": normal(B, TK, HK, 513)}, VALUE, r"value.shape\[3\] is out of range: expected 1 to 512, got 513"),
    ("head_dim_v 0", {"value": normal(B, TK, HK, 0)}, VALUE, r"value.shape\[3\] is out of range: expected 1 to 512, got 0"),
    ("bias does not broadcast", {"bias": normal(TQ, TK + 1)}, VALUE, r"bias.shape must broadcast to \[batch, heads_q, seqlen_q, seqlen_k\]: expected \(2, 4, 5, 7\), got \(5, 8\)"),
    ("bias by key heads", {"bias": normal(1, HK, 1, 1)}, VALUE, r"bias.shape must broadcast .* expected \(2, 4, 5, 7\), got \(1, 2, 1, 1\)"),
    ("bias rank 5", {"bias": normal(1, 1, 1, TQ, TK)}, VALUE, r"bias.shape must broadcast .* got \(1, 1, 1, 5, 7\)"),
    ("mask does not broadcast", {"attention_mask": np.ones((B, 1, TK, TQ), bool)}, VALUE, r"attention_mask.shape must broadcast .* got \(2, 1, 7, 5\)"),
    ("mask of another batch", {"attention_mask": np.ones((3, 1, 1, TK), bool)}, VALUE, r"attention_mask.shape must broadcast .* got \(3, 1, 1, 7\)"),
    ("one list of ids", {"q_segment_ids": ids(B, TQ)}, VALUE, r"q_segment_ids and kv_segment_ids must be given together: expected both, got q_segment_ids alone"),
    ("the other list of ids", {"kv_segment_ids": ids(B, TK)}, VALUE, r"q_segment_ids and kv_segment_ids must be given together: .* got kv_segment_ids alone"),
    ("ids of another length", {"q_segment_ids": ids(B, TQ), "kv_segment_ids": ids(B, TQ)}, VALUE, r"kv_segment_ids.shape\[1\] must equal key.shape\[1\]: expected 7, got 5"),
    ("ids of rank 1", {"q_segment_ids": ids(TQ), "kv_segment_ids": ids(TK)}, VALUE, r"q_segment_ids must have rank 2: expected 2, got 1"),
    ("sinks [Hq]", {"softmax_aux": normal(HQ)}, VALUE, r"softmax_aux.shape is ambiguous: expected \[4, 1\] .* \[1, 4\] .*, got \(4,\)"),
    ("sinks of other heads", {"softmax_aux": normal(3, 2)}, VALUE, r"softmax_aux.shape\[0\] must be 1 or the number of query heads: expected 1 or 4, got 3"),
    ("sinks of rank 3", {"softmax_aux": normal(1, HQ, 1)}, VALUE, r"softmax_aux must have rank 1 or 2: .* got 3"),
    ("sinks of rank 0", {"softmax_aux": np.array(1.0)}, VALUE, r"softmax_aux must have rank 1 or 2: .* got 0"),
    ("out shape", {"out": sentinel((B, TQ, HQ, D))}, VALUE, r"out.shape is wrong: expected \(2, 5, 4, 8\), got \(2, 5, 4, 16\)"),
    ("out rank", {"out": sentinel((TQ, HQ, DV))}, VALUE, r"out.shape is wrong: expected \(2, 5, 4, 8\), got \(5, 4, 8\)"),
    # ---- memory
    ("query last dimension", {"query": normal(B, TQ, D, HQ).swapaxes(2, 3)}, VALUE, r"query must be contiguous in its last dimension: expected stride 1, got stride 4"),
    ("key every second", {"key": normal(B, TK, HK, 2 * D)[..., ::2]}, VALUE, r"key must be contiguous in its last dimension: .* got stride 2"),
    ("value reversed", {"value": normal(B, TK, HK, DV)[..., ::-1]}, VALUE, r"value must be contiguous in its last dimension: .* got stride -1"),
    ("query broadcast in its last dimension", {"query": np.broadcast_to(np.float32(1), (B, TQ, HQ, D))}, VALUE, r"query must be contiguous in its last dimension: .* got stride 0"),
    ("bias last dimension", {"bias": normal(TK, TQ).T}, VALUE, r"bias must be contiguous in its last dimension: .* got stride 5"),
    ("mask last dimension", {"attention_mask": np.ones((TQ, 2 * TK), bool)[:, ::2]}, VALUE, r"attention_mask must be contiguous in its last dimension"),
    ("sinks last dimension", {"softmax_aux": normal(HQ, 4)[:, ::2]}, VALUE, r"softmax_aux must be contiguous in its last dimension"),
    ("rows half an element apart", {"query": half_bytes((B, TQ, HQ, D))}, VALUE, r"query.strides\[2\] must be a multiple of the item size: expected a multiple of 4 bytes, got \d+"),
    ("out last dimension", {"out": sentinel((B, TQ, DV, HQ)).swapaxes(2, 3)}, VALUE, r"out must be contiguous in its last dimension"),
    ("out read-only", {"out": read_only(sentinel())}, VALUE, r"out must be writable: expected a writable array, got one that is read-only"),
    ("out is query", fused_out, VALUE, r"out must not overlap an input: expected separate memory, got memory shared with query"),
    ("out repeats elements", repeated_out, VALUE, r"out must not overlap itself"),
    ("out with rows in each other", overlapping_rows, VALUE, r"out must not overlap itself"),
    # ---- lengths
    ("first length", {"cum_seqlens_q": cu(1, 5, 10)}, VALUE, r"cum_seqlens_q\[0\] must be zero: expected 0, got 1"),
    ("decreasing lengths", {"cum_seqlens_k": cu(0, 7, 6)}, VALUE, r"cum_seqlens_k\[2\] must not decrease: expected at least 7, got 6"),
    ("row too long", {"cum_seqlens_q": cu(0, 6, 8)}, VALUE, r"cum_seqlens_q\[1\] makes a sequence longer than query.shape\[1\]: expected a length of at most 5, got 6"),
    ("number of rows", {"cum_seqlens_k": cu(0, 7)}, VALUE, r"cum_seqlens_k.shape\[0\] must equal batch \+ 1: expected 3, got 2"),
    ("no lengths", {"cum_seqlens_q": cu()}, VALUE, r"cum_seqlens_q must have at least one entry: expected length batch \+ 1, got 0"),
    ("lengths of rank 2", {"cum_seqlens_q": cu(0, 5, 10)[None]}, VALUE, r"cum_seqlens_q must have rank 1: expected 1, got 2"),
    ("packed with one list", lambda: packed(cum_seqlens_k=None), VALUE, r"cum_seqlens_q and cum_seqlens_k must both be given .*: expected both, got cum_seqlens_q alone"),
    ("packed with the other list", lambda: packed(cum_seqlens_q=None), VALUE, r"cum_seqlens_q and cum_seqlens_k must both be given .*: expected both, got cum_seqlens_k alone"),
    ("packed past the end", lambda: packed(cum_seqlens_k=cu(0, 5, 12)), VALUE, r"cum_seqlens_k\[-1\] must be at most key.shape\[0\]: expected at most 11, got 12"),
    ("packed with other batch", lambda: packed(cum_seqlens_k=cu(0, 5, 8, 11)), VALUE, r"cum_seqlens_k.shape\[0\] must equal cum_seqlens_q.shape\[0\]: expected 3, got 4"),
    ("packed decreasing", lambda: packed(cum_seqlens_q=cu(0, 9, 4)), VALUE, r"cum_seqlens_q\[2\] must not decrease: expected at least 9, got 4"),
    ("packed negative", lambda: packed(cum_seqlens_q=cu(0, -1, 4)), VALUE, r"cum_seqlens_q\[1\] must not decrease: expected at least 0, got -1"),
    ("packed first", lambda: packed(cum_seqlens_k=cu(-1, 5, 11)), VALUE, r"cum_seqlens_k\[0\] must be zero: expected 0, got -1"),
    ("packed bias too short", lambda: packed(bias=normal(4, 6)), VALUE, r"bias.shape must broadcast .*: expected \(2, 4, at least 5, at least 6\), got \(4, 6\)"),
    ("packed ids by row", lambda: packed(q_segment_ids=ids(2, 5), kv_segment_ids=ids(2, 6)), VALUE, r"q_segment_ids must have rank 1: expected 1, got 2"),
    ("int64 overflow of lengths", {"cum_seqlens_k": cu(0, 2**62, 2**62, dtype=np.int64)}, VALUE, r"cum_seqlens_k\[1\] makes a sequence longer than key.shape\[1\]"),
    # ---- scalars
    ("softmax_scale nan", {"softmax_scale": float("nan")}, VALUE, r"softmax_scale must be finite: expected a finite number, got -?nan"),
    ("softmax_scale inf", {"softmax_scale": float("inf")}, VALUE, r"softmax_scale must be finite: .* got inf"),
    ("softmax_scale huge int", {"softmax_scale": HUGE}, VALUE, r"softmax_scale must be a finite number: expected a float, got a larger integer"),
    ("softmax_scale string", {"softmax_scale": "0.1"}, TYPE, r"softmax_scale must be a number: expected a Python or NumPy number, got str"),
    ("softmax_scale array", {"softmax_scale": np.array(0.1)}, TYPE, r"softmax_scale must be a number: .* got numpy.ndarray"),
    ("softmax_scale bool", {"softmax_scale": True}, TYPE, r"softmax_scale must be a number: .* got bool"),
    ("softmax_scale complex", {"softmax_scale": np.complex64(1)}, TYPE, r"softmax_scale must be a number: .* got numpy.complex64"),
    ("logits_soft_cap 0", {"logits_soft_cap": 0.0}, VALUE, r"logits_soft_cap must be positive and finite: expected a positive number, got 0"),
    ("logits_soft_cap negative", {"logits_soft_cap": -1}, VALUE, r"logits_soft_cap must be positive and finite: .* got -1"),
    ("logits_soft_cap nan", {"logits_soft_cap": np.float32("nan")}, VALUE, r"logits_soft_cap must be positive and finite: .* got -?nan"),
    ("logits_soft_cap list", {"logits_soft_cap": [1.0]}, TYPE, r"logits_soft_cap must be a number: .* got list"),
    ("dropout_prob 1", {"dropout_prob": 1.0, "dropout_seed": 0}, VALUE, r"dropout_prob is out of range: expected 0 <= dropout_prob < 1, got 1"),
    ("dropout_prob negative", {"dropout_prob": -0.1, "dropout_seed": 0}, VALUE, r"dropout_prob is out of range: .* got -0.1"),
    ("dropout_prob nan", {"dropout_prob": float("nan"), "dropout_seed": 0}, VALUE, r"dropout_prob is out of range: .* got -?nan"),
    ("dropout_prob None", {"dropout_prob": None}, TYPE, r"dropout_prob must be a number: .* got NoneType"),
    ("dropout without seed", {"dropout_prob": 0.5}, VALUE, r"dropout_prob > 0 needs dropout_seed: expected an integer, got none"),
    ("dropout_seed negative", {"dropout_prob": 0.5, "dropout_seed": -1}, VALUE, r"dropout_seed is out of range: expected 0 <= dropout_seed < 2\*\*64, got -1"),
    ("dropout_seed 2**64", {"dropout_prob": 0.5, "dropout_seed": 2**64}, VALUE, r"dropout_seed is out of range: .* got 18446744073709551616"),
    ("dropout_seed float", {"dropout_prob": 0.5, "dropout_seed": 1.0}, TYPE, r"dropout_seed must be an integer: .* got float"),
    ("dropout_seed array", {"dropout_prob": 0.5, "dropout_seed": np.array([1])}, TYPE, r"dropout_seed must be an integer: .* got numpy.ndarray"),
    ("causal int", {"causal": 1}, TYPE, r"causal must be a bool: expected True or False, got int"),
    ("causal None", {"causal": None}, TYPE, r"causal must be a bool: .* got NoneType"),
    ("causal array", {"causal": np.array(True)}, TYPE, r"causal must be a bool: .* got numpy.ndarray"),
    ("normalize_output string", {"normalize_output": "no"}, TYPE, r"normalize_output must be a bool: .* got str"),
    ("return_lse int", {"return_lse": 0}, TYPE, r"return_lse must be a bool: .* got int"),
    ("causal_alignment unknown", {"causal_alignment": "center"}, VALUE, r"causal_alignment is unknown: expected one of 'top_left', 'bottom_right', got 'center'"),
    ("causal_alignment bool", {"causal_alignment": True}, TYPE, r"causal_alignment must be a string: expected str, got bool"),
    ("window negative", {"sliding_window": -2}, VALUE, r"sliding_window's left must not be negative: expected 0 or more, .*, got -2"),
    ("window right negative", {"sliding_window": (3, -3)}, VALUE, r"sliding_window's right must not be negative: .* got -3"),
    ("window below int64", {"sliding_window": -HUGE}, VALUE, r"sliding_window's left must not be negative: .* got -9223372036854775808"),
    ("window of three", {"sliding_window": (1, 2, 3)}, VALUE, r"sliding_window must be an int or a pair: expected \(left, right\), got 3 values"),
    ("window float", {"sliding_window": 2.5}, TYPE, r"sliding_window must be an integer: .* got float"),
    ("window of a string", {"sliding_window": ("1", None)}, TYPE, r"sliding_window must be an integer: .* got str"),
    ("window bool", {"sliding_window": True}, TYPE, r"sliding_window must be an integer: .* got bool"),
    ("precision unknown", {"precision": "fastest"}, VALUE, r"precision is unknown: expected one of 'highest', 'high', 'default', got 'fastest'"),
    ("precision number", {"precision": 3}, TYPE, r"precision has the wrong type: expected a string, .*, got int"),
    ("precision of three", {"precision": ("high", "high", "high")}, VALUE, r"precision must be one value or a pair: expected 2 values, got 3"),
    ("precision pair with unknown", {"precision": ("high", "low")}, VALUE, r"precision is unknown: .* got 'low'"),
    ("platform unknown", {"platform": "tpu"}, VALUE, r"platform is unknown: expected one of 'auto', 'cpu', 'cuda', got 'tpu'"),
    ("platform cuda", {"platform": "cuda"}, VALUE, r"platform must hold the arrays: expected cuda arrays, got arrays on another device"),
    ("platform None", {"platform": None}, TYPE, r"platform must be a string: expected str, got NoneType"),
    ("q_scale without float8", {"q_scale": 1.0}, VALUE, r"q_scale belongs to float8_e4m3 inputs: expected none, got a scale with float32 inputs"),
    ("v_scale array without float8", {"v_scale": normal(B, HK)}, VALUE, r"v_scale belongs to float8_e4m3 inputs"),
    ("k_scale string", {"k_scale": "1"}, TYPE, r"k_scale must be an array: .* got str"),
    # ---- mask_info and cfg
    ("mask_info number", {"mask_info": 1}, TYPE, r"mask_info has the wrong type: expected attile.MaskInfo or .* attribute attention_mask, got int"),
    ("mask twice", {"attention_mask": np.ones((TQ, TK), bool), "mask_info": Masks(attention_mask=np.ones((TQ, TK), bool))}, VALUE, r"attention_mask must be given once: .* got both"),
    ("query ids twice", {"q_segment_ids": ids(B, TQ), "kv_segment_ids": ids(B, TK), "mask_info": Masks(q_segment_ids=ids(B, TQ))}, VALUE, r"q_segment_ids must be given once"),
    ("key ids twice", {"q_segment_ids": ids(B, TQ), "kv_segment_ids": ids(B, TK), "mask_info": attile.MaskInfo(kv_segment_ids=ids(B, TK))}, VALUE, r"kv_segment_ids must be given once"),
    ("mask_info with a list", {"mask_info": attile.MaskInfo(attention_mask=[1])}, TYPE, r"attention_mask must be an array: .* got list"),
    ("cfg dict", {"cfg": {"block_q": 16}}, TYPE, r"cfg has the wrong type: expected FlashAttentionConfig or None, got dict"),
    ("cfg.kernel unknown", {"cfg": attile.FlashAttentionConfig(kernel="fast")}, VALUE, r"cfg.kernel names no kernel: expected .*forward_portable.*, got fast"),
    ("cfg.kernel number", {"cfg": attile.FlashAttentionConfig(kernel=1)}, TYPE, r"cfg.kernel must be a string: expected str or None, got int"),
    ("cfg.block_q negative", {"cfg": attile.FlashAttentionConfig(block_q=-1)}, VALUE, r"cfg.block_q is out of range: expected 0 \(or None\) to 4096, got -1"),
    ("cfg.block_k huge", {"cfg": attile.FlashAttentionConfig(block_k=HUGE)}, VALUE, r"cfg.block_k is out of range: .* to 4096, got 9223372036854775807"),
    ("cfg.num_splits negative", {"cfg": attile.FlashAttentionConfig(num_splits=-1)}, VALUE, r"cfg.num_splits is out of range: .* got -1"),
    ("cfg.block_k float", {"cfg": attile.FlashAttentionConfig(block_k=16.0)}, TYPE, r"cfg.block_k must be an integer: .* got float"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_call_says_why_and_leaves_out_alone(change, error, message):
    arguments = {**good(), "out": sentinel()}
    arguments.update(change() if callable(change) else change)
    out = arguments["out"]
    before = out.tobytes() if isinstance(out, np.ndarray) else None
    with pytest.raises(error, match=f"^flash_attention: {message}") as caught:
        attile.flash_attention(**arguments)
    assert type(caught.value) is error
    if before is not None:
        assert out.tobytes() == before
    with pytest.raises(error, match=f"^flash_attention: {message}"):
        attile.explain(attile.flash_attention, **arguments)


def test_there_are_enough_kinds():
    assert len({row[0] for row in BAD}) == len(BAD) >= 80


def test_the_good_call_is_good():
    out = sentinel()
    assert attile.flash_attention(**good(), out=out) is out
    assert not (out == PATTERN).any()
    arguments = packed()
    assert not (attile.flash_attention(**arguments) == PATTERN).any()


def test_errors_are_not_remembered():
    arguments = good()
    expected = attile.flash_attention(**arguments)
    with pytest.raises(ValueError, match="softmax_scale must be finite"):
        attile.flash_attention(**arguments, softmax_scale=float("nan"))
    np.testing.assert_array_equal(attile.flash_attention(**arguments), expected)


# ---- signature -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, a: f(), "missing 3 required positional arguments"),
        (lambda f, a: f(a["query"], a["key"]), "missing 1 required positional argument: 'value'"),
        (lambda f, a: f(**a, unknown=1), "unexpected keyword argument 'unknown'"),
        (lambda f, a: f(*a.values(), None, None, None, None, None), "takes from 3 to 7 positional arguments"),
        (lambda f, a: f(*a.values(), query=a["query"]), "multiple values for argument 'query'"),
    ],
)
def test_wrong_signature(call, message):
    with pytest.raises(TypeError, match=message):
        call(attile.flash_attention, good())
    with pytest.raises(TypeError):
        call(lambda *args, **kwargs: attile.explain(attile.flash_attention, *args, **kwargs), good())


def test_core_counts_its_arguments():
    from attile import _core

    with pytest.raises(TypeError, match=r"_core.flash_attention: expected 28 positional arguments, got 3"):
        _core.flash_attention(*good().values())
    with pytest.raises(TypeError, match=r"_core.merge_states: expected 4 positional arguments, got 0"):
        _core.merge_states()


# ---- kernels that refuse ---------------------------------------------------------------------------------------------------


def test_no_kernel_takes_it_lists_every_kernel():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arrays = {name: array.astype(ml_dtypes.float8_e4m3fn) for name, array in good().items()}
    with pytest.raises(NotImplementedError, match=r"^flash_attention: ") as caught:
        attile.flash_attention(**arrays)
    for kernel in kernel_rows():
        assert f"{kernel['name']}: " in str(caught.value)


FLOAT8_SCALES = [
    ({"k_scale": np.ones((B, HK))}, TYPE, "k_scale has an unsupported dtype: expected float32, got float64"),
    ({"q_scale": np.ones(HK, np.float32)}, VALUE, "q_scale must have rank 0 or 2: expected 0 or 2, got 1"),
    ({"v_scale": np.ones((B, HK + 1), np.float32)}, VALUE, f"v_scale.shape[1] must equal key.shape[2]: expected {HK}, got {HK + 1}"),
    ({"v_scale": np.ones((B + 1, HK), np.float32)}, VALUE, f"v_scale.shape[0] must equal the number of sequences: expected {B}, got {B + 1}"),
]


@pytest.mark.parametrize(("scales", "error", "text"), FLOAT8_SCALES, ids=[text for *_, text in FLOAT8_SCALES])
def test_scales_of_float8(scales, error, text):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arrays = {name: array.astype(ml_dtypes.float8_e4m3fn) for name, array in good().items()}
    with pytest.raises(error, match="^flash_attention: " + re.escape(text)):
        attile.flash_attention(**arrays, **scales)


# ---- foreign arrays --------------------------------------------------------------------------------------------------------


@needs_versions
def test_arrays_of_two_devices():
    arrays = {name: OnCpu(array) for name, array in good().items()}
    with pytest.raises(ValueError, match=r"^flash_attention: key must be on the device of query: expected cpu:0, got cuda:0"):
        attile.flash_attention(**{**arrays, "key": OnCuda(arrays["key"].array)})


@needs_versions
def test_unknown_device():
    arrays = {name: OnMetal(array) for name, array in good().items()}
    with pytest.raises(ValueError, match=r"^flash_attention: query is on an unsupported device: expected cpu or cuda"):
        attile.flash_attention(**arrays)


@pytest.mark.parametrize(("query", "reason"), [(Broken(), "the data is lent out"), (WrongCapsule(), "__dlpack__ returned str")])
def test_a_producer_that_fails(query, reason):
    with pytest.raises(ValueError, match=rf"^flash_attention: query cannot be taken without a copy: .*{reason}") as caught:
        attile.flash_attention(query, query, query)
    assert isinstance(caught.value.__cause__, BufferError)


@needs_versions
def test_cupy_is_recognised_without_a_gpu():
    code = """
import sys, types
import numpy as np
sys.path[:0] = sys.argv[1:]
import attile, producers
cupy = types.ModuleType("cupy")
class ndarray(producers.OnCuda): pass
ndarray.__module__ = "cupy"
cupy.ndarray, cupy.__version__ = ndarray, "14.2"
sys.modules["cupy"] = cupy
x = ndarray(np.ones((1, 2, 1, 8), np.float32))
try:
    attile.flash_attention(x, x, np.ones((1, 2, 1, 8), np.float32))
except ValueError as error:
    print(error)
try:
    attile.flash_attention(x, x, x, platform="cpu")
except ValueError as error:
    print(error)
print(attile.show_config()["frameworks"][-1])
"""
    lines = run_python(code, __file__.rpartition("/")[0]).splitlines()
    assert lines[0] == "flash_attention: value must be of the library of the first argument: expected cupy, got numpy"
    assert lines[1] == "flash_attention: platform must hold the arrays: expected cpu arrays, got arrays on another device"
    assert lines[2] == "{'name': 'cupy', 'version': '14.2', 'route': '__dlpack__'}"


# ---- merge_states and explain ----------------------------------------------------------------------------------------------


def states():
    return {"out_a": normal(2, 3, 4, 8), "lse_a": normal(2, 4, 3), "out_b": normal(2, 3, 4, 8), "lse_b": normal(2, 4, 3)}


BAD_STATES = [
    ({"out_a": None}, TYPE, r"out_a must be an array: .* got NoneType"),
    ({"lse_b": [1.0]}, TYPE, r"lse_b must be an array: .* got list"),
    ({"out_a": normal(3, 4, 8)}, VALUE, r"out_a must have rank 4: expected 4, got 3"),
    ({"lse_a": normal(2, 4, 3, 1)}, VALUE, r"lse_a must have rank 3: expected 3, got 4"),
    ({"out_b": normal(2, 3, 4, 9)}, VALUE, r"out_b.shape\[3\] must equal out_a.shape\[3\]: expected 8, got 9"),
    ({"lse_b": normal(2, 3, 4)}, VALUE, r"lse_b.shape\[1\] must equal out_a.shape\[2\]: expected 4, got 3"),
    ({"out_b": normal(2, 3, 4, 8, dtype=np.float64)}, TYPE, r"out_b.dtype must equal out_a.dtype: expected float32, got float64"),
    ({"lse_a": normal(2, 4, 3, dtype=np.float64)}, TYPE, r"lse_a.dtype is wrong: expected float32, got float64"),
    ({"out_a": ids(2, 3, 4, 8)}, TYPE, r"out_a has an unsupported dtype: .* got int32"),
    ({"out_a": normal(2, 3, 8, 4).swapaxes(2, 3)}, VALUE, r"out_a must be contiguous in its last dimension"),
    ({"out_b": half_bytes((2, 3, 4, 8))}, VALUE, r"out_b.strides\[2\] must be a multiple of the item size"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_STATES)
def test_a_bad_merge(change, error, message):
    with pytest.raises(error, match=f"^merge_states: {message}"):
        attile.merge_states(**{**states(), **change})


def test_merge_of_two_libraries():
    torch = pytest.importorskip("torch")

    with pytest.raises(ValueError, match=r"^merge_states: lse_a must be of the library of the first argument: expected numpy, got torch"):
        attile.merge_states(**{**states(), "lse_a": torch.ones(2, 4, 3)})


@pytest.mark.parametrize("fn", [np.add, None, "flash_attention", lambda q: q])
def test_explain_of_something_else(fn):
    with pytest.raises(TypeError, match=r"^explain: fn cannot be explained: expected attile.flash_attention or .* or attile.merge_states.*, got "):
        attile.explain(fn, 1)
