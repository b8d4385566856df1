"""Gradients of mla_attention for arrays without autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from attile import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attile.arrays import Array
    from attile.mla import FlashMLAConfig


class MLAGradients(NamedTuple):
    """Gradients of the inputs of `mla_attention`.

    Parameters
    ----------
    query : array [B, Tq, Hq, Dn], with b_k alone [B, Tq, Hq, Dn + R]
        Of shape and dtype of query, as the others are of theirs.
    key_value : array [B, Tk, L]
        Through keys and values, summed over the heads.
    w_kc : array [L, Hk, Dn]
        Summed over all tokens, and over the query heads that share a key head.
    w_vc : array [L, Hk, Dv]
        Summed likewise.
    b_q : array, optional
        Summed over the heads where they share it; None where it is not given.
    b_k : array, optional
        Summed likewise; None where it is not given.
    bias : array, optional
        In the bias's own shape, summed over the dimensions in which it was broadcast; None where there is no bias.
    softmax_aux : array, optional
        In the sinks' own shape; None where there are no sinks.

    See Also
    --------
    mla_attention_backward : Returns them.

    Examples
    --------
    >>> import attile
    >>> attile.MLAGradients._fields
    ('query', 'key_value', 'w_kc', 'w_vc', 'b_q', 'b_k', 'bias', 'softmax_aux')
    """

    query: Any
    key_value: Any
    w_kc: Any
    w_vc: Any
    b_q: Any = None
    b_k: Any = None
    bias: Any = None
    softmax_aux: Any = None


def mla_attention_backward(
    dout: Array,
    query: Array,
    key_value: Array,
    w_kc: Array,
    w_vc: Array,
    out: Array,
    lse: Array,
    b_q: Array | None = None,
    b_k: Array | None = None,
    cu_seqlens: Array | None = None,
    *,
    dlse: Array | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    causal_alignment: str = "top_left",
    attention_mask: Array | None = None,
    bias: Array | None = None,
    softmax_aux: Array | None = None,
    logits_soft_cap: float | None = None,
    sliding_window: int | Sequence[int | None] | None = None,
    dropout_prob: float = 0.0,
    dropout_seed: int | None = None,
    deterministic: bool = False,
    platform: str = "auto",
    cfg: FlashMLAConfig | None = None,
) -> MLAGradients:
    """Compute the gradients of ``sum(dout * out) + sum(dlse * lse)`` for a call of `mla_attention`.

    Keys and values are made again, some heads at a time, and with dk and dv their gradients, which
    `flash_attention_backward` describes::

        dkey_value = sum over heads of dk w_kc^T + dv w_vc^T
        dw_kc = key_value^T dk                     dw_vc = key_value^T dv

    and db_k is what dk holds behind its first Dn elements.

    Parameters
    ----------
    dout : array [B, Tq, Hq, Dv]
        The gradient of out, of its dtype.
    query : array [B, Tq, Hq, Dn], with b_k alone [B, Tq, Hq, Dn + R]
        As in the forward call, as are all arguments that have the same name there.
    key_value : array [B, Tk, L]
        Latents, of the dtype of query; rank 2 as in the forward call.
    w_kc : array [L, Hk, Dn]
        Makes keys of latents.
    w_vc : array [L, Hk, Dv]
        Makes values of latents.
    out : array [B, Tq, Hq, Dv]
        What the forward call returned.
    lse : array [B, Hq, Tq] (packed: [Hq, total]), float32 or, for float64, float64
        What it returned with ``return_lse=True``.
    b_q : array [B, Tq, R] or [B, Tq, Hq, R], optional
        The rotated part of the queries, for all heads or for each.
    b_k : array [B, Tk, R] or [B, Tk, Hq, R], optional
        The rotated part of the keys, for all heads or for each query head.
    cu_seqlens : array, int32 or int64 [B + 1], optional
        Cumulative lengths of the sequences.
    dlse : array as lse, optional
        The gradient of lse; none means zeros.
    softmax_scale : float, optional
        Factor of the scores; by default ``1 / sqrt(Dn)``, with b_k ``1 / sqrt(Dn + R)``.
    causal : bool, default False
        Whether query i sees key j only if j <= i.
    causal_alignment : {"top_left", "bottom_right"}, default "top_left"
        With "bottom_right", j <= i + Tk - Tq.
    attention_mask : array, bool or int, broadcasting to [B, Hq, Tq, Tk], optional
        Nonzero means attend.
    bias : array, any floating dtype, broadcasting to [B, Hq, Tq, Tk], optional
        Added to the scores.
    softmax_aux : array, any floating dtype, [Hq, n], [1, n] or [n], optional
        Sinks.
    logits_soft_cap : float, optional
        The cap, positive.
    sliding_window : int or (int or None, int or None), optional
        Query i sees keys from i - left to i + right.
    dropout_prob : float, default 0.0
        Probability, in [0, 1), with which a weight was dropped.
    dropout_seed : int, optional
        The seed of the forward call: the same weights are dropped.
    deterministic : bool, default False
        Whether the same inputs give the same bits every time. It may cost time.
    platform : {"auto", "cpu", "cuda"}, default "auto"
        Where the arrays are; an error if they are elsewhere.
    cfg : FlashMLAConfig, optional
        Forces what the heuristic would decide. Gradients are computed of rebuilt keys, whatever the strategy of the
        forward call was.

    Returns
    -------
    MLAGradients
        New arrays of the caller's library, each of the shape and dtype of its input. Rows outside the sequences are 0.

    Raises
    ------
    ValueError
        A shape, range, length, library or device that does not fit; b_q without b_k.
    TypeError
        An argument that is no array, or whose dtype is not taken.
    NotImplementedError
        A well-formed call that no kernel takes, with the reason of each; arrays on the CPU, for which there is none yet.

    See Also
    --------
    mla_attention : The forward call.
    flash_attention_backward : The same of keys and values.

    Notes
    -----
    Gradients of keys and values are rounded once to the dtype of query, as the rebuilt keys and values are; sums over
    heads and tokens are in float32. The algorithm is that of [1]_ between matrix products.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster attention with better parallelism and work partitioning", 2023.

    Examples
    --------
    >>> import attile
    >>> import numpy as np
    >>> query, latents = np.ones((1, 3, 2, 8), dtype=np.float32), np.ones((1, 3, 16), dtype=np.float32)
    >>> w = np.ones((16, 2, 8), dtype=np.float32)
    >>> out, lse = attile.mla_attention(query, latents, w, w, causal=True, return_lse=True)
    >>> try:
    ...     attile.mla_attention_backward(out, query, latents, w, w, out, lse, causal=True)
    ... except NotImplementedError as error:
    ...     print(error)
    mla_attention_backward: no kernel takes this problem: there is none yet for CPU arrays
    """
    made = _core.mla_attention_backward(
        dout, query, key_value, w_kc, w_vc, out, lse, b_q, b_k, cu_seqlens, dlse, softmax_scale, causal, causal_alignment,
        attention_mask, bias, softmax_aux, logits_soft_cap, sliding_window, dropout_prob, dropout_seed, deterministic, platform,
        cfg,
    )  # fmt: skip
    optional = {"b_q": b_q, "b_k": b_k, "bias": bias, "softmax_aux": softmax_aux}
    names = ["query", "key_value", "w_kc", "w_vc"] + [name for name, x in optional.items() if x is not None]
    return MLAGradients(**dict(zip(names, made, strict=True)))
