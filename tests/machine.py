"""What there is to test with: array libraries, kernels, and the seed of random problems."""

import importlib.util
import os

SEED = int(os.environ.get("ATTILE_TEST_SEED", "20261121"))
LIBRARIES = [name for name in ("numpy", "torch", "jax") if importlib.util.find_spec(name)]


def kernel_rows():
    """The CPU's rows of attile's kernel table: dicts with name, isa, device, available."""
    import attile

    return [row for row in attile.show_config()["kernels"] if row["device"] == "cpu"]


def runnable_kernels():
    """The names of the kernels that this CPU runs."""
    return [row["name"] for row in kernel_rows() if row["available"]]
