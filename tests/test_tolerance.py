"""The judge is judged: what is right passes, with room to spare but not much; what is wrong by the smallest bug is caught."""

import numpy as np
import pytest
import reference
import tolerance
from tolerance import Judge

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def arguments(dtype, seqlen_q=8, seqlen_k=40, heads_q=2, heads_k=1, head_dim=16, head_dim_v=16, seed=0, **options):
    rng = np.random.default_rng(seed)
    shapes = {"query": (1, seqlen_q, heads_q, head_dim), "key": (1, seqlen_k, heads_k, head_dim), "value": (1, seqlen_k, heads_k, head_dim_v)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()} | options


def answer(arguments, dtype):
    """What a perfect implementation returns: the reference, rounded once."""
    out, lse = reference.flash_attention(**arguments, return_lse=True)
    return out.astype(dtype), lse.astype(np.float64 if dtype == np.float64 else np.float32)


def tiled(query, key, value, tile=16, rescale=True, p_dtype=None):
    """One head, the online softmax of a kernel in float32, with the bugs that one can have. Returns out [1, n, 1, Dv] in float32."""
    scale = np.float32(1 / np.sqrt(query.shape[-1]))
    q, k, v = (x[0, :, 0].astype(np.float32) for x in (query, key, value))
    m, total, out = np.full(len(q), -np.inf, np.float32), np.zeros(len(q), np.float32), np.zeros((len(q), v.shape[1]), np.float32)
    for start in range(0, len(k), tile):
        s = scale * (q @ k[start : start + tile].T)
        new_m = np.maximum(m, s.max(1))
        p = np.exp(s - new_m[:, None])
        keep = np.exp(m - new_m) if rescale else np.ones_like(m)
        total = total * keep + p.sum(1)
        p = p if p_dtype is None else p.astype(p_dtype).astype(np.float32)
        out = out * keep[:, None] + p @ v[start : start + tile]
        m = new_m
    return (out / total[:, None])[None, :, None, :]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 2, 1, 1), (3, 5, 3, 2), (1, 300, 64, 64), (33, 65, 128, 128), (4, 4, 576, 512)])
def test_a_perfect_answer_passes_with_room(dtype, sizes):
    judge = Judge(arguments(dtype, sizes[0], sizes[1], 1, 1, sizes[2], sizes[3]))
    out, lse = answer(judge.arguments, dtype)
    judge.check(out, lse)
    assert (np.abs(out.astype(np.float64) - judge.out) <= 0.75 * judge.limit_out).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 2, 1, 1), (2, 3, 5, 2), (1, 50, 7, 3), (5, 40, 64, 32)])
def test_another_order_of_the_same_computation_passes(dtype, seed, sizes):
    judge = Judge(arguments(dtype, sizes[0], sizes[1], 1, 1, sizes[2], sizes[3], seed=seed))
    (piece,) = reference.sequences(**judge.arguments)
    score = reference.score_options(sizes[2])
    out, lse = tolerance.plain_attend(piece, judge.dtype, judge.accumulator, np.random.default_rng(seed + 1000), 1, **score)
    judge.check(np.moveaxis(out, 1, 2), lse)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_tiled_kernel_passes(dtype, seed):
    judge = Judge(arguments(dtype, 20, 200, 1, 1, 64, 32, seed=seed))
    out = tiled(*(judge.arguments[name] for name in ("query", "key", "value")), p_dtype=dtype)
    judge.check(out.astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_units_are_of_order_one(dtype):
    """The plain computation is a few units wrong, or the unit would say nothing. Roundings of a running sum make it grow as sqrt(keys)."""
    for seqlen_k, options in [(4, {}), (60, {"causal": True}), (1000, {}), (60, {"softmax_scale": 20.0}), (60, {"logits_soft_cap": 2.0})]:
        judge = Judge(arguments(dtype, seqlen_k=seqlen_k, **options))
        assert judge.units_out < 2 * np.sqrt(1 + seqlen_k / 16), (seqlen_k, options)
        assert judge.units_lse < 2 * np.sqrt(1 + seqlen_k / 16), (seqlen_k, options)


# ---- bugs


def assert_caught(judge, out, lse=None):
    with pytest.raises(AssertionError):
        judge.check(out, lse)


def staircase(dtype, **sizes):
    """Keys whose scores rise about half a unit a tile of 16, so that every tile has a new maximum."""
    call = arguments(dtype, **sizes)
    query, key = call["query"].astype(np.float32), call["key"].astype(np.float32)
    query[...] = np.abs(query)
    key += (np.arange(key.shape[1]) / 32 * np.sqrt(key.shape[-1]) / np.abs(query).sum(-1).mean())[None, :, None, None]
    return call | {"query": query.astype(dtype), "key": key.astype(dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("seqlen_k", [32, 64, 1000])
def test_forgotten_rescale_is_caught(dtype, seqlen_k):
    judge = Judge(staircase(dtype, heads_q=1, seqlen_k=seqlen_k))
    arrays = [judge.arguments[name] for name in ("query", "key", "value")]
    judge.check(tiled(*arrays, p_dtype=dtype).astype(dtype))
    assert_caught(judge, tiled(*arrays, p_dtype=dtype, rescale=False).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seqlen_k", [2, 17, 64, 300, 1000])
@pytest.mark.parametrize("options", [{}, {"causal": True, "causal_alignment": "bottom_right"}])
def test_one_key_too_few_in_one_row_is_caught(dtype, seqlen_k, options):
    judge = Judge(arguments(dtype, seqlen_q=2, seqlen_k=seqlen_k, head_dim=64, head_dim_v=64, **options))
    weights = reference.flash_attention(**judge.arguments | {"value": np.eye(seqlen_k, dtype=dtype)[None, :, None]})[0, 1]
    mask = np.ones((2, 2, seqlen_k), bool)
    mask[1, 1, np.argmin(np.abs(weights[1] - 1 / seqlen_k))] = False  # a key of average weight
    out, lse = answer(judge.arguments | {"attention_mask": mask}, dtype)
    assert_caught(judge, out)
    assert_caught(judge, judge.out.astype(dtype), lse)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_key_too_many_at_the_causal_edge_is_caught(dtype):
    judge = Judge(arguments(dtype, seqlen_q=40, causal=True))
    out, _ = answer(judge.arguments | {"causal": False, "sliding_window": (-1, 1)}, dtype)
    right, _ = answer(judge.arguments, dtype)
    right[0, 20, 1] = out[0, 20, 1]
    assert_caught(judge, right)


@pytest.mark.parametrize("rounded", ["result", "p", "inputs"])
def test_float32_done_in_bfloat16_is_caught(rounded):
    judge = Judge(arguments(np.float32, heads_q=1, seqlen_k=300, head_dim=64))
    arrays = [judge.arguments[name] for name in ("query", "key", "value")]
    if rounded == "inputs":
        arrays = [x.astype(ml_dtypes.bfloat16) for x in arrays]
    out = tiled(*arrays, p_dtype=ml_dtypes.bfloat16 if rounded == "p" else None)
    if rounded == "result":
        out = out.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert_caught(judge, out)


def test_float64_done_in_float32_is_caught():
    judge = Judge(arguments(np.float64, heads_q=1))
    assert_caught(judge, tiled(*(judge.arguments[name] for name in ("query", "key", "value"))).astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp2_without_its_factor_is_caught(dtype):
    judge = Judge(arguments(dtype))
    out, lse = answer(judge.arguments | {"softmax_scale": 0.25 * np.log(2)}, dtype)
    assert_caught(judge, out)
    assert_caught(judge, judge.out.astype(dtype), lse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", ["sink twice", "sink capped", "bias after cap", "dropout of the next head", "one dropped bit", "heads interleaved"])
def test_wrong_options_are_caught(dtype, wrong):
    rng = np.random.default_rng(1)
    call = arguments(dtype, heads_q=4, heads_k=2)
    right, sinks = dict(call), rng.standard_normal((4, 1)).astype(dtype) + dtype(2)
    if wrong == "sink twice":
        right["softmax_aux"], call["softmax_aux"] = sinks, np.repeat(sinks, 2, 1)
    elif wrong == "sink capped":
        right |= {"softmax_aux": sinks, "logits_soft_cap": 2.0}
        call |= {"softmax_aux": (2 * np.tanh(sinks.astype(np.float64) / 2)).astype(dtype), "logits_soft_cap": 2.0}
    elif wrong == "bias after cap":
        bias = rng.standard_normal((8, 40))
        scores = np.einsum("bihd,bjhd->bhij", *(np.repeat(call[n].astype(float), r, 2) for n, r in (("query", 1), ("key", 2)))) / 4
        right |= {"bias": bias, "logits_soft_cap": 2.0}
        call |= {"bias": 2 * np.tanh(scores / 2) + bias - scores}
    elif wrong == "dropout of the next head":
        right |= {"dropout_prob": 0.1, "dropout_seed": 3}
        call = {name: np.roll(call[name], 1, 2) for name in call} | {"dropout_prob": 0.1, "dropout_seed": 3}
    elif wrong == "one dropped bit":
        bits = np.stack([reference.philox_keep_mask(3, 0.1, 0, h, 8, 40) for h in range(4)])
        right |= {"dropout_prob": 0.1, "dropout_seed": 3}
        out, _ = answer(right, np.float64)
        weights = reference.flash_attention(**call | {"value": np.broadcast_to(np.eye(40)[:, None], (1, 40, 2, 40))})
        h, i, j = np.argwhere(~bits)[-1]
        out[0, i, h] += (weights[0, i, h, j] / 0.9 * call["value"][0, j, h // 2].astype(float)).astype(np.float64)
        assert_caught(Judge(right), out.astype(dtype))
        return
    elif wrong == "heads interleaved":
        call["key"], call["value"] = (np.tile(call[name], (1, 1, 2, 1)) for name in ("key", "value"))
    out, _ = answer(call, dtype)
    assert_caught(Judge(right), out)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_patterns_come_first(bad):
    judge = Judge(arguments(np.float32))
    out, lse = answer(judge.arguments, np.float32)
    out[0, 3, 1, 5] = bad
    assert_caught(judge, out)
    empty = Judge(arguments(np.float32, attention_mask=np.zeros((1, 40), bool)))
    zeros, unseen = answer(empty.arguments, np.float32)
    empty.check(zeros, unseen)
    assert_caught(empty, zeros, np.full_like(unseen, bad if bad > 0 else np.finfo(np.float32).min))
    assert_caught(empty, np.full_like(zeros, 1e-30), unseen)


def test_dtype_and_shape_are_part_of_the_answer():
    judge = Judge(arguments(np.float32))
    out, lse = answer(judge.arguments, np.float32)
    assert_caught(judge, out.astype(np.float64))
    assert_caught(judge, out[0])
    assert_caught(judge, out, lse.astype(np.float64))


@pytest.mark.parametrize("logits_dtype", [np.float16, ml_dtypes.bfloat16])
def test_rounded_scores_may_go_either_way_only_at_a_midpoint(logits_dtype):
    judge = Judge(arguments(np.float32, seqlen_q=64, seqlen_k=300, logits_dtype=logits_dtype))
    (piece,) = reference.sequences(**judge.arguments)
    score = reference.score_options(16, logits_dtype=logits_dtype)
    for seed in range(5):
        out, lse = tolerance.plain_attend(piece, judge.dtype, judge.accumulator, np.random.default_rng(seed), 1, **score)
        judge.check(np.moveaxis(out, 1, 2), lse)
    unrounded, _ = answer(judge.arguments | {"logits_dtype": None}, np.float32)
    assert_caught(judge, unrounded)
    assert np.median(judge.limit_out) < 1e-5
