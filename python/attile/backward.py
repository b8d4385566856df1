"""Gradients of flash_attention for arrays without autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from attile import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attile.arrays import Array
    from attile.flash import FlashAttentionConfig, MaskInfo


class Gradients(NamedTuple):
    """Gradients of the inputs of `flash_attention`.

    Parameters
    ----------
    query : array [B, Tq, Hq, D]
        Of shape and dtype of query, as the others are of theirs.
    key : array [B, Tk, Hk, D]
        Summed over the query heads that share a key head.
    value : array [B, Tk, Hk, Dv]
        Summed likewise.
    bias : array, optional
        In the bias's own shape, summed over the dimensions in which it was broadcast; None where there is no bias.
    softmax_aux : array, optional
        In the sinks' own shape; None where there are no sinks.

    See Also
    --------
    flash_attention_backward : Returns them.

    Examples
    --------
    >>> import attile
    >>> attile.Gradients._fields
    ('query', 'key', 'value', 'bias', 'softmax_aux')
    """

    query: Any
    key: Any
    value: Any
    bias: Any = None
    softmax_aux: Any = None


def flash_attention_backward(
    dout: Array,
    query: Array,
    key: Array,
    value: Array,
    out: Array,
    lse: Array,
    bias: Array | None = None,
    cum_seqlens_q: Array | None = None,
    cum_seqlens_k: Array | None = None,
    softmax_aux: Array | None = None,
    *,
    dlse: Array | None = None,
    mask_info: MaskInfo | Any | None = None,
    attention_mask: Array | None = None,
    softmax_scale: float | None = None,
    dropout_prob: float = 0.0,
    causal: bool = False,
    causal_alignment: str = "top_left",
    dropout_seed: int | None = None,
    sliding_window: int | Sequence[int | None] | None = None,
    logits_soft_cap: float | None = None,
    precision: Any = None,
    logits_dtype: Any = None,
    q_segment_ids: Array | None = None,
    kv_segment_ids: Array | None = None,
    deterministic: bool = False,
    platform: str = "auto",
    cfg: FlashAttentionConfig | None = None,
) -> Gradients:
    """Compute the gradients of ``sum(dout * out) + sum(dlse * lse)`` for a call of `flash_attention`.

    With S the scores, P = exp(S - lse) and delta = sum_d dout out - dlse of each row of queries::

        ds = P (dropout(dout value^T) - delta)     through the cap
        dq = softmax_scale ds key                  dk = softmax_scale ds^T query
        dv = dropout(P)^T dout                     dbias = ds
        dsoftmax_aux = -sum exp(softmax_aux - lse) delta

    The scores are computed again, so no matrix of them is ever in memory.

    Parameters
    ----------
    dout : array [B, Tq, Hq, Dv]
        The gradient of out, of its dtype.
    query : array [B, Tq, Hq, D]
        As in the forward call, as are all arguments that have the same name there.
    key : array [B, Tk, Hk, D]
        Keys, of the dtype of query.
    value : array [B, Tk, Hk, Dv]
        Values, of the dtype of query.
    out : array [B, Tq, Hq, Dv]
        What the forward call returned, normalized.
    lse : array [B, Hq, Tq] (packed: [Hq, total]), float32 or, for float64, float64
        What it returned with ``return_lse=True``.
    bias : array, any floating dtype, broadcasting to [B, Hq, Tq, Tk], optional
        Added to the scores.
    cum_seqlens_q : array, int32 or int64 [B + 1], optional
        Cumulative lengths of the query sequences.
    cum_seqlens_k : array, int32 or int64 [B + 1], optional
        The same of the keys.
    softmax_aux : array, any floating dtype, [Hq, n], [1, n] or [n], optional
        Sinks.
    dlse : array as lse, optional
        The gradient of lse; none means zeros.
    mask_info : MaskInfo, optional
        The masks as one object.
    attention_mask : array, bool or int, broadcasting to [B, Hq, Tq, Tk], optional
        Nonzero means attend.
    softmax_scale : float, optional
        Factor of the scores; by default ``1 / sqrt(D)``.
    dropout_prob : float, default 0.0
        Probability, in [0, 1), with which an entry of p was dropped.
    causal : bool, default False
        Whether query i sees key j only if j <= i.
    causal_alignment : {"top_left", "bottom_right"}, default "top_left"
        With "bottom_right", j <= i + Tk - Tq.
    dropout_seed : int, optional
        The seed of the forward call: the same entries are dropped.
    sliding_window : int or (int or None, int or None), optional
        Query i sees keys from i - left to i + right.
    logits_soft_cap : float, optional
        The cap, positive.
    precision : {None, "highest", "high", "default"}, `jax.lax.Precision` or a pair of them, optional
        Of float32 inputs.
    logits_dtype : dtype of NumPy, torch or JAX, or its name, optional
        To which scores were rounded; the rounding counts as the identity here.
    q_segment_ids : array, int32 or int64 [B, Tq] (packed: [total]), optional
        A query sees the keys with its id, if that is not negative.
    kv_segment_ids : array, int32 or int64 [B, Tk] (packed: [total]), optional
        Ids of the keys.
    deterministic : bool, default False
        Whether the same inputs give the same bits every time. It may cost time; without it the order of additions is left open.
    platform : {"auto", "cpu", "cuda"}, default "auto"
        Where the arrays are; an error if they are elsewhere.
    cfg : FlashAttentionConfig, optional
        Forces what the heuristic would decide.

    Returns
    -------
    Gradients
        New arrays of the caller's library, each of the shape and dtype of its input. Rows outside the sequences are 0.

    Raises
    ------
    ValueError
        A shape, range, length, library or device that does not fit.
    TypeError
        An argument that is no array, or whose dtype is not taken.
    NotImplementedError
        A well-formed call that no kernel takes, with the reason of each; arrays on the CPU, for which there is none yet.

    See Also
    --------
    flash_attention : The forward call.
    explain : Shows which kernel a call gets.

    Notes
    -----
    The algorithm is that of [1]_. Of what no query sees, key and value may hold anything, and their gradients are 0.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster attention with better parallelism and work partitioning", 2023.

    Examples
    --------
    >>> import attile
    >>> import numpy as np
    >>> q = np.ones((1, 3, 2, 8), dtype=np.float32)
    >>> out, lse = attile.flash_attention(q, q, q, causal=True, return_lse=True)
    >>> try:
    ...     attile.flash_attention_backward(out, q, q, q, out, lse, causal=True)
    ... except NotImplementedError as error:
    ...     print(error)
    flash_attention_backward: no kernel takes this problem: there is none yet for CPU arrays
    """
    made = _core.flash_attention_backward(
        dout, query, key, value, out, lse, bias, cum_seqlens_q, cum_seqlens_k, softmax_aux, dlse, mask_info, attention_mask,
        softmax_scale, dropout_prob, causal, causal_alignment, dropout_seed, sliding_window, logits_soft_cap, precision,
        logits_dtype, q_segment_ids, kv_segment_ids, deterministic, platform, cfg,
    )  # fmt: skip
    names = ["query", "key", "value"] + ["bias"] * (bias is not None) + ["softmax_aux"] * (softmax_aux is not None)
    return Gradients(**dict(zip(names, made, strict=True)))
