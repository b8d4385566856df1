"""A tiny model of SmolLM2's kind with random weights, for tests of the examples; examples/ is on the path."""

import numpy as np
from smollm2_model import Config

TINY = Config(layers=2, heads_q=6, heads_k=2, head_dim=16, context=64, rope_base=1e4, norm_eps=1e-5)


def tiny_weights(seed=0, vocabulary=96):
    rng = np.random.default_rng(seed)
    width, inner = TINY.heads_q * TINY.head_dim, 160
    narrow = TINY.heads_k * TINY.head_dim

    def matrix(rows, columns):
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    weights = {"token_embd.weight": matrix(vocabulary, width) * 8, "output_norm.weight": np.ones(width, np.float32)}
    for i in range(TINY.layers):
        shapes = {
            "attn_q": (width, width),
            "attn_k": (narrow, width),
            "attn_v": (narrow, width),
            "attn_output": (width, width),
            "ffn_gate": (inner, width),
            "ffn_up": (inner, width),
            "ffn_down": (width, inner),
        }
        weights |= {f"blk.{i}.{name}.weight": matrix(*shape) * 2 for name, shape in shapes.items()}
        for name in ("attn_norm", "ffn_norm"):
            weights[f"blk.{i}.{name}.weight"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
    return weights


def rms(x):
    return np.sqrt(np.mean(np.square(x, dtype=np.float64)))
