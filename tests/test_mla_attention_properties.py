"""mla_attention against flash_attention on stored keys and values, and what must hold whatever the numbers are."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import attile
import mla_attention_cases
import numpy as np
import pytest
import reference_mla
from attile import FlashMLAConfig, explain, flash_attention, mla_attention
from mla_attention_cases import MlaAttentionCase

DOUBLES = [case for case in mla_attention_cases.SMALL if case.dtype == "float64"]
STRATEGIES = ("rebuild", "absorb")


def same_bits(a, b):
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def both(case, **options):
    """(out, lse) of both strategies."""
    return [mla_attention(**case.arrays() | options, return_lse=True, cfg=FlashMLAConfig(strategy=strategy)) for strategy in STRATEGIES]


def test_flash_mla_is_mla_attention():
    assert attile.flash_mla is attile.mla_attention


@pytest.mark.parametrize("case", DOUBLES, ids=str)
def test_equals_flash_attention_on_expanded_keys_and_values(case):
    """Dropout bits, masks, alignment and sinks included."""
    arrays = case.arrays()
    expected = flash_attention(**reference_mla.expand(**arrays), return_lse=True)
    for got in both(case):
        for x, y in zip(got, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [{"seqlen_q": 300, "seqlen_k": 300, "heads_q": 6, "heads_k": 3}, {"seqlen_q": 3, "seqlen_k": 5000}, {"layout": "packed", "lens": (40, 0, 300, 7)}],
    ids=["prefill", "few_queries", "packed"],
)
def test_bits_do_not_depend_on_threads(shape, dtype, strategy, threads):
    if "lens" in shape:
        shape = shape | {"seqlen_q": 350, "seqlen_k": 350}
    arrays = MlaAttentionCase(id="threads", rank=64, nope=32, dtype=dtype, **shape, options={"causal": True, "causal_alignment": "bottom_right"}).arrays()
    config = FlashMLAConfig(strategy=strategy, block_q=64)
    results = []
    for n in (1, 2, 3, 1):
        threads(n)
        results.append(mla_attention(**arrays, return_lse=True, cfg=config))
    assert all(same_bits(results[0], other) for other in results[1:])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_later_latent_does_not_change_an_earlier_row(strategy):
    case = MlaAttentionCase(id="causal", seqlen_q=60, seqlen_k=60, options={"causal": True})
    arrays = case.arrays()
    config = FlashMLAConfig(strategy=strategy)
    before = mla_attention(**arrays, cfg=config)
    arrays["key_value"][:, 40:] = 7
    after = mla_attention(**arrays, cfg=config)
    np.testing.assert_array_equal(before[:, :40], after[:, :40])
    assert (before[:, 40:] != after[:, 40:]).any()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_latents_give_their_value(strategy):
    case = MlaAttentionCase(id="constant")
    arrays = case.arrays()
    arrays["key_value"][...] = arrays["key_value"][:1, :1]
    out = mla_attention(**arrays, cfg=FlashMLAConfig(strategy=strategy))
    value = np.einsum("l,lhd->hd", arrays["key_value"][0, 0].astype(np.float64), arrays["w_vc"].astype(np.float64))
    np.testing.assert_allclose(out, np.broadcast_to(np.repeat(value, 2, 0), out.shape), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_nan_stays_in_its_row(strategy):
    arrays = MlaAttentionCase(id="nan", batch=1).arrays()
    clean = mla_attention(**arrays, cfg=FlashMLAConfig(strategy=strategy))
    arrays["query"][0, 5, 2, 3] = np.nan
    out = mla_attention(**arrays, cfg=FlashMLAConfig(strategy=strategy))
    assert np.isnan(out[0, 5, 2]).all()
    out[0, 5, 2] = clean[0, 5, 2]
    np.testing.assert_array_equal(out, clean)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_array_of_latents_and_rope_keys(strategy):
    """key_value and b_k may be two views of one array, as caches hold them."""
    rng = np.random.default_rng(0)
    joined = rng.standard_normal((2, 50, 40), dtype=np.float32)
    query = rng.standard_normal((2, 9, 4, 24), dtype=np.float32)
    w_kc, w_vc = (rng.standard_normal((32, 4, n), dtype=np.float32) for n in (16, 20))
    config = FlashMLAConfig(strategy=strategy)
    apart = mla_attention(query, joined[..., :32].copy(), w_kc, w_vc, b_k=joined[..., 32:].copy(), cfg=config)
    np.testing.assert_array_equal(mla_attention(query, joined[..., :32], w_kc, w_vc, b_k=joined[..., 32:], cfg=config), apart)


# ---- what the heuristic counts


def shaped(seqlen_q, seqlen_k, heads=16, rank=512, nope=128, rope=64, head_dim_v=128):
    """A call of any size that takes no memory; for explain alone."""

    def empty(*shape):
        return np.lib.stride_tricks.as_strided(np.zeros(max(shape[-1], 1), np.float32), shape, (0,) * (len(shape) - 1) + (4,))

    return {
        "query": empty(1, seqlen_q, heads, nope + rope),
        "key_value": empty(1, seqlen_k, rank),
        "w_kc": empty(rank, heads, nope),
        "w_vc": empty(rank, heads, head_dim_v),
        "b_k": empty(1, seqlen_k, rope),
    }


@pytest.mark.parametrize(("seqlen_q", "strategy"), [(1, "absorb"), (16, "absorb"), (2048, "rebuild"), (8192, "rebuild")])
def test_few_queries_are_absorbed_and_many_rebuild(seqlen_q, strategy):
    assert explain(mla_attention, **shaped(seqlen_q, 8192))["plan"]["strategy"] == strategy


def test_a_window_counts_the_keys_that_are_rebuilt():
    assert explain(mla_attention, **shaped(32_768, 32_768), sliding_window=500)["plan"]["strategy"] == "rebuild"


def test_a_small_rank_is_absorbed():
    """Among latents of 16 elements attention is cheaper than among keys of 192 + 128."""
    assert explain(mla_attention, **shaped(4096, 4096, rank=16))["plan"]["strategy"] == "absorb"


def test_workspace_does_not_grow_with_length():
    lengths = [explain(mla_attention, **shaped(n, n))["workspace_bytes"] for n in (2**14, 2**18)]
    assert lengths[1] - lengths[0] <= 2**16  # the list of the units of work


# ---- memory

MEASURE = """
    import json, sys
    import numpy as np
    import attile

    def status(field):
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(field))

    spec = json.loads(sys.argv[1])
    n, heads, rank = spec["n"], spec["heads"], spec["rank"]
    rng = np.random.default_rng(0)
    def arrays(n):
        shapes = (n, heads, 80), (n, rank), (rank, heads, 64), (rank, heads, 64)
        query, latents, w_kc, w_vc = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
        return query, latents, w_kc, w_vc, None, rng.standard_normal((n, 16), dtype=np.float32)
    attile.set_num_threads(spec["threads"])
    attile.mla_attention(*arrays(256))  # threads, part of the scratch
    call = arrays(n)
    out = np.full((n, heads, 64), np.nan, np.float32)
    cfg = attile.FlashMLAConfig(strategy=spec["strategy"])
    if spec["store"]:
        attend = lambda: attile.flash_attention(call[0][..., :64], np.einsum("tl,lhd->thd", call[1], call[2]), np.einsum("tl,lhd->thd", call[1], call[3]), sliding_window=500, out=out)
    else:
        attend = lambda: attile.mla_attention(*call, sliding_window=500, out=out, cfg=cfg)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    attend()
    print(json.dumps({"extra_kib": status("VmHWM") - before, "nan": bool(np.isnan(out).any())}))
"""

linux_only = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux's /proc")


def extra_mib(**spec):
    """Megabytes that a call of 32,768 tokens needs beyond its inputs and outputs, in a process of its own. K and V would take 144."""
    spec = {"n": 32_768, "heads": 8, "rank": 64, "threads": 1, "strategy": "rebuild", "store": False} | spec
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(MEASURE), json.dumps(spec)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert not measured["nan"]
    return measured["extra_kib"] / 1024


@linux_only
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_keys_and_values_are_never_stored(strategy, threads):
    assert extra_mib(strategy=strategy, threads=threads) <= 6 * threads


@linux_only
def test_the_measurement_sees_stored_keys():
    assert extra_mib(store=True) > 100
