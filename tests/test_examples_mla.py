"""examples/smollm2.py --mla: the model with latents instead of keys and values, on tiny random weights and on the real ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fetching import fetch_or_skip

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
REASON = 'needs pip install ".[examples]"'
pytest.importorskip("gguf", reason=REASON)
pytest.importorskip("threadpoolctl", reason=REASON)
pytest.importorskip("tqdm", reason=REASON)

sys.path.insert(0, str(EXAMPLES))
import smollm2
import smollm2_files as files
import smollm2_mla as mla
import smollm2_model as parts
from tiny_smollm2 import TINY, rms, tiny_weights

FULL = {8: 2 * (8 + 16), 16: 2 * 16}  # by rotated dims: slow keys and values of two heads of 16
CALIBRATION = list(np.random.default_rng(8).integers(0, 96, 50))


def logits(model, tokens, cuts=(23, 24, 30)):
    """Of every token, prefilled and decoded by pieces."""
    cache = model.new_cache()
    return np.concatenate([model.states(tokens[a:b], cache) for a, b in zip((0, *cuts), (*cuts, len(tokens)), strict=True)]) @ model.embedding.T


def expanded(split, rank, attention):
    """The plain model whose keys and values are those that the latents stand for; its slow pairs do not turn."""
    weights = dict(tiny_weights())
    fast = split.rope_dims
    for i, (rows, basis) in enumerate(zip(split.joint, split.basis, strict=True)):
        kept = basis[:, :rank]
        near = kept @ (kept.T @ rows)
        slow = near[: TINY.heads_k * (TINY.head_dim - fast)].reshape(TINY.heads_k, -1, rows.shape[1])
        keys = weights[f"blk.{i}.attn_k.weight"].reshape(TINY.heads_k, TINY.head_dim, -1)
        weights[f"blk.{i}.attn_k.weight"] = np.concatenate([keys[:, :fast], slow], 1).reshape(-1, rows.shape[1]).astype(np.float32)
        weights[f"blk.{i}.attn_v.weight"] = near[len(near) - TINY.heads_k * TINY.head_dim :].astype(np.float32)
    model = parts.Model(TINY, weights, attention)
    model.turns = model.turns.copy()
    model.turns[..., fast // 2 :] = 1
    return model


@pytest.mark.parametrize(("rope_dims", "rank"), [(8, 48), (8, 24), (8, 8), (16, 32), (16, 16)])
def test_latents_are_the_keys_and_values_that_they_stand_for(rope_dims, rank):
    tokens = list(np.random.default_rng(3).integers(0, 96, 40))
    split = mla.split(TINY, tiny_weights(), CALIBRATION, rope_dims)
    got = logits(mla.LatentModel(TINY, tiny_weights(), split, rank), tokens)
    exact = logits(expanded(split, rank, smollm2.numpy_attention_float64), tokens)
    plain = logits(expanded(split, rank, smollm2.numpy_attention), tokens)
    # the latent model rounds its matrices and its products once more
    assert rms(got - exact) <= 4 * rms(plain - exact) + 4 * np.finfo(np.float32).eps * rms(exact)


def test_at_full_rank_with_all_pairs_turning_it_is_the_model():
    tokens = list(np.random.default_rng(4).integers(0, 96, 40))
    split = mla.split(TINY, tiny_weights(), CALIBRATION, TINY.head_dim)
    assert split.full_rank == FULL[16]
    got = logits(mla.LatentModel(TINY, tiny_weights(), split, split.full_rank), tokens)
    exact, plain = (logits(parts.Model(TINY, tiny_weights(), f), tokens) for f in (smollm2.numpy_attention_float64, smollm2.numpy_attention))
    assert rms(got - exact) <= 4 * rms(plain - exact) + 4 * np.finfo(np.float32).eps * rms(exact)
    fewer = logits(mla.LatentModel(TINY, tiny_weights(), split, split.full_rank - 8), tokens)
    assert rms(fewer - exact) > 100 * rms(got - exact)


def test_the_components_are_the_best_for_the_calibration_text():
    """What a rank loses of the calibration text's slow keys and values is the sum of the smallest eigenvalues: no other basis loses less."""
    weights, rank = tiny_weights(), 16
    split = mla.split(TINY, weights, CALIBRATION, 8)
    observer = mla.Observer(TINY, weights)
    observer.states(CALIBRATION, observer.new_cache())
    for rows, basis, moments in zip(split.joint, split.basis, observer.moments, strict=True):
        covariance = rows @ moments @ rows.T
        kept = basis[:, :rank]
        lost = np.trace(covariance) - np.trace(kept.T @ covariance @ kept)
        least = np.linalg.eigvalsh(covariance)[: len(rows) - rank].sum()
        assert least <= lost <= 1.05 * least + 1e-9  # nearly: the components are of a slightly smoothed covariance
        np.testing.assert_allclose(basis.T @ basis, np.eye(len(rows)), atol=1e-10)


def test_perplexity_is_that_of_the_tokens():
    model, tokens = parts.Model(TINY, tiny_weights(), smollm2.attile_attention), [5, 9, 2, 77, 41]
    surprise = 0.0
    for i in range(1, len(tokens)):
        scores = model.forward(tokens[:i], model.new_cache()).astype(np.float64)
        surprise += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[tokens[i]]
    assert mla.perplexity(model, tokens) == pytest.approx(np.exp(surprise / 4), rel=1e-4)


def test_a_token_costs_its_latents_and_rotated_keys(tmp_path):
    split = mla.split(TINY, tiny_weights(), CALIBRATION, 8)
    rows = mla.table(TINY, tiny_weights(), split, CALIBRATION, 16)
    assert [row["rank"] for row in rows] == [None, 48, 32, 24, 16, 8]
    assert rows[0]["bytes_a_token"] == 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, dims, float32
    assert [row["bytes_a_token"] for row in rows[1:]] == [2 * (rank + 2 * 8) * 4 for rank in (48, 32, 24, 16, 8)]
    pytest.importorskip("matplotlib")
    mla.plot(rows, tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------- the real model


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return fetch_or_skip(files.model_file, tmp_path_factory.mktemp("index"))


def command(*arguments):
    return [sys.executable, str(EXAMPLES / "smollm2.py"), "--max-tokens", "24", "--threads", "1", *arguments]


def run_example(*arguments):
    done = subprocess.run(command(*arguments), capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"}, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_smollm2_at_full_rank_says_what_the_plain_model_says(model_file):
    question = "Name three large rivers of Europe."
    latent, plain = (json.loads(run_example("--json", *more, question)) for more in (("--mla", "192", "--rope", "64"), ("--plain",)))
    assert latent["attention"] == "attile latent"
    assert latent["tokens"] == plain["tokens"]
    assert len(latent["tokens"]) == 24
    by_rank = {row["rank"]: row for row in latent["ranks"]}
    assert by_rank[None]["bytes_a_token"] == by_rank[192]["bytes_a_token"] == 30 * 2 * 3 * 64 * 4
    assert by_rank[192]["perplexity"] == pytest.approx(by_rank[None]["perplexity"], rel=1e-4)
    shown = [row["perplexity"] for row in latent["ranks"][1:]]
    assert shown == sorted(shown)  # fewer components, more surprise


def test_smollm2_with_a_smaller_cache_is_little_worse(model_file):
    printed = run_example("--mla", "216", "--max-tokens", "4", "The capital of France is")
    figures = dict(re.findall(r"^ +(plain|\d+) +(\d+ +[\d.]+)$", printed, re.M))
    size, perplexity = figures["216"].split()
    assert int(size) == 30 * (216 + 3 * 32) * 4
    assert float(figures["plain"].split()[1]) < float(perplexity) < 30


@pytest.mark.parametrize(("arguments", "message"), [(["--mla", "200", "--rope", "7"], "--rope must be"), (["--mla", "296"], "up to 288, got 296")])
def test_bad_ranks_are_named(model_file, arguments, message):
    done = subprocess.run(command(*arguments), capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_reader_that_leaves_ends_it_quietly(model_file):
    with subprocess.Popen(command("Tell me a long story."), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        process.stdout.close()
        error = process.stderr.read().decode()
    assert "Traceback" not in error
    assert "BrokenPipe" not in error
    assert process.returncode == 1
