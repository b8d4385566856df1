"""Checks and times libraries built with -DELEMENT=__nv_fp8_e4m3 (out bf16): the error may be twice that of a plain computation that rounds
what must be rounded, P to e4m3 and out to bf16.

  python3 test_fp8.py [--bench] lib.so ...
"""
import argparse
import ctypes

import torch

import test
from test import Kernel, Options, relative

FP8 = torch.float8_e4m3fn


def options(kernel, b, hk, sq, sk, scales):
    o = Options(window_left=-1, window_right=-1)
    size = kernel.lib.hopper_forward_workspace
    size.restype = ctypes.c_size_t
    o.keep = [torch.full((size(b, hk, sq, sk),), 0x7f, dtype=torch.uint8, device="cuda"), scales]
    o.workspace = o.keep[0].data_ptr()
    for name, x in zip("qkv", scales):
        if x is not None:
            setattr(o, name + "_scale", x.data_ptr())
            setattr(o, name + "_scale_step", int(x.numel() > 1))
    return o


def plain(q, k, v, causal, rounded):
    """float32 [B, S, H, D]; rounded: P to e4m3 (times 2^8), out to bf16."""
    g = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(g, 2), v.repeat_interleave(g, 2)
    s = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    if causal:
        s = s.masked_fill(~torch.ones(s.shape[-2:], dtype=torch.bool, device="cuda").tril(s.shape[-1] - s.shape[-2]), -torch.inf)
    lse = torch.logsumexp(s, -1)
    top = s.amax(-1, keepdim=True)
    p = torch.exp(s - top.masked_fill(top == -torch.inf, 0)) * 256
    total = p.sum(-1)
    if rounded:
        p = p.to(FP8).float()
    out = torch.einsum("bhqk,bkhd->bqhd", p, v) / total.clamp_min(1e-30).transpose(1, 2)[..., None]
    # e4m3 products are added with 13 bits below the largest: what that may do to a score
    slack = torch.einsum("bqhd,bkhd->bhqk", q.abs(), k.abs()).max().item() * q.shape[-1] ** -0.5 * 2.0 ** -13
    return (out.bfloat16().float() if rounded else out), lse, slack


def check(kernel):
    worst, wrong, count = 0.0, 0, 0
    d, dv = kernel.head_dim, kernel.head_dim_v
    for case in test.CASES:
        b, h, hk, sq, sk = case
        for kind in ("plain", "one scale", "scales", "staircase", "strided"):
            for causal in kernel.modes:
                q, k, v = (x.to(FP8) for x in test.inputs(case, d, kind, dv))
                if kind == "strided":  # padded rows, [B, H, S, D] memory
                    q = torch.nn.functional.pad(q.view(torch.uint8), (0, 32)).view(FP8)[..., :d]
                    k, v = (x.view(torch.uint8).transpose(1, 2).contiguous().transpose(1, 2).view(FP8) for x in (k, v))
                scales = [None] * 3
                if kind == "one scale":
                    scales = [torch.tensor([x], device="cuda") for x in (0.7, 1.3, 0.4)]
                if kind == "scales":
                    scales = [torch.rand(b, hk, device="cuda") + 0.5 for _ in range(3)]
                full = [x.float() * (1 if s is None else (s.view(-1, 1, 1, 1) if s.numel() == 1 else s[:, None, :, None].repeat_interleave(x.shape[2] // hk, 2)))
                        for x, s in zip((q, k, v), scales)]
                out = torch.full((b, sq, h, dv), float("nan"), device="cuda").bfloat16()
                lse = torch.full((b, h, sq), float("nan"), device="cuda")
                kernel(q, k, v, causal, out, lse, options=options(kernel, b, hk, sq, sk, scales))
                torch.cuda.synchronize()
                want, want_lse, slack = plain(*full, causal, False)
                allowed = max(2 * relative(plain(*full, causal, True)[0], want), 2.0 ** -8)  # 2^-8: out's own rounding, where P is exact
                err = relative(out, want)
                seen = want_lse > -torch.inf
                lse_err = (lse - want_lse)[seen].abs().max().item() if seen.any() else 0.0
                good = err <= allowed and lse_err < 2e-3 + slack and bool((lse[~seen] == -torch.inf).all())
                count, wrong, worst = count + 1, wrong + (not good), max(worst, err / allowed * 2)
                if not good:
                    print(f"  {kernel.name} WRONG {case} {kind} causal={causal}: out {err:.2e} of {allowed:.2e}, lse {lse_err:.2e} of {2e-3 + slack:.2e}")
    for causal in kernel.modes:
        q, k, v = (x.to(FP8) for x in test.inputs((2, 16, 4, 1999, 2100), d, "staircase", dv))
        runs = []
        for _ in range(50):
            out = torch.empty(2, 1999, 16, dv, device="cuda").bfloat16()
            runs.append(kernel(q, k, v, causal, out, options=options(kernel, 2, 4, 1999, 2100, [None] * 3)))
        count, wrong = count + 1, wrong + (not all(torch.equal(a, b) for r in runs for a, b in zip(r, runs[0])))
    assert int(kernel.counter) == 0, "the counter did not return to zero"
    print(f"  {kernel.name}: {count} checks, {wrong} wrong, worst error {worst:.2f} of the plain computation's", flush=True)


def bench(kernels, rows, rounds=4):
    for causal in (False, True):
        for s in rows:
            calls = {}
            for kernel in kernels:
                d, dv = kernel.head_dim, kernel.head_dim_v
                b, h = max(1, 16384 // s), 2048 // d
                q, k = (torch.randn(b, s, h, d, device="cuda").to(FP8) for _ in range(2))
                v = torch.randn(b, s, h, dv, device="cuda").to(FP8)
                out, lse, o = torch.empty(b, s, h, dv, device="cuda").bfloat16(), torch.empty(b, h, s, device="cuda"), options(kernel, b, h, s, s, [None] * 3)
                calls[kernel.name] = (lambda x=kernel, a=(q, k, v, causal, out, lse), o=o: x(*a, options=o)), 2 * b * h * s * s * (d + dv) / (2 if causal else 1)
            for f, _ in calls.values():
                f(), f()
            events = {n: [] for n in calls}
            for _ in range(rounds):
                for n, (f, _) in calls.items():
                    events[n] += [test.once(f) for _ in range(3)]
            torch.cuda.synchronize()
            cells = []
            for n, (_, flops) in calls.items():
                t = sorted(x.elapsed_time(y) for x, y in events[n])
                cells.append(f"{n} {flops / t[len(t) // 2] * 1e-9:.0f}")
            print(f"  fp8 {'causal' if causal else 'full  '} {s:6d} | " + " | ".join(cells), flush=True)


if __name__ == "__main__":
    a = argparse.ArgumentParser()
    a.add_argument("--bench", action="store_true")
    a.add_argument("--rows", default="2048,8192,16384")
    a.add_argument("libs", nargs="+")
    a = a.parse_args()
    kernels = [Kernel(x) for x in a.libs]
    if a.bench:
        bench(kernels, [int(x) for x in a.rows.split(",")])
    else:
        for kernel in kernels:
            check(kernel)
