"""What is timed of gradients on a GPU: flash_attention_backward, on what the forward pass gave.

Checked are the gradients of the first and the last head against float64 formulas on the GPU. As in the tests an error may be twice that of the
plain computation, which rounds p and ds to the inputs' dtype, here at most anywhere in an array, and one rounding more.
"""

from dataclasses import dataclass

import numpy as np
import tolerance
from cases import Case, numpy_dtype
from gpu_problems import GpuAttention, NearJudge, OnGpu, normal, torch_dtype

import attile


@dataclass(frozen=True, kw_only=True)
class GpuBackward(OnGpu):
    """flash_attention_backward of a Case with as many key heads as query heads; five products where the forward pass has two."""

    case: Case
    function = "flash_attention_backward"

    @property
    def dtype(self):
        return self.case.dtype

    def flops(self):
        return 5 * self.case.flops() / 2

    def bytes(self):
        """Query, key, value, out and dout read once, the gradients written once."""
        return 2 * self.case.bytes()

    def arrays(self):
        call = GpuAttention(id=self.id, case=self.case).arrays()[0]
        call["out"], call["lse"] = attile.flash_attention(**call, return_lse=True)
        call["dout"] = normal(5, self.dtype, *call["out"].shape)
        return [call]

    def explain(self, sets):
        return attile.explain(attile.flash_attention_backward, **sets[0], cfg=self.config)

    def attile(self, sets):
        call, config = sets[0], self.config
        return self.contender(lambda: attile.flash_attention_backward(**call, cfg=config)._asdict())

    def judges(self, sets):
        c, call = self.case, sets[0]
        for b, h in {(0, 0), (c.batch - 1, c.heads_q - 1)}:
            arrays = [call[name][b, :, h].double() for name in ("query", "key", "value", "dout")]
            exact = gradients(*arrays, c.head_dim**-0.5, c.options.get("causal", False), None)
            plain = gradients(*arrays, c.head_dim**-0.5, c.options.get("causal", False), torch_dtype(self.dtype))
            for name, expected, near in zip(("query", "key", "value"), exact, plain, strict=True):
                one = tolerance.epsilon(numpy_dtype(self.dtype)) / 2
                limit = 2 * (near - expected).abs().max() + one * expected.abs()
                yield (
                    (name, np.s_[b : b + 1], np.s_[:], np.s_[h : h + 1]),
                    NearJudge(*(x.cpu().numpy()[None, :, None] for x in (expected, limit)), numpy_dtype(self.dtype)),
                )


def gradients(q, k, v, dout, scale, causal, rounded):
    """dq, dk, dv of one head in float64; p, ds, out and the result rounded to the dtype `rounded`, if one is given."""
    import torch

    def near(x):
        return x if rounded is None else x.to(rounded).double()

    s = scale * (q @ k.mT)
    if causal:
        s.masked_fill_(torch.ones(s.shape, dtype=torch.bool, device=s.device).triu_(1), -torch.inf)
    p = s.softmax(-1)
    delta = (dout * near(p @ v)).sum(-1, keepdim=True)
    ds = near(p * (dout @ v.mT - delta))
    return near(scale * (ds @ k)), near(scale * (ds.mT @ q)), near(near(p).mT @ dout)
