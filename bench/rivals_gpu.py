"""Others who compute the same on a GPU: the backends of torch's scaled_dot_product_attention, FlashAttention-3 and FlashMLA.

The latter two are found as Python packages (flash_attn_interface, flash_mla), or as torch libraries of operators: files named by
ATTILE_BENCH_FA3 and ATTILE_BENCH_FLASHMLA, or those inside an installed vLLM (`_vllm_fa3_C.abi3.so`, `_flashmla_C.abi3.so`; vLLM itself is not
imported). Schedules and page tables are made before the timed call.
"""

import functools
import importlib.util
import os
from pathlib import Path

from gpu_problems import Answer
from problems import Contender, Refused
from rivals import library

VLLM_FILES = {"ATTILE_BENCH_FA3": "_vllm_fa3_C.abi3.so", "ATTILE_BENCH_FLASHMLA": "_flashmla_C.abi3.so"}


@functools.cache
def operators(variable, *namespaces):
    """The first of these namespaces of torch.ops that the file named by the environment variable, or vLLM's, registers."""
    torch = library("torch")
    path = os.environ.get(variable)
    if path is None:
        package = importlib.util.find_spec("vllm")
        found = sorted(Path(package.submodule_search_locations[0]).rglob(VLLM_FILES[variable])) if package else []
        if not found:
            raise Refused("not installed")
        path = str(found[0])
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise Refused(f"its library does not load: {str(error)[:80]}") from error
    for name in namespaces:
        namespace = getattr(torch.ops, name)
        if dir(namespace) or any(hasattr(namespace, op) for op in ("fwd", "dense_decode_fwd", "fwd_kvcache_mla")):
            return namespace
    raise Refused(f"registers none of {', '.join(namespaces)}")


def plain(call, *known):
    if more := set(call) - {"query", "key", "value", "causal", "page_table", "lengths", "key_pages", "value_pages", "out", "lse", "dout", *known}:
        raise Refused(f"no {', '.join(sorted(more))}")


def sdpa(backend):
    """The rival that is a backend of torch.nn.attention.SDPBackend, forward, decode over a dense cache, or backward."""

    def rival(problem, sets):
        torch = library("torch")
        from torch.nn.attention import SDPBackend, sdpa_kernel

        call, which = sets[0], getattr(SDPBackend, backend)
        plain(call, "bias")
        if "page_table" in call:
            raise Refused("no pages")
        backward = problem.function == "flash_attention_backward"
        leaves = [call[name].detach().requires_grad_(backward) for name in ("query", "key", "value")]
        query, key, value = (x.transpose(1, 2) for x in leaves)
        options = {"attn_mask": call.get("bias"), "is_causal": bool(call.get("causal")), "enable_gqa": query.shape[1] != key.shape[1]}
        attend = torch.nn.functional.scaled_dot_product_attention

        def forward():
            with sdpa_kernel(which):
                return attend(query, key, value, **options)

        if not backward:
            return Contender([forward], lambda out: Answer(out.transpose(1, 2)))
        out, dout = forward(), call["dout"].transpose(1, 2)
        names = ("query", "key", "value")
        return Contender(
            [lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)], lambda grads: Answer(dict(zip(names, grads, strict=True)))
        )

    return rival


def fa3(problem, sets):
    """FlashAttention-3's own package."""
    interface, call = library("flash_attn_interface"), sets[0]
    plain(call)
    query, causal = call["query"], bool(call.get("causal"))
    if problem.function == "flash_attention_backward":
        raise Refused("its backward is reached through autograd only")
    if problem.function == "flash_attention_with_kvcache":
        paged = "page_table" in call
        keys, values = (call[name + ("_pages" if paged else "")] for name in ("key", "value"))
        options = {"page_table": call["page_table"], "cache_seqlens": call["lengths"]} if paged else {}
        return Contender([lambda: interface.flash_attn_with_kvcache(query, keys, values, causal=True, **options)], Answer)

    def forward():
        out = interface.flash_attn_func(query, call["key"], call["value"], causal=causal)
        return out[0] if isinstance(out, tuple) else out

    return Contender([forward], Answer)


def vllm_fa3(problem, sets):
    """vLLM's build of FlashAttention-3, which takes packed queries; keys packed, or in pages."""
    torch = library("torch")
    operator, call = operators("ATTILE_BENCH_FA3", "_vllm_fa3_C").fwd, sets[0]
    plain(call)
    if problem.function == "flash_attention_backward":
        raise Refused("forward only")
    query, no = call["query"], None
    batch, seqlen_q = query.shape[:2]
    out = query.new_empty((*query.shape[:-1], call["value"].shape[-1]), dtype=getattr(torch, problem.dtype))

    def starts(length):
        return torch.arange(batch + 1, dtype=torch.int32, device=query.device) * length

    keys, values, cu_k, lengths, table = call["key"].flatten(0, 1), call["value"].flatten(0, 1), starts(call["key"].shape[1]), no, no
    if "page_table" in call:
        keys, values, cu_k, lengths, table = call["key_pages"], call["value_pages"], no, call["lengths"], call["page_table"]
    splits = 0 if problem.function == "flash_attention_with_kvcache" else 1
    arguments = (
        *(query.flatten(0, 1), keys, values, no, no, no, out.flatten(0, 1), starts(seqlen_q), cu_k, no, no, lengths),
        *(seqlen_q, call["key"].shape[1], table, *(no,) * 8, query.shape[-1] ** -0.5, bool(call.get("causal"))),
        *(-1, -1, 0.0, True, no, splits, no, 0, no, 1, 0, no),
    )

    def run():
        operator(*arguments)
        return out

    return Contender([run], Answer)


def flash_mla(problem, sets):
    """FlashMLA's dense decode over pages of 64."""
    call, case = sets[0], problem.case
    if case.page_size != 64 or case.latent != 512 or case.rope != 64:
        raise Refused("pages of 64, 512 + 64 dims only")
    query, cache, table, lengths = call["q"], call["cache"].unsqueeze(2), call["page_table"], call["kv_lens"]
    causal = case.seqlen_q > 1
    if importlib.util.find_spec("flash_mla"):
        package = library("flash_mla")
        schedule, splits = package.get_mla_metadata(lengths, case.seqlen_q * case.heads, 1)
        return Contender(
            [lambda: package.flash_mla_with_kvcache(query, cache, table, lengths, 512, schedule, splits, problem.scale, causal)[0]], Answer
        )
    namespace = operators("ATTILE_BENCH_FLASHMLA", "flash_mla_legacy", "_flashmla_C")
    if hasattr(namespace, "dense_decode_fwd"):
        schedule, splits = namespace.dense_decode_fwd(query, cache, 512, lengths, table, problem.scale, causal, None, None)[2:4]
        return Contender(
            [lambda: namespace.dense_decode_fwd(query, cache, 512, lengths, table, problem.scale, causal, schedule, splits)[0]], Answer
        )
    schedule, splits = namespace.get_mla_decoding_metadata(lengths, case.seqlen_q * case.heads, 1)
    return Contender(
        [lambda: namespace.fwd_kvcache_mla(query, cache, 512, lengths, table, problem.scale, causal, schedule, splits)[0]], Answer
    )


def bmm(problem, sets):
    """Batched matrix products of torch: latent scores, those of each head's rope key, softmax, values."""
    torch = library("torch")
    call, case = sets[0], problem.case
    if case.page_size is not None or case.seqlen_q != 1:
        raise Refused("a dense cache and one position only")
    named = problem.call(call)
    q_nope, q_pe = (named[name][:, 0] * problem.scale for name in ("q_nope", "q_pe"))
    ckv, kpe = call["ckv"], call["kpe"]
    ropes = kpe.transpose(1, 2).contiguous().mT if case.head_rope else kpe[:, None].mT

    def run():
        scores = torch.bmm(q_nope, ckv.mT) + (q_pe[:, :, None] @ ropes)[:, :, 0]
        return torch.bmm(torch.softmax(scores, -1), ckv)

    return Contender([run], lambda out: Answer(out[:, None]))


RIVALS = {
    "cudnn": sdpa("CUDNN_ATTENTION"),
    "fa2": sdpa("FLASH_ATTENTION"),
    "sdpa-efficient": sdpa("EFFICIENT_ATTENTION"),
    "sdpa-math": sdpa("MATH"),
    "fa3": fa3,
    "vllm-fa3": vllm_fa3,
    "flash-mla": flash_mla,
    "torch-bmm": bmm,
}
