"""BatchMLAPagedAttentionWrapper and append_paged_mla_kv_cache: against mla_decode, flashinfer's example, errors by message."""

import attile.mla
import cases
import mla_cases
import numpy as np
import pytest
from attile import mla_decode
from attile.mla import BatchMLAPagedAttentionWrapper, append_paged_mla_kv_cache
from machine import jax_64_bit
from reference_mla import expanded_decode
from tolerance import Judge

VALUE, TYPE, NOT = ValueError, TypeError, NotImplementedError
PLAN = ("num_heads", "head_dim_ckv", "head_dim_kpe", "page_size", "causal", "sm_scale", "q_data_type", "kv_data_type")


def flat_pages(table, lens, page_size, extra=()):
    """page_table as kv_indptr and kv_indices."""
    counts = [-(-int(n) // page_size) for n in lens]
    pages = [table[b, :n] for b, n in enumerate(counts)]
    return np.cumsum([0, *counts]).astype(np.int32), np.concatenate([*pages, np.array(extra, table.dtype)]).astype(np.int32)


def planned(case, wrapper=None, **changes):
    """A wrapper with the case planned, and the arrays of its run."""
    call = case.arrays()
    size = case.page_size
    kv_indptr, kv_indices = flat_pages(call["page_table"], call["kv_lens"], size, extra=(-1, 10**6))
    wrapper = wrapper or BatchMLAPagedAttentionWrapper()
    qo_indptr = np.arange(case.batch + 1, dtype=np.int32) * case.seqlen_q
    causal = case.options.get("causal", True)
    settings = (case.heads, case.latent, case.rope, size, causal, call["softmax_scale"], case.dtype, case.dtype)
    wrapper.plan(qo_indptr, kv_indptr, kv_indices, call["kv_lens"], **(dict(zip(PLAN, settings, strict=True)) | changes))
    arrays = {name: None if call[name] is None else call[name].reshape(-1, *call[name].shape[2:]) for name in ("q_nope", "q_pe")}
    return wrapper, arrays | {"ckv_cache": call["ckv"], "kpe_cache": call["kpe"]}


CASE = mla_cases.MlaCase(id="wrapper", batch=3, seqlen_q=2, heads=5, page_size=4, kv_lens=(30, 0, 9))
CASES = [CASE] + mla_cases.variants(
    CASE,
    {
        "bfloat16": {"dtype": "bfloat16", "joined": True},
        "float16": {"dtype": "float16"},
        "float64": {"dtype": "float64"},
        "head_rope": {"head_rope": True, "page_size": 1},
        "no_rope": {"rope": 0},
        "full": {"options": {"causal": False}},
        "one_token": {"seqlen_q": 1, "page_size": 64},
    },
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_wrapper_has_the_bits_of_the_function(case):
    wrapper, arrays = planned(case)
    out, lse = wrapper.run(**arrays, return_lse=True, return_lse_base_on_e=True)
    expected, expected_lse = mla_decode(**case.arrays(), return_lse=True)
    assert out.shape == arrays["q_nope"].shape
    assert out.tobytes() == expected.tobytes()
    assert lse.shape == out.shape[:2]
    np.testing.assert_array_equal(lse, np.moveaxis(expected_lse, 1, 2).reshape(lse.shape))
    _, base_2 = wrapper.run(**arrays, return_lse=True)
    np.testing.assert_allclose(base_2, lse / np.log(2), rtol=1e-6)
    assert wrapper.run(**arrays).tobytes() == out.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_varying_query_lengths(dtype):
    """Sequences of 0 to 7 queries, one call of the reference each; rows behind the last give 0."""
    lens_q, lens_k, size, heads = (3, 0, 7, 1), (20, 5, 7, 0), 4, 3
    case = mla_cases.MlaCase(id="pages", batch=4, kv_lens=lens_k, page_size=size, heads=heads, dtype=dtype)
    call = case.arrays()
    total = sum(lens_q) + 2
    rng = np.random.default_rng(5)
    q_nope, q_pe = (rng.standard_normal((total, heads, n)).astype(call["ckv"].dtype) for n in (64, 8))
    q_nope[-2:] = np.nan
    kv_indptr, kv_indices = flat_pages(call["page_table"], lens_k, size)
    qo_indptr = np.cumsum((0, *lens_q))
    wrapper = BatchMLAPagedAttentionWrapper()
    wrapper.plan(qo_indptr, kv_indptr, kv_indices, np.array(lens_k), heads, 64, 8, size, True, 0.1, dtype, dtype)
    out, lse = wrapper.run(q_nope, q_pe, call["ckv"], call["kpe"], return_lse=True, return_lse_base_on_e=True)
    for b in range(4):
        rows = slice(qo_indptr[b], qo_indptr[b + 1])
        one = {"q_nope": q_nope[None, rows], "q_pe": q_pe[None, rows], "ckv": call["ckv"], "kpe": call["kpe"], "softmax_scale": 0.1}
        one |= {"page_table": call["page_table"][b : b + 1], "kv_lens": call["kv_lens"][b : b + 1]}
        Judge(expanded_decode(**one)).check(out[None, rows], lse[rows].T[None])
    assert not out[-2:].any()
    assert np.isneginf(lse[-2:]).all()


def test_a_plan_is_a_copy():
    lens = np.array([30, 0, 9])
    call = CASE.arrays()
    kv_indptr, kv_indices = flat_pages(call["page_table"], lens, 4)
    qo_indptr = np.array([0, 2, 4, 6])
    wrapper = BatchMLAPagedAttentionWrapper()
    wrapper.plan(qo_indptr, kv_indptr, kv_indices, lens, 5, 64, 8, 4, True, call["softmax_scale"], np.float32, np.dtype("float32"))
    _, arrays = planned(CASE)
    before = wrapper.run(**arrays)
    for array in (qo_indptr, kv_indptr, kv_indices, lens):
        array[:] = 99
    assert wrapper.run(**arrays).tobytes() == before.tobytes()


def test_out_and_lse_are_written_in_place():
    wrapper, arrays = planned(CASE)
    expected, expected_lse = wrapper.run(**arrays, return_lse=True)
    out, lse = np.full_like(expected, np.nan), np.full_like(expected_lse, np.nan)
    assert wrapper.run(**arrays, out=out, lse=lse) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(lse, expected_lse)
    got = wrapper.run(**arrays, out=out, lse=lse, return_lse=True)
    assert got[0] is out
    assert got[1] is lse


def flashinfer_example(batch, kv_len, heads):
    """The example of flashinfer's documentation of BatchMLAPagedAttentionWrapper."""
    rng = np.random.default_rng(0)
    latent, rope, page_size = 512, 64, 1
    bf16 = cases.numpy_dtype("bfloat16")
    scale = 1 / ((128 + 64) ** 0.5)
    q_indptr = np.arange(0, batch + 1, dtype=np.int32)
    kv_lens = np.full(batch, kv_len, np.int32)
    kv_indptr = np.arange(0, batch + 1, dtype=np.int32) * kv_len
    kv_indices = np.arange(0, batch * kv_len, dtype=np.int32)
    q_nope, q_pe = (rng.standard_normal((batch, heads, n), np.float32).astype(bf16) for n in (latent, rope))
    ckv, kpe = (rng.standard_normal((batch * kv_len, 1, n), np.float32).astype(bf16) for n in (latent, rope))
    wrapper = BatchMLAPagedAttentionWrapper(np.empty(128 * 1024 * 1024, np.int8), backend="fa2")
    wrapper.plan(q_indptr, kv_indptr, kv_indices, kv_lens, heads, latent, rope, page_size, False, scale, bf16, bf16)
    out = wrapper.run(q_nope, q_pe, ckv, kpe, return_lse=False)
    assert out.shape == (batch, heads, latent)
    for b in (0, batch - 1):
        rows = slice(b * kv_len, (b + 1) * kv_len)
        call = {"q_nope": q_nope[b, None, None], "q_pe": q_pe[b, None, None], "ckv": ckv[None, rows, 0], "kpe": kpe[None, rows, 0]}
        Judge(expanded_decode(**call, softmax_scale=scale, causal=False)).check(out[b, None, None])


def test_flashinfer_example_of_two_sequences():
    flashinfer_example(2, 199, 128)


@pytest.mark.slow
def test_flashinfer_example():
    flashinfer_example(114, 999, 128)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_library(library, dtype):
    case = mla_cases.MlaCase(id="library", batch=3, heads=5, page_size=4, kv_lens=(30, 0, 9), dtype=dtype)
    wrapper, arrays = planned(case)
    expected, expected_lse = wrapper.run(**arrays, return_lse=True)
    arrays = {name: cases.convert(x, library) for name, x in arrays.items()}
    names = {"numpy": dtype, "torch": dtype, "jax": dtype}
    if library == "torch":
        import torch

        names["torch"] = getattr(torch, dtype)
    if library == "jax":
        import jax

        names["jax"] = getattr(jax.numpy, dtype)
    wrapper, _ = planned(case, q_data_type=names[library], kv_data_type=names[library])
    out, lse = wrapper.run(**arrays, return_lse=True)
    assert type(out) is type(lse) is type(arrays["q_nope"])
    assert cases.to_numpy(out).tobytes() == expected.tobytes()
    np.testing.assert_array_equal(cases.to_numpy(lse), expected_lse)


def test_index_arrays_of_torch():
    torch = pytest.importorskip("torch")
    wrapper, arrays = planned(CASE)
    call = CASE.arrays()
    kv_indptr, kv_indices = flat_pages(call["page_table"], call["kv_lens"], 4)
    index = [torch.from_numpy(x.astype(np.int32)) for x in (np.array([0, 2, 4, 6]), kv_indptr, kv_indices, call["kv_lens"])]
    other = BatchMLAPagedAttentionWrapper()
    other.plan(*index, 5, 64, 8, 4, True, call["softmax_scale"], torch.float32, torch.float32)
    assert other.run(**arrays).tobytes() == wrapper.run(**arrays).tobytes()


def test_fixed_buffers():
    """With use_cuda_graph the buffers are required, the batch size is theirs, and plan writes into them."""
    buffers = {"qo_indptr": np.zeros(4, np.int32), "kv_indptr": np.zeros(4, np.int32), "kv_indices": np.zeros(20, np.int32), "kv_len_arr": np.zeros(3, np.int32)}
    wrapper, arrays = planned(CASE, BatchMLAPagedAttentionWrapper(None, True, **buffers))
    plain, _ = planned(CASE)
    assert wrapper.run(**arrays).tobytes() == plain.run(**arrays).tobytes()
    assert buffers["kv_len_arr"].tolist() == [30, 0, 9]
    assert buffers["qo_indptr"].tolist() == [0, 2, 4, 6]
    other = mla_cases.MlaCase(id="other", batch=2, seqlen_q=2, heads=5, page_size=4, kv_lens=(30, 9))
    with pytest.raises(ValueError, match=r"^BatchMLAPagedAttentionWrapper.plan: qo_indptr.shape\[0\] is fixed with use_cuda_graph: expected 4, got 3$"):
        planned(other, wrapper)
    with pytest.raises(ValueError, match=r"^BatchMLAPagedAttentionWrapper: kv_indices is required with use_cuda_graph: expected an array, got None$"):
        BatchMLAPagedAttentionWrapper(None, True, **(buffers | {"kv_indices": None}))
    small = BatchMLAPagedAttentionWrapper(None, True, **(buffers | {"kv_indices": np.zeros(3, np.int32)}))
    with pytest.raises(ValueError, match=r"kv_indices must fit the buffer: expected at most 3 entries, got 13$"):
        planned(CASE, small)


def test_a_small_workspace_says_what_is_needed():
    wrapper, arrays = planned(CASE, BatchMLAPagedAttentionWrapper(np.zeros(16, np.uint8)))
    with pytest.raises(ValueError, match=r"float_workspace_buffer is too small: expected at least \d+ bytes, got 16$") as error:
        wrapper.run(**arrays)
    needed = int(str(error.value).split("at least ")[1].split()[0])
    expected = planned(CASE)[0].run(**arrays)
    wrapper, _ = planned(CASE, BatchMLAPagedAttentionWrapper(np.zeros(needed, np.uint8)))
    assert wrapper.run(**arrays).tobytes() == expected.tobytes()


def test_run_before_plan():
    with pytest.raises(RuntimeError, match=r"^BatchMLAPagedAttentionWrapper.run: plan\(\) must be called first"):
        BatchMLAPagedAttentionWrapper().run(None, None, None, None)


BAD_PLANS = [
    ({"qo_indptr": np.array([1, 2])}, VALUE, "qo_indptr[0] must be zero: expected 0, got 1"),
    ({"qo_indptr": np.array([0, 2, 1, 3])}, VALUE, "qo_indptr[2] must not decrease: expected at least 2, got 1"),
    ({"kv_indptr": np.array([0, 2])}, VALUE, "kv_indptr.shape[0] must equal qo_indptr.shape[0]: expected 4, got 2"),
    ({"kv_indices": np.array([1, 2])}, VALUE, "kv_indptr[-1] must be at most kv_indices.shape[0]: expected at most 2, got 4"),
    ({"kv_indices": np.array([1, -2, 0, 0])}, VALUE, "kv_indices[1] is out of range: expected 0 or more, got -2"),
    ({"kv_indices": np.zeros(4)}, TYPE, "kv_indices must hold indices: expected int32 or int64, got float64"),
    ({"kv_len_arr": np.array([9, 0, 1])}, VALUE, "kv_len_arr[0] is out of range: expected 0 to 8, got 9"),
    ({"kv_len_arr": np.array([1])}, VALUE, "kv_len_arr.shape[0] must be the batch size, qo_indptr.shape[0] - 1: expected 3, got 1"),
    ({"head_dim_ckv": 20}, VALUE, "head_dim_ckv is out of range: expected a multiple of 8 from 8 to 512, got 20"),
    ({"head_dim_kpe": 136}, VALUE, "head_dim_kpe is out of range: expected a multiple of 8 from 8 to 128, got 136"),
    ({"page_size": 0}, VALUE, "page_size is out of range: expected 1 or more, got 0"),
    ({"num_heads": -1}, VALUE, "num_heads must not be negative: expected 0 or more, got -1"),
    ({"sm_scale": float("inf")}, VALUE, "sm_scale must be finite: expected a finite number, got inf"),
    ({"q_data_type": "int32"}, TYPE, "q_data_type is unsupported: expected float64, float32, float16 or bfloat16, got int32"),
    ({"q_data_type": 3}, TYPE, "q_data_type has the wrong type: expected a dtype of NumPy, torch or JAX, or its name, got 3"),
    ({"kv_data_type": "float16"}, TYPE, "kv_data_type must equal q_data_type: expected float32, got float16"),
    ({"kv_data_type": "float8_e4m3fn"}, NOT, "kv_data_type float8_e4m3 is for mla_decode, which takes its scale"),
]


@pytest.mark.parametrize(("change", "exception", "message"), BAD_PLANS, ids=[message[:50] for _, _, message in BAD_PLANS])
def test_bad_plans(change, exception, message):
    good = {"qo_indptr": np.array([0, 1, 2, 3]), "kv_indptr": np.array([0, 2, 2, 4]), "kv_indices": np.array([3, 0, 1, 2])}
    good |= {"kv_len_arr": np.array([8, 0, 5]), "num_heads": 4, "head_dim_ckv": 16, "head_dim_kpe": 8, "page_size": 4, "causal": True}
    good |= {"sm_scale": 1.0, "q_data_type": "float32", "kv_data_type": "float32"}
    with pytest.raises(exception) as error:
        BatchMLAPagedAttentionWrapper().plan(**(good | change))
    assert str(error.value) == f"BatchMLAPagedAttentionWrapper.plan: {message}"


def bad_runs():
    z = np.zeros
    yield {"q_nope": z((6, 4, 64), np.float32), "q_pe": z((6, 4, 8), np.float32)}, VALUE, "q_nope.shape[1] must be plan's num_heads: expected 5, got 4"
    yield {"q_nope": z((5, 5, 64), np.float32), "q_pe": z((5, 5, 8), np.float32)}, VALUE, "q_nope.shape[0] must be at least qo_indptr[-1]: expected at least 6, got 5"
    yield {"ckv_cache": z((2, 4, 64), np.float32), "kpe_cache": z((2, 4, 8), np.float32)}, VALUE, "ckv_cache.shape[0] must exceed every page of kv_indices"
    yield {"ckv_cache": z((20, 5, 64), np.float32), "kpe_cache": z((20, 5, 8), np.float32)}, VALUE, "ckv_cache.shape[1] must be plan's page_size: expected 4, got 5"
    yield {"q_pe": None, "kpe_cache": None}, VALUE, "q_pe.shape[2] must be plan's head_dim_kpe: expected 8, got 0"
    yield {"out": z((6, 5, 65), np.float32)}, VALUE, "out.shape is wrong: expected (6, 5, 64), got (6, 5, 65)"
    yield {"lse": z((5, 6), np.float32)}, VALUE, "lse.shape is wrong: expected (6, 5), got (5, 6)"


@pytest.mark.parametrize(("change", "exception", "message"), list(bad_runs()))
def test_bad_runs(change, exception, message):
    wrapper, arrays = planned(CASE)
    with pytest.raises(exception) as error:
        wrapper.run(**(arrays | change))
    assert str(error.value).startswith(f"BatchMLAPagedAttentionWrapper.run: {message}")


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"^BatchMLAPagedAttentionWrapper: backend is unknown: expected one of 'auto', 'fa2', 'fa3', 'cutlass', got 'fa9'$"):
        BatchMLAPagedAttentionWrapper(backend="fa9")


# ---- append ----------------------------------------------------------------------------------------------------------------


def append_problem(dtype="float32", joined=False):
    """Tokens for three sequences in random pages, and the caches that they give."""
    rng = np.random.default_rng(1)
    size, lens, new = 3, (7, 1, 6), (2, 1, 3)  # lengths with the new tokens; how many of them are new
    counts = [-(-n // size) for n in lens]
    indptr, pages = np.cumsum([0, *counts]), rng.permutation(9)[: sum(counts)]
    last = np.array([(n - 1) % size + 1 for n in lens])
    both = np.full((9, size, 24), 7, cases.numpy_dtype(dtype))
    ckv, kpe = (both[..., :16], both[..., 16:]) if joined else (both[..., :16].copy(), both[..., 16:].copy())
    batch = np.repeat(np.arange(3), new)
    positions = np.concatenate([np.arange(n - m, n) for n, m in zip(lens, new, strict=True)])
    append_ckv, append_kpe = (rng.standard_normal((6, n)).astype(cases.numpy_dtype(dtype)) for n in (16, 8))
    expected = ckv.copy(), kpe.copy()
    for t, (b, position) in enumerate(zip(batch, positions, strict=True)):
        page = pages[indptr[b] + position // size]
        expected[0][page, position % size], expected[1][page, position % size] = append_ckv[t], append_kpe[t]
    return (append_ckv, append_kpe, batch, positions, ckv, kpe, pages, indptr, last), expected


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_append(dtype, joined):
    arguments, expected = append_problem(dtype, joined)
    assert append_paged_mla_kv_cache(*arguments) is None
    assert arguments[4].tobytes() == expected[0].tobytes()
    assert arguments[5].tobytes() == expected[1].tobytes()


def test_append_with_torch():
    pytest.importorskip("torch")
    arguments, expected = append_problem()
    tensors = [cases.convert(x, "torch") for x in arguments]
    version = tensors[4]._version
    assert append_paged_mla_kv_cache(*tensors) is None
    np.testing.assert_array_equal(tensors[4].numpy(), expected[0])
    np.testing.assert_array_equal(tensors[5].numpy(), expected[1])
    assert tensors[4]._version > version


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_append_with_jax_gives_new_caches(dtype):
    jax = pytest.importorskip("jax")
    arguments, expected = append_problem(dtype)
    with jax_64_bit():
        arrays = [jax.numpy.asarray(x) for x in arguments]
    ckv, kpe = append_paged_mla_kv_cache(*arrays)
    assert isinstance(ckv, jax.Array)
    assert np.asarray(ckv).tobytes() == expected[0].tobytes()
    assert np.asarray(kpe).tobytes() == expected[1].tobytes()
    np.testing.assert_array_equal(np.asarray(arrays[4]), arguments[4])


def test_appended_tokens_are_attended():
    """A cache filled by append gives what the whole cache gives."""
    case = mla_cases.MlaCase(id="append", batch=2, kv_lens=(11, 6), page_size=4, heads=3)
    call = case.arrays()
    expected = mla_decode(**call)
    kv_indptr, kv_indices = flat_pages(call["page_table"], case.kv_lens, 4)
    batch = np.repeat([0, 1], case.kv_lens)
    positions = np.concatenate([np.arange(n) for n in case.kv_lens])
    place = kv_indices[kv_indptr[batch] + positions // 4], positions % 4
    empty = {name: np.full_like(call[name], np.nan) for name in ("ckv", "kpe")}
    append_paged_mla_kv_cache(
        call["ckv"][place], call["kpe"][place], batch, positions, empty["ckv"], empty["kpe"], kv_indices, kv_indptr, np.array([3, 2])
    )
    assert mla_decode(**(call | empty)).tobytes() == expected.tobytes()


APPEND = ("append_ckv", "append_kpe", "batch_indices", "positions", "ckv_cache", "kpe_cache", "kv_indices", "kv_indptr", "kv_last_page_len")
BAD_APPENDS = [
    ("append_ckv", np.zeros((6, 15), np.float32), VALUE, "append_ckv.shape[1] must equal ckv_cache.shape[2]: expected 16, got 15"),
    ("append_kpe", np.zeros((5, 8), np.float32), VALUE, "append_kpe.shape[0] must equal append_ckv.shape[0]: expected 6, got 5"),
    ("append_ckv", np.zeros((6, 16)), TYPE, "append_ckv.dtype must equal ckv_cache.dtype: expected float32, got float64"),
    ("batch_indices", np.array([0, 0, 1, 2, 2, 3]), VALUE, "batch_indices[5] is out of range: expected 0 to 2, got 3"),
    ("positions", np.array([5, 7, 0, 3, 4, 5]), VALUE, "positions[1] must be within the length of its sequence: expected 0 to 6, got 7"),
    ("positions", np.array([5, 6, 0, 3, 4]), VALUE, "positions.shape[0] must equal append_ckv.shape[0]: expected 6, got 5"),
    ("kv_indices", np.array([0, 1, 2, 3, 4, 9]), VALUE, "kv_indices[5] is out of range: expected 0 to 8, got 9"),
    ("kv_indptr", np.array([0, 3, 2, 6]), VALUE, "kv_indptr[2] must not decrease: expected at least 3, got 2"),
    ("kv_last_page_len", np.array([1, 4, 3]), VALUE, "kv_last_page_len[1] is out of range: expected 0 to 3, got 4"),
    ("kpe_cache", np.zeros((8, 3, 8), np.float32), VALUE, "kpe_cache.shape[0] must equal ckv_cache.shape[0]: expected 9, got 8"),
]


@pytest.mark.parametrize(("name", "value", "exception", "message"), BAD_APPENDS, ids=[row[3][:40] for row in BAD_APPENDS])
def test_bad_appends(name, value, exception, message):
    arguments, _ = append_problem()
    call = dict(zip(APPEND, arguments, strict=True)) | {name: value}
    before = arguments[4].copy(), arguments[5].copy()
    with pytest.raises(exception) as error:
        append_paged_mla_kv_cache(**call)
    assert str(error.value) == f"append_paged_mla_kv_cache: {message}"
    np.testing.assert_array_equal(arguments[4], before[0])
    np.testing.assert_array_equal(arguments[5], before[1])


def test_public_names():
    assert {"BatchMLAPagedAttentionWrapper", "append_paged_mla_kv_cache", "mla_decode", "FlashMLAConfig"} <= set(attile.mla.__all__)
