"""merge_states: two disjoint sets of keys, joined, against the reference and against attention over all keys at once."""

import cases
import numpy as np
import pytest
import reference
from attile import flash_attention, merge_states
from tolerance import epsilon, tiny

SHAPE = (2, 5, 3, 7)


def states(dtype, seed=0, shape=SHAPE, spread=3.0):
    rng = np.random.default_rng(seed)
    dtype = cases.numpy_dtype(dtype)
    lse_dtype = np.float64 if dtype == np.float64 else np.float32
    outs = [rng.standard_normal(shape).astype(dtype) for _ in range(2)]
    lses = [(spread * rng.standard_normal((shape[0], shape[2], shape[1]))).astype(lse_dtype) for _ in range(2)]
    return outs[0], lses[0], outs[1], lses[1]


def check(got, arguments):
    out, lse = got
    expected_out, expected_lse = reference.merge_states(*arguments)
    dtype, lse_dtype = arguments[0].dtype, arguments[1].dtype
    assert (out.dtype, lse.dtype) == (dtype, lse_dtype)
    eps = epsilon(lse_dtype)
    # weights are exp(lse_a - lse): a rounding of either costs as much relative to what is weighed
    lses = [np.where(np.isfinite(lse), np.abs(lse), 0) for lse in (arguments[1], arguments[3])]
    size = 4 + np.swapaxes(lses[0] + lses[1], 1, 2)[..., None]
    reach = np.maximum(*(np.where(np.isfinite(x.astype(float)), np.abs(x.astype(float)), 0) for x in (arguments[0], arguments[2])))
    assert (np.abs(out.astype(float) - expected_out) <= epsilon(dtype) / 2 * np.abs(expected_out) * 1.01 + eps * size * reach + tiny(dtype)).all()
    assert (np.isneginf(lse) == np.isneginf(expected_lse)).all()
    finite = np.isfinite(expected_lse)
    assert (np.abs(lse[finite] - expected_lse[finite]) <= 2 * eps * (1 + np.abs(expected_lse[finite]))).all()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("spread", [0.0, 3.0, 60.0])
@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 1), (1, 300, 2, 64), (3, 2, 128, 512), (0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4)])
def test_matches_reference(dtype, spread, shape):
    arguments = states(dtype, shape=shape, spread=spread)
    check(merge_states(*arguments), arguments)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("empty", [-np.inf, np.inf])
def test_an_empty_side_is_ignored_whatever_it_holds(dtype, empty):
    out_a, lse_a, out_b, lse_b = states(dtype)
    lse_b[:, 1] = empty
    out_b[:, :, 1] = np.nan
    out, lse = merge_states(out_a, lse_a, out_b, lse_b)
    np.testing.assert_array_equal(out[:, :, 1], out_a[:, :, 1])
    np.testing.assert_array_equal(lse[:, 1], lse_a[:, 1])
    swapped = merge_states(out_b, lse_b, out_a, lse_a)
    np.testing.assert_array_equal(swapped[0][:, :, 1], out_a[:, :, 1])
    check((out, lse), (out_a, lse_a, out_b, lse_b))


@pytest.mark.parametrize("empty_a", [-np.inf, np.inf])
@pytest.mark.parametrize("empty_b", [-np.inf, np.inf])
def test_two_empty_sides_are_empty(empty_a, empty_b):
    out_a, lse_a, out_b, lse_b = states("float32")
    out, lse = merge_states(np.full_like(out_a, np.nan), np.full_like(lse_a, empty_a), np.full_like(out_b, 7), np.full_like(lse_b, empty_b))
    assert (out == 0).all()
    assert (lse == -np.inf).all()


def test_nan_stays_in_its_row():
    out_a, lse_a, out_b, lse_b = states("float32")
    lse_a[1, 2, 3] = np.nan
    out, lse = merge_states(out_a, lse_a, out_b, lse_b)
    wrong_out, wrong_lse = np.isnan(out), np.isnan(lse)
    assert wrong_out[1, 3, 2].all()
    assert wrong_lse[1, 2, 3]
    assert wrong_out.sum() == SHAPE[-1]
    assert wrong_lse.sum() == 1


def test_order_does_not_matter():
    arguments = states("float32")
    one, other = merge_states(*arguments), merge_states(*arguments[2:], *arguments[:2])
    np.testing.assert_allclose(one[0], other[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(one[1], other[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_every_library(dtype, library):
    arguments = states(dtype)
    given = [cases.convert(x, library) for x in arguments]
    out, lse = merge_states(*given)
    assert type(out) is type(lse) is type(given[0])
    check((cases.to_numpy(out), cases.to_numpy(lse)), arguments)


@pytest.mark.parametrize("memory", ["heads_first", "gaps", "offset", "bytes", "reversed", "readonly"])
def test_any_strides(memory):
    out_a, lse_a, out_b, lse_b = states("float32")
    check(merge_states(cases.place(out_a, memory), lse_a, cases.place(out_b, memory), lse_b), (out_a, lse_a, out_b, lse_b))
    transposed = [np.moveaxis(np.ascontiguousarray(np.moveaxis(lse, 1, 2)), 2, 1) for lse in (lse_a, lse_b)]
    check(merge_states(out_a, transposed[0], out_b, transposed[1]), (out_a, lse_a, out_b, lse_b))


@pytest.mark.parametrize("split", [0, 1, 17, 52, 53])
def test_a_split_of_the_keys_is_the_whole(split):
    arrays = cases.Case(id="split").arrays()
    key, value = arrays["key"], arrays["value"]
    sinks = np.random.default_rng(1).standard_normal((4, 2)).astype(np.float32)
    sides = flash_attention(arrays["query"], key[:, :split], value[:, :split], return_lse=True) + flash_attention(
        arrays["query"], key[:, split:], value[:, split:], softmax_aux=sinks, return_lse=True
    )
    out, lse = merge_states(*sides)
    whole_out, whole_lse = reference.flash_attention(**arrays, softmax_aux=sinks, return_lse=True)
    np.testing.assert_allclose(out, whole_out, atol=2e-6)
    np.testing.assert_allclose(lse, whole_lse, atol=2e-6)
