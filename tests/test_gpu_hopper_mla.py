"""mla_decode_sm90 on a Hopper GPU: float64 and FlashMLA's tolerance on its kind of grid and beyond, the generic kernel, equal bits, graphs.

Whatever may not be read is NaN (rows past a length, pages that no sequence has), and unused entries of a page table are no page's number.
"""

import dataclasses
import math

import attile
import gpu
import pytest
from attile import FlashMLAConfig

torch = pytest.importorskip("torch")

KERNEL = "mla_decode_sm90"
NOWHERE = 2**30
NAMES = [row["name"] for row in gpu.CONFIG["kernels"] if row["available"] and row["function"] == "mla_decode"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(KERNEL not in NAMES, reason=f"no GPU here runs {KERNEL}")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A call of mla_decode; page_size None: a dense cache."""

    lens: tuple[int, ...]
    heads: int = 16
    seqlen_q: int = 1
    latent: int = 512
    rope: int = 64
    page_size: int | None = 64
    lens_given: bool = True  # or every length is that of a dense cache
    head_rope: bool = False
    causal: bool = True
    staircase: bool = False  # the row maximum rises by about 2 a tile
    nan_query: bool = False
    sinks: tuple[int, int] | None = None
    cap: float | None = None
    scale: float | None = None
    dtype: str = "bfloat16"
    index_dtype: str = "int32"
    separate: bool = False  # ckv and kpe are not views of one array
    ckv_scale: float | None = None  # ckv is float8_e4m3, of numbers divided by this; separate

    def __str__(self):
        changed = (f for f in dataclasses.fields(self) if f.name == "lens" or getattr(self, f.name) != f.default)
        text = {f.name: getattr(self, f.name) for f in changed}
        text["lens"] = f"{len(self.lens)}x{max(self.lens)}" if len(self.lens) > 4 else self.lens
        return "-".join(f"{name}={value}" for name, value in text.items()).replace(" ", "")

    def call(self, seed=0):
        g = torch.Generator(device="cuda").manual_seed(seed)
        dtype, index_dtype = getattr(torch, self.dtype), getattr(torch, self.index_dtype)
        randn = lambda *shape: torch.randn(*shape, generator=g, device="cuda").to(dtype)
        batch, rope_heads = len(self.lens), self.heads if self.head_rope else 1
        scale = (128 + self.rope) ** -0.5 if self.scale is None else self.scale
        q = randn(batch, self.seqlen_q, self.heads, self.latent + self.rope)
        size = self.page_size or max(self.lens)
        counts = [-(-n // size) for n in self.lens]
        total = sum(counts) + 3 if self.page_size else batch
        order = torch.randperm(total, generator=g, device="cuda")
        kv = (torch.randn(total, size, self.latent + rope_heads * self.rope, generator=g, device="cuda") / 10).clamp(-1, 1).to(dtype)
        used = torch.zeros(total, size, dtype=torch.bool, device="cuda")
        place = torch.zeros(total, size, device="cuda")
        table = torch.full((batch, max(counts) + 2), NOWHERE, dtype=index_dtype, device="cuda")
        first = 0
        for b, (length, count) in enumerate(zip(self.lens, counts, strict=True)):
            own = order[first : first + count] if self.page_size else torch.tensor([b], device="cuda")[:count]
            first += count
            table[b, :count] = own.to(index_dtype)
            keys = torch.arange(count * size, device="cuda").view(count, size)
            used[own], place[own] = keys < length, keys.float()
        if self.staircase:
            q[..., 0] = 8
            kv[..., 0] = (place / 32 / (8 * scale)).to(dtype)
        kv[~used] = math.nan
        if self.nan_query:
            q[0, 0, 0, 5] = math.nan
        ckv, kpe = kv[..., : self.latent], kv[..., self.latent :]
        if self.separate:
            ckv, kpe = ckv.contiguous(), kpe.contiguous()
        if self.head_rope:
            kpe = kpe.unflatten(-1, (rope_heads, self.rope))
        if self.ckv_scale is not None:
            ckv = (ckv.float() / self.ckv_scale).to(torch.float8_e4m3fn)
        call = {"q_nope": q[..., : self.latent], "q_pe": q[..., self.latent :], "ckv": ckv, "kpe": kpe, "softmax_scale": scale, "causal": self.causal}
        if self.rope == 0:
            call |= {"q_pe": None, "kpe": None}
        if self.ckv_scale is not None:
            call["ckv_scale"] = self.ckv_scale
        if self.lens_given:
            call["kv_lens"] = torch.tensor(self.lens, dtype=index_dtype, device="cuda")
        if self.page_size:
            call["page_table"] = table
        if self.sinks:
            call["softmax_aux"] = randn(*self.sinks) * 2
        return call | ({} if self.cap is None else {"logits_soft_cap": self.cap})


def reference(call):
    """out and lse in float64, a sequence at a time."""
    q = call["q_nope"].double() if call["q_pe"] is None else torch.cat((call["q_nope"], call["q_pe"]), -1).double()
    batch, n, heads, latent = call["q_nope"].shape
    out = torch.zeros(batch, n, heads, latent, dtype=torch.float64, device="cuda")
    lse = torch.full((batch, heads, n), -math.inf, dtype=torch.float64, device="cuda")
    sinks = call.get("softmax_aux")
    sinks = torch.zeros(heads, 0, device="cuda") if sinks is None else sinks.expand(heads, -1)
    cap = call.get("logits_soft_cap")
    latents = call["ckv"].double() * call["ckv_scale"] if "ckv_scale" in call else call["ckv"]
    lens = call["kv_lens"].tolist() if "kv_lens" in call else [call["ckv"].shape[1]] * batch
    for b, length in enumerate(lens):
        ckv, kpe = (None if x is None else rows_of(x, call.get("page_table"), b, length).double() for x in (latents, call["kpe"]))
        s = torch.einsum("ihd,jd->hij", q[b, ..., :latent], ckv)
        if kpe is not None:
            s += torch.einsum("ihd,jd->hij" if kpe.dim() == 2 else "ihd,jhd->hij", q[b, ..., latent:], kpe)
        s *= call["softmax_scale"]
        if cap is not None:
            s = cap * torch.tanh(s / cap)
        if call["causal"]:
            i, j = torch.arange(n, device="cuda")[:, None], torch.arange(length, device="cuda")
            s = s.masked_fill(j > i + length - n, -math.inf)
        lse[b] = torch.logsumexp(torch.cat((s, sinks.double()[:, None].expand(-1, n, -1)), -1), -1)
        p = torch.exp(s - torch.where(lse[b].isinf(), 0.0, lse[b])[..., None])
        out[b] = torch.einsum("hij,jd->ihd", p, ckv)
    return out, lse


def rows_of(cache, table, b, length):
    if table is None:
        return cache[b, :length]
    return cache[table[b, : -(-length // cache.shape[1])].long()].flatten(0, 1)[:length]


def decode(call, kernel=KERNEL, **more):
    call = call | {"return_lse": True, "cfg": FlashMLAConfig(kernel=kernel)} | more
    call.setdefault("out", torch.full_like(call["q_nope"], math.nan, memory_format=torch.contiguous_format))
    return attile.mla_decode(**call)


def check(got, expected):
    """FlashMLA's rule: NaN in the same places, each element within 8e-4 or 2.01 / 128 of it, cosine difference below 5e-6; lse 8.01 / 65536."""
    (out, lse), (ref, ref_lse) = got, expected
    out = out.double()
    assert torch.equal(out.isnan(), ref.isnan()), "NaN in other places"
    x, y = out.nan_to_num(), ref.nan_to_num()
    error = (x - y).abs()
    wrong = (error >= 8e-4) & (error >= y.abs() * 2.01 / 128)
    assert not wrong.any(), f"{int(wrong.sum())} elements, largest error {error.max().item()}, first at {wrong.nonzero()[0].tolist()}"
    size = (x * x + y * y).sum().item()
    assert size == 0 or 1 - 2 * (x * y).sum().item() / size < 5e-6
    assert torch.equal(lse.isnan(), ref_lse.isnan())
    assert torch.equal(lse.isinf(), ref_lse.isinf())
    finite = ref_lse.isfinite()
    assert ((lse[finite] - ref_lse[finite]).abs() <= ref_lse[finite].abs().clamp_min(1) * 8.01 / 65536).all()


def same_bits(a, b):
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True))


def lens(count, top, seed):
    g = torch.Generator().manual_seed(seed)
    return tuple([0, 1, 63, 64, 65, 127][:count] + torch.randint(1, top, (max(0, count - 6),), generator=g).tolist())


HEAD_ROPE = {"heads": 32, "rope": 16, "head_rope": True, "separate": True}
FLOAT8 = {"separate": True, "ckv_scale": 0.0625}
SHAPES = {"page_size": None, "lens_given": False}  # shapes alone say what a part is
GRID = [Problem(heads=h, seqlen_q=n, lens=lens(40, 5000, h + n)) for h in (1, 16, 32, 40, 64, 128) for n in (1, 2, 4)]
DIMS = [
    Problem(heads=h, lens=lens(24, 3000, h + latent), latent=latent, rope=rope, seqlen_q=3 if h == 24 else 1)
    for latent, rope in (
        (512, 32), (512, 8), (512, 128), (512, 0), (384, 64), (320, 64), (256, 32), (256, 64), (128, 64), (128, 8), (64, 16), (64, 0), (72, 24), (8, 8),
    )
    for h in (1, 8, 24, 64, 128)
]  # fmt: skip
OTHERS = [
    Problem(heads=64, lens=(64,)),
    Problem(heads=64, seqlen_q=2, lens=(0, 64, 700, 2)),
    Problem(heads=16, page_size=128, lens=lens(40, 5000, 9)),
    Problem(heads=64, lens=lens(12, 9000, 10), staircase=True),
    Problem(heads=64, lens=lens(12, 9000, 10), nan_query=True),
    Problem(heads=128, seqlen_q=2, lens=lens(12, 9000, 10), staircase=True),
    Problem(heads=128, seqlen_q=2, lens=lens(12, 900, 10), causal=False),
    Problem(heads=64, lens=(40000,), staircase=True),
    Problem(heads=128, lens=(1024,) * 128),
    Problem(heads=24, lens=(999,) * 64, latent=256, rope=32, staircase=True),  # two parts each, in clusters
    Problem(heads=40, seqlen_q=2, lens=(999,) * 32, latent=200, rope=8, sinks=(40, 2)),
    *(Problem(heads=24, lens=(999,) * 64, latent=256, rope=32, separate=separate, **SHAPES) for separate in (False, True)),
    Problem(heads=24, seqlen_q=3, lens=(500,) * 40, latent=200, rope=8, sinks=(24, 1), **SHAPES),
    Problem(heads=8, lens=(40,) * 300, latent=256, dtype="float16", **SHAPES),
    Problem(heads=24, lens=lens(24, 3000, 5), latent=256, rope=32, separate=True),
    Problem(heads=64, lens=(300,) * 50, latent=128, rope=64, dtype="float16"),
    Problem(heads=128, lens=lens(140, 5000, 2)),
    Problem(heads=3, seqlen_q=90, lens=(100, 700, 33)),
    Problem(heads=16, lens=lens(1200, 300, 3), latent=64, rope=8),
    Problem(lens=lens(24, 3000, 7), **HEAD_ROPE),
    Problem(lens=lens(140, 4000, 4), **HEAD_ROPE),
    Problem(lens=(2048,) * 8, **HEAD_ROPE),
    *(Problem(lens=(n,) * batch, **HEAD_ROPE | SHAPES) for batch, n in ((8, 2048), (64, 999), (150, 300), (1, 5000))),
    Problem(lens=lens(12, 4000, 5), staircase=True, **HEAD_ROPE),
    Problem(lens=lens(12, 4000, 6), seqlen_q=4, **HEAD_ROPE),
    Problem(lens=lens(12, 4000, 6), **HEAD_ROPE | {"page_size": 32, "heads": 24}),
    Problem(lens=lens(12, 2000, 6), **HEAD_ROPE | {"page_size": None, "latent": 128}),
    *(Problem(heads=h, seqlen_q=n, lens=lens(24, 3000, size), page_size=size, separate=size % 2 == 0) for size in (1, 3, 8, 16, 48, 100) for h, n in ((64, 1), (24, 2))),
    Problem(heads=128, lens=(999,) * 114, page_size=1),
    Problem(heads=16, lens=lens(24, 3000, 1), page_size=1, latent=256, rope=32),
    *(Problem(heads=h, lens=lens(24, 3000, h), page_size=None, latent=latent) for h, latent in ((16, 512), (128, 512), (24, 256), (8, 64))),
    Problem(heads=16, lens=lens(24, 3000, 1), index_dtype="int64"),
    Problem(heads=16, lens=lens(24, 3000, 1), index_dtype="int64", page_size=1),
    *(Problem(heads=h, seqlen_q=2, lens=(0, 1, 3000, 64), sinks=s, page_size=size) for h, s in ((16, (16, 2)), (128, (1, 3))) for size in (64, 1)),
    Problem(heads=64, lens=lens(24, 3000, 2), cap=2.0),
    Problem(heads=64, lens=lens(24, 3000, 2), cap=0.3, sinks=(64, 1), seqlen_q=2, scale=0.3),
    Problem(heads=16, lens=lens(24, 3000, 2), scale=-0.1),
    Problem(heads=16, lens=lens(24, 3000, 2), scale=0.0),
    *(
        Problem(heads=h, seqlen_q=n, lens=lens(24, 3000, latent), latent=latent, rope=rope, dtype="float16")
        for latent, rope in ((512, 64), (512, 128), (384, 64), (256, 32), (64, 8))
        for h, n in ((64, 1), (24, 2), (128, 2))
    ),
    Problem(lens=lens(24, 3000, 7), dtype="float16", **HEAD_ROPE),
    Problem(heads=64, lens=lens(24, 3000, 7), dtype="float16", page_size=1),
    *(Problem(heads=h, seqlen_q=n, lens=lens(40, 5000, h + n), **FLOAT8) for h in (1, 16, 64, 128) for n in (1, 2)),
    *(Problem(heads=24, seqlen_q=2, lens=lens(12, 3000, latent), latent=latent, rope=rope, **FLOAT8) for latent, rope in ((512, 0), (256, 32), (80, 8), (16, 64))),
    Problem(heads=24, lens=lens(12, 3000, 8), **FLOAT8 | {"page_size": None, "ckv_scale": -2.0}),
    Problem(heads=24, lens=lens(12, 3000, 8), page_size=128, index_dtype="int64", sinks=(24, 1), cap=0.5, **FLOAT8),
    Problem(heads=64, lens=lens(12, 9000, 10), staircase=True, **FLOAT8 | {"ckv_scale": 0.37}),
    Problem(heads=64, lens=lens(12, 900, 10), nan_query=True, **FLOAT8),
    # At most 16 rows.
    *(Problem(heads=8, seqlen_q=2, lens=lens(24, 3000, latent), latent=latent, rope=rope, **FLOAT8) for latent, rope in ((512, 8), (512, 0), (384, 64), (256, 32), (80, 8))),
    Problem(heads=16, lens=(8192,) * 128, **FLOAT8),
    Problem(heads=5, seqlen_q=3, lens=lens(1200, 300, 3), **FLOAT8),
    Problem(heads=4, seqlen_q=4, lens=lens(12, 900, 10), causal=False, sinks=(4, 2), **FLOAT8),
    Problem(heads=12, lens=lens(12, 3000, 8), **FLOAT8 | {"page_size": None, "ckv_scale": -2.0}),
    Problem(heads=16, lens=lens(12, 3000, 8), page_size=128, index_dtype="int64", sinks=(16, 1), cap=0.5, **FLOAT8),
    Problem(heads=16, lens=lens(12, 9000, 10), staircase=True, **FLOAT8 | {"ckv_scale": 0.37}),
    Problem(heads=16, lens=lens(12, 900, 10), scale=-0.1, nan_query=True, **FLOAT8),
]


@pytest.mark.parametrize("problem", GRID + DIMS + OTHERS, ids=str)
def test_against_float64(problem):
    call = problem.call()
    check(decode(call), reference(call))


SMALL = [
    Problem(heads=8, lens=(130, 65, 0, 300), latent=64, rope=8),
    Problem(heads=70, seqlen_q=2, lens=(130, 1, 64), latent=128, rope=64, sinks=(70, 1)),
    Problem(heads=8, lens=(130, 65), latent=64, rope=8, page_size=1),
    Problem(heads=16, lens=(130, 700)),
    Problem(heads=80, lens=(130, 200), dtype="float16"),
    Problem(lens=(130, 300), **HEAD_ROPE),
    Problem(heads=24, lens=(300, 300), latent=256, rope=32, separate=True, **SHAPES),
    Problem(lens=(300, 300), **HEAD_ROPE | SHAPES),
    Problem(heads=16, lens=(130, 300), **FLOAT8),
    Problem(heads=7, seqlen_q=2, lens=(130, 0, 700), **FLOAT8),
    Problem(heads=24, lens=(130, 300), **FLOAT8),
]


@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_small_problems(problem):
    """A second or two each under racecheck and memcheck; a large grid takes minutes there."""
    call = problem.call()
    check(decode(call), reference(call))


@pytest.mark.parametrize("problem", GRID[::5] + DIMS[::9] + OTHERS[::6], ids=str)
def test_against_the_generic_kernel(problem):
    """Two kernels, two errors: each may have what float64 allows it."""
    call = problem.call()
    (out, lse), (other, other_lse) = decode(call), decode(call, "mla_decode_generic_sm80")
    assert torch.equal(out.isnan(), other.isnan())
    error, size = (out.double() - other.double()).nan_to_num().abs(), other.double().nan_to_num().abs()
    assert ((error < 1.6e-3) | (error < size * 4.02 / 128)).all()
    torch.testing.assert_close(lse, other_lse, rtol=2e-4, atol=2e-4, equal_nan=True)


@pytest.mark.parametrize(
    "problem",
    [
        *(Problem(heads=h, lens=lens(24, 3000, h), latent=latent, rope=rope) for h in (1, 8, 128) for latent, rope in ((64, 8), (64, 16), (72, 24), (128, 64))),
        Problem(heads=16, lens=lens(1200, 300, 3), latent=64, rope=8),
        Problem(heads=128, seqlen_q=2, lens=(1024,) * 20),
        Problem(heads=24, lens=(999,) * 64, latent=256, rope=32),
        Problem(heads=8, lens=(300,) * 64, latent=64, rope=8),
        Problem(heads=64, lens=(40000,)),
        Problem(heads=8, lens=lens(24, 3000, 4), latent=64, rope=8, page_size=1),
        Problem(heads=16, lens=lens(24, 3000, 4), page_size=3),
        Problem(lens=lens(24, 3000, 4), **HEAD_ROPE | {"latent": 64}),
        Problem(lens=(2048,) * 8, **HEAD_ROPE),
        Problem(lens=(999,) * 64, **HEAD_ROPE | SHAPES),
        Problem(heads=24, lens=(999,) * 64, latent=256, rope=32, separate=True, **SHAPES),
        Problem(heads=8, lens=lens(24, 3000, 4), latent=64, rope=8, **FLOAT8),
        Problem(heads=24, lens=lens(24, 3000, 4), latent=64, rope=8, **FLOAT8),
        *(Problem(heads=h, lens=lens(24, 3000, 4), **FLOAT8) for h in (16, 64)),
    ],
    ids=str,
)
def test_bits_are_equal_over_100_repeats(problem):
    """A fork of FlashMLA had a race that small dims alone showed."""
    call = problem.call()
    first = [x.clone() for x in decode(call)]
    for _ in range(100):
        assert same_bits(decode(call), first)


@pytest.mark.parametrize("more", [{"latent": 72}, {"latent": 80} | FLOAT8], ids=["bfloat16", "float8"])
def test_output_arrays_of_any_strides(more):
    call = Problem(heads=5, seqlen_q=2, lens=(3000, 64, 0), rope=8, **more).call()
    expected, latent = decode(call), more["latent"]
    for shift, width in ((0, latent + 8), (8, latent + 8), (1, latent + 8), (0, latent + 1)):
        room = torch.full((3, 5, 2, width), math.nan, dtype=torch.bfloat16, device="cuda")
        out = room.transpose(1, 2)[..., shift : shift + latent]
        got = decode(call, out=out)
        assert got[0] is out
        assert same_bits((out.contiguous(), got[1]), expected)
        assert int(room.isnan().sum()) == room.numel() - out.numel()


def test_without_lse():
    call = Problem(heads=16, lens=lens(12, 2000, 1)).call()
    out = attile.mla_decode(**call, cfg=FlashMLAConfig(kernel=KERNEL))
    assert same_bits((out,), decode(call)[:1])


def test_replay_with_new_lengths_and_pages():
    problem = Problem(heads=16, lens=(2000,) * 40)
    call = problem.call()
    out, lse = decode(call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode(call, out=out)
        _, lse = decode(call, out=out)
    for seed in range(4):
        call["kv_lens"].copy_(torch.tensor(lens(40, 2000, seed)))
        call["page_table"].copy_(call["page_table"][torch.randperm(40)])
        call["ckv"].copy_(torch.nan_to_num(call["ckv"], nan=0.0))
        call["kpe"].copy_(torch.nan_to_num(call["kpe"], nan=0.0))
        graph.replay()
        torch.cuda.synchronize()
        check((out, lse), reference(call))
        assert same_bits((out, lse), decode(call))


def test_bad_pages_and_lengths_read_nothing_out_of_bounds():
    """Run under memcheck too. What comes out is not defined, but the next call must be right."""
    for page_size in (64, 1):
        call = Problem(heads=16, lens=(300, 64, 1), page_size=page_size).call()
        for name, value in (("page_table", NOWHERE), ("page_table", -5), ("kv_lens", NOWHERE), ("kv_lens", -3)):
            decode(call | {name: torch.full_like(call[name], value)})
        check(decode(call), reference(call))


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (Problem(heads=33, lens=(70,), **{k: v for k, v in HEAD_ROPE.items() if k != "heads"}), "takes rope keys of at most 32 heads: got 33"),
        (Problem(lens=(70,), rope=8, head_rope=True, separate=True), "takes rope keys of heads of 16 dims: got 8"),
        (Problem(heads=128, seqlen_q=70, lens=(100,)), r"takes at most \d+ query rows \(tokens x heads\) a sequence: got 8960"),
        (Problem(lens=(70,), page_size=1, **FLOAT8), "takes float8 latents beside a shared rope key of at most 64 dims, in pages of a multiple of 64 keys"),
        (Problem(lens=(70,), rope=128, page_size=1), "takes at most 64 rope dims in pages that are not multiples of 64 keys: got 128"),
    ],
    ids=str,
)
def test_what_falls_to_the_generic_kernel(problem, reason):
    call = problem.call()
    with pytest.raises(NotImplementedError, match=reason):
        decode(call)
    check(decode(call, None), reference(call))
