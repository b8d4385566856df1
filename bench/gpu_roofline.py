"""The ceilings of this GPU, measured in the same run as what is compared with them: a bfloat16 matrix product, reading memory, copying it."""

import statistics
from dataclasses import dataclass

import gpu_timing
from roofline import Roofline

SIDE = 8192
BYTES = 4 << 30


@dataclass(frozen=True)
class GpuRoofline(Roofline):
    """flops: matmul_bf16. reads: read and copy, bytes read plus bytes written."""

    @property
    def read(self):
        return self.reads.get("read")

    def roof(self, isa, dtype):
        """The tensor cores' rate for 16 bits; float32 has no ceiling here, for how it is computed is the kernel's choice."""
        return ("matmul_bf16", self.flops["matmul_bf16"]) if dtype in ("bfloat16", "float16") and self.flops else (None, None)

    def describe(self):
        rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in self.flops.items())
        return f"GPU: {rates}; " + ", ".join(f"{name} {rate / 1e9:.0f} GB/s" for name, rate in self.reads.items())


def measure(cuda=None, repeats=7):
    import torch

    cuda = cuda or gpu_timing.Cuda()
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    x = torch.randint(0, 1 << 30, (BYTES // 4,), dtype=torch.int32, device="cuda").view(torch.float32)
    y = torch.empty_like(x)
    work = {"matmul_bf16": (lambda: a @ b, 2 * SIDE**3), "read": (lambda: x.amax(), BYTES), "copy": (lambda: y.copy_(x), 2 * BYTES)}
    rates = {}
    for name, (call, amount) in work.items():
        timer = gpu_timing.Timer(call, cuda)
        rates[name] = amount / statistics.median(timer.seconds() for _ in range(repeats))
    return GpuRoofline("cuda", {"matmul_bf16": rates.pop("matmul_bf16")}, rates)
