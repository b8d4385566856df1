"""MLA in NumPy float64: as plain attention on expanded keys and values, which reference.py computes and tolerance.py judges."""

import numpy as np
import reference


def expanded_decode(q_nope, q_pe, ckv, kpe, *, softmax_scale, causal=True, kv_lens=None, page_table=None, softmax_aux=None, logits_soft_cap=None, **_):
    """The call of flash_attention that is this call of mla_decode: keys [ckv, kpe], values ckv, gathered from their pages.

    Keys have one head, or with a rope key for each head as many as the queries."""
    lens = np.full(len(q_nope), ckv.shape[1]) if kv_lens is None else np.asarray(kv_lens)
    rope_heads = kpe.shape[2] if kpe is not None and kpe.ndim == 4 else 1
    longest = int(lens.max(initial=0))
    key = np.zeros((len(lens), longest, rope_heads, ckv.shape[-1] + (0 if kpe is None else kpe.shape[-1])), q_nope.dtype)
    for b, length in enumerate(lens):
        latent, rope = gather(ckv, page_table, b, length), None if kpe is None else gather(kpe, page_table, b, length)
        key[b, :length, :, : ckv.shape[-1]] = latent[:, None]
        if rope is not None:
            key[b, :length, :, ckv.shape[-1] :] = rope.reshape(length, rope_heads, rope.shape[-1])
    call = {
        "query": q_nope if q_pe is None else np.concatenate((q_nope, q_pe), -1),
        "key": key,
        "value": key[..., : ckv.shape[-1]],
        "softmax_scale": softmax_scale,
        "causal": causal,
        "causal_alignment": "bottom_right",
        "softmax_aux": softmax_aux,
        "logits_soft_cap": logits_soft_cap,
    }
    return call | ({} if kv_lens is None else {"cum_seqlens_k": np.concatenate(([0], np.cumsum(lens)))})


def gather(cache, page_table, b, length):
    """The rows of sequence b."""
    if page_table is None:
        return cache[b, :length]
    pages = page_table[b, : -(-int(length) // cache.shape[1])]
    return cache[pages].reshape(-1, *cache.shape[2:])[:length]


def mla_attention(query, key_value, w_kc, w_vc, b_q=None, b_k=None, cu_seqlens=None, *, return_lse=False, **options):
    """The attention of SPEC section 2 with keys and values stored, in float64 (in longdouble where the inputs are float64).

    Returns out [B,Tq,Hq,Dv] (rank 2: [Tq,Hq,Dv]), with return_lse=True also lse [B,Hq,Tq] (rank 2: [Hq,Tq])."""
    work = np.longdouble if query.dtype == np.float64 else np.float64
    expanded = expand(query, key_value, w_kc, w_vc, b_q, b_k, cu_seqlens, work=work, **options)
    query, value = expanded["query"], expanded["value"]
    out = np.zeros(query.shape[:-1] + value.shape[-1:], work)
    lse = np.full(query.shape[:-3] + (query.shape[-2], query.shape[-3]), -np.inf, work)
    score = reference.score_options(query.shape[-1], **options)
    for piece in reference.sequences(**expanded):
        piece_out, piece_lse = reference.attend(piece, work, **score)
        out[piece.out_index] = np.moveaxis(piece_out, 0, 1)
        lse[piece.lse_index] = piece_lse
    return (out, lse) if return_lse else out


def expand(query, key_value, w_kc, w_vc, b_q=None, b_k=None, cu_seqlens=None, *, work=np.float64, **options):
    """The same call as keywords of flash_attention, its keys and values computed and stored in `work`."""
    heads_q, heads_k = query.shape[-2], w_kc.shape[1]
    with np.errstate(all="ignore"):  # what no query reads may be NaN
        key, value = (np.tensordot(key_value.astype(work), w.astype(work), 1) for w in (w_kc, w_vc))
    if b_k is not None and b_k.ndim > key_value.ndim:
        key, value = (np.repeat(x, heads_q // heads_k if heads_k else 1, -2) for x in (key, value))
    return {
        "query": with_rope(query.astype(work), b_q),
        "key": with_rope(key, b_k),
        "value": value,
        **({} if cu_seqlens is None else {"cum_seqlens_q": cu_seqlens, "cum_seqlens_k": cu_seqlens}),
        **options,
    }


def with_rope(x, rope):
    """x [.., T, H, D] with a rope part [.., T, R], for all heads, or [.., T, H, R] behind it."""
    if rope is None:
        return x
    if rope.ndim < x.ndim:
        rope = rope[..., None, :]
    return np.concatenate([x, np.broadcast_to(rope, (*x.shape[:-1], rope.shape[-1])).astype(x.dtype)], -1)
