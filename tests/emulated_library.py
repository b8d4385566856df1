"""libattile_cuda.so for the CPU: src/cuda compiled by an ordinary compiler with the headers of tests/cuda_emulation. Takes half a minute.

Two things of CUDA C++ are not C++ for any header: launches and `extern __shared__`. They are rewritten in a copy of the sources.
"""

import concurrent.futures
import os
import re
import subprocess

from other_cuda import COMPILER, ROOT

EMULATION = ROOT / "tests/cuda_emulation"
LAUNCH = re.compile(r"(\w+(?:<[^;<>]*>)?)<<<(.*?)>>>\((.*?)\);", re.DOTALL)


def build(library, folder, changes=None):
    """Write `library`; `folder` is for what is between. changes: {file below src/cuda: (text, what is there instead)}."""
    changes = dict(changes or {})
    sources = list((ROOT / "src/cuda").rglob("*.*"))
    units = [EMULATION / f"{name}.cpp" for name in ("emulation", "products", "runtime", "kernels")]
    for path in sources:
        name = path.relative_to(ROOT / "src/cuda")
        text = path.read_text()
        if str(name) in changes:
            old, new = changes.pop(str(name))
            assert text.count(old) == 1, f"{name}: {old} is there {text.count(old)} times"
            text = text.replace(old, new)
        copy = folder / "src/cuda" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(LAUNCH.sub(r"emulation::launch(\2, [&] { \1(\3); });", text).replace("extern __shared__", "extern"))
        if path.suffix in (".cu", ".cpp") and path.name != "kernels.cpp":
            units.append(copy)
    assert not changes, f"no such files: {list(changes)}"
    flags = ["-std=c++20", "-O2", "-march=native", "-fno-strict-aliasing", "-fPIC", "-fvisibility=hidden", '-DATTILE_CUDA_ARCHITECTURES="emulated"']
    flags += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-include", str(EMULATION / "emulation.hpp")]
    flags += [f"-I{path}" for path in (EMULATION, folder / "src", ROOT / "src", ROOT / "src/cpp", ROOT / "src/cpp/include")]

    def compile_unit(path):
        done = folder / f"{units.index(path)}_{path.stem}.o"
        subprocess.run([COMPILER, *flags, "-x", "c++", "-c", str(path), "-o", str(done)], check=True)
        return str(done)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_unit, units))
    subprocess.run([COMPILER, "-shared", "-o", str(library), *objects], check=True)
