"""Attention of new queries over a cache of keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attile import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attile.arrays import Array
    from attile.flash import FlashAttentionConfig


def flash_attention_with_kvcache(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    *,
    cache_seqlens: Array | None = None,
    page_table: Array | None = None,
    softmax_scale: float | None = None,
    causal: bool = True,
    sliding_window: int | Sequence[int | None] | None = None,
    logits_soft_cap: float | None = None,
    softmax_aux: Array | None = None,
    num_splits: int = 0,
    return_lse: bool = False,
    out: Array | None = None,
    platform: str = "auto",
    cfg: FlashAttentionConfig | None = None,
) -> Any:
    """Attention of the last Sq positions of each sequence over its cached keys and values.

    For decoding (Sq = 1) and chunked prefill: the new keys and values are in the cache already, and the queries are
    the last positions of their sequences. With len_b the length of sequence b, query i sees key j if
    ``j <= i + len_b - Sq``. The formula is that of `flash_attention`.

    Parameters
    ----------
    q : array [B, Sq, Hq, D]
        Queries in float64, float32, float16 or bfloat16, D from 1 to 576.
    k_cache : array [B, Tmax, Hk, D], or with `page_table` [pages, page_size, Hk, D]
        Keys, of the dtype of q; Hq is a multiple of Hk. Any strides whose last dimension is contiguous.
    v_cache : array [B, Tmax, Hk, Dv], or with `page_table` [pages, page_size, Hk, Dv]
        Values, of the dtype of q, Dv from 1 to 512.
    cache_seqlens : array, int32 or int64 [B], optional
        The length of each sequence, from 0 to what the cache holds; None means that the dense cache is full. What lies
        past it is never read. Required with `page_table`.
    page_table : array, int32 or int64 [B, max_pages], optional
        Key j of sequence b is row ``j % page_size`` of page ``page_table[b, j // page_size]``. Entries past the length
        may be anything.
    softmax_scale : float, optional
        Factor of the scores; by default ``1 / sqrt(D)``.
    causal : bool, default True
        Whether a query sees no key after its own position; without it every query sees all keys of its sequence.
    sliding_window : int or (int or None, int or None), optional
        The query at position i of its sequence sees keys from i - left to i + right, both inclusive; an int w is
        (w, w), None and -1 are unlimited.
    logits_soft_cap : float, optional
        The cap, positive: scores become ``cap * tanh(s / cap)``.
    softmax_aux : array, any floating dtype, [Hq, n], [1, n] or [n], optional
        Sinks: logits, neither scaled nor capped, that join the denominator and carry no value.
    num_splits : int, default 0
        Parts into which the keys are split and joined again; 0 leaves it to the heuristic.
    return_lse : bool, default False
        Whether lse is returned too.
    out : array [B, Sq, Hq, Dv], optional
        Written in place and returned: dtype and device of q, not overlapping an input.
    platform : {"auto", "cpu", "cuda"}, default "auto"
        Where the arrays are; an error if they are elsewhere.
    cfg : FlashAttentionConfig, optional
        Forces what the heuristic would decide.

    Returns
    -------
    out : array [B, Sq, Hq, Dv]
        Of the library, dtype and device of q. A row that sees no key is 0.
    lse : array [B, Hq, Sq], float32 or, for float64, float64
        Only with return_lse: the natural logarithm of the denominator, sinks included; -inf where nothing is seen.

    Raises
    ------
    ValueError
        A shape, range, length, page, library or device that does not fit; nothing has been computed then.
    TypeError
        An argument that is no array, or whose dtype is not taken.
    NotImplementedError
        A well-formed call that no kernel takes, with the reason of each.

    See Also
    --------
    flash_attention : The same formula with every option.
    merge_states : Joins the attention over two sets of keys.

    Notes
    -----
    The interface follows ``flash_attn.flash_attn_with_kvcache``, the splits of long sequences [1]_, the pages [2]_.

    References
    ----------
    .. [1] T. Dao, D. Haziza, F. Massa, G. Sizov, "Flash-Decoding for long-context inference", 2023.
    .. [2] W. Kwon et al., "Efficient memory management for large language model serving with PagedAttention", 2023.

    Examples
    --------
    >>> import attile
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> q = rng.standard_normal((2, 1, 8, 64), dtype=np.float32)
    >>> k = rng.standard_normal((2, 100, 2, 64), dtype=np.float32)
    >>> v = rng.standard_normal((2, 100, 2, 64), dtype=np.float32)
    >>> lengths = np.array([100, 37], dtype=np.int32)
    >>> out = attile.flash_attention_with_kvcache(q, k, v, cache_seqlens=lengths)
    >>> out.shape
    (2, 1, 8, 64)

    The same keys and values in pages of 10, whose order is that of the table:

    >>> order = rng.permutation(20).astype(np.int32).reshape(2, 10)
    >>> pages = np.argsort(order, axis=None)
    >>> k_pages, v_pages = (x.reshape(20, 10, 2, 64)[pages] for x in (k, v))
    >>> paged = attile.flash_attention_with_kvcache(q, k_pages, v_pages, cache_seqlens=lengths, page_table=order)
    >>> bool(np.allclose(paged, out, atol=1e-6))
    True
    """
    return _core.flash_attention_with_kvcache(
        q, k_cache, v_cache, cache_seqlens, page_table, softmax_scale, causal, sliding_window, logits_soft_cap,
        softmax_aux, num_splits, return_lse, out, platform, cfg,
    )  # fmt: skip
