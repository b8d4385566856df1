"""Without a GPU: CUDA is opened for CUDA arrays only, and what is missing has a name."""

import attile
import pytest
from calls import good
from gpu import MISSING
from producers import OnCuda, needs_versions
from run_python import run_python

without_gpu = pytest.mark.skipif(MISSING is None, reason="there is a GPU")


def test_cpu_calls_do_not_open_cuda():
    code = """
import attile, numpy as np, pathlib
x = np.ones((1, 2, 1, 8), np.float32)
attile.flash_attention(x, x, x)
attile.explain(attile.flash_attention, x, x, x)
print([line.split()[-1] for line in pathlib.Path("/proc/self/maps").read_text().splitlines() if "libcuda" in line or "libattile_cuda" in line])
"""
    assert run_python(code).strip() == "[]"


@without_gpu
@needs_versions
def test_cuda_arrays_name_what_is_missing():
    arrays = {name: OnCuda(array) for name, array in good().items()}
    expected = RuntimeError if "cuda_runtime" in attile.show_config() else NotImplementedError
    for _ in range(2):
        with pytest.raises(expected) as caught:
            attile.flash_attention(**arrays)
        text = str(caught.value)
        assert text.startswith("flash_attention: the arrays are on cuda:0, but ")
        if expected is RuntimeError:
            assert "needs NVIDIA driver R5" in text
        else:
            assert "this build of attile has no CUDA kernels" in text
            assert "libattile_cuda.so" in text
    with pytest.raises(ValueError, match=r"^flash_attention: platform must hold the arrays: expected cpu arrays"):
        attile.flash_attention(**arrays, platform="cpu")
    attile.flash_attention(**good())


@without_gpu
def test_show_config_says_what_is_missing():
    config = attile.show_config()
    assert config["cuda"] is False
    assert config["gpus"] == []
    assert config["cuda_missing"]
    assert not any(row["available"] for row in config["kernels"] if row["device"] == "cuda")
