"""flash_attention, sentence by sentence of its contract: what each option means, on numbers small enough to work out beside it."""

import cases
import numpy as np
import pytest
import reference
from attile import FlashAttentionConfig, MaskInfo, explain, flash_attention
from machine import own_words
from tolerance import Judge, finfo


@pytest.fixture(autouse=True)
def _on_every_kernel(runnable_kernel, monkeypatch):
    """One that leaves a dtype to others is tested by test_forward.py alone."""
    for dtype in cases.DTYPES:
        try:
            flash_attention(*problem(dtype=cases.numpy_dtype(dtype)), cfg=FlashAttentionConfig(kernel=runnable_kernel))
        except NotImplementedError as error:
            pytest.skip(own_words(runnable_kernel, error))
    monkeypatch.setenv("ATTILE_KERNEL", runnable_kernel)


def rng(seed=0):
    return np.random.default_rng(seed)


def problem(seqlen_q=6, seqlen_k=9, heads_q=4, heads_k=2, head_dim=8, head_dim_v=5, batch=2, dtype=np.float32, seed=0):
    r = rng(seed)
    shapes = (batch, seqlen_q, heads_q, head_dim), (batch, seqlen_k, heads_k, head_dim), (batch, seqlen_k, heads_k, head_dim_v)
    return tuple(r.standard_normal(shape).astype(dtype) for shape in shapes)


def close(got, expected, **tolerance):
    np.testing.assert_allclose(np.asarray(got, np.float64), np.asarray(expected, np.float64), **({"rtol": 2e-6, "atol": 2e-6} | tolerance))


def judged(*arrays, **options):
    """The answer, after the reference has agreed with it."""
    names = ("query", "key", "value", "bias", "cum_seqlens_q", "cum_seqlens_k", "softmax_aux")
    call = dict(zip(names, arrays, strict=False)) | options
    out, lse = flash_attention(**call, return_lse=True)
    Judge(call).check(out, lse)
    return out, lse


def weights(query, key, scale=None):
    """softmax(scale q.k) [B,Hq,Tq,Tk] in float64."""
    key = np.repeat(key, query.shape[2] // key.shape[2], 2).astype(float)
    s = np.einsum("bihd,bjhd->bhij", query.astype(float), key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def combine(p, value):
    return np.einsum("bhij,bjhd->bihd", p, np.repeat(value, p.shape[1] // value.shape[2], 2).astype(float))


def seen_by(n, m, **options):
    """bool [n, m] of the keys that each query used."""
    query, key = np.zeros((1, n, 1, 4), np.float32), np.zeros((1, m, 1, 4), np.float32)
    return flash_attention(query, key, np.eye(m, dtype=np.float32)[None, :, None], **options)[0, :, 0] > 0


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


# ---- masks


@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 8), (8, 3), (40, 70), (70, 40)])
def test_causal_alignments(n, m):
    i, j = np.ogrid[:n, :m]
    np.testing.assert_array_equal(seen_by(n, m, causal=True), j <= i)
    np.testing.assert_array_equal(seen_by(n, m, causal=True, causal_alignment="top_left"), j <= i)
    np.testing.assert_array_equal(seen_by(n, m, causal=True, causal_alignment="bottom_right"), j <= i + m - n)


@pytest.mark.parametrize("alignment", ["top_left", "bottom_right"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "m"), [(7, 7), (3, 8), (40, 70), (70, 40)])
@pytest.mark.parametrize(("window", "pair"), [(0, (0, 0)), (2, (2, 2)), ((3, 1), (3, 1)), ((None, 2), (None, 2)), ((2, None), (2, None)), (-1, (None, None)), ((-1, 0), (None, 0)), ([4, 5], (4, 5))])
def test_windows_are_inclusive_and_aligned(n, m, window, pair, causal, alignment):
    i, j = np.ogrid[:n, :m]
    at = i + (m - n if alignment == "bottom_right" else 0)
    expected = np.ones((n, m), bool)
    if pair[0] is not None:
        expected &= j >= at - pair[0]
    if pair[1] is not None:
        expected &= j <= at + pair[1]
    if causal:
        expected &= j <= at
    if not isinstance(window, list):
        np.testing.assert_array_equal(seen_by(n, m, sliding_window=window, causal=causal, causal_alignment=alignment), expected)
    np.testing.assert_array_equal(seen_by(n, m, sliding_window=pair, causal=causal, causal_alignment=alignment), expected)


@pytest.mark.parametrize("window", [2**31 - 1, 2**31, 2**62, 2**63 - 1, (0, 2**63 - 1), (2**63 - 1, 0)])
def test_huge_windows_do_not_wrap(window):
    left, right = window if isinstance(window, tuple) else (window, window)
    i, j = np.ogrid[:5, :9]
    for causal in (False, True):
        seen = seen_by(5, 9, sliding_window=window, causal=causal, causal_alignment="bottom_right")
        np.testing.assert_array_equal(seen, (j >= i + 4 - min(left, 99)) & (j <= i + 4 + (0 if causal else min(right, 99))))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64"])
def test_mask_attends_where_it_is_not_zero(dtype):
    arrays = problem()
    mask = rng(1).integers(0, 3, (6, 9))
    if dtype.startswith("int"):
        mask[mask == 2] = -7
    mask = mask.astype(dtype)
    out, _ = judged(*arrays, attention_mask=mask)
    np.testing.assert_array_equal(out, flash_attention(*arrays, attention_mask=np.broadcast_to(mask != 0, (2, 4, 6, 9))))
    close(out, flash_attention(*arrays, np.where(mask, 0, -np.inf).astype(np.float32)))


def test_a_mask_of_int64_looks_at_all_its_bits():
    arrays = problem()
    mask = np.full((6, 9), 2**40)
    np.testing.assert_array_equal(flash_attention(*arrays, attention_mask=mask), flash_attention(*arrays))


def test_masks_are_anded():
    r = rng(1)
    arrays = problem(seqlen_q=20, seqlen_k=30)
    mask = r.random((2, 1, 20, 30)) < 0.8
    ids = r.integers(0, 2, (2, 20)), r.integers(0, 2, (2, 30))
    i, j = np.ogrid[:20, :30]
    every = mask & (ids[0][:, None, :, None] == ids[1][:, None, None, :]) & (j <= i + 10) & (j >= i + 10 - 12)
    out, _ = judged(
        *arrays, attention_mask=mask, q_segment_ids=ids[0], kv_segment_ids=ids[1], causal=True, causal_alignment="bottom_right", sliding_window=(12, 5)
    )
    close(out, flash_attention(*arrays, attention_mask=every))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_segment_ids_attend_where_equal_and_not_negative(dtype):
    q_ids, k_ids = np.array([[0, 1, -1, 2]], dtype), np.array([[1, 0, -1, -1, 1]], dtype)
    seen = seen_by(4, 5, q_segment_ids=q_ids, kv_segment_ids=k_ids)
    np.testing.assert_array_equal(seen, [[0, 1, 0, 0, 0], [1, 0, 0, 0, 1], [0] * 5, [0] * 5])


def test_mask_info_holds_the_same_fields():
    arrays = problem()
    mask = rng(1).random((6, 9)) < 0.7
    ids = {"q_segment_ids": np.zeros((2, 6), np.int32), "kv_segment_ids": np.array([[0] * 5 + [1] * 4] * 2, np.int32)}
    expected = flash_attention(*arrays, attention_mask=mask, **ids)
    np.testing.assert_array_equal(flash_attention(*arrays, mask_info=MaskInfo(mask, ids["q_segment_ids"], ids["kv_segment_ids"])), expected)
    np.testing.assert_array_equal(flash_attention(*arrays, mask_info=MaskInfo(attention_mask=mask), **ids), expected)

    class Other:
        attention_mask = mask
        q_segment_ids = ids["q_segment_ids"]
        kv_segment_ids = ids["kv_segment_ids"]

    np.testing.assert_array_equal(flash_attention(*arrays, mask_info=Other()), expected)
    with pytest.raises(ValueError, match="attention_mask"):
        flash_attention(*arrays, mask_info=MaskInfo(attention_mask=mask), attention_mask=mask)


# ---- varying lengths


def lengths(*lens, dtype=np.int32):
    return np.cumsum((0, *lens)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_packed_is_each_sequence_alone(dtype):
    query, key, value = (x[0] for x in problem(seqlen_q=14, seqlen_k=20, batch=1))
    cu_q, cu_k = lengths(3, 0, 9, dtype=dtype), lengths(4, 5, 10, dtype=dtype)
    query[12:], key[19:], value[19:] = np.nan, np.nan, np.nan
    options = {"causal": True, "causal_alignment": "bottom_right", "sliding_window": (3, 0)}
    out, lse = judged(query, key, value, None, cu_q, cu_k, **options)
    for b in range(3):
        rows_q, rows_k = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        alone = flash_attention(query[rows_q], key[rows_k], value[rows_k], return_lse=True, **options)
        close(out[rows_q], alone[0])
        close(lse[:, rows_q], alone[1])
    assert (out[12:] == 0).all()
    assert (lse[:, 12:] == -np.inf).all()


@pytest.mark.parametrize("sinks", [None, np.ones((4, 1), np.float32)])
def test_rows_outside_every_length_are_zero_and_minus_infinity_with_sinks_too(sinks):
    query, key, value = problem()
    query[1, 2:] = np.nan
    key[0, 4:], value[0, 4:] = np.nan, np.nan
    out, lse = judged(query, key, value, None, lengths(6, 2), lengths(4, 9), sinks)
    assert (out[1, 2:] == 0).all()
    assert (lse[1, :, 2:] == -np.inf).all()
    assert np.isfinite(lse[0]).all()


@pytest.mark.parametrize("side", ["q", "k"])
def test_either_length_may_be_left_out(side):
    query, key, value = problem()
    full = {"q": lengths(6, 6), "k": lengths(9, 9)}
    given = full | {side: lengths(3, 5)}
    only = {f"cum_seqlens_{side}": given[side]}
    both = {f"cum_seqlens_{name}": x for name, x in given.items()}
    np.testing.assert_array_equal(judged(query, key, value, **only)[0], flash_attention(query, key, value, **both))


def test_bias_and_mask_are_indexed_within_the_sequence():
    query, key, value = (x[0] for x in problem(seqlen_q=9, seqlen_k=9, batch=1))
    cu = lengths(4, 5)
    bias, mask = rng(1).standard_normal((2, 4, 6, 7)).astype(np.float32), rng(2).random((5, 5)) < 0.7
    bias[:, :, 5:], bias[..., 5:] = np.nan, np.nan
    out, _ = judged(query, key, value, bias, cu, cu, attention_mask=mask)
    second = flash_attention(query[4:], key[4:], value[4:], bias[1, :, :5, :5], attention_mask=mask)
    close(out[4:], second)


# ---- sinks


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (1, 1), (1, 3), (3,), (1,), (4, 0)])
def test_sinks_join_the_denominator_and_carry_no_value(shape):
    query, key, value = problem()
    sinks = rng(1).standard_normal(shape).astype(np.float32)
    out, lse = judged(query, key, value, softmax_aux=sinks)
    plain, plain_lse = flash_attention(query, key, value, return_lse=True)
    extra = np.log(np.exp(np.broadcast_to(sinks, (4, shape[-1])).astype(float)).sum(-1)) if shape[-1] else np.full(4, -np.inf)
    close(lse, np.logaddexp(plain_lse.astype(float), extra[None, :, None]))
    close(out, plain * np.exp(np.moveaxis(plain_lse - lse, 1, 2))[..., None])


def test_sinks_are_neither_scaled_nor_capped():
    query, key, value = problem()
    sinks = np.full((4, 1), 5, np.float32)
    _, lse = judged(query, key, value, softmax_aux=sinks, softmax_scale=0.0, logits_soft_cap=0.5)
    close(lse, np.log(9 + np.exp(5)))


def test_sinks_of_minus_infinity_are_none():
    arrays = problem()
    out, lse = judged(*arrays, softmax_aux=np.full((4, 2), -np.inf, np.float32))
    plain, plain_lse = flash_attention(*arrays, return_lse=True)
    np.testing.assert_array_equal(out, plain)
    np.testing.assert_array_equal(lse, plain_lse)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_sinks_may_have_their_own_dtype(dtype):
    arrays = problem()
    sinks = np.array([[0.5], [-1], [2], [0]])
    np.testing.assert_array_equal(flash_attention(*arrays, softmax_aux=sinks.astype(cases.numpy_dtype(dtype))), flash_attention(*arrays, softmax_aux=sinks))


def test_sinks_by_head_without_a_second_axis_are_ambiguous():
    with pytest.raises(ValueError, match=r"\[4, ?1\].*\[1, ?4\]"):
        flash_attention(*problem(), softmax_aux=np.ones(4, np.float32))
    flash_attention(*problem(heads_q=1, heads_k=1), softmax_aux=np.ones(1, np.float32))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("sinks", [False, True])
def test_a_row_that_sees_no_key(dtype, sinks):
    dtype = cases.numpy_dtype(dtype)
    aux = np.array([[1, 2]], dtype) if sinks else None
    mask = np.ones((6, 9), bool)
    mask[[0, 3]] = False
    out, lse = judged(*problem(dtype=dtype), softmax_aux=aux, attention_mask=mask)
    assert (out[:, [0, 3]] == 0).all()
    assert not np.signbit(out[:, [0, 3]].astype(float)).any()
    close(lse[:, :, [0, 3]], np.full((2, 4, 2), np.logaddexp(1, 2) if sinks else -np.inf))
    empty = [x[:, :n] for x, n in zip(problem(dtype=dtype), (6, 0, 0), strict=True)]
    out, lse = judged(*empty, softmax_aux=aux)
    assert (out == 0).all()
    close(lse, np.full((2, 4, 6), np.logaddexp(1, 2) if sinks else -np.inf))


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


# ---- NaN


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_nan_at_a_seen_position_stays_in_its_rows(dtype):
    dtype = cases.numpy_dtype(dtype)
    query, key, value = problem(dtype=dtype, seqlen_q=40, seqlen_k=70)
    query[1, 7, 2, 3] = np.nan
    out, lse = judged(query, key, value)
    expected = np.zeros(out.shape, bool)
    expected[1, 7, 2] = True
    np.testing.assert_array_equal(np.isnan(out), expected)
    np.testing.assert_array_equal(np.isnan(lse), np.moveaxis(expected[..., 0], 1, 2))

    query, key, value = problem(dtype=dtype, seqlen_q=40, seqlen_k=70)
    key[0, 30, 1, 0] = np.nan
    out, _ = judged(query, key, value, causal=True)
    expected[...] = False
    expected[0, 30:, 2:] = True
    np.testing.assert_array_equal(np.isnan(out), expected)

    query, key, value = problem(dtype=dtype, seqlen_q=40, seqlen_k=70)
    value[1, 5, 0, 2] = np.nan
    out, lse = judged(query, key, value)
    expected[...] = False
    expected[1, :, :2, 2] = True
    np.testing.assert_array_equal(np.isnan(out), expected)
    assert np.isfinite(lse).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_k_at_a_masked_position_has_no_effect(bad):
    query, key, value = problem(seqlen_q=40, seqlen_k=70)
    mask = np.ones((40, 70), bool)
    mask[:, [3, 4, 60]] = False
    expected = flash_attention(query, key, value, attention_mask=mask)
    key[:, [3, 4, 60]] = bad
    np.testing.assert_array_equal(flash_attention(query, key, value, attention_mask=mask), expected)
    capped = flash_attention(query, np.nan_to_num(key, nan=1, posinf=1, neginf=1), value, attention_mask=mask, logits_soft_cap=2.0)
    np.testing.assert_array_equal(flash_attention(query, key, value, attention_mask=mask, logits_soft_cap=2.0), capped)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bias_at_a_masked_position_has_no_effect(bad):
    query, key, value = problem()
    bias = rng(1).standard_normal((6, 9)).astype(np.float32)
    mask = rng(2).random((6, 9)) < 0.6
    expected = flash_attention(query, key, value, bias, attention_mask=mask)
    np.testing.assert_array_equal(flash_attention(query, key, value, np.where(mask, bias, bad).astype(np.float32), attention_mask=mask), expected)


def test_nan_sinks_reach_their_own_head_only():
    sinks = np.zeros((4, 1), np.float32)
    sinks[1] = np.nan
    out, lse = judged(*problem(), softmax_aux=sinks)
    assert np.isnan(out[:, :, 1]).all()
    assert np.isnan(lse[:, 1]).all()
    assert np.isfinite(np.delete(out, 1, 2)).all()


# ---- which kernel


def test_the_environment_forces_a_kernel_and_the_configuration_comes_first(monkeypatch, runnable_kernel):
    isa = runnable_kernel.removeprefix("forward_")
    for name in (runnable_kernel, isa):
        monkeypatch.setenv("ATTILE_KERNEL", name)
        assert explain(flash_attention, *problem())["kernel"] == runnable_kernel
        assert explain(flash_attention, *problem(), cfg=FlashAttentionConfig(kernel="portable"))["kernel"] == "forward_portable"
    monkeypatch.setenv("ATTILE_KERNEL", "forward_abacus")
    with pytest.raises(ValueError, match="forward_abacus"):
        flash_attention(*problem())


# ---- libraries


def test_numpy_index_arrays_go_with_any_library(library):
    case = next(case for case in cases.SMALL if case.id == "float32-padded")
    arrays, plain = case.arrays(library), case.arrays()
    mixed = arrays | {name: plain[name] for name in ("cum_seqlens_q", "cum_seqlens_k")}
    np.testing.assert_array_equal(cases.to_numpy(flash_attention(**mixed)), flash_attention(**plain))
