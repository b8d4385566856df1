"""One call of each library, for a profiler. usage: profile_one.py B H SQ S FLASHMLA.so|- LIB.so ..."""
import sys

import torch

from mla import Decoder

b, h, sq, s = map(int, sys.argv[1:5])
dev, bf = "cuda", torch.bfloat16
n = s // 64
kv = torch.randn(b * n, 64, 576, device=dev, dtype=bf)
q = torch.randn(b, sq, h, 576, device=dev, dtype=bf)
table = torch.arange(b * n, device=dev, dtype=torch.int32).view(b, n)
lens = torch.full((b,), s, device=dev, dtype=torch.int32)
for lib in sys.argv[6:]:
    d = Decoder(lib)
    st = d.plan(q[..., :512], lens, table, 64, False)
    d.run(st, q[..., :512], q[..., 512:], kv[..., :512], kv[..., 512:], 192 ** -0.5, sq > 1)
    torch.cuda.synchronize()
if sys.argv[5] != "-":
    torch.ops.load_library(sys.argv[5])
    torch.ops.flash_mla_legacy.dense_decode_fwd(q, kv.unsqueeze(2), 512, lens, table, 192 ** -0.5, sq > 1, None, None)
    torch.cuda.synchronize()
