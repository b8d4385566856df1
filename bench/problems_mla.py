"""What is timed of latent attention: mla_decode, mla_attention, and the paged wrapper's run.

Decode's cache is one array [B,T,L+R] as servers keep it, ckv and kpe are views of it; with a rope key for each head, they are two arrays.
"""

from dataclasses import dataclass

import numpy as np
import reference_mla
import tolerance
import tolerance_mla
from cases import numpy_dtype
from mla_attention_cases import MlaAttentionCase
from mla_cases import MlaCase
from problems import CHECKED_ROWS, Contender, Problem, on_lines

import attile

CHECKED_HEADS = 6
SCALE = 192**-0.5  # of DeepSeek's 128 + 64 dims before absorption


@dataclass(frozen=True, kw_only=True)
class Latent(Problem):
    """Common to the calls that take a FlashMLAConfig."""

    @property
    def dtype(self):
        return self.case.dtype

    @property
    def config(self):
        return attile.FlashMLAConfig(kernel=self.kernel) if self.kernel else None

    def flops(self):
        return self.case.flops()


@dataclass(frozen=True, kw_only=True)
class LatentDecode(Latent):
    """mla_decode of one new position of each sequence."""

    case: MlaCase
    function = "mla_decode"

    def bytes(self):
        return self.case.bytes()

    def arrays(self):
        c, rng, dtype = self.case, np.random.default_rng(0), numpy_dtype(self.case.dtype)

        def normal(*shape):
            return rng.standard_normal(shape, np.float32).astype(dtype)

        first = {"q_nope": normal(c.batch, 1, c.heads, c.latent), "q_pe": normal(c.batch, 1, c.heads, c.rope)}
        if c.head_rope:
            first |= {"ckv": normal(c.batch, c.seqlen_k, c.latent), "kpe": normal(c.batch, c.seqlen_k, c.heads, c.rope)}
        else:
            first["cache"] = normal(c.batch, c.seqlen_k, c.latent + c.rope)
        return self.sets_of(first, self.bytes())

    def call(self, arrays):
        """Keyword arguments of mla_decode."""
        named = dict(arrays) | {"softmax_scale": SCALE}
        if "cache" in arrays:
            cache = named.pop("cache")
            named |= {"ckv": cache[..., : self.case.latent], "kpe": cache[..., self.case.latent :]}
        return named

    def explain(self, sets):
        return attile.explain(attile.mla_decode, **self.call(sets[0]), cfg=self.config)

    def attile(self, sets):
        query, config = sets[0]["q_nope"], self.config
        out = on_lines(query.shape, query.dtype)
        return Contender([lambda call=call: attile.mla_decode(**call, out=out, cfg=config) for call in map(self.call, sets)])

    def judges(self, sets):
        """Some heads of the first and the last sequence."""
        call = self.call(sets[0])
        heads = np.unique(np.linspace(0, self.case.heads - 1, CHECKED_HEADS).astype(int))
        for b in sorted({0, self.case.batch - 1}):
            part = {name: call[name][b : b + 1][:, :, heads] for name in ("q_nope", "q_pe")}
            kpe = call["kpe"][b : b + 1]
            part |= {"ckv": call["ckv"][b : b + 1], "kpe": kpe[:, :, heads] if kpe.ndim == 4 else kpe, "softmax_scale": SCALE}
            yield np.ix_([b], [0], heads), tolerance.Judge(reference_mla.expanded_decode(**part))


@dataclass(frozen=True, kw_only=True)
class LatentAttention(Latent):
    """mla_attention: causal prefill whose keys and values are made of latents in the call."""

    case: MlaAttentionCase
    function = "mla_attention"

    def bytes(self):
        """Query, latents, rope keys and weights read once, out written once."""
        c = self.case
        tokens = c.batch * c.seqlen_k * (c.rank + c.rope_dim) + c.batch * c.seqlen_q * c.heads_q * (c.nope + c.rope_dim + c.head_dim_v)
        return (tokens + c.rank * c.heads_k * (c.nope + c.head_dim_v)) * numpy_dtype(c.dtype).itemsize

    def arrays(self):
        call = self.case.numpy_arrays(np.random.default_rng(0))
        return self.sets_of({name: x for name, x in call.items() if x is not None}, self.bytes())

    def explain(self, sets):
        return attile.explain(attile.mla_attention, **sets[0], cfg=self.config)

    def attile(self, sets):
        query, w_vc, config = sets[0]["query"], sets[0]["w_vc"], self.config
        out = on_lines((*query.shape[:-1], w_vc.shape[-1]), query.dtype)
        return Contender([lambda call=call: attile.mla_attention(**call, out=out, cfg=config) for call in sets])

    def judges(self, sets):
        """Some rows of the first and the last head, judged by the strategy that the plan names."""
        strategy, call = self.explain(sets)["plan"]["strategy"], sets[0]
        heads = [0, self.case.heads_q - 1]
        for start in (0, self.case.seqlen_q // 2 - 5, self.case.seqlen_q - CHECKED_ROWS):
            rows = slice(start, start + CHECKED_ROWS)
            part = call | {"query": call["query"][:, rows][:, :, heads], "w_kc": call["w_kc"][:, heads], "w_vc": call["w_vc"][:, heads]}
            part |= {name: call[name][:, : rows.stop] for name in ("key_value", "b_k")} | {"causal_alignment": "bottom_right"}
            yield np.ix_([0], range(rows.start, rows.stop), heads), StrategyJudge(tolerance_mla.Judge(part), strategy)


@dataclass(frozen=True)
class StrategyJudge:
    judge: tolerance_mla.Judge
    strategy: str

    @property
    def out(self):
        return self.judge.out

    def check(self, out):
        self.judge.check(self.strategy, out)


@dataclass(frozen=True, kw_only=True)
class WrapperRun(LatentDecode):
    """BatchMLAPagedAttentionWrapper.run after a plan, page size 1."""

    function = "BatchMLAPagedAttentionWrapper.run"

    def attile(self, sets):
        c, wrapper = self.case, attile.mla.BatchMLAPagedAttentionWrapper()
        lengths = np.full(c.batch, c.seqlen_k)
        starts = np.arange(c.batch + 1)
        wrapper.plan(
            starts, starts * c.seqlen_k, np.arange(c.batch * c.seqlen_k), lengths, c.heads, c.latent, c.rope, 1, True, SCALE, c.dtype, c.dtype
        )  # fmt: skip

        def make(call):
            q_nope, q_pe = (call[name][:, 0] for name in ("q_nope", "q_pe"))
            ckv, kpe = (call[name].reshape(-1, 1, call[name].shape[-1]) for name in ("ckv", "kpe"))
            return lambda: wrapper.run(q_nope, q_pe, ckv, kpe)

        return Contender([make(call) for call in map(self.call, sets)], lambda out: out[:, None])
