"""How fast attile is: a line a case, beside the rivals that are installed and the ceilings of this machine, all in one run.

    python bench/bench.py                          every case of the default suite
    python bench/bench.py -k fp32 --repeats 11     those with "fp32" in their name
    python bench/bench.py --kernel avx2            a forced kernel
    python bench/bench.py --save run.json

An answer is checked against the float64 reference (one key head of the call) before it is timed. Times are medians of interleaved repeats;
operations are counted from the mask; percentages are of what roofline.py measures in the same run: the float32 multiply-add peak of the
kernel's instruction set (other dtypes may exceed it), and the memory read rate. A ratio above 1 means that attile is faster.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import rivals
import roofline
import timing
import tolerance
from cases import Case

import attile

SQUARE = Case(id="", batch=1, seqlen_q=2048, seqlen_k=2048, heads_q=32, heads_k=32, head_dim=128, head_dim_v=128, dtype="float32")
NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def forward_suite():
    """Prefill as in reference tables: S 2048, full and causal, with a bias, grouped, DeepSeek's head dims."""
    for dtype, name in NAMES.items():
        square = dataclasses.replace(SQUARE, dtype=dtype)
        narrow = dataclasses.replace(square, heads_q=16, heads_k=16, head_dim=64, head_dim_v=64)
        for mask, options in (("full", {}), ("causal", {"causal": True})):
            yield dataclasses.replace(square, id=f"{name}-h32-d128-{mask}", options=options)
            yield dataclasses.replace(narrow, id=f"{name}-h16-d64-{mask}", options=options)
        yield dataclasses.replace(square, id=f"{name}-h32/8-d128-causal", heads_k=8, options={"causal": True})
        yield dataclasses.replace(narrow, id=f"{name}-h16-d64-bias11SS", bias=(1, 1, 2048, 2048))
        yield dataclasses.replace(narrow, id=f"{name}-h16-d192/128-causal", head_dim=192, head_dim_v=128, options={"causal": True})


def decode_suite():
    """One query position against a long cache."""
    for dtype, name in NAMES.items():
        for keys in (2048, 8192):
            yield dataclasses.replace(SQUARE, id=f"{name}-h32/8-d128-s{keys}", dtype=dtype, seqlen_q=1, seqlen_k=keys, heads_k=8)


def overhead_suite():
    """Almost nothing to compute: the price of a call."""
    yield dataclasses.replace(SQUARE, id="fp32-1x1x1x64", seqlen_q=1, seqlen_k=1, heads_q=1, heads_k=1, head_dim=64, head_dim_v=64)


SUITES = {"forward": forward_suite, "decode": decode_suite, "overhead": overhead_suite}


def main():
    args = parse_arguments()
    features = attile.show_config()["cpu_features"]
    attile.set_num_threads(args.threads)
    peaks = roofline.measure(features)
    print(f"attile {attile.__version__}, {args.threads} thread(s), {args.clock} clock; {peaks.describe()}")
    print(f"{'case':28} {'kernel':16} {'ms':>9} {'spread':>7} {'GFLOP/s':>8} {'%fp32':>6} {'GB/s':>6} {'%read':>6}  ratio to rivals")
    rows = []
    for suite in args.suite:
        for case in SUITES[suite]():
            if args.filter in case.id:
                rows.append(run_case(case, args, peaks))
                print(line(rows[-1]), flush=True)
    if args.save:
        report = {"attile": attile.__version__, "threads": args.threads, "clock": args.clock, "peaks": dataclasses.asdict(peaks), "cases": rows}
        Path(args.save).write_text(json.dumps(report, indent=1) + "\n")


def run_case(case, args, peaks):
    call = case.numpy_arrays(np.random.default_rng(0))
    config = attile.FlashAttentionConfig(kernel=args.kernel) if args.kernel else None
    plan = attile.explain(attile.flash_attention, **call, cfg=config)
    out = np.empty(call["query"].shape[:-1] + call["value"].shape[-1:], call["query"].dtype)
    functions = {"attile": lambda: attile.flash_attention(**call, cfg=config, out=out)}
    check(call, functions["attile"]())
    for name, make in rivals.RIVALS.items():
        rival = make(call, args.threads) if name not in args.without else None
        if rival is not None:
            functions[name], to_numpy = rival
            check_rival(name, to_numpy(functions[name]()), out)
    times = timing.interleaved(functions, args.repeats, args.clock)
    mine = times["attile"]
    peak = peaks.flops.get(plan["isa"])
    return {
        "case": case.id,
        "kernel": plan["kernel"],
        "plan": plan["plan"],
        "ms": mine.median * 1e3,
        "spread": mine.spread,
        "gflops": case.flops() / mine.median / 1e9,
        "peak": peak and case.flops() / mine.median / peak / args.threads,
        "gbytes": case.bytes() / mine.median / 1e9,
        "read": peaks.read and case.bytes() / mine.median / peaks.read / args.threads,
        "ratios": {name: t.median / mine.median for name, t in times.items() if name != "attile"},
        "seconds": {name: t.seconds for name, t in times.items()},
    }


def check(call, out):
    """The last key head with its query heads, by the tests' own error model."""
    heads = call["key"].shape[2]
    group = call["query"].shape[2] // heads
    one = call | {name: call[name][:, :, -1:] for name in ("key", "value")} | {"query": call["query"][:, :, -group:]}
    tolerance.Judge(one).check(out[:, :, -group:])


def check_rival(name, out, ours):
    """A rival is timed only on the same problem: its own accuracy is not judged here, so the limit is that of its dtype."""
    limit = 8 * tolerance.epsilon(ours.dtype) + 1e-4
    worst = np.abs(out.astype(np.float64) - ours.astype(np.float64)).max()
    if not worst <= limit * max(1.0, np.abs(ours.astype(np.float64)).max()):
        raise SystemExit(f"{name} computes something else: off by {worst:.3g}")


def line(row):
    percent = ["-" if row[name] is None else f"{100 * row[name]:.1f}" for name in ("peak", "read")]
    ratios = "  ".join(f"{name} {ratio:.2f}x" for name, ratio in row["ratios"].items())
    return (
        f"{row['case']:28} {row['kernel']:16} {row['ms']:9.3f} {100 * row['spread']:6.1f}% {row['gflops']:8.1f} {percent[0]:>6} "
        f"{row['gbytes']:6.2f} {percent[1]:>6}  {ratios}"
    )


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="*", default=["forward"], help=f"any of {', '.join(SUITES)}")
    parser.add_argument("-k", dest="filter", default="", help="only cases whose name contains this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--kernel", help="force a kernel or an instruction set")
    parser.add_argument("--clock", choices=timing.CLOCKS, default="wall", help="cpu: time of the calling thread, for one thread on a shared machine")
    parser.add_argument("--without", nargs="*", default=[], help="rivals to leave out")
    parser.add_argument("--save", help="write everything to this JSON file")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu counts one thread only")
    if args.repeats < 7:
        parser.error("--repeats must be at least 7")
    if unknown := [name for name in args.suite if name not in SUITES]:
        parser.error(f"no such suite: {', '.join(unknown)}")
    return args


if __name__ == "__main__":
    main()
