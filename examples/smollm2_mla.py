"""SmolLM2 with latent attention: a latent of rank R and a short rotated key for each head in place of keys and values.

The fast pairs of a head (its first `rope_dims` elements) keep their rotation; the slow ones hardly turn within a text, and lose it, so that
they can be made of a latent like the values (this is how MHA2MLA turns a model). Of a layer's slow keys and values together,

    [k_slow; v] = J h,    J [Hk (D - r) + Hk D, C] the rows of W_k and W_v,

the R principal components over a calibration text are the latent: U the eigenvectors of J E[h h^T] J^T, c = U_R^T J h, and
[k_slow; v] ~ U_R c. Nothing is trained. At full rank, and with all pairs rotated, it is the model itself.

The cache holds c [R] and the rotated keys [Hk, r]. Queries are brought to the latent space, q' = U_k^T q, attile.mla_decode attends there, and
the output is brought back with U_v. Key heads are mla_decode's batch: each has its own rotated keys and queries, all share one latent.
"""

from dataclasses import dataclass
from pathlib import Path

import attile
import numpy as np
from smollm2_model import Config, KVCache, Model, attile_attention, rope

CALIBRATION = Path(__file__).with_name("smollm2_calibration.txt")
PASSAGE = Path(__file__).with_name("smollm2_passage.txt")
RANKS_STEP = 8  # mla_decode's ranks are multiples of it


@dataclass(frozen=True)
class Split:
    """Every layer's keys and values by principal components: `joint` J [N,C], `basis` U [N,N], most important column first."""

    rope_dims: int
    joint: list[np.ndarray]
    basis: list[np.ndarray]

    @property
    def full_rank(self) -> int:
        return len(self.joint[0])


class Observer(Model):
    """The model, noting the second moments E[h h^T] [C,C] of the states that attention of each layer gets."""

    def __init__(self, config: Config, weights: dict[str, np.ndarray]):
        super().__init__(config, weights, attile_attention)
        self.moments = []

    def attend(self, layer: int, h: np.ndarray, turns: np.ndarray, cache: KVCache) -> np.ndarray:
        wide = h.astype(np.float64)
        self.moments.append(wide.T @ wide / len(h))
        return super().attend(layer, h, turns, cache)


def split(config: Config, weights: dict[str, np.ndarray], calibration: list[int], rope_dims: int) -> Split:
    """Principal components over the tokens of a calibration text."""
    observer = Observer(config, weights)
    observer.states(calibration, observer.new_cache())
    joint, basis = [], []
    for w, moments in zip(observer.layers, observer.moments, strict=True):
        slow = w["attn_k"].reshape(config.heads_k, config.head_dim, -1)[:, rope_dims:]
        rows = np.concatenate([slow.reshape(-1, slow.shape[-1]), w["attn_v"]]).astype(np.float64)
        # a short text does not reach every direction; a thousandth of its mean in all of them puts the rest in order
        reached = moments + 1e-3 * np.trace(moments) / len(moments) * np.eye(len(moments))
        _, vectors = np.linalg.eigh(rows @ reached @ rows.T)
        joint.append(rows)
        basis.append(vectors[:, ::-1])
    return Split(rope_dims, joint, basis)


class LatentCache(KVCache):
    """Latents [layers,1,capacity,R] in the place of keys, rotated keys [layers,1,capacity,Hk,r] in that of values."""

    def __init__(self, config: Config, rank: int, rope_dims: int, capacity: int = 256):
        self.keys = np.empty((config.layers, 1, capacity, rank), np.float32)
        self.values = np.empty((config.layers, 1, capacity, config.heads_k, rope_dims), np.float32)
        self.length = 0


class LatentModel(Model):
    """The decoder with latents of rank `rank`."""

    def __init__(self, config: Config, weights: dict[str, np.ndarray], parts: Split, rank: int):
        super().__init__(config, weights, attile_attention)
        self.rank, self.rope_dims = rank, parts.rope_dims
        heads, slow = config.heads_k, config.head_dim - parts.rope_dims
        self.down, self.up_k, self.up_v, self.w_rope = [], [], [], []
        for w, rows, basis in zip(self.layers, parts.joint, parts.basis, strict=True):
            kept = basis[:, :rank]
            self.down.append((kept.T @ rows).astype(np.float32))  # [R,C]
            self.up_k.append(kept[: heads * slow].reshape(heads, 1, slow, rank).astype(np.float32))
            self.up_v.append(kept[heads * slow :].reshape(heads, 1, config.head_dim, rank).swapaxes(2, 3).astype(np.float32))
            fast = w["attn_k"].reshape(heads, config.head_dim, -1)[:, : parts.rope_dims]
            self.w_rope.append(fast.reshape(heads * parts.rope_dims, -1))

    def new_cache(self) -> LatentCache:
        return LatentCache(self.config, self.rank, self.rope_dims)

    def attend(self, layer: int, h: np.ndarray, turns: np.ndarray, cache: LatentCache) -> np.ndarray:
        config, count, fast = self.config, len(h), self.rope_dims
        heads, group = config.heads_k, config.heads_q // config.heads_k
        turns = turns[..., : fast // 2]
        latent = h @ self.down[layer].T
        k_pe = rope((h @ self.w_rope[layer].T).reshape(count, heads, fast), turns)
        latents, ropes = cache.append(layer, latent[None], k_pe[None])
        q = (h @ self.layers[layer]["attn_q"].T).reshape(count, config.heads_q, config.head_dim)
        q_pe = by_key_head(rope(q[..., :fast], turns), heads)
        q_nope = by_key_head(q[..., fast:], heads) @ self.up_k[layer]  # [Hk,T,group,R]
        out = attile.mla_decode(
            q_nope,
            q_pe,
            np.broadcast_to(latents, (heads, *latents.shape[1:])),
            ropes[0].swapaxes(0, 1),
            softmax_scale=config.head_dim**-0.5,
        )
        return (out @ self.up_v[layer]).swapaxes(0, 1).reshape(count, heads * group * config.head_dim)


def by_key_head(x: np.ndarray, heads_k: int) -> np.ndarray:
    """[T,Hq,D] as [Hk,T,group,D]."""
    count, heads_q, dim = x.shape
    return x.reshape(count, heads_k, heads_q // heads_k, dim).swapaxes(0, 1)


# ---------------------------------------------------------------- what it costs and what it is worth


def perplexity(model: Model, tokens: list[int]) -> float:
    """exp of the mean surprise of each token after the first, in one go."""
    logits = (model.states(tokens[:-1], model.new_cache()) @ model.embedding.T).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    surprise = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), tokens[1:]]
    return float(np.exp(surprise.mean()))


def ranks_to_show(full: int, asked: int) -> list[int]:
    """The rank that was asked for among full rank and some parts of it."""
    parts = (max(RANKS_STEP, int(full * part) // RANKS_STEP * RANKS_STEP) for part in (1, 0.75, 0.5, 0.33))
    return sorted({asked, *parts}, reverse=True)


def table(config: Config, weights: dict[str, np.ndarray], parts: Split, passage: list[int], asked: int) -> list[dict]:
    """Cache bytes a token and perplexity of the plain model (rank None) and of several ranks."""
    models = [Model(config, weights, attile_attention)]
    rows = []
    for rank in (None, *ranks_to_show(parts.full_rank, asked)):
        model = models[0] if rank is None else LatentModel(config, weights, parts, rank)
        rows.append({"rank": rank, "bytes_a_token": model.new_cache().bytes_a_token, "perplexity": perplexity(model, passage)})
    return rows


def print_table(rows: list[dict], rope_dims: int) -> None:
    print(f"\n{'rank':>6} {'cache bytes a token':>20} {'perplexity':>11}    rotated dims of a head: {rope_dims}")
    for row in rows:
        print(f"{'plain' if row['rank'] is None else row['rank']:>6} {row['bytes_a_token']:>20} {row['perplexity']:>11.2f}")


def plot(rows: list[dict], path: Path) -> None:
    """Perplexity against the cache's size, a PNG; needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plain, *latent = rows
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    axis.plot([row["bytes_a_token"] / 1024 for row in latent], [row["perplexity"] for row in latent], "o-", label="latent")
    for row in latent:
        axis.annotate(f"rank {row['rank']}", (row["bytes_a_token"] / 1024, row["perplexity"]), textcoords="offset points", xytext=(6, 6), fontsize=8)
    axis.plot(plain["bytes_a_token"] / 1024, plain["perplexity"], "s", label="keys and values")
    axis.set(xlabel="cache a token, KiB", ylabel="perplexity", title="SmolLM2-135M-Instruct", ylim=(0, None))
    axis.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
