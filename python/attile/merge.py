"""Joining attention over disjoint sets of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attile import _core

if TYPE_CHECKING:
    from attile.arrays import Array


def merge_states(out_a: Array, lse_a: Array, out_b: Array, lse_b: Array) -> tuple[Array, Array]:
    """Join the attention over two disjoint sets of keys.

    With B batch, T length, H heads and Dv the head dim of value::

        lse = log(exp(lse_a) + exp(lse_b))
        out = exp(lse_a - lse) * out_a + exp(lse_b - lse) * out_b

    Parameters
    ----------
    out_a : array [B, T, H, Dv]
        Result of `flash_attention` over the first set: float64, float32, float16 or bfloat16.
    lse_a : array [B, H, T]
        Its lse: float32, or float64 with float64. -inf (or +inf) means that no key was seen.
    out_b : array [B, T, H, Dv]
        Result over the second set, same dtype.
    lse_b : array [B, H, T]
        Its lse.

    Returns
    -------
    out : array [B, T, H, Dv]
        Attention over both sets, of the library and dtype of out_a.
    lse : array [B, H, T]
        Its lse.

    Raises
    ------
    ValueError
        A shape, library or device that does not fit.
    TypeError
        An argument that is no array, or whose dtype is not taken.

    See Also
    --------
    flash_attention : Gives out and lse.

    Notes
    -----
    At most one of the sides may hold the sinks of `flash_attention`. The formula is that of [1]_.

    References
    ----------
    .. [1] H. Liu, M. Zaharia, P. Abbeel, "Ring attention with blockwise transformers for near-infinite context", 2023.

    Examples
    --------
    >>> import attile
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((1, 8, 2, 16), dtype=np.float32) for _ in range(3))
    >>> first = attile.flash_attention(q, k[:, :3], v[:, :3], return_lse=True)
    >>> second = attile.flash_attention(q, k[:, 3:], v[:, 3:], return_lse=True)
    >>> out, lse = attile.merge_states(*first, *second)
    >>> bool(np.allclose(out, attile.flash_attention(q, k, v), atol=1e-6))
    True
    """
    return _core.merge_states(out_a, lse_a, out_b, lse_b)
