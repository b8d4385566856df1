"""The problems of mla_decode that tests and benches share: SMALL, EDGE, REAL, lists of MlaCase.

`arrays(library, seed)` builds the keyword arguments of `attile.mla_decode`. What must not be read is NaN: pages that no sequence has, rows
behind a sequence's length, gaps between the rows of a cache. Unused entries of a page table are no page's number.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from cases import DTYPES, convert, numpy_dtype

GARBAGE = -(2**31) + 5  # in unused entries of a page table


@dataclass(frozen=True, kw_only=True, eq=False)
class MlaCase:
    """One problem of mla_decode."""

    id: str
    batch: int = 2
    seqlen_q: int = 1
    seqlen_k: int = 70  # of a dense cache; the longest sequence of a paged one
    heads: int = 16
    latent: int = 64
    rope: int = 8
    dtype: str = "float32"
    kv_lens: tuple[int, ...] | None = None
    page_size: int | None = None
    head_rope: bool = False  # a rope key for each head
    joined: bool = False  # ckv and kpe are views of one array, with gaps
    staircase: bool = False  # scores rise with the position, so that every tile has a new maximum
    sinks: tuple[int, ...] | None = None
    index_dtype: str = "int32"
    options: Mapping = field(default_factory=dict)

    def __str__(self):
        return self.id

    def lengths(self):
        """The length of each sequence."""
        return (self.seqlen_k,) * self.batch if self.kv_lens is None else self.kv_lens

    def flops(self):
        """Multiplications and additions of both products, for the pairs that causality lets through."""
        n, causal = self.seqlen_q, self.options.get("causal", True)
        pairs = sum(max(0, m - (n - 1 - i) if causal else m) for m in self.lengths() for i in range(n))
        return 2 * pairs * self.heads * (2 * self.latent + self.rope)

    def bytes(self):
        """The cache read once, queries read and out written once."""
        rope = self.rope * (self.heads if self.head_rope else 1)
        rows = self.batch * self.seqlen_q * self.heads * (2 * self.latent + self.rope)
        return (sum(self.lengths()) * (self.latent + rope) + rows) * numpy_dtype(self.dtype).itemsize

    def arrays(self, library="numpy", seed=0):
        """The keyword arguments of the call."""
        call = self.numpy_arrays(np.random.default_rng(seed))
        return {name: convert(x, library) if isinstance(x, np.ndarray) else x for name, x in call.items()}

    def numpy_arrays(self, rng):
        dtype = numpy_dtype(self.dtype)
        q_nope = rng.standard_normal((self.batch, self.seqlen_q, self.heads, self.latent))
        q_pe = rng.standard_normal((self.batch, self.seqlen_q, self.heads, self.rope))
        if self.staircase:
            q_nope = np.abs(q_nope)
        call = {"q_nope": q_nope.astype(dtype), "q_pe": q_pe.astype(dtype) if self.rope else None}
        call |= self.paged_cache(rng) if self.page_size else self.dense_cache(rng)
        if self.sinks is not None:
            call["softmax_aux"] = rng.standard_normal(self.sinks).astype(dtype)
        return call | {"softmax_scale": (self.latent + self.rope) ** -0.5} | dict(self.options)

    def dense_cache(self, rng):
        ckv, kpe = self.cache((self.batch, self.seqlen_k))
        for b, length in enumerate(self.lengths()):
            self.fill(rng, ckv[b], kpe[b], np.arange(length))
        given = {} if self.kv_lens is None else {"kv_lens": np.array(self.kv_lens, self.index_dtype)}
        return {"ckv": ckv, "kpe": kpe if self.rope else None} | given

    def paged_cache(self, rng):
        size, lengths = self.page_size, self.lengths()
        counts = [-(-n // size) for n in lengths]
        pages = rng.permutation(sum(counts) + 3)
        table = np.full((self.batch, max(counts, default=0) + 2), GARBAGE, self.index_dtype)
        ckv, kpe = self.cache((len(pages), size))
        for b, (length, first) in enumerate(zip(lengths, np.cumsum([0, *counts]), strict=False)):
            own = pages[first : first + counts[b]]
            table[b, : counts[b]] = own
            for n, page in enumerate(own):
                self.fill(rng, ckv[page], kpe[page], np.arange(n * size, min(length, (n + 1) * size)))
        lens = np.array(lengths, self.index_dtype)
        return {"ckv": ckv, "kpe": kpe if self.rope else None, "kv_lens": lens, "page_table": table}

    def cache(self, shape):
        """ckv and kpe, all NaN."""
        dtype, rope_heads = numpy_dtype(self.dtype), self.heads if self.head_rope else 1
        width = self.latent + rope_heads * self.rope
        if self.joined:
            both = np.full((*shape, width + 3), np.nan, dtype)[..., 1 : 1 + width]
            ckv, kpe = both[..., : self.latent], both[..., self.latent :]
        else:
            ckv, kpe = np.full((*shape, self.latent), np.nan, dtype), np.full((*shape, rope_heads * self.rope), np.nan, dtype)
        if self.head_rope:
            strides = (*kpe.strides[:-1], self.rope * kpe.itemsize, kpe.itemsize)
            kpe = np.lib.stride_tricks.as_strided(kpe, (*shape, self.heads, self.rope), strides)
        return ckv, kpe

    def fill(self, rng, ckv, kpe, positions):
        """Rows 0 to len(positions) of a page or sequence."""
        n = len(positions)
        step = positions[:, None] / 32 / np.sqrt(self.latent) if self.staircase else 0.0
        ckv[:n] = (rng.standard_normal((n, self.latent)) + step).astype(ckv.dtype)
        kpe[:n] = rng.standard_normal(kpe[:n].shape).astype(kpe.dtype)


def variants(base, changes):
    return [dataclasses.replace(base, id=f"{base.id}-{name}", **change) for name, change in changes.items()]


FEATURES = {
    "dense": {},
    "lens": {"kv_lens": (70, 33)},
    "paged": {"page_size": 16, "kv_lens": (70, 33)},
    "joined": {"joined": True, "page_size": 3, "kv_lens": (7, 64), "index_dtype": "int64"},
    "head_rope": {"head_rope": True},
    "head_rope_paged": {"head_rope": True, "page_size": 1, "joined": True},
    "no_rope": {"rope": 0},
    "tokens": {"seqlen_q": 4},
    "full": {"seqlen_q": 3, "options": {"causal": False}},
    "sinks": {"sinks": (16, 2), "seqlen_q": 2},
    "softcap": {"options": {"logits_soft_cap": 2.0}},
    "everything": {
        "page_size": 5, "kv_lens": (61, 2), "seqlen_q": 3, "head_rope": True, "sinks": (16, 1), "joined": True,
        "options": {"logits_soft_cap": 3.0, "softmax_scale": 0.3},
    },
}  # fmt: skip

SMALL = [case for dtype in DTYPES for case in variants(MlaCase(id=dtype, dtype=dtype), FEATURES)]


def edge_cases():
    dtypes = itertools.cycle(("float32", "bfloat16", "float16"))
    for heads, dtype in itertools.product((1, 3, 16, 24, 32, 63, 128), ("float32", "bfloat16")):
        yield MlaCase(id=f"heads{heads}-{dtype}", heads=heads, dtype=dtype, kv_lens=(70, 41), page_size=16, batch=2)
    for heads in (3, 24, 33):
        yield MlaCase(id=f"head_rope-heads{heads}", heads=heads, dtype="bfloat16", head_rope=True, seqlen_q=2, rope=16)
    yield MlaCase(id="head_rope-heads100-pages3", heads=100, rope=64, head_rope=True, page_size=3, seqlen_q=2, batch=1, seqlen_k=70, dtype="bfloat16")
    yield MlaCase(id="tokens17-heads16", heads=16, seqlen_q=17, latent=128, rope=64, batch=1, seqlen_k=90, dtype="bfloat16", joined=True)
    for (latent, rope), dtype in itertools.product(
        ((8, 8), (8, 0), (16, 8), (24, 40), (56, 120), (72, 24), (128, 32), (256, 64), (504, 56), (512, 16), (512, 64), (512, 128), (512, 0)),
        ("float32", "bfloat16"),
    ):
        yield MlaCase(id=f"dims{latent}_{rope}-{dtype}", latent=latent, rope=rope, dtype=dtype, batch=1, seqlen_k=70, joined=True)
    for dtype in DTYPES:
        yield MlaCase(id=f"deepseek-{dtype}", latent=512, rope=64, dtype=dtype, batch=1, page_size=64, kv_lens=(131,), joined=True)
    for page_size in (1, 3, 16, 64):
        yield MlaCase(id=f"pages{page_size}", page_size=page_size, kv_lens=(200, 0, 1, page_size), batch=4, dtype=next(dtypes))
        yield MlaCase(id=f"pages{page_size}-bfloat16", page_size=page_size, kv_lens=(200, 65), latent=128, rope=64, dtype="bfloat16", joined=True)
    for seqlen_q in (1, 2, 4, 17):
        lens = (40, 0, seqlen_q - 1, seqlen_q, 5)
        for dtype in ("float32", "bfloat16"):
            yield MlaCase(id=f"tokens{seqlen_q}-{dtype}", seqlen_q=seqlen_q, batch=5, seqlen_k=41, kv_lens=lens, heads=5, dtype=dtype)
    for length in (1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 143, 144, 145, 255, 256, 257):
        yield MlaCase(id=f"length{length}", seqlen_k=length, batch=1, dtype=next(dtypes), staircase=True, rope=16, heads=5)
    base = MlaCase(id="edge", batch=1, heads=3, latent=16, seqlen_k=9)
    yield from variants(
        base,
        {
            "no_batch": {"batch": 0},
            "no_tokens": {"seqlen_q": 0},
            "no_heads": {"heads": 0},
            "no_keys": {"seqlen_k": 0},
            "no_keys_sinks": {"seqlen_k": 0, "sinks": (3, 2)},
            "no_lengths": {"batch": 3, "kv_lens": (0, 0, 0), "page_size": 4},
            "one_sink_list": {"sinks": (1, 5)},
            "sink_list": {"sinks": (5,)},
            "large_scores": {"options": {"softmax_scale": 30.0}},
            "negative_scale": {"options": {"softmax_scale": -1.0}},
            "zero_scale": {"options": {"softmax_scale": 0.0}},
            "small_cap": {"options": {"logits_soft_cap": 0.01}},
        },
    )
    for dtype in ("float32", "bfloat16"):
        yield MlaCase(id=f"long-{dtype}", batch=1, seqlen_k=5000, dtype=dtype, heads=2, latent=32, staircase=True)
        yield MlaCase(id=f"long_pages-{dtype}", batch=2, kv_lens=(3001, 70), page_size=64, dtype=dtype, heads=2, latent=32, seqlen_q=2)


EDGE = list(edge_cases())

# Shapes of models, and of the requests that asked for them.
DEEPSEEK = {"latent": 512, "rope": 64, "joined": True}
MHA2MLA = {"heads": 32, "latent": 512, "rope": 16, "head_rope": True}
REAL = [
    MlaCase(id=f"{name}-{dtype}", dtype=dtype, **shape)
    for name, shape in {
        "deepseek_v2_lite": {"heads": 16, "batch": 1, "seqlen_k": 300} | DEEPSEEK,
        "deepseek_v3": {"heads": 128, "batch": 1, "page_size": 64, "kv_lens": (150,), "seqlen_q": 2} | DEEPSEEK,
        "mha2mla": {"batch": 1, "seqlen_k": 130} | MHA2MLA,
    }.items()
    for dtype in ("float32", "bfloat16")
]
BENCH = [
    MlaCase(id=f"{name}-{dtype}", dtype=dtype, **shape)
    for name, shape in {
        "h16-s8192": {"heads": 16, "batch": 1, "seqlen_k": 8192} | DEEPSEEK,
        "h128-s8192": {"heads": 128, "batch": 1, "seqlen_k": 8192} | DEEPSEEK,
        "mha2mla-b8-s2048": {"batch": 8, "seqlen_k": 2048} | MHA2MLA,
    }.items()
    for dtype in ("float32", "bfloat16")
]
