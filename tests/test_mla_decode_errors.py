"""Bad calls of mla_decode: each by its exception and message, before anything is computed."""

import attile
import numpy as np
import pytest
from attile import FlashAttentionConfig, FlashMLAConfig, mla_decode

B, SQ, H, L, R, TK = 2, 3, 4, 16, 8, 20
PAGES, SIZE = 6, 5
VALUE, TYPE, NOT = ValueError, TypeError, NotImplementedError


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def good():
    return {"q_nope": zeros(B, SQ, H, L), "q_pe": zeros(B, SQ, H, R), "ckv": zeros(B, TK, L), "kpe": zeros(B, TK, R), "softmax_scale": 1.0}


def paged(**more):
    table = np.array([[0, 1, 2, 99], [5, 4, 3, -1]])
    call = {"ckv": zeros(PAGES, SIZE, L), "kpe": zeros(PAGES, SIZE, R), "page_table": table, "kv_lens": np.array([15, 11])}
    return call | more


def table_with(entry):
    table = np.array([[0, 1, 2, 99], [5, entry, 3, -1]])
    return paged(page_table=table)


BFLOAT = pytest.importorskip("ml_dtypes").bfloat16
FLOAT8 = pytest.importorskip("ml_dtypes").float8_e4m3fn

BAD = [
    ({"q_nope": None}, TYPE, "q_nope must be an array: expected an array of NumPy, torch, JAX, CuPy or another library with __dlpack__, got NoneType"),
    ({"ckv": [1.0]}, TYPE, "ckv must be an array: expected an array of NumPy, torch, JAX, CuPy or another library with __dlpack__, got list"),
    ({"q_pe": None}, VALUE, "q_pe and kpe must be given together: expected both, or neither without a rope part, got kpe alone"),
    ({"kpe": None}, VALUE, "q_pe and kpe must be given together: expected both, or neither without a rope part, got q_pe alone"),
    ({"q_nope": zeros(SQ, H, L)}, VALUE, "q_nope must have rank 4: expected 4, got 3 (shape (3, 4, 16))"),
    ({"ckv": zeros(B, TK, 1, L)}, VALUE, "ckv must have rank 3: expected 3, got 4 (shape (2, 20, 1, 16))"),
    ({"kpe": zeros(B, R)}, VALUE, "kpe must have rank 3 or 4: expected 3 or 4, got 2 (shape (2, 8))"),
    ({"q_nope": zeros(B, SQ, H, L, dtype=np.int32)}, TYPE, "q_nope has an unsupported dtype: expected float64, float32, float16 or bfloat16, got int32"),
    (
        {"ckv": zeros(B, TK, L, dtype=np.float64)},
        TYPE,
        "ckv.dtype must equal q_nope.dtype, or be float8_e4m3 beside bfloat16: expected float32, got float64",
    ),
    (
        {"ckv": zeros(B, TK, L, dtype=FLOAT8)},
        TYPE,
        "ckv.dtype must equal q_nope.dtype, or be float8_e4m3 beside bfloat16: expected float32, got float8_e4m3",
    ),
    ({"kpe": zeros(B, TK, R, dtype=np.float16)}, TYPE, "kpe.dtype must equal q_nope.dtype: expected float32, got float16"),
    ({"ckv_scale": 2.0}, VALUE, "ckv_scale belongs to a float8_e4m3 ckv: expected none, got a scale with float32"),
    ({"ckv": zeros(B, TK, 2 * L)[..., ::2]}, VALUE, "ckv must be contiguous in its last dimension: expected stride 1, got stride 2 (elements)"),
    ({"ckv": zeros(B, TK, 24)}, VALUE, "ckv.shape[2] must equal q_nope.shape[3]: expected 16, got 24"),
    ({"ckv": zeros(3, TK, L), "kpe": zeros(3, TK, R)}, VALUE, "ckv.shape[0] must equal q_nope.shape[0]: expected 2, got 3"),
    ({"q_nope": zeros(B, SQ, H, 12)}, VALUE, "q_nope.shape[3] is out of range: expected a multiple of 8 from 8 to 512, got 12"),
    ({"q_nope": zeros(B, SQ, H, 520), "ckv": zeros(B, TK, 520)}, VALUE, "q_nope.shape[3] is out of range: expected a multiple of 8 from 8 to 512, got 520"),
    ({"q_pe": zeros(B, SQ, H, 136), "kpe": zeros(B, TK, 136)}, VALUE, "q_pe.shape[3] is out of range: expected a multiple of 8 from 8 to 128, got 136"),
    ({"q_pe": zeros(B, SQ, 5, R)}, VALUE, "q_pe.shape[2] must equal q_nope.shape[2]: expected 4, got 5"),
    ({"kpe": zeros(B, TK, 16)}, VALUE, "kpe.shape[2] must equal q_pe.shape[3]: expected 8, got 16"),
    ({"kpe": zeros(B, 19, R)}, VALUE, "kpe.shape[1] must equal ckv.shape[1]: expected 20, got 19"),
    ({"kpe": zeros(B, TK, 5, R)}, VALUE, "kpe.shape[2] must equal q_nope.shape[2]: expected 4, got 5"),
    ({"kv_lens": np.array([21, 1])}, VALUE, "kv_lens[0] is out of range: expected 0 to 20, got 21"),
    ({"kv_lens": np.array([2, -1])}, VALUE, "kv_lens[1] is out of range: expected 0 to 20, got -1"),
    ({"kv_lens": np.array([2])}, VALUE, "kv_lens.shape[0] must equal q_nope.shape[0]: expected 2, got 1"),
    ({"kv_lens": np.array([2.0, 3.0])}, TYPE, "kv_lens must hold indices: expected int32 or int64, got float64"),
    (paged(kv_lens=None), TYPE, "kv_lens is required with page_table: expected an array, got none"),
    (paged(kv_lens=np.array([15, 21])), VALUE, "kv_lens[1] is out of range: expected 0 to 20, got 21"),
    (table_with(6), VALUE, "page_table[1, 1] is out of range: expected 0 to 5, got 6"),
    (table_with(-3), VALUE, "page_table[1, 1] is out of range: expected 0 to 5, got -3"),
    (paged(page_table=np.zeros((2, 4), np.float32)), TYPE, "page_table must hold indices: expected int32 or int64, got float32"),
    (paged(page_table=np.zeros((3, 4), np.int32)), VALUE, "page_table.shape[0] must equal q_nope.shape[0]: expected 2, got 3"),
    (paged(page_table=np.zeros(4, np.int32)), VALUE, "page_table must have rank 2: expected 2, got 1 (shape (4,))"),
    (paged(ckv=zeros(PAGES, 0, L), kpe=zeros(PAGES, 0, R)), VALUE, "ckv.shape[1], the page size, is out of range: expected 1 or more, got 0"),
    ({"softmax_scale": None}, TYPE, "softmax_scale must be a number: expected a Python or NumPy number, got NoneType"),
    ({"softmax_scale": float("nan")}, VALUE, "softmax_scale must be finite: expected a finite number, got nan"),
    ({"logits_soft_cap": -1.0}, VALUE, "logits_soft_cap must be positive and finite: expected a positive number, got -1"),
    (
        {"softmax_aux": zeros(H)},
        VALUE,
        "softmax_aux.shape is ambiguous: expected [4, 1] (one sink a head) or [1, 4] (one list for all heads), got (4,)",
    ),
    ({"causal": 1}, TYPE, "causal must be a bool: expected True or False, got int"),
    ({"platform": "cuda"}, VALUE, "platform must hold the arrays: expected cuda arrays, got arrays on another device"),
    ({"platform": "gpu"}, VALUE, "platform is unknown: expected one of 'auto', 'cpu', 'cuda', got 'gpu'"),
    ({"num_splits": -1}, VALUE, "num_splits must not be negative: expected 0 (the heuristic decides) or more, got -1"),
    ({"num_splits": 2, "cfg": FlashMLAConfig(num_splits=3)}, VALUE, "num_splits must be given once: expected an argument or a field of cfg, got both"),
    ({"num_splits": 1025}, VALUE, "cfg.num_splits is out of range: expected 0 (or None) to 1024, got 1025"),
    ({"cfg": FlashMLAConfig(strategy="rebuild")}, VALUE, "cfg.strategy must be that of mla_decode: expected None or 'absorb', got 'rebuild'"),
    ({"cfg": FlashAttentionConfig()}, TYPE, "cfg has the wrong type: expected FlashMLAConfig or None, got attile.flash.FlashAttentionConfig"),
    ({"out": zeros(B, SQ, H, L + 8)}, VALUE, "out.shape is wrong: expected (2, 3, 4, 16), got (2, 3, 4, 24)"),
    ({"out": zeros(B, SQ, H, L, dtype=np.float64)}, TYPE, "out.dtype is wrong: expected float32, got float64"),
]


@pytest.mark.parametrize(("change", "exception", "message"), BAD, ids=[message[:60] for _, _, message in BAD])
def test_bad_calls(change, exception, message):
    call = good() | change
    out = call.setdefault("out", np.full((B, SQ, H, L), -12345.5, np.float32))
    before = out.copy()
    with pytest.raises(exception) as error:
        mla_decode(**call)
    assert type(error.value) is exception
    assert str(error.value) == f"mla_decode: {message}"
    np.testing.assert_array_equal(out, before)


def test_out_inside_the_cache_is_refused():
    room = zeros(B, TK + SQ * H, L)
    call = good() | {"ckv": room[:, :TK], "out": room[:, TK - 1 : TK - 1 + SQ * H].reshape(B, SQ, H, L)}
    with pytest.raises(ValueError, match=r"^mla_decode: out must not overlap an input: expected separate memory, got memory shared with ckv$"):
        mla_decode(**call)


def test_float8_runs_on_cuda_only():
    call = {"q_nope": zeros(B, SQ, H, L, dtype=BFLOAT), "q_pe": zeros(B, SQ, H, R, dtype=BFLOAT)}
    call |= {"ckv": zeros(B, TK, L, dtype=FLOAT8), "kpe": zeros(B, TK, R, dtype=BFLOAT), "ckv_scale": 0.5, "softmax_scale": 1.0}
    with pytest.raises(NotImplementedError) as error:
        mla_decode(**call)
    lines = str(error.value).splitlines()
    assert lines[0] == "mla_decode: no kernel takes this problem:"
    assert len(lines) > 1
    assert all(line.endswith(("does not take float8 scales", "this CPU lacks amx")) for line in lines[1:])
    assert "  mla_decode_portable: does not take float8 scales" in lines


def test_softmax_scale_has_no_default():
    call = good()
    del call["softmax_scale"]
    with pytest.raises(TypeError, match="softmax_scale"):
        mla_decode(**call)


def test_unknown_kernel():
    with pytest.raises(ValueError, match=r"^mla_decode: cfg.kernel names no kernel: expected .*mla_decode_portable, got forward_portable$"):
        mla_decode(**good(), cfg=FlashMLAConfig(kernel="forward_portable"))


def test_explain_tells_the_plan():
    report = attile.explain(mla_decode, **good(), num_splits=3, cfg=FlashMLAConfig(kernel="mla_decode_portable", block_k=4))
    assert report["function"] == "mla_decode"
    assert report["kernel"] == "mla_decode_portable"
    assert report["plan"]["num_splits"] == 3
    assert all(row["reason"].startswith("another kernel is forced") for row in report["refused"])
