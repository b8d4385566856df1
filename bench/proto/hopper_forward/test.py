"""Checks and times every library given (or all *.so beside this file) against torch's float32 reference and cuDNN attention.

  python3 test.py [--check] [--race] [--bench] [--quick] [lib.so ...]

Times: CUDA events, the L2 flushed before each call, medians, the libraries interleaved with cuDNN in rounds of one run.
"""
import argparse
import ctypes
import glob
import os
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HERE = os.path.dirname(os.path.abspath(__file__))


class Options(ctypes.Structure):
    """instances.cu's Options."""
    _fields_ = [("cu_seqlens_q", ctypes.c_void_p), ("cu_seqlens_k", ctypes.c_void_p), ("sequences", ctypes.c_int),
                ("window_left", ctypes.c_int), ("window_right", ctypes.c_int), ("top_left", ctypes.c_int),
                ("sinks", ctypes.c_void_p), ("softcap", ctypes.c_float), ("bias", ctypes.c_void_p),
                ("bias_strides", ctypes.c_int64 * 3), ("mask", ctypes.c_void_p), ("mask_strides", ctypes.c_int64 * 3),
                ("segments_q", ctypes.c_void_p), ("segments_k", ctypes.c_void_p), ("q_scale", ctypes.c_void_p), ("k_scale", ctypes.c_void_p),
                ("v_scale", ctypes.c_void_p), ("q_scale_step", ctypes.c_int), ("k_scale_step", ctypes.c_int), ("v_scale_step", ctypes.c_int),
                ("workspace", ctypes.c_void_p)]


class Kernel:
    def __init__(self, path):
        self.name = os.path.basename(path).removesuffix(".so")
        self.lib = ctypes.CDLL(path)
        self.head_dim = self.lib.hopper_forward_head_dim()
        dv = getattr(self.lib, "hopper_forward_head_dim_v", None)
        self.head_dim_v = dv() if dv else self.head_dim
        modes = getattr(self.lib, "hopper_forward_modes", None)
        self.modes = [c for c in (False, True) if not modes or modes() >> int(c) & 1]
        self.general = bool(modes and modes() & 4)
        half = getattr(self.lib, "hopper_forward_is_half", None)
        self.dtype = torch.float16 if half and half() else torch.bfloat16
        fp8 = getattr(self.lib, "hopper_forward_is_fp8", None)
        self.fp8 = bool(fp8 and fp8())  # test_fp8.py's, not this file's
        self.counter = torch.zeros(1, dtype=torch.int32, device="cuda")

    def __call__(self, q, k, v, causal, out=None, lse=None, scale=None, options=None):
        (b, sq, h, d), (sk, hk), dv = q.shape, k.shape[1:3], v.shape[-1]
        out = torch.empty(b, sq, h, dv, dtype=q.dtype, device=q.device) if out is None else out
        lse = torch.empty(b, h, sq, device=q.device) if lse is None else lse
        strides = (ctypes.c_int64 * 12)(*[x.stride(i) for x in (q, k, v, out) for i in (0, 1, 2)])
        p = ctypes.c_void_p
        rc = self.lib.hopper_forward(p(q.data_ptr()), p(k.data_ptr()), p(v.data_ptr()), p(out.data_ptr()), p(lse.data_ptr()),
                                     strides, b, h, hk, sq, sk, ctypes.c_float(scale or d ** -0.5), int(causal),
                                     p(self.counter.data_ptr()), p(torch.cuda.current_stream().cuda_stream),
                                     ctypes.byref(options) if options else None)
        if rc:
            raise RuntimeError(f"{self.name}: error {rc}")
        return out, lse


def reference(q, k, v, causal):
    """float32 on the rounded inputs; causal aligned bottom right; rows without keys give 0 and -inf."""
    q, k, v = (x.float() for x in (q, k, v))
    g = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(g, 2), v.repeat_interleave(g, 2)
    s = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    if causal:
        sq, sk = s.shape[-2:]
        s = s.masked_fill(~torch.ones(sq, sk, dtype=torch.bool, device=s.device).tril(sk - sq), float("-inf"))
    lse = torch.logsumexp(s, -1)
    p = torch.exp(s - lse.masked_fill(lse == -torch.inf, 0)[..., None])
    return torch.einsum("bhqk,bkhd->bqhd", p, v), lse


def relative(a, b):
    return ((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-30)).item()


CASES = [  # batch, heads_q, heads_kv, seqlen_q, seqlen_k
    (2, 4, 4, 512, 512), (1, 2, 1, 1, 1), (1, 2, 2, 127, 129), (2, 6, 2, 300, 777), (1, 8, 1, 777, 300), (3, 2, 2, 1000, 1000),
    (1, 3, 3, 64, 4097), (2, 16, 4, 1536, 1536), (1, 2, 2, 2049, 175), (1, 2, 2, 176, 353), (1, 2, 1, 300, 6500),
]


def inputs(case, d, kind, dv=None, dtype=torch.bfloat16):
    b, h, hk, sq, sk = case
    g = torch.Generator("cuda").manual_seed(hash(case) % 1000)
    mk = lambda *s: torch.randn(*s, device="cuda", generator=g).to(dtype)  # noqa: E731
    dv = dv or d
    q, k, v = mk(b, sq, h, d), mk(b, sk, hk, d), mk(b, sk, hk, dv)
    if kind == "strided":      # rows wider than the heads, and [B, H, S, D] memory
        wide = mk(b, sq, h + 2, d + 64)
        q = wide[:, :, 1:h + 1, :d]
        k = mk(b, hk, sk, d).transpose(1, 2)
        v = mk(b, sk, hk, 2 * dv)[..., dv:]
    if kind == "staircase":    # the row maximum rises with the key index, and falls for the other half of the heads
        ramp = torch.arange(sk, device="cuda") / 128 * 0.5
        ramp = ramp[None, :, None] * torch.where(torch.arange(hk, device="cuda") % 2 == 0, 1.0, -1.0)[None, None]
        q[..., 0] = d ** 0.5
        k[..., 0] = ramp.to(dtype)
    if kind == "cliffs":       # every 64 keys another level, up to 100 apart: the running maximum leaps
        q[..., 0] = d ** 0.5
        level = torch.randint(-50, 50, (sk // 64 + 1,), device="cuda", generator=g).repeat_interleave(64)[:sk]
        k[..., 0] = level[None, :, None].to(dtype)
    if kind == "large":        # scores of some hundreds
        q *= 20
    return q, k, v


def check(kernel, cases=CASES, kinds=("plain", "strided", "staircase", "large", "cliffs")):
    worst = 0.0
    for case in cases:
        for kind in kinds:
            for causal in kernel.modes:
                q, k, v = inputs(case, kernel.head_dim, kind, kernel.head_dim_v, kernel.dtype)
                b, h, hk, sq, sk = case
                if kind == "strided":
                    out = torch.full((b, h, sq, kernel.head_dim_v), float("nan"), device="cuda").to(kernel.dtype).transpose(1, 2)
                else:
                    out = torch.full((b, sq, h, kernel.head_dim_v), float("nan"), device="cuda").to(kernel.dtype)
                lse = torch.full((b, h, sq), float("nan"), device="cuda")
                kernel(q, k, v, causal, out, lse)
                torch.cuda.synchronize()
                want, want_lse = reference(q, k, v, causal)
                err = relative(out, want)
                seen = want_lse > -torch.inf
                lse_err = (lse - want_lse)[seen].abs().max().item() if seen.any() else 0.0
                good = err < 6e-3 and lse_err < 2e-3 and bool((lse[~seen] == -torch.inf).all())
                if not good:
                    print(f"  {kernel.name} WRONG {case} {kind} causal={causal}: out {err:.2e} lse {lse_err:.2e}")
                worst = max(worst, err)
    assert int(kernel.counter) == 0, "the counter did not return to zero"
    print(f"  {kernel.name}: {len(cases) * len(kinds) * len(kernel.modes)} checks, worst relative error {worst:.2e}", flush=True)


def race(kernel, repeats=50):
    different = 0
    for causal in kernel.modes:
        q, k, v = inputs((2, 16, 4, 1999, 2100), kernel.head_dim, "staircase", kernel.head_dim_v, kernel.dtype)
        want = kernel(q, k, v, causal)
        for _ in range(repeats):
            got = kernel(q, k, v, causal)
            different += not all(torch.equal(a, b) for a, b in zip(got, want))
    print(f"  {kernel.name}: {2 * repeats} repeats, {different} different", flush=True)


flush = None


def once(f):
    global flush
    if flush is None:
        flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()
    a.record()
    f()
    b.record()
    return a, b


def bench(kernels, lengths, causals, rounds=7):
    for d in sorted({k.head_dim for k in kernels}):
        rivals = [k for k in kernels if k.head_dim == d]
        print(f"  TFLOP/s, head_dim {d}: " + " ".join(["cudnn"] + [k.name for k in rivals]), flush=True)
        for causal in causals:
            for s in lengths:
                b, h = max(1, 16384 // s), 2048 // d
                q, k, v = (torch.randn(b, s, h, d, device="cuda").bfloat16() for _ in range(3))
                qt, kt, vt = (x.transpose(1, 2).contiguous() for x in (q, k, v))
                out, lse = torch.empty_like(q), torch.empty(b, h, s, device="cuda")

                def cudnn():
                    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                        return F.scaled_dot_product_attention(qt, kt, vt, is_causal=causal)
                calls = [cudnn] + [lambda x=x: x(q, k, v, causal, out, lse) for x in rivals]
                for f in calls:
                    f(), f()
                events = [[] for _ in calls]
                for _ in range(rounds):
                    for i, f in enumerate(calls):
                        events[i] += [once(f) for _ in range(3)]
                torch.cuda.synchronize()
                flops = 4 * b * h * s * s * d / (2 if causal else 1)
                rates = []
                for ev in events:
                    ts = sorted(x.elapsed_time(y) for x, y in ev)
                    rates.append(flops / ts[len(ts) // 2] * 1e-9)
                print(f"  {'causal' if causal else 'full  '} {s:6d} " + " ".join(f"{r:5.0f}" for r in rates), flush=True)


if __name__ == "__main__":
    a = argparse.ArgumentParser()
    for flag in ("check", "race", "bench", "quick"):
        a.add_argument("--" + flag, action="store_true")
    a.add_argument("--lengths", default="512,1024,2048,4096,8192,16384")
    a.add_argument("--causal", default="0,1")
    a.add_argument("libs", nargs="*")
    a = a.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__, "cuDNN", torch.backends.cudnn.version())
    kernels = [Kernel(p) for p in a.libs or sorted(glob.glob(HERE + "/*.so"))]
    for kernel in kernels:
        if a.check:
            check(kernel)
        if a.race:
            race(kernel)
    if a.bench:
        lengths = (2048, 8192) if a.quick else [int(x) for x in a.lengths.split(",")]
        bench(kernels, lengths, [bool(int(x)) for x in a.causal.split(",")])
