"""examples/smollm2.py: the model on tiny random weights, and the real one as a user runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fetching import fetch_or_skip
from tolerance import Judge

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
REASON = 'needs pip install ".[examples]"'
pytest.importorskip("gguf", reason=REASON)
pytest.importorskip("threadpoolctl", reason=REASON)
pytest.importorskip("tqdm", reason=REASON)

sys.path.insert(0, str(EXAMPLES))
import smollm2
import smollm2_files as files
import smollm2_model as model_parts
import smollm2_tokenizer
from tiny_smollm2 import TINY, rms, tiny_weights

CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


# ---------------------------------------------------------------- model


@pytest.mark.parametrize("attention", [smollm2.attile_attention, smollm2.numpy_attention])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(7, 7), (1, 41), (5, 23), (1, 1)])
def test_grouped_attention_on_views_of_the_cache(attention, seqlen_q, seqlen_k):
    rng = np.random.default_rng(seqlen_k)
    query = rng.standard_normal((1, seqlen_q, 9, 64), np.float32)
    # What lies behind the length in the cache must not be seen.
    caches = rng.standard_normal((2, 1, 64, 3, 64), np.float32)
    caches[:, :, seqlen_k:] = np.nan
    key, value = caches[0][:, :seqlen_k], caches[1][:, :seqlen_k]
    judge = Judge({"query": query, "key": key, "value": value, "causal": True, "causal_alignment": "bottom_right"})
    judge.check(attention(query, key, value))


def test_rope_is_the_half_split_rotation_of_unpermuted_rows():
    rng = np.random.default_rng(1)
    positions, half = 40, TINY.head_dim // 2
    x = rng.standard_normal((positions, 3, TINY.head_dim), np.float32)
    # The order in which a GGUF file stores the rows of a head: i and i + D/2 side by side.
    stored = x.reshape(positions, 3, 2, half).swapaxes(2, 3).reshape(x.shape)
    angle = np.arange(positions)[:, None, None] * TINY.rope_base ** (-np.arange(half) / half)
    a, b = x[..., :half].astype(np.float64), x[..., half:].astype(np.float64)
    expected = np.stack([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)
    got = model_parts.rope(stored, model_parts.rope_turns(TINY)[:positions])
    # cos and sin are rounded, then two products and their sum: at most three roundings of |x|'s size
    limit = 3 * np.finfo(np.float32).eps * np.hypot(a, b)[..., None]
    assert (np.abs(got.reshape(expected.shape) - expected) <= limit).all()


def test_rope_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((2, 1, 1, TINY.head_dim), np.float32)
    turns = model_parts.rope_turns(TINY)

    def score(i, j):
        return np.vdot(model_parts.rope(q, turns[i : i + 1]), model_parts.rope(k, turns[j : j + 1]))

    limit = 8 * np.finfo(np.float32).eps * np.linalg.norm(q) * np.linalg.norm(k)
    assert abs(score(60, 50) - score(10, 0)) <= limit
    assert abs(score(60, 50) - score(10, 1)) > 100 * limit


def test_prefill_then_decode_is_the_model_with_plain_attention():
    weights = tiny_weights()
    tokens = list(np.random.default_rng(3).integers(0, 96, 40))

    def run_with(attention):
        model, cache = smollm2.Model(TINY, weights, attention), model_parts.KVCache(TINY, capacity=8)
        return np.array([model.forward(tokens[:23], cache), *(model.forward([t], cache) for t in tokens[23:])])

    exact = run_with(smollm2.numpy_attention_float64)
    attile, plain = (rms(run_with(f) - exact) for f in (smollm2.attile_attention, smollm2.numpy_attention))
    assert 0 < attile <= 2 * plain + np.finfo(np.float32).eps * rms(exact)


def test_decode_sees_what_prefill_saw():
    """The logits after a prefix do not depend on how it was cut into calls: keys, positions and masks agree."""
    weights, tokens = tiny_weights(), list(range(5, 42))
    model = smollm2.Model(TINY, weights, smollm2.attile_attention)
    whole = model.forward(tokens, model_parts.KVCache(TINY))
    cache = model_parts.KVCache(TINY, capacity=4)
    for piece in (tokens[:1], tokens[1:20], tokens[20:21], tokens[21:]):
        parts = model.forward(piece, cache)
    assert cache.length == len(tokens)
    # Matrix products of other shapes round otherwise: allow what float64 attention instead of float32 changes, tenfold.
    noise = np.abs(smollm2.Model(TINY, weights, smollm2.numpy_attention_float64).forward(tokens, model_parts.KVCache(TINY)) - whole).max()
    assert np.abs(whole - parts).max() <= 10 * (noise + np.finfo(np.float32).eps * np.abs(whole).max())


def test_a_full_cache_doubles_and_keeps_its_tokens():
    rng = np.random.default_rng(4)
    cache = model_parts.KVCache(TINY, capacity=4)
    written = rng.standard_normal((2, TINY.layers, 1, 11, TINY.heads_k, TINY.head_dim), np.float32)
    capacities = []
    for start, end in ((0, 3), (3, 4), (4, 5), (5, 11)):
        cache.reserve(end - start)
        for layer in range(TINY.layers):
            keys, values = cache.append(layer, written[0, layer, :, start:end], written[1, layer, :, start:end])
            assert np.shares_memory(keys, cache.keys), "the keys were copied"
            assert np.shares_memory(values, cache.values), "the values were copied"
            np.testing.assert_array_equal(keys, written[0, layer, :, :end])
            np.testing.assert_array_equal(values, written[1, layer, :, :end])
        cache.length = end
        capacities.append(cache.keys.shape[2])
    assert capacities == [4, 4, 8, 16]


def test_silu_does_not_overflow():
    x = np.array([-1e4, -100, -1, 0, 1, 100, 1e4], np.float32)
    exact = x.astype(np.float64)
    expected = np.where(exact < -700, 0, exact / (1 + np.exp(-np.maximum(exact, -700))))
    limit = 2 * np.finfo(np.float32).eps * np.maximum(np.abs(exact), 1)
    assert (np.abs(model_parts.silu(x) - expected) <= limit).all()


# ---------------------------------------------------------------- generation


def test_greedy_takes_the_likeliest():
    assert smollm2.Sampler(0, 0)(np.array([1, 5, 3], np.float32)) == 1


def test_a_temperature_samples_the_softmax():
    logits, temperature, draws = np.array([0.0, 1.0, 2.0, -50.0], np.float32), 0.8, 20_000
    p = np.exp(logits / temperature)
    p /= p.sum()
    sampler = smollm2.Sampler(temperature, seed=7)
    counts = np.bincount([sampler(logits) for _ in range(draws)], minlength=4)
    assert (np.abs(counts - draws * p) <= 5 * np.sqrt(draws * p * (1 - p)) + 1e-9).all()


def test_a_long_prompt_goes_in_by_pieces(monkeypatch):
    model, prompt, calls = smollm2.Model(TINY, tiny_weights(), smollm2.attile_attention), list(range(7)), []
    whole = smollm2.generate(model, prompt, smollm2.Sampler(0, 0), lambda _: None, 1, set(), 1)
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda tokens, cache: [calls.append(tokens), forward(tokens, cache)][1])
    monkeypatch.setattr(smollm2, "PREFILL_TOKENS", 3)
    pieces = smollm2.generate(model, prompt, smollm2.Sampler(0, 0), lambda _: None, 1, set(), 1)
    assert calls == [[0, 1, 2], [3, 4, 5], [6]]
    # products of other shapes round otherwise: some roundings of logits in their tens
    assert smollm2.difference(whole, pieces)["largest"] <= 100 * np.finfo(np.float32).eps * np.abs(whole.logits).max()


def test_generation_stops_and_keeps_what_was_asked():
    model = smollm2.Model(TINY, tiny_weights(), smollm2.attile_attention)

    def run(stop=(), max_tokens=9, keep=4, prompt=(1, 2, 3)):
        shown = []
        result = smollm2.generate(model, list(prompt), smollm2.Sampler(0, 0), shown.append, max_tokens, set(stop), keep)
        assert shown == result.tokens
        return result

    free = run()
    assert len(free.tokens) == 9
    assert len(free.logits) == 4
    stop = free.tokens[4]
    assert run(stop={stop}).tokens == free.tokens[: free.tokens.index(stop) + 1]
    assert run(max_tokens=1).decode_rate is None
    # the context holds 64: 60 of the prompt, four more; the next token needs no room
    assert len(run(max_tokens=100, prompt=[1] * 60).tokens) == 5


def test_replay_gives_the_same_logits_and_finds_a_wrong_attention():
    weights, prompt = tiny_weights(), [3, 1, 4, 1, 5]
    model = smollm2.Model(TINY, weights, smollm2.attile_attention)
    run = smollm2.generate(model, prompt, smollm2.Sampler(0, 0), lambda _: None, 6, set(), 6)
    again = smollm2.replay(model, run, "again")
    assert again.tokens == run.tokens
    assert smollm2.difference(run, again)["largest"] == 0
    wrong = smollm2.Model(
        TINY,
        weights,
        lambda q, k, v: smollm2.numpy_attention(q, k[:, :-1], v[:, :-1]) if k.shape[1] > 5 else smollm2.numpy_attention(q, k, v),
    )
    assert smollm2.difference(run, smollm2.replay(wrong, run, "wrong"))["largest"] > 1e-2
    poisoned = smollm2.Run(prompt, run.tokens, [*run.logits[:-1], np.full_like(run.logits[-1], np.nan)])
    assert all(map(np.isnan, smollm2.difference(run, poisoned).values()))


# ---------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "argument --temperature: invalid temperature from 0 on value: '-1'"),
        (["--temperature", "nan"], "argument --temperature: invalid temperature from 0 on value: 'nan'"),
        (["--max-tokens", "0"], "argument --max-tokens: invalid number from 1 on value: '0'"),
        (["--threads", "two"], "argument --threads: invalid number from 1 on value: 'two'"),
    ],
)
def test_bad_options_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        smollm2.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_a_prompt_beyond_the_context_is_refused(monkeypatch):
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*CONTROL_TOKENS, *smollm2_tokenizer._byte_characters()],
        "tokenizer.ggml.token_type": [smollm2_tokenizer.CONTROL] * 3 + [1] * 256,
        "tokenizer.ggml.merges": [],
    } | {
        f"llama.{name}": value
        for name, value in {
            "block_count": 2,
            "attention.head_count": 6,
            "attention.head_count_kv": 2,
            "rope.dimension_count": 16,
            "context_length": 64,
            "rope.freq_base": 1e4,
            "attention.layer_norm_rms_epsilon": 1e-5,
        }.items()
    }
    assert smollm2.Config.from_gguf(metadata) == TINY
    monkeypatch.setattr(files, "model_file", lambda: None)
    monkeypatch.setattr(files, "read_gguf", lambda _: (metadata, tiny_weights(vocabulary=259)))
    options = smollm2.parse_arguments(["x" * 100, "--system", ""])
    # the template around the prompt: 7 of "system\n", 5 of "user\n", 10 of "assistant\n", 5 controls, 2 newlines
    with pytest.raises(smollm2.PromptError, match="expected at most 64 tokens, got 129"):
        smollm2.answer(options)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return fetch_or_skip(files.model_file, tmp_path_factory.mktemp("index"))


def run_example(*arguments):
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(EXAMPLES / "smollm2.py"), "--max-tokens", "24", *arguments]
    done = subprocess.run(command, capture_output=True, env=environment, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_smollm2_knows_the_capital_of_france(model_file):
    printed = run_example("The capital of France is")
    text, figures = printed.split("\n\n", 1)
    assert text == "The capital of France is Paris."
    assert re.search(r"^prefill +25 tokens +[\d.]+ tokens/s ", figures, re.M)
    assert re.search(r"^decode +7 tokens +[\d.]+ tokens/s ", figures, re.M)
    assert re.search(r"^logits +8 tokens, .*largest difference from NumPy attention [\d.e-]+$", figures, re.M)


def test_smollm2_logits_are_those_of_plain_attention(model_file):
    """The error model: measured against float64 attention, attile's logits are at most twice as wrong as plain float32
    NumPy attention's, plus one rounding of the largest logit.

    The measure is the root mean square: the largest of so many errors differs by up to two between float32 computations that
    only sum in another order. An attention that is wrong in one token of 24 by 1e-4 of a logit of 36 fails.
    """
    # one thread: BLAS threads that wait for each other make a busy machine slow, and attile's bits do not depend on them
    figures = json.loads(run_example("--json", "--threads", "1", "Name three large rivers of Europe."))
    check = figures["check"]
    assert check["tokens"] == len(figures["tokens"]) == 24
    attile, plain, apart = (check[name] for name in ("attile_from_float64", "plain_from_float64", "attile_from_plain"))
    rounding = np.finfo(np.float32).eps * check["largest_logit"]
    assert 0 < attile["root_mean_square"] <= 2 * plain["root_mean_square"] + rounding
    # what a reader of the printed figure takes for "the same logits"
    assert 0 < apart["largest"] < 1e-3 * check["largest_logit"]
    assert figures["attention"] == "attile"


def test_smollm2_says_the_same_with_plain_attention_and_one_thread(model_file):
    figures = json.loads(run_example("--json", "--plain", "--threads", "1", "The capital of France is"))
    assert figures["text"] == "The capital of France is Paris."
    assert figures["attention"] == "numpy"
    assert figures["check"] is None


# By Hugging Face's tokenizers, with the vocabulary and merges of the file.
REAL_IDS = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "In 1889, it's 300 m  tall:\n\n\tnaïve café ½ 🙂 中文": [
        788,
        216,
        33,
        40,
        40,
        41,
        28,
        357,
        506,
        216,
        35,
        32,
        32,
        283,
        216,
        6780,
        42,
        1116,
        197,
        3546,
        46494,
        37366,
        216,
        16738,
        47526,
        216,
        28589,
        29184,
    ],
}


def test_smollm2_tokenizer_gives_the_ids_of_its_training(model_file):
    metadata, _ = files.read_gguf(model_file)
    tokenizer = smollm2_tokenizer.Tokenizer.from_gguf(metadata)
    for text, ids in REAL_IDS.items():
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text
