"""What this installation is made of."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from attile import _core, arrays


def show_config() -> dict[str, Any]:
    """Report the versions, CPU features, kernels, threads and array libraries.

    Returns
    -------
    dict
        "version", "abi_version", "compiler", "cpu_features", "kernels" (name, isa, device, and whether this machine
        runs it), "cuda" (whether a GPU can be used), "cuda_missing" (what is missing, where it cannot), "cuda_runtime" and
        "cuda_architectures" (where CUDA kernels were built), "gpus" (name, compute_capability, memory_bytes,
        multiprocessors), "num_threads", "python", "platform", "numpy", and "frameworks": the array libraries that the
        program has imported, with the route by which their arrays are read. Nothing is imported by this call.

    See Also
    --------
    explain : Shows which kernel a call gets.

    Notes
    -----
    ``python -m attile`` prints this; with ``--json`` as JSON.

    Examples
    --------
    >>> import attile
    >>> config = attile.show_config()
    >>> config["version"] == attile.__version__
    True
    >>> any(kernel["available"] for kernel in config["kernels"])
    True
    """
    config = json.loads(_core.show_config())
    config["python"] = f"{platform.python_implementation()} {platform.python_version()}"
    config["platform"] = f"{sys.platform} {platform.machine()}"
    config["numpy"] = np.__version__
    config["frameworks"] = arrays.frameworks()
    return config


def _installed(*parts: str) -> str:
    # Beside _core: in an editable install the Python files lie elsewhere.
    return str(Path(_core.__file__).resolve().parent.joinpath(*parts))


def get_include() -> str:
    """Return the folder of the C header ``attile/attile.h``.

    Returns
    -------
    str
        The folder, for the include path of a compiler. ``attile.cython_api`` needs it too.

    See Also
    --------
    get_cmake_dir : The same for CMake.

    Examples
    --------
    >>> import attile, os
    >>> os.path.exists(os.path.join(attile.get_include(), "attile", "attile.h"))
    True
    """
    return _installed("include")


def get_cmake_dir() -> str:
    """Return the folder for CMake's ``find_package(attile)``.

    Returns
    -------
    str
        The folder of attileConfig.cmake, the value for ``attile_DIR``.

    See Also
    --------
    get_include : The folder of the C header.

    Examples
    --------
    >>> import attile, os
    >>> os.path.exists(os.path.join(attile.get_cmake_dir(), "attileConfig.cmake"))
    True
    """
    return _installed("lib", "cmake", "attile")


def config_text(config: dict[str, Any]) -> str:
    """Lay out a report of `show_config` for reading.

    Parameters
    ----------
    config : dict
        The report.

    Returns
    -------
    str
        Lines of name and value.
    """
    features = config["cpu_features"]
    if isinstance(features, dict):
        features = " ".join(str(name) for name, value in features.items() if value)
    elif isinstance(features, list):
        features = " ".join(map(str, features))
    lines = [
        ("attile", f"{config['version']} (ABI {config['abi_version']}, {config['compiler']})"),
        ("python", f"{config['python']}, NumPy {config['numpy']}, {config['platform']}"),
        ("cpu", features),
        ("threads", config["num_threads"]),
        ("cuda", f"{config['cuda_runtime']}, {config['cuda_architectures']}" if config["cuda"] else f"no: {config['cuda_missing']}"),
    ]
    lines += [
        ("gpu", f"{i}: {gpu['name']}, {gpu['compute_capability']}, {gpu['memory_bytes'] / 2**30:.0f} GB, {gpu['multiprocessors']} SMs")
        for i, gpu in enumerate(config["gpus"])
    ]
    lines += [
        ("kernel", f"{kernel['name']} ({kernel['isa']}){'' if kernel['available'] else ', not on this machine'}")
        for kernel in config["kernels"]
    ]
    lines += [("arrays", f"{f['name']} {f['version']} by {f['route']}") for f in config["frameworks"]]
    return "\n".join(f"{name:<8} {value}" for name, value in lines)
