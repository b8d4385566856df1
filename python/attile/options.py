"""Values that each library spells in its own way, as plain names. The binding asks here, off the hot path."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

# Most precise first.
PRECISIONS = ("highest", "high", "default")


def precision_name(function: str, value: Any) -> str:
    """Name of a precision.

    Parameters
    ----------
    function : str
        The public function, for the message.
    value : str, `jax.lax.Precision`, None, or a pair of these
        Of a pair, the more precise counts; None is "highest".

    Returns
    -------
    str
        "highest", "high" or "default".
    """
    if value is None:
        return "highest"
    kind = type(value).__name__
    if kind in ("DotAlgorithm", "DotAlgorithmPreset"):
        raise NotImplementedError(
            f"{function}: precision must not be a {kind}: expected None, 'highest', 'high', 'default' or "
            f"jax.lax.Precision, got {value}"
        )
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{function}: precision must be one value or a pair: expected 2 values, got {len(value)}")
        return min((precision_name(function, part) for part in value), key=PRECISIONS.index)
    name = value if isinstance(value, str) else None
    if kind == "Precision" and isinstance(getattr(value, "name", None), str):
        name = value.name.lower()
    if name is None:
        raise TypeError(
            f"{function}: precision has the wrong type: expected a string, jax.lax.Precision or a pair, got {kind}"
        )
    if name not in PRECISIONS:
        raise ValueError(f"{function}: precision is unknown: expected one of {', '.join(map(repr, PRECISIONS))}, got {name!r}")
    return name


def dtype_name(function: str, dtype: Any, argument: str = "logits_dtype") -> str:
    """Name of a dtype.

    Parameters
    ----------
    function : str
        The public function, for the message.
    dtype : str, `numpy.dtype`, scalar type of NumPy, ml_dtypes or JAX, or `torch.dtype`
        Not a Python type: those mean different dtypes in different libraries.
    argument : str
        The argument, for the message.

    Returns
    -------
    str
        NumPy's name of it, such as "bfloat16".
    """
    if isinstance(dtype, str):
        return dtype
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(dtype, torch.dtype):
        return str(dtype).removeprefix("torch.")
    is_scalar_type = isinstance(dtype, type) and issubclass(dtype, np.generic)
    if isinstance(dtype, np.dtype) or is_scalar_type or isinstance(getattr(dtype, "dtype", None), np.dtype):
        return np.dtype(dtype).name
    raise TypeError(
        f"{function}: {argument} has the wrong type: expected a dtype of NumPy, torch or JAX, or its name, got {dtype!r}"
    )
