"""What is timed on a GPU: calls on torch tensors, made there. Some rows of the first and the last head are checked by the tests' own error
model before anything is timed; gradients against a float64 computation of these heads on the GPU, within twice the error of a plain one.
"""

import functools
from dataclasses import dataclass

import gpu_roofline
import gpu_timing
import numpy as np
import reference
import reference_mla
import tolerance
from cases import Case, numpy_dtype, to_numpy
from mla_cases import MlaCase
from problems import Contender, Problem
from problems_mla import Latent

import attile

DEVICE = "cuda"
CHECKED_ROWS = 8


def torch_dtype(name):
    import torch

    return getattr(torch, name)


def normal(seed, dtype, *shape):
    import torch

    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float32).to(torch_dtype(dtype))


class Answer:
    """A tensor, or several by name, of which parts become NumPy arrays."""

    def __init__(self, tensor):
        self.tensor = tensor

    @property
    def dtype(self):
        first = next(iter(self.tensor.values())) if isinstance(self.tensor, dict) else self.tensor
        return numpy_dtype(str(first.dtype).removeprefix("torch."))

    def __getitem__(self, index):
        if isinstance(self.tensor, dict):
            name, *index = index
            return Answer(self.tensor[name])[tuple(index)]
        part = self.tensor[index].detach().cpu()
        return to_numpy((part.float() if "float8" in str(part.dtype) else part).contiguous())


@dataclass
class NearJudge:
    """`out` is what is expected, `limit` how far an element may be from it."""

    out: np.ndarray
    limit: np.ndarray
    dtype: np.dtype

    def check(self, got):
        tolerance.compare("out", got, self.out, self.limit, self.dtype)


@functools.cache
def cuda():
    return gpu_timing.Cuda()


class OnGpu(Problem):
    """Common to all: how they are timed and by what they are measured."""

    place = "cuda"

    @staticmethod
    def ceilings(_quiet):
        return gpu_roofline.measure(cuda())

    @staticmethod
    def ready(calls):
        return gpu_timing.Timer(calls[0], cuda())

    @staticmethod
    def times(timers, args, budget):
        return gpu_timing.interleaved(timers, args.repeats, budget)

    def contender(self, call):
        return Contender([call], Answer)


@dataclass(frozen=True, kw_only=True)
class GpuAttention(OnGpu):
    """flash_attention of a Case, dense; `documents`: so many of equal length in a sequence, told by segment ids; `float8`: query, key and value
    in e4m3, out in the case's dtype."""

    case: Case
    documents: int = 0
    float8: bool = False
    function = "flash_attention"

    @property
    def dtype(self):
        return self.case.dtype

    def flops(self):
        return self.case.flops() / max(1, self.documents)

    def bytes(self):
        return self.case.bytes()

    def arrays(self):
        c = self.case
        call = {
            "query": normal(0, c.dtype, c.batch, c.seqlen_q, c.heads_q, c.head_dim),
            "key": normal(1, c.dtype, c.batch, c.seqlen_k, c.heads_k, c.head_dim),
            "value": normal(2, c.dtype, c.batch, c.seqlen_k, c.heads_k, c.head_dim_v),
        }
        if self.float8:
            call = {name: x.to(torch_dtype("float8_e4m3fn")) for name, x in call.items()}
        if c.bias is not None:
            call["bias"] = normal(3, c.dtype, *c.bias)
        if self.documents:
            import torch

            ids = torch.arange(c.seqlen_q, device=DEVICE, dtype=torch.int32) * self.documents // c.seqlen_q
            call["q_segment_ids"] = call["kv_segment_ids"] = ids.expand(c.batch, -1).contiguous()
        return [call | dict(c.options)]

    def explain(self, sets):
        return attile.explain(attile.flash_attention, **sets[0], cfg=self.config)

    def attile(self, sets):
        call, config = sets[0], self.config
        out = call["query"].new_empty((*call["query"].shape[:-1], call["value"].shape[-1]), dtype=torch_dtype(self.dtype))
        return self.contender(lambda: attile.flash_attention(**call, cfg=config, out=out))

    def seen(self, rows):
        """[rows, keys]: which keys these rows see."""
        i, j = np.arange(rows.start, rows.stop)[:, None], np.arange(self.case.seqlen_k)
        seen = np.ones((len(i), len(j)), bool)
        if self.case.options.get("causal"):
            seen &= j <= i
        if window := self.case.options.get("sliding_window"):
            seen &= (j >= i - window[0]) & ((window[1] is None) | (j <= i + (window[1] or 0)))
        if self.documents:
            seen &= i * self.documents // self.case.seqlen_q == j * self.documents // self.case.seqlen_k
        return seen

    def judges(self, sets):
        c, call = self.case, sets[0]
        group, count = c.heads_q // c.heads_k, min(CHECKED_ROWS, c.seqlen_q)
        for b, h, first in {(0, 0, c.seqlen_q // 3), (c.batch - 1, c.heads_q - 1, c.seqlen_q - count)}:
            rows = slice(min(first, c.seqlen_q - count), min(first, c.seqlen_q - count) + count)
            k = slice(h // group, h // group + 1)
            part = {"query": Answer(call["query"])[b : b + 1, rows, h : h + 1]}
            part |= {name: Answer(call[name])[b : b + 1, :, k] for name in ("key", "value")}
            if "bias" in call:
                heads = slice(h, h + 1) if c.bias[1] > 1 else slice(0, 1)
                part["bias"] = Answer(call["bias"])[:1, heads, rows]
            seen = self.seen(rows)
            if not seen.all():
                part["attention_mask"] = seen[None, None]
            yield np.s_[b : b + 1, rows, h : h + 1], float8_judge(part, self.dtype) if self.float8 else tolerance.Judge(part)


def float8_judge(part, dtype):
    """Twice the error, at most anywhere, of a plain computation that rounds p to e4m3, scaled to its range, and out to `dtype`."""
    import torch

    exact = reference.flash_attention(**{name: x.astype(np.float64) if x.dtype != bool else x for name, x in part.items()})
    q, k, v = (torch.from_numpy(part[name][0, :, 0]).double() for name in ("query", "key", "value"))
    s = q @ k.mT / q.shape[-1] ** 0.5
    if "attention_mask" in part:
        s = s.masked_fill(~torch.from_numpy(part["attention_mask"][0, 0]), -torch.inf)
    p = torch.exp(s - s.amax(-1, keepdim=True))
    plain = ((p * 256).to(torch.float8_e4m3fn).double() / 256 @ v / p.sum(-1, keepdim=True)).to(torch_dtype(dtype)).double().numpy()
    limit = 2 * np.abs(plain[None, :, None] - exact).max() + tolerance.epsilon(numpy_dtype(dtype)) / 2 * np.abs(exact)
    return NearJudge(exact, limit, numpy_dtype(dtype))


@dataclass(frozen=True, kw_only=True)
class GpuCached(OnGpu):
    """flash_attention_with_kvcache: one new position of each sequence, over a dense cache or over pages in any order."""

    case: Case
    page_size: int | None = None
    function = "flash_attention_with_kvcache"

    dtype, bytes = GpuAttention.dtype, GpuAttention.bytes

    def flops(self):
        return self.case.flops()

    def arrays(self):
        import torch

        call = GpuAttention(id=self.id, case=self.case).arrays()[0]
        if self.page_size is not None:
            batch, keys = call["key"].shape[:2]
            order = torch.randperm(batch * keys // self.page_size, generator=torch.Generator(DEVICE).manual_seed(4), device=DEVICE)
            for name in ("key", "value"):
                pages = call[name].view(len(order), self.page_size, *call[name].shape[2:])
                call[name + "_pages"] = torch.empty_like(pages).index_copy_(0, order, pages)
            call["page_table"] = order.view(batch, -1).to(torch.int32)
            call["lengths"] = torch.full((batch,), keys, dtype=torch.int32, device=DEVICE)
        return [call]

    def call(self, call):
        named = {"q": call["query"], "k_cache": call["key"], "v_cache": call["value"], "cfg": self.config}
        if self.page_size is not None:
            named |= {"k_cache": call["key_pages"], "v_cache": call["value_pages"], "page_table": call["page_table"], "cache_seqlens": call["lengths"]}
        return named

    def explain(self, sets):
        return attile.explain(attile.flash_attention_with_kvcache, **self.call(sets[0]))

    def attile(self, sets):
        call, query = self.call(sets[0]), sets[0]["query"]
        out = query.new_empty((*query.shape[:-1], sets[0]["value"].shape[-1]))
        return self.contender(lambda: attile.flash_attention_with_kvcache(**call, out=out))

    def judges(self, sets):
        return GpuAttention(id=self.id, case=self.case).judges(sets)


@dataclass(frozen=True, kw_only=True)
class GpuLatentDecode(OnGpu, Latent):
    """mla_decode over pages, ckv and kpe being views of one cache, or over two dense arrays; `float8`: two paged arrays, ckv in e4m3."""

    case: MlaCase
    float8: bool = False
    function = "mla_decode"

    def bytes(self):
        return self.case.bytes() - (sum(self.case.lengths()) * self.case.latent if self.float8 else 0)

    def arrays(self):
        import torch

        c, page = self.case, self.case.page_size
        call = {"q": normal(0, c.dtype, c.batch, c.seqlen_q, c.heads, c.latent + c.rope)}
        if page is None:
            call["ckv"] = normal(1, c.dtype, c.batch, c.seqlen_k, c.latent)
            call["kpe"] = normal(2, c.dtype, c.batch, c.seqlen_k, *((c.heads,) if c.head_rope else ()), c.rope)
        else:
            pages = -(-c.seqlen_k // page)
            order = torch.randperm(c.batch * pages, generator=torch.Generator(DEVICE).manual_seed(4), device=DEVICE)
            call["cache"] = normal(1, c.dtype, len(order), page, c.latent + c.rope)
            call["page_table"] = order.view(c.batch, pages).to(torch.int32)
            call["kv_lens"] = torch.full((c.batch,), c.seqlen_k, dtype=torch.int32, device=DEVICE)
        if self.float8:
            cache = call.pop("cache")
            call |= {"ckv": cache[..., : c.latent].to(torch.float8_e4m3fn), "kpe": cache[..., c.latent :].contiguous()}
            call["ckv_scale"] = 1.0
        return [call]

    def call(self, call):
        c = self.case
        named = {"q_nope": call["q"][..., : c.latent], "q_pe": call["q"][..., c.latent :], "softmax_scale": self.scale}
        if "cache" in call:
            named |= {"ckv": call["cache"][..., : c.latent], "kpe": call["cache"][..., c.latent :]}
        return named | {name: call[name] for name in ("ckv", "kpe", "page_table", "kv_lens", "ckv_scale") if name in call}

    @property
    def scale(self):
        return 192**-0.5 if self.case.latent == 512 else (self.case.latent + self.case.rope) ** -0.5

    def explain(self, sets):
        return attile.explain(attile.mla_decode, **self.call(sets[0]), cfg=self.config)

    def attile(self, sets):
        call, config = self.call(sets[0]), self.config
        out = call["q_nope"].new_empty(call["q_nope"].shape)
        return self.contender(lambda: attile.mla_decode(**call, out=out, cfg=config))

    def judges(self, sets):
        c, call = self.case, self.call(sets[0])
        for b, h in {(0, 0), (c.batch - 1, c.heads - 1)}:
            part = {name: Answer(call[name])[b : b + 1, :, h : h + 1] for name in ("q_nope", "q_pe")}
            if c.page_size is None:
                part["ckv"], kpe = Answer(call["ckv"])[b : b + 1], Answer(call["kpe"])
                part["kpe"] = kpe[b : b + 1, :, h : h + 1] if c.head_rope else kpe[b : b + 1]
            else:
                rows = call["page_table"][b].long()
                for name in ("ckv", "kpe"):
                    pages = Answer(call[name].view(torch_dtype("uint8"))[rows].view(call[name].dtype) if self.float8 else call[name][rows])
                    part[name] = pages[:].reshape(-1, pages.tensor.shape[-1])[None, : c.seqlen_k].astype(numpy_dtype(c.dtype))
            yield np.s_[b : b + 1, :, h : h + 1], tolerance.Judge(reference_mla.expanded_decode(**part, softmax_scale=self.scale))
