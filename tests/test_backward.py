"""flash_attention_backward before anything is computed: what it refuses, and in which words. The gradients themselves are judged on an
emulated GPU (test_cuda_emulation.py) and on a real one (test_gpu_backward.py)."""

import attile
import cases
import numpy as np
import pytest
from attile import FlashAttentionConfig, MaskInfo, flash_attention, flash_attention_backward
from calls import DV, HK, HQ, TK, TQ, B, D, cu, good, normal

NO_KERNEL = "flash_attention_backward: no kernel takes this problem: there is none yet for CPU arrays"


def call(dtype="float32", **changed):
    """A good call, changed."""
    arrays = good(dtype)
    lse_type = np.float64 if dtype == "float64" else np.float32
    results = {name: normal(B, TQ, HQ, DV).astype(cases.numpy_dtype(dtype)) for name in ("dout", "out")}
    return arrays | results | {"lse": normal(B, HQ, TQ).astype(lse_type)} | changed


def packed(**changed):
    arrays = {"query": normal(9, HQ, D), "key": normal(11, HK, D), "value": normal(11, HK, DV), "lse": normal(HQ, 9)}
    results = {name: normal(9, HQ, DV) for name in ("dout", "out")}
    return arrays | results | {"cum_seqlens_q": cu(0, 4, 9), "cum_seqlens_k": cu(0, 5, 11)} | changed


def refused(error, text, **arguments):
    with pytest.raises(error) as caught:
        flash_attention_backward(**arguments)
    assert str(caught.value).startswith(f"flash_attention_backward: {text}"), str(caught.value)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dlse": normal(B, HQ, TQ)},
        {"bias": normal(HQ, 1, TK), "softmax_aux": normal(HQ, 2), "deterministic": True},
        {"causal": True, "sliding_window": (2, 0), "logits_soft_cap": 3.0, "dropout_prob": 0.5, "dropout_seed": 1},
        {"mask_info": MaskInfo(attention_mask=np.ones((TQ, TK), bool))},
        {"cum_seqlens_q": cu(0, 3, 5)},
        {"logits_dtype": "bfloat16", "precision": "default", "platform": "cpu", "cfg": FlashAttentionConfig(block_q=64)},
    ],
    ids=str,
)
def test_good_calls_reach_the_kernels_of_which_the_cpu_has_none(dtype, options):
    """So nothing before that refuses them."""
    options = {n: x.astype(np.float64) if n == "dlse" and dtype == "float64" else x for n, x in options.items()}
    for run in (flash_attention_backward, lambda **arguments: attile.explain(flash_attention_backward, **arguments)):
        with pytest.raises(NotImplementedError) as caught:
            run(**call(dtype, **options))
        assert str(caught.value) == NO_KERNEL


def test_packed_and_single_sequences_reach_the_kernels():
    single = {name: x[0] for name, x in call().items()}
    for arguments in (packed(), single, packed(dlse=normal(HQ, 9), softmax_aux=normal(1, 3))):
        with pytest.raises(NotImplementedError, match=NO_KERNEL):
            flash_attention_backward(**arguments)


def test_a_forced_kernel_is_asked_for_in_vain(monkeypatch):
    monkeypatch.setenv("ATTILE_KERNEL", "forward_portable")
    with pytest.raises(NotImplementedError, match=NO_KERNEL):
        flash_attention_backward(**call())


@pytest.mark.parametrize("name", ["dout", "query", "key", "value", "out", "lse"])
def test_required_arrays(name):
    for nothing in (None, "text"):
        refused(TypeError, f"{name} must be an array: expected an array of NumPy, ", **call(**{name: nothing}))


@pytest.mark.parametrize("name", ["dout", "out"])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda x: x[0], ValueError, "must have rank 4: expected 4, got 3"),
        (lambda x: x[:1], ValueError, f".shape is wrong: expected ({B}, {TQ}, {HQ}, {DV}), got (1, {TQ}, {HQ}, {DV})"),
        (lambda x: x[:, :, :2], ValueError, ".shape is wrong"),
        (lambda x: x[..., 1:], ValueError, ".shape is wrong"),
        (lambda x: x.astype(np.float16), TypeError, ".dtype is wrong: expected float32, got float16"),
        (lambda x: np.repeat(x, 2, -1)[..., ::2], ValueError, "must be contiguous in its last dimension"),
    ],
)
def test_arrays_like_out(name, change, error, text):
    arguments = call()
    refused(error, name + (text if text.startswith(".") else f" {text}"), **arguments | {name: change(arguments[name])})


@pytest.mark.parametrize("name", ["lse", "dlse"])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda x: x[0], ValueError, "must have rank 3: expected 3, got 2"),
        (lambda x: x.swapaxes(1, 2), ValueError, f".shape is wrong: expected ({B}, {HQ}, {TQ}), got ({B}, {TQ}, {HQ})"),
        (lambda x: x.astype(np.float64), TypeError, ".dtype is wrong: expected float32, got float64"),
    ],
)
def test_arrays_like_lse(name, change, error, text):
    arguments = call(dlse=normal(B, HQ, TQ))
    refused(error, name + (text if text.startswith(".") else f" {text}"), **arguments | {name: change(arguments[name])})


def test_packed_arrays_have_packed_results():
    refused(ValueError, "lse.shape is wrong: expected (4, 9), got (9, 4)", **packed(lse=normal(9, HQ)))
    refused(ValueError, "dout.shape is wrong: expected (9, 4, 8), got (8, 4, 8)", **packed(dout=normal(8, HQ, DV)))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"key": normal(B, TK, HK, D + 1)}, ValueError, "key.shape[3] must equal query.shape[3]: expected 16, got 17"),
        ({"bias": normal(3, 3)}, ValueError, "bias.shape must broadcast to [batch, heads_q, seqlen_q, seqlen_k]"),
        ({"bias": np.ones((TQ, TK), np.int32)}, TypeError, "bias has an unsupported dtype"),
        ({"attention_mask": normal(TQ, TK)}, TypeError, "attention_mask has an unsupported dtype"),
        ({"softmax_aux": normal(HQ)}, ValueError, "softmax_aux.shape is ambiguous"),
        ({"cum_seqlens_q": cu(1, 2, 3)}, ValueError, "cum_seqlens_q[0] must be zero"),
        ({"q_segment_ids": np.zeros((B, TQ), np.int32)}, ValueError, "q_segment_ids and kv_segment_ids must be given together"),
        ({"softmax_scale": np.inf}, ValueError, "softmax_scale must be finite"),
        ({"logits_soft_cap": 0.0}, ValueError, "logits_soft_cap must be positive and finite"),
        ({"sliding_window": -2}, ValueError, "sliding_window's left must not be negative"),
        ({"dropout_prob": 1.0}, ValueError, "dropout_prob is out of range"),
        ({"dropout_prob": 0.5}, ValueError, "dropout_prob > 0 needs dropout_seed"),
        ({"causal_alignment": "middle"}, ValueError, "causal_alignment "),
        ({"precision": "exact"}, ValueError, "precision is unknown"),
        ({"logits_dtype": "int8"}, TypeError, "logits_dtype is unsupported"),
        ({"platform": "cuda"}, ValueError, "platform must hold the arrays"),
        ({"deterministic": "yes"}, TypeError, "deterministic "),
        ({"cfg": FlashAttentionConfig(num_splits=-1)}, ValueError, "cfg.num_splits is out of range"),
        ({"mask_info": 3}, TypeError, "mask_info has the wrong type"),
    ],
    ids=lambda x: str(x) if isinstance(x, str) else None,
)
def test_options_are_judged_as_in_the_forward_call(options, error, text):
    refused(error, text, **call(**options))


def test_a_mask_given_twice():
    mask = np.ones((TQ, TK), bool)
    refused(ValueError, "attention_mask must be given once", **call(mask_info=MaskInfo(attention_mask=mask), attention_mask=mask))


def test_arguments_of_the_forward_call_that_have_no_gradient():
    for name in ("normalize_output", "return_lse", "q_scale"):
        with pytest.raises(TypeError, match=name):
            flash_attention_backward(**call(), **{name: None})


def test_libraries_are_not_mixed():
    torch = pytest.importorskip("torch")
    arguments = {name: torch.from_numpy(x) for name, x in call().items()}
    with pytest.raises((TypeError, ValueError), match="flash_attention_backward: lse must"):
        flash_attention_backward(**arguments | {"lse": call()["lse"]})
    with pytest.raises(NotImplementedError, match="there is none yet for CPU arrays"):
        flash_attention_backward(**arguments)


def test_the_forward_call_gives_what_the_backward_takes():
    arrays = good("bfloat16")
    out, lse = flash_attention(**arrays, return_lse=True)
    with pytest.raises(NotImplementedError, match=NO_KERNEL):
        flash_attention_backward(out, *arrays.values(), out, lse)


def test_gradients_is_a_named_tuple():
    gradients = attile.Gradients(1, 2, 3)
    assert gradients == (1, 2, 3, None, None)
    assert gradients._fields == ("query", "key", "value", "bias", "softmax_aux")
