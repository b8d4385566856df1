"""Builds and runs the kernel's own source on the CPU (ptx.cuh and the products replaced): barriers, copies, layouts, masks, options.

  python3 emulate.py [-DMACRO=...]        e.g. -DHEAD_DIM=64; CXX: clang++ (g++ 12 dies of the lambdas)
"""
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(HERE)

with tempfile.TemporaryDirectory() as folder:
    for name in ("kernel.cuh", "params.cuh", "producer.cuh", "epilogue.cuh", "mask.cuh", "schedule.cuh", "scores.cuh", "softmax.cuh", "traits.hpp", "pipeline.cuh", "wgmma.cuh"):
        text = open(f"{SOURCE}/{name}").read()
        if name == "wgmma.cuh":  # descriptors and fences are written in PTX there
            text = re.sub(r'asm\("mov.b64.*\n', 'd = uint64_t(kDescriptorHigh) << 32 | low;\n', text)
            text = re.sub(r'asm volatile\((?:[^()]|\([^()]*\))*\);', ';', text)
        if name == "scores.cuh":
            text = text.replace('#ifdef __CUDACC__\n#include "ptx.cuh"\n#endif', '#include "ptx.cuh"')
        text = re.sub(r"#include <cuda[^>]*>\n", "", text)
        open(f"{folder}/{name}", "w").write(text)
    for name in ("ptx.cuh", "wgmma_shapes.cuh", "cuda_stubs.hpp", "emulate.cpp"):
        open(f"{folder}/{name}", "w").write(open(f"{HERE}/{name}").read())
    tuned = open(f"{SOURCE}/instances.cu").read()
    tuned = tuned[tuned.index("#ifndef HEAD_DIM"):tuned.index("// The optional part of a problem;")]
    open(f"{folder}/tuned.hpp", "w").write(tuned)
    subprocess.run([os.environ.get("CXX", "clang++"), "-std=c++20", "-O2", "-g", "-w", *sys.argv[1:], f"{folder}/emulate.cpp", "-o", f"{folder}/emulate"], check=True)
    sys.exit(subprocess.run([f"{folder}/emulate"]).returncode)
