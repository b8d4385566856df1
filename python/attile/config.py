"""What this installation is made of."""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import numpy as np

from attile import _core, arrays


def show_config() -> dict[str, Any]:
    """Report the versions, CPU features, kernels, threads and array libraries.

    Returns
    -------
    dict
        "version", "abi_version", "compiler", "cpu_features", "kernels" (name, isa, device, and whether this machine
        runs it), "cuda", "num_threads", "python", "platform", "numpy", and "frameworks": the array libraries that the
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
        ("cuda", "yes" if config["cuda"] else "no"),
    ]
    lines += [
        ("kernel", f"{kernel['name']} ({kernel['isa']}){'' if kernel['available'] else ', not on this machine'}")
        for kernel in config["kernels"]
    ]
    lines += [("arrays", f"{f['name']} {f['version']} by {f['route']}") for f in config["frameworks"]]
    return "\n".join(f"{name:<8} {value}" for name, value in lines)
