"""How many threads there are, who decides it, and what other threads of the program notice."""

import os
import sys
import threading
import time

import numpy as np
import pytest
from run_python import run_python

import attile

PRINT_THREADS = "import attile; print(attile.get_num_threads())"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="affinity and /proc are Linux's")


@pytest.fixture(autouse=True)
def default_threads():
    yield
    attile.set_num_threads(0)


def problem(seqlen, heads=4, head_dim=64, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((1, seqlen, heads, head_dim), dtype=np.float32) for _ in "qkv")


# ---- the number ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ATTILE_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"ATTILE_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"ATTILE_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5),
        ({"ATTILE_NUM_THREADS": " 7 "}, 7),
    ],
)
def test_environment(environment, expected):
    assert run_python(PRINT_THREADS, **environment) == f"{expected}\n"


@pytest.mark.parametrize("value", ["0", "-2", "many", "3x", "1,2", "99999999999999999999"])
def test_a_bad_environment_variable_is_named(value):
    default = run_python(PRINT_THREADS)
    said = run_python(PRINT_THREADS, ATTILE_NUM_THREADS=value)
    assert said.startswith(default)
    assert f"ATTILE_NUM_THREADS must be a positive integer: got '{value}'; it is ignored" in said
    # OpenMP's variable is for OpenMP to judge.
    assert run_python(PRINT_THREADS, OMP_NUM_THREADS="many") == default


@linux
def test_the_default_is_what_the_process_may_use():
    assert 1 <= int(run_python(PRINT_THREADS)) <= len(os.sched_getaffinity(0))
    pinned = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});" + PRINT_THREADS
    assert run_python(pinned) == "1\n"


def test_set_and_restore():
    script = """
        import attile
        attile.set_num_threads(6)
        assert attile.get_num_threads() == 6
        assert attile.show_config()["num_threads"] == 6
        attile.set_num_threads(0)
        assert attile.get_num_threads() == 3
    """
    assert run_python(script, ATTILE_NUM_THREADS="3") == ""


def test_set_takes_any_integer():
    for two in (2, np.int64(2), np.uint8(2)):
        attile.set_num_threads(1)
        attile.set_num_threads(two)
        assert attile.get_num_threads() == 2


@pytest.mark.parametrize(
    ("n", "error", "text"),
    [
        (-1, ValueError, "set_num_threads: n must not be negative: expected 0 (the default) or more, got -1"),
        (2**31, ValueError, "set_num_threads: n must fit into 32 bits: expected 0 to 2147483647, got 2147483648"),
        (-(2**40), ValueError, "set_num_threads: n must fit into 32 bits: expected 0 to 2147483647, got -1099511627776"),
        (2.0, TypeError, "set_num_threads: n must be an integer: expected int, got float"),
        ("2", TypeError, "set_num_threads: n must be an integer: expected int, got str"),
        (None, TypeError, "set_num_threads: n must be an integer: expected int, got NoneType"),
    ],
)
def test_set_refuses(n, error, text):
    attile.set_num_threads(2)
    with pytest.raises(error) as caught:
        attile.set_num_threads(n)
    assert str(caught.value) == text
    assert attile.get_num_threads() == 2


@linux
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_calls_use_that_many(threads):
    script = """
        import os, sys
        import numpy as np, attile
        x = np.ones((1, 1024, 8, 64), dtype=np.float32)
        before = len(os.listdir("/proc/self/task"))
        attile.flash_attention(x, x, x)
        print(len(os.listdir("/proc/self/task")) - before)
    """
    assert run_python(script, ATTILE_NUM_THREADS=str(threads)) == f"{threads - 1}\n"


@linux
def test_import_starts_no_thread():
    script = """
        import os, numpy
        before = len(os.listdir("/proc/self/task"))
        import attile
        attile.get_num_threads()
        assert len(os.listdir("/proc/self/task")) == before
    """
    assert run_python(script, ATTILE_NUM_THREADS="8") == ""


# ---- threadpoolctl ---------------------------------------------------------------------------------------------------------

LIMITS = """
    [info] = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "attile"]
    assert info["internal_api"] == "attile" and info["version"] == attile.__version__, info
    assert info["num_threads"] == 3, info
    with threadpoolctl.threadpool_limits(2):
        assert attile.get_num_threads() == 2
        with threadpoolctl.threadpool_limits({"attile": 1}):
            assert attile.get_num_threads() == 1
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            assert attile.get_num_threads() == 2
    assert attile.get_num_threads() == 3
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import attile, threadpoolctl",
        "import threadpoolctl, attile",
        "import attile; from threadpoolctl import threadpool_info; import threadpoolctl",
        "import attile, importlib.util; importlib.util.find_spec('threadpoolctl'); import threadpoolctl",
    ],
)
def test_threadpoolctl(imports):
    pytest.importorskip("threadpoolctl")
    assert run_python(imports + LIMITS.replace("\n    ", "\n"), ATTILE_NUM_THREADS="3") == ""


def test_threadpoolctl_is_not_imported_and_not_needed():
    script = """
        import sys, attile
        assert "threadpoolctl" not in sys.modules
        sys.modules["threadpoolctl"] = None
        try:
            import threadpoolctl
        except ModuleNotFoundError:
            print("absent")
    """
    assert run_python(script) == "absent\n"


# ---- other threads ---------------------------------------------------------------------------------------------------------


def test_calls_from_many_python_threads():
    attile.set_num_threads(3)
    problems = [problem(96 + 32 * i, seed=i) for i in range(6)]
    expected = [attile.flash_attention(*p, causal=True) for p in problems]
    wrong = []

    def call(i):
        for _ in range(20):
            if not np.array_equal(attile.flash_attention(*problems[i], causal=True), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_number_changes_while_others_call():
    inputs = problem(256)
    expected = attile.flash_attention(*inputs)
    stop = threading.Event()

    def change():
        n = 0
        while not stop.is_set():
            n = n % 5 + 1
            attile.set_num_threads(n)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        assert all(np.array_equal(attile.flash_attention(*inputs), expected) for _ in range(100))
    finally:
        stop.set()
        changer.join()


def test_the_gil_is_released():
    attile.set_num_threads(1)
    inputs = problem(2048, heads=8)
    span = []

    def call():
        start = time.perf_counter()
        attile.flash_attention(*inputs)
        span.extend((start, time.perf_counter()))

    for _ in range(5):
        span.clear()
        worker = threading.Thread(target=call)
        worker.start()
        ticks = []
        while worker.is_alive():
            ticks.append(time.perf_counter())
        start, end = span
        # A held GIL would let this thread run before the call and after it, not in the middle of it.
        quarter = (end - start) / 4
        if any(start + quarter < tick < end - quarter for tick in ticks):
            return
    pytest.fail(f"no Python code ran in the middle half of a call of {end - start:.3f} s, five times")


def test_exit_during_a_call():
    script = """
        import threading, time
        import numpy as np, attile
        x = np.ones((1, 8192, 16, 128), dtype=np.float32)
        threading.Thread(target=attile.flash_attention, args=(x, x, x), daemon=True).start()
        time.sleep(0.2)
        print("leaving", flush=True)
    """
    start = time.perf_counter()
    assert run_python(script, ATTILE_NUM_THREADS="2") == "leaving\n"
    assert time.perf_counter() - start < 20
