"""Others who compute the same, where they are installed: RIVALS, a name to a function(problem, sets) that gives a Contender or raises Refused.

What is timed is the rival's own call alone: inputs are prepared before, in the layout that the rival likes best, results are turned into
NumPy after. Nothing here is needed: a library that is missing is a rival that refuses.
"""

import importlib

import numpy as np
from problems import Contender, Refused


def library(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Refused("not installed") from error


def only(call, *known):
    """Refuse a call that says more than these."""
    if more := set(call) - {"query", "key", "value", "page_table", "key_pages", "value_pages", *known}:
        raise Refused(f"no {', '.join(sorted(more))}")


def to_torch(x):
    torch = library("torch")
    x = np.ascontiguousarray(x)
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype.name == "bfloat16" else torch.from_numpy(x)


def heads_first(x):
    return np.moveaxis(x, 1, 2)


def torch_sdpa(problem, sets):
    """scaled_dot_product_attention by its flash kernel, contiguous [B,H,T,D] tensors."""
    torch = library("torch")
    call = sets[0]
    only(call, "bias", "causal")
    if call["value"].shape[-1] != call["query"].shape[-1]:
        raise Refused("its flash kernel takes no Dv != D")
    if call.get("causal") and ("bias" in call or call["query"].shape[1] != call["key"].shape[1]):
        raise Refused("causal with a bias, or with other lengths")
    torch.set_num_threads(problem.threads)
    torch.backends.cuda.enable_math_sdp(False)  # the flags hold for the CPU too, and cost nothing in a call
    attend, grouped, causal = torch.nn.functional.scaled_dot_product_attention, call["query"].shape[2] != call["key"].shape[2], bool(call.get("causal"))

    def make(call):
        q, k, v = (to_torch(heads_first(call[name])) for name in ("query", "key", "value"))
        bias = to_torch(call["bias"]) if "bias" in call else None
        return lambda: attend(q, k, v, attn_mask=bias, is_causal=causal, enable_gqa=grouped)

    return Contender([make(call) for call in sets], lambda out: np.asarray(out.movedim(1, 2).float()))


def numpy_plain(problem, sets):
    """Matrix products of NumPy, scores stored whole, one thread of its BLAS (bench.py sees to that)."""
    only(sets[0], "causal")
    if problem.threads != 1 or sets[0]["query"].dtype != np.float32:
        raise Refused("one thread and float32 only")

    def make(call):
        q, k, v = (np.ascontiguousarray(heads_first(call[name])) for name in ("query", "key", "value"))
        batch, heads_k, seqlen_k, head_dim = k.shape
        grouped = q.reshape(batch, heads_k, -1, head_dim)  # heads of a group as rows: k and v are read once
        unseen = np.triu(np.ones((q.shape[2], seqlen_k), bool), 1) if call.get("causal") else None
        scale = np.float32(head_dim**-0.5)

        def run():
            s = grouped @ np.swapaxes(k, -1, -2)
            s *= scale
            if unseen is not None:
                s.reshape(batch, heads_k, -1, *unseen.shape)[..., unseen] = -np.inf
            s -= s.max(-1, keepdims=True)
            np.exp(s, out=s)
            out = s @ v
            out /= s.sum(-1, keepdims=True)
            return out.reshape(*q.shape[:3], -1)

        return run

    return Contender([make(call) for call in sets], heads_first)
