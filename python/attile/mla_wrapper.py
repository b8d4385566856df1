"""Latent attention over a paged cache in two steps, plan and run, and appending to such a cache."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from attile import _core
from attile.arrays import with_64_bit
from attile.options import dtype_name

if TYPE_CHECKING:
    from attile.arrays import Array

_PLAN = "BatchMLAPagedAttentionWrapper.plan"
_NEW = "BatchMLAPagedAttentionWrapper"
_BACKENDS = ("auto", "fa2", "fa3", "cutlass")


class BatchMLAPagedAttentionWrapper:
    """Latent attention for a batch of sequences of any lengths over a paged cache, planned once and run for every layer.

    `plan` checks and keeps what the layers of a model share: lengths, pages, head counts. `run` then takes the arrays of
    one layer. Sequence b has the queries ``qo_indptr[b]`` to ``qo_indptr[b + 1]``, the pages ``kv_indices[kv_indptr[b]]`` to
    ``kv_indices[kv_indptr[b + 1] - 1]``, and ``kv_len_arr[b]`` keys.

    Parameters
    ----------
    float_workspace_buffer : array, optional
        Scratch of any dtype, contiguous and writable. None: the library keeps its own.
    use_cuda_graph : bool, default False
        The batch size is fixed by the following buffers, which are then required: `plan` writes into them.
    qo_indptr : array, int32 or int64 [B + 1], optional
        Buffer of qo_indptr, with use_cuda_graph.
    kv_indptr : array, int32 or int64 [B + 1], optional
        Buffer of kv_indptr.
    kv_indices : array, int32 or int64, optional
        Buffer of kv_indices, at least as long as any plan's.
    kv_len_arr : array, int32 or int64 [B], optional
        Buffer of kv_len_arr.
    backend : {"auto", "fa2", "fa3", "cutlass"}, default "auto"
        Accepted for compatibility; all mean "auto".

    See Also
    --------
    attile.mla_decode : One function, for batches of equal query lengths.

    Notes
    -----
    The interface is that of ``flashinfer.mla.BatchMLAPagedAttentionWrapper``.

    Examples
    --------
    >>> import attile.mla
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> wrapper = attile.mla.BatchMLAPagedAttentionWrapper()
    >>> qo_indptr, kv_indptr = np.array([0, 1, 3]), np.array([0, 2, 5])  # 1 and 2 queries, 2 and 3 pages
    >>> kv_indices, kv_lens = np.array([7, 0, 3, 1, 4]), np.array([5, 12])
    >>> wrapper.plan(
    ...     qo_indptr, kv_indptr, kv_indices, kv_lens, num_heads=16, head_dim_ckv=64, head_dim_kpe=8, page_size=4,
    ...     causal=True, sm_scale=0.1, q_data_type="float32", kv_data_type="float32",
    ... )
    >>> q_nope = rng.standard_normal((3, 16, 64), dtype=np.float32)
    >>> q_pe = rng.standard_normal((3, 16, 8), dtype=np.float32)
    >>> ckv = rng.standard_normal((8, 4, 64), dtype=np.float32)
    >>> kpe = rng.standard_normal((8, 4, 8), dtype=np.float32)
    >>> out, lse = wrapper.run(q_nope, q_pe, ckv, kpe, return_lse=True)
    >>> out.shape, lse.shape
    ((3, 16, 64), (3, 16))
    """

    def __init__(
        self,
        float_workspace_buffer: Array | None = None,
        use_cuda_graph: bool = False,
        qo_indptr: Array | None = None,
        kv_indptr: Array | None = None,
        kv_indices: Array | None = None,
        kv_len_arr: Array | None = None,
        backend: str = "auto",
    ) -> None:
        if backend not in _BACKENDS:
            expected = ", ".join(map(repr, _BACKENDS))
            raise ValueError(f"{_NEW}: backend is unknown: expected one of {expected}, got {backend!r}")
        self._workspace = float_workspace_buffer
        self._buffers = None
        self._planned = None
        if use_cuda_graph:
            self._buffers = {"qo_indptr": qo_indptr, "kv_indptr": kv_indptr, "kv_indices": kv_indices, "kv_len_arr": kv_len_arr}
            for name, buffer in self._buffers.items():
                if buffer is None:
                    raise ValueError(f"{_NEW}: {name} is required with use_cuda_graph: expected an array, got None")
                if type(buffer).__module__.partition(".")[0] in ("jax", "jaxlib"):
                    raise ValueError(f"{_NEW}: {name} must be writable: expected an array of torch, CuPy or NumPy, got a jax.Array")

    def plan(
        self,
        qo_indptr: Array,
        kv_indptr: Array,
        kv_indices: Array,
        kv_len_arr: Array,
        num_heads: int,
        head_dim_ckv: int,
        head_dim_kpe: int,
        page_size: int,
        causal: bool,
        sm_scale: float,
        q_data_type: Any,
        kv_data_type: Any,
    ) -> None:
        """Check and keep a batch.

        Arrays on the host are checked and copied; the first run on a GPU brings the copy there. Arrays on a GPU are taken as they
        are, without waiting for it: they are not checked, must not change before the last run of this plan, and numbers out of
        bounds read nothing. With use_cuda_graph either kind is written into the buffers, from which captured runs read.

        Parameters
        ----------
        qo_indptr : array, int32 or int64 [B + 1]
            Where the queries of each sequence begin: first 0, never decreasing.
        kv_indptr : array, int32 or int64 [B + 1]
            Where the pages of each sequence begin in kv_indices.
        kv_indices : array, int32 or int64
            Page numbers; it may be longer than ``kv_indptr[-1]``.
        kv_len_arr : array, int32 or int64 [B]
            Keys of each sequence.
        num_heads : int
            Heads H.
        head_dim_ckv : int
            The latent rank L, a multiple of 8 up to 512.
        head_dim_kpe : int
            The rope dim R, a multiple of 8 up to 128, or 0.
        page_size : int
            Keys in a page.
        causal : bool
            Whether query i of n sees key j only if ``j <= i + kv_len - n``.
        sm_scale : float
            Factor of the scores, of the head dim before absorption.
        q_data_type : dtype of NumPy, torch or JAX, or its name
            The dtype of the queries.
        kv_data_type : dtype of NumPy, torch or JAX, or its name
            The dtype of the cache.

        Raises
        ------
        ValueError
            A length, page or range that does not fit; with use_cuda_graph, a batch of another size.
        TypeError
            An argument of the wrong type or dtype.
        NotImplementedError
            A dtype of the cache that no kernel of the CPU takes.
        """
        given = {"qo_indptr": qo_indptr, "kv_indptr": kv_indptr, "kv_indices": kv_indices, "kv_len_arr": kv_len_arr}
        settings = (
            num_heads, head_dim_ckv, head_dim_kpe, page_size, causal, sm_scale,
            dtype_name(_PLAN, q_data_type, "q_data_type"), dtype_name(_PLAN, kv_data_type, "kv_data_type"),
        )  # fmt: skip
        planned = _core.mla_plan(*given.values(), *settings)
        if self._buffers is not None:
            _update(self._buffers, given)
            if _on_cuda(self._buffers["qo_indptr"]):
                planned = _core.mla_plan(*self._buffers.values(), *settings)
        self._planned = planned

    def run(
        self,
        q_nope: Array,
        q_pe: Array | None,
        ckv_cache: Array,
        kpe_cache: Array | None,
        out: Array | None = None,
        lse: Array | None = None,
        return_lse: bool = False,
        *,
        return_lse_base_on_e: bool = False,
    ) -> Any:
        """Attention of one layer for the planned batch.

        Parameters
        ----------
        q_nope : array [total_q, H, L]
            Absorbed queries, those of sequence b from ``qo_indptr[b]`` on. Rows behind the last sequence give 0.
        q_pe : array [total_q, H, R] or None
            Their rope parts; None when R is 0.
        ckv_cache : array [pages, page_size, L]
            The latent cache.
        kpe_cache : array [pages, page_size, R] or [pages, page_size, H, R], or None
            Rope keys: one for all heads, or one for each.
        out : array [total_q, H, L], optional
            Written in place and returned.
        lse : array [total_q, H], float32 (float64 for float64), optional
            Written in place, and returned with return_lse.
        return_lse : bool, default False
            Whether lse is returned too.
        return_lse_base_on_e : bool, default False
            Whether lse is the natural logarithm instead of that to base 2.

        Returns
        -------
        out : array [total_q, H, L]
            Of the library and dtype of q_nope.
        lse : array [total_q, H]
            Only with return_lse: the logarithm, to base 2, of the sum of ``exp(s)``; -inf where nothing is seen.

        Raises
        ------
        RuntimeError
            Nothing was planned.
        ValueError
            A shape that differs from the plan's, a cache with fewer pages than the plan needs, a workspace that is too
            small (the message says how many bytes are needed).
        TypeError
            An argument that is no array, or of another dtype than planned.
        """
        if self._planned is None:
            raise RuntimeError(f"{_NEW}.run: plan() must be called first: expected a planned batch, got none")
        return _core.mla_run(
            self._planned, q_nope, q_pe, ckv_cache, kpe_cache, out, lse, return_lse, return_lse_base_on_e, self._workspace
        )


def _update(buffers: dict[str, Array], given: dict[str, Array]) -> None:
    """Write a plan's arrays into the fixed buffers, queued where these are on a GPU; nothing is written unless everything fits."""
    for name, buffer in buffers.items():
        size, room = given[name].shape[0], buffer.shape[0]
        if name == "kv_indices" and size > room:
            raise ValueError(f"{_PLAN}: {name} must fit the buffer: expected at most {room} entries, got {size}")
        if name != "kv_indices" and size != room:
            raise ValueError(f"{_PLAN}: {name}.shape[0] is fixed with use_cuda_graph: expected {room}, got {size}")
    for name, buffer in buffers.items():
        buffer[: given[name].shape[0]] = _as_of(buffer, given[name])


def _as_of(buffer: Array, array: Array) -> Any:
    """The array as its buffer's library takes it for an assignment."""
    library = type(buffer).__module__.partition(".")[0]
    if library == "torch":
        return sys.modules["torch"].as_tensor(array)
    return sys.modules["cupy"].asarray(array) if library == "cupy" else np.asarray(array)


def _on_cuda(array: Array) -> bool:
    return array.__dlpack_device__()[0] == 2


def append_paged_mla_kv_cache(
    append_ckv: Array,
    append_kpe: Array,
    batch_indices: Array,
    positions: Array,
    ckv_cache: Array,
    kpe_cache: Array,
    kv_indices: Array,
    kv_indptr: Array,
    kv_last_page_len: Array,
) -> Any:
    """Write new tokens into the pages of a latent cache, in place.

    Token t goes to position ``positions[t]`` of sequence ``batch_indices[t]``, which has the pages ``kv_indices[kv_indptr[b]]`` to
    ``kv_indices[kv_indptr[b + 1] - 1]``, the last of them filled up to ``kv_last_page_len[b]`` with the new tokens counted.

    Parameters
    ----------
    append_ckv : array [n, L]
        Latents of the new tokens, of the dtype of the cache.
    append_kpe : array [n, R]
        Their rope keys.
    batch_indices : array, int32 or int64 [n]
        The sequence of each token.
    positions : array, int32 or int64 [n]
        Its position in the sequence.
    ckv_cache : array [pages, page_size, L]
        The latent cache.
    kpe_cache : array [pages, page_size, R]
        The cache of rope keys; both may be views of one array.
    kv_indices : array, int32 or int64
        Page numbers, at least ``kv_indptr[-1]``.
    kv_indptr : array, int32 or int64 [B + 1]
        Where the pages of each sequence begin.
    kv_last_page_len : array, int32 or int64 [B]
        Tokens in the last page of each sequence.

    Returns
    -------
    None, or the new ckv_cache and kpe_cache
        With JAX, whose arrays are immutable, the new caches; else None, and the caches are changed.

    Raises
    ------
    ValueError
        A shape, index or position that does not fit; nothing is written then.
    TypeError
        An argument that is no array, or whose dtype is not taken.

    Notes
    -----
    The interface is that of ``flashinfer.page.append_paged_mla_kv_cache``.

    Examples
    --------
    >>> import attile.mla
    >>> import numpy as np
    >>> ckv, kpe = np.zeros((4, 2, 8), dtype=np.float32), np.zeros((4, 2, 8), dtype=np.float32)
    >>> new = np.ones((1, 8), dtype=np.float32)
    >>> pages, indptr, last = np.array([3, 1]), np.array([0, 2]), np.array([1])  # 3 tokens in pages 3 and 1
    >>> attile.mla.append_paged_mla_kv_cache(new, new, np.array([0]), np.array([2]), ckv, kpe, pages, indptr, last)
    >>> float(ckv[1, 0].sum()), float(ckv.sum())
    (8.0, 8.0)
    """
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(ckv_cache, jax.Array):
        return _core.append_paged_mla_kv_cache(
            append_ckv, append_kpe, batch_indices, positions, ckv_cache, kpe_cache, kv_indices, kv_indptr, kv_last_page_len, False
        )
    caches = [_copy(_concrete(cache, name)) for cache, name in ((ckv_cache, "ckv_cache"), (kpe_cache, "kpe_cache"))]
    _core.append_paged_mla_kv_cache(
        append_ckv, append_kpe, batch_indices, positions, *caches, kv_indices, kv_indptr, kv_last_page_len, True
    )
    return tuple(caches)


def _copy(array: Any) -> Any:
    """A copy of a jax.Array, on its device, that nobody else has."""
    jax = sys.modules["jax"]
    with with_64_bit(jax, array.dtype == np.float64):
        return jax.numpy.array(array, copy=True)


def _concrete(array: Any, argument: str) -> Any:
    """The array, or the reason why it cannot be read."""
    from attile.arrays import recognise

    library, _ = recognise(type(array))
    return library.check(array, "append_paged_mla_kv_cache", argument, False)
