"""Checks and times the options of libraries built with -DGENERAL: windows, alignment, sinks, packed sequences, soft cap, bias, mask,
segment ids, each against a plain float32 computation on the rounded inputs.

  python3 test_options.py [--bench] [--fa3 LIB] lib.so ...
"""
import argparse
import ctypes

import torch

import test
from test import Kernel, Options, relative


def reference(q, k, v, o):
    """[B, S, H, D]; o: dict of options. Returns out, lse [B, H, Sq]; rows without keys give 0 and -inf (sinks: their lse)."""
    q, k, v = (x.float() for x in (q, k, v))
    g = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(g, 2), v.repeat_interleave(g, 2)
    s = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    sq, sk = s.shape[-2:]
    if "bias" in o:
        s = s + o["bias"].float()
    if o.get("softcap"):
        s = o["softcap"] * torch.tanh(s / o["softcap"])
    i = torch.arange(sq, device="cuda")[:, None] + (0 if o.get("top_left") else sk - sq)
    j = torch.arange(sk, device="cuda")[None]
    seen = torch.ones(sq, sk, dtype=torch.bool, device="cuda")
    left, right = o.get("window", (-1, -1))
    if o.get("causal"):
        right = 0
    if left >= 0:
        seen &= j >= i - left
    if right >= 0:
        seen &= j <= i + right
    seen = seen[None, None]
    if "mask" in o:
        seen = seen & (o["mask"] != 0)
    if "segments" in o:
        a, b = o["segments"]
        seen = seen & ((a[:, :, None] == b[:, None]) & (a[:, :, None] >= 0))[:, None]
    s = s.masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(s, -1)
    p = torch.exp(s - lse.masked_fill(lse == -torch.inf, 0)[..., None])
    out = torch.einsum("bhqk,bkhd->bqhd", p, v)
    if "sinks" in o:
        sink = o["sinks"][None, :, None]
        total = torch.logaddexp(lse, sink)
        out = out * torch.exp(lse - total).transpose(1, 2)[..., None]
        lse = total
    return out, lse


def pack_options(o, b, sq, sk, lib):
    keep = []
    r = Options(window_left=-1, window_right=-1)
    r.window_left, r.window_right = o.get("window", (-1, -1))
    r.top_left = int(bool(o.get("top_left")))
    r.softcap = o.get("softcap", 0.0)
    for name in ("bias", "mask"):
        if name in o:
            x = o[name]
            setattr(r, name, x.data_ptr())
            strides = [x.stride(i) if x.shape[i] > 1 else 0 for i in range(3)]
            setattr(r, name + "_strides", (ctypes.c_int64 * 3)(*strides))
    if "sinks" in o:
        r.sinks = o["sinks"].data_ptr()
    if "segments" in o:
        r.segments_q, r.segments_k = (x.data_ptr() for x in o["segments"])
        lib.hopper_forward_workspace.restype = ctypes.c_size_t
        keep.append(torch.empty(lib.hopper_forward_workspace(b, 1, sq, sk), dtype=torch.uint8, device="cuda"))
        r.workspace = keep[-1].data_ptr()
    if "mask" in o and "segments" not in o:
        m = o["mask"]
        size = lib.hopper_forward_mask_workspace
        size.restype = ctypes.c_size_t
        keep.append(torch.empty(size(m.shape[0], m.shape[1], m.shape[2], sq, sk), dtype=torch.uint8, device="cuda"))
        r.workspace = keep[-1].data_ptr()
    if "cu" in o:
        r.cu_seqlens_q, r.cu_seqlens_k = (x.data_ptr() for x in o["cu"])
        r.sequences = len(o["cu"][0]) - 1
    r.keep = keep
    return r


SHAPES = [(2, 4, 2, 300, 777), (1, 8, 1, 777, 300), (2, 2, 2, 1024, 1024), (1, 2, 2, 130, 2049)]


def option_sets(b, h, sq, sk, dtype):
    g = torch.Generator("cuda").manual_seed(sq + sk)
    rand = lambda *s: torch.randn(*s, device="cuda", generator=g)  # noqa: E731
    even = sk + sk % 2
    yield "window", {"window": (100, 37)}
    yield "window left", {"window": (64, -1)}
    yield "window right top left", {"window": (-1, 5), "top_left": True}
    yield "window causal", {"window": (129, 0), "causal": True}
    yield "window 0 top left", {"window": (0, 0), "top_left": True}
    yield "causal top left", {"causal": True, "top_left": True}
    yield "sinks", {"sinks": rand(h)}
    yield "sinks causal window", {"sinks": rand(h) * 3, "causal": True, "window": (50, 0)}
    yield "softcap", {"softcap": 5.0}
    yield "softcap causal", {"softcap": 0.7, "causal": True}
    yield "softcap, small scores", {"softcap": 60.0, "causal": True}
    yield "softcap, large cap", {"softcap": 2000.0, "window": (100, 37)}
    yield "bias", {"bias": rand(b, h, sq, even).to(dtype)[..., :sk]}
    yield "bias broadcast causal", {"bias": rand(1, h, sq, even).to(dtype)[..., :sk], "causal": True}
    yield "bias one row", {"bias": (rand(b, 1, 1, even) * 3).to(dtype)[..., :sk].expand(b, h, sq, sk)}
    room = (sk + 7) // 8 * 8  # rows that TMA can read
    yield "bias aligned", {"bias": rand(b, h, sq, room).to(dtype)[..., :sk]}
    yield "bias aligned, of all batches", {"bias": rand(1, h, sq, room).to(dtype)[..., :sk], "causal": True}
    yield "bias aligned, of all heads", {"bias": rand(b, 1, sq, room).to(dtype)[..., :sk], "window": (100, 37)}
    yield "bias aligned, of all, sinks", {"bias": rand(1, 1, sq, room).to(dtype)[..., :sk], "sinks": rand(h)}
    yield "bias softcap window", {"bias": rand(1, 1, sq, even).to(dtype)[..., :sk], "softcap": 3.0, "window": (200, 200)}
    yield "mask", {"mask": (rand(b, h, sq, even) > 0).to(torch.uint8)[..., :sk]}
    sparse = (rand(1, 1, sq, even) > 1).to(torch.uint8)[..., :sk]
    sparse[:, :, ::7] = 0  # rows without keys
    yield "mask empty rows", {"mask": sparse}
    blocks = torch.zeros(b, h, sq, even, dtype=torch.uint8, device="cuda")  # whole tiles unseen, whole tiles seen
    blocks[..., sk // 3:] = 1
    blocks[:, : h // 2, : sq // 2, : sk // 5] = 3
    blocks[..., sq // 2 :, sk // 2 : sk // 2 + 3] = 0
    yield "mask of blocks", {"mask": blocks[..., :sk]}
    yield "mask of keys, causal", {"mask": (rand(b, 1, 1, even) > -1).to(torch.uint8)[..., :sk], "causal": True}
    yield "mask and bias", {"mask": (rand(1, h, sq, even) > 0).to(torch.uint8)[..., :sk], "bias": rand(1, 1, sq, even).to(dtype)[..., :sk]}
    cuts = lambda n: torch.bucketize(torch.arange(n, device="cuda"), torch.tensor([n // 5, n // 2, n * 3 // 4], device="cuda"),  # noqa
                                     right=True).int().expand(b, n).contiguous()
    yield "segments", {"segments": (cuts(sq), cuts(sk))}
    padded = cuts(sk).clone()
    padded[:, -sk // 7:] = -1
    yield "segments padded causal", {"segments": (cuts(sq), padded), "causal": True}
    mixed = torch.randint(-1, 3, (b, sq), device="cuda", generator=g).int(), torch.randint(-1, 3, (b, sk), device="cuda", generator=g).int()
    yield "segments mixed", {"segments": mixed}
    yield "segments, none shared", {"segments": (cuts(sq), cuts(sk) + 9)}


def verdict(name, got, want, worst):
    (out, lse), (want_out, want_lse) = got, want
    err = relative(out, want_out)
    seen = want_lse > -torch.inf
    lse_err = (lse - want_lse)[seen].abs().max().item() if seen.any() else 0.0
    good = err < 6e-3 and lse_err < 2e-3 and bool((lse[~seen] == -torch.inf).all()) and not bool(out.isnan().any())
    if not bool(seen.any()):
        good = bool((out == 0).all()) and bool((lse == -torch.inf).all())
    if not good:
        print(f"  WRONG {name}: out {err:.2e} lse {lse_err:.2e}", flush=True)
    worst[0] = max(worst[0], err if bool(seen.any()) else 0)
    worst[1] += 1
    worst[2] += not good


def check(kernel, only_packed=False):
    d, dv = kernel.head_dim, kernel.head_dim_v
    worst, skipped = [0.0, 0, 0], []
    for shape in SHAPES if not only_packed else []:
        b, h, hk, sq, sk = shape
        q, k, v = test.inputs(shape, d, "staircase", dv, kernel.dtype)
        for name, o in option_sets(b, h, sq, sk, kernel.dtype):
            out = torch.full((b, sq, h, dv), float("nan"), device="cuda").to(kernel.dtype)
            lse = torch.full((b, h, sq), float("nan"), device="cuda")
            options = pack_options(o, b, sq, sk, kernel.lib)
            try:
                kernel(q, k, v, o.get("causal", False), out, lse, options=options)
            except RuntimeError as e:
                if "error -2" not in str(e):
                    raise
                skipped.append(name)  # a library of some kinds only (-DOPTIONS)
                continue
            torch.cuda.synchronize()
            verdict(f"{kernel.name} {shape} {name}", (out, lse), reference(q, k, v, o), worst)
    print(f"  {kernel.name}: options, {worst[1]} checks, {worst[2]} wrong, {len(skipped)} not built, worst relative error {worst[0]:.2e}", flush=True)

    # Packed: each sequence as by itself, whatever the others hold.
    worst = [0.0, 0, 0]
    for lengths_q, lengths_k in (([100, 1, 0, 513, 128], [100, 7, 5, 513, 300]), ([700, 64], [0, 1000]), ([3] * 40, [260] * 40)):
        for o in ({}, {"causal": True}, {"window": (60, 20)}, {"causal": True, "window": (33, 0), "sinks": torch.randn(4, device="cuda")}):
            cu = [torch.tensor([0] + x, device="cuda").cumsum(0).int() for x in (lengths_q, lengths_k)]
            tq, tk = sum(lengths_q), sum(lengths_k)
            q, k, v = test.inputs((1, 4, 2, tq, tk), d, "staircase", dv, kernel.dtype)
            poison = len(lengths_k) - 1 - lengths_k[::-1].index(max(lengths_k))
            k[:, cu[1][poison]:cu[1][poison + 1]] = float("nan")
            v[:, cu[1][poison]:cu[1][poison + 1]] = float("nan")
            out = torch.full((1, tq, 4, dv), 7.0, device="cuda").to(kernel.dtype)
            lse = torch.full((1, 4, tq), 7.0, device="cuda")
            kernel(q, k, v, o.get("causal", False), out, lse, options=pack_options(o | {"cu": cu}, 1, tq, tk, kernel.lib))
            torch.cuda.synchronize()
            for n in range(len(lengths_q)):
                a, b_, c, e = cu[0][n], cu[0][n + 1], cu[1][n], cu[1][n + 1]
                if n == poison or a == b_:
                    continue
                if c == e:
                    worst[1] += 1
                    worst[2] += not (bool((out[:, a:b_] == 0).all()))
                    continue
                want = reference(q[:, a:b_], k[:, c:e], v[:, c:e], o)
                verdict(f"{kernel.name} packed {lengths_q} {list(o)} sequence {n}", (out[:, a:b_], lse[..., a:b_]), want, worst)
    assert int(kernel.counter) == 0, "the counter did not return to zero"
    print(f"  {kernel.name}: packed, {worst[1]} checks, {worst[2]} wrong, worst relative error {worst[0]:.2e}", flush=True)


def bench(kernel, fa3, rounds=5):
    """d128, S = 4096, batch 4: time, and the rate per visible score against our own plain rate (aim of the project: 0.9)."""
    b, s, h, d = 4, 4096, 2048 // kernel.head_dim, kernel.head_dim
    q, k, v = (torch.randn(b, s, h, d, device="cuda").to(kernel.dtype) for _ in range(3))
    out, lse = torch.empty_like(q), torch.empty(b, h, s, device="cuda")
    cuts = (torch.arange(s, device="cuda") * 4 // s).int().expand(b, s).contiguous()
    lengths = [4096, 1024, 2048, 512, 3072, 1536, 256, 3840]
    cu = torch.tensor([0] + lengths, device="cuda").cumsum(0).int()
    full, causal = s * s, s * s / 2
    window = sum(min(i + 1, 1025) for i in range(s))
    cases = {"full": ({}, full), "causal": ({"causal": True}, causal),
             "window 1024 causal": ({"causal": True, "window": (1024, 0)}, window),
             "sinks causal": ({"causal": True, "sinks": torch.randn(h, device="cuda")}, causal),
             "softcap causal": ({"causal": True, "softcap": 30.0}, causal),
             "bias [1,H,S,S]": ({"bias": torch.randn(1, h, s, s, device="cuda").to(kernel.dtype)}, full),
             "bias [1,1,S,S]": ({"bias": torch.randn(1, 1, s, s, device="cuda").to(kernel.dtype)}, full),
             "bias [1,H,S,S] causal": ({"causal": True, "bias": torch.randn(1, h, s, s, device="cuda").to(kernel.dtype)}, causal),
             "mask [B,1,S,S]": ({"mask": torch.randint(0, 2, (b, 1, s, s), device="cuda").to(torch.uint8)}, full),
             "segments of 4 documents": ({"segments": (cuts, cuts)}, full / 4),
             "segments causal": ({"causal": True, "segments": (cuts, cuts)}, causal / 4),
             "packed causal": ({"causal": True, "cu": (cu, cu)}, sum(n * n / 2 for n in lengths) / b)}
    calls, flat = {}, lambda x: x.view(1, -1, *x.shape[2:])
    for name, (o, pairs) in cases.items():
        options = pack_options(o, b, s, s, kernel.lib) if set(o) - {"causal"} else None
        args = [q, k, v] if "cu" not in o else [flat(x) for x in (q, k, v)]
        outs = (out, lse) if "cu" not in o else (flat(out), lse.view(1, h, -1))
        calls[name] = (lambda a=args, o=o, options=options, outs=outs: kernel(*a, o.get("causal", False), *outs, options=options), pairs)
    if fa3:
        no = None
        fl = lambda x: x.view(-1, *x.shape[2:])  # noqa: E731
        def rival(causal, left, cu, longest, sinks=None, cap=0.0):
            return lambda: fa3(fl(q), fl(k), fl(v), no, no, no, fl(out), cu, cu, no, no, no, longest, longest, *(no,) * 9, d ** -0.5,
                               causal, left, 0 if left >= 0 else -1, cap, True, no, 1, no, 0, sinks, 1, 0, no)
        every = torch.arange(b + 1, device="cuda", dtype=torch.int32) * s
        calls["vfa3 causal"] = (rival(True, -1, every, s), causal)
        calls["vfa3 window 1024 causal"] = (rival(True, 1024, every, s), window)
        calls["vfa3 packed causal"] = (rival(True, -1, cu, max(lengths)), cases["packed causal"][1])
        calls["vfa3 softcap causal"] = (rival(True, -1, every, s, cap=30.0), causal)
    for name in list(calls):
        try:
            calls[name][0](), calls[name][0](), torch.cuda.synchronize()
        except RuntimeError as e:
            if "error -2" not in str(e):
                print("  ", name, "refused:", str(e)[:100])
            del calls[name]
    events = {n: [] for n in calls}
    for _ in range(rounds):
        for n, (f, _) in calls.items():
            events[n] += [test.once(f) for _ in range(3)]
    torch.cuda.synchronize()
    rate = {}
    for n, (_, pairs) in calls.items():
        t = sorted(x.elapsed_time(y) for x, y in events[n])
        ms = t[len(t) // 2]
        rate[n] = 4 * b * h * d * pairs / ms * 1e-9
        plain = rate.get("causal" if "causal" in n else "full", rate["full"])
        print(f"  {kernel.name} {n:26s} {ms * 1e3:7.0f} us {rate[n]:5.0f} TFLOP/s over visible scores, {rate[n] / plain:.2f} of plain", flush=True)


if __name__ == "__main__":
    a = argparse.ArgumentParser()
    a.add_argument("--bench", action="store_true")
    a.add_argument("--packed", action="store_true", help="only the packed cases")
    a.add_argument("--fa3", default="")
    a.add_argument("libs", nargs="+")
    a = a.parse_args()
    fa3 = None
    if a.fa3:
        import sweep
        run = sweep.load_fa3(a.fa3)
        sweep_q, sweep_k, sweep_v, sweep_out, _ = sweep.row_inputs((128, 128, True, 512))
        run(sweep_q, sweep_k, sweep_v, True, sweep_out)()  # before anything else runs: later, its first call crashes
        torch.cuda.synchronize()
        fa3 = torch.ops._vllm_fa3_C.fwd
    kernels = [Kernel(x) for x in a.libs]
    if a.bench:
        for kernel in kernels:
            bench(kernel, fa3)
    else:
        for kernel in kernels:
            check(kernel, a.packed)
