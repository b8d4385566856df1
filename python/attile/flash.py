"""flash_attention and the small types of its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attile import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attile.arrays import Array


@dataclass(frozen=True, eq=False)
class MaskInfo:
    """Masks of one attention call, bundled.

    `flash_attention` takes this class or any object with these three attributes. A field that is given here
    and as an argument of its own is an error.

    Parameters
    ----------
    attention_mask : array, bool or int, broadcasting to [B, Hq, Tq, Tk], optional
        Nonzero means that the query attends to the key.
    q_segment_ids : array, int32 or int64 [B, Tq], optional
        A query attends to the keys of its own segment; a negative id to none.
    kv_segment_ids : array, int32 or int64 [B, Tk], optional
        The segment of each key.

    See Also
    --------
    flash_attention : Takes it as `mask_info`.

    Notes
    -----
    The interface follows ``ejkernel.types.mask.MaskInfo``.

    Examples
    --------
    >>> import attile
    >>> import numpy as np
    >>> ids = np.array([[0, 0, 1, -1]], dtype=np.int32)
    >>> masks = attile.MaskInfo(q_segment_ids=ids, kv_segment_ids=ids)
    >>> q = np.ones((1, 4, 1, 8), dtype=np.float32)
    >>> v = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    >>> attile.flash_attention(q, q, v, mask_info=masks)[0, :, 0, 0]
    array([0.5, 0.5, 2. , 0. ], dtype=float32)
    """

    attention_mask: Array | None = None
    q_segment_ids: Array | None = None
    kv_segment_ids: Array | None = None


@dataclass(frozen=True)
class FlashAttentionConfig:
    """How a call is computed, where the heuristic shall not decide.

    The result differs by rounding only. `attile.explain` shows what a call gets.

    Parameters
    ----------
    block_q : int, optional
        Rows of queries (query positions times heads that share a key head) in a block.
    block_k : int, optional
        Keys in a tile.
    num_splits : int, default 0
        Parts into which the keys are split and joined again; 0 leaves it to the heuristic.
    kernel : str, optional
        The name of the kernel, as in ``attile.show_config()["kernels"]``.

    See Also
    --------
    explain : Shows the kernel and the plan of a call.

    Examples
    --------
    >>> import attile
    >>> import numpy as np
    >>> x = np.ones((1, 4, 1, 8), dtype=np.float32)
    >>> config = attile.FlashAttentionConfig(kernel="forward_portable")
    >>> attile.explain(attile.flash_attention, x, x, x, cfg=config)["kernel"]
    'forward_portable'
    """

    block_q: int | None = None
    block_k: int | None = None
    num_splits: int = 0
    kernel: str | None = None


def flash_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    cum_seqlens_q: Array | None = None,
    cum_seqlens_k: Array | None = None,
    softmax_aux: Array | None = None,
    *,
    mask_info: MaskInfo | Any | None = None,
    attention_mask: Array | None = None,
    softmax_scale: float | None = None,
    dropout_prob: float = 0.0,
    causal: bool = False,
    causal_alignment: str = "top_left",
    dropout_seed: int | None = None,
    sliding_window: int | Sequence[int | None] | None = None,
    logits_soft_cap: float | None = None,
    normalize_output: bool = True,
    precision: Any = None,
    logits_dtype: Any = None,
    q_segment_ids: Array | None = None,
    kv_segment_ids: Array | None = None,
    q_scale: float | Array | None = None,
    k_scale: float | Array | None = None,
    v_scale: float | Array | None = None,
    return_lse: bool = False,
    out: Array | None = None,
    platform: str = "auto",
    cfg: FlashAttentionConfig | None = None,
) -> Any:
    """Attention of queries over keys and values, without the matrix of scores in memory.

    With B batch, Tq and Tk query and key length, Hq and Hk query and key heads (Hq a multiple of Hk), D the head
    dim of query and key (1 to 576), Dv the head dim of value (1 to 512)::

        s   = softmax_scale * q.k + bias
        s   = cap * tanh(s / cap)                  with logits_soft_cap
        s   = -inf                                 where masked
        p   = exp(s - m) / (sum_j exp(s_j - m) + sum_n exp(aux_n - m)),  m the row's maximum, sinks included
        out = dropout(p) @ v

    Parameters
    ----------
    query : array [B, Tq, Hq, D]
        Queries in float64, float32, float16 or bfloat16 (NumPy: ``ml_dtypes.bfloat16``). Rank 3 works like B = 1,
        or is packed, [total, Hq, D], with `cum_seqlens_q` and `cum_seqlens_k`. Any strides whose last dimension is
        contiguous; no array is copied.
    key : array [B, Tk, Hk, D]
        Keys, of the dtype of query.
    value : array [B, Tk, Hk, Dv]
        Values, of the dtype of query.
    bias : array, any floating dtype, broadcasting to [B, Hq, Tq, Tk], optional
        Added to the scores. Without a cap, -inf means unseen.
    cum_seqlens_q : array, int32 or int64 [B + 1], optional
        Cumulative lengths of the query sequences: first 0, never decreasing. With rank 4 the first ``len_b``
        positions of row b are valid; with rank 3, sequence b is at rows ``[c[b], c[b + 1])``.
    cum_seqlens_k : array, int32 or int64 [B + 1], optional
        The same of the keys.
    softmax_aux : array, any floating dtype, [Hq, n], [1, n] or [n], optional
        Sinks: logits, neither scaled nor capped, that join the denominator and carry no value.
    mask_info : MaskInfo, optional
        The next three masks as one object.
    attention_mask : array, bool or int, broadcasting to [B, Hq, Tq, Tk], optional
        Nonzero means attend. All masks are joined by and.
    softmax_scale : float, optional
        Factor of the scores; by default ``1 / sqrt(D)``.
    dropout_prob : float, default 0.0
        Probability, in [0, 1), with which an entry of p is dropped; kept ones are divided by 1 - dropout_prob.
    causal : bool, default False
        Whether query i sees key j only if j <= i.
    causal_alignment : {"top_left", "bottom_right"}, default "top_left"
        With "bottom_right", j <= i + Tk - Tq, each sequence by its own lengths. It shifts `sliding_window` too.
    dropout_seed : int, optional
        Seed in [0, 2**64) of Philox4x32-10; the bits depend on positions only. Required when dropout_prob > 0.
    sliding_window : int or (int or None, int or None), optional
        Query i sees keys from i - left to i + right, both inclusive; an int w is (w, w), None and -1 are unlimited.
    logits_soft_cap : float, optional
        The cap, positive.
    normalize_output : bool, default True
        Whether out is divided by the denominator.
    precision : {None, "highest", "high", "default"}, `jax.lax.Precision` or a pair of them, optional
        Of float32 inputs: None and "highest" are float32-accurate, "high" allows three reduced products,
        "default" one. Of a pair the more precise counts. Ignored for other dtypes.
    logits_dtype : dtype of NumPy, torch or JAX, or its name, optional
        Scores are rounded to it before the softmax: float32 (float64 for float64), bfloat16 or float16.
    q_segment_ids : array, int32 or int64 [B, Tq] (packed: [total]), optional
        A query sees the keys with its id, if that is not negative.
    kv_segment_ids : array, int32 or int64 [B, Tk] (packed: [total]), optional
        Ids of the keys.
    q_scale : float or array float32 [B, Hk], optional
        Of float8 inputs: the factor of query.
    k_scale : float or array float32 [B, Hk], optional
        Of float8 inputs: the factor of key.
    v_scale : float or array float32 [B, Hk], optional
        Of float8 inputs: the factor of value.
    return_lse : bool, default False
        Whether lse is returned too.
    out : array [B, Tq, Hq, Dv], optional
        Written in place and returned: dtype (of float8 inputs: bfloat16) and device of query, not overlapping an input.
    platform : {"auto", "cpu", "cuda"}, default "auto"
        Where the arrays are; an error if they are elsewhere.
    cfg : FlashAttentionConfig, optional
        Forces what the heuristic would decide.

    Returns
    -------
    out : array [B, Tq, Hq, Dv]
        Of the library, dtype and device of query. A row that sees no key is 0.
    lse : array [B, Hq, Tq] (packed: [Hq, total]), float32 or, for float64, float64
        Only with return_lse: the natural logarithm of the denominator, sinks included; -inf where nothing is seen.

    Raises
    ------
    ValueError
        A shape, range, length, library or device that does not fit.
    TypeError
        An argument that is no array, or whose dtype is not taken.
    NotImplementedError
        A well-formed call that no kernel takes, with the reason of each.

    See Also
    --------
    merge_states : Joins the attention over two sets of keys.
    explain : Shows which kernel a call gets.

    Notes
    -----
    The interface follows ``ejkernel.modules.operations.flash_attention``; the algorithm is that of [1]_ and [2]_.
    Arrays of a library other than NumPy, torch, JAX and CuPy are taken by ``__dlpack__``; the result comes from that
    library's ``from_dlpack``, or is a NumPy array where there is none.

    References
    ----------
    .. [1] M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018.
    .. [2] T. Dao, "FlashAttention-2: Faster attention with better parallelism and work partitioning", 2023.

    Examples
    --------
    >>> import attile
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> q = rng.standard_normal((2, 5, 4, 16), dtype=np.float32)
    >>> k = rng.standard_normal((2, 7, 2, 16), dtype=np.float32)
    >>> v = rng.standard_normal((2, 7, 2, 32), dtype=np.float32)
    >>> out, lse = attile.flash_attention(q, k, v, causal=True, causal_alignment="bottom_right", return_lse=True)
    >>> out.shape, lse.shape
    ((2, 5, 4, 32), (2, 4, 5))

    The same for query 1 of sequence 0 and head 3, which reads key head 1 and sees keys 0 to 3, in plain NumPy:

    >>> p = np.exp(k[0, :4, 1] @ q[0, 1, 3] / 4)
    >>> bool(np.allclose(out[0, 1, 3], p @ v[0, :4, 1] / p.sum(), atol=1e-6))
    True
    """
    return _core.flash_attention(
        query, key, value, bias, cum_seqlens_q, cum_seqlens_k, softmax_aux, mask_info, attention_mask, softmax_scale,
        dropout_prob, causal, causal_alignment, dropout_seed, sliding_window, logits_soft_cap, normalize_output,
        precision, logits_dtype, q_segment_ids, kv_segment_ids, q_scale, k_scale, v_scale, return_lse, out, platform,
        cfg,
    )  # fmt: skip
