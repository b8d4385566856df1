"""examples/minilm_mla.py: latent attention with weights of a real model, and the search as a user runs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fetching import fetch_or_skip

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
pytest.importorskip("tqdm", reason='needs pip install ".[examples]"')

sys.path.insert(0, str(EXAMPLES))
import minilm_model
import minilm_tokenizer

WIDTH = minilm_model.HEADS * minilm_model.HEAD_DIM


@pytest.fixture
def sentences():
    """x [total,C], the projections of a layer, cu_seqlens: short, empty, one token, several tiles."""
    rng = np.random.default_rng(0)
    lengths = (7, 0, 1, 130, 20)
    x = rng.standard_normal((sum(lengths), WIDTH), np.float32)
    matrices = rng.standard_normal((3, WIDTH, WIDTH), np.float32) / np.float32(np.sqrt(WIDTH))
    biases = rng.standard_normal((3, WIDTH), np.float32)
    pairs = [array for pair in zip(matrices, biases, strict=True) for array in pair]
    return x, minilm_model.Projections(*pairs), np.cumsum([0, *lengths])


@pytest.mark.parametrize("attention", [minilm_model.latent_attention, minilm_model.padded_latent_attention])
def test_latent_attention_is_the_model_s_with_its_biases(sentences, attention):
    x, projections, cu_seqlens = sentences
    kept = [i for i in range(len(cu_seqlens) - 1) if cu_seqlens[i] < cu_seqlens[i + 1]]
    exact = np.zeros_like(x, np.float64)
    of = minilm_model.Projections(*(np.float64(a) for a in vars(projections).values()))
    for i in kept:
        rows = slice(cu_seqlens[i], cu_seqlens[i + 1])
        exact[rows] = minilm_model.plain_attention(np.float64(x[rows]), of, np.array([0, rows.stop - rows.start]))
        got, plain = (f(x[rows], projections, np.array([0, rows.stop - rows.start])) for f in (attention, minilm_model.plain_attention))
        assert rms(got - exact[rows]) <= 2 * rms(plain - exact[rows]) + np.finfo(np.float32).eps
    # all sentences in one call: none sees another
    together = attention(x, projections, cu_seqlens)
    limit = 40 * np.finfo(np.float32).eps * np.abs(exact).max()
    assert np.abs(together - exact).max() <= limit
    assert np.abs(attention(x, projections, np.array([0, len(x)])) - exact).max() > 1000 * limit


def rms(x):
    return np.sqrt(np.mean(np.square(x, dtype=np.float64)))


def test_gelu_is_that_of_the_error_function():
    torch = pytest.importorskip("torch")
    x = np.concatenate([np.linspace(-12, 12, 20_001), [0.0, -0.0, 1e-30, 300, -300]]).astype(np.float32)
    exact = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    assert np.abs(minilm_model.gelu(x) - exact).max() <= np.finfo(np.float32).eps * 12
    assert minilm_model.gelu(x).dtype == np.float32


def test_safetensors_are_read_as_they_are(tmp_path):
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7.5], np.float32)
    table = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [24, 28]},
        "ids": {"dtype": "I64", "shape": [1], "data_offsets": [28, 36]},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    }
    header = json.dumps(table).encode()
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + a.tobytes() + b.tobytes() + bytes(8))
    weights = minilm_model.read_safetensors(path)
    assert set(weights) == {"a", "b"}
    np.testing.assert_array_equal(weights["a"], a)
    np.testing.assert_array_equal(weights["b"], b)


# ---------------------------------------------------------------- tokenizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't  stop!!", ["don", "'", "t", "stop", "!", "!"]),
        ("Naïve CAFÉ, $5", ["naive", "cafe", ",", "$", "5"]),
        ("a\u00a0b\u3000c\u200b\u00ad\x00d", ["a", "b", "cd"]),
        ("中文 한 かな", ["中", "文", "\u1112\u1161\u11ab", "かな"]),
        ("½ x² e\u0301", ["½", "x²", "e"]),
        ("", []),
    ],
)
def test_words_are_those_of_bert(text, expected):
    assert minilm_tokenizer.words(text) == expected


def test_the_longest_piece_goes_first():
    vocabulary = ["[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "##a", "##ff", "affable"]
    tokenizer = minilm_tokenizer.WordPiece(vocabulary)

    def pieces(text, most=99):
        return [vocabulary[i] for i in tokenizer.encode(text, most)]

    assert pieces("unaffable") == ["[CLS]", "un", "##aff", "##able", "[SEP]"]
    assert pieces("Affable unx") == ["[CLS]", "affable", "[UNK]", "[SEP]"]
    assert pieces("un " + "a" * 101) == ["[CLS]", "un", "[UNK]", "[SEP]"]
    assert pieces("unaffable", most=4) == ["[CLS]", "un", "##aff", "[SEP]"]
    assert pieces("") == ["[CLS]", "[SEP]"]


# ---------------------------------------------------------------- the real model

# By Hugging Face's tokenizers and transformers (BertModel, mean over tokens, unit length), with the model's own files.
REAL_IDS = {"unaffordable naïve café — 中文, it's": [101, 14477, 4246, 8551, 3085, 15743, 7668, 1517, 1746, 1861, 1010, 2009, 1005, 1055, 102]}
REAL_EMBEDDINGS = {
    "Leaves turn sunlight, water and carbon dioxide into sugar.": [0.0033457, 0.0208224, -0.0031969, 0.1149182],
    "Gutenberg printed the Bible with letters of cast metal.": [-0.0550205, 0.075073, -0.004683, 0.0728758],
    "A fever is the body's way to fight an infection.": [0.0040026, 0.0745473, 0.0241423, 0.0168204],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    weights, vocabulary = fetch_or_skip(minilm_model.read_model, tmp_path_factory.mktemp("index"))
    return weights, minilm_tokenizer.WordPiece(vocabulary)


def test_minilm_tokens_are_those_of_its_training(model):
    for text, ids in REAL_IDS.items():
        assert model[1].encode(text, 99) == ids


@pytest.mark.parametrize(
    ("attention", "limit"), [(minilm_model.latent_attention, 1e-5), (minilm_model.padded_latent_attention, 1e-5), (minilm_model.plain_attention, 0)]
)
def test_minilm_embeddings_are_the_model_s(model, attention, limit):
    weights, tokenizer = model
    sentences = [tokenizer.encode(text, minilm_model.MOST_TOKENS) for text in REAL_EMBEDDINGS]
    got = minilm_model.MiniLM(weights, attention).embed(sentences)
    np.testing.assert_allclose(got[:, :4], list(REAL_EMBEDDINGS.values()), rtol=0, atol=1e-6)
    plain = minilm_model.MiniLM(weights, minilm_model.plain_attention).embed(sentences)
    assert np.abs(got - plain).max() <= limit
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1, rtol=1e-6)


def run_example(*arguments):
    done = subprocess.run([sys.executable, str(EXAMPLES / "minilm_mla.py"), *arguments], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_minilm_finds_sentences_by_their_sense(model, tmp_path):
    printed = run_example()
    assert printed.splitlines()[0] == " 0.549  Leaves turn sunlight, water and carbon dioxide into sugar."
    assert float(re.search(r"largest difference from NumPy attention (\S+)", printed)[1]) <= 1e-5
    notes = tmp_path / "notes.txt"
    notes.write_text("The keys are under the mat.\n\nDinner is at seven.\n")
    figures = json.loads(run_example("--json", "--file", str(notes), "--hits", "1", "When do we eat?"))
    assert [hit["text"] for hit in figures["hits"]] == ["Dinner is at seven."]
    assert figures["sentences"] == 2
    assert 0 < figures["largest_difference"] <= 1e-5
