"""Byte-level BPE (the tokenizer of GPT-2) from the metadata of a GGUF file.

Text is cut into words, a word into its UTF-8 bytes, each byte written as one
printable character; then the adjacent pair that comes first in the list of
merges is joined, again and again. Merging costs O(n^2) in the length of a word,
and each word's result is remembered.
"""

import itertools
import re
import unicodedata
from functools import lru_cache

CONTROL = 3  # gguf.TokenType.CONTROL: <|im_start|> and the like

# GPT-2's word pattern, with every digit a word of its own as SmolLM2 has it. It reads the skeleton of a text (see
# _skeleton), so plain ASCII classes stand for the Unicode classes L, N and White_Space that `re` does not know.
_WORD = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?![^\s0-9])|\s+", re.ASCII)


def _byte_characters() -> list[str]:
    """A printable character for each byte: itself where it is printable, else the next free one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    free = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(free)) for byte in range(256)]


def _skeleton(text: str) -> str:
    """The text with each character outside ASCII replaced by an ASCII character of the same class."""

    def stand_in(character: str) -> str:
        if character.isascii():
            return character
        kind = unicodedata.category(character)[0]
        # "a" begins no contraction of the pattern, so an apostrophe before it stays what it is.
        return {"L": "a", "N": "0"}.get(kind, "\t" if character.isspace() else "#")

    return "".join(map(stand_in, text))


def words(text: str) -> list[str]:
    """Cut a text into the words that BPE works on; joined, they are the text."""
    return [text[match.start() : match.end()] for match in _WORD.finditer(_skeleton(text))]


class Tokenizer:
    """Text to token ids and back.

    Parameters
    ----------
    tokens : list of str
        The vocabulary, bytes written as printable characters.
    merges : list of str
        "left right", most frequent first.
    types : list of int, optional
        GGUF token types; a control token never comes out of `encode`.
    """

    def __init__(self, tokens: list[str], merges: list[str], types: list[int] | None = None):
        types = types or [1] * len(tokens)
        self.ids = {token: i for i, token in enumerate(tokens)}
        self._ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self._characters = _byte_characters()
        byte_of = {character: byte for byte, character in enumerate(self._characters)}
        self._bytes = [b"" if kind == CONTROL else bytes(byte_of[c] for c in token if c in byte_of) for token, kind in zip(tokens, types, strict=True)]
        self._encode_word = lru_cache(maxsize=1 << 16)(self._merge)

    @classmethod
    def from_gguf(cls, metadata: dict) -> "Tokenizer":
        """Build the tokenizer of a GGUF file; only the kind of SmolLM2 is known.

        Raises
        ------
        NotImplementedError
            Another tokenizer model or another way to cut words.
        """
        kind = (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"])
        if kind != ("gpt2", "smollm"):
            raise NotImplementedError(f"Tokenizer.from_gguf: expected ('gpt2', 'smollm'), got {kind}")
        return cls(*(metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "merges", "token_type")))

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: "<|im_end|>" in it is text too, never the control token.

        A byte that the vocabulary lacks is left out, as SmolLM2's own tokenizer does.
        """
        return [token for word in words(text) for token in self._encode_word(word)]

    def decode_bytes(self, ids: list[int]) -> bytes:
        """UTF-8 bytes of tokens; a character may be spread over several tokens. Control tokens give nothing."""
        return b"".join(self._bytes[i] for i in ids)

    def decode(self, ids: list[int]) -> str:
        """Text of tokens."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def _merge(self, word: str) -> tuple[int, ...]:
        # SmolLM2's vocabulary lacks 21 bytes (control characters, planes that Unicode has not filled): no token says them.
        parts = [c for c in map(self._characters.__getitem__, word.encode("utf-8")) if c in self.ids]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            joined, i = [], 0
            while i < len(parts):
                step = 2 if tuple(parts[i : i + 2]) == best else 1
                joined.append("".join(parts[i : i + step]))
                i += step
            parts = joined
        return tuple(self.ids[part] for part in parts)
