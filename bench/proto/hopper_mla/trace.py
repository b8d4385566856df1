"""Where the cycles go: stamps of a -DTRACE build. usage: trace.py LIB.so [NAME]"""
import re
import sys

import torch

from mla import Decoder

POINTS, BLOCKS, ROLES = 16, 24, 3
dec = Decoder(sys.argv[1])
dev, bf = "cuda", torch.bfloat16
flush = torch.empty(256 << 20, dtype=torch.uint8, device=dev)


def show(name, b, h, sq, s, head=False, blocks=range(8, 16), L=512, R=64):
    if len(sys.argv) > 2 and not re.search(sys.argv[2], name):
        return
    n = s // 64
    q = torch.randn(b, sq, h, L + (16 if head else R), device=dev, dtype=bf)
    if head:
        ckv, kpe = torch.randn(b * n, 64, L, device=dev, dtype=bf), torch.randn(b * n, 64, h, 16, device=dev, dtype=bf)
    else:
        kv = torch.randn(b * n, 64, L + R, device=dev, dtype=bf)
        ckv, kpe = kv[..., :L], kv[..., L:]
    table = torch.arange(b * n, device=dev, dtype=torch.int32).view(b, n)
    lens = torch.full((b,), s, device=dev, dtype=torch.int32)
    st = dec.plan(q[..., :L], lens, table, 64, head)
    ctas = st["parts"] * -(-h * sq // 64)
    tr = torch.zeros(ctas, ROLES, BLOCKS, POINTS, dtype=torch.int64, device=dev)
    for _ in range(3):
        flush.zero_()
        dec.run(st, q[..., :L], q[..., L:], ckv, kpe, 192 ** -0.5, sq > 1, trace=tr)
    torch.cuda.synchronize()
    t = tr.cpu()
    start, work, end = t[:, :, 0, 13], t[:, 1:, 0, 14], t[:, 1:, 0, 15]
    zero = start.min()
    q3 = lambda x: "/".join(f"{v:.1f}" for v in torch.quantile((x[x > 0] - zero).double().flatten() / 1e3, torch.tensor([0, .1, .5, .9, 1.], dtype=torch.double)).tolist())
    print(f"== {name}: us since the first CTA began (min/10%/median/90%/max): begin {q3(start)} entries known {q3(t[:, 1:, 0, 3])}, "
          f"Q taken {q3(t[:, 0, 0, 3])}, first S {q3(t[:, 0, 0, 4])}, last O {q3(t[:, 1:, 0, 4])}, stored {q3(work)}, joined {q3(end)}")
    c = t[5]
    base = c[0, 1, 0]
    last = min(max(blocks) + 1, BLOCKS)
    print("  block: score at, waited, S, max, exp, store | left: wake, rescale, O | right")
    for i in list(range(1, 5)) + list(blocks):
        if i >= last or not c[0, i, 0]:
            continue
        a, l, r = c[0, i], c[1, i], c[2, i]
        d = lambda x, ks: " ".join(f"{(x[k + 1] - x[k]).item():5d}" for k in ks)
        print(f"  {i:3d}: {(a[0] - base).item():7d} {d(a, range(5))} | {(l[0] - a[5]).item():6d} after, {d(l, range(2))} | {(r[0] - a[5]).item():6d} {d(r, range(2))}")


show("H128 q2 s8192", 128, 128, 2, 8192)
show("H128 q1 s1024", 128, 128, 1, 1024, blocks=range(14, 22))
show("H128 q1 s999", 114, 128, 1, 1024, blocks=range(14, 16))
show("H64 q1 s1024", 128, 64, 1, 1024, blocks=range(8, 14))
show("H16 q1 s4096", 128, 16, 1, 4096)
show("head rope B8 s2048", 8, 32, 1, 2048, True, range(1, 8))
show("head rope B64 s4096", 64, 32, 1, 4096, True)
show("L256 R32 H24", 64, 24, 1, 4096, L=256, R=32)
