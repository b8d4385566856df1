"""The problems that tests and benches share: SMALL, EDGE, REAL, BENCH, lists of Case.

A Case says shapes, dtype, options and how its arrays lie in memory; `arrays(library, seed)` builds the keyword arguments of
`attile.flash_attention` for NumPy, torch or JAX. What must not be read is NaN: padding, rows past the last sequence, gaps between strided
rows, keys that no query sees (their values are zero, as the contract asks).
"""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import reference
from machine import jax_64_bit

DTYPES = ("float64", "float32", "float16", "bfloat16")
MEMORY = {  # how q, k, v lie in memory, and the libraries that can hold such arrays
    "contiguous": ("numpy", "torch", "jax"),
    "heads_first": ("numpy", "torch"),  # a transposed [B,H,T,D]
    "gaps": ("numpy", "torch"),  # odd gaps between rows, heads and batches
    "offset": ("numpy", "torch"),  # starts one element off any alignment
    "bytes": ("numpy",),  # starts one byte off the element's alignment
    "reversed": ("numpy",),  # negative strides
    "broadcast": ("numpy", "torch"),  # batch and head strides of 0 for k and v
    "v_in_k": ("numpy", "torch"),  # v is the head of k's rows
    "fused": ("numpy", "torch"),  # slices of one [B,T,Hq+2Hk,D] array
    "readonly": ("numpy",),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One problem. Lengths make it `packed` (rank 3) or `padded` (rank 4); bias and mask are given by their shape."""

    id: str
    batch: int = 2
    seqlen_q: int = 37  # of the array; padded: at least the longest; packed: the total
    seqlen_k: int = 53
    heads_q: int = 4
    heads_k: int = 2
    head_dim: int = 32
    head_dim_v: int = 24
    dtype: str = "float32"
    layout: str = "dense"  # dense, rank3, padded, packed
    lens_q: tuple[int, ...] | None = None
    lens_k: tuple[int, ...] | None = None
    bias: tuple[int, ...] | None = None
    bias_dtype: str | None = None
    attention_mask: tuple[int, ...] | None = None
    mask_dtype: str = "bool"
    segments: int = 0
    sinks: tuple[int, ...] | None = None
    sink_offset: float = 0.0
    keys: str = "random"  # or staircase: every tile has a new maximum
    memory: str = "contiguous"
    options: Mapping = field(default_factory=dict)  # passed on as they are

    def __post_init__(self):
        if self.layout == "rank3":
            object.__setattr__(self, "batch", 1)

    def __str__(self):
        return self.id

    @property
    def libraries(self):
        return MEMORY[self.memory]

    def flops(self):
        """Multiplications and additions of both products, for the pairs that position masks let through."""
        pairs = 0
        for n, m in self.lengths():
            i = np.arange(n) + (m - n if self.options.get("causal_alignment") == "bottom_right" else 0)
            window = self.options.get("sliding_window")
            left, right = window if isinstance(window, tuple) else (window, window)
            right = 0 if self.options.get("causal") else right
            low = np.zeros(n, int) if left in (None, -1) else np.clip(i - left, 0, m)
            high = np.full(n, m) if right in (None, -1) else np.clip(i + right + 1, 0, m)
            pairs += int(np.maximum(high - low, 0).sum())
        return 2 * pairs * self.heads_q * (self.head_dim + self.head_dim_v)

    def bytes(self):
        """q, k, v read once, out written once; v inside k is not read again."""
        rows_q, rows_k = sum(n for n, _ in self.lengths()), sum(m for _, m in self.lengths())
        per_key = self.head_dim + (0 if self.memory == "v_in_k" else self.head_dim_v)
        elements = rows_q * self.heads_q * (self.head_dim + self.head_dim_v) + rows_k * self.heads_k * per_key
        return elements * numpy_dtype(self.dtype).itemsize

    def lengths(self):
        """(query length, key length) of each sequence."""
        lens_q = (self.seqlen_q,) * self.batch if self.lens_q is None else self.lens_q
        lens_k = (self.seqlen_k,) * self.batch if self.lens_k is None else self.lens_k
        return list(zip(lens_q, lens_k, strict=True))

    def arrays(self, library="numpy", seed=0):
        """The keyword arguments of the call."""
        call = self.numpy_arrays(np.random.default_rng(seed))
        return {name: convert(x, library) if isinstance(x, np.ndarray) else x for name, x in call.items()}

    def numpy_arrays(self, rng):
        call = dict(zip(("query", "key", "value"), self.qkv(rng), strict=True)) | dict(self.options)
        if self.layout in ("padded", "packed"):
            for name, lengths, dtype in (("cum_seqlens_q", self.lens_q, np.int32), ("cum_seqlens_k", self.lens_k, np.int64)):
                if lengths is not None:
                    call[name] = np.cumsum((0, *lengths)).astype(dtype)
        if self.bias is not None:
            call["bias"] = np.asarray(rng.standard_normal(self.bias)).astype(numpy_dtype(self.bias_dtype or self.dtype))
        if self.attention_mask is not None:
            call["attention_mask"] = np.asarray(rng.random(self.attention_mask) < 0.7).astype(self.mask_dtype)
        if self.segments:
            leading = () if self.layout in ("rank3", "packed") else (self.batch,)
            ids = [np.sort(rng.integers(-1, self.segments, (*leading, n))) for n in (self.seqlen_q, self.seqlen_k)]
            call["q_segment_ids"], call["kv_segment_ids"] = ids[0].astype(np.int32), ids[1].astype(np.int64)
        if self.sinks is not None:
            call["softmax_aux"] = (rng.standard_normal(self.sinks) + self.sink_offset).astype(numpy_dtype(self.dtype))
        if self.memory in ("contiguous", "gaps", "offset"):
            self.poison(call)
        return call

    def qkv(self, rng):
        leading = () if self.layout in ("rank3", "packed") else (self.batch,)
        dtype = numpy_dtype(self.dtype)
        shape_q = (*leading, self.seqlen_q, self.heads_q, self.head_dim)
        shape_k = (*leading, self.seqlen_k, self.heads_k, self.head_dim)
        shape_v = (*leading, self.seqlen_k, self.heads_k, self.head_dim_v)
        query, key, value = (rng.standard_normal(shape) for shape in (shape_q, shape_k, shape_v))
        if self.keys == "staircase":
            query, key = staircase(query, key)
        query, key, value = (x.astype(dtype) for x in (query, key, value))
        if self.memory == "v_in_k":
            key = place(key, "gaps")
            return place(query, "gaps"), key, key[..., : self.head_dim_v]
        if self.memory == "fused":
            fused = np.concatenate([np.broadcast_to(x, (*x.shape[:-1], self.head_dim)) for x in (query, key, value)], -2)
            return tuple(np.split(fused, (self.heads_q, self.heads_q + self.heads_k), -2))
        if self.memory == "broadcast":
            return query, place(key, "broadcast"), place(value, "broadcast")
        return tuple(place(x, self.memory) for x in (query, key, value))

    def poison(self, call):
        """NaN wherever nothing may be read: padding, unused rows, and k (not v) where no query looks."""
        valid_q, valid_k, valid_v = (np.zeros(call[name].shape, bool) for name in ("query", "key", "value"))
        shown = dict(zip(("query", "key", "value"), (valid_q, valid_k, valid_v), strict=True))
        for piece in reference.sequences(**{**call, **shown}):
            piece.q[...] = True
            piece.k[piece.seen.any((0, 1))] = True
            piece.v[...] = True
        for name, valid in shown.items():
            call[name][~valid] = np.nan


def staircase(query, key):
    """Positive queries and keys that grow, so that scores rise by about half a unit every 16 keys."""
    query = np.abs(query)
    step = np.sqrt(key.shape[-1]) / max(np.abs(query).sum(-1).mean(), 1e-9) / 32 if query.size else 0.0
    return query, key + (step * np.arange(key.shape[-3]))[:, None, None]


def place(x, memory):
    """The same values, lying in memory in another way. What lies between them is NaN."""
    if memory == "contiguous":
        return x
    if memory == "heads_first":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -2, -3)), -2, -3)
    if memory == "readonly":
        x = x.copy()
        x.flags.writeable = False
        return x
    if memory == "reversed":
        flip = (slice(None, None, -1),) * (x.ndim - 1)
        return np.ascontiguousarray(x[flip])[flip]
    if memory == "broadcast":
        strides = [0 if axis in (x.ndim - 4, x.ndim - 2) else stride for axis, stride in enumerate(x.strides)]
        return np.lib.stride_tricks.as_strided(x, x.shape, strides)
    if memory == "gaps":
        unused = np.nan if x.dtype.kind in "fV" else 1
        room = np.full([n + extra for n, extra in zip(x.shape, (1, 2, 1, 5)[-x.ndim :], strict=True)], unused, x.dtype)
        view = room[tuple(slice(extra, extra + n) for n, extra in zip(x.shape, (1, 1, 0, 3)[-x.ndim :], strict=True))]
    elif memory in ("offset", "bytes"):
        shift = x.itemsize if memory == "offset" else 1
        room = np.full((x.size + 16) * x.itemsize, 0xFF, np.uint8)  # 0xFF..: NaN in every dtype
        start = -room.ctypes.data % 64 + shift
        view = np.frombuffer(room, x.dtype, x.size, start % (16 * x.itemsize)).reshape(x.shape) if x.size else x.copy()
    else:
        raise ValueError(memory)
    view[...] = x
    return view


def numpy_dtype(name):
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def convert(x, library):
    """A NumPy array as an array of `library`: the same memory for torch, a copy for JAX."""
    if library == "numpy":
        return x
    if library == "torch":
        import torch

        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == numpy_dtype("bfloat16") else torch.from_numpy(x)
    import jax

    with jax_64_bit():
        return jax.numpy.asarray(np.asarray(x, order="C"))


def to_numpy(x):
    """Back to NumPy."""
    if type(x).__module__.startswith("torch"):
        import torch

        return x.view(torch.int16).numpy().view(numpy_dtype("bfloat16")) if x.dtype == torch.bfloat16 else x.numpy()
    return np.asarray(x)


def variants(base, values):
    """A case for each (id, changes)."""
    return [dataclasses.replace(base, **({"id": f"{base.id}-{name}"} | changes)) for name, changes in values.items()]


def options(**kw):
    return {"options": kw}


FEATURES = {
    "full": {},
    "causal": options(causal=True),
    "bottom_right": options(causal=True, causal_alignment="bottom_right"),
    "window": options(sliding_window=(5, 3)),
    "window_bottom_right": options(sliding_window=(9, 0), causal_alignment="bottom_right"),
    "bias": {"bias": (2, 4, 37, 53)},
    "mask": {"attention_mask": (2, 1, 37, 53)},
    "segments": {"segments": 3},
    "sinks": {"sinks": (4, 1)},
    "softcap": options(logits_soft_cap=3.0),
    "dropout": options(dropout_prob=0.2, dropout_seed=1234),
    "unnormalized": options(normalize_output=False),
    "padded": {"layout": "padded", "lens_q": (37, 20), "lens_k": (11, 53)},
    "packed": {"layout": "packed", "lens_q": (5, 0, 30), "lens_k": (20, 8, 21)},
    "rank3": {"layout": "rank3"},
    "decode": {
        "seqlen_q": 3,
        "seqlen_k": 700,
        "keys": "staircase",
        "sinks": (4, 1),
        "options": {"causal": True, "causal_alignment": "bottom_right", "sliding_window": (600, 0), "logits_soft_cap": 20.0},
    },
    "everything": {
        "layout": "padded",
        "lens_q": (37, 20),
        "lens_k": (11, 53),
        "bias": (1, 4, 37, 53),
        "attention_mask": (37, 53),
        "segments": 2,
        "sinks": (4, 2),
        "options": {
            "causal": True,
            "causal_alignment": "bottom_right",
            "sliding_window": (30, 0),
            "logits_soft_cap": 4.0,
            "dropout_prob": 0.1,
            "dropout_seed": 2**63 + 5,
            "softmax_scale": 0.3,
        },
    },
}

SMALL = [case for dtype in DTYPES for case in variants(Case(id=dtype, dtype=dtype), FEATURES)]

SMALLEST = Case(id="edge", batch=1, seqlen_q=3, seqlen_k=5, heads_q=2, heads_k=1, head_dim=4, head_dim_v=4)
MASKED = {"causal": options(causal=True), "full": {}}


def lengths_around_tiles():
    dtypes = itertools.cycle(("float32", "bfloat16", "float16", "float64"))
    for tile, delta in itertools.product((16, 32, 48, 64, 96, 128), (-1, 0, 1)):
        n = tile + delta
        base = dataclasses.replace(SMALLEST, id=f"length{n}", head_dim=16, head_dim_v=16, dtype=next(dtypes), keys="staircase")
        shapes = {
            "square-causal": {"seqlen_q": n, "seqlen_k": n} | options(causal=True),
            "few_queries": {"seqlen_q": 2, "seqlen_k": n},
            "few_keys": {"seqlen_q": n, "seqlen_k": 2},
            "shifted": {"seqlen_q": n, "seqlen_k": n + 7} | options(causal=True, causal_alignment="bottom_right"),
            "window": {"seqlen_q": n, "seqlen_k": 2 * n} | options(sliding_window=(n // 2, n // 3)),
        }
        yield from variants(base, shapes)


def edge_cases():
    yield from lengths_around_tiles()
    yield from variants(
        SMALLEST,
        {
            "one": {"seqlen_q": 1, "seqlen_k": 1, "heads_q": 1, "head_dim": 1, "head_dim_v": 1},
            "no_batch": {"batch": 0},
            "no_queries": {"seqlen_q": 0},
            "no_keys": {"seqlen_k": 0},
            "no_keys_sinks": {"seqlen_k": 0, "sinks": (2, 3)},
            "no_heads": {"heads_q": 0, "heads_k": 0},
            "no_query_heads": {"heads_q": 0, "heads_k": 3},
            "no_keys_dropout": {"seqlen_k": 0} | options(dropout_prob=0.5, dropout_seed=0),
            "long_row": {"seqlen_q": 1, "seqlen_k": 5000, "keys": "staircase"},
            "long_row_bf16": {"seqlen_q": 1, "seqlen_k": 5000, "dtype": "bfloat16", "head_dim": 64},
            "long_rows": {"seqlen_q": 3, "seqlen_k": 3001, "heads_q": 8, "sinks": (1, 1)} | options(causal=True, causal_alignment="bottom_right"),
            "large_scores": options(softmax_scale=40.0),
            "negative_scale": options(softmax_scale=-1.5),
            "zero_scale": options(softmax_scale=0.0),
            "tiny_scale": {"attention_mask": (1, 1)} | options(softmax_scale=1e-30, causal=True),
            "subnormal_scale": {"bias": (1, 1)} | options(softmax_scale=1e-42, causal=True),
            "many_sinks": {"sinks": (2, 130)},
            "one_sink_for_all": {"sinks": (1, 1)},
            "sink_list_for_all": {"sinks": (3,)},
            "high_sinks": {"sinks": (2, 2), "sink_offset": 60.0},
            "low_sinks": {"sinks": (2, 2), "sink_offset": -60.0},
            "high_sinks_f16": {"sinks": (2, 2), "sink_offset": 12.0, "dtype": "float16"},
            "one_head_sink": {"heads_q": 1, "sinks": (1,)},
            "little_dropout": options(dropout_prob=1e-9, dropout_seed=1),
            "much_dropout": options(dropout_prob=0.99, dropout_seed=2**64 - 1),
            "small_cap": options(logits_soft_cap=0.01),
            "large_cap": options(logits_soft_cap=1e4, softmax_scale=10.0),
        },
    )
    for (name, shape), (mask_name, mask) in itertools.product(
        {"tall": (40, 9), "tall70": (70, 69), "wide": (9, 70), "row": (1, 33), "column": (33, 1)}.items(),
        {
            "top_left": options(causal=True),
            "bottom_right": options(causal=True, causal_alignment="bottom_right"),
            "window_top_left": options(sliding_window=(3, 2)),
            "window_bottom_right": options(sliding_window=(2, 3), causal_alignment="bottom_right"),
            "window_right_only": options(sliding_window=(None, 0), causal_alignment="bottom_right"),
            "window_left_only": options(sliding_window=(4, -1)),
            "window_zero": options(sliding_window=0),
            "window_causal": options(sliding_window=(6, 3), causal=True, causal_alignment="bottom_right"),
            "window_int": options(sliding_window=20),
            "window_huge": options(sliding_window=(2**40, 2**62)),
        }.items(),
    ):
        yield dataclasses.replace(SMALLEST, id=f"edge-{name}-{mask_name}", seqlen_q=shape[0], seqlen_k=shape[1], **mask)
    for heads_q, heads_k in ((1, 1), (8, 8), (8, 1), (24, 3), (128, 1), (9, 3), (33, 11)):
        for seqlen_q in (1, 3, 18):
            yield dataclasses.replace(
                SMALLEST, id=f"edge-heads{heads_q}_{heads_k}x{seqlen_q}", heads_q=heads_q, heads_k=heads_k, seqlen_q=seqlen_q, seqlen_k=21, sinks=(heads_q, 1)
            )
    dims = [*itertools.product((1, 3, 5, 7, 17), (1, 3, 5, 7, 17)), (8, 64), (64, 8), (15, 33), (31, 9), (63, 65), (80, 80), (96, 96), (100, 100)]
    dims += [(112, 112), (128, 128), (129, 127), (192, 128), (256, 256), (255, 257), (512, 512), (576, 512), (575, 511), (576, 1), (1, 512)]
    for (head_dim, head_dim_v), dtype in itertools.product(dims, ("float32", "bfloat16")):
        yield dataclasses.replace(
            SMALLEST, id=f"edge-dims{head_dim}_{head_dim_v}-{dtype}", head_dim=head_dim, head_dim_v=head_dim_v, dtype=dtype, seqlen_q=19, seqlen_k=35, batch=2
        )
    for dtype in DTYPES:
        yield dataclasses.replace(SMALLEST, id=f"edge-dims576_512-all-{dtype}", head_dim=576, head_dim_v=512, dtype=dtype, seqlen_k=70, heads_q=16)
    for memory, dtype in itertools.product(MEMORY, DTYPES):
        for head_dim, seqlen_k in ((32, 53), (7, 19)):
            base = Case(id=f"memory-{memory}-{dtype}-{head_dim}", memory=memory, dtype=dtype, head_dim=head_dim, head_dim_v=head_dim, seqlen_k=seqlen_k)
            if memory == "v_in_k":
                base = dataclasses.replace(base, head_dim_v=head_dim - 3)
            if memory == "fused":
                base = dataclasses.replace(base, seqlen_q=seqlen_k)
            yield dataclasses.replace(base, options={"causal": True})
    for memory in ("heads_first", "gaps", "bytes", "reversed"):
        yield from variants(Case(id=f"memory-{memory}", memory=memory), {"packed": FEATURES["packed"], "padded": FEATURES["padded"], "rank3": FEATURES["rank3"]})
    yield from option_shapes()
    yield from varying_lengths()


def option_shapes():
    base = Case(id="shape", seqlen_q=20, seqlen_k=33)
    for shape in ((2, 4, 20, 33), (1, 4, 20, 33), (2, 1, 20, 33), (2, 4, 1, 33), (2, 4, 20, 1), (20, 33), (4, 20, 33), (33,), (1,), (), (1, 1, 1, 1), (4, 1, 1)):
        name = "x".join(map(str, shape)) or "scalar"
        yield dataclasses.replace(base, id=f"bias-{name}", bias=shape)
        yield dataclasses.replace(base, id=f"mask-{name}", attention_mask=shape, mask_dtype="int8")
    for dtype, bias_dtype in itertools.product(DTYPES, DTYPES):
        yield dataclasses.replace(base, id=f"bias-{bias_dtype}-with-{dtype}", dtype=dtype, bias_dtype=bias_dtype, bias=(4, 20, 33))
    for mask_dtype in ("bool", "int8", "int16", "int32", "int64", "uint8"):
        yield dataclasses.replace(base, id=f"mask-{mask_dtype}", mask_dtype=mask_dtype, attention_mask=(2, 4, 20, 33))
    for dtype, logits in itertools.product(DTYPES, ("float16", "bfloat16", "same")):
        logits = ("float64" if dtype == "float64" else "float32") if logits == "same" else logits
        yield dataclasses.replace(base, id=f"logits-{logits}-with-{dtype}", dtype=dtype, options={"logits_dtype": numpy_dtype(logits)})
    for precision in ("highest", "high", "default"):
        yield dataclasses.replace(base, id=f"precision-{precision}-bfloat16", dtype="bfloat16", options={"precision": precision})
    yield dataclasses.replace(base, id="rank3-everything", layout="rank3", bias=(4, 20, 33), attention_mask=(20, 33), segments=2, sinks=(4, 1))


def varying_lengths():
    lens_q, lens_k = (1, 0, 17, 16, 33, 0), (40, 3, 0, 16, 31, 0)
    masks = {
        "full": {},
        "causal": options(causal=True),
        "bottom_right": options(causal=True, causal_alignment="bottom_right"),
        "window": options(sliding_window=(6, 2), causal_alignment="bottom_right"),
        "sinks": {"sinks": (4, 2)},
        "bias": {"bias": (6, 1, 34, 41)},
        "mask": {"attention_mask": (6, 4, 33, 40)},
        "broadcast_bias": {"bias": (4, 1, 40)},
        "segments": {"segments": 2},
        "dropout": options(dropout_prob=0.3, dropout_seed=99),
    }
    total_q, total_k = sum(lens_q), sum(lens_k)
    yield from variants(
        Case(id="packed", layout="packed", lens_q=lens_q, lens_k=lens_k, seqlen_q=total_q + 3, seqlen_k=total_k + 5, dtype="bfloat16"), masks
    )
    yield from variants(Case(id="padded", layout="padded", batch=6, lens_q=lens_q, lens_k=lens_k, seqlen_q=36, seqlen_k=43), masks)
    yield from variants(
        Case(id="padded", layout="padded", seqlen_q=20, seqlen_k=30),
        {
            "only_q": {"lens_q": (7, 20)},
            "only_k": {"lens_k": (30, 1)} | options(causal=True, causal_alignment="bottom_right"),
            "all_empty": {"lens_q": (0, 0), "lens_k": (0, 0), "sinks": (4, 1)},
        },
    )
    yield Case(id="packed-nothing", layout="packed", lens_q=(0,), lens_k=(0,), seqlen_q=2, seqlen_k=2)
    yield Case(id="packed-one_of_many", layout="packed", lens_q=(0,) * 20 + (9,) + (0,) * 20, lens_k=(1,) * 20 + (9,) + (0,) * 20, seqlen_q=9, seqlen_k=29)


EDGE = list(edge_cases())

MODELS = {
    "llama2_7b": {"heads_q": 32, "heads_k": 32, "head_dim": 128, "head_dim_v": 128},
    "llama3_8b": {"heads_q": 32, "heads_k": 8, "head_dim": 128, "head_dim_v": 128},
    "smollm2_135m": {"heads_q": 9, "heads_k": 3, "head_dim": 64, "head_dim_v": 64},
    "deepseek_v3": {"heads_q": 128, "heads_k": 128, "head_dim": 192, "head_dim_v": 128},
    "deepseek_v3_absorbed": {"heads_q": 128, "heads_k": 1, "head_dim": 576, "head_dim_v": 512, "memory": "v_in_k", "options": {"softmax_scale": 192**-0.5}},
    "mha2mla_llama2_absorbed": {"heads_q": 32, "heads_k": 1, "head_dim": 288, "head_dim_v": 256, "memory": "v_in_k", "options": {"softmax_scale": 128**-0.5}},
    "mha2mla_smollm_135m": {"heads_q": 9, "heads_k": 9, "head_dim": 64, "head_dim_v": 64},
    "gpt_oss_20b": {"heads_q": 64, "heads_k": 8, "head_dim": 64, "head_dim_v": 64, "sinks": (64, 1), "options": {"sliding_window": (127, 0)}},
    "gemma2_9b": {"heads_q": 16, "heads_k": 8, "head_dim": 256, "head_dim_v": 256, "options": {"logits_soft_cap": 50.0, "softmax_scale": 1 / 16}},
}


def model_case(model, kind, seqlen_q, seqlen_k, dtype, batch=1):
    shapes = dict(MODELS[model])
    shapes["options"] = shapes.get("options", {}) | {"causal": True, "causal_alignment": "bottom_right"}
    name = f"{model}-{kind}-B{batch}-{seqlen_q}x{seqlen_k}-{dtype}"
    return Case(id=name, batch=batch, seqlen_q=seqlen_q, seqlen_k=seqlen_k, dtype=dtype, **shapes)


REAL = [
    model_case(model, kind, *lengths, dtype, batch)
    for model in MODELS
    for kind, lengths, batch in (("prefill", (50, 50), 1), ("chunk", (17, 150), 1), ("decode", (1, 300), 2))
    for dtype in ("float32", "bfloat16")
]

BENCH = [
    model_case(model, kind, *lengths, dtype, batch)
    for model in MODELS
    for kind, lengths, batch in (("prefill", (2048, 2048), 1), ("chunk", (128, 4096), 1), ("decode", (1, 8192), 4))
    for dtype in ("float32", "bfloat16")
] + [
    Case(id=f"square{n}-{name}-{dtype}", batch=1, seqlen_q=n, seqlen_k=n, heads_q=32, heads_k=32, head_dim=128, head_dim_v=128, dtype=dtype, **mask)
    for n in (512, 2048, 8192)
    for name, mask in MASKED.items()
    for dtype in ("float32", "bfloat16")
]
