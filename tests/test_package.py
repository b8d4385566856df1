"""What is installed: the files, the libraries' symbols and dependencies, the header, find_package, the cost of the import."""

import importlib.metadata
import json
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from run_python import run_python

import attile

ROOT = Path(attile._core.__file__).parent  # of an editable install too
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF files")


def needs(*tools):
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def output(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def distribution():
    found = importlib.metadata.distribution("attile")
    direct_url = json.loads(found.read_text("direct_url.json") or "{}")
    if direct_url.get("dir_info", {}).get("editable"):
        pytest.skip("an editable install has no files of its own")
    return found


# ---- the wheel -------------------------------------------------------------------------------------------------------------


def test_files():
    files = {str(file) for file in distribution().files if "__pycache__" not in file.parts}
    for name in (
        "__init__.py", "__main__.py", "_core.pyi", "py.typed", "threads.py", "cython_api.pxd", f"_core{SUFFIX}", f"cython_api{SUFFIX}",
        "lib/libattile.so", "include/attile/attile.h", "lib/cmake/attile/attileConfig.cmake", "lib/cmake/attile/attileTargets.cmake",
    ):  # fmt: skip
        assert f"attile/{name}" in files
    package = {file.split("/")[1] for file in files if file.startswith("attile/")}
    strays = {name for name in package if not re.search(r"\.(py|pyi|pyx|pxd|typed|so)$", name)} - {"lib", "include", "compat"}
    assert not strays
    assert [file for file in files if file.endswith((".cpp", ".hpp", ".a", ".o"))] == []
    libraries = {file for file in files if "libattile" in file}  # no copies under versioned names; CUDA where it was built
    assert libraries - {"attile/lib/libattile_cuda.so"} == {"attile/lib/libattile.so"}


def test_metadata():
    found = distribution()
    assert found.version == attile.__version__ == attile.show_config()["version"]
    assert found.metadata["License-Expression"] == "Apache-2.0"
    assert [r for r in found.requires if "extra ==" not in r] == ["numpy>=1.24"]
    assert {"examples", "test"} <= set(found.metadata.get_all("Provides-Extra"))
    assert [(e.name, e.value) for e in found.entry_points if e.group == "cmake.prefix"] == [("attile", "attile")]


# ---- the libraries ---------------------------------------------------------------------------------------------------------


@linux
@needs("nm")
def test_libattile_exports_its_interface_only():
    lines = output("nm", "-D", "--defined-only", ROOT / "lib/libattile.so").splitlines()
    exported = {line.split()[-1] for line in lines}
    header = (ROOT / "include/attile/attile.h").read_text()
    declared = set(re.findall(r"^ATTILE_API .*?(attile_\w+)\(", header, re.MULTILINE))
    assert len(declared) > 10
    assert exported == declared


@linux
@needs("readelf")
def test_libraries_need_the_system_only():
    system = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libpthread.so.0", "libdl.so.2"}
    for file, ours in (("lib/libattile.so", set()), (f"_core{SUFFIX}", {"libattile.so"}), (f"cython_api{SUFFIX}", {"libattile.so"})):
        dynamic = output("readelf", "-d", ROOT / file)
        needed = {name for name in re.findall(r"NEEDED.*\[(.*)\]", dynamic) if not name.startswith("ld-linux")}
        assert ours <= needed <= system | ours
        if ours:
            assert re.findall(r"(?:RPATH|RUNPATH).*\[(.*)\]", dynamic) == ["$ORIGIN/lib"]


@linux
@needs("readelf")
def test_the_stack_is_not_executable():
    for file in ("lib/libattile.so", f"_core{SUFFIX}", f"cython_api{SUFFIX}"):
        assert re.search(r"GNU_STACK.*\n?.*\bRW\b", output("readelf", "-lW", ROOT / file))


# ---- the header and find_package -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("compiler", "standard"), [("gcc", "c99"), ("gcc", "c11"), ("g++", "c++11"), ("g++", "c++20")])
def test_the_header_is_plain(compiler, standard, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"not installed: {compiler}")
    source = tmp_path / ("t.c" if compiler == "gcc" else "t.cpp")
    source.write_text("#include <attile/attile.h>\nint f(void) { return ATTILE_VERSION_MAJOR; }\n")
    output(compiler, f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I", ROOT / "include", source)


CONSUMER = """
cmake_minimum_required(VERSION 3.24)
project(consumer LANGUAGES CXX)
find_package(attile {version} REQUIRED CONFIG)
add_executable(consumer main.cpp)
target_link_libraries(consumer PRIVATE attile::attile)
"""
MAIN = """
#include <attile/attile.h>
#include <cstdio>
int main() {
  attile_op* op = nullptr;
  attile_flash_attention_params params{};
  params.struct_size = sizeof params;
  const attile_status status = attile_flash_attention_create(&params, &op);
  std::printf("%d %d %s\\n", attile_abi_version() == ATTILE_ABI_VERSION, status, attile_last_error());
}
"""


@needs("cmake", "ninja", "c++")
def test_find_package(tmp_path):
    distribution()
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER.format(version=attile.__version__))
    (tmp_path / "main.cpp").write_text(MAIN)
    output("cmake", "-G", "Ninja", "-S", tmp_path, "-B", tmp_path / "b", f"-Dattile_ROOT={ROOT}")
    output("cmake", "--build", tmp_path / "b")
    abi, status, error = output(tmp_path / "b/consumer").split(maxsplit=2)
    assert abi == "1"
    assert status != "0"
    assert error.startswith("flash_attention: query")


# ---- the import ------------------------------------------------------------------------------------------------------------


def test_import_is_cheap():
    """Under 50 ms beyond numpy, the median of nine interpreters."""
    distribution()  # an editable install asks for the build at each import
    script = "import time, numpy; start = time.perf_counter(); import attile; print(time.perf_counter() - start)"
    times = [float(run_python(script)) for _ in range(9)]
    assert statistics.median(times) < 0.050, times


def test_import_brings_no_other_library():
    script = """
        import sys, numpy
        before = set(sys.modules)
        import attile
        print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
    """
    assert run_python(script) == "['attile']\n"


def test_a_numpy_call_brings_no_other_library():
    script = """
        import sys, numpy as np, attile
        before = set(sys.modules)
        x = np.ones((1, 4, 2, 8), dtype=np.float32)
        attile.flash_attention(x, x, x)
        print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
    """
    assert run_python(script) in ("[]\n", "['numpy']\n")  # numpy loads parts of itself late


def test_the_report_runs_as_a_module():
    report = json.loads(output(sys.executable, "-W", "error", "-m", "attile", "--json"))
    assert report["version"] == attile.__version__
    assert attile.__version__ in output(sys.executable, "-W", "error", "-m", "attile")


def test_numpy_is_enough():
    x = np.ones((1, 3, 2, 8), dtype=np.float32)
    np.testing.assert_array_equal(attile.flash_attention(x, x, x), x)
