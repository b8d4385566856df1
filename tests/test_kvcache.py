"""flash_attention_with_kvcache: dense and paged caches against the reference, on every kernel; nothing past a length is read."""

import dataclasses
import itertools

import cases
import numpy as np
import pytest
from attile import FlashAttentionConfig, explain, flash_attention, flash_attention_with_kvcache
from calls import bits
from machine import LIBRARIES, own_words, runnable_kernels
from tolerance import Judge


@dataclasses.dataclass(frozen=True)
class Cache:
    """One problem. With a page size the cache is pages in random order; what no length reaches is NaN, and so are unused pages."""

    lengths: tuple = (70, 0, 133)  # None: no cache_seqlens, `capacity` keys each
    seqlen_q: int = 1
    heads_q: int = 8
    heads_k: int = 2
    head_dim: int = 32
    head_dim_v: int = 32
    dtype: str = "float32"
    page_size: int = 0
    capacity: int = 150
    index: type = np.int32
    sinks: tuple | None = None
    options: tuple = ()

    def __str__(self):
        default = Cache()
        return "-".join(f"{f.name}={getattr(self, f.name)}" for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(default, f.name)) or "default"

    def call(self, seed=0):
        """The arguments of flash_attention_with_kvcache, and the call of flash_attention that says the same."""
        rng = np.random.default_rng(seed)
        dtype = cases.numpy_dtype(self.dtype)
        lengths = self.lengths if self.lengths is not None else (self.capacity,) * 2
        batch = len(lengths)
        q = rng.standard_normal((batch, self.seqlen_q, self.heads_q, self.head_dim)).astype(dtype)
        k = rng.standard_normal((batch, self.capacity, self.heads_k, self.head_dim)).astype(dtype)
        v = rng.standard_normal((batch, self.capacity, self.heads_k, self.head_dim_v)).astype(dtype)
        options = dict(self.options)
        if self.sinks is not None:
            options["softmax_aux"] = rng.standard_normal(self.sinks).astype(np.float32)
        plain = {"query": q, "key": k.copy(), "value": v.copy(), "causal": True, "causal_alignment": "bottom_right"} | options
        if self.lengths is not None:
            plain["cum_seqlens_k"] = np.cumsum((0, *lengths))
        for b, length in enumerate(lengths):
            k[b, length:] = v[b, length:] = np.nan
        if self.lengths is not None:
            options["cache_seqlens"] = np.array(lengths, self.index)
        if self.page_size:
            k, v, options["page_table"] = self.pages(rng, k, v, lengths)
        return {"q": q, "k_cache": k, "v_cache": v} | options, plain

    def pages(self, rng, k, v, lengths):
        """The caches in pages, more of them than are used, and the table, with garbage past the lengths."""
        size, batch = self.page_size, len(lengths)
        width = -(-self.capacity // size) + 1
        order = rng.permutation(batch * width + 3)[: batch * width].reshape(batch, width)
        caches = []
        for x in (k, v):
            pages = np.full((batch * width + 3, size, *x.shape[2:]), np.nan, x.dtype)
            for b, length in enumerate(lengths):
                for i in range(-(-length // size)):
                    rows = x[b, i * size : min((i + 1) * size, length)]
                    pages[order[b, i], : len(rows)] = rows
            caches.append(pages)
        table = rng.integers(-(2**31), 2**31 - 1, order.shape).astype(self.index)
        for b, length in enumerate(lengths):
            used = -(-length // size)
            table[b, :used] = order[b, :used]
        return *caches, table


def cases_of_everything():
    yield Cache()
    for dtype, seqlen_q in itertools.product(cases.DTYPES, (1, 2, 4, 17, 64)):
        yield Cache(dtype=dtype, seqlen_q=seqlen_q, page_size=16)
    for page_size, dtype in itertools.product((1, 3, 16, 64, 256), ("float32", "bfloat16")):
        yield Cache(page_size=page_size, dtype=dtype)
        yield Cache(page_size=page_size, dtype=dtype, seqlen_q=17, heads_q=6, index=np.int64)
    for heads_q, heads_k in ((1, 1), (4, 4), (3, 1), (5, 1), (6, 1), (7, 1), (8, 1), (12, 1), (16, 1), (24, 3), (32, 1)):
        for dtype in cases.DTYPES:
            yield Cache(heads_q=heads_q, heads_k=heads_k, dtype=dtype)
    for head_dim, head_dim_v in ((1, 1), (5, 7), (16, 16), (17, 33), (64, 64), (80, 80), (96, 100), (128, 128), (192, 128), (256, 256), (576, 512)):
        for dtype in cases.DTYPES:
            yield Cache(head_dim=head_dim, head_dim_v=head_dim_v, dtype=dtype, page_size=5)
    for options in (
        {"sliding_window": 20},
        {"sliding_window": (7, None)},
        {"sliding_window": (0, 0)},
        {"sliding_window": (30, 5), "causal": False},
        {"causal": False},
        {"logits_soft_cap": 2.0},
        {"softmax_scale": 0.0},
        {"softmax_scale": -0.7},
        {"softmax_scale": 30.0},
        {"softmax_scale": 1.0, "sliding_window": (50, 0), "logits_soft_cap": 5.0},
    ):
        for dtype, seqlen_q in (("float32", 1), ("bfloat16", 3), ("float16", 4), ("float64", 2), ("bfloat16", 20)):
            yield Cache(options=tuple(options.items()), dtype=dtype, seqlen_q=seqlen_q, page_size=7, sinks=(8, 2) if seqlen_q > 1 else None)
    for dtype in cases.DTYPES:
        yield Cache(sinks=(8, 1), dtype=dtype)
        yield Cache(lengths=None, dtype=dtype)
        yield Cache(lengths=None, dtype=dtype, seqlen_q=200)  # more queries than keys
        yield Cache(lengths=(1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257, 511), capacity=512, dtype=dtype, seqlen_q=2)
        yield Cache(lengths=(3000, 1025, 0, 777), capacity=3001, dtype=dtype, head_dim=64, head_dim_v=64, page_size=64, sinks=(1, 3))
    yield Cache(lengths=(0, 0), page_size=4)
    yield Cache(lengths=(), page_size=4)
    yield Cache(seqlen_q=0)
    yield Cache(heads_q=0, heads_k=0)
    yield Cache(lengths=(0, 0), capacity=0)


CASES = list(cases_of_everything())


def run(kernel, call, **config):
    """(out, lse) written over NaN; skips with the kernel's own words where it does not take the call."""
    out = np.full((*call["q"].shape[:3], call["v_cache"].shape[3]), np.nan, call["q"].dtype)
    try:
        result, lse = flash_attention_with_kvcache(**call, return_lse=True, out=out, cfg=FlashAttentionConfig(kernel=kernel, **config))
    except NotImplementedError as error:
        pytest.skip(own_words(kernel, error))
    assert result is out
    return out, lse


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kernel_on_every_case(case, kernel):
    call, plain = case.call()
    Judge(plain).check(*run(kernel, call))


def test_every_kernel_takes_a_case(runnable_kernel):
    call, _ = Cache(dtype="bfloat16" if runnable_kernel == "forward_amx" else "float32").call()
    assert explain(flash_attention_with_kvcache, **call, cfg=FlashAttentionConfig(kernel=runnable_kernel))["kernel"] == runnable_kernel


@pytest.mark.parametrize("case", [case for case in CASES if case.page_size], ids=str)
def test_pages_change_nothing(case):
    """The same bits as a dense cache, for what one kernel computes in the same order."""
    call, plain = case.call()
    dense = call | {"k_cache": plain["key"], "v_cache": plain["value"], "page_table": None}
    assert bits(flash_attention_with_kvcache(**call)) == bits(flash_attention_with_kvcache(**dense))


@pytest.mark.parametrize("block_k", [None, 1, 16, 40, 4096])
@pytest.mark.parametrize(("num_splits", "block_q"), [(0, 1), (1, 2), (2, 4), (7, 3), (1024, None)])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_any_tiles_and_splits_are_right(runnable_kernel, dtype, num_splits, block_q, block_k):
    call, plain = Cache(lengths=(700, 3, 0), capacity=700, dtype=dtype, seqlen_q=2, page_size=9, sinks=(1, 1)).call()
    Judge(plain).check(*run(runnable_kernel, call, num_splits=num_splits, block_q=block_q, block_k=block_k))
    by_argument = flash_attention_with_kvcache(**call, num_splits=num_splits, cfg=FlashAttentionConfig(kernel=runnable_kernel, block_q=block_q, block_k=block_k))
    assert bits(by_argument) == bits(run(runnable_kernel, call, num_splits=num_splits, block_q=block_q, block_k=block_k)[0])


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("seqlen_q", [1, 20])
def test_threads_change_no_bit(runnable_kernel, dtype, seqlen_q, threads):
    call, _ = Cache(lengths=(2000, 900), capacity=2000, dtype=dtype, seqlen_q=seqlen_q, page_size=32).call()
    config = FlashAttentionConfig(kernel=runnable_kernel)
    results = []
    for n in (1, 2, 5):
        threads(n)
        try:
            results.append([bits(x) for x in flash_attention_with_kvcache(**call, return_lse=True, cfg=config)])
        except NotImplementedError as error:
            pytest.skip(own_words(runnable_kernel, error))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("library", [name for name in ("torch", "jax") if name in LIBRARIES])
@pytest.mark.parametrize("page_size", [0, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_library(library, page_size, dtype):
    call, plain = Cache(page_size=page_size, dtype=dtype, sinks=(8, 1)).call()
    arrays = {name: cases.convert(x, library) if isinstance(x, np.ndarray) else x for name, x in call.items()}
    out, lse = flash_attention_with_kvcache(**arrays, return_lse=True)
    assert type(out) is type(lse) is type(arrays["q"])
    Judge(plain).check(cases.to_numpy(out), cases.to_numpy(lse))
    # Index arrays may be NumPy's beside any library.
    mixed = arrays | {name: call[name] for name in ("cache_seqlens", "page_table") if name in call}
    assert bits(flash_attention_with_kvcache(**mixed)) == bits(out)


def strided(x):
    """The same numbers, heads first in memory and with gaps of NaN behind every row."""
    room = np.full((x.shape[0], x.shape[2], x.shape[1], x.shape[3] + 3), np.nan, x.dtype)
    room[..., : x.shape[3]] = np.swapaxes(x, 1, 2)
    return np.swapaxes(room[..., : x.shape[3]], 1, 2)


@pytest.mark.parametrize("page_size", [0, 6])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_strides_change_no_bit(runnable_kernel, page_size, dtype):
    call, _ = Cache(page_size=page_size, dtype=dtype, head_dim=33, head_dim_v=17).call()
    moved = call | {name: strided(call[name]) for name in ("q", "k_cache", "v_cache")}
    if page_size:
        wide = np.repeat(call["page_table"], 2, axis=1)
        wide[:, 1::2] = 2**30
        moved["page_table"] = wide[:, ::2]
    moved["cache_seqlens"] = np.repeat(call["cache_seqlens"], 3)[::3]
    assert [bits(x) for x in run(runnable_kernel, moved)] == [bits(x) for x in run(runnable_kernel, call)]


def test_v_may_be_a_view_of_k(runnable_kernel):
    call, plain = Cache(head_dim=48, head_dim_v=48).call()
    call["v_cache"], plain["value"] = call["k_cache"][..., 8:40], plain["key"][..., 8:40]
    Judge(plain).check(*run(runnable_kernel, call))


def test_nan_at_a_seen_key_stays_in_its_rows(runnable_kernel):
    call, _ = Cache(lengths=(40, 50), capacity=50, seqlen_q=2).call()
    before = run(runnable_kernel, call)
    call["k_cache"][0, 39, 1] = np.nan  # seen by the last query of sequence 0, heads 4 to 7
    out, lse = run(runnable_kernel, call)
    hit = np.zeros(lse.shape, bool)
    hit[0, 4:, 1] = True
    np.testing.assert_array_equal(np.isnan(lse), hit)
    np.testing.assert_array_equal(lse[~hit], before[1][~hit])
    assert np.isnan(out[0, 1, 4:]).all()
    rest = ~np.moveaxis(hit, 1, 2)
    np.testing.assert_array_equal(out[rest], before[0][rest])


def test_the_cache_may_be_read_only():
    call, plain = Cache(page_size=4).call()
    for x in call.values():
        x.flags.writeable = False
    Judge(plain).check(*flash_attention_with_kvcache(**call, return_lse=True))


def test_decode_kernels_come_first_for_few_rows():
    few, many = (Cache(seqlen_q=n).call()[0] for n in (1, 64))
    isa = explain(flash_attention_with_kvcache, **many)["isa"]
    assert explain(flash_attention_with_kvcache, **few)["kernel"].startswith("decode_")
    report = explain(flash_attention_with_kvcache, **many)
    assert report["kernel"] == f"forward_{isa}"
    reasons = {entry["kernel"]: entry["reason"] for entry in report["refused"]}
    assert any("at most" in reason and "rows" in reason for name, reason in reasons.items() if name.startswith("decode_"))


def test_flash_attention_decodes_too():
    rng = np.random.default_rng(1)
    query, key = (rng.standard_normal((2, n, 4, 64), dtype=np.float32) for n in (1, 300))
    assert explain(flash_attention, query, key, key)["kernel"].startswith("decode_")
    call = {"query": query, "key": key, "value": key}
    Judge(call).check(*flash_attention(**call, return_lse=True))


def good(**changes):
    """A small paged call, changed; a value of ... leaves the argument out."""
    call = {
        "q": np.ones((2, 1, 4, 8), np.float32),
        "k_cache": np.ones((5, 4, 2, 8), np.float32),
        "v_cache": np.ones((5, 4, 2, 8), np.float32),
        "cache_seqlens": np.array([5, 0], np.int32),
        "page_table": np.array([[4, 2, 77], [-1, -1, -1]], np.int32),
    } | changes
    return {name: value for name, value in call.items() if value is not ...}


def test_a_good_call_is_good():
    assert flash_attention_with_kvcache(**good()).shape == (2, 1, 4, 8)


F32 = np.float32
DENSE = {"page_table": ..., "k_cache": np.ones((2, 9, 2, 8), F32), "v_cache": np.ones((2, 9, 2, 8), F32)}
ERRORS = [
    ({"page_table": np.array([[4, 5, 0], [0, 0, 0]])}, ValueError, r"page_table\[0, 1\] must be a page of k_cache: expected 0 to 4, got 5"),
    ({"page_table": np.array([[-1, 0, 0], [0, 0, 0]])}, ValueError, r"page_table\[0, 0\] must be a page of k_cache: expected 0 to 4, got -1"),
    ({"cache_seqlens": np.array([13, 0])}, ValueError, r"cache_seqlens\[0\] must be from 0 to page_table.shape\[1\] \* page_size: expected 0 to 12, got 13"),
    ({"cache_seqlens": np.array([5, -1])}, ValueError, r"cache_seqlens\[1\] must be from 0 to .*: expected 0 to 12, got -1"),
    (DENSE | {"cache_seqlens": np.array([9, 10])}, ValueError, r"cache_seqlens\[1\] must be from 0 to k_cache.shape\[1\]: expected 0 to 9, got 10"),
    ({"cache_seqlens": ...}, ValueError, r"cache_seqlens is required with page_table: expected an array, got none"),
    ({"cache_seqlens": np.array([5, 0, 0])}, ValueError, r"cache_seqlens.shape\[0\] must equal q.shape\[0\]: expected 2, got 3"),
    ({"cache_seqlens": np.array([[5, 0]])}, ValueError, r"cache_seqlens must have rank 1: expected 1, got 2"),
    ({"cache_seqlens": np.array([5.0, 0.0])}, TypeError, r"cache_seqlens must hold indices: expected int32 or int64, got float64"),
    ({"page_table": np.array([[4.0], [0.0]])}, TypeError, r"page_table must hold indices: expected int32 or int64, got float64"),
    ({"page_table": np.array([4, 2])}, ValueError, r"page_table must have rank 2: expected 2, got 1"),
    ({"page_table": np.array([[4, 2]])}, ValueError, r"page_table.shape\[0\] must equal q.shape\[0\]: expected 2, got 1"),
    ({"k_cache": np.ones((5, 0, 2, 8), F32), "v_cache": np.ones((5, 0, 2, 8), F32)}, ValueError, r"page size, must be positive: expected at least 1, got 0"),
    ({"page_table": ..., "cache_seqlens": ...}, ValueError, r"k_cache.shape\[0\] must equal q.shape\[0\]: expected 2, got 5"),
    ({"q": np.ones((2, 4, 8), F32)}, ValueError, r"q must have rank 4: expected 4, got 3"),
    ({"q": np.ones((2, 1, 3, 8), F32)}, ValueError, r"q.shape\[2\] must be a multiple of k_cache.shape\[2\]: expected a multiple of 2, got 3"),
    ({"q": np.ones((2, 1, 4, 9), F32)}, ValueError, r"k_cache.shape\[3\] must equal q.shape\[3\]: expected 9, got 8"),
    ({"v_cache": np.ones((5, 3, 2, 8), F32)}, ValueError, r"v_cache.shape\[1\] must equal k_cache.shape\[1\]: expected 4, got 3"),
    ({"v_cache": np.ones((5, 4, 2, 513), F32)}, ValueError, r"v_cache.shape\[3\] is out of range: expected 1 to 512, got 513"),
    ({"q": np.ones((2, 1, 4, 577), F32), "k_cache": np.ones((5, 4, 2, 577), F32)}, ValueError, r"q.shape\[3\] is out of range: expected 1 to 576, got 577"),
    ({"k_cache": np.ones((5, 4, 2, 8), np.float16)}, TypeError, r"k_cache.dtype must equal q.dtype: expected float32, got float16"),
    ({"q": np.ones((2, 1, 4, 8), np.int32)}, TypeError, r"q has an unsupported dtype"),
    ({"k_cache": np.ones((5, 4, 2, 16), F32)[..., ::2]}, ValueError, r"k_cache must be contiguous in its last dimension: expected stride 1, got stride 2"),
    ({"num_splits": -1}, ValueError, r"num_splits is out of range: expected 0 \(the heuristic\) to 1024, got -1"),
    ({"num_splits": 2, "cfg": FlashAttentionConfig(num_splits=3)}, ValueError, r"num_splits must be given once: expected num_splits or cfg.num_splits, got both"),
    ({"num_splits": 1.5}, TypeError, r"num_splits"),
    ({"softmax_scale": float("nan")}, ValueError, r"softmax_scale must be finite: expected a finite number, got nan"),
    ({"logits_soft_cap": 0.0}, ValueError, r"logits_soft_cap must be positive and finite: expected a positive number, got 0"),
    ({"sliding_window": -2}, ValueError, r"sliding_window's left must not be negative"),
    ({"softmax_aux": np.ones(4, F32)}, ValueError, r"softmax_aux.shape is ambiguous"),
    ({"platform": "cuda"}, ValueError, r"platform must hold the arrays"),
    ({"out": np.ones((2, 1, 4, 9), F32)}, ValueError, r"out.shape is wrong: expected \(2, 1, 4, 8\), got \(2, 1, 4, 9\)"),
    ({"cfg": FlashAttentionConfig(kernel="nobody")}, ValueError, r"cfg.kernel names no kernel"),
    ({"cfg": 3}, TypeError, r"cfg has the wrong type: expected FlashAttentionConfig or None, got int"),
    ({"q": None}, TypeError, r"q must be an array"),
    ({"causal": 1}, TypeError, r"causal"),
]


@pytest.mark.parametrize(("changes", "error", "message"), ERRORS, ids=[f"{i}-{message[:30]}" for i, (_, _, message) in enumerate(ERRORS)])
def test_errors_leave_out_as_it_was(changes, error, message):
    call = {"out": np.full((2, 1, 4, 8), 7, F32)} | good(**changes)
    with pytest.raises(error, match=f"^flash_attention_with_kvcache: .*{message}"):
        flash_attention_with_kvcache(**call)
    assert (call["out"] == 7).all() or "out" in changes


def test_out_may_not_overlap_the_cache():
    call = good()
    out = call["k_cache"].reshape(-1)[: 2 * 4 * 8].reshape(2, 1, 4, 8)
    with pytest.raises(ValueError, match="out must not overlap an input: expected separate memory, got memory shared with k_cache"):
        flash_attention_with_kvcache(**call, out=out)


def test_random_problems():
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
    from machine import SEED

    st = hypothesis.strategies
    window = st.one_of(st.none(), st.integers(0, 40), st.tuples(st.one_of(st.none(), st.integers(0, 60)), st.one_of(st.none(), st.integers(0, 9))))

    @st.composite
    def caches(draw):
        capacity = draw(st.integers(0, 300))
        lengths = draw(st.one_of(st.none(), st.lists(st.integers(0, capacity), max_size=3).map(tuple)))
        heads_k, group = draw(st.integers(1, 3)), draw(st.integers(1, 17))
        options = {"causal": draw(st.booleans()), "sliding_window": draw(window), "logits_soft_cap": draw(st.sampled_from((None, None, 1.5, 30.0)))}
        return Cache(
            lengths=lengths,
            capacity=capacity,
            page_size=draw(st.sampled_from((0, 1, 2, 5, 16, 64, 400))) if lengths is not None else 0,
            seqlen_q=draw(st.sampled_from((0, 1, 1, 1, 2, 3, 7))),
            heads_k=heads_k,
            heads_q=heads_k * group,
            head_dim=draw(st.integers(1, 140)),
            head_dim_v=draw(st.integers(1, 140)),
            dtype=draw(st.sampled_from(cases.DTYPES)),
            sinks=draw(st.sampled_from((None, (1, 2), (heads_k * group, 1)))),
            options=tuple(options.items()),
        )

    @hypothesis.seed(SEED)
    @hypothesis.given(case=caches(), seed=st.integers(0, 2**32 - 1), splits=st.integers(0, 4))
    def check(case, seed, splits):
        call, plain = case.call(seed)
        judge = Judge(plain)
        for kernel in runnable_kernels():
            config = FlashAttentionConfig(kernel=kernel, num_splits=splits)
            try:
                judge.check(*flash_attention_with_kvcache(**call, return_lse=True, cfg=config))
            except NotImplementedError as error:
                assert own_words(kernel, error)

    check()
