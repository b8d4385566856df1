"""Multi-head latent attention: mla_attention, mla_decode over a latent cache, the paged wrapper, and their configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attile import _core
from attile.mla_wrapper import BatchMLAPagedAttentionWrapper, append_paged_mla_kv_cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attile.arrays import Array

__all__ = ["BatchMLAPagedAttentionWrapper", "FlashMLAConfig", "append_paged_mla_kv_cache", "flash_mla", "mla_attention", "mla_decode"]


@dataclass(frozen=True)
class FlashMLAConfig:
    """How a call on latents is computed, where the heuristic shall not decide.

    The result differs by rounding only. `attile.explain` shows what a call gets.

    Parameters
    ----------
    strategy : {None, "rebuild", "absorb"}, optional
        Of `mla_attention`: keys and values are rebuilt from the latent tile by tile, or the weights are absorbed into the
        queries and the result. `mla_decode` is absorbed.
    block_q : int, optional
        Rows of queries (query positions times heads) in a block.
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
    >>> q, ckv = np.ones((1, 1, 4, 8), dtype=np.float32), np.ones((1, 9, 8), dtype=np.float32)
    >>> config = attile.FlashMLAConfig(kernel="mla_decode_portable")
    >>> attile.explain(attile.mla_decode, q, None, ckv, None, softmax_scale=1.0, cfg=config)["kernel"]
    'mla_decode_portable'
    """

    strategy: str | None = None
    block_q: int | None = None
    block_k: int | None = None
    num_splits: int = 0
    kernel: str | None = None


def mla_attention(
    query: Array,
    key_value: Array,
    w_kc: Array,
    w_vc: Array,
    b_q: Array | None = None,
    b_k: Array | None = None,
    cu_seqlens: Array | None = None,
    *,
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
    return_lse: bool = False,
    out: Array | None = None,
    platform: str = "auto",
    cfg: FlashMLAConfig | None = None,
) -> Any:
    """Attention whose keys and values are made of latents, without storing them.

    With B batch, Tq and Tk query and key length, Hq and Hk query and key heads (Hq a multiple of Hk), L the rank of
    the latents (up to 4096), Dn and Dv the head dims of keys and values, and R that of the rotated part
    (Dn + R up to 576, Dv up to 512)::

        key[b, j, h]   = key_value[b, j] @ w_kc[:, h],  followed by b_k[b, j] (or b_k[b, j, query head])
        value[b, j, h] = key_value[b, j] @ w_vc[:, h]
        out            = flash_attention(query, key, value)

    Keys and values exist a tile at a time; or, where this costs less, queries are multiplied by w_kc and meet the
    latents themselves, and the output is multiplied by w_vc. All options are those of `flash_attention`.

    Parameters
    ----------
    query : array [B, Tq, Hq, Dn], with b_k alone [B, Tq, Hq, Dn + R]
        Queries in float64, float32, float16 or bfloat16 (NumPy: ``ml_dtypes.bfloat16``); the last R elements meet
        b_k. Any strides whose last dimension is contiguous; no array is copied.
    key_value : array [B, Tk, L]
        Latents, of the dtype of query. Rank 2, [Tk, L], works like B = 1, and with `cu_seqlens` is packed,
        [total, L]; then the other arrays lack the batch too.
    w_kc : array [L, Hk, Dn]
        Makes keys of latents.
    w_vc : array [L, Hk, Dv]
        Makes values of latents.
    b_q : array [B, Tq, R] or [B, Tq, Hq, R], optional
        The rotated part of the queries, for all heads or for each; needs b_k.
    b_k : array [B, Tk, R] or [B, Tk, Hq, R], optional
        The rotated part of the keys (RoPE), for all heads or for each query head.
    cu_seqlens : array, int32 or int64 [B + 1], optional
        Cumulative lengths of the sequences, of queries and keys alike: first 0, never decreasing. With rank 3 the
        first ``len_b`` positions of row b are valid; with rank 2, sequence b is at rows ``[c[b], c[b + 1])``.
    softmax_scale : float, optional
        Factor of the scores; by default ``1 / sqrt(Dn)``, with b_k ``1 / sqrt(Dn + R)``.
    causal : bool, default False
        Whether query i sees key j only if j <= i.
    causal_alignment : {"top_left", "bottom_right"}, default "top_left"
        With "bottom_right", j <= i + Tk - Tq, each sequence by its own lengths. It shifts `sliding_window` too.
    attention_mask : array, bool or int, broadcasting to [B, Hq, Tq, Tk], optional
        Nonzero means attend. All masks are joined by and.
    bias : array, any floating dtype, broadcasting to [B, Hq, Tq, Tk], optional
        Added to the scores. Without a cap, -inf means unseen.
    softmax_aux : array, any floating dtype, [Hq, n], [1, n] or [n], optional
        Sinks: logits, neither scaled nor capped, that join the denominator and carry no value.
    logits_soft_cap : float, optional
        Scores become ``cap * tanh(score / cap)``.
    sliding_window : int or (int or None, int or None), optional
        Query i sees keys from i - left to i + right, both inclusive; an int w is (w, w), None and -1 are unlimited.
    dropout_prob : float, default 0.0
        Probability, in [0, 1), with which a weight is dropped; kept ones are divided by 1 - dropout_prob.
    dropout_seed : int, optional
        Seed in [0, 2**64); required when dropout_prob > 0. The bits are those of `flash_attention`.
    return_lse : bool, default False
        Whether lse is returned too.
    out : array [B, Tq, Hq, Dv], optional
        Written in place and returned: dtype and device of query, not overlapping an input.
    platform : {"auto", "cpu", "cuda"}, default "auto"
        Where the arrays are; an error if they are elsewhere.
    cfg : FlashMLAConfig, optional
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
        A shape, range, length, library or device that does not fit; b_q without b_k.
    TypeError
        An argument that is no array, or whose dtype is not taken.
    NotImplementedError
        A well-formed call that no kernel takes, with the reason of each.

    See Also
    --------
    flash_attention : The same of keys and values.
    explain : Shows which strategy a call gets.

    Notes
    -----
    The interface follows ``ejkernel.modules.operations.multi_head_latent_attention``; latent attention and its
    absorbed form are those of [1]_. ``attile.flash_mla`` is the same function.

    References
    ----------
    .. [1] DeepSeek-AI, "DeepSeek-V2: A strong, economical, and efficient mixture-of-experts language model", 2024.

    Examples
    --------
    >>> import attile
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> query = rng.standard_normal((1, 5, 4, 24), dtype=np.float32)  # 16 elements and a rotated part of 8
    >>> latents, rope = (rng.standard_normal((1, 5, n), dtype=np.float32) for n in (32, 8))
    >>> w_kc, w_vc = (rng.standard_normal((32, 4, n), dtype=np.float32) / 6 for n in (16, 12))
    >>> out = attile.mla_attention(query, latents, w_kc, w_vc, b_k=rope, causal=True)
    >>> out.shape
    (1, 5, 4, 12)

    The same with keys and values stored:

    >>> rope_of_heads = np.broadcast_to(rope[:, :, None], (1, 5, 4, 8))
    >>> key = np.concatenate([np.einsum("btl,lhd->bthd", latents, w_kc), rope_of_heads], axis=-1)
    >>> value = np.einsum("btl,lhd->bthd", latents, w_vc)
    >>> bool(np.allclose(out, attile.flash_attention(query, key, value, causal=True), atol=1e-5))
    True
    """
    return _core.mla_attention(
        query, key_value, w_kc, w_vc, b_q, b_k, cu_seqlens, softmax_scale, causal, causal_alignment, attention_mask,
        bias, softmax_aux, logits_soft_cap, sliding_window, dropout_prob, dropout_seed, return_lse, out, platform, cfg,
    )  # fmt: skip


flash_mla = mla_attention


def mla_decode(
    q_nope: Array,
    q_pe: Array | None,
    ckv: Array,
    kpe: Array | None,
    *,
    softmax_scale: float,
    causal: bool = True,
    kv_lens: Array | None = None,
    page_table: Array | None = None,
    ckv_scale: float | None = None,
    softmax_aux: Array | None = None,
    logits_soft_cap: float | None = None,
    return_lse: bool = False,
    out: Array | None = None,
    num_splits: int = 0,
    platform: str = "auto",
    cfg: FlashMLAConfig | None = None,
) -> Any:
    """Multi-head latent attention of new tokens over a cache of latents, in absorbed form.

    With B batch, Sq new tokens, H heads, L the latent rank (a multiple of 8 up to 512), R the rope dim (a multiple of 8
    up to 128, or 0), ``len_b`` the length of sequence b::

        s   = softmax_scale * (q_nope.ckv + q_pe.kpe)
        s   = cap * tanh(s / cap)                  with logits_soft_cap
        s   = -inf                                 where j > i + len_b - Sq, if causal
        out = softmax(s) @ ckv                     sinks join the denominator

    q_nope already holds ``q @ W_UK`` of each head, and the result, in latent space, is still to be multiplied by ``W_UV``.

    Parameters
    ----------
    q_nope : array [B, Sq, H, L]
        Absorbed queries in float64, float32, float16 or bfloat16 (NumPy: ``ml_dtypes.bfloat16``). Any strides whose last
        dimension is contiguous; no array is copied.
    q_pe : array [B, Sq, H, R] or None
        Rope parts of the queries, of the dtype of q_nope; None, with kpe, when R is 0.
    ckv : array [B, Tk, L], or with `page_table` [pages, page_size, L]
        The latent cache, keys and values at once, of the dtype of q_nope.
    kpe : array [B, Tk, R] or [pages, page_size, R], or with a head axis before R, or None
        Rope keys: one for all heads, [.., R], or one for each, [.., H, R]. ckv and kpe may be two views of one array.
    softmax_scale : float
        Factor of the scores. It belongs to the head dim before absorption (DeepSeek: ``1 / sqrt(128 + 64)``, not
        ``1 / sqrt(576)``), so it has no default.
    causal : bool, default True
        Whether token i sees key j only if ``j <= i + len_b - Sq``.
    kv_lens : array, int32 or int64 [B], optional
        The length of each sequence in the cache; None: Tk. Required with page_table. What lies behind is never read.
    page_table : array, int32 or int64 [B, max_pages], optional
        The pages of each sequence. Entries past its length are never followed.
    ckv_scale : float, optional
        Factor of a float8_e4m3 ckv, which runs on CUDA only.
    softmax_aux : array, any floating dtype, [H, n], [1, n] or [n], optional
        Sinks: logits, neither scaled nor capped, that join the denominator and carry no value.
    logits_soft_cap : float, optional
        The cap, positive.
    return_lse : bool, default False
        Whether lse is returned too.
    out : array [B, Sq, H, L], optional
        Written in place and returned: dtype and device of q_nope, not overlapping an input.
    num_splits : int, default 0
        Parts into which the keys of the longest sequence are split and joined again; 0 leaves it to the heuristic.
    platform : {"auto", "cpu", "cuda"}, default "auto"
        Where the arrays are; an error if they are elsewhere.
    cfg : FlashMLAConfig, optional
        Forces what the heuristic would decide.

    Returns
    -------
    out : array [B, Sq, H, L]
        Of the library, dtype and device of q_nope. A row that sees no key is 0.
    lse : array [B, H, Sq], float32 or, for float64, float64
        Only with return_lse: the natural logarithm of the denominator, sinks included; -inf where nothing is seen.

    Raises
    ------
    ValueError
        A shape, range, length, page, library or device that does not fit.
    TypeError
        An argument that is no array, or whose dtype is not taken.
    NotImplementedError
        A well-formed call that no kernel takes, with the reason of each.

    See Also
    --------
    attile.mla.BatchMLAPagedAttentionWrapper : Batches of varying query lengths over pages.
    explain : Shows which kernel a call gets.

    Notes
    -----
    The interface follows FlashMLA; the form is that of [1]_.

    References
    ----------
    .. [1] DeepSeek-AI, "DeepSeek-V2: A strong, economical, and efficient mixture-of-experts language model", 2024.

    Examples
    --------
    >>> import attile
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> q_nope = rng.standard_normal((2, 1, 16, 64), dtype=np.float32)
    >>> q_pe = rng.standard_normal((2, 1, 16, 8), dtype=np.float32)
    >>> cache = rng.standard_normal((2, 100, 72), dtype=np.float32)
    >>> ckv, kpe = cache[..., :64], cache[..., 64:]
    >>> lens = np.array([100, 7])
    >>> out = attile.mla_decode(q_nope, q_pe, ckv, kpe, softmax_scale=0.1, kv_lens=lens)
    >>> out.shape
    (2, 1, 16, 64)

    The same for head 3 of sequence 1, which sees 7 keys, in plain NumPy:

    >>> p = np.exp(0.1 * (ckv[1, :7] @ q_nope[1, 0, 3] + kpe[1, :7] @ q_pe[1, 0, 3]))
    >>> bool(np.allclose(out[1, 0, 3], p @ ckv[1, :7] / p.sum(), atol=1e-5))
    True
    """
    return _core.mla_decode(
        q_nope, q_pe, ckv, kpe, softmax_scale, causal, kv_lens, page_table, ckv_scale, softmax_aux, logits_soft_cap, return_lse, out,
        num_splits, platform, cfg,
    )  # fmt: skip
