"""Forked children compute, whatever the parent's threads did: with OpenMP's runtime they would hang."""

import sys

import pytest
from run_python import run_python

pytestmark = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")

# Python 3.12 and newer warn about every fork of a process with threads; here it is the point.
PREPARE = """
import multiprocessing, os, sys, threading, warnings
import numpy as np
import attile

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((2, 200, 4, 64), dtype=np.float32) for _ in "qkv")

def attention():
    return attile.flash_attention(q, k, v, causal=True)

def child_status(work):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def run(script, threads):
    return run_python(PREPARE + script, ATTILE_NUM_THREADS=str(threads))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_fork_after_use(threads):
    script = """
expected = attention()
for _ in range(10):
    assert child_status(lambda: np.array_equal(attention(), expected)) == 0
assert np.array_equal(attention(), expected)
"""
    assert run(script, threads) == ""


def test_fork_before_use():
    script = """
assert child_status(lambda: np.isfinite(attention()).all()) == 0
assert np.isfinite(attention()).all()
"""
    assert run(script, 3) == ""


def test_grandchildren():
    script = """
expected = attention()
same = lambda: np.array_equal(attention(), expected)
assert child_status(lambda: same() and child_status(same) == 0 and same()) == 0
"""
    assert run(script, 3) == ""


def test_fork_while_another_thread_computes():
    script = """
expected = attention()
stop = threading.Event()
wrong = []

def busy():
    while not stop.is_set():
        if not np.array_equal(attention(), expected):
            wrong.append(1)

threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()
statuses = [child_status(lambda: np.array_equal(attention(), expected)) for _ in range(25)]
stop.set()
for thread in threads:
    thread.join()
assert statuses == [0] * 25 and not wrong, (statuses, wrong)
"""
    assert run(script, 3) == ""


def test_the_number_of_threads_is_inherited():
    script = """
attile.set_num_threads(3)
attention()
assert child_status(lambda: attile.get_num_threads() == 3) == 0
assert child_status(lambda: (attile.set_num_threads(2), attile.get_num_threads() == 2)[1]) == 0
assert attile.get_num_threads() == 3
"""
    assert run(script, 4) == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork is not macOS's start method")
def test_multiprocessing_pool():
    script = """
expected = attention()

def work(_):
    return attention()

with multiprocessing.get_context("fork").Pool(3) as pool:
    assert all(np.array_equal(out, expected) for out in pool.map(work, range(12)))
"""
    assert run(script, 2) == ""
