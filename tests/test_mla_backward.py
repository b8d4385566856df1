"""mla_attention_backward before anything is computed: what it refuses, and in which words. The gradients themselves are judged on an emulated GPU
(test_cuda_emulation.py) and on a real one (test_gpu_mla_backward.py)."""

import attile
import cases
import numpy as np
import pytest
from attile import FlashMLAConfig, mla_attention, mla_attention_backward
from calls import cu
from mla_attention_cases import MlaAttentionCase

NO_KERNEL = "mla_attention_backward: no kernel takes this problem: there is none yet for CPU arrays"
CASE = MlaAttentionCase(id="base", batch=2, seqlen_q=5, seqlen_k=7, rope="shared")  # heads 4 and 2, rank 40, dims 16 + 8 and 24
B, TQ, HQ, DV = 2, 5, 4, 24


def call(dtype="float32", case=CASE, **changed):
    """A good call, changed."""
    arrays = MlaAttentionCase(**{f: getattr(case, f) for f in case.__dataclass_fields__} | {"dtype": dtype}).arrays()
    *leading, tokens, heads, _ = arrays["query"].shape
    rng = np.random.default_rng(3)
    results = {name: rng.standard_normal((*leading, tokens, heads, DV)).astype(cases.numpy_dtype(dtype)) for name in ("dout", "out")}
    lse = rng.standard_normal((*leading, heads, tokens)).astype(np.float64 if dtype == "float64" else np.float32)
    return arrays | results | {"lse": lse} | changed


def refused(error, text, **arguments):
    with pytest.raises(error) as caught:
        mla_attention_backward(**arguments)
    assert str(caught.value).startswith(f"mla_attention_backward: {text}"), str(caught.value)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"deterministic": True, "bias": np.zeros((HQ, 1, 7), np.float32), "softmax_aux": np.zeros((HQ, 2), np.float32)},
        {"causal": True, "sliding_window": (2, 0), "logits_soft_cap": 3.0, "dropout_prob": 0.5, "dropout_seed": 1},
        {"attention_mask": np.ones((TQ, 7), bool), "platform": "cpu", "softmax_scale": 0.3, "causal_alignment": "bottom_right"},
        {"cfg": FlashMLAConfig(strategy="absorb", block_q=64)},
    ],
    ids=str,
)
def test_good_calls_reach_the_kernels_of_which_the_cpu_has_none(dtype, options):
    """So nothing before that refuses them."""
    for run in (mla_attention_backward, lambda **arguments: attile.explain(mla_attention_backward, **arguments)):
        with pytest.raises(NotImplementedError) as caught:
            run(**call(dtype, **options))
        assert str(caught.value) == NO_KERNEL


@pytest.mark.parametrize("rope", ["none", "inside", "inside_heads", "heads", "q_heads", "k_heads"])
@pytest.mark.parametrize("layout", [{"layout": "dense"}, {"layout": "rank2"}, {"layout": "packed", "lens": (2, 3), "seqlen_k": 5}], ids=str)
def test_every_form_reaches_the_kernels(rope, layout):
    base = {"id": "form", "batch": 2, "seqlen_q": 5, "seqlen_k": 7, "rope": rope}
    with pytest.raises(NotImplementedError, match=NO_KERNEL):
        mla_attention_backward(**call(case=MlaAttentionCase(**base | layout)))


@pytest.mark.parametrize("name", ["dout", "query", "key_value", "w_kc", "w_vc", "out", "lse"])
def test_required_arrays(name):
    for nothing in (None, "text"):
        refused(TypeError, f"{name} must be an array: expected an array of NumPy, ", **call(**{name: nothing}))


@pytest.mark.parametrize("name", ["dout", "out"])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda x: x[0], ValueError, "must have rank 4: expected 4, got 3"),
        (lambda x: x[:, :, :2], ValueError, f".shape is wrong: expected ({B}, {TQ}, {HQ}, {DV}), got ({B}, {TQ}, 2, {DV})"),
        (lambda x: x[..., 1:], ValueError, ".shape is wrong"),
        (lambda x: x.astype(np.float16), TypeError, ".dtype is wrong: expected float32, got float16"),
        (lambda x: np.repeat(x, 2, -1)[..., ::2], ValueError, "must be contiguous in its last dimension"),
    ],
)
def test_arrays_like_out(name, change, error, text):
    arguments = call()
    refused(error, name + (text if text.startswith(".") else f" {text}"), **arguments | {name: change(arguments[name])})


@pytest.mark.parametrize("name", ["lse", "dlse"])
def test_arrays_like_lse(name):
    arguments = call()
    arguments["dlse"] = arguments["lse"]
    refused(ValueError, f"{name} must have rank 3: expected 3, got 2", **arguments | {name: arguments[name][0]})
    refused(ValueError, f"{name}.shape is wrong: expected ({B}, {HQ}, {TQ})", **arguments | {name: arguments[name].swapaxes(1, 2)})
    refused(TypeError, f"{name}.dtype is wrong: expected float32, got float64", **arguments | {name: arguments[name].astype(np.float64)})


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"w_kc": np.zeros((39, 2, 16), np.float32)}, ValueError, "w_kc.shape[0] must equal key_value.shape[2]: expected 40, got 39"),
        ({"b_k": None}, ValueError, "b_q needs b_k"),
        ({"w_vc": np.zeros((40, 2, 24), np.float16)}, TypeError, "w_vc.dtype must equal query.dtype"),
        ({"bias": np.zeros((3, 3), np.float32)}, ValueError, "bias.shape must broadcast to [batch, heads_q, seqlen_q, seqlen_k]"),
        ({"softmax_aux": np.zeros(HQ, np.float32)}, ValueError, "softmax_aux.shape is ambiguous"),
        ({"cu_seqlens": cu(0, 3, 5)}, ValueError, "key_value.shape[1] must equal query.shape[1] with cu_seqlens"),
        ({"softmax_scale": np.inf}, ValueError, "softmax_scale must be finite"),
        ({"logits_soft_cap": 0.0}, ValueError, "logits_soft_cap must be positive and finite"),
        ({"sliding_window": -2}, ValueError, "sliding_window's left must not be negative"),
        ({"dropout_prob": 0.5}, ValueError, "dropout_prob > 0 needs dropout_seed"),
        ({"causal_alignment": "middle"}, ValueError, "causal_alignment "),
        ({"platform": "cuda"}, ValueError, "platform must hold the arrays"),
        ({"deterministic": "yes"}, TypeError, "deterministic "),
        ({"cfg": FlashMLAConfig(strategy="both")}, ValueError, "cfg.strategy "),
        ({"cfg": FlashMLAConfig(num_splits=-1)}, ValueError, "cfg.num_splits is out of range"),
    ],
    ids=lambda x: str(x) if isinstance(x, str) else None,
)
def test_options_are_judged_as_in_the_forward_call(options, error, text):
    refused(error, text, **call(**options))


def test_libraries_are_not_mixed():
    torch = pytest.importorskip("torch")
    arguments = {name: torch.from_numpy(x) for name, x in call().items()}
    with pytest.raises((TypeError, ValueError), match="mla_attention_backward: lse must"):
        mla_attention_backward(**arguments | {"lse": call()["lse"]})
    with pytest.raises(NotImplementedError, match="there is none yet for CPU arrays"):
        mla_attention_backward(**arguments)


def test_the_forward_call_gives_what_the_backward_takes():
    arrays = CASE.arrays()
    out, lse = mla_attention(**arrays, return_lse=True)
    with pytest.raises(NotImplementedError, match=NO_KERNEL):
        mla_attention_backward(out, **arrays, out=out, lse=lse)


def test_gradients_are_a_named_tuple():
    gradients = attile.MLAGradients(1, 2, 3, 4)
    assert gradients == (1, 2, 3, 4, None, None, None, None)
    assert gradients._fields == ("query", "key_value", "w_kc", "w_vc", "b_q", "b_k", "bias", "softmax_aux")
