"""flash_attention, sentence by sentence of its contract: shapes, scores, results, dropout, kernels, libraries."""

import cases
import numpy as np
import pytest
import reference
from attile import FlashAttentionConfig, explain, flash_attention
from small import close, combine, judged, lengths, problem, rng, weights
from tolerance import Judge, finfo

pytestmark = pytest.mark.usefixtures("on_every_kernel")


# ---- shapes and positions of arguments


def test_positional_order():
    query, key, value = problem()
    bias, sinks = rng(1).standard_normal((6, 9)).astype(np.float32), np.ones((4, 1), np.float32)
    cu_q, cu_k = np.array([0, 6, 10]), np.array([0, 3, 12])
    by_name = flash_attention(query=query, key=key, value=value, bias=bias, cum_seqlens_q=cu_q, cum_seqlens_k=cu_k, softmax_aux=sinks)
    np.testing.assert_array_equal(flash_attention(query, key, value, bias, cu_q, cu_k, sinks), by_name)
    with pytest.raises(TypeError):
        flash_attention(query, key, value, bias, cu_q, cu_k, sinks, None)


def test_rank_3_is_a_batch_of_one():
    query, key, value = problem(batch=1)
    bias = rng(1).standard_normal((4, 6, 9)).astype(np.float32)
    out, lse = flash_attention(query[0], key[0], value[0], bias, causal=True, return_lse=True)
    whole_out, whole_lse = flash_attention(query, key, value, bias, causal=True, return_lse=True)
    assert out.shape == (6, 4, 5)
    assert lse.shape == (4, 6)
    np.testing.assert_array_equal(out, whole_out[0])
    np.testing.assert_array_equal(lse, whole_lse[0])


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1), (6, 3)])
def test_query_head_h_meets_key_head_h_div_group(heads):
    query, key, value = problem(heads_q=heads[0], heads_k=heads[1])
    close(flash_attention(query, key, value), combine(weights(query, key), value))


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_out_has_the_inputs_dtype_and_lse_the_accumulators(dtype):
    dtype = cases.numpy_dtype(dtype)
    out, lse = judged(*problem(dtype=dtype))
    assert out.dtype == dtype
    assert lse.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert lse.shape == (2, 4, 6)


def test_out_is_written_in_place_and_returned():
    arrays = problem()
    out = np.full((2, 6, 4, 5), np.nan, np.float32)
    assert flash_attention(*arrays, out=out) is out
    np.testing.assert_array_equal(out, flash_attention(*arrays))


def test_out_may_have_strides_and_its_gaps_stay():
    arrays = problem()
    room = np.full((2, 4, 7, 11), 77, np.float32)
    out = np.moveaxis(room[:, :, :6, 3:8], 1, 2)
    flash_attention(*arrays, out=out)
    np.testing.assert_array_equal(out, flash_attention(*arrays))
    room[:, :, :6, 3:8] = 77
    assert (room == 77).all()


def test_inputs_stay_as_they_are():
    case = next(case for case in cases.SMALL if case.id == "float32-everything")
    arrays = case.arrays()
    before = {name: x.copy() for name, x in arrays.items() if isinstance(x, np.ndarray)}
    flash_attention(**arrays)
    for name, x in before.items():
        np.testing.assert_array_equal(arrays[name], x, err_msg=name)


# ---- scores


def test_default_scale():
    query, key, value = problem()
    np.testing.assert_array_equal(flash_attention(query, key, value), flash_attention(query, key, value, softmax_scale=8**-0.5))


@pytest.mark.parametrize("scale", [0, 0.01, 1, 3.5, -0.7, np.float32(0.25), np.int64(2)])
def test_scale(scale):
    query, key, value = problem()
    close(judged(query, key, value, softmax_scale=scale)[0], combine(weights(query, key, float(scale)), value))


@pytest.mark.parametrize("scale", [1e-30, 1e-40, 1e-300])
def test_scales_too_small_to_matter(scale):
    """Below float32's least number too: what is masked stays so."""
    query, key, value = problem()
    out = flash_attention(query, key, value, softmax_scale=scale, causal=True)
    np.testing.assert_array_equal(out, flash_attention(query, key, value, softmax_scale=0, causal=True))
    assert np.isfinite(out).all()


def test_bias_is_added_after_the_scale_and_before_the_cap():
    query, key, value = np.ones((1, 1, 1, 1), np.float32), np.array([0.5, 2], np.float32).reshape(1, 2, 1, 1), np.array([0, 1], np.float32).reshape(1, 2, 1, 1)
    s = 2 * np.tanh((3 * np.array([0.5, 2]) + np.array([1, -4])) / 2)
    out = flash_attention(query, key, value, np.array([1, -4], np.float32), softmax_scale=3, logits_soft_cap=2)
    close(out[0, 0, 0, 0], 1 / (1 + np.exp(s[0] - s[1])))


@pytest.mark.parametrize("shape", [(2, 4, 6, 9), (1, 1, 6, 9), (2, 1, 1, 1), (4, 1, 9), (6, 9), (9,), (1,), ()])
def test_bias_broadcasts_as_numpy_does(shape):
    arrays = problem()
    bias = np.asarray(rng(1).standard_normal(shape)).astype(np.float32)
    whole = np.ascontiguousarray(np.broadcast_to(bias, (2, 4, 6, 9)))
    np.testing.assert_array_equal(judged(*arrays, bias)[0], flash_attention(*arrays, whole))
    np.testing.assert_array_equal(flash_attention(*arrays, np.broadcast_to(bias, (2, 4, 6, 9))), flash_attention(*arrays, whole))


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (2, 1, 0, 3), (1, 2, 0, 3)])
def test_bias_and_mask_may_have_any_strides_but_in_their_last_dimension(order):
    arrays = problem()
    shape = (2, 4, 6, 9)
    r = rng(1)
    bias = r.standard_normal(shape).astype(np.float32)
    mask = r.random(shape) < 0.6
    laid = [np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order)) for x in (bias, mask)]
    np.testing.assert_array_equal(judged(*arrays, laid[0], attention_mask=laid[1])[0], flash_attention(*arrays, bias, attention_mask=mask))
    backwards = [np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1] for x in (bias, mask)]
    np.testing.assert_array_equal(flash_attention(*arrays, backwards[0], attention_mask=backwards[1]), flash_attention(*arrays, bias, attention_mask=mask))


@pytest.mark.parametrize("name", ["bias", "attention_mask"])
def test_bias_and_mask_may_lie_at_any_address(name):
    arrays = problem()
    x = np.asarray(rng(1).standard_normal((2, 4, 6, 9)), np.float32)
    x = x if name == "bias" else (x > 0).astype(np.int64)
    for memory in ("bytes", "offset", "gaps", "readonly"):
        np.testing.assert_array_equal(flash_attention(*arrays, **{name: cases.place(x, memory)}), flash_attention(*arrays, **{name: x}))


def test_bias_of_minus_infinity_is_unseen_without_cap():
    query, key, value = problem()
    bias = np.where(rng(1).random((6, 9)) < 0.4, -np.inf, 0).astype(np.float32)
    bias[2] = -np.inf
    key[:, 3] = np.nan
    bias[:, 3] = -np.inf
    out, lse = judged(query, key, value, bias)
    close(out, flash_attention(query, np.nan_to_num(key), value, attention_mask=bias == 0))
    assert (out[:, 2] == 0).all()
    assert (lse[:, :, 2] == -np.inf).all()


def test_bias_of_minus_infinity_is_minus_cap_with_a_cap():
    query, key, value = problem()
    bias = np.where(rng(1).random((6, 9)) < 0.4, -np.inf, 0).astype(np.float32)
    out, _ = judged(query, key, value, bias, logits_soft_cap=1.5)
    key64 = np.repeat(key, 2, 2).astype(float)
    s = np.einsum("bihd,bjhd->bhij", query.astype(float), key64) * 8**-0.5 + bias
    p = np.exp(1.5 * np.tanh(s / 1.5))
    close(out, combine(p / p.sum(-1, keepdims=True), value))


def test_float64_bias_with_float32_arrays():
    arrays = problem()
    bias = rng(1).standard_normal((6, 9))
    close(flash_attention(*arrays, bias), flash_attention(*arrays, bias.astype(np.float32)))


@pytest.mark.parametrize("scale", [1e5, 1e10, 1e20, 1e36])
def test_scores_of_any_size(scale, runnable_kernel):
    for dtype in cases.DTYPES:
        arrays = problem(dtype=cases.numpy_dtype(dtype), seqlen_k=130)
        judge = Judge(dict(zip(("query", "key", "value"), arrays, strict=True), softmax_scale=scale))
        out, lse = flash_attention(*arrays, softmax_scale=scale, return_lse=True, cfg=FlashAttentionConfig(kernel=runnable_kernel))
        judge.check(out, lse)


@pytest.mark.parametrize("low", [-1e4, -1e9, -1e30, "smallest"])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_finite_bias_masks_no_row_away(dtype, low, runnable_kernel):
    """The smallest number as a mask, as models use it: a row that has it everywhere is the mean of v, not an empty row."""
    dtype = cases.numpy_dtype(dtype)
    smallest = float(finfo(dtype).min)
    low = smallest if low == "smallest" else max(low, smallest)
    query, key, value = problem(dtype=dtype, seqlen_q=20, seqlen_k=200)
    bias = np.where(rng(3).random((20, 200)) < 0.5, low, 0).astype(dtype)
    bias[4], bias[5, :150], bias[6, 50:] = low, low, low
    out, lse = flash_attention(query, key, value, bias, return_lse=True, cfg=FlashAttentionConfig(kernel=runnable_kernel))
    judge = Judge({"query": query, "key": key, "value": value, "bias": bias})
    judge.check(out)
    if low > -1e38:  # beyond, an lse in base 2 leaves float32
        judge.check(out, lse)
    assert np.isfinite(lse).all()


# ---- results


def test_lse_is_a_natural_logarithm():
    query, key, value = problem()
    _, lse = flash_attention(query, key, value, return_lse=True)
    s = np.einsum("bihd,bjhd->bhij", query.astype(float), np.repeat(key, 2, 2).astype(float)) * 8**-0.5
    close(lse, np.log(np.exp(s).sum(-1)))


@pytest.mark.parametrize("sinks", [None, np.full((4, 1), -9, np.float32), np.full((4, 1), 9, np.float32)])
@pytest.mark.parametrize("keys", ["random", "staircase"])
def test_unnormalized_out_is_relative_to_the_exact_maximum(sinks, keys):
    call = cases.Case(id="raw", keys=keys, seqlen_k=200, options={"normalize_output": False}).arrays()
    if sinks is not None:
        call["softmax_aux"] = sinks
    out, lse = flash_attention(**call, return_lse=True)
    Judge(call).check(out, lse)
    s = np.einsum("bihd,bjhd->bhij", call["query"].astype(float), np.repeat(call["key"], 2, 2).astype(float)) * 32**-0.5
    m = np.maximum(s.max(-1, keepdims=True), -np.inf if sinks is None else sinks[0, 0])
    close(out, combine(np.exp(s - m), call["value"]), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("logits", ["float16", "bfloat16"])
def test_logits_dtype_rounds_scores(logits):
    query, key, value = problem(dtype=np.float32)
    logits = cases.numpy_dtype(logits)
    judged(query, key, value, logits_dtype=logits)
    same = flash_attention(query, key, value)
    np.testing.assert_array_equal(flash_attention(query, key, value, logits_dtype=np.float32), same)
    assert (flash_attention(query, key, value, logits_dtype=logits) != same).any()


def test_logits_dtype_may_be_named():
    arrays = problem()
    by_type = flash_attention(*arrays, logits_dtype=cases.numpy_dtype("bfloat16"))
    np.testing.assert_array_equal(flash_attention(*arrays, logits_dtype="bfloat16"), by_type)


@pytest.mark.parametrize("precision", [None, "highest", "high", "default", ("default", "highest")])
def test_precision_of_float64_and_halves_is_ignored(precision):
    for dtype in ("float64", "float16", "bfloat16"):
        arrays = problem(dtype=cases.numpy_dtype(dtype))
        np.testing.assert_array_equal(flash_attention(*arrays, precision=precision), flash_attention(*arrays))


@pytest.mark.parametrize("precision", [None, "highest", ("default", "highest"), ("high", "default"), "high", "default"])
def test_precision_of_float32(precision):
    out = flash_attention(*problem(), precision=precision)
    exact = flash_attention(*problem())
    reduced = precision in ("high", "default", ("high", "default"))
    close(out, exact, atol=0.05 if precision == "default" else 1e-4 if reduced else 0, rtol=0)


@pytest.mark.parametrize("platform", ["auto", "cpu"])
def test_platform_that_holds_the_arrays(platform):
    np.testing.assert_array_equal(flash_attention(*problem(), platform=platform), flash_attention(*problem()))


def test_platform_that_does_not_hold_the_arrays():
    with pytest.raises(ValueError, match="platform"):
        flash_attention(*problem(), platform="cuda")


# ---- dropout


def test_dropout_keeps_what_the_formula_says_on_every_kernel(runnable_kernel):
    n, m, p, seed = 70, 90, 0.3, 0xFEDCBA9876543210
    query, key = np.zeros((2, n, 4, 8), np.float32), np.zeros((2, m, 2, 8), np.float32)
    value = np.broadcast_to(np.eye(m, dtype=np.float32)[None, :, None], (2, m, 2, m))
    out = flash_attention(query, key, value, dropout_prob=p, dropout_seed=seed, cfg=FlashAttentionConfig(kernel=runnable_kernel))
    for b in range(2):
        for h in range(4):
            kept = reference.philox_keep_mask(seed, p, b, h, n, m)
            np.testing.assert_array_equal(out[b, :, h] > 0, kept)
            close(out[b, :, h], kept / m / (1 - p))


def test_dropout_positions_are_those_in_the_sequence():
    query, key = np.zeros((12, 1, 4), np.float32), np.zeros((14, 1, 4), np.float32)
    value = np.eye(14, dtype=np.float32)[:, None]
    out = flash_attention(query, key, value, None, lengths(5, 7), lengths(6, 8), dropout_prob=0.5, dropout_seed=3)
    np.testing.assert_array_equal(out[5:, 0, 6:] > 0, reference.philox_keep_mask(3, 0.5, 1, 0, 7, 8))


def test_dropout_of_zero_needs_no_seed_and_a_seed_alone_does_nothing():
    arrays = problem()
    np.testing.assert_array_equal(flash_attention(*arrays, dropout_prob=0.0), flash_attention(*arrays))
    np.testing.assert_array_equal(flash_attention(*arrays, dropout_seed=4), flash_attention(*arrays))
    with pytest.raises(ValueError, match="dropout_seed"):
        flash_attention(*arrays, dropout_prob=0.1)


def test_dropout_leaves_lse_alone():
    arrays = problem()
    _, lse = judged(*arrays, dropout_prob=0.4, dropout_seed=9)
    np.testing.assert_array_equal(lse, flash_attention(*arrays, return_lse=True)[1])


# ---- which kernel


def test_the_environment_forces_a_kernel_and_the_configuration_comes_first(monkeypatch, runnable_kernel):
    isa = runnable_kernel.partition("_")[2]
    for name in (runnable_kernel, isa):
        monkeypatch.setenv("ATTILE_KERNEL", name)
        report = explain(flash_attention, *problem())
        assert report["isa"] == isa
        assert report["kernel"] == runnable_kernel or name == isa
        assert explain(flash_attention, *problem(), cfg=FlashAttentionConfig(kernel="portable"))["isa"] == "portable"
        assert explain(flash_attention, *problem(), cfg=FlashAttentionConfig(kernel="forward_portable"))["kernel"] == "forward_portable"
    monkeypatch.setenv("ATTILE_KERNEL", "forward_abacus")
    with pytest.raises(ValueError, match="forward_abacus"):
        flash_attention(*problem())


# ---- libraries


def test_numpy_index_arrays_go_with_any_library(library):
    case = next(case for case in cases.SMALL if case.id == "float32-padded")
    arrays, plain = case.arrays(library), case.arrays()
    mixed = arrays | {name: plain[name] for name in ("cum_seqlens_q", "cum_seqlens_k")}
    np.testing.assert_array_equal(cases.to_numpy(flash_attention(**mixed)), flash_attention(**plain))
