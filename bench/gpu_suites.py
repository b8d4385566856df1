"""The cases that are timed on a GPU, by suite, with the shapes that attention libraries publish: 16384 tokens and 2048 columns of heads for
prefill and gradients, page size 64 for latent decode. Their names are stable: saved runs are compared by them."""

from cases import Case
from gpu_backward import GpuBackward
from gpu_problems import GpuAttention, GpuCached, GpuLatentDecode
from mla_cases import MlaCase

TOKENS, COLUMNS = 16384, 2048
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
CAUSAL = {"causal": True}


def square(seqlen, head_dim, head_dim_v=None, dtype="bfloat16", **more):
    """B S = 16384, H D = 2048."""
    heads = COLUMNS // (128 if head_dim == 192 else head_dim)
    shape = {"batch": max(1, TOKENS // seqlen), "seqlen_q": seqlen, "seqlen_k": seqlen, "heads_q": heads, "heads_k": heads}
    return Case(**{"id": "", **shape, "head_dim": head_dim, "head_dim_v": head_dim_v or head_dim, "dtype": dtype, **more})


def masks():
    return (("full", {}), ("causal", CAUSAL))


def forward_suite():
    """Prefill in bfloat16, then what few kernels take: 192/128, bias, segments, a window, float32, e4m3; and the generic kernel alone."""
    for head_dim in (64, 128, 256):
        for name, options in masks():
            for seqlen in LENGTHS:
                case = square(seqlen, head_dim, options=options)
                yield GpuAttention(id=f"bf16-d{head_dim}-{name}-s{seqlen}", case=case, rivals=("cudnn", "fa2", "fa3", "vllm-fa3"))
    yield GpuAttention(id="bf16-d192/128-causal-s8192", case=square(8192, 192, 128, options=CAUSAL), rivals=("cudnn", "fa3"))
    masked = ("cudnn", "sdpa-efficient")
    for head_dim in (64, 128):
        heads = COLUMNS // head_dim
        case = square(4096, head_dim, bias=(1, heads, 4096, 4096))
        yield GpuAttention(id=f"bf16-d{head_dim}-bias1HSS-s4096", case=case, rivals=masked)
        if head_dim == 64:
            yield GpuAttention(id="bf16-d64-bias1HSS-s4096-generic", case=case, kernel="forward_generic_sm80", rivals=masked)
    yield GpuAttention(id="bf16-d128-documents4-s4096", case=square(4096, 128), documents=4)
    yield GpuAttention(id="bf16-d128-window1024-s4096", case=square(4096, 128, options=CAUSAL | {"sliding_window": (1023, 0)}))
    yield GpuAttention(id="fp32-d64-full-s4096", case=square(4096, 64, dtype="float32"), rivals=("sdpa-math", "sdpa-efficient"))
    for name, options in masks():
        yield GpuAttention(id=f"fp8-d128-{name}-s8192", case=square(8192, 128, options=options), float8=True, rivals=("vllm-fa3",))
    for name, options in masks():
        case = square(8192, 128, options=options)
        yield GpuAttention(id=f"bf16-d128-{name}-s8192-generic", case=case, kernel="forward_generic_sm80", rivals=("fa2",))


def decode_suite():
    """One new position of each sequence against its cache."""
    for batch, seqlen, heads_q, heads_k in ((64, 8192, 64, 8), (64, 1024, 64, 8), (1, 32768, 64, 8), (64, 4096, 32, 32)):
        case = Case(
            id="",
            batch=batch,
            seqlen_q=1,
            seqlen_k=seqlen,
            heads_q=heads_q,
            heads_k=heads_k,
            head_dim=128,
            head_dim_v=128,
            dtype="bfloat16",
        )
        name = f"bf16-b{batch}-h{heads_q}/{heads_k}-d128-s{seqlen}"
        yield GpuCached(id=name, case=case, bound="bytes", rivals=("cudnn", "fa2", "fa3", "vllm-fa3"))
        yield GpuCached(id=f"{name}-paged64", case=case, page_size=64, bound="bytes", rivals=("fa3", "vllm-fa3"))


def mla_suite():
    """DeepSeek's latent decode, FlashInfer's example, MHA2MLA's rope key for each head, a small shared rope."""

    def deepseek(**more):
        return MlaCase(**{"id": "", "latent": 512, "rope": 64, "dtype": "bfloat16", **more})

    for heads in (16, 64, 128):
        for seqlen_q in (1, 2):
            for seqlen in (1024, 2048, 4096, 8192, 16384, 32768):
                case = deepseek(batch=128, seqlen_q=seqlen_q, seqlen_k=seqlen, heads=heads, page_size=64)
                bound = "flops" if heads * seqlen_q >= 128 else "bytes"
                yield GpuLatentDecode(id=f"bf16-b128-h{heads}-q{seqlen_q}-s{seqlen}", case=case, bound=bound, rivals=("flash-mla",))
    for heads in (16, 64):
        case = deepseek(batch=128, seqlen_k=8192, heads=heads, page_size=64)
        yield GpuLatentDecode(id=f"fp8-b128-h{heads}-q1-s8192", case=case, float8=True, bound="bytes")
    for page in (1, 64):
        case = deepseek(batch=114, seqlen_k=999, heads=128, page_size=page)
        yield GpuLatentDecode(id=f"bf16-b114-h128-s999-page{page}", case=case, rivals=("flash-mla",))
    for batch in (8, 64):
        for seqlen in (2048, 4096):
            case = deepseek(batch=batch, seqlen_k=seqlen, heads=32, rope=16, head_rope=True)
            yield GpuLatentDecode(id=f"bf16-b{batch}-h32-512+16perhead-s{seqlen}", case=case, bound="bytes", rivals=("torch-bmm",))
    case = deepseek(batch=64, seqlen_k=4096, heads=24, latent=256, rope=32)
    yield GpuLatentDecode(id="bf16-b64-h24-256+32-s4096", case=case, bound="bytes", rivals=("torch-bmm",))


def backward_suite():
    """Gradients, in the shapes of the forward suite."""
    for head_dim in (64, 128, 256):
        for name, options in masks():
            for seqlen in LENGTHS:
                yield GpuBackward(id=f"bf16-d{head_dim}-{name}-s{seqlen}", case=square(seqlen, head_dim, options=options), rivals=("cudnn", "fa2"))


GPU_SUITES = {"gpu-forward": forward_suite, "gpu-decode": decode_suite, "gpu-mla": mla_suite, "gpu-backward": backward_suite}
