"""The problems of mla_attention that tests and benches share: SMALL, EDGE, REAL, BENCH, lists of MlaAttentionCase.

`arrays(library, seed)` builds the keyword arguments of `attile.mla_attention`. What must not be read is NaN: padding, rows past the last
sequence, gaps between strided rows, rope keys that no query may see by position.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import reference
from cases import DTYPES, FEATURES, Case, convert, numpy_dtype, place

# Where the rope parts are: (of b_q, of b_k); "inside": the end of the query.
ROPES = {
    "none": (None, None),
    "inside": ("inside", "shared"),
    "inside_heads": ("inside", "heads"),
    "shared": ("shared", "shared"),
    "heads": ("heads", "heads"),
    "q_heads": ("heads", "shared"),
    "k_heads": ("shared", "heads"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class MlaAttentionCase:
    """One problem of mla_attention. Lengths make it `packed` (rank 2) or `padded` (rank 3)."""

    id: str
    batch: int = 2
    seqlen_q: int = 37  # of the array; padded: at least the longest; packed: the total
    seqlen_k: int = 53
    heads_q: int = 4
    heads_k: int = 2
    rank: int = 40
    nope: int = 16
    rope_dim: int = 8
    head_dim_v: int = 24
    dtype: str = "float32"
    rope: str = "inside"
    layout: str = "dense"  # dense, rank2, padded, packed
    lens: tuple[int, ...] | None = None
    bias: tuple[int, ...] | None = None
    attention_mask: tuple[int, ...] | None = None
    sinks: tuple[int, ...] | None = None
    memory: str = "contiguous"
    options: Mapping = field(default_factory=dict)  # passed on as they are

    def __str__(self):
        return self.id

    def flops(self):
        """Multiplications and additions of attention, for the pairs that position masks let through, and of one rebuilding."""
        lens = self.lens if self.lens is not None else (self.seqlen_k,) * (self.batch if self.layout == "dense" else 1)
        dims = {"head_dim": self.nope + (self.rope_dim if self.rope != "none" else 0), "head_dim_v": self.head_dim_v}
        lens_q = self.lens if self.lens is not None else (self.seqlen_q,) * len(lens)
        attention = Case(id="", batch=len(lens), heads_q=self.heads_q, heads_k=self.heads_k, lens_q=lens_q, lens_k=lens, options=self.options, **dims)
        return attention.flops() + 2 * sum(lens) * self.heads_k * self.rank * (self.nope + self.head_dim_v)

    def arrays(self, library="numpy", seed=0):
        """The keyword arguments of the call."""
        call = self.numpy_arrays(np.random.default_rng(seed))
        return {name: convert(x, library) if isinstance(x, np.ndarray) else x for name, x in call.items()}

    def numpy_arrays(self, rng):
        leading = () if self.layout in ("rank2", "packed") else (self.batch,)
        b_q, b_k = ROPES[self.rope]
        tokens_q, tokens_k = (*leading, self.seqlen_q), (*leading, self.seqlen_k)
        shapes = {
            "query": (*tokens_q, self.heads_q, self.nope + (self.rope_dim if b_q == "inside" else 0)),
            "key_value": (*tokens_k, self.rank),
            "w_kc": (self.rank, self.heads_k, self.nope),
            "w_vc": (self.rank, self.heads_k, self.head_dim_v),
        }
        per_head = {"shared": (), "heads": (self.heads_q,)}
        if b_q in per_head:
            shapes["b_q"] = (*tokens_q, *per_head[b_q], self.rope_dim)
        if b_k in per_head:
            shapes["b_k"] = (*tokens_k, *per_head[b_k], self.rope_dim)
        size = {"w_kc": self.rank**-0.5, "w_vc": self.rank**-0.5}
        call = {name: (rng.standard_normal(shape) * size.get(name, 1)).astype(numpy_dtype(self.dtype)) for name, shape in shapes.items()}
        call |= dict(self.options)
        if self.lens is not None:
            call["cu_seqlens"] = np.cumsum((0, *self.lens)).astype(np.int32)
        if self.bias is not None:
            call["bias"] = rng.standard_normal(self.bias).astype(numpy_dtype(self.dtype))
        if self.attention_mask is not None:
            call["attention_mask"] = rng.random(self.attention_mask) < 0.7
        if self.sinks is not None:
            call["softmax_aux"] = rng.standard_normal(self.sinks).astype(numpy_dtype(self.dtype))
        self.poison(call)
        if self.memory != "contiguous":
            call |= {name: place(call[name], self.memory) for name in shapes if self.memory != "heads_first" or call[name].ndim > 2}
        return call

    def poison(self, call):
        """NaN wherever nothing may be read. A latent is a value too, so it may be NaN outside the lengths only; a rope key, where no query looks."""
        queries, latents, ropes = (np.zeros((*call[name].shape[: call["key_value"].ndim - 1], 1, 1), bool) for name in ("query", "key_value", "key_value"))
        cu = call.get("cu_seqlens")
        options = {name: call[name] for name in ("causal", "causal_alignment", "sliding_window") if name in call}
        for piece in reference.sequences(queries, ropes, latents, cum_seqlens_q=cu, cum_seqlens_k=cu, **options):
            piece.q[...] = True
            piece.k[piece.seen.any((0, 1))] = True
            piece.v[...] = True
        for name, valid in (("query", queries), ("b_q", queries), ("key_value", latents), ("b_k", ropes)):
            if name in call:
                call[name][~valid[..., 0, 0]] = np.nan


def variants(base, changes):
    return [dataclasses.replace(base, **({"id": f"{base.id}-{name}"} | change)) for name, change in changes.items()]


def options(**kw):
    return {"options": kw}


def features():
    """Those of flash_attention that mla_attention has, the rope forms, and all at once."""
    for name in ("full", "causal", "bottom_right", "window", "window_bottom_right", "bias", "mask", "sinks", "softcap", "dropout"):
        yield name, FEATURES[name]
    for rope in ROPES:
        yield f"rope_{rope}", {"rope": rope} | options(causal=True)
    square = {"seqlen_q": 37, "seqlen_k": 37}
    yield "padded", square | {"layout": "padded", "lens": (20, 37)} | options(causal=True)
    yield "packed", {"layout": "packed", "lens": (5, 0, 30), "seqlen_q": 38, "seqlen_k": 38, "rope": "heads"}
    yield "rank2", {"layout": "rank2"}
    yield (
        "everything",
        square
        | {"layout": "padded", "lens": (37, 20), "bias": (1, 4, 37, 37), "attention_mask": (37, 37), "sinks": (4, 2), "rope": "k_heads"}
        | options(causal=True, sliding_window=(30, 0), logits_soft_cap=4.0, dropout_prob=0.1, dropout_seed=2**63 + 5, softmax_scale=0.3),
    )


SMALL = [case for dtype in DTYPES for case in variants(MlaAttentionCase(id=dtype, dtype=dtype), dict(features()))]


def edge_cases():
    smallest = MlaAttentionCase(id="edge", batch=1, seqlen_q=3, seqlen_k=5, heads_q=2, heads_k=1, rank=6, nope=4, rope_dim=2, head_dim_v=4)
    yield from variants(
        smallest,
        {
            "one": {"seqlen_q": 1, "seqlen_k": 1, "heads_q": 1, "rank": 1, "nope": 1, "rope_dim": 1, "head_dim_v": 1},
            "no_batch": {"batch": 0},
            "no_queries": {"seqlen_q": 0},
            "no_keys": {"seqlen_k": 0},
            "no_keys_sinks": {"seqlen_k": 0, "sinks": (2, 3)},
            "no_heads": {"heads_q": 0, "heads_k": 0},
            "no_query_heads": {"heads_q": 0, "heads_k": 3},
            "long_row": {"seqlen_q": 1, "seqlen_k": 5000},
            "long_row_bf16": {"seqlen_q": 1, "seqlen_k": 5000, "dtype": "bfloat16", "rank": 64},
            "sink_list": {"sinks": (3,)},
            "empty_rows": {"seqlen_q": 9, "sinks": (2, 1)} | options(causal=True, causal_alignment="bottom_right"),
            "negative_scale": options(softmax_scale=-1.5),
            "packed_nothing": {"layout": "packed", "lens": (0, 0), "seqlen_q": 2, "seqlen_k": 2},
            "padded_nothing": {"layout": "padded", "lens": (0,), "seqlen_q": 4, "seqlen_k": 4, "sinks": (2, 1)},
        },
    )
    for heads, dtype in itertools.product(((1, 1), (3, 3), (16, 16), (24, 3), (63, 63), (128, 128), (128, 1)), ("float32", "bfloat16")):
        for rope in ("inside", "heads"):
            yield MlaAttentionCase(id=f"heads{heads[0]}_{heads[1]}-{rope}-{dtype}", heads_q=heads[0], heads_k=heads[1], dtype=dtype, rope=rope, batch=1, seqlen_q=5)
    dims = [(1, 1, 1, 1), (3, 5, 7, 9), (17, 16, 16, 16), (33, 31, 3, 65), (64, 64, 8, 64), (130, 20, 12, 100), (384, 32, 0, 32), (512, 128, 64, 128)]
    dims += [(7, 560, 16, 512), (1024, 16, 8, 16)]
    for (rank, nope, rope_dim, head_dim_v), dtype in itertools.product(dims, ("float32", "bfloat16")):
        rope = {"rope": "none"} if rope_dim == 0 else {"rope_dim": rope_dim}
        yield MlaAttentionCase(
            id=f"dims{rank}_{nope}_{rope_dim}_{head_dim_v}-{dtype}", rank=rank, nope=nope, head_dim_v=head_dim_v, dtype=dtype, batch=1, seqlen_q=19, **rope
        )
    for tile, delta in itertools.product((48, 144), (-1, 0, 1)):
        n = tile + delta
        yield dataclasses.replace(smallest, id=f"length{n}", seqlen_q=n, seqlen_k=n, rank=16, **options(causal=True))
        yield dataclasses.replace(smallest, id=f"length{n}-bfloat16", seqlen_q=20, seqlen_k=n, rank=16, nope=8, dtype="bfloat16")
    for memory, dtype in itertools.product(("gaps", "offset", "bytes", "reversed", "readonly"), ("float32", "bfloat16")):
        yield MlaAttentionCase(id=f"memory-{memory}-{dtype}", memory=memory, dtype=dtype, rope="heads", options={"causal": True})
        yield MlaAttentionCase(id=f"memory-{memory}-{dtype}-odd", memory=memory, dtype=dtype, rope="q_heads", rank=13, nope=7, rope_dim=3, head_dim_v=5)
    lens = (1, 0, 17, 16, 33, 0)
    for layout, dtype in itertools.product(("packed", "padded"), ("float32", "bfloat16")):
        n = sum(lens) + 3 if layout == "packed" else 36
        base = MlaAttentionCase(id=f"{layout}-{dtype}", layout=layout, lens=lens, batch=6, seqlen_q=n, seqlen_k=n, dtype=dtype)
        yield from variants(
            base,
            {
                "causal": options(causal=True),
                "window": options(sliding_window=(6, 2), causal_alignment="bottom_right"),
                "sinks": {"sinks": (4, 2)},
                "bias": {"bias": (6, 1, 34, 35)},
                "dropout": options(dropout_prob=0.3, dropout_seed=99),
                "heads": {"rope": "heads"},
            },
        )


EDGE = list(edge_cases())

MODELS = {
    "deepseek_v2_lite": {"heads_q": 16, "heads_k": 16, "rank": 512, "nope": 128, "rope_dim": 64, "head_dim_v": 128},
    "mha2mla_llama2": {"heads_q": 32, "heads_k": 32, "rank": 512, "nope": 112, "rope_dim": 16, "head_dim_v": 128, "rope": "heads"},
    "minilm": {"heads_q": 12, "heads_k": 12, "rank": 384, "nope": 32, "head_dim_v": 32, "rope": "none"},
}


def model_cases(lengths, dtypes=("float32", "bfloat16")):
    for (model, shape), (n, m), dtype in itertools.product(MODELS.items(), lengths, dtypes):
        mask = {} if model == "minilm" else {"causal": True, "causal_alignment": "bottom_right"}
        yield MlaAttentionCase(id=f"{model}-{n}x{m}-{dtype}", batch=1, seqlen_q=n, seqlen_k=m, dtype=dtype, **shape, options=mask)


REAL = list(model_cases(((50, 50), (17, 150), (1, 200))))
BENCH = list(model_cases(((2048, 2048), (128, 4096), (1, 8192))))
