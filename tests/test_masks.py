"""flash_attention, sentence by sentence of its contract: which keys a query sees, varying lengths, sinks, empty rows, NaN."""

import cases
import numpy as np
import pytest
from attile import MaskInfo, flash_attention
from small import close, judged, lengths, problem, rng, seen_by

pytestmark = pytest.mark.usefixtures("on_every_kernel")


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
