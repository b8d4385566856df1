"""The cases that are timed, by suite. Their names are stable: saved runs are compared by them."""

import dataclasses

from cases import Case
from mla_attention_cases import MlaAttentionCase
from mla_cases import MlaCase
from problems import Attention, Cached
from problems_mla import LatentAttention, LatentDecode, WrapperRun

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


def mla_suite():
    """Latent attention: DeepSeek's decode and prefill, MHA2MLA's decode with a rope key for each head; caches come from memory."""
    for dtype, name in (("bfloat16", "bf16"), ("float32", "fp32")):
        deepseek = MlaCase(id="", batch=1, seqlen_k=8192, heads=16, latent=512, rope=64, dtype=dtype)
        many = variant(deepseek, heads=128)
        few = {"cold": True, "bound": "bytes" if dtype == "bfloat16" else "flops"}
        rivals = ("torch-sdpa", "torch-matmul", "vllm-mla", "sglang-mla")
        yield LatentDecode(id=f"{name}-decode-h16-576/512-s8192", case=deepseek, rivals=rivals, **few)
        yield LatentDecode(id=f"{name}-decode-h128-576/512-s8192", case=many, rivals=rivals, cold=True)
        yield LatentDecode(id=f"{name}-decode-h16-576/512-s8192-t2", case=deepseek, rivals=rivals[:1], threads=2, **few)
        yield LatentDecode(id=f"{name}-decode-h128-576/512-s8192-t2", case=many, rivals=rivals[1:2], threads=2, cold=True)
        mha2mla = MlaCase(id="", batch=8, seqlen_k=2048, heads=32, latent=512, rope=16, head_rope=True, dtype=dtype)
        yield LatentDecode(id=f"{name}-decode-h32-512+16perhead-b8-s2048", case=mha2mla, rivals=("torch-matmul",), **few)
        yield LatentDecode(id=f"{name}-decode-h32-512+16perhead-b8-s2048-t2", case=mha2mla, threads=2, **few)
        prefill = MlaAttentionCase(
            id="",
            batch=1,
            seqlen_q=2048,
            seqlen_k=2048,
            heads_q=16,
            heads_k=16,
            rank=512,
            nope=128,
            rope_dim=64,
            head_dim_v=128,
            dtype=dtype,
            options=CAUSAL,
        )
        yield LatentAttention(id=f"{name}-attention-h16-l512-192/128-s2048", case=prefill, rivals=("torch-decompress",))
        if dtype == "bfloat16":
            yield LatentAttention(id=f"{name}-attention-h16-l512-192/128-s2048-t2", case=prefill, rivals=("torch-decompress",), threads=2)


def overhead_suite():
    """Almost nothing to compute: the price of a call."""
    tiny = variant(SQUARE, seqlen_q=1, seqlen_k=1, heads_q=1, heads_k=1, head_dim=64, head_dim_v=64)
    yield Attention(id="fp32-1x1x1x64", case=tiny, rivals=("torch", "numpy"))
    yield WrapperRun(id="fp32-mla-wrapper-run", case=MlaCase(id="", batch=1, seqlen_k=1, heads=1, latent=8, rope=8))


def on_gpu(name):
    """A suite of gpu_suites.py, which is imported when it is asked for."""

    def suite():
        import gpu_suites

        return gpu_suites.GPU_SUITES[name]()

    return suite


GPU_SUITES = {name: on_gpu(name) for name in ("gpu-forward", "gpu-decode", "gpu-mla", "gpu-backward")}
SUITES = {"forward": forward_suite, "decode": decode_suite, "mla": mla_suite, "overhead": overhead_suite} | GPU_SUITES
