"""A good call of flash_attention for tests that change one thing, and the comparison of results of any library."""

import cases
import numpy as np

B, TQ, TK, HQ, HK, D, DV = 2, 5, 7, 4, 2, 16, 8
SHAPES = {"query": (B, TQ, HQ, D), "key": (B, TK, HK, D), "value": (B, TK, HK, DV)}
PATTERN = np.float32(-12345.5)

rng = np.random.default_rng(20261121)


def normal(*shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def good(dtype="float32", seed=0):
    """query, key and value; the same for the same seed."""
    numbers = np.random.default_rng(seed)
    return {name: numbers.standard_normal(shape).astype(cases.numpy_dtype(dtype)) for name, shape in SHAPES.items()}


def sentinel(shape=(B, TQ, HQ, DV), dtype=np.float32):
    """An output full of a pattern that no call computes."""
    return np.full(shape, PATTERN, dtype)


def cu(*entries, dtype=np.int32):
    return np.array(entries, dtype=dtype)


def packed(**more):
    """A good call of rank 3 with two sequences, changed."""
    arrays = {"query": normal(9, HQ, D), "key": normal(11, HK, D), "value": normal(11, HK, DV), "out": sentinel((9, HQ, DV))}
    return {**arrays, "cum_seqlens_q": cu(0, 4, 9), "cum_seqlens_k": cu(0, 5, 11), **more}


def bits(array):
    """The bytes of an array of any library, and what says how to read them."""
    array = cases.to_numpy(array)
    return array.dtype.name, array.shape, array.tobytes()


def same(got, expected):
    return bits(got) == bits(expected)


def read_only(array):
    """A copy that cannot be written."""
    array = array.copy()
    array.flags.writeable = False
    return array
