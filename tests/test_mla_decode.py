"""mla_decode: every kernel on every case, judged as plain attention on expanded keys and values; array libraries, pages, threads."""

import functools

import attile
import cases
import mla_cases
import numpy as np
import pytest
from attile import FlashMLAConfig, mla_decode
from machine import kernel_rows, own_words, runnable_kernels
from reference_mla import expanded_decode
from tolerance import Judge

CASES = mla_cases.SMALL + mla_cases.EDGE + mla_cases.REAL
KERNELS = [row["name"] for row in kernel_rows("mla_decode")]


@functools.cache
def judge_of(case):
    return Judge(expanded_decode(**case.arrays()))


def decode(kernel, call, **blocks):
    """(out, lse) from this kernel into an array full of NaN; skips with the kernel's own words where it does not take the call."""
    out = np.full(call["q_nope"].shape, np.nan, call["q_nope"].dtype)
    try:
        result, lse = mla_decode(**call, return_lse=True, out=out, cfg=FlashMLAConfig(kernel=kernel, **blocks))
    except NotImplementedError as error:
        pytest.skip(own_words(kernel, error))
    assert result is out
    return out, lse


def run(kernel, case, **blocks):
    return decode(kernel, case.arrays(), **blocks)


@pytest.mark.parametrize("mla_kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kernel_on_every_case(case, mla_kernel):
    judge_of(case).check(*run(mla_kernel, case))


def test_every_kernel_takes_a_case():
    def takes(kernel, case):
        try:
            attile.explain(mla_decode, **case.arrays(), cfg=FlashMLAConfig(kernel=kernel))
        except NotImplementedError as error:
            return not own_words(kernel, error)
        return True

    for kernel in runnable_kernels("mla_decode"):
        assert any(takes(kernel, case) for case in mla_cases.SMALL), kernel


@pytest.mark.parametrize("case", [case for case in mla_cases.SMALL if not case.joined or case.dtype != "bfloat16"], ids=str)
def test_every_library(case, library):
    arrays = case.arrays(library)
    out, lse = mla_decode(**arrays, return_lse=True)
    assert type(out) is type(lse) is type(arrays["q_nope"])
    judge_of(case).check(cases.to_numpy(out), cases.to_numpy(lse))


@pytest.mark.parametrize("case", mla_cases.SMALL, ids=str)
def test_bits_do_not_depend_on_threads_lse_and_out(case, threads):
    threads(1)
    first = mla_decode(**case.arrays())
    threads(2)
    out, _ = mla_decode(**case.arrays(), return_lse=True, out=np.empty_like(first))
    assert out.tobytes() == first.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "latent"), [(16, 64), (3, 264)])  # parts are joined 128 columns at a time
@pytest.mark.parametrize("mla_kernel", runnable_kernels("mla_decode"))
def test_a_long_cache_has_the_same_bits_on_any_threads(mla_kernel, heads, latent, dtype, threads):
    case = mla_cases.MlaCase(id="long", batch=2, kv_lens=(9000, 2500), page_size=64, heads=heads, latent=latent, dtype=dtype)
    results = []
    for n in (1, 2, 5):
        threads(n)
        results.append(run(mla_kernel, case))
    plan = attile.explain(mla_decode, **case.arrays(), cfg=FlashMLAConfig(kernel=mla_kernel))["plan"]
    assert plan["num_splits"] > 1
    for other in results[1:]:
        assert [x.tobytes() for x in results[0]] == [x.tobytes() for x in other]
    judge_of(case).check(*results[0])


@pytest.mark.parametrize("mla_kernel", runnable_kernels("mla_decode"))
@pytest.mark.parametrize("blocks", [(1, 1), (7, 16), (32, 33), (4096, 4096)])
@pytest.mark.parametrize("splits", [1, 2, 7])
@pytest.mark.parametrize("case", [case for case in mla_cases.SMALL if case.id.endswith(("tokens", "everything", "paged"))], ids=str)
def test_any_tiles_and_splits_are_right(case, blocks, splits, mla_kernel):
    judge_of(case).check(*run(mla_kernel, case, block_q=blocks[0], block_k=blocks[1], num_splits=splits))


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_paged_has_the_bits_of_dense(dtype):
    dense = mla_cases.MlaCase(id="dense", dtype=dtype, seqlen_k=90, seqlen_q=2).arrays()
    out = mla_decode(**dense)
    for page_size in (1, 3, 10, 45, 90):
        pages = dense | {name: dense[name].reshape(-1, page_size, dense[name].shape[-1]) for name in ("ckv", "kpe")}
        order = np.random.default_rng(page_size).permutation(len(pages["ckv"]))
        pages |= {name: np.ascontiguousarray(pages[name][np.argsort(order)]) for name in ("ckv", "kpe")}
        pages |= {"page_table": order.reshape(2, -1).astype(np.int32), "kv_lens": np.array([90, 90])}
        assert mla_decode(**pages).tobytes() == out.tobytes()


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_equals_flash_attention_on_expanded_keys(dtype):
    case = mla_cases.MlaCase(id="expanded", dtype=dtype, seqlen_q=3, head_rope=True)
    judge = judge_of(case)
    judge.check(*attile.flash_attention(**judge.arguments, return_lse=True))
    judge.check(*mla_decode(**case.arrays(), return_lse=True))


@pytest.mark.parametrize("mla_kernel", runnable_kernels("mla_decode"))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_shared_rope_key_is_the_same_as_one_for_each_head(dtype, mla_kernel):
    shared = mla_cases.MlaCase(id="shared", dtype=dtype, heads=24, rope=16)
    call = shared.arrays()
    each = call | {"kpe": np.repeat(call["kpe"][:, :, None], 24, 2)}
    for arrays in (call, each, call | {"kpe": np.broadcast_to(call["kpe"][:, :, None], each["kpe"].shape)}):
        judge_of(shared).check(*decode(mla_kernel, arrays))


@pytest.mark.parametrize("mla_kernel", runnable_kernels("mla_decode"))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_stays_in_its_row(dtype, mla_kernel):
    """A NaN in one query, and in one head's rope key, reaches that head alone."""
    case = mla_cases.MlaCase(id="nan", dtype=dtype, head_rope=True, heads=40, rope=16, seqlen_k=50)
    call = case.arrays()
    call["q_nope"][0, 0, 3, 5] = np.nan
    call["kpe"][1, 20, 7] = np.nan
    call["kpe"][1, 21, 8] = np.inf
    judge = Judge(expanded_decode(**call))
    assert np.isnan(judge.out[0, 0, 3]).all()
    assert np.isnan(judge.out[1, 0, 7]).all()
    assert np.isfinite(judge.out[:, :, 9]).all()
    judge.check(*decode(mla_kernel, call))


def test_later_keys_do_not_change_earlier_tokens():
    call = mla_cases.MlaCase(id="causal", seqlen_q=4, seqlen_k=40).arrays()
    before = mla_decode(**call)
    call["ckv"][:, -1] += 1
    after = mla_decode(**call)
    assert (before[:, :3] == after[:, :3]).all()
    assert (before[:, 3] != after[:, 3]).any()


# ---- the requests ----------------------------------------------------------------------------------------------------------


def mha2mla_reference(q, q_pe, kv, k_pe):
    """The reference of the request for MLA by tiles with any heads and dims: a rope key for each head, scale 1 / sqrt(dim + pe_dim)."""
    dim, pe_dim = q.shape[-1], q_pe.shape[-1]
    scores = np.einsum("bhd,bsd->bhs", q, kv) + np.einsum("bhd,bshd->bhs", q_pe, k_pe)
    scores = scores / np.sqrt(dim + pe_dim)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhs,bsd->bhd", p / p.sum(-1, keepdims=True), kv)


@pytest.mark.parametrize("library_dtype", [("numpy", "float32"), ("torch", "float16"), ("torch", "bfloat16")])
def test_mha2mla_with_32_heads(library_dtype):
    """32 heads, 512 + 16, k_pe per head."""
    library, dtype = library_dtype
    if library == "torch":
        pytest.importorskip("torch")
    case = mla_cases.MlaCase(id="mha2mla", batch=2, seqlen_k=257, dtype=dtype, **mla_cases.MHA2MLA)
    call = case.arrays()
    assert call["softmax_scale"] == (512 + 16) ** -0.5
    out = cases.to_numpy(mla_decode(**case.arrays(library)))
    judge = judge_of(case)
    wide = [call[name].astype(np.float64) for name in ("q_nope", "q_pe", "ckv", "kpe")]
    expected = mha2mla_reference(wide[0][:, 0], wide[1][:, 0], wide[2], wide[3])
    np.testing.assert_allclose(judge.out[:, 0], expected, rtol=1e-12, atol=1e-12)
    judge.check(out)
