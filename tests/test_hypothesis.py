"""Random problems over all options at once, on every kernel, judged by the error model.

    pytest tests/test_hypothesis.py --hypothesis-profile=deep      10,000 problems; ATTILE_TEST_SEED chooses which
"""

import cases
import numpy as np
import pytest
import reference
from attile import FlashAttentionConfig, flash_attention, merge_states
from machine import LIBRARIES, SEED, runnable_kernels, takes
from tolerance import Judge

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies

LENGTHS = st.one_of(st.integers(0, 6), st.integers(1, 40), st.sampled_from((15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 95, 96, 97, 127, 128, 129)))
DIMS = st.one_of(st.integers(1, 20), st.sampled_from((24, 32, 40, 48, 63, 64, 65, 80, 96, 128, 130)))
SEEDS = st.integers(0, 2**32 - 1)


def one_in(n):
    return st.sampled_from([False] * (n - 1) + [True])


@st.composite
def windows(draw):
    side = st.one_of(st.none(), st.just(-1), st.integers(0, 5), st.integers(0, 140))
    return draw(st.one_of(st.integers(-1, 70), st.tuples(side, side)))


@st.composite
def broadcastable(draw, full, ragged):
    """A shape that broadcasts to `full`; where `ragged`, a dimension may be larger."""
    shape = [draw(st.sampled_from((1, n, n))) for n in full]
    shape = [n + draw(st.integers(0, 2)) if n != 1 and more else n for n, more in zip(shape, ragged, strict=True)]
    leading_ones = next((i for i, n in enumerate(shape) if n != 1), 4)
    return tuple(shape[draw(st.integers(0, leading_ones)) :])


@st.composite
def problems(draw):
    """A Case and the seed of its numbers."""
    layout = draw(st.sampled_from(("dense", "dense", "rank3", "padded", "packed")))
    heads_k = draw(st.integers(1, 3))
    group = draw(st.sampled_from((1, 1, 2, 3, 4, 8, 17)))
    head_dim, head_dim_v = draw(DIMS), draw(DIMS)
    memory = draw(st.sampled_from(("contiguous", "contiguous", *sorted(set(cases.MEMORY) - {"fused"}))))
    if memory == "v_in_k":
        head_dim_v = min(head_dim_v, head_dim)
    if memory == "broadcast" and layout in ("rank3", "packed"):
        memory = "gaps"
    changes = {
        "dtype": draw(st.sampled_from(cases.DTYPES)),
        "layout": layout,
        "heads_q": heads_k * group,
        "heads_k": heads_k,
        "head_dim": head_dim,
        "head_dim_v": head_dim_v,
        "memory": memory,
        "keys": draw(st.sampled_from(("random", "random", "staircase"))),
    }
    batch = draw(st.integers(0, 3)) if layout != "rank3" else 1
    if layout in ("dense", "rank3"):
        longest_q, longest_k = draw(LENGTHS), draw(LENGTHS)
        changes |= {"batch": batch, "seqlen_q": longest_q, "seqlen_k": longest_k}
    else:
        lens_q = tuple(draw(st.lists(LENGTHS, min_size=batch, max_size=batch)))
        lens_k = tuple(draw(st.lists(LENGTHS, min_size=batch, max_size=batch)))
        longest_q, longest_k = max(lens_q, default=0), max(lens_k, default=0)
        spare_q, spare_k = draw(st.integers(0, 5)), draw(st.integers(0, 5))
        if layout == "packed":
            changes |= {"lens_q": lens_q, "lens_k": lens_k, "seqlen_q": sum(lens_q) + spare_q, "seqlen_k": sum(lens_k) + spare_k}
        else:
            which = draw(st.sampled_from(("both", "both", "q", "k")))
            changes |= {"batch": batch, "seqlen_q": longest_q + spare_q, "seqlen_k": longest_k + spare_k}
            changes |= {"lens_q": lens_q if which != "k" else None, "lens_k": lens_k if which != "q" else None}
            longest_q, longest_k = longest_q + spare_q * (which == "k"), longest_k + spare_k * (which == "q")
    ragged = (False, False, changes.get("lens_q") is not None, changes.get("lens_k") is not None)
    full = (batch, heads_k * group, longest_q, longest_k)
    options = {}
    if draw(one_in(3)):
        changes["bias"] = draw(broadcastable(full, ragged))
        changes["bias_dtype"] = draw(st.sampled_from((None, None, *cases.DTYPES)))
    if draw(one_in(4)):
        changes["attention_mask"] = draw(broadcastable(full, ragged))
        changes["mask_dtype"] = draw(st.sampled_from(("bool", "bool", "int8", "int32", "int64", "uint8")))
    if draw(one_in(5)):
        changes["segments"] = draw(st.integers(1, 4))
    if draw(one_in(4)):
        n = draw(st.integers(0, 4))
        shapes = [(heads_k * group, n), (1, n)] + ([(n,)] if n != heads_k * group or n == 1 else [])
        changes["sinks"] = draw(st.sampled_from(shapes))
        changes["sink_offset"] = draw(st.sampled_from((0.0, 0.0, -30.0, 5.0)))
    if draw(one_in(2)):
        options["causal"] = True
    options["causal_alignment"] = draw(st.sampled_from(("top_left", "bottom_right")))
    if draw(one_in(4)):
        options["sliding_window"] = draw(windows())
    if draw(one_in(4)):
        options["logits_soft_cap"] = draw(st.sampled_from((0.5, 2.0, 15.0, 50.0)))
    if draw(one_in(5)):
        options |= {"dropout_prob": draw(st.sampled_from((0.01, 0.1, 0.5, 0.9))), "dropout_seed": draw(st.integers(0, 2**64 - 1))}
    if draw(one_in(6)):
        options["normalize_output"] = False
    if draw(one_in(8)):
        names = ("float64" if changes["dtype"] == "float64" else "float32", "bfloat16", "float16")
        options["logits_dtype"] = cases.numpy_dtype(draw(st.sampled_from(names)))
    if draw(one_in(3)):
        options["softmax_scale"] = draw(st.sampled_from((0.0, 0.05, 0.3, 1.0, -0.4)))
    return cases.Case(id="random", options=options, **changes), draw(SEEDS)


@st.composite
def configs(draw):
    """Tiles that the caller forces, now and then."""
    if draw(one_in(2)):
        return {}
    block = st.one_of(st.none(), st.integers(1, 20), st.sampled_from((32, 48, 64, 100, 128)))
    return {"block_q": draw(block), "block_k": draw(block), "num_splits": draw(st.integers(0, 5))}


def kernels_for(arrays):
    """The kernels that take this call: never none."""
    names = [kernel for kernel in runnable_kernels() if takes(kernel, **arrays)]
    assert names
    return names


def describe(case, seed):
    """The problem, so that one can paste it."""
    changed = {name: value for name, value in vars(case).items() if value != getattr(cases.Case(id="random"), name)}
    return f"cases.Case(id='random', {', '.join(f'{name}={value!r}' for name, value in changed.items())}).arrays(seed={seed})"


@hypothesis.seed(SEED)
@hypothesis.given(problem=problems(), config=configs(), library=st.sampled_from(["numpy", *LIBRARIES]))
def test_random_problems_are_right_on_every_kernel(problem, config, library):
    case, seed = problem
    hypothesis.note(describe(case, seed))
    arrays = case.arrays(seed=seed)
    judge = Judge(arrays)
    for kernel in kernels_for(arrays):
        out = np.full(judge.out.shape, np.nan, judge.dtype)
        _, lse = flash_attention(**arrays, return_lse=True, out=out, cfg=FlashAttentionConfig(kernel=kernel, **config))
        judge.check(out, lse)
    if library in case.libraries and library != "numpy":
        out, lse = flash_attention(**case.arrays(library, seed), return_lse=True)
        judge.check(cases.to_numpy(out), cases.to_numpy(lse))


WILD = {  # what may stand where no finite number does; v must be finite wherever a mask hides it
    "query": (np.nan, np.inf, -np.inf),
    "key": (np.nan, np.inf, -np.inf),
    "bias": (np.nan, np.inf, -np.inf, -1e4, 1e4),
    "softmax_aux": (-np.inf,),
}
WILD_NUMBERS = st.sampled_from([(name, number) for name, numbers in WILD.items() for number in numbers])


@hypothesis.seed(SEED)
@hypothesis.given(problem=problems(), config=configs(), wild=st.lists(st.tuples(WILD_NUMBERS, SEEDS), min_size=1, max_size=5))
def test_random_problems_with_nan_and_infinities(problem, config, wild):
    case, seed = problem
    hypothesis.assume(case.memory not in ("v_in_k", "readonly", "broadcast"))
    hypothesis.note(describe(case, seed))
    arrays = case.arrays(seed=seed)
    for (name, number), where in wild:
        if name in arrays and arrays[name].size:
            arrays[name][np.unravel_index(where % arrays[name].size, arrays[name].shape)] = number
    judge = Judge(arrays)
    for kernel in kernels_for(arrays):
        judge.check(*flash_attention(**arrays, return_lse=True, cfg=FlashAttentionConfig(kernel=kernel, **config)))


@hypothesis.seed(SEED)
@hypothesis.given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(1, 3), st.integers(1, 40)), split=st.integers(0, 60), keys=st.integers(1, 60), seed=SEEDS
)
def test_random_splits_merge_to_the_whole(sizes, split, keys, seed):
    batch, n, heads, dim = sizes
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal((batch, rows, heads, dim)) for rows in (n, keys, keys))
    sides = [flash_attention(query, key[:, part], value[:, part], return_lse=True) for part in (slice(0, split), slice(split, None))]
    out, lse = merge_states(*sides[0], *sides[1])
    expected_out, expected_lse = reference.flash_attention(query, key, value, return_lse=True)
    np.testing.assert_allclose(out, expected_out.astype(float), atol=1e-13)
    np.testing.assert_allclose(lse, expected_lse.astype(float), atol=1e-13)
