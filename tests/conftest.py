"""What tests share: the array libraries that are installed, the kernels that this machine runs, hypothesis profiles, markers.

    pytest -m "not slow"                                   what CI runs
    pytest -m gpu                                          what needs a GPU; skipped where there is none
    pytest --hypothesis-profile=deep tests/test_hypothesis.py   10,000 random problems
    ATTILE_TEST_SEED=7 pytest ...                           other random problems
"""

import os

import gpu
import pytest
from machine import LIBRARIES, SEED, kernel_rows, runnable_kernels, takes

try:
    import hypothesis
except ModuleNotFoundError:  # test_hypothesis.py is skipped then
    hypothesis = None

if hypothesis:
    common = {
        "deadline": None,
        "database": None,  # a seed gives the same problems everywhere
        "print_blob": True,
        "suppress_health_check": [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
    }
    hypothesis.settings.register_profile("dev", max_examples=100, **common)
    hypothesis.settings.register_profile("ci", max_examples=500, **common)
    hypothesis.settings.register_profile("deep", max_examples=10_000, **common)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes or gigabytes; deselect with -m 'not slow'")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.addinivalue_line("markers", "aarch64: builds for aarch64 and runs under qemu-user")


def pytest_collection_modifyitems(items):
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and gpu.MISSING:
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {gpu.MISSING}"))


def pytest_report_header():
    return f"attile: random problems from ATTILE_TEST_SEED={SEED}; array libraries: {', '.join(LIBRARIES)}"


def pytest_generate_tests(metafunc):
    """`kernel` is every row of the table (this CPU may lack some: they say so), `runnable_kernel` those that this CPU runs,
    `cuda_kernel` those of the CUDA library, `gpu_library` the array libraries with GPU arrays."""
    if "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", [row["name"] for row in kernel_rows()])
    if "runnable_kernel" in metafunc.fixturenames:
        metafunc.parametrize("runnable_kernel", runnable_kernels())
    if "cuda_kernel" in metafunc.fixturenames:
        metafunc.parametrize("cuda_kernel", gpu.KERNELS)
    if "gpu_library" in metafunc.fixturenames:
        metafunc.parametrize("gpu_library", gpu.LIBRARIES)


@pytest.fixture(params=["numpy", "torch", "jax"])
def library(request):
    if request.param not in LIBRARIES:
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture
def on_every_kernel(runnable_kernel, monkeypatch):
    """The test once on each kernel. One that leaves a dtype or many query rows to others is tested by test_forward.py alone."""
    import cases
    import numpy as np

    for dtype in cases.DTYPES:
        x = np.ones((1, 40, 1, 4), cases.numpy_dtype(dtype))
        if not takes(runnable_kernel, query=x, key=x, value=x):
            pytest.skip(f"{runnable_kernel} does not take {dtype}")
    monkeypatch.setenv("ATTILE_KERNEL", runnable_kernel)


@pytest.fixture
def threads():
    """A function that sets the number of threads for this test."""
    import attile

    before = attile.get_num_threads()
    yield attile.set_num_threads
    attile.set_num_threads(before)
