"""Problems small enough to be worked out by hand, and the arithmetic for it."""

import numpy as np
from attile import flash_attention
from tolerance import Judge


def rng(seed=0):
    """Random numbers, the same every time."""
    return np.random.default_rng(seed)


def problem(seqlen_q=6, seqlen_k=9, heads_q=4, heads_k=2, head_dim=8, head_dim_v=5, batch=2, dtype=np.float32, seed=0):
    """query, key, value."""
    r = rng(seed)
    shapes = (batch, seqlen_q, heads_q, head_dim), (batch, seqlen_k, heads_k, head_dim), (batch, seqlen_k, heads_k, head_dim_v)
    return tuple(r.standard_normal(shape).astype(dtype) for shape in shapes)


def close(got, expected, **tolerance):
    """Equal up to the roundings of float32."""
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
    """p @ v, each query head with its key head."""
    return np.einsum("bhij,bjhd->bihd", p, np.repeat(value, p.shape[1] // value.shape[2], 2).astype(float))


def seen_by(n, m, **options):
    """bool [n, m] of the keys that each query used."""
    query, key = np.zeros((1, n, 1, 4), np.float32), np.zeros((1, m, 1, 4), np.float32)
    return flash_attention(query, key, np.eye(m, dtype=np.float32)[None, :, None], **options)[0, :, 0] > 0


def lengths(*lens, dtype=np.int32):
    """cum_seqlens of sequences this long."""
    return np.cumsum((0, *lens)).astype(dtype)
