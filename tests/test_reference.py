"""The reference itself, checked against what others say: torch's SDPA, JAX's attention, Random123's vectors, and by hand."""

import numpy as np
import pytest
from machine import jax_64_bit
from reference import flash_attention, merge_states, philox4x32_10, philox_keep_mask


def problem(seed=0, batch=2, seqlen_q=7, seqlen_k=9, heads_q=4, heads_k=2, head_dim=5, head_dim_v=3):
    rng = np.random.default_rng(seed)
    shapes = (batch, seqlen_q, heads_q, head_dim), (batch, seqlen_k, heads_k, head_dim), (batch, seqlen_k, heads_k, head_dim_v)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def rng_like(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape)


# ---- other people's attention


def torch_sdpa(q, k, v, **options):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    heads_first = [torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, 1, 2))) for x in (q, k, v)]
    options = {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    out = torch.nn.functional.scaled_dot_product_attention(*heads_first, enable_gqa=True, **options)
    return np.moveaxis(out.numpy(), 2, 1)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_plain_and_grouped_heads_match_torch(scale):
    q, k, v = problem()
    np.testing.assert_allclose(flash_attention(q, k, v, softmax_scale=scale).astype(float), torch_sdpa(q, k, v, scale=scale), rtol=1e-12)


def test_causal_top_left_matches_torch():
    q, k, v = problem()
    np.testing.assert_allclose(flash_attention(q, k, v, causal=True).astype(float), torch_sdpa(q, k, v, is_causal=True), rtol=1e-12)


def test_causal_bottom_right_matches_torch():
    attention_bias = pytest.importorskip("torch.nn.attention.bias", reason="torch is not installed")
    q, k, v = problem()
    mask = attention_bias.causal_lower_right(7, 9)._materialize().numpy()
    ours = flash_attention(q, k, v, causal=True, causal_alignment="bottom_right")
    np.testing.assert_allclose(ours.astype(float), torch_sdpa(q, k, v, attn_mask=mask), rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, 4, 7, 9), (1, 4, 1, 9), (7, 9), (2, 1, 1, 9)])
def test_bias_and_mask_match_torch(shape):
    q, k, v = problem()
    bias = rng_like(*shape)
    mask = rng_like(*shape, seed=2) < 1
    as_bias = np.where(mask, bias, -np.inf)
    theirs = torch_sdpa(q, k, v, attn_mask=np.broadcast_to(as_bias, (2, 4, 7, 9)).copy())
    np.testing.assert_allclose(flash_attention(q, k, v, bias, attention_mask=mask).astype(float), theirs, rtol=1e-12)
    np.testing.assert_allclose(flash_attention(q, k, v, as_bias).astype(float), theirs, rtol=1e-12)


def jax_attention(q, k, v, **options):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    with jax_64_bit():
        out, lse = jax.nn.dot_product_attention(*map(jax.numpy.asarray, (q, k, v)), return_residual=True, **options)
        return np.asarray(out), np.moveaxis(np.asarray(lse), 1, 2)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"causal": True}, {"is_causal": True}),
        ({"sliding_window": (2, 1)}, {"local_window_size": (2, 1)}),
        ({"sliding_window": 3}, {"local_window_size": 3}),
        ({"causal": True, "sliding_window": (2, None)}, {"is_causal": True, "local_window_size": (2, 0)}),
    ],
)
def test_out_and_lse_match_jax(ours, theirs):
    q, k, v = problem(seqlen_k=7, head_dim_v=5)
    out, lse = flash_attention(q, k, v, return_lse=True, **ours)
    their_out, their_lse = jax_attention(q, k, v, **theirs)
    np.testing.assert_allclose(out.astype(float), their_out, rtol=2e-6, atol=1e-6)  # jax rounds its softmax to float32
    np.testing.assert_allclose(lse.astype(float), their_lse, rtol=2e-6, atol=1e-6)


def test_padded_lengths_match_jax():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    q, k, v = problem(head_dim_v=5)
    lengths = {"query_seq_lengths": np.array([5, 7], np.int32), "key_value_seq_lengths": np.array([9, 2], np.int32)}
    with jax_64_bit():
        theirs = np.array(jax.nn.dot_product_attention(*map(jax.numpy.asarray, (q, k, v)), **lengths))
    theirs[0, 5:] = 0
    ours = flash_attention(q, k, v, None, np.array([0, 5, 12]), np.array([0, 9, 11]))
    np.testing.assert_allclose(ours.astype(float), theirs, rtol=2e-6, atol=1e-6)


# ---- one number by hand


def scalar_row(scores, values, sinks=(), cap=None):
    """One row with head_dim_v 1 in plain Python."""
    scores = [cap * np.tanh(s / cap) if cap else s for s in scores]
    weights = [np.exp(s) for s in scores]
    total = sum(weights) + sum(np.exp(a) for a in sinks)
    return sum(w * x for w, x in zip(weights, values, strict=True)) / total, np.log(total)


def one_row(scores, values):
    """Arrays whose only query row has these scores."""
    return np.ones((1, 1, 1, 1)), np.reshape(scores, (1, -1, 1, 1)).astype(float), np.reshape(values, (1, -1, 1, 1)).astype(float)


def test_cap_comes_after_bias_and_sinks_are_not_capped():
    scores, values, bias, sinks = [0.5, 2.0, -1.0], [1.0, 2.0, 3.0], [3.0, -1.0, 0.25], [4.0, -1.0]
    out, lse = flash_attention(
        *one_row(scores, values), np.array(bias), None, None, np.array([sinks]), logits_soft_cap=1.5, softmax_scale=2.0, return_lse=True
    )
    expected = scalar_row([2 * s + b for s, b in zip(scores, bias, strict=True)], values, sinks, cap=1.5)
    np.testing.assert_allclose([out[0, 0, 0, 0], lse[0, 0, 0]], expected, rtol=1e-14)


def test_infinite_bias_is_unseen_without_cap_and_minus_cap_with_one():
    arrays = one_row([0.5, 2.0], [1.0, 2.0])
    bias = np.array([0, -np.inf])
    assert flash_attention(*arrays, bias)[0, 0, 0, 0] == 1
    expected, _ = scalar_row([2 * np.tanh(0.25), -2.0], [1.0, 2.0])
    np.testing.assert_allclose(flash_attention(*arrays, bias, logits_soft_cap=2.0)[0, 0, 0, 0], expected, rtol=1e-14)


def test_row_without_keys():
    q, k, v = one_row([0.5, 2.0], [1.0, 2.0])
    nothing = np.zeros((1, 1, 1, 2), bool)
    out, lse = flash_attention(q, k, v, attention_mask=nothing, return_lse=True)
    assert out[0, 0, 0, 0] == 0
    assert lse[0, 0, 0] == -np.inf
    out, lse = flash_attention(q, k, v, softmax_aux=np.array([[1.0, 2.0]]), attention_mask=nothing, return_lse=True)
    assert out[0, 0, 0, 0] == 0
    np.testing.assert_allclose(lse[0, 0, 0], np.logaddexp(1, 2), rtol=1e-15)


def test_unnormalized_out_is_relative_to_the_row_maximum():
    q, k, v = problem()
    sinks = rng_like(4, 2)
    out, lse = flash_attention(q, k, v, softmax_aux=sinks, return_lse=True)
    raw = flash_attention(q, k, v, softmax_aux=sinks, normalize_output=False)
    scores = np.einsum("bihd,bjhd->bhij", q, np.repeat(k, 2, 2)) / np.sqrt(5)
    m = np.maximum(scores.max(-1), sinks.max(-1)[None, :, None])
    np.testing.assert_allclose(raw, out * np.exp(np.moveaxis(lse - m, 1, 2))[..., None], rtol=1e-12)


def test_logits_dtype_rounds_capped_scores():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    scores = [1.0, 1.001, 3.01]
    rounded = [float(np.float32(s).astype(ml_dtypes.bfloat16)) for s in scores]
    assert rounded[:2] == [1.0, 1.0]
    out = flash_attention(*one_row(scores, [1.0, 2.0, 3.0]), logits_dtype=ml_dtypes.bfloat16)
    np.testing.assert_allclose(out[0, 0, 0, 0], scalar_row(rounded, [1.0, 2.0, 3.0])[0], rtol=1e-14)


# ---- masks


def seen_pairs(n, m, **options):
    """bool [n, m] of which keys each query used, read off the weights."""
    q, k = np.zeros((1, n, 1, 1)), np.zeros((1, m, 1, 1))
    return flash_attention(q, k, np.eye(m)[None, :, None, :], **options)[0, :, 0] > 0


@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 6), (6, 3), (1, 4), (4, 1)])
@pytest.mark.parametrize("alignment", ["top_left", "bottom_right"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 0, 2, (1, 2), (None, 1), (-1, 0), (0, None), (2, -1)])
def test_position_masks_pair_by_pair(n, m, alignment, causal, window):
    seen = seen_pairs(n, m, causal=causal, causal_alignment=alignment, sliding_window=window)
    left, right = window if isinstance(window, tuple) else (window, window)
    for i in range(n):
        at = i + m - n if alignment == "bottom_right" else i
        for j in range(m):
            inside_left = left in (None, -1) or j >= at - left
            inside_right = right in (None, -1) or j <= at + right
            assert seen[i, j] == (inside_left and inside_right and (not causal or j <= at)), (i, j)


def test_segment_ids_meet_where_equal_and_not_negative():
    q_ids, k_ids = np.array([[0, 1, -1, 1]]), np.array([[1, 0, -1]])
    seen = seen_pairs(4, 3, q_segment_ids=q_ids, kv_segment_ids=k_ids)
    np.testing.assert_array_equal(seen, [[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]])


# ---- layouts


def test_packed_and_padded_equal_one_sequence_at_a_time():
    rng = np.random.default_rng(3)
    lens_q, lens_k = (3, 0, 5), (4, 2, 5)
    cu_q, cu_k = np.cumsum((0, *lens_q)), np.cumsum((0, *lens_k))
    q, k, v = rng.standard_normal((9, 4, 6)), rng.standard_normal((12, 2, 6)), rng.standard_normal((12, 2, 2))
    bias, mask = rng.standard_normal((3, 1, 6, 7)), rng.random((1, 4, 6, 7)) < 0.7
    sinks = rng.standard_normal((1, 1))
    options = {"causal": True, "causal_alignment": "bottom_right", "dropout_prob": 0.3, "dropout_seed": 5, "return_lse": True}
    out, lse = flash_attention(q, k, v, bias, cu_q, cu_k, sinks, attention_mask=mask, **options)
    padded_q, padded_k, padded_v = np.full((3, 5, 4, 6), np.nan), np.full((3, 6, 2, 6), np.nan), np.full((3, 6, 2, 2), np.nan)
    for b in range(3):
        padded_q[b, : lens_q[b]] = q[cu_q[b] : cu_q[b + 1]]
        padded_k[b, : lens_k[b]], padded_v[b, : lens_k[b]] = k[cu_k[b] : cu_k[b + 1]], v[cu_k[b] : cu_k[b + 1]]
    padded_out, padded_lse = flash_attention(padded_q, padded_k, padded_v, bias, cu_q, cu_k, sinks, attention_mask=mask, **options)
    options["dropout_prob"] = 0  # its bits depend on the index of the sequence
    plain_out = flash_attention(q, k, v, bias, cu_q, cu_k, sinks, attention_mask=mask, **options)[0]
    for b in range(3):
        rows_q, rows_k = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        n, m = lens_q[b], lens_k[b]
        alone = flash_attention(
            q[rows_q], k[rows_k], v[rows_k], bias[b, :, :n, :m], None, None, sinks, attention_mask=mask[0, :, :n, :m], **options
        )
        np.testing.assert_allclose(plain_out[rows_q], alone[0], rtol=1e-12)
        np.testing.assert_allclose(lse[:, rows_q], alone[1], rtol=1e-12)
        np.testing.assert_array_equal(padded_out[b, :n], out[rows_q])
        np.testing.assert_array_equal(padded_lse[b, :, :n], lse[:, rows_q])
        assert (padded_out[b, n:] == 0).all()
        assert (padded_lse[b, :, n:] == -np.inf).all()
    assert (out[8:] == 0).all()
    assert (lse[:, 8:] == -np.inf).all()


@pytest.mark.parametrize(
    ("shapes", "out_shape"),
    [
        (((0, 3, 2, 4), (0, 5, 1, 4), (0, 5, 1, 6)), (0, 3, 2, 6)),
        (((2, 0, 2, 4), (2, 5, 1, 4), (2, 5, 1, 6)), (2, 0, 2, 6)),
        (((2, 3, 2, 4), (2, 0, 1, 4), (2, 0, 1, 6)), (2, 3, 2, 6)),
        (((2, 3, 0, 4), (2, 5, 0, 4), (2, 5, 0, 6)), (2, 3, 0, 6)),
    ],
)
def test_zero_sizes(shapes, out_shape):
    out, lse = flash_attention(*map(np.zeros, shapes), return_lse=True)
    assert out.shape == out_shape
    assert (out == 0).all()
    assert lse.shape == (out_shape[0], out_shape[2], out_shape[1])
    assert (lse == -np.inf).all()


def test_mask_info_is_the_same_three_fields():
    class Info:
        attention_mask = rng_like(7, 9) < 0.5
        q_segment_ids = np.zeros((2, 7), int)
        kv_segment_ids = np.arange(18).reshape(2, 9) % 2 - 1

    arrays = problem()
    fields = {name: getattr(Info, name) for name in ("attention_mask", "q_segment_ids", "kv_segment_ids")}
    np.testing.assert_array_equal(flash_attention(*arrays, mask_info=Info), flash_attention(*arrays, **fields))


# ---- dropout

KNOWN_ANSWERS = [  # philox4x32 10 of Random123's kat_vectors: counter, key, answer
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, answer):
    def words(text):
        return [int(word, 16) for word in text.split()]

    assert [int(word) for word in philox4x32_10(words(counter), words(key))] == words(answer)


def test_keep_mask_bit_by_bit():
    seed, p, b, h = 0x0123456789ABCDEF, 0.37, 2, 3
    kept = philox_keep_mask(seed, p, b, h, 35, 6)
    for i in range(35):
        for j in range(6):
            words = philox4x32_10((j >> 1, ((i >> 4) << 3) | (i & 7), h, b), (0x89ABCDEF, 0x01234567))
            assert kept[i, j] == (int(words[2 * ((i >> 3) & 1) + (j & 1)]) >= int(p * 2**32)), (i, j)


def test_keep_mask_is_fair_and_uncorrelated():
    p = 0.25
    kept = np.stack([philox_keep_mask(7, p, b, h, 128, 128) for b in range(2) for h in range(4)])
    assert abs(kept.mean() - (1 - p)) < 4 * np.sqrt(p * (1 - p) / kept.size)
    flat = kept.reshape(8, -1) - (1 - p)
    correlation = flat @ flat.T / (p * (1 - p) * flat.shape[1])
    assert np.abs(correlation - np.eye(8)).max() < 0.05


def test_dropout_scales_what_it_keeps_and_leaves_lse():
    q, k, v = problem()
    out, lse = flash_attention(q, k, v, dropout_prob=0.5, dropout_seed=11, return_lse=True)
    weights = flash_attention(q, k, np.broadcast_to(np.eye(9)[:, None, :], (2, 9, 2, 9)))
    kept = np.stack([[philox_keep_mask(11, 0.5, b, h, 7, 9) for h in range(4)] for b in range(2)])
    expected = np.einsum("bihj,bhij,bjhd->bihd", weights, 2.0 * kept, np.repeat(v, 2, 2))
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    np.testing.assert_array_equal(lse, flash_attention(q, k, v, return_lse=True)[1])


# ---- merge


@pytest.mark.parametrize("split", [0, 1, 4, 9])
def test_merge_of_a_split_is_the_whole(split):
    q, k, v = problem()
    sinks = rng_like(4, 1)
    parts = [
        flash_attention(q, k[:, :split], v[:, :split], return_lse=True),
        flash_attention(q, k[:, split:], v[:, split:], softmax_aux=sinks, return_lse=True),
    ]
    out, lse = merge_states(*parts[0], *parts[1])
    whole = flash_attention(q, k, v, softmax_aux=sinks, return_lse=True)
    np.testing.assert_allclose(out, whole[0].astype(float), rtol=1e-12)
    np.testing.assert_allclose(lse, whole[1].astype(float), rtol=1e-12)


@pytest.mark.parametrize("empty", [-np.inf, np.inf])
def test_merge_ignores_an_empty_side(empty):
    out, lse = rng_like(1, 2, 3, 4), rng_like(1, 3, 2)
    nothing = np.full_like(out, np.nan), np.full_like(lse, empty)
    for pair in ((out, lse, *nothing), (*nothing, out, lse)):
        merged_out, merged_lse = merge_states(*pair)
        np.testing.assert_array_equal(merged_out, out)
        np.testing.assert_array_equal(merged_lse, lse)
    merged_out, merged_lse = merge_states(*nothing, *nothing)
    assert (merged_out == 0).all()
    assert (merged_lse == -np.inf).all()


def test_float64_inputs_are_computed_in_longdouble():
    assert flash_attention(*problem()).dtype == np.longdouble
    assert flash_attention(*(x.astype(np.float32) for x in problem())).dtype == np.float64
