"""Random problems of mla_attention over all options at once, both strategies, every kernel, judged by the error model."""

import mla_attention_cases
import pytest
from attile import FlashMLAConfig, mla_attention
from cases import DTYPES
from machine import SEED, runnable_kernels
from tolerance_mla import Judge

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies

LENGTHS = st.one_of(st.integers(0, 6), st.integers(1, 40), st.sampled_from((31, 32, 33, 47, 48, 63, 64, 65, 95, 96, 97)))
DIMS = st.one_of(st.integers(1, 20), st.sampled_from((24, 32, 33, 48, 64, 65)))


def one_in(n):
    return st.sampled_from([False] * (n - 1) + [True])


@st.composite
def problems(draw):
    """A case, the seed of its numbers, and a configuration."""
    layout = draw(st.sampled_from(("dense", "dense", "rank2", "padded", "packed")))
    heads_k, group = draw(st.integers(1, 3)), draw(st.sampled_from((1, 1, 2, 3, 8)))
    changes = {"layout": layout, "heads_q": heads_k * group, "heads_k": heads_k, "dtype": draw(st.sampled_from(DTYPES))}
    changes |= {name: draw(DIMS) for name in ("rank", "nope", "rope_dim", "head_dim_v")}
    changes["rope"] = draw(st.sampled_from(sorted(mla_attention_cases.ROPES)))
    changes["memory"] = draw(st.sampled_from(("contiguous", "contiguous", "gaps", "bytes", "reversed")))
    batch = draw(st.integers(0, 3)) if layout != "rank2" else 1
    if layout in ("dense", "rank2"):
        n, m = draw(LENGTHS), draw(LENGTHS)
        changes |= {"seqlen_q": n, "seqlen_k": m, "batch": batch}
    else:
        lens = tuple(draw(st.lists(LENGTHS, min_size=batch, max_size=batch)))
        n = m = max(lens, default=0)
        total = (sum(lens) if layout == "packed" else n) + draw(st.integers(0, 5))
        changes |= {"lens": lens, "batch": batch, "seqlen_q": total, "seqlen_k": total}
    options = {"causal_alignment": draw(st.sampled_from(("top_left", "bottom_right"))), "causal": draw(st.booleans())}
    if draw(one_in(3)):
        changes["bias"] = (draw(st.sampled_from((1, batch))), draw(st.sampled_from((1, heads_k * group))), n, m)
    if draw(one_in(4)):
        changes["attention_mask"] = (n, m)
    if draw(one_in(4)):
        changes["sinks"] = (heads_k * group, draw(st.integers(0, 3)))
    if draw(one_in(4)):
        options["sliding_window"] = (draw(st.integers(0, 60)), draw(st.integers(-1, 60)))
    if draw(one_in(4)):
        options["logits_soft_cap"] = draw(st.sampled_from((0.5, 2.0, 15.0)))
    if draw(one_in(5)):
        options |= {"dropout_prob": draw(st.sampled_from((0.1, 0.5))), "dropout_seed": draw(st.integers(0, 2**64 - 1))}
    config = {"strategy": draw(st.sampled_from(("rebuild", "absorb"))), "kernel": draw(st.sampled_from(runnable_kernels("mla_attention")))}
    if draw(st.booleans()):
        block = st.one_of(st.none(), st.integers(1, 20), st.sampled_from((32, 48, 64, 100)))
        config |= {"block_q": draw(block), "block_k": draw(block), "num_splits": draw(st.integers(0, 5))}
    return mla_attention_cases.MlaAttentionCase(id="random", options=options, **changes), draw(st.integers(0, 2**32 - 1)), config


@hypothesis.seed(SEED)
@hypothesis.given(problems())
def test_random_problems(problem):
    case, seed, config = problem
    if case.dtype == "float64" and config["kernel"] == "mla_amx":
        config = config | {"kernel": "mla_portable"}  # tiles have no float64
    arrays = case.arrays(seed=seed)
    Judge(arrays).check(config["strategy"], *mla_attention(**arrays, return_lse=True, cfg=FlashMLAConfig(**config)))
