"""What must hold between calls, whatever the numbers are: on every kernel that this machine runs."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
from attile import FlashAttentionConfig, flash_attention, merge_states
from cases import Case
from machine import own_words, runnable_kernels, takes
from tolerance import Judge, epsilon


def same_bits(a, b):
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


@pytest.fixture
def attend(runnable_kernel):
    """flash_attention on one kernel: (out, lse)."""

    def call(**arguments):
        try:
            return flash_attention(**arguments, return_lse=True, cfg=FlashAttentionConfig(kernel=runnable_kernel))
        except NotImplementedError as error:
            pytest.skip(own_words(runnable_kernel, error))

    return call


def cut_keys(arrays, start, stop):
    """The call with the keys [start, stop) alone."""
    part = arrays | {name: arrays[name][:, start:stop] for name in ("key", "value")}
    for name in ("bias", "attention_mask"):
        if name in arrays and arrays[name].shape[-1] != 1:
            part[name] = arrays[name][..., start:stop]
    if "kv_segment_ids" in arrays:
        part["kv_segment_ids"] = arrays["kv_segment_ids"][:, start:stop]
    return part


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("features", [{}, {"bias": (2, 4, 37, 53)}, {"attention_mask": (2, 1, 37, 53)}, {"segments": 2}, {"keys": "staircase"}, {"options": {"logits_soft_cap": 2.0}}], ids=str)
def test_merge_of_a_split_anywhere_is_the_whole(attend, dtype, features):
    arrays = Case(id="split", dtype=dtype, **features).arrays()
    arrays["key"] = np.nan_to_num(arrays["key"])
    judge = Judge(arrays)
    out, lse = attend(**arrays)
    judge.check(out, lse)
    for split in (0, 1, 15, 16, 17, 31, 32, 40, 52, 53):
        merged_out, merged_lse = merge_states(*attend(**cut_keys(arrays, 0, split)), *attend(**cut_keys(arrays, split, 53)))
        roundings = 3 * epsilon(judge.dtype) * np.abs(arrays["value"].astype(float)).max()  # both parts and the sum are rounded
        assert np.abs(merged_out.astype(float) - judge.out.astype(float)).max() <= 2 * judge.limit_out.max() + roundings
        np.testing.assert_array_equal(np.isneginf(merged_lse), np.isneginf(lse))
        finite = np.isfinite(lse)
        assert np.abs(merged_lse[finite] - judge.lse[finite]).max() <= 4 * judge.limit_lse[finite].max()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_permuting_keys_changes_nothing(attend, dtype, seed):
    case = Case(id="permute", dtype=dtype, bias=(2, 4, 37, 53), attention_mask=(2, 1, 37, 53), segments=2, sinks=(4, 1))
    arrays = case.arrays()
    order = np.random.default_rng(seed).permutation(53)
    judge = Judge(arrays)
    arrays |= {name: np.take(arrays[name], order, 1) for name in ("key", "value", "kv_segment_ids")}
    arrays |= {name: np.take(arrays[name], order, -1) for name in ("bias", "attention_mask")}
    judge.check(*attend(**arrays))


@pytest.mark.parametrize("alignment", ["top_left", "bottom_right"])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_later_key_does_not_change_an_earlier_causal_row(attend, alignment, dtype):
    case = Case(id="later", seqlen_q=40, seqlen_k=70, dtype=dtype, options={"causal": True, "causal_alignment": alignment})
    arrays = case.arrays()
    arrays["key"] = np.nan_to_num(arrays["key"])
    before_out, before_lse = attend(**arrays)
    shift = 30 if alignment == "bottom_right" else 0
    for j in (0, 1, 15, 16, 33, 50, 69):
        changed = arrays | {"key": arrays["key"].copy(), "value": arrays["value"].copy()}
        changed["key"][:, j:] = 9
        changed["value"][:, j:] = -1000
        out, lse = attend(**changed)
        earlier = max(0, j - shift)  # rows that see only keys before j
        same_bits(out[:, :earlier], before_out[:, :earlier])
        same_bits(lse[..., :earlier], before_lse[..., :earlier])
        if earlier < 40:
            assert (out[:, earlier:] != before_out[:, earlier:]).any()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("feature", ["full", "causal", "bias", "mask", "softcap", "packed", "padded"])
def test_constant_v_gives_constant_out(attend, dtype, feature):
    arrays = Case(id="constant", dtype=dtype, **cases.FEATURES[feature]).arrays()
    arrays["value"] = np.full_like(arrays["value"], 1.5)
    out, lse = attend(**arrays)
    seen = np.broadcast_to(np.moveaxis(np.isfinite(lse), -1, -2)[..., None], out.shape)
    assert (np.abs(out[seen].astype(float) - 1.5) <= 1.5 * 8 * max(epsilon(out.dtype), 0 if dtype == "float64" else epsilon(np.float32))).all()
    assert (out[~seen] == 0).all()


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_scaling_v_by_a_power_of_two_scales_out(attend, dtype):
    arrays = Case(id="linear", dtype=dtype).arrays()
    arrays["value"] = np.abs(arrays["value"]) + cases.numpy_dtype(dtype).type(0.25)  # no subnormal in out, which would be rounded
    out, lse = attend(**arrays)
    scaled_out, scaled_lse = attend(**arrays | {"value": arrays["value"] * cases.numpy_dtype(dtype).type(4)})
    same_bits(scaled_out, out * cases.numpy_dtype(dtype).type(4))
    same_bits(scaled_lse, lse)


@pytest.mark.parametrize("case", cases.SMALL + [case for case in cases.EDGE if case.id.startswith("edge-long")], ids=str)
def test_same_bits_over_repeats_and_threads(attend, case, threads):
    arrays = case.arrays()
    threads(1)
    out, lse = attend(**arrays)
    for n in (1, 2, 3, 1):
        threads(n)
        for _ in range(2):
            again_out, again_lse = attend(**arrays)
            same_bits(again_out, out)
            same_bits(again_lse, lse)


def test_calls_from_many_threads_at_once_have_the_same_bits(attend):
    chosen = [big_case(seqlen_q=70, seqlen_k=90, dtype=dtype) for dtype in cases.DTYPES] + [big_case(seqlen_q=1, seqlen_k=3000)] * 2
    arrays = [case.arrays() for case in chosen]
    alone = [attend(**x) for x in arrays]
    with ThreadPoolExecutor(8) as pool:
        for (out, lse), (expected_out, expected_lse) in zip(pool.map(lambda i: attend(**arrays[i % 6]), range(120)), alone * 20, strict=True):
            same_bits(out, expected_out)
            same_bits(lse, expected_lse)


def big_case(**changes):
    """Enough work for several threads."""
    return Case(**{"id": "big", "seqlen_q": 300, "seqlen_k": 600, "heads_q": 8, "head_dim": 64, "head_dim_v": 64} | changes)


@pytest.mark.parametrize("features", [{}, {"options": {"causal": True, "causal_alignment": "bottom_right"}}, {"seqlen_q": 1, "seqlen_k": 9000}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_bits_over_threads_with_work_for_them(attend, dtype, features, threads):
    arrays = big_case(dtype=dtype, **features).arrays()
    threads(1)
    out, lse = attend(**arrays)
    for n in (2, 3, 7):
        threads(n)
        for _ in range(3):
            again_out, again_lse = attend(**arrays)
            same_bits(again_out, out)
            same_bits(again_lse, lse)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("memory", [m for m in cases.MEMORY if m not in ("contiguous", "fused", "v_in_k")])
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(32, 24), (7, 5), (64, 64)])
def test_memory_layout_does_not_change_bits(attend, dtype, memory, head_dim, head_dim_v):
    case = Case(id="layout", dtype=dtype, head_dim=head_dim, head_dim_v=head_dim_v, memory=memory)
    arrays = case.arrays()
    plain = {name: np.array(arrays[name], order="C") for name in ("query", "key", "value")}
    for one, other in zip(attend(**arrays), attend(**plain), strict=True):
        same_bits(one, other)


@pytest.mark.parametrize("names", [("query",), ("key",), ("value",), ("query", "value")])
def test_layouts_may_differ_between_arrays(attend, names):
    arrays = Case(id="mixed").arrays()
    out, lse = attend(**arrays)
    moved = arrays | {name: cases.place(arrays[name], "gaps") for name in names}
    for one, other in zip(attend(**moved), (out, lse), strict=True):
        same_bits(one, other)


def test_batches_heads_and_rows_do_not_meddle(attend):
    """One query alone has the bits that it has among others, up to where a kernel may choose other tiles: then it is as right."""
    arrays = Case(id="alone", seqlen_q=5).arrays()
    judge = Judge(arrays)
    for b, i, h in itertools.product(range(2), range(5), range(4)):
        part = {"query": arrays["query"][b : b + 1, i : i + 1, h : h + 1]}
        part |= {name: arrays[name][b : b + 1, :, h // 2 : h // 2 + 1] for name in ("key", "value")}
        out, _ = attend(**part)
        error = np.abs(out[0, 0, 0] - judge.out[b, i, h].astype(float))
        assert (error <= judge.limit_out[b, i, h]).all()


def test_kernels_agree_where_they_may():
    """Every kernel is right by the judge; here they also see the same masks: exact zeros and infinities agree."""
    for case in cases.SMALL:
        arrays = case.arrays()
        configs = [FlashAttentionConfig(kernel=name) for name in runnable_kernels() if takes(name, **arrays)]
        results = [flash_attention(**arrays, return_lse=True, cfg=config) for config in configs]
        for out, lse in results[1:]:
            np.testing.assert_array_equal(out == 0, results[0][0] == 0)
            np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(results[0][1]))


HALVES = ["float16", "bfloat16"]


def every_number(dtype):
    """All 65,536 numbers of a 16-bit dtype as the values of one key, [128, 1, 1, 512]; subnormals of float32 are left out as 0."""
    numbers = np.arange(2**16, dtype=np.uint16).view(cases.numpy_dtype(dtype)).reshape(128, 1, 1, 512)
    return np.where(np.abs(numbers.astype(np.float32)) < np.finfo(np.float32).tiny, 0, numbers)


@pytest.mark.parametrize("dtype", HALVES)
def test_one_key_gives_its_value_to_the_bit(attend, dtype):
    value = every_number(dtype)
    query = np.ones((128, 3, 1, 4), value.dtype)
    out, _ = attend(query=query, key=query[:, :1], value=value)
    with np.errstate(invalid="ignore"):  # signalling NaN
        np.testing.assert_array_equal(out.astype(np.float32), np.broadcast_to(value, out.shape).astype(np.float32))


@pytest.mark.parametrize("dtype", HALVES)
def test_out_is_rounded_to_the_nearest_even(attend, dtype):
    """The mean of a number and its neighbour lies midway between two numbers."""
    value = every_number(dtype)
    bits = value.view(np.uint16)
    value = np.concatenate([value, np.where((bits & 0x7FFF) < 0x7000, bits + 1, bits).astype(np.uint16).view(value.dtype)], 1)
    query = np.ones((128, 1, 1, 4), value.dtype)
    out, _ = attend(query=query, key=np.ones((128, 2, 1, 4), value.dtype), value=value)
    with np.errstate(all="ignore"):
        expected = value.astype(np.float32).mean(1, keepdims=True).astype(value.dtype)
    same = (out == expected) | (np.isnan(out) & np.isnan(expected)) | (np.abs(expected.astype(np.float32)) < 2 * np.finfo(np.float32).tiny)
    assert same.all()


def test_subnormals_of_the_caller_stay(attend):
    """Calls flush them inside only."""
    attend(**big_case(seqlen_q=70).arrays())
    assert (np.full(64, 1e-40, np.float32) * np.float32(0.5) > 0).all()


@pytest.mark.parametrize("keys", [1, 100, 4097])
def test_equal_keys_are_a_mean(attend, keys):
    rng = np.random.default_rng(0)
    query = rng.standard_normal((1, 3, 2, 16)).astype(np.float32)
    key = np.broadcast_to(rng.standard_normal((1, 1, 1, 16)).astype(np.float32), (1, keys, 1, 16))
    value = rng.standard_normal((1, keys, 1, 8)).astype(np.float32)
    out, lse = attend(query=query, key=key, value=value)
    np.testing.assert_allclose(out, np.broadcast_to(value.astype(float).mean(1, keepdims=True), out.shape), atol=2e-6)
    s = np.einsum("bihd,d->bhi", query.astype(float), key[0, 0, 0].astype(float)) / 4
    np.testing.assert_allclose(lse, s + np.log(keys), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shift", [-1e4, -100.0, 100.0, 1e4])
def test_a_constant_bias_moves_lse_alone(attend, shift):
    arrays = Case(id="shift", dtype="float64").arrays()
    out, lse = attend(**arrays)
    shifted_out, shifted_lse = attend(**arrays, bias=np.float64(shift).reshape(1))
    np.testing.assert_allclose(shifted_out, out, atol=1e-11)
    np.testing.assert_allclose(shifted_lse, lse + shift, rtol=1e-14)


def test_scores_far_apart_pick_one_key(attend):
    for dtype in cases.DTYPES:
        dtype = cases.numpy_dtype(dtype)
        query, key = np.full((1, 3, 1, 1), 1000, dtype), np.arange(-40, 41, dtype=np.float32).astype(dtype).reshape(1, 81, 1, 1)
        value = np.arange(81, dtype=np.float32).astype(dtype).reshape(1, 81, 1, 1)
        out, lse = attend(query=query, key=key, value=value)
        assert (out == 80).all()
        np.testing.assert_allclose(lse, 40_000)
        out, lse = attend(query=-query, key=key, value=value)
        assert (out == 0).all()
        np.testing.assert_allclose(lse, 40_000)
