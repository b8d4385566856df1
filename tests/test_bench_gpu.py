"""The GPU suites of bench/bench.py without a GPU: their rows, how times are taken (with a clock that is ours), and whole runs of small cases on
torch tensors of the host."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="a source distribution has no bench folder")


@pytest.fixture
def import_bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return __import__


class Gpu:
    """A GPU whose calls take the seconds that they are called with; what it is asked for is written down."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def event(self):
        gpu = self

        class Event:
            def record(self):
                self.at = gpu.now

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e3

        return Event()

    def flush(self):
        self.now += 1.0
        self.log.append("flush")

    def synchronize(self):
        self.log.append("wait")

    def capture(self, work):
        self.log.append("capture")
        return work

    def call(self, name, *seconds):
        """A call that takes each of these times in turn."""
        turns = iter(seconds)

        def run():
            self.log.append(name)
            self.now += next(turns, seconds[-1])

        return run


def test_the_cache_is_flushed_before_every_call_and_only_the_call_is_timed(import_bench):
    timing, gpu = import_bench("gpu_timing"), Gpu()
    timer = timing.Timer(gpu.call("a", 0.25), gpu)
    assert timer.seconds() == pytest.approx(0.25)
    assert "capture" not in gpu.log
    assert gpu.log[-3:] == ["flush", "a", "wait"]
    assert gpu.log.count("flush") == gpu.log.count("a")


def test_short_calls_are_replayed_as_graphs_with_the_flush_inside(import_bench):
    timing, gpu = import_bench("gpu_timing"), Gpu()
    timer = timing.Timer(gpu.call("a", 0.5, 1e-4), gpu)  # the first call loads the kernel
    assert gpu.log.count("capture") == 1
    assert gpu.log[gpu.log.index("capture") :].count("a") * 1e-4 >= timing.WARM
    queued = []
    gpu.capture, timer.queue = None, lambda work=timer.queue: queued.append(work())
    assert timer.seconds() == pytest.approx(1e-4)
    assert len(queued) == 1


@pytest.mark.parametrize("reads", [False, True])
def test_a_flush_writes_and_reads_afterwards_only_if_asked_to(import_bench, monkeypatch, reads):
    timing, log = import_bench("gpu_timing"), []

    class Buffer:
        def __init__(self, count, dtype, device):
            assert (count * {"uint8": 1, "float32": 4}[dtype], device) == (timing.FLUSHED, "cuda")

        def zero_(self):
            log.append("write")

        def amax(self):
            log.append("read")

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(empty=Buffer, zeros=Buffer, uint8="uint8", float32="float32"))
    monkeypatch.setattr(timing.Cuda, "reads", reads)
    timing.Cuda().flush()
    assert log == ["write", "read"][: 1 + reads]


def test_repeats_are_interleaved_and_their_median_counts(import_bench):
    timing, gpu = import_bench("gpu_timing"), Gpu()
    timers = {"a": timing.Timer(gpu.call("a", *(1.0,) * 4, *(9.0, 2.0, 3.0) * 7), gpu), "b": timing.Timer(gpu.call("b", 5.0), gpu)}
    gpu.log.clear()
    times = timing.interleaved(timers, repeats=7)
    assert [entry for entry in gpu.log if entry in "ab"] == ["a", "a", "a", "b", "b", "b"] * 7
    assert times["a"].seconds == (3.0,) * 7
    assert times["b"].median == 5.0
    assert len(timing.interleaved(timers, repeats=7, budget=1.0)["b"].seconds) == import_bench("timing").FEWEST


def test_rows_are_those_that_libraries_publish(import_bench):
    pytest.importorskip("ml_dtypes")
    suites = import_bench("gpu_suites").GPU_SUITES
    rows = {name: list(suite()) for name, suite in suites.items()}
    names = [row.id for suite in rows.values() for row in suite if suite is not rows["gpu-backward"]]
    assert len(set(names)) == len(names)
    forward = {row.id: row for row in rows["gpu-forward"]}
    assert forward["bf16-d128-full-s8192"].flops() == 4 * 2 * 16 * 8192**2 * 128
    assert forward["bf16-d128-documents4-s4096"].flops() == 4 * 4 * 16 * 4096**2 * 128 / 4
    assert forward["bf16-d64-causal-s512"].flops() == 4 * 32 * 32 * (512 * 513 // 2) * 64
    latent = {row.id: row for row in rows["gpu-mla"]}
    assert sum(row.case.batch == 128 and not row.float8 for row in latent.values()) == 36
    one = latent["bf16-b128-h16-q1-s8192"]
    assert one.flops() == 2 * 128 * 16 * 8192 * (576 + 512)
    assert one.bytes() == 2 * 128 * (8192 * 576 + 16 * (576 + 512))
    assert one.bound == "bytes"
    decode = {row.id: row for row in rows["gpu-decode"]}
    assert decode["bf16-b64-h64/8-d128-s8192"].flops() == 4 * 64 * 64 * 8192 * 128
    gradients = {row.id: row for row in rows["gpu-backward"]}
    assert gradients["bf16-d128-full-s8192"].flops() == 2.5 * forward["bf16-d128-full-s8192"].flops()


RUN = f"""
import sys
sys.path[:0] = [{str(BENCH)!r}, {str(BENCH.parent / "tests")!r}]
import time
import bench, gpu_backward, gpu_problems, gpu_roofline, gpu_suites, suites
from gpu_problems import GpuAttention, GpuCached, GpuLatentDecode
from mla_cases import MlaCase

class Event:
    def record(self):
        self.at = time.perf_counter()
    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3

class Host:
    event, flush, synchronize = Event, lambda self: None, lambda self: None
    def capture(self, work):
        return work

def run(problems, *more):
    gpu_problems.DEVICE = "cpu"
    gpu_problems.cuda = Host
    gpu_roofline.measure = lambda cuda: gpu_roofline.GpuRoofline("cuda", {{"matmul_bf16": 1e12}}, {{"read": 2e10, "copy": 3e10}})
    suites.SUITES["gpu-forward"] = lambda: iter(problems)
    bench.main(["gpu-forward", "--repeats", "3", *more])

def small(**more):
    return gpu_suites.square(96, 64, **{{"batch": 2, "heads_q": 4, "heads_k": 4, **more}})
"""


def run(script, *arguments):
    done = subprocess.run([sys.executable, "-c", RUN + script, *map(str, arguments)], capture_output=True, encoding="utf-8", check=False)
    return done.returncode, done.stdout, done.stderr


def test_small_cases_are_checked_timed_and_compared(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    path = tmp_path / "run.json"
    code, out, err = run(
        """
rivals = ("sdpa-math", "vllm-fa3")
latent = {"id": "", "batch": 2, "seqlen_k": 70, "heads": 3, "latent": 512, "rope": 16, "dtype": "bfloat16"}
run([
    GpuAttention(id="full", case=small(), rivals=rivals),
    GpuAttention(id="causal", case=small(options={"causal": True}), rivals=rivals),
    GpuAttention(id="bias", case=small(bias=(1, 4, 96, 96)), rivals=rivals),
    GpuAttention(id="documents", case=small(), documents=4, rivals=rivals),
    GpuAttention(id="window", case=small(options={"causal": True, "sliding_window": (20, 0)})),
    GpuAttention(id="fp32", case=small(dtype="float32"), rivals=rivals),
    GpuCached(id="dense", case=small(seqlen_q=1, heads_q=8), bound="bytes", rivals=rivals),
    GpuCached(id="paged", case=small(seqlen_q=1, heads_q=8), page_size=16, bound="bytes", rivals=rivals),
    GpuLatentDecode(id="latent", case=MlaCase(**latent | {"seqlen_q": 2, "page_size": 16}), rivals=("flash-mla", "torch-bmm")),
    GpuLatentDecode(id="ropes", case=MlaCase(**latent | {"head_rope": True}), rivals=("torch-bmm",)),
    GpuLatentDecode(id="shared", case=MlaCase(**latent), rivals=("torch-bmm",)),
], "--save", sys.argv[1])
""",
        path,
    )
    assert code == 0, out + err
    saved = json.loads(path.read_text())
    rows = {row["case"]: row for row in saved["cases"]}
    assert len(rows) == 11
    assert saved["peaks"]["cuda"] == {"flops": {"matmul_bf16": 1e12}, "reads": {"read": 2e10, "copy": 3e10}}
    for name in ("full", "causal", "bias", "fp32", "dense"):
        assert set(rows[name]["rivals"]) == {"sdpa-math"}, (name, rows[name]["refused"])
    for name in ("ropes", "shared"):
        assert set(rows[name]["rivals"]) == {"torch-bmm"}, rows[name]["refused"]
    assert rows["paged"]["refused"]["sdpa-math"] == "no pages"
    assert "q_segment_ids" in rows["documents"]["refused"]["sdpa-math"]
    assert rows["full"]["of_roof"] == pytest.approx(rows["full"]["gflops"] / 1e3)
    assert rows["full"]["of_read"] == pytest.approx(rows["full"]["gbytes"] / 20)
    assert rows["fp32"]["of_roof"] is None
    table = subprocess.run([sys.executable, str(BENCH / "bench.py"), "readme", "--from", str(path)], capture_output=True, encoding="utf-8", check=True)
    assert f"| full | {rows['full']['gflops'] / 1e3:.0f} TFLOP/s | " in table.stdout


def test_a_wrong_answer_is_not_timed():
    pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    code, out, err = run(
        """
attention, rivals = bench.attile.flash_attention, ("sdpa-math",)
import rivals_gpu
math = rivals_gpu.RIVALS["sdpa-math"]
rivals_gpu.RIVALS["sdpa-math"] = lambda *a: bench.problems.Contender([lambda call=math(*a).calls[0]: call() + 0.1], math(*a).to_numpy)
run([GpuAttention(id="rival", case=small(options={"causal": True}), rivals=rivals)])
bench.attile.flash_attention = lambda *a, out, **kw: attention(*a, out=out, **kw).mul_(1.05)
GpuAttention.explain = lambda self, sets: {}
run([GpuAttention(id="ours", case=small(options={"causal": True}))])
"""
    )
    assert "sdpa-math wrong: off by" in out, out + err
    assert "ours" in out
    assert "NOT TIMED: out: too far from the reference" in out
    assert code != 0


def test_float8_and_gradients_are_timed_with_their_own_judges(tmp_path):
    """What has no kernel on the host is computed by torch here: rounded as a kernel may round, then with a twentieth more."""
    pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    script = """
import torch
from gpu_backward import GpuBackward
factor = float(sys.argv[1])

def attend(query, key, value, causal=False, out=None, return_lse=False, cfg=None):
    query, key, value = (x.float().transpose(1, 2) for x in (query, key, value))
    s = query @ key.mT / query.shape[-1] ** 0.5
    if causal:
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    made = (s.softmax(-1) @ value).transpose(1, 2) * factor
    return (made.bfloat16(), s.logsumexp(-1)) if return_lse else out.copy_(made)

def backward(dout, query, key, value, out, lse, causal=False, cfg=None):
    leaves = [x.float().requires_grad_() for x in (query, key, value)]
    made = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in leaves), is_causal=causal)
    grads = torch.autograd.grad(made, leaves, dout.float().transpose(1, 2))
    return bench.attile.Gradients(*((x * factor).bfloat16() for x in grads))

bench.attile.flash_attention, bench.attile.flash_attention_backward = attend, backward
GpuAttention.explain = GpuBackward.explain = lambda self, sets: {"kernel": "torch", "isa": "", "plan": {}}
run([
    GpuAttention(id="eight", case=small(options={"causal": True}), float8=True),
    GpuBackward(id="gradients", case=small(options={"causal": True}), rivals=("sdpa-math",)),
], "--save", sys.argv[2])
"""
    for factor in (1.0, 1.05):
        path = tmp_path / "run.json"
        code, out, err = run(script, factor, path)
        rows = {row["case"]: row for row in json.loads(path.read_text())["cases"]}
        assert (code == 0) == (factor == 1.0), out + err
        assert set(rows) == ({"eight", "gradients"} if factor == 1.0 else set()), out + err
        if rows:
            assert set(rows["gradients"]["rivals"]) == {"sdpa-math"}, rows["gradients"]["refused"]


def test_gradients_are_judged(import_bench):
    """The judge's float64 formulas are autograd's, and twice the plain computation's error is its limit."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    backward = import_bench("gpu_backward")
    generator = torch.Generator().manual_seed(0)
    q, k, v, dout = (torch.randn(40, 16, generator=generator, dtype=torch.float64) for _ in range(4))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    scores = (leaves[0] @ leaves[1].mT / 4).masked_fill(torch.ones(40, 40, dtype=torch.bool).triu(1), -torch.inf)
    expected = torch.autograd.grad(scores.softmax(-1) @ leaves[2], leaves, dout)
    for mine, other in zip(backward.gradients(q, k, v, dout, 0.25, True, None), expected, strict=True):
        torch.testing.assert_close(mine, other)
