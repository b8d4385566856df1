"""The cases that are timed, by suite. Their names are stable: saved runs are compared by them."""

import dataclasses

from cases import Case
from problems import Attention, Cached

import attile

SQUARE = Case(id="", batch=1, seqlen_q=2048, seqlen_k=2048, heads_q=32, heads_k=32, head_dim=128, head_dim_v=128, dtype="float32")
NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
CAUSAL = {"causal": True}


def variant(case, **changes):
    return dataclasses.replace(case, **changes)


def forward_suite():
    """Prefill, S 2048: full and causal, head dims 128, 64 and DeepSeek's 192/128, a bias, grouped heads, AVX2, two threads."""
    for dtype, name in NAMES.items():
        wide = variant(SQUARE, dtype=dtype)
        narrow = variant(wide, heads_q=16, heads_k=16, head_dim=64, head_dim_v=64)
        rivals = ("torch", "vllm", "onnxruntime")
        more = (*rivals, "numpy") if dtype == "float32" else rivals
        yield Attention(id=f"{name}-h32-d128-full", case=wide, rivals=more)
        yield Attention(id=f"{name}-h32-d128-causal", case=variant(wide, options=CAUSAL), rivals=rivals)
        if dtype == "bfloat16":
            yield Attention(id=f"{name}-h32/8-d128-causal", case=variant(wide, heads_k=8, options=CAUSAL), rivals=rivals)
            yield Attention(id=f"{name}-h16-d64-full", case=narrow, rivals=rivals)
            yield Attention(id=f"{name}-h16-d64-causal", case=variant(narrow, options=CAUSAL), rivals=rivals)
            deep = variant(narrow, head_dim=192, head_dim_v=128, options=CAUSAL)
            yield Attention(id=f"{name}-h16-d192/128-causal", case=deep, rivals=("torch", "sglang"))
        if dtype != "float16":
            yield Attention(id=f"{name}-h16-d64-bias11SS", case=variant(narrow, bias=(1, 1, 2048, 2048)), rivals=("torch", "onnxruntime"))
            yield Attention(id=f"{name}-h32-d128-full-t2", case=wide, threads=2, rivals=("torch", "vllm"))
        if dtype == "float32":
            yield Attention(id=f"{name}-h32-d128-full-avx2", case=wide, kernel="avx2")


def decode_suite():
    """One query position of 32 heads against a cache of 8 key heads that comes from memory."""
    for dtype, name in NAMES.items():
        one = variant(SQUARE, dtype=dtype, seqlen_q=1, heads_k=8)
        rivals = ("torch", "vllm", "sglang", "onnxruntime") + (("numpy",) if dtype == "float32" else ())
        cold = {"cold": True, "bound": "bytes"}
        long = variant(one, seqlen_k=8192)
        yield Attention(id=f"{name}-h32/8-d128-s8192", case=long, rivals=rivals, **cold)
        yield Attention(id=f"{name}-h32/8-d128-s2048", case=one, rivals=("torch", "vllm"), **cold)
        if dtype != "float16":
            yield Attention(id=f"{name}-h32/8-d128-s8192-t2", case=long, rivals=("torch", "vllm"), threads=2, **cold)
            yield Attention(id=f"{name}-h32-d128-s8192", case=variant(long, heads_k=32), rivals=("torch", "vllm"), **cold)
        if dtype == "bfloat16":
            yield Attention(id=f"{name}-h32/8-d128-b8-s4096", case=variant(one, batch=8, seqlen_k=4096), rivals=("torch", "vllm"), **cold)
        if hasattr(attile, "flash_attention_with_kvcache") and dtype != "float16":
            yield Cached(id=f"{name}-h32/8-d128-s8192-kvcache", case=long, **cold)
            yield Cached(id=f"{name}-h32/8-d128-s8192-paged64", case=long, page_size=64, rivals=("vllm",), **cold)


def overhead_suite():
    """Almost nothing to compute: the price of a call."""
    tiny = variant(SQUARE, seqlen_q=1, seqlen_k=1, heads_q=1, heads_k=1, head_dim=64, head_dim_v=64)
    yield Attention(id="fp32-1x1x1x64", case=tiny, rivals=("torch", "numpy"))


SUITES = {"forward": forward_suite, "decode": decode_suite, "overhead": overhead_suite}
