"""The portable level on another architecture: the C++ tests, cross-compiled for aarch64 and run under qemu-user.

Marked `aarch64` and `slow`. Debian: apt-get install g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1]
TOOLS = ("aarch64-linux-gnu-g++", "qemu-aarch64", "cmake", "ninja")

pytestmark = [pytest.mark.aarch64, pytest.mark.slow]


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return done.stdout


def test_cpp_tests_pass_on_aarch64(tmp_path):
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    toolchain = SOURCE / "cmake" / "aarch64-linux-gnu.cmake"
    options = ("-DATTILE_TESTS=ON", "-DATTILE_CUDA=OFF", "-DATTILE_WERROR=ON", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}")
    run("cmake", "-G", "Ninja", "-S", SOURCE, "-B", tmp_path, *options)
    run("cmake", "--build", tmp_path, "-j", os.cpu_count())
    # qemu-user cannot fork a process that has threads, which the pool's tests do.
    report = run("ctest", "--test-dir", tmp_path, "--output-on-failure", "-E", "^test_threads$")
    assert "test_forward" in report
