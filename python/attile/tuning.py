"""Looking at what a call would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attile import _core
from attile.backward import flash_attention_backward
from attile.flash import flash_attention
from attile.kvcache import flash_attention_with_kvcache
from attile.merge import merge_states
from attile.mla import mla_attention, mla_decode
from attile.mla_backward import mla_attention_backward

if TYPE_CHECKING:
    from collections.abc import Callable

_EXPLAIN = {
    flash_attention: _core.explain_flash_attention,
    flash_attention_backward: _core.explain_flash_attention_backward,
    flash_attention_with_kvcache: _core.explain_flash_attention_with_kvcache,
    merge_states: _core.explain_merge_states,
    mla_attention: _core.explain_mla_attention,
    mla_attention_backward: _core.explain_mla_attention_backward,
    mla_decode: _core.explain_mla_decode,
}


def explain(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Tell which kernel, plan and workspace a call would get, and why the other kernels were refused.

    Everything is checked as in the call; nothing is computed or allocated.

    Parameters
    ----------
    fn : callable
        `attile.flash_attention`, `attile.flash_attention_backward`, `attile.flash_attention_with_kvcache`,
        `attile.merge_states`, `attile.mla_attention`, `attile.mla_attention_backward` or `attile.mla_decode`.
    *args : Any
        Positional arguments of the call.
    **kwargs : Any
        Keyword arguments of the call.

    Returns
    -------
    dict
        "function", "kernel", "isa", "plan" (block sizes, workers, of MLA the strategy), "workspace_bytes", and "refused", a list of
        {"kernel", "reason"}.

    Raises
    ------
    TypeError
        fn is not one of these functions, or its arguments do not fit.
    ValueError, NotImplementedError
        As the call would raise.

    See Also
    --------
    FlashAttentionConfig : Forces another choice.

    Examples
    --------
    >>> import attile
    >>> import numpy as np
    >>> x = np.ones((1, 16, 1, 64), dtype=np.float32)
    >>> report = attile.explain(attile.flash_attention, x, x, x, causal=True)
    >>> report["function"], report["workspace_bytes"] >= 0
    ('flash_attention', True)
    """
    import inspect
    import json

    core = _EXPLAIN.get(fn)
    if core is None:
        known = " or ".join(f"attile.{known.__name__}" for known in _EXPLAIN)
        raise TypeError(f"explain: fn cannot be explained: expected {known}, got {fn!r}")
    call = inspect.signature(fn).bind(*args, **kwargs)
    call.apply_defaults()
    return json.loads(core(*call.arguments.values()))
