"""Cases of flash_attention that fill the tiles of forward_sm90: several tiles of queries and keys, every bucket of head dims, every option."""

import dataclasses

import cases
from cases import Case, options

BASE = Case(id="hopper", batch=2, heads_q=4, heads_k=2, seqlen_q=210, seqlen_k=340, head_dim=64, head_dim_v=64, dtype="bfloat16")

ALL_OPTIONS = options(causal=True, causal_alignment="bottom_right", sliding_window=(230, 0), logits_soft_cap=4.0, softmax_scale=0.3)
FEATURES = {
    "full": {},
    "causal": options(causal=True),
    "bottom_right": options(causal=True, causal_alignment="bottom_right"),
    "more_queries": {"seqlen_q": 340, "seqlen_k": 130} | options(causal=True, causal_alignment="bottom_right"),
    "staircase": {"keys": "staircase"} | options(causal=True, causal_alignment="bottom_right"),
    "window": options(sliding_window=(70, 13)),
    "window_bottom_right": options(sliding_window=(100, 37), causal_alignment="bottom_right"),
    "sinks": {"sinks": (4, 3)} | options(causal=True),
    "one_sink": {"sinks": (4, 1), "seqlen_k": 90} | options(sliding_window=(10, 0)),
    "padded": {"layout": "padded", "lens_q": (210, 67), "lens_k": (65, 340)},
    "padded_keys": {"layout": "padded", "lens_k": (0, 200), "sinks": (4, 1)} | options(causal=True, causal_alignment="bottom_right"),
    "packed": {"layout": "packed", "lens_q": (65, 0, 130, 1), "lens_k": (128, 20, 152, 30)} | options(causal=True, causal_alignment="bottom_right"),
    "packed_window": {"layout": "packed", "lens_q": (65, 100), "lens_k": (0, 300), "sinks": (4, 1)} | options(sliding_window=(50, 40)),
    "packed_own_keys": {"layout": "packed", "lens_q": (65, 0, 130, 1), "lens_k": (128, 20, 152, 30), "heads_q": 2} | options(causal=True, causal_alignment="bottom_right"),
    "heads_first": {"memory": "heads_first"} | options(causal=True),
}
SCORES = {
    "bias": {"bias": (2, 4, 210, 340)},
    "bias_of_batch": {"bias": (1, 4, 210, 344), "seqlen_k": 344} | options(causal=True, causal_alignment="bottom_right"),
    "bias_aligned": {"bias": (1, 4, 210, 344), "seqlen_k": 344} | options(causal=True),
    "bias_of_keys": {"bias": (4, 1, 340)},
    "bias_of_queries": {"bias": (2, 1, 210, 1)},
    "bias_float32": {"bias": (2, 4, 210, 340), "bias_dtype": "float32"},
    "bias_float32_odd": {"bias": (1, 4, 210, 339), "bias_dtype": "float32", "seqlen_k": 339} | options(causal=True, logits_soft_cap=5.0),
    "bias_float64_of_keys": {"bias": (4, 1, 340), "bias_dtype": "float64"} | options(sliding_window=(70, 13)),
    "bias_other_half": {"bias": (2, 1, 210, 340), "bias_dtype": "float16"},
    "mask": {"attention_mask": (2, 1, 210, 340)},
    "mask_of_keys": {"attention_mask": (2, 1, 1, 340), "mask_dtype": "int64"} | options(causal=True),
    "segments": {"segments": 3},
    "segments_causal": {"segments": 5, "sinks": (4, 1)} | options(causal=True, causal_alignment="bottom_right"),
    "softcap": options(logits_soft_cap=3.0),
    "large_softcap": options(logits_soft_cap=1e4, softmax_scale=2.0, causal=True),
    "packed_bias": {"layout": "packed", "lens_q": (65, 0, 130), "lens_k": (128, 20, 152), "bias": (3, 4, 130, 152)} | options(causal=True),
    "padded_bias": {"layout": "padded", "lens_q": (210, 67), "lens_k": (65, 344), "seqlen_k": 344, "bias": (1, 4, 210, 344)},
    "packed_segments": {"layout": "packed", "lens_q": (65, 0, 130), "lens_k": (128, 20, 152), "segments": 3},
    "padded_mask": {"layout": "padded", "lens_q": (210, 67), "lens_k": (65, 340), "attention_mask": (4, 210, 340)},
    "everything": {
        "layout": "padded",
        "lens_q": (210, 150),
        "lens_k": (300, 340),
        "bias": (1, 4, 210, 340),
        "attention_mask": (210, 340),
        "segments": 2,
        "sinks": (4, 2),
    }
    | ALL_OPTIONS,
}
BOTTOM_RIGHT = options(causal=True, causal_alignment="bottom_right")
FEW_QUERIES = {  # of grouped heads, which are rows of one tile
    "group2": {"seqlen_q": 40},
    "group4": {"seqlen_q": 70, "heads_q": 8} | BOTTOM_RIGHT,
    "group3": {"seqlen_q": 70, "heads_q": 6, "sinks": (6, 2)} | BOTTOM_RIGHT,
    "group7_window": {"seqlen_q": 33, "heads_q": 14} | options(sliding_window=(60, 5), causal_alignment="bottom_right"),
    "group8_one": {"seqlen_q": 1, "heads_q": 8, "heads_k": 1, "keys": "staircase"},
    "group128": {"seqlen_q": 3, "heads_q": 128, "heads_k": 1} | BOTTOM_RIGHT,
    "group160_causal": {"batch": 1, "seqlen_q": 2, "heads_q": 160, "heads_k": 1} | BOTTOM_RIGHT,
    "group4_heads_first": {"seqlen_q": 20, "heads_q": 8, "memory": "heads_first"},
    "group5_softcap": {"seqlen_q": 60, "heads_q": 10} | options(logits_soft_cap=3.0, causal=True),
    "group4_segments": {"seqlen_q": 70, "heads_q": 8, "segments": 3} | BOTTOM_RIGHT,
    "group4_mask": {"seqlen_q": 70, "heads_q": 8, "attention_mask": (2, 1, 70, 340)},
    "group4_mask_of_heads": {"seqlen_q": 30, "heads_q": 8, "attention_mask": (8, 30, 340)},
    "group3_bias": {"seqlen_q": 50, "heads_q": 6, "bias": (6, 1, 340)} | BOTTOM_RIGHT,
    "group4_padded": {"layout": "padded", "seqlen_q": 40, "heads_q": 8, "lens_q": (40, 7), "lens_k": (65, 340), "sinks": (8, 1)} | BOTTOM_RIGHT,
    "group4_packed": {"layout": "packed", "heads_q": 8, "lens_q": (5, 0, 40, 1), "lens_k": (128, 20, 152, 30)} | BOTTOM_RIGHT,
    "group3_packed": {"layout": "packed", "heads_q": 6, "lens_q": (50, 12), "lens_k": (0, 300), "sinks": (6, 1)} | options(sliding_window=(50, 40)),
    "group4_packed_segments": {"layout": "packed", "heads_q": 8, "seqlen_q": 70, "seqlen_k": 300, "lens_q": (50, 0, 20), "lens_k": (128, 20, 152), "segments": 2},
    "group4_everything": {
        "layout": "padded",
        "seqlen_q": 60,
        "heads_q": 8,
        "lens_q": (60, 31),
        "lens_k": (165, 340),
        "bias": (1, 8, 60, 340),
        "attention_mask": (60, 340),
        "segments": 2,
        "sinks": (8, 2),
    }
    | ALL_OPTIONS,
}
DIMS = {(64, 64): "bfloat16", (128, 128): "bfloat16", (96, 96): "bfloat16", (192, 128): "bfloat16", (256, 256): "bfloat16", (40, 72): "float16", (128, 120): "float16"}
FEW = ("full", "bottom_right", "padded", "packed", "everything", "sinks", "bias", "bias_float32", "mask", "segments", "softcap", "window_bottom_right", "group3", "group4", "group4_packed", "group4_everything")


def hopper_cases():
    every = FEATURES | SCORES | FEW_QUERIES
    for (head_dim, head_dim_v), dtype in DIMS.items():
        base = dataclasses.replace(BASE, id=f"hopper{head_dim}_{head_dim_v}-{dtype}", head_dim=head_dim, head_dim_v=head_dim_v, dtype=dtype)
        yield from cases.variants(base, every if (head_dim, head_dim_v) in ((64, 64), (128, 128)) else {name: every[name] for name in FEW})
    for head_dim, head_dim_v in ((64, 128), (136, 104), (24, 200), (192, 192)):
        base = dataclasses.replace(BASE, id=f"hopper{head_dim}_{head_dim_v}-bfloat16", head_dim=head_dim, head_dim_v=head_dim_v, dtype="bfloat16")
        yield from cases.variants(base, {name: every[name] for name in ("bottom_right", "bias", "group4_packed")})


CASES = list(hopper_cases())
