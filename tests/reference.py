"""Attention in NumPy float64: the specification that a program can run.

    s   = softmax_scale * q.k
    s   = s + bias
    s   = cap * tanh(s / cap)
    s   = -inf where masked
    p   = exp(s - m) / (sum_j exp(s_j - m) + sum_n exp(aux_n - m)),    m the row's maximum, sinks included
    out = dropout(p) @ v,    lse = m + log(the denominator)

`flash_attention` has the keywords of `attile.flash_attention` and gives (out, lse) as unrounded float64. Nothing is checked here: the
inputs are valid ones. Scores are stored whole, one key head of one sequence at a time: O(group * Tq * Tk) memory, no tiles, no running
maximum, so that it shares no idea with the kernels that it judges.

`sequences` cuts a call into these pieces; tolerance.py computes the same pieces in the working precision.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)


@dataclass(frozen=True)
class Piece:
    """One key head of one sequence with the `group` query heads that share it. Only valid rows and keys are in it."""

    q: np.ndarray  # [group, n, D], the caller's dtype
    k: np.ndarray  # [m, D]
    v: np.ndarray  # [m, Dv]
    bias: np.ndarray | None  # broadcasts to [group, n, m]
    seen: np.ndarray  # bool [group, n, m]: what the masks let through
    sinks: np.ndarray  # [group, number of sinks]
    kept: np.ndarray | None  # bool [group, n, m]: what dropout keeps; None without dropout
    out_index: tuple  # out[out_index] is [n, group, Dv]
    lse_index: tuple  # lse[lse_index] is [group, n]


def flash_attention(query, key, value, bias=None, cum_seqlens_q=None, cum_seqlens_k=None, softmax_aux=None, *, return_lse=False, **options):
    """The attention of SPEC section 1 in float64 (in longdouble where the inputs are float64).

    Returns out [B,Tq,Hq,Dv] (rank 3: [Tq,Hq,Dv]), with return_lse=True also lse [B,Hq,Tq] (rank 3: [Hq,Tq]). `options` are the other
    keywords of `attile.flash_attention`; those that choose how to compute (precision, platform, cfg, out) change nothing here.
    """
    work = np.longdouble if query.dtype == np.float64 else np.float64
    out = np.zeros(query.shape[:-1] + value.shape[-1:], work)
    lse = np.full(query.shape[:-3] + (query.shape[-2], query.shape[-3]), -np.inf, work)
    score = score_options(query.shape[-1], **options)
    for piece in sequences(query, key, value, bias, cum_seqlens_q, cum_seqlens_k, softmax_aux, **options):
        piece_out, piece_lse = attend(piece, work, **score)
        out[piece.out_index] = np.moveaxis(piece_out, 0, 1)
        lse[piece.lse_index] = piece_lse
    return (out, lse) if return_lse else out


def attend(piece, work, *, normalize_output, dropout_prob, **score):
    """out [group, n, Dv] and lse [group, n] of one piece, computed in the dtype `work`."""
    with np.errstate(all="ignore"):  # inf - inf and overflow are part of the inputs that tests use
        m, p, denominator = softmax(scores(piece, work, **score), piece.sinks.astype(work))
        lse = m + np.log(denominator)
        if normalize_output:
            p = divide_rows(p, denominator)
        if piece.kept is not None:
            p = p * piece.kept / (1 - dropout_prob)  # a row of NaN stays one
        return p @ piece.v.astype(work), lse


def scores(piece, work, *, softmax_scale, logits_soft_cap, logits_dtype):
    """s [group, n, m], -inf where unseen."""
    s = softmax_scale * (piece.q.astype(work) @ piece.k.astype(work).T)
    if piece.bias is not None:
        s = s + piece.bias.astype(work)
    if logits_soft_cap is not None:
        s = logits_soft_cap * np.tanh(s / logits_soft_cap)
    if logits_dtype is not None:
        s = s.astype(logits_dtype).astype(work)
    return np.where(unseen(piece, logits_soft_cap), -np.inf, s)


def softmax(s, sinks):
    """m [group, n], exp(s - m) [group, n, m], and the sum of its rows with the sinks [group, n]."""
    aux = np.broadcast_to(sinks[:, None, :], (*s.shape[:2], sinks.shape[-1]))
    m = np.maximum(s.max(-1, initial=-np.inf), aux.max(-1, initial=-np.inf))
    m = np.where(m == -np.inf, 0, m)  # a row that sees nothing: exp(-inf - 0) = 0 everywhere, log(0) = -inf
    p = np.exp(s - m[..., None])
    return m, p, p.sum(-1) + np.exp(aux - m[..., None]).sum(-1)


def divide_rows(p, denominator):
    """p / denominator for each row; 0 in the rows that see nothing."""
    denominator = denominator[..., None]
    return np.divide(p, denominator, out=np.zeros_like(p), where=denominator != 0)


def unseen(piece, logits_soft_cap):
    """Where a score is -inf: masked, or, without a cap, a bias of -inf. There k has no effect, whatever it is."""
    if piece.bias is None or logits_soft_cap is not None:
        return ~piece.seen
    return ~piece.seen | np.broadcast_to(piece.bias == -np.inf, piece.seen.shape)


def score_options(
    head_dim,
    *,
    softmax_scale=None,
    logits_soft_cap=None,
    logits_dtype=None,
    normalize_output=True,
    dropout_prob=0.0,
    **_,
):
    """The keywords that say how a score becomes a weight, defaults filled in."""
    return {
        "softmax_scale": 1 / np.sqrt(np.float64(head_dim)) if softmax_scale is None else float(softmax_scale),
        "logits_soft_cap": logits_soft_cap,
        "logits_dtype": logits_dtype,
        "normalize_output": normalize_output,
        "dropout_prob": dropout_prob,
    }


def sequences(
    query,
    key,
    value,
    bias=None,
    cum_seqlens_q=None,
    cum_seqlens_k=None,
    softmax_aux=None,
    *,
    mask_info=None,
    attention_mask=None,
    q_segment_ids=None,
    kv_segment_ids=None,
    causal=False,
    causal_alignment="top_left",
    sliding_window=None,
    dropout_prob=0.0,
    dropout_seed=None,
    **_,
) -> Iterator[Piece]:
    """Cut a call into its pieces: sequence by sequence, key head by key head."""
    if mask_info is not None:
        attention_mask = mask_info.attention_mask if attention_mask is None else attention_mask
        q_segment_ids = mask_info.q_segment_ids if q_segment_ids is None else q_segment_ids
        kv_segment_ids = mask_info.kv_segment_ids if kv_segment_ids is None else kv_segment_ids
    heads_q, heads_k = query.shape[-2], key.shape[-2]
    group = heads_q // heads_k if heads_k else 0
    packed = query.ndim == 3 and cum_seqlens_q is not None
    batch = len(cum_seqlens_q) - 1 if packed else 1 if query.ndim == 3 else query.shape[0]
    sinks = broadcast_sinks(softmax_aux, heads_q)

    for b in range(batch):
        q_rows = sequence_rows(query, cum_seqlens_q, b)
        k_rows = sequence_rows(key, cum_seqlens_k, b)
        q, k, v = query[q_rows], key[k_rows], value[k_rows]
        n, m = q.shape[0], k.shape[0]
        seen = position_mask(n, m, causal, causal_alignment, sliding_window)
        if q_segment_ids is not None:
            q_ids, k_ids = np.asarray(q_segment_ids)[q_rows], np.asarray(kv_segment_ids)[k_rows]
            seen = seen & (q_ids[:, None] == k_ids[None, :]) & (q_ids[:, None] >= 0)
        for h_k in range(heads_k):
            heads = slice(h_k * group, (h_k + 1) * group)
            piece_seen = np.broadcast_to(seen, (group, n, m))
            if attention_mask is not None:
                piece_seen = piece_seen & (scores_of(attention_mask, b, heads, n, m) != 0)
            kept = None
            if dropout_prob > 0:
                kept = np.stack([philox_keep_mask(dropout_seed, dropout_prob, b, h, n, m) for h in range(heads.start, heads.stop)])
            yield Piece(
                q=np.moveaxis(q[:, heads], 0, 1),
                k=k[:, h_k],
                v=v[:, h_k],
                bias=None if bias is None else scores_of(bias, b, heads, n, m),
                seen=piece_seen,
                sinks=sinks[heads],
                kept=kept,
                out_index=(*index_tuple(q_rows), heads),
                lse_index=(q_rows[0], heads, q_rows[1]) if query.ndim == 4 else (heads, q_rows),
            )


def sequence_rows(x, cum_seqlens, b):
    """The index of the valid rows of sequence b: x[rows] is [length, heads, dim]."""
    if x.ndim == 3:
        return slice(None) if cum_seqlens is None else slice(int(cum_seqlens[b]), int(cum_seqlens[b + 1]))
    return (b, slice(None) if cum_seqlens is None else slice(0, int(cum_seqlens[b + 1]) - int(cum_seqlens[b])))


def index_tuple(rows):
    return rows if isinstance(rows, tuple) else (rows,)


def scores_of(x, b, heads, n, m):
    """The part [group, n, m] of a bias or attention mask that broadcasts to [B,Hq,Nq,Nk], Nq >= n, Nk >= m.

    Dimensions of 1 stay 1 and broadcast."""
    x = np.asarray(x)
    x = x.reshape((1,) * (4 - x.ndim) + x.shape)
    for axis, part in enumerate((slice(b, b + 1), heads, slice(0, n), slice(0, m))):
        if x.shape[axis] != 1:
            x = x[(slice(None),) * axis + (part,)]
    return x[0]


def position_mask(n, m, causal, causal_alignment, sliding_window):
    """bool [n, m]: what causality and the sliding window let through."""
    i = np.arange(n)[:, None] + (m - n if causal_alignment == "bottom_right" else 0)
    j = np.arange(m)[None, :]
    left, right = sliding_window if isinstance(sliding_window, tuple | list) else (sliding_window, sliding_window)
    seen = np.ones((n, m), bool)
    if causal:
        seen &= j <= i
    if left is not None and left != -1:
        seen &= j >= i - left
    if right is not None and right != -1:
        seen &= j <= i + right
    return seen


def broadcast_sinks(softmax_aux, heads_q):
    """Sinks as [heads_q, n]: given as [heads_q, n], [1, n] or [n]."""
    if softmax_aux is None:
        return np.zeros((heads_q, 0))
    softmax_aux = np.asarray(softmax_aux)
    return np.broadcast_to(softmax_aux, (heads_q, softmax_aux.shape[-1]))


def merge_states(out_a, lse_a, out_b, lse_b):
    """Attention over two disjoint sets of keys, joined. out [..,T,H,Dv], lse [..,H,T]; an lse of -inf or +inf is an empty side."""
    out_a, lse_a, out_b, lse_b = (np.asarray(x).astype(np.float64) for x in (out_a, lse_a, out_b, lse_b))
    lse_a, lse_b = (np.where(np.isposinf(x), -np.inf, x) for x in (lse_a, lse_b))
    with np.errstate(invalid="ignore"):
        lse = np.logaddexp(lse_a, lse_b)
        weight_a, weight_b = (np.where(np.isneginf(x), 0, np.exp(x - lse)) for x in (lse_a, lse_b))
    out = np.zeros_like(out_a)
    for side, weight in ((out_a, weight_a), (out_b, weight_b)):
        weight = np.swapaxes(weight, -1, -2)[..., None]  # [.., T, H, 1]
        out = out + np.where(weight == 0, 0, weight * np.where(weight == 0, 0, side))  # an empty side may hold anything
    return out, lse


def philox_keep_mask(seed, dropout_prob, b, h, seqlen_q, seqlen_k):
    """bool [seqlen_q, seqlen_k]: what dropout keeps in sequence b, query head h."""
    i = np.arange(seqlen_q, dtype=np.uint64)[:, None]
    j = np.arange(seqlen_k, dtype=np.uint64)[None, :]
    counter = (j >> 1, ((i >> 4) << 3) | (i & 7), np.uint64(h), np.uint64(b))
    words = philox4x32_10(np.broadcast_arrays(*counter), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    word = np.choose((2 * ((i >> 3) & 1) + (j & 1)).astype(np.intp), words)
    return word >= int(np.floor(dropout_prob * 2.0**32))


def philox4x32_10(counter, key):
    """Philox4x32-10 of Salmon et al. (2011): four uint32 words (held in uint64) for each counter."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = (int(k) for k in key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        product_0 = c0 * np.uint64(PHILOX_MULTIPLIERS[0])
        product_1 = c2 * np.uint64(PHILOX_MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product_1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product_1 & low,
            (product_0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product_0 & low,
        )
        k0, k1 = (k0 + PHILOX_WEYL[0]) & 0xFFFFFFFF, (k1 + PHILOX_WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3
