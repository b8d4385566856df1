"""bench/bench.py as a user runs it: one small case, what it saves, and what it makes of saved runs."""

import importlib
import json
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench" / "bench.py"
pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="a source distribution has no bench folder")


def bench(*arguments):
    done = subprocess.run([sys.executable, str(BENCH), *map(str, arguments)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "run.json"
    printed = bench("overhead", "--repeats", 3, "--save", path)
    return path, json.loads(path.read_text()), printed


def test_a_case_is_checked_timed_and_saved(saved):
    _, run, printed = saved
    row, wrapper = run["cases"]
    assert f"\n{row['case']} " in printed
    assert (row["suite"], row["case"], row["threads"], row["repeats"]) == ("overhead", "fp32-1x1x1x64", 1, 3)
    assert wrapper["case"] == "fp32-mla-wrapper-run"
    # one pair of positions, 64 + 64 dims: a multiplication and an addition each, over the time that is reported
    assert row["gflops"] == pytest.approx(2 * (64 + 64) / (row["ms"] * 1e6))
    assert row["gbytes"] == pytest.approx(4 * 64 * 4 / (row["ms"] * 1e6))
    for name, rival in row["rivals"].items():
        assert rival["ratio"] == pytest.approx(rival["ms"] / row["ms"]), name
    assert {*row["rivals"], *row["refused"]} == {"torch", "numpy"}
    if row["of_roof"] is not None:
        assert row["of_roof"] == pytest.approx(row["gflops"] * 1e9 / run["peaks"]["1"]["flops"][row["roof"]])
    assert run["machine"]["cpu"]
    assert run["machine"]["versions"]["attile"]


def test_how_l2_was_flushed_is_told(saved, monkeypatch):
    monkeypatch.syspath_prepend(BENCH.parent)
    report, (_, run, _) = importlib.import_module("report"), saved
    rows = [row | {"suite": "gpu-mla"} for row in run["cases"]]
    for flush, told in (("write", "gpu-mla`"), ("read", "gpu-mla --flush read`")):
        assert f"`python bench/bench.py {told}: " in report.readme([run | {"cases": rows, "flush": flush}])
    refused = subprocess.run([sys.executable, str(BENCH), "overhead", "--flush", "read"], capture_output=True, encoding="utf-8")
    assert refused.returncode == 2
    assert "--flush is of the GPU suites" in refused.stderr


def test_the_roof_is_what_the_dtype_takes_of_the_unit(monkeypatch):
    monkeypatch.syspath_prepend(BENCH.parent)
    roofline = importlib.import_module("roofline")
    peaks = roofline.Roofline(1, flops={"avx2": 1.0, "avx512": 2.0, "avx512_bf16": 4.0, "amx_bf16": 30.0})
    assert peaks.roof("amx", "bfloat16") == ("amx_bf16", 30.0)
    assert peaks.roof("amx", "float16") == ("amx_bf16x3", 10.0)
    assert peaks.roof("amx", "float32") == peaks.roof("avx512", "float16") == ("avx512", 2.0)
    assert peaks.roof("avx512", "bfloat16") == ("avx512_bf16", 4.0)
    assert peaks.roof("avx2", "bfloat16") == ("avx2", 1.0)
    assert roofline.Roofline(1).roof("amx", "float16") == (None, None)


def test_rivals_that_do_not_exist_cannot_be_left_out():
    command = [sys.executable, str(BENCH), "overhead", "--without", "nobody"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode != 0
    assert "no such rival: nobody; there are torch, " in done.stderr


def test_two_runs_are_compared_by_case(saved, tmp_path):
    path = saved[0]
    run, slower = json.loads(path.read_text()), tmp_path / "slower.json"
    run["cases"][0]["ms"] *= 3
    slower.write_text(json.dumps(run))
    line = bench("compare", slower, path).splitlines()[1]
    assert line.split()[0] == "fp32-1x1x1x64"
    assert "3.00x" in line.split()


def test_the_tables_of_the_readme_come_from_a_saved_run(saved, tmp_path):
    path, run, _ = saved
    row = run["cases"][0]
    table = bench("readme", "--from", path)
    assert f"| fp32-1x1x1x64 | {1e3 * row['ms']:.1f} us |" in table
    assert f"| {row['rivals']['numpy']['ratio']:.2f}x |" in table
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- figures of bench.py readme -->\nold\n<!-- end of figures -->\nafter\n")
    bench("readme", "--from", path, "--into", document)
    text = document.read_text()
    assert text.startswith("before\n<!-- figures of bench.py readme -->\n")
    assert text.endswith("\n<!-- end of figures -->\nafter\n")
    assert table.strip() in text
    assert "old" not in text


def test_a_run_is_drawn(saved, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "run.png"
    bench("overhead", "--repeats", 3, "--without", "torch", "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


class Cpus:
    """Tells of each measurement whether it was quiet."""

    def __init__(self, quiet):
        self.quiet, self.log = iter(quiet), []

    def find(self):
        self.log.append("find")

    def still_quiet(self):
        self.log.append("still_quiet")
        return next(self.quiet)

    def leave(self):
        self.log.append("leave")


@pytest.mark.parametrize(
    ("quiet", "measured", "counted", "disturbed"),
    [
        ([True] * 4, 4, [1, 2, 3, 4], False),
        ([False, True, True, False, True, True], 6, [2, 3, 5, 6], False),
        ([False, True] * 6, 8, [2, 4, 6, 8], False),
        ([True, False] + [False] * 10, 12, list(range(1, 13)), True),
    ],
)
def test_what_others_disturbed_does_not_count(monkeypatch, quiet, measured, counted, disturbed):
    monkeypatch.syspath_prepend(str(BENCH.parent))
    import timing

    now, took, cpus = [0.0], iter(range(20)), Cpus(quiet)

    def call():  # the first, which estimates, takes 0
        now[0] += next(took)

    monkeypatch.setitem(timing.CLOCKS, "wall", lambda: now[0])
    times = timing.interleaved({"a": [call]}, repeats=4, least=0, cpus=cpus)["a"]
    assert sorted(times.seconds) == counted
    assert times.disturbed == disturbed
    assert cpus.log == ["find", "still_quiet"] * measured + ["leave"]


def test_the_call_after_a_pause_does_not_count(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH.parent))
    import timing

    now, awake, log = [0.0], [False], []

    def call(name):
        now[0] += 1 if awake[0] else 100
        awake[0] = True
        log.append(name)

    monkeypatch.setitem(timing.CLOCKS, "wall", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: awake.__setitem__(0, seconds == 0))
    calls = [lambda name=name: call(name) for name in "abc"]
    assert timing.interleaved({"x": calls}, repeats=3, least=0, pause=0.01)["x"].seconds == (1, 1, 1)
    assert "".join(log) == "c" + "abcabc"  # one that estimates
    assert timing.interleaved({"x": calls}, repeats=3, least=0)["x"].seconds == (1, 1, 1)


@pytest.mark.parametrize(
    ("quiet", "counted", "disturbed"),
    [
        (None, [1, 2, 3], False),
        ([True, False, True, False, True], [1, 3, 5], False),
        ([False, True] + [False] * 7, list(range(1, 10)), True),
    ],
)
def test_a_turn_counts_as_a_whole(monkeypatch, quiet, counted, disturbed):
    monkeypatch.syspath_prepend(str(BENCH.parent))
    import timing

    log = []

    def sample(name, factor):
        log.append(name)
        return factor * log.count(name)

    samples = {"slow": lambda: sample("slow", 20.0), "fast": lambda: sample("fast", 10.0)}
    cpus = None if quiet is None else Cpus(quiet)
    times = timing.in_turns(samples, 3, cpus=cpus)
    assert log == ["slow", "fast"] * (len(log) // 2)
    assert sorted(times["fast"].seconds) == [10.0 * n for n in counted]
    ratios = timing.ratios(times["slow"], times["fast"])
    assert (ratios.seconds, ratios.disturbed) == ((2.0,) * len(counted), disturbed)
    assert cpus is None or cpus.log == ["find", "still_quiet"] * (len(log) // 2) + ["leave"]


def test_one_thread_and_all_take_turns_on_the_same_arrays(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH.parent))
    problems, report, roofline = map(importlib.import_module, ("problems", "report", "roofline"))
    attile, log = problems.attile, []
    calls = [lambda i=i: log.append((attile.get_num_threads(), i)) for i in range(3)]
    args = types.SimpleNamespace(least=0, repeats=3, quiet=False)
    case = problems.Case(id="", batch=1, seqlen_q=1, seqlen_k=1, heads_q=1, heads_k=1, head_dim=8, head_dim_v=8, dtype="float32")
    threads = attile.get_num_threads()
    try:
        for peaks in (roofline.Roofline(2), roofline.measure(2)):
            log.clear()
            turns = problems.Attention(id="x-t2", case=case, threads=2).turns(calls, args, None, peaks)
            # one call behind another that is not timed: first the two that say how many a sample takes, then three turns
            assert [n for n, _ in log] == [1, 1, 2, 2] * 4
            assert [i for _, i in log] == [i % 3 for i in range(16)]
            row = report.gain(turns)
            assert row["of_one_thread"] > 0
            assert row["turns"]["quartiles"][0] <= row["of_one_thread"] <= row["turns"]["quartiles"][1]
            assert (row["turns"]["count"], row["turns"]["disturbed"]) == (3, False)
            assert (row["turns"]["read"] is None) == (not peaks.reads)
        assert attile.get_num_threads() == 2
        assert report.gain(problems.Attention(id="x", case=case).turns(calls, args, None, peaks)) == {"of_one_thread": None}
    finally:
        attile.set_num_threads(threads)


def test_threads_are_set_where_there_are_cpus_for_them(monkeypatch):
    """Else attile's helpers do not spin, and what is timed is how long they take to wake."""
    monkeypatch.syspath_prepend(str(BENCH.parent))
    quiet_cpus = pytest.importorskip("quiet_cpus")
    if len(quiet_cpus.available()) < 2:
        pytest.skip("one CPU")
    problems, roofline = map(importlib.import_module, ("problems", "roofline"))
    attile, told, called = problems.attile, [], []
    set_num_threads, threads = attile.set_num_threads, attile.get_num_threads()

    def telling(n):
        told.append((n, len(os.sched_getaffinity(0))))
        set_num_threads(n)

    monkeypatch.setattr(attile, "set_num_threads", telling)
    args = types.SimpleNamespace(least=0, repeats=3, quiet=True)
    case = problems.Case(id="", batch=1, seqlen_q=1, seqlen_k=1, heads_q=1, heads_k=1, head_dim=8, head_dim_v=8, dtype="float32")
    try:
        set_num_threads(2)
        turns = problems.Attention(id="x-t2", case=case, threads=2).turns(
            [lambda: called.append(len(os.sched_getaffinity(0)))], args, None, roofline.measure(2)
        )
        assert {"one", "all"} <= set(turns)
        assert {n for n, _ in told} == {1, 2}
        assert all(cpus >= n for n, cpus in told)
        assert set(called) == {1}  # the helpers have the other
    finally:
        set_num_threads(threads)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="CPUs are chosen on Linux")
def test_cpus_are_looked_for_and_given_back(tmp_path):
    path = tmp_path / "run.json"
    bench("mla", "overhead", "-k", "wrapper-run", "no such", "--quiet", "--repeats", 3, "--without", "numpy", "--save", path)
    (row,) = json.loads(path.read_text())["cases"]
    assert row["case"] == "fp32-mla-wrapper-run"
    assert row["repeats"] >= 3


def test_a_search_leaves_every_thread_where_it_was(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH.parent))
    quiet_cpus = pytest.importorskip("quiet_cpus")
    if len(quiet_cpus.available()) < 2:
        pytest.skip("one CPU")
    before = {thread: os.sched_getaffinity(thread) for thread in quiet_cpus.threads_of_process()}
    cpus = quiet_cpus.QuietCpus(2)
    cpus.find()
    assert len(os.sched_getaffinity(0)) == 1
    others = set(quiet_cpus.threads_of_process()) - {threading.get_native_id()}
    assert all(os.sched_getaffinity(thread).isdisjoint(os.sched_getaffinity(0)) for thread in others)
    cpus.leave()
    assert all(os.sched_getaffinity(thread) == cpus_of for thread, cpus_of in before.items())


def test_wrong_answers_are_not_timed(tmp_path):
    """A rival that is off is told, and our own wrong answer ends in a failure."""
    script = tmp_path / "wrong.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCH.parent)!r})\n"
        "import bench, problems\n"
        "numpy_plain, attention = bench.RIVALS['numpy'], problems.attile.flash_attention\n"
        "def off(problem, sets):\n"
        "    rival = numpy_plain(problem, sets)\n"
        "    return problems.Contender([lambda: rival.calls[0]() + 0.01], rival.to_numpy)\n"
        "bench.RIVALS['numpy'] = off\n"
        "bench.main(['overhead', '-k', '1x1', '--repeats', '3', '--without', 'torch'])\n"
        "problems.attile.flash_attention = lambda *a, out, **kw: attention(*a, out=out, **kw) * 1.001\n"
        "problems.Attention.explain = lambda self, sets: {}\n"
        "bench.main(['overhead', '-k', '1x1', '--repeats', '3'])\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, encoding="utf-8", check=False)
    first, second = done.stdout.split("fp32-1x1x1x64")[1:]
    assert "numpy wrong: off by 0.01" in first
    assert "NOT TIMED: out: too far from the reference" in second
    assert done.returncode != 0
    assert "not timed: fp32-1x1x1x64" in done.stderr
