"""What a run says: a line a case, two runs compared, README's tables, a picture. A run is the JSON that bench.py saves."""

import importlib.metadata
import json
import platform
from pathlib import Path

import timing


def load(path):
    return json.loads(Path(path).read_text())


def version_of(name, package):
    try:
        return {name: importlib.metadata.version(package)}
    except importlib.metadata.PackageNotFoundError:
        return {}


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine_line(machine):
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpus = "".join(f"{name}; " for name in machine.get("gpus", ()))
    return f"{gpus}{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['features'])}; {versions}"


# ---------------------------------------------------------------- the table

WIDTH = 40


def head(suite):
    return f"{suite:{WIDTH}} {'kernel':22} {'ms':>9} {'spread':>6} {'n':>2} {'GFLOP/s':>8} {'%roof':>5} {'GB/s':>6} {'%read':>5}  time of rivals"


def gain(turns):
    """What Problem.turns() says of several threads, as a row has it: ratios to one thread, medians over the turns."""
    if not turns:
        return {"of_one_thread": None}
    ratios = timing.ratios(turns["one"], turns["all"])
    low, _, high = ratios.quartiles
    read = timing.ratios(turns["read one"], turns["read all"]).median if "read one" in turns else None
    how = {"quartiles": [low, high], "count": len(ratios.seconds), "disturbed": ratios.disturbed, "read": read}
    return {"of_one_thread": ratios.median, "turns": how}


def reading(turns):
    return "reading -" if turns["read"] is None else f"reading {turns['read']:.2f}x"


def percent(share):
    return "-" if share is None else f"{100 * share:.0f}"


def line(row):
    ratios = [f"{name} {rival['ratio']:.2f}x" for name, rival in row["rivals"].items()]
    if row["of_one_thread"] is not None:
        turns = row["turns"]
        low, high = turns["quartiles"]
        few = ", disturbed" if turns["disturbed"] else ""
        ratios.append(f"({row['of_one_thread']:.2f}x of one thread, {low:.2f} to {high:.2f} in {turns['count']} turns{few}; {reading(turns)})")
    if row.get("disturbed"):
        ratios.append(f"(disturbed: {', '.join(row['disturbed'])})")
    refused = [f"{name} {reason if reason.startswith(('wrong', 'fails')) else '-'}" for name, reason in row["refused"].items()]
    return (
        f"{row['case']:{WIDTH}} {row['kernel']:22} {row['ms']:9.3f} {100 * row['spread']:5.1f}% {row['repeats']:2} {row['gflops']:8.1f} "
        f"{percent(row['of_roof']):>5} {row['gbytes']:6.2f} {percent(row['of_read']):>5}  {'  '.join(ratios + refused)}"
    )


def comparison(old, new):
    """A line for each case of both: what became of time and share of the roof, on whatever machines."""
    before = {(row["suite"], row["case"]): row for row in old["cases"]}
    lines = [f"{'case':{WIDTH}} {'old ms':>9} {'new ms':>9} {'faster':>7} {'old %':>6} {'new %':>6}  of"]
    for row in new["cases"]:
        was = before.get((row["suite"], row["case"]))
        if was is not None:
            share = "of_read" if row["bound"] == "bytes" else "of_roof"
            lines.append(
                f"{row['case']:{WIDTH}} {was['ms']:9.3f} {row['ms']:9.3f} {was['ms'] / row['ms']:6.2f}x {percent(was[share]):>6} {percent(row[share]):>6}"
                f"  {'memory read' if share == 'of_read' else row['roof']}"
            )
    return "\n".join(lines)


# ---------------------------------------------------------------- README

ROOFS = {"matmul_bf16": "matmul", "amx_bf16": "AMX", "amx_bf16x3": "AMX / 3", "avx512_bf16": "AVX-512 dot", "avx512": "FMA", "avx2": "AVX2 FMA"}


def readme(runs):
    """Markdown: a table for each suite and run, every figure from the files."""
    parts = []
    for run in runs:
        for suite in dict.fromkeys(row["suite"] for row in run["cases"]):
            rows = [row for row in run["cases"] if row["suite"] == suite]
            names = list(dict.fromkeys(name for row in rows for name in row["rivals"]))
            flush = " --flush read" if suite.startswith("gpu-") and run.get("flush") == "read" else ""
            lines = [f"`python bench/bench.py {suite}{flush}`: {machine_line(run['machine'])}.", ""]
            lines += [f"| {suite} | rate | of the roof | {' | '.join(names)} |", "|---" * (3 + len(names)) + "|"]
            lines += [f"| {row['case']} | {rate(row)} | {share(row)} | {' | '.join(ratio(row, name) for name in names)} |" for row in rows]
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


BEGIN, END = "<!-- figures of bench.py readme -->", "<!-- end of figures -->"


def insert(text, tables):
    """A document with the tables between its two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the file lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def rate(row):
    if row["suite"] == "overhead":
        return f"{1e3 * row['ms']:.1f} us"
    more = "" if row["of_one_thread"] is None else f", {row['of_one_thread']:.2f}x of one thread"
    if row.get("turns"):  # not in runs that were saved before there were turns
        more += f" ({reading(row['turns'])})"
    if row["bound"] == "bytes":
        return f"{row['gbytes']:.{0 if row['gbytes'] >= 1000 else 1}f} GB/s" + more
    return (f"{row['gflops'] / 1e3:.0f} TFLOP/s" if row["suite"].startswith("gpu-") else f"{row['gflops']:.0f} GFLOP/s") + more


def share(row):
    if row["suite"] == "overhead":
        return ""
    if row["bound"] == "bytes":
        return "-" if row["of_read"] is None else f"{percent(row['of_read'])}% of memory"
    return "-" if row["of_roof"] is None else f"{percent(row['of_roof'])}% of {ROOFS[row['roof']]}"


def ratio(row, name):
    if name in row["rivals"]:
        return f"{row['rivals'][name]['ratio']:.2f}x"
    return "wrong" if row["refused"].get(name, "").startswith("wrong") else ""


# ---------------------------------------------------------------- the picture


def plot(run, path):
    """Bars: every case's rate, ours and the rivals', with the roof as a line."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    suites = list(dict.fromkeys(row["suite"] for row in run["cases"]))
    rows = {suite: [row for row in run["cases"] if row["suite"] == suite] for suite in suites}
    names = ["attile", *dict.fromkeys(name for row in run["cases"] for name in row["rivals"])]
    colour = {name: f"C{i}" for i, name in enumerate(names)}
    heights = [1 + sum(2 + len(row["rivals"]) for row in rows[suite]) * 0.16 for suite in suites]
    figure, axes = plt.subplots(len(suites), figsize=(9, sum(heights) + 0.6), height_ratios=heights, squeeze=False, layout="constrained")
    for axis, suite in zip(axes[:, 0], suites, strict=True):
        unit = "GB/s" if rows[suite][0]["bound"] == "bytes" else "GFLOP/s"
        at, ticks = 0.0, []
        for row in rows[suite]:
            ours, of_roof = (row["gbytes"], row["of_read"]) if unit == "GB/s" else (row["gflops"], row["of_roof"])
            bars = {"attile": ours} | {name: ours / rival["ratio"] for name, rival in row["rivals"].items()}
            ticks.append((at + (len(bars) - 1) / 2, row["case"]))
            if of_roof:
                axis.plot([ours / of_roof] * 2, [at - 0.5, at + len(bars) - 0.5], color="black", linewidth=1)
            for name, height in bars.items():
                axis.barh(at, height, color=colour[name], height=0.9)
                at += 1
            at += 1
        axis.set(yticks=[y for y, _ in ticks], yticklabels=[label for _, label in ticks], xlabel=unit, title=suite)
        axis.tick_params(labelsize=7)
        axis.invert_yaxis()
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour[name]) for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)
    figure.suptitle(machine_line(run["machine"]), fontsize=7, wrap=True)
    figure.savefig(path, dpi=130)
