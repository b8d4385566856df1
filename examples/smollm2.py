"""SmolLM2-135M-Instruct in NumPy, its attention by attile.

    pip install ".[examples]"
    python examples/smollm2.py "The capital of France is"

A llama-style decoder: RMSNorm, rotary positions, grouped-query attention (9
query heads share 3 key heads of 64), SwiGLU, one table for embedding and
logits; float32 everywhere. Prefill and decode are the same `attile.flash_attention`
call, on views of a key/value cache that is never copied for it.

It prints the answer as it comes, tokens per second, and how far the logits are
from those of the same model with plain NumPy attention.
"""

import argparse
import codecs
import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import attile
import numpy as np
import smollm2_files as files
from smollm2_tokenizer import Tokenizer
from tqdm import tqdm

# The chat template's own default, "You are a helpful AI assistant named SmolLM, trained by Hugging Face", leads these
# 4-bit weights astray: asked "The capital of France is", they begin "L'aujourcé!" (in transformers too).
SYSTEM = "You are a helpful assistant."

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

    def forward(self, tokens: list[int], cache: KVCache) -> np.ndarray:
        """Append `tokens` to the cache; the logits [vocabulary] of what follows the last one."""
        config, count = self.config, len(tokens)
        cache.reserve(count)
        turns = self.turns[cache.length : cache.length + count]
        x = self.embedding[tokens]
        for i, w in enumerate(self.layers):
            h = rms_norm(x, w["attn_norm"], config.norm_eps)
            q = rope((h @ w["attn_q"].T).reshape(count, config.heads_q, config.head_dim), turns)
            k = rope((h @ w["attn_k"].T).reshape(count, config.heads_k, config.head_dim), turns)
            v = (h @ w["attn_v"].T).reshape(count, config.heads_k, config.head_dim)
            keys, values = cache.append(i, k[None], v[None])
            x = x + self.attention(q[None], keys, values).reshape(count, -1) @ w["attn_output"].T
            h = rms_norm(x, w["ffn_norm"], config.norm_eps)
            x = x + (silu(h @ w["ffn_gate"].T) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
        cache.length += count
        return rms_norm(x[-1:], self.output_norm, config.norm_eps)[0] @ self.embedding.T


# ---------------------------------------------------------------- generation


def chat_prompt(tokenizer: Tokenizer, user: str, system: str = SYSTEM) -> list[int]:
    """Token ids of SmolLM2's chat template, up to where the assistant begins to speak."""
    start, end = tokenizer.ids["<|im_start|>"], tokenizer.ids["<|im_end|>"]
    newline = tokenizer.encode("\n")
    ids = []
    for role, text in (("system", system), ("user", user)):
        ids += [start, *tokenizer.encode(f"{role}\n{text}"), end, *newline]
    return [*ids, start, *tokenizer.encode("assistant\n")]


class Sampler:
    """Choose the next token: the likeliest, or at random with a temperature."""

    def __init__(self, temperature: float, seed: int):
        self.temperature, self.random = temperature, np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> int:
        if self.temperature == 0:
            return int(np.argmax(logits))
        # The largest logit with Gumbel noise is a sample of the softmax.
        return int(np.argmax(logits.astype(np.float64) / self.temperature + self.random.gumbel(size=logits.shape)))


@dataclass
class Run:
    """What came of one generation; seconds."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def prefill_rate(self) -> float:
        """Tokens of the prompt per second."""
        return len(self.prompt) / self.prefill_s

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first, which the prefill gives; None if there is no other."""
        return (len(self.tokens) - 1) / self.decode_s if self.decode_s else None


def generate(model: Model, prompt: list[int], choose, emit, max_tokens: int, stop: set[int], keep: int) -> Run:
    """Extend `prompt` token by token.

    `choose(logits)` gives the next token, `emit(token)` shows it; a token of `stop` ends the text and is the last of
    `tokens`. The logits of the first `keep` tokens are kept.
    """
    run = Run(prompt)
    cache = KVCache(model.config)
    start = time.perf_counter()
    logits = model.forward(prompt, cache)
    run.prefill_s = time.perf_counter() - start
    while True:
        token = choose(logits)
        run.tokens.append(token)
        if len(run.logits) < keep:
            run.logits.append(logits)
        emit(token)
        if token in stop or len(run.tokens) == max_tokens or cache.length == model.config.context:
            return run
        start = time.perf_counter()
        logits = model.forward([token], cache)
        run.decode_s += time.perf_counter() - start


def replay(model: Model, run: Run, title: str) -> Run:
    """The tokens of `run` once more, through another model, as far as logits were kept."""
    tokens = iter(run.tokens)
    count = len(run.logits)
    with tqdm(desc=title, total=count, leave=False, file=sys.stderr, disable=None) as bar:
        return generate(model, run.prompt, lambda _: next(tokens), lambda _: bar.update(), count, set(), count)


def largest_difference(a: Run, b: Run) -> float:
    """The largest difference of two runs' logits; nan if there is one."""
    return float(np.max([np.abs(x - y).max() for x, y in zip(a.logits, b.logits, strict=True)]))


# ---------------------------------------------------------------- command line


def _at_least(kind, least, name: str):
    def parse(text: str):
        value = kind(text)
        if not value >= least or value == math.inf:
            raise ValueError(text)
        return value

    parse.__name__ = name
    return parse


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    count = _at_least(int, 0, "number from 0 on")
    positive = _at_least(int, 1, "number from 1 on")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prompt", nargs="?", default="The capital of France is", help="default: %(default)s")
    parser.add_argument("--system", default=SYSTEM, help="the system message")
    parser.add_argument("--max-tokens", type=positive, default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--temperature", type=_at_least(float, 0, "temperature from 0 on"), default=0.0, metavar="T",
                        help="0, the default, takes the likeliest token each time")  # fmt: skip
    parser.add_argument("--seed", type=count, default=0, metavar="N", help="of the sampling; default: %(default)s")
    parser.add_argument("--plain", action="store_true", help="NumPy attention instead of attile")
    parser.add_argument("--check", type=count, default=64, metavar="N",
                        help="compare the logits of the first N tokens with NumPy attention; default: %(default)s")  # fmt: skip
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of attile and of NumPy's BLAS")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end instead of text")
    return parser.parse_args(arguments)


def thread_limit(threads: int | None, plain: bool):
    """A context in which attile and BLAS use at most `threads` threads."""
    if threads is None:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    if not plain:
        attile.set_num_threads(threads)
    return threadpool_limits(limits=threads)


def check(run: Run, config: Config, weights: dict[str, np.ndarray]) -> dict:
    """Compare the logits of `run` with NumPy attention: in float32, and both with float64."""
    plain = replay(Model(config, weights, numpy_attention), run, "NumPy attention")
    exact = replay(Model(config, weights, numpy_attention_float64), run, "float64 attention")
    return {
        "tokens": len(run.logits),
        "largest_logit": float(np.max(np.abs(exact.logits))),
        "attile_from_plain": largest_difference(run, plain),
        "attile_from_float64": largest_difference(run, exact),
        "plain_from_float64": largest_difference(plain, exact),
        "plain_prefill_tokens_per_s": plain.prefill_rate,
        "plain_decode_tokens_per_s": plain.decode_rate,
    }


def answer(options: argparse.Namespace) -> dict:
    """Load the model and answer; the figures, as they go to JSON."""
    metadata, weights = files.read_gguf(files.model_file())
    config, tokenizer = Config.from_gguf(metadata), Tokenizer.from_gguf(metadata)
    prompt = chat_prompt(tokenizer, options.prompt, options.system)
    if len(prompt) > config.context:
        raise ValueError(f"the prompt is too long: expected at most {config.context} tokens, got {len(prompt)}")

    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def show(token: int) -> None:
        if not options.json:
            print(utf8.decode(tokenizer.decode_bytes([token])), end="", flush=True)

    with thread_limit(options.threads, options.plain):
        attention = numpy_attention if options.plain else attile_attention
        stop = {tokenizer.ids["<|im_end|>"], tokenizer.ids["<|endoftext|>"]}
        sampler = Sampler(options.temperature, options.seed)
        keep = 0 if options.plain else options.check
        run = generate(Model(config, weights, attention), prompt, sampler, show, options.max_tokens, stop, keep)
        if not options.json:
            print(utf8.decode(b"", final=True), flush=True)
        return {
            "attention": "numpy" if options.plain else "attile",
            "prompt": options.prompt,
            "text": tokenizer.decode(run.tokens),
            "prompt_tokens": len(run.prompt),
            "tokens": run.tokens,
            "prefill_tokens_per_s": run.prefill_rate,
            "decode_tokens_per_s": run.decode_rate,
            "check": check(run, config, weights) if run.logits else None,
        }


def report(figures: dict) -> None:
    """Print the figures for a reader."""

    def line(name: str, count: int, rate: float | None, plain: float | None) -> None:
        speed = f"{rate:8.1f} tokens/s" if rate else "       - tokens/s"
        other = f"   (NumPy attention {plain:.1f})" if plain else ""
        print(f"{name:8} {count:5} tokens {speed}{other}")

    compared = figures["check"] or {}
    print()
    line("prefill", figures["prompt_tokens"], figures["prefill_tokens_per_s"],
         compared.get("plain_prefill_tokens_per_s"))  # fmt: skip
    line("decode", len(figures["tokens"]) - 1, figures["decode_tokens_per_s"],
         compared.get("plain_decode_tokens_per_s"))  # fmt: skip
    if compared:
        print(
            f"logits   {compared['tokens']:5} tokens, up to {compared['largest_logit']:.1f}: largest difference "
            f"from NumPy attention {compared['attile_from_plain']:.2g}\n"
            f"         from float64 attention: attile {compared['attile_from_float64']:.2g}, "
            f"NumPy {compared['plain_from_float64']:.2g}"
        )


def main() -> None:
    options = parse_arguments()
    # A prompt that is not UTF-8, and a terminal that cannot show every character, lose characters, not the run.
    options.prompt, options.system = (
        os.fsencode(text).decode("utf-8", errors="replace") for text in (options.prompt, options.system)
    )
    sys.stdout.reconfigure(errors="replace")
    try:
        figures = answer(options)
    except (files.ModelFileError, ValueError) as error:
        sys.exit(f"smollm2: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if options.json:
        print(json.dumps(figures))
    else:
        report(figures)


if __name__ == "__main__":
    main()
