"""Others who compute the same, where they are installed. Each takes a call's NumPy arguments and gives two functions, or None where it cannot:
one without arguments that is timed and holds the rival's own call alone, and one that turns its result into out as [B,Tq,Hq,Dv] in NumPy.
Inputs are prepared outside of the timed function, in the layout that the rival likes best.
"""

import importlib.util

import numpy as np


def torch_sdpa(call, threads):
    """scaled_dot_product_attention by its flash kernel, contiguous [B,H,T,D] tensors."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    known = {"query", "key", "value", "bias", "causal"}
    if set(call) - known or call["value"].shape[-1] != call["query"].shape[-1]:
        return None
    if call.get("causal") and ("bias" in call or call["query"].shape[1] != call["key"].shape[1]):
        return None
    torch.set_num_threads(threads)
    torch.backends.cuda.enable_math_sdp(False)  # the flags hold for the CPU too, and cost nothing in a call
    q, k, v = (to_torch(torch, np.moveaxis(call[name], 1, 2)) for name in ("query", "key", "value"))
    bias = to_torch(torch, call["bias"]) if "bias" in call else None
    grouped, causal = q.shape[1] != k.shape[1], bool(call.get("causal"))

    def run():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, enable_gqa=grouped)

    return run, lambda out: np.asarray(out.movedim(1, 2).float())


def to_torch(torch, x):
    x = np.ascontiguousarray(x)
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype.name == "bfloat16" else torch.from_numpy(x)


def numpy_plain(call, threads):
    """Matrix products of NumPy, scores stored whole; threads are its BLAS's own business."""
    if threads != 1 or set(call) - {"query", "key", "value", "causal"} or call["query"].dtype != np.float32:
        return None
    q, k, v = (np.ascontiguousarray(np.moveaxis(call[name], 1, 2)) for name in ("query", "key", "value"))
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], 1) for x in (k, v))
    unseen = np.triu(np.ones((q.shape[2], k.shape[2]), bool), 1) if call.get("causal") else None
    scale = np.float32(q.shape[-1] ** -0.5)

    def run():
        s = q @ np.swapaxes(k, -1, -2)
        s *= scale
        if unseen is not None:
            s[..., unseen] = -np.inf
        s -= s.max(-1, keepdims=True)
        np.exp(s, out=s)
        out = s @ v
        out /= s.sum(-1, keepdims=True)
        return out

    return run, lambda out: np.moveaxis(out, 1, 2)


RIVALS = {"torch": torch_sdpa, "numpy": numpy_plain}
