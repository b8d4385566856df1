"""SmolLM2 as a NumPy model; attention is a function that it is given, attile's or plain NumPy.

    x += W_o attention(rope(W_q norm(x)), rope(W_k norm(x)), W_v norm(x))
    x += W_down (silu(W_gate norm(x)) * W_up norm(x))              in every layer

Tokens are rows of x [T,C]; weights are [out, in] under their GGUF names, a plain dict for each layer. float32 throughout.
Decoding one token reads every weight once: 540 MB, which is what its time is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import attile
import numpy as np

# ---------------------------------------------------------------- attention

Attention = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def attile_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """query [B,Tq,Hq,D] on key, value [B,Tk,Hk,D]; the last query sees every key."""
    return attile.flash_attention(query, key, value, causal=True, causal_alignment="bottom_right")


def numpy_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, dtype=np.float32) -> np.ndarray:
    """The same by the textbook, computed in `dtype`."""
    batch, seqlen_q, heads_q, head_dim = query.shape
    seqlen_k, heads_k = key.shape[1:3]
    q = query.astype(dtype).reshape(batch, seqlen_q, heads_k, heads_q // heads_k, head_dim)
    k, v = key.astype(dtype), value.astype(dtype)
    scores = np.einsum("bihgd,bjhd->bhgij", q, k, optimize=True) / dtype(math.sqrt(head_dim))
    seen = np.arange(seqlen_k) <= np.arange(seqlen_q)[:, None] + (seqlen_k - seqlen_q)
    scores = np.where(seen, scores, dtype(-np.inf))
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return np.einsum("bhgij,bjhd->bihgd", p, v, optimize=True).reshape(query.shape).astype(query.dtype)


def numpy_attention_float64(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The same in float64, rounded once at the end: what both others are measured against."""
    return numpy_attention(query, key, value, np.float64)


# ---------------------------------------------------------------- model


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    layers: int
    heads_q: int
    heads_k: int
    head_dim: int
    context: int
    rope_base: float
    norm_eps: float

    @classmethod
    def from_gguf(cls, metadata: dict) -> "Config":
        of = {name.removeprefix("llama."): value for name, value in metadata.items()}
        return cls(
            layers=of["block_count"],
            heads_q=of["attention.head_count"],
            heads_k=of["attention.head_count_kv"],
            head_dim=of["rope.dimension_count"],
            context=of["context_length"],
            rope_base=of["rope.freq_base"],
            norm_eps=of["attention.layer_norm_rms_epsilon"],
        )


class KVCache:
    """Keys and values of every layer, [layers,1,capacity,Hk,D]; a full cache doubles."""

    def __init__(self, config: Config, capacity: int = 256):
        shape = (config.layers, 1, capacity, config.heads_k, config.head_dim)
        self.keys, self.values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.length = 0

    @property
    def bytes_a_token(self) -> int:
        """What one token more costs, in all layers."""
        return sum(x[:, :, 0].nbytes for x in (self.keys, self.values))

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more."""
        capacity = self.keys.shape[2]
        while capacity < self.length + tokens:
            capacity *= 2
        if capacity > self.keys.shape[2]:
            self.keys, self.values = self._grown(self.keys, capacity), self._grown(self.values, capacity)

    def _grown(self, old: np.ndarray, capacity: int) -> np.ndarray:
        new = np.empty((*old.shape[:2], capacity, *old.shape[3:]), old.dtype)
        new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def append(self, layer: int, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Store key, value [1,T,Hk,D] behind the tokens so far; views of all [1,length+T,Hk,D]."""
        end = self.length + key.shape[1]
        self.keys[layer, :, self.length : end] = key
        self.values[layer, :, self.length : end] = value
        return self.keys[layer, :, :end], self.values[layer, :, :end]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x [T,C] / sqrt(mean(x^2) + eps) * weight [C]."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight


def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + exp(-x)), as a tanh, which does not overflow."""
    half = np.float32(0.5) * x
    return half * (1 + np.tanh(half))


def rope_turns(config: Config) -> np.ndarray:
    """e^(i angle) for every position and pair, complex64 [context,1,D/2]; angle = position * base^(-2 pair / D)."""
    frequency = config.rope_base ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    angle = np.arange(config.context)[:, None, None] * frequency
    return np.exp(1j * angle).astype(np.complex64)


def rope(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Turn x [T,H,D] by turns [T,1,D/2].

    GGUF stores the rows of W_q and W_k of a llama such that a pair is elements 2i and 2i+1 (in the Hugging Face
    files: i and i + D/2), so that a pair is one complex number.
    """
    return (np.ascontiguousarray(x).view(np.complex64) * turns).view(np.float32)


class Model:
    """The decoder.

    Parameters
    ----------
    config : Config
    weights : dict of ndarray
        By GGUF name, matrices [out, in].
    attention : callable
        (query [1,Tq,Hq,D], key, value [1,Tk,Hk,D]) -> [1,Tq,Hq,D].
    """

    def __init__(self, config: Config, weights: dict[str, np.ndarray], attention: Attention):
        self.config, self.attention = config, attention
        self.embedding, self.output_norm = weights["token_embd.weight"], weights["output_norm.weight"]
        self.layers = [self._layer(weights, f"blk.{i}.") for i in range(config.layers)]
        self.turns = rope_turns(config)

    @staticmethod
    def _layer(weights: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
        names = (name for name in weights if name.startswith(prefix))
        return {name.removeprefix(prefix).removesuffix(".weight"): weights[name] for name in names}

    def new_cache(self) -> KVCache:
        """An empty cache of this model's kind."""
        return KVCache(self.config)

    def forward(self, tokens: list[int], cache: KVCache) -> np.ndarray:
        """Append `tokens` to the cache; the logits [vocabulary] of what follows the last one."""
        return self.states(tokens, cache)[-1] @ self.embedding.T

    def states(self, tokens: list[int], cache: KVCache) -> np.ndarray:
        """Append `tokens` to the cache; their last states [T,C], whose products with the embedding are logits."""
        config, count = self.config, len(tokens)
        cache.reserve(count)
        turns = self.turns[cache.length : cache.length + count]
        x = self.embedding[tokens]
        for i, w in enumerate(self.layers):
            x = x + self.attend(i, rms_norm(x, w["attn_norm"], config.norm_eps), turns, cache) @ w["attn_output"].T
            h = rms_norm(x, w["ffn_norm"], config.norm_eps)
            x = x + (silu(h @ w["ffn_gate"].T) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
        cache.length += count
        return rms_norm(x, self.output_norm, config.norm_eps)

    def attend(self, layer: int, h: np.ndarray, turns: np.ndarray, cache: KVCache) -> np.ndarray:
        """The heads' outputs side by side [T,Hq*D] for the normalised states h [T,C]."""
        config, w = self.config, self.layers[layer]
        q = rope((h @ w["attn_q"].T).reshape(len(h), config.heads_q, config.head_dim), turns)
        k = rope((h @ w["attn_k"].T).reshape(len(h), config.heads_k, config.head_dim), turns)
        v = (h @ w["attn_v"].T).reshape(len(h), config.heads_k, config.head_dim)
        keys, values = cache.append(layer, k[None], v[None])
        return self.attention(q[None], keys, values).reshape(len(h), -1)
