"""A package of attile whose libattile_cuda.so is another one: made for the CPU, by an ordinary compiler."""

import os
import pathlib
import shutil

import attile
import pytest
from run_python import run_python

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CXX", "g++")
NEEDS = [
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(not (ROOT / "src/cuda/entry.hpp").exists(), reason="needs the sources"),
]


def copy_package(folder):
    """Copy the installed package to `folder`; returns where its libattile_cuda.so is to be."""
    installed = pathlib.Path(attile._core.__file__).parent
    shutil.copytree(pathlib.Path(attile.__file__).parent, folder / "attile", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(installed, folder / "attile", ignore=shutil.ignore_patterns("__pycache__", "libattile_cuda.so"), dirs_exist_ok=True)
    library = folder / "attile/lib/libattile_cuda.so"
    library.unlink(missing_ok=True)
    return library


def run(package, script, **more):
    """The lines that the script printed, in a fresh interpreter with the package in `package`; `more` as of run_python."""
    libraries = f"{package / 'attile/lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    return run_python(script, PYTHONPATH=f"{package}:{ROOT / 'tests'}", LD_LIBRARY_PATH=libraries, PYTHONUNBUFFERED="1", **more).splitlines()
