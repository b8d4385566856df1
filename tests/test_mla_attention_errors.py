"""Bad calls of mla_attention: each kind by its exception and message, and `out` untouched."""

import attile
import numpy as np
import pytest

B, T, H, L, DN, R, DV = 2, 5, 4, 12, 8, 4, 6
PATTERN = np.float32(-12345.5)
VALUE, TYPE = ValueError, TypeError


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def good(**changes):
    arrays = {
        "query": zeros(B, T, H, DN + R),
        "key_value": zeros(B, T, L),
        "w_kc": zeros(L, 2, DN),
        "w_vc": zeros(L, 2, DV),
        "b_k": zeros(B, T, R),
        "out": np.full((B, T, H, DV), PATTERN),
    }
    return {**arrays, **changes}


def cu(*entries, dtype=np.int32):
    return np.array(entries, dtype)


def packed(**changes):
    arrays = {"query": zeros(9, H, DN + R), "key_value": zeros(9, L), "b_k": zeros(9, R), "cu_seqlens": cu(0, 4, 9), "out": np.full((9, H, DV), PATTERN)}
    return {**arrays, **changes}


# (what differs from a good call, exception, message)
BAD = {
    "no array": ({"key_value": None}, TYPE, r"key_value must be an array: .* got NoneType"),
    "list": ({"w_kc": [[1.0]]}, TYPE, r"w_kc must be an array: .* got list"),
    "b_q without b_k": ({"b_k": None, "b_q": zeros(B, T, R)}, VALUE, r"b_q needs b_k: expected both, or b_k alone, got b_q alone"),
    "int latents": ({"key_value": zeros(B, T, L, dtype=np.int32)}, TYPE, r"key_value.dtype must equal query.dtype: expected float32, got int32"),
    "int query": ({"query": zeros(B, T, H, DN + R, dtype=np.int32)}, TYPE, r"query has an unsupported dtype: expected float64, float32, float16 or bfloat16, got int32"),
    "double w_vc": ({"w_vc": zeros(L, 2, DV, dtype=np.float64)}, TYPE, r"w_vc.dtype must equal query.dtype: expected float32, got float64"),
    "half b_k": ({"b_k": zeros(B, T, R, dtype=np.float16)}, TYPE, r"b_k.dtype must equal query.dtype: expected float32, got float16"),
    "rank of key_value": ({"key_value": zeros(B, T, H, L)}, VALUE, r"key_value must have rank 2 or 3: expected .*, got 4"),
    "rank of query": ({"query": zeros(T, H, DN + R)}, VALUE, r"query must have rank 4: expected 4, got 3"),
    "rank of packed query": (packed(query=zeros(1, 9, H, DN + R)), VALUE, r"query must have rank 3: expected 3, got 4"),
    "rank of w_kc": ({"w_kc": zeros(L, DN)}, VALUE, r"w_kc must have rank 3: expected 3, got 2"),
    "rank of w_vc": ({"w_vc": zeros(1, L, 2, DV)}, VALUE, r"w_vc must have rank 3: .* got 4"),
    "rank of b_k": ({"b_k": zeros(T, R)}, VALUE, r"b_k must have rank 3 or 4: .* got 2"),
    "batch": ({"key_value": zeros(3, T, L), "b_k": zeros(3, T, R)}, VALUE, r"key_value.shape\[0\] must equal query.shape\[0\]: expected 2, got 3"),
    "rank of the weights": ({"w_kc": zeros(L + 1, 2, DN)}, VALUE, r"w_kc.shape\[0\] must equal key_value.shape\[2\]: expected 12, got 13"),
    "rank of w_vc's latents": ({"w_vc": zeros(L - 1, 2, DV)}, VALUE, r"w_vc.shape\[0\] must equal key_value.shape\[2\]: expected 12, got 11"),
    "key heads": ({"w_vc": zeros(L, 4, DV)}, VALUE, r"w_vc.shape\[1\] must equal w_kc.shape\[1\]: expected 2, got 4"),
    "query heads": ({"w_kc": zeros(L, 3, DN), "w_vc": zeros(L, 3, DV)}, VALUE, r"query.shape\[2\] must be a multiple of w_kc.shape\[1\]: expected a multiple of 3, got 4"),
    "no key heads": ({"w_kc": zeros(L, 0, DN), "w_vc": zeros(L, 0, DV)}, VALUE, r"query.shape\[2\] must be a multiple of w_kc.shape\[1\]"),
    "head dim": ({"query": zeros(B, T, H, DN)}, VALUE, r"query.shape\[3\] must equal w_kc.shape\[2\] \+ b_k.shape\[-1\], for it has the rope part: expected 12, got 8"),
    "head dim without rope": ({"b_k": None}, VALUE, r"query.shape\[3\] must equal w_kc.shape\[2\]: expected 8, got 12"),
    "head dim with b_q": ({"b_q": zeros(B, T, R)}, VALUE, r"query.shape\[3\] must equal w_kc.shape\[2\]: expected 8, got 12"),
    "rope of b_q": ({"query": zeros(B, T, H, DN), "b_q": zeros(B, T, R + 1)}, VALUE, r"b_q.shape\[2\] must equal b_k.shape\[2\]: expected 4, got 5"),
    "tokens of b_q": ({"query": zeros(B, T, H, DN), "b_q": zeros(B, T - 1, R)}, VALUE, r"b_q.shape\[1\] must equal query.shape\[1\]: expected 5, got 4"),
    "tokens of b_k": ({"b_k": zeros(B, T + 1, R)}, VALUE, r"b_k.shape\[1\] must equal key_value.shape\[1\]: expected 5, got 6"),
    "heads of b_k": ({"b_k": zeros(B, T, 2, R)}, VALUE, r"b_k.shape\[2\] must equal query.shape\[2\]: expected 4, got 2"),
    "no rope": ({"b_k": zeros(B, T, 0)}, VALUE, r"b_k.shape\[2\] is out of range: expected 1 to 576, got 0"),
    "no latents": ({"key_value": zeros(B, T, 0), "w_kc": zeros(0, 2, DN), "w_vc": zeros(0, 2, DV)}, VALUE, r"key_value.shape\[2\] is out of range: expected 1 to 4096, got 0"),
    "no values": ({"w_vc": zeros(L, 2, 0)}, VALUE, r"w_vc.shape\[2\] is out of range: expected 1 to 512, got 0"),
    "large values": ({"w_vc": zeros(L, 2, 513)}, VALUE, r"w_vc.shape\[2\] is out of range: expected 1 to 512, got 513"),
    "large keys": ({"w_kc": zeros(L, 2, 576), "query": zeros(B, T, H, 580)}, VALUE, r"w_kc.shape\[2\] \+ b_k.shape\[-1\] is out of range: expected at most 576, got 580"),
    "strides": ({"key_value": zeros(B, T, 2 * L)[..., ::2]}, VALUE, r"key_value must be contiguous in its last dimension: expected stride 1, got stride 2"),
    "strides of weights": ({"w_kc": zeros(L, DN, 2).swapaxes(1, 2)}, VALUE, r"w_kc must be contiguous in its last dimension"),
    "padded lengths differ": (
        {"key_value": zeros(B, 7, L), "b_k": zeros(B, 7, R), "cu_seqlens": cu(0, 3, 6)},
        VALUE,
        r"key_value.shape\[1\] must equal query.shape\[1\] with cu_seqlens: expected 5, got 7",
    ),
    "packed lengths differ": (packed(key_value=zeros(8, L), b_k=zeros(8, R)), VALUE, r"key_value.shape\[0\] must equal query.shape\[0\] with cu_seqlens: expected 9, got 8"),
    "batch of lengths": ({"cu_seqlens": cu(0, 3)}, VALUE, r"cu_seqlens.shape\[0\] must equal batch \+ 1: expected 3, got 2"),
    "first length": ({"cu_seqlens": cu(1, 3, 5)}, VALUE, r"cu_seqlens\[0\] must be zero: expected 0, got 1"),
    "decreasing lengths": ({"cu_seqlens": cu(0, 3, 2)}, VALUE, r"cu_seqlens\[2\] must not decrease: expected at least 3, got 2"),
    "long sequence": ({"cu_seqlens": cu(0, 6, 8)}, VALUE, r"cu_seqlens\[1\] makes a sequence longer than query.shape\[1\]"),
    "long total": (packed(cu_seqlens=cu(0, 4, 10)), VALUE, r"cu_seqlens\[-1\] must be at most query.shape\[0\]"),
    "float lengths": ({"cu_seqlens": np.array([0.0, 3, 5])}, TYPE, r"cu_seqlens must hold indices: expected int32 or int64, got float64"),
    "bias": ({"bias": zeros(3, T, T)}, VALUE, r"bias.shape must broadcast to \[batch, heads_q, seqlen_q, seqlen_k\]: expected \(2, 4, 5, 5\), got \(3, 5, 5\)"),
    "mask": ({"attention_mask": zeros(T, T)}, TYPE, r"attention_mask has an unsupported dtype"),
    "sinks": ({"softmax_aux": zeros(H)}, VALUE, r"softmax_aux.shape is ambiguous: expected \[4, 1\] .* or \[1, 4\]"),
    "scale": ({"softmax_scale": float("nan")}, VALUE, r"softmax_scale must be finite"),
    "cap": ({"logits_soft_cap": 0.0}, VALUE, r"logits_soft_cap must be positive and finite"),
    "window": ({"sliding_window": (-2, 0)}, VALUE, r"sliding_window's left must not be negative"),
    "dropout": ({"dropout_prob": 1.0, "dropout_seed": 1}, VALUE, r"dropout_prob is out of range: expected 0 <= dropout_prob < 1, got 1"),
    "seed": ({"dropout_prob": 0.5}, VALUE, r"dropout_prob > 0 needs dropout_seed"),
    "alignment": ({"causal_alignment": "left"}, VALUE, r"causal_alignment is unknown: expected one of 'top_left', 'bottom_right', got 'left'"),
    "causal": ({"causal": 1}, TYPE, r"causal must be a bool"),
    "platform": ({"platform": "cuda"}, VALUE, r"platform must hold the arrays"),
    "cfg": ({"cfg": attile.FlashAttentionConfig()}, TYPE, r"cfg has the wrong type: expected FlashMLAConfig or None"),
    "strategy": ({"cfg": attile.FlashMLAConfig(strategy="both")}, VALUE, r"cfg.strategy is unknown: expected one of 'rebuild', 'absorb', got 'both'"),
    "strategy's type": ({"cfg": attile.FlashMLAConfig(strategy=1)}, TYPE, r"cfg.strategy must be a string"),
    "block": ({"cfg": attile.FlashMLAConfig(block_q=5000)}, VALUE, r"cfg.block_q is out of range: expected 0 \(or None\) to 4096, got 5000"),
    "kernel": ({"cfg": attile.FlashMLAConfig(kernel="forward_avx512")}, VALUE, r"cfg.kernel names no kernel: expected .*mla_portable"),
    "out's shape": ({"out": np.full((B, T, H, DV + 1), PATTERN)}, VALUE, r"out.shape is wrong: expected \(2, 5, 4, 6\), got \(2, 5, 4, 7\)"),
    "out's dtype": ({"out": np.full((B, T, H, DV), -12345.5)}, TYPE, r"out.dtype is wrong: expected float32, got float64"),
}


@pytest.mark.parametrize(("changes", "exception", "message"), BAD.values(), ids=BAD)
def test_a_bad_call(changes, exception, message):
    call = good(**changes)
    with pytest.raises(exception, match="^mla_attention: " + message):
        attile.mla_attention(**call)
    assert (call["out"] == PATTERN).all()
    with pytest.raises(exception, match="^mla_attention: " + message):
        attile.explain(attile.mla_attention, **call)


def test_the_good_calls_are_good():
    for call in (good(), packed(w_kc=zeros(L, 2, DN), w_vc=zeros(L, 2, DV))):
        out = attile.mla_attention(**call)
        assert out is call["out"]
        assert (out == 0).all()


@pytest.mark.parametrize("name", ["query", "key_value", "w_kc", "w_vc", "b_k"])
def test_out_must_not_overlap_an_input(name):
    call = good()
    shape = call[name].shape
    room = np.zeros(max(call[name].size, call["out"].size), np.float32)
    call[name], call["out"] = room[: call[name].size].reshape(shape), room[: call["out"].size].reshape(call["out"].shape)
    with pytest.raises(ValueError, match=f"mla_attention: out must not overlap an input: expected separate memory, got memory shared with {name}"):
        attile.mla_attention(**call)


def test_arrays_of_two_libraries():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"mla_attention: key_value must be of the library of the first argument"):
        attile.mla_attention(**good(key_value=torch.zeros(B, T, L)))
