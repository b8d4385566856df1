"""What there is to test with: array libraries, kernels, and the seed of random problems."""

import importlib.util
import os

SEED = int(os.environ.get("ATTILE_TEST_SEED", "20261121"))
LIBRARIES = [name for name in ("numpy", "torch", "jax") if importlib.util.find_spec(name)]


def jax_64_bit():
    """The context in which JAX makes float64 and int64 arrays."""
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # before jax 0.8

    return enable_x64()


def kernel_rows(function="flash_attention"):
    """The CPU's kernels of a function: dicts with name, isa, device, function, available."""
    import attile

    return [row for row in attile.show_config()["kernels"] if row["device"] == "cpu" and row["function"] == function]


def runnable_kernels(function="flash_attention"):
    """The names of the function's kernels that this CPU runs."""
    return [row["name"] for row in kernel_rows(function) if row["available"]]


def own_words(kernel, error):
    """Why the kernel refused, out of an error that lists every kernel. Another message is no reason to skip: it is raised again."""
    for line in str(error).splitlines()[1:]:
        name, _, reason = line.strip().partition(": ")
        if name == kernel and reason:
            return reason
    raise error


def takes(kernel, **call):
    """Whether the kernel takes this call of flash_attention; if not, it has said why."""
    from attile import FlashAttentionConfig, explain, flash_attention

    try:
        explain(flash_attention, **call, cfg=FlashAttentionConfig(kernel=kernel))
    except NotImplementedError as error:
        return not own_words(kernel, error)
    return True
