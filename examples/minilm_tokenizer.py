"""WordPiece, the tokenizer of BERT, from a vocabulary file.

Text is cleaned, lower-cased and stripped of accents, then cut at white space, punctuation and CJK characters; a word becomes the longest
piece of the vocabulary that it begins with, and what is left goes on with pieces marked "##".
"""

import unicodedata

LONGEST_WORD = 100  # characters; a longer one is unknown

# The blocks that BERT writes with a space on either side: ideographs, but neither kana nor hangul.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def _is_separate(character: str) -> bool:
    """Whether a character is a word of its own: punctuation, every ASCII symbol, an ideograph."""
    code = ord(character)
    if code < 128:
        return not character.isalnum() and not character.isspace()
    return unicodedata.category(character).startswith("P") or any(low <= code <= high for low, high in _IDEOGRAPHS)


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, lower case, without accents and control characters."""
    kept = []
    for character in text:
        if character.isspace():
            kept.append(" ")
        elif character != "\ufffd" and unicodedata.category(character) not in ("Cc", "Cf", "Cn", "Co", "Cs"):
            kept.append(character)
    plain = unicodedata.normalize("NFD", "".join(kept))
    plain = "".join(c for c in plain if unicodedata.category(c) != "Mn").lower()
    return "".join(f" {c} " if _is_separate(c) else c for c in plain).split()


class WordPiece:
    """Text to token ids; `vocabulary` lists the tokens in the order of their ids."""

    def __init__(self, vocabulary: list[str]):
        self.ids = {token: i for i, token in enumerate(vocabulary)}
        self.start, self.end, self.unknown = (self.ids[token] for token in ("[CLS]", "[SEP]", "[UNK]"))

    def encode(self, text: str, most: int) -> list[int]:
        """[CLS], at most `most` - 2 tokens of the text, [SEP]."""
        tokens = [token for word in words(text) for token in self._pieces(word)]
        return [self.start, *tokens[: most - 2], self.end]

    def _pieces(self, word: str) -> list[int]:
        if len(word) > LONGEST_WORD:
            return [self.unknown]
        found, begin = [], 0
        while begin < len(word):
            mark = "##" if begin else ""
            end = next((end for end in range(len(word), begin, -1) if mark + word[begin:end] in self.ids), None)
            if end is None:
                return [self.unknown]
            found.append(self.ids[mark + word[begin:end]])
            begin = end
        return found
