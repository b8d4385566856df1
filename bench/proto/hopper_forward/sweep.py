"""Builds many variants of instances.cu, checks them, counts their cycles and times them against cuDNN and FlashAttention-3.

  python3 sweep.py VARIANTS [--fa3 LIB] [--rows 128:1:8192,...] [--cycles 128:1:8192,...] [--check] [--race] [--jobs 16]

VARIANTS: a file, one variant a line: `name -DHEAD_DIM=128 -DTILE_N=144 ...` (# starts a comment; @ ends the file).
A row is head_dim[/head_dim_v]:causal:seqlen. Times: CUDA events, L2 flushed before each call, medians, every kernel interleaved in
rounds of one run. Cycles: ncu in one pass (--clock-control none), the unit that the power limit does not move.
"""
import argparse
import concurrent.futures
import csv
import os
import re
import subprocess
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import test

HERE = os.path.dirname(os.path.abspath(__file__))
FLAGS = ["-gencode=arch=compute_90a,code=sm_90a", "-O3", "-std=c++20", "-Xptxas", "-v", "-Xcompiler", "-fPIC,-fno-gnu-unique",
         "-shared", "--cudart=static"]


def read_variants(path):
    variants = []
    for line in open(path):
        line = line.split("#")[0].split()
        if line[:1] == ["@"]:
            break
        if line:
            variants.append((line[0], line[1:]))
    return variants


def build(variant, folder):
    name, macros = variant
    out = f"{folder}/{name}.so"
    if os.path.exists(out):
        return name, "cached"
    source = HERE
    if macros and macros[0].startswith("SOURCE="):  # another version of the sources
        source, macros = macros[0][7:], macros[1:]
    r = subprocess.run(["nvcc", *FLAGS, *macros, "-o", out, source + "/instances.cu"], capture_output=True, text=True)
    text = r.stdout + r.stderr
    if r.returncode:
        return name, "FAILED " + text[-2000:]
    notes = sorted(set(re.findall(r"C75\d\d", text)))
    spills = [int(x) for x in re.findall(r"(\d+) bytes spill stores", text)]
    return name, f"spill bytes {spills} {' '.join(notes)}"


def load_fa3(path):
    if not path:
        return None
    if path.endswith(".xz"):
        import lzma
        import shutil
        with lzma.open(path) as a, open("/tmp/fa3.so", "wb") as b:
            shutil.copyfileobj(a, b)
        path = "/tmp/fa3.so"
    torch.ops.load_library(path)
    op = torch.ops._vllm_fa3_C.fwd

    def run(q, k, v, causal, out):  # this build takes packed sequences only
        b, sq, sk = q.shape[0], q.shape[1], k.shape[1]
        cu_q, cu_k = (torch.arange(b + 1, device="cuda", dtype=torch.int32) * n for n in (sq, sk))
        flat = lambda x: x.view(-1, *x.shape[2:])  # noqa: E731
        no = None
        return lambda: op(flat(q), flat(k), flat(v), no, no, no, flat(out), cu_q, cu_k, no, no, no, sq, sk, *(no,) * 9,
                          q.shape[-1] ** -0.5, bool(causal), -1, -1, 0.0, True, no, 1, no, 0, no, 1, 0, no)
    return run


def parse_rows(text):
    rows = []
    for r in filter(None, text.split(",")):
        d, causal, s = r.split(":")
        d, _, dv = d.partition("/")
        rows.append((int(d), int(dv or d), bool(int(causal)), int(s)))
    return rows


def row_inputs(row):
    d, dv, _, s = row
    b, h = max(1, 16384 // s), 2048 // {96: 128, 192: 128}.get(d, d)
    mk = lambda n: torch.randn(b, s, h, n, device="cuda").bfloat16()  # noqa: E731
    return mk(d), mk(d), mk(dv), torch.empty(b, s, h, dv, device="cuda").bfloat16(), torch.empty(b, h, s, device="cuda")


def ceiling():
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    for _ in range(3):
        a @ b
    events = [test.once(lambda: a @ b) for _ in range(11)]
    torch.cuda.synchronize()
    times = sorted(x.elapsed_time(y) for x, y in events)
    return 2 * 8192 ** 3 / times[5] * 1e-9


def time_rows(rows, kernels, fa3, rounds):
    names = ["cudnn", "vfa3"] + [k.name for k in kernels]
    for row in rows:
        d, dv, causal, s = row
        q, k, v, out, lse = row_inputs(row)
        b, h = q.shape[0], q.shape[2]
        qt, kt, vt = (x.transpose(1, 2).contiguous() for x in (q, k, v))

        def cudnn():
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(qt, kt, vt, is_causal=causal)
        calls = {"cudnn": cudnn}
        if fa3:
            calls["vfa3"] = fa3(q, k, v, causal, out)
        half = [x.half() for x in (q, k, v, out)]
        calls |= {x.name: (lambda x=x: x(*(half[:3] if x.dtype == torch.float16 else (q, k, v)), causal,
                                         half[3] if x.dtype == torch.float16 else out, lse))
                  for x in kernels if (x.head_dim, x.head_dim_v) == (d, dv) and causal in x.modes}
        for name in list(calls):
            try:
                calls[name](), calls[name]()
                torch.cuda.synchronize()
            except Exception as e:  # a rival may refuse a shape
                print("  ", row, name, "refused:", str(e).splitlines()[0][:150])
                del calls[name]
        events = {n: [] for n in calls}
        for _ in range(rounds):
            for n, f in calls.items():
                events[n] += [test.once(f) for _ in range(3)]
        torch.cuda.synchronize()
        flops = 2 * b * h * s * s * (d + dv) / (2 if causal else 1)
        rate = {}
        for n, ev in events.items():
            ts = sorted(x.elapsed_time(y) for x, y in ev)
            rate[n] = flops / ts[len(ts) // 2] * 1e-9
        best = max((rate[n] for n in ("cudnn", "vfa3") if n in rate), default=1)
        print(f"  d{d}{'' if d == dv else f'/{dv}'} {'causal' if causal else 'full  '} {s:6d} | " +
              " | ".join(f"{n} {rate[n]:.0f}" + (f" ({rate[n] / best:.3f})" if n not in ("cudnn", "vfa3") else "")
                         for n in names if n in rate), flush=True)


def count_cycles(rows, args):
    """One ncu pass over one launch of each kernel of each row; the launches are in order, so names follow from the order."""
    metrics = "sm__cycles_elapsed.max,smsp__inst_executed.sum"
    cmd = ["ncu", "--clock-control", "none", "--csv", "--metrics", metrics, "-k", "regex:forward_kernel|device_kernel",
           sys.executable, *sys.argv, "--launch-once"]
    r = subprocess.run(cmd, capture_output=True, text=True)
    order = re.findall(r"^ORDER (.*)$", r.stdout, re.M)
    lines = r.stdout.splitlines()
    start = next((i for i, x in enumerate(lines) if x.startswith('"ID"')), None)
    if start is None:
        print("ncu said:", r.stdout[-1500:], r.stderr[-1500:])
        return
    found = {}
    for x in csv.DictReader([x for x in lines[start:] if x.startswith('"')]):
        found.setdefault(int(x["ID"]), {})[x["Metric Name"]] = x["Metric Value"]
    print(f"  cycles: {len(order)} launches, {len(found)} profiled")
    for name, id in zip(order, sorted(found)[len(found) - len(order):]):  # after the warm-up of vfa3
        m = found[id]
        print("   ", name, " ".join(f"{k.split('.')[0].replace('sm__', '')}={v}" for k, v in m.items()))


def launch_once(rows, kernels, fa3):
    for row in rows:
        d, dv, causal, s = row
        q, k, v, out, lse = row_inputs(row)
        if fa3:
            try:
                fa3(q, k, v, causal, out)()
                print("ORDER", row, "vfa3", flush=True)
            except Exception as e:
                print("vfa3 refused", row, str(e)[:200])
        for x in kernels:
            if (x.head_dim, x.head_dim_v) == (d, dv) and causal in x.modes:
                x(q, k, v, causal, out, lse)
                print("ORDER", row, x.name, flush=True)
        torch.cuda.synchronize()


if __name__ == "__main__":
    a = argparse.ArgumentParser()
    a.add_argument("variants")
    a.add_argument("--fa3", default="")
    a.add_argument("--rows", default="")
    a.add_argument("--cycles", default="")
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--jobs", type=int, default=16)
    a.add_argument("--folder", default="/tmp/forward_variants")
    for flag in ("check", "quick-check", "race", "launch-once"):
        a.add_argument("--" + flag, action="store_true")
    a = a.parse_args()
    variants = read_variants(a.variants)
    os.makedirs(a.folder, exist_ok=True)
    if not a.launch_once:
        print(torch.cuda.get_device_name(), torch.__version__, "cuDNN", torch.backends.cudnn.version())
        with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
            for name, note in pool.map(lambda v: build(v, a.folder), variants):
                print(f"  {name}: {note}", flush=True)
    fa3 = load_fa3(a.fa3)
    if fa3:  # before anything else runs: later, its first call crashes
        for row in parse_rows(a.cycles if a.launch_once else a.rows):
            q, k, v, out, _ = row_inputs(row)
            fa3(q, k, v, row[2], out)()
            torch.cuda.synchronize()
    kernels = [test.Kernel(f"{a.folder}/{name}.so") for name, _ in variants if os.path.exists(f"{a.folder}/{name}.so")]
    kernels = [x for x in kernels if not x.fp8]
    if a.launch_once:
        launch_once(parse_rows(a.cycles), kernels, fa3)
        sys.exit()
    good = []
    for x in kernels:
        try:
            if a.check:
                test.check(x)
            elif a.quick_check:
                test.check(x, test.CASES[3:4], ("staircase",))
            if a.race:
                test.race(x)
            good.append(x)
        except Exception as e:
            print(f"  {x.name}: {e}")
    if a.cycles:
        count_cycles(parse_rows(a.cycles), a)
    if a.rows:
        print(f"  matmul 8192^3 bf16: {ceiling():.0f} TFLOP/s")
        time_rows(parse_rows(a.rows), good, fa3, a.rounds)
