"""Calls on the emulated CUDA library, judged: what tests/test_cuda_emulation.py runs in a process of its own.

Every function makes many calls, prints how many, and fails with all that failed. A pattern chooses cases by their names.
"""

import dataclasses
import itertools
import re

import numpy as np
from fake_cupy import ndarray, on

import attile  # isort: skip: fake_cupy is first
import cases
import mla_attention_cases
import reference_gradients
import reference_mla_gradients
import tolerance_mla
from attile import FlashAttentionConfig, FlashMLAConfig
from cases import Case, options
from machine import takes
from tolerance import Judge

DTYPES = ("bfloat16", "float16", "float32")


def every(things, call):
    """Call `call` on each of the things."""
    failed, count = [], 0
    for thing in things:
        count += 1
        try:
            call(thing)
        except (AssertionError, RuntimeError, NotImplementedError) as error:
            failed.append(f"{thing}: {error}")
    assert not failed, "\n".join([f"{len(failed)} of {count} calls failed", *failed])
    assert count
    print(count)


def matching(pattern, *lists):
    return [case for cases_ in lists for case in cases_ if case.dtype != "float64" and re.match(pattern, case.id)]


def larger():
    """Several tiles of queries and keys, every compiled head dim, every option."""
    base = Case(id="larger", heads_q=2, heads_k=1, seqlen_q=100, seqlen_k=200, head_dim=64, head_dim_v=64)
    shapes = {
        "full": {},
        "causal": options(causal=True),
        "bottom_right": options(causal=True, causal_alignment="bottom_right"),
        "window": options(sliding_window=(70, 13)),
        "bias": {"bias": (2, 2, 100, 200)},
        "bias_of_all": {"bias": (1, 1, 100, 200), "bias_dtype": "float32"},
        "mask": {"attention_mask": (2, 1, 100, 200)},
        "segments": {"segments": 4},
        "sinks": {"sinks": (2, 2)},
        "softcap": options(logits_soft_cap=3.0),
        "dropout": options(dropout_prob=0.2, dropout_seed=1234567890123),
        "unnormalized": options(normalize_output=False),
        "negative_scale": options(softmax_scale=-0.2),
        "steep": options(softmax_scale=300000.0),
        "staircase": {"keys": "staircase"},
        "gaps": {"bias": (2, 100, 200), "memory": "gaps"},
        "padded": {"layout": "padded", "lens_q": (100, 67), "lens_k": (65, 200)},
        "packed": {"layout": "packed", "lens_q": (65, 0, 30), "lens_k": (128, 20, 52)} | options(causal=True, causal_alignment="bottom_right"),
        "everything": cases.FEATURES["everything"]
        | {"lens_q": (100, 20), "lens_k": (110, 200), "bias": (1, 2, 100, 200), "attention_mask": (100, 200), "sinks": (2, 2)},
    }
    for dtype in ("bfloat16", "float32"):
        for dim, dim_v in ((64, 64), (128, 128)):
            yield from cases.variants(
                dataclasses.replace(base, id=f"larger{dim}-{dtype}", dtype=dtype, head_dim=dim, head_dim_v=dim_v),
                shapes if dtype == "bfloat16" or dim == 64 else {name: shapes[name] for name in ("causal", "everything")},
            )
        for dim, dim_v in ((33, 40), (72, 72), (96, 96), (100, 1), (192, 128), (256, 256), (320, 264), (576, 512)):
            yield from cases.variants(
                dataclasses.replace(base, id=f"larger{dim}_{dim_v}-{dtype}", dtype=dtype, head_dim=dim, head_dim_v=dim_v),
                {"bottom_right": shapes["bottom_right"], "packed": shapes["packed"]},
            )


def biased():
    """What the kernels for a bias of the inputs' type take: rows at multiples of 16 bytes, a key head for each query head."""
    shapes = {
        "full": {"bias": (2, 2, 100, 200)},
        "of_all": {"bias": (1, 1, 100, 200)} | options(causal=True, softmax_scale=0.3),
        "row": {"bias": (2, 1, 1, 200)} | options(sliding_window=(70, 13)),
        "packed": {"bias": (1, 2, 72, 128), "layout": "packed", "lens_q": (65, 0, 30), "lens_k": (128, 20, 52)},
        "padded": {"bias": (2, 2, 100, 200), "layout": "padded", "lens_q": (100, 67), "lens_k": (65, 200)},
    }
    for dtype, (dim, dim_v) in itertools.product(("bfloat16", "float16"), ((64, 64), (64, 40), (128, 128))):
        yield from cases.variants(
            Case(id=f"biased{dim}_{dim_v}-{dtype}", seqlen_q=100, seqlen_k=200, dtype=dtype, head_dim=dim, head_dim_v=dim_v, heads_q=2, heads_k=2), shapes
        )


LARGER = [*larger(), *biased()]


GENERIC = "forward_generic_sm80"


def run(case, kernel=GENERIC, **cfg):
    judge = Judge(case.arrays())
    out, lse = attile.flash_attention(**on(case.arrays()), return_lse=True, cfg=FlashAttentionConfig(kernel=kernel, **cfg))
    judge.check(out.get(), lse.get())


def hopper(pattern):
    """forward_sm90 on its own cases, and on all small ones whose memory it takes."""
    import hopper_cases

    chosen = matching(pattern, cases.SMALL, cases.EDGE, hopper_cases.CASES)
    taken = [case for case in chosen if takes("forward_sm90", **on(case.arrays()))]
    every(taken, lambda case: run(case, "forward_sm90"))


def hopper_float8(pattern):
    """What the GPU's tests ask of float8 inputs with options, and of a bias of -inf."""
    import gpu
    import test_gpu_hopper_forward as tests

    gpu.to_numpy, gpu.call_on = ndarray.get, lambda call, _: on(call)

    def check(name):
        tests.check_float8(tests.case_named(name), lambda call: tuple(x.get() for x in attile.flash_attention(**on(call), return_lse=True)))

    every([name for name in tests.FLOAT8_CASES if re.match(pattern, name)], check)
    every(["bfloat16", "float32"], lambda dtype: tests.test_a_bias_of_minus_infinity_hides_keys("forward_sm90", dtype))


def run_with_infinite_bias(case, kernel):
    """A bias of -inf hides its key whatever that is, one of NaN or +inf reaches its own row alone."""
    call, cfg = case.arrays(), FlashAttentionConfig(kernel=kernel)
    call["bias"][..., 3, 5:90] = -np.inf
    call["bias"][..., 17, :] = -np.inf
    call["bias"][..., 95:130] = -np.inf
    call["key"][:, 95:110], call["key"][:, 110:130] = np.nan, np.inf
    call["bias"][..., 40, 7] = np.finfo(np.float32).max if case.dtype == "float32" else 60000
    judge = Judge(call)
    out, lse = attile.flash_attention(**on(call), return_lse=True, cfg=cfg)
    judge.check(out.get(), lse.get())
    call["bias"][..., 50, 9] = np.nan
    broken = attile.flash_attention(**on(call), cfg=cfg).get().astype(np.float32)
    assert np.isnan(broken[:, 50]).all()
    np.testing.assert_array_equal(np.delete(broken, 50, 1), np.delete(out.get().astype(np.float32), 50, 1))


def infinite_bias():
    chosen = matching("biased.*-full", LARGER) + matching("larger64-bfloat16-bias$", LARGER)
    taken = [case for case in chosen if takes("forward_sm90", **on(case.arrays()))]
    every([(case, GENERIC) for case in chosen] + [(case, "forward_sm90") for case in taken], lambda both: run_with_infinite_bias(*both))


def forward(pattern):
    every(matching(pattern, cases.SMALL, cases.EDGE, LARGER), run)


def splits(number):
    every([case for case in matching("", cases.SMALL) if case.seqlen_k > 100 or number == 2], lambda case: run(case, num_splits=number))


def caches(lens):
    """Dense and paged caches of sequences of these lengths."""
    import test_gpu_kvcache

    def check(arguments):
        call, plain = test_gpu_kvcache.problem(*arguments)
        out, lse = attile.flash_attention_with_kvcache(**on(call), return_lse=True)
        Judge(plain).check(out.get(), lse.get())

    every([(dtype, lens, n, page) for dtype in DTYPES for n in (1, 3, 70) for page in (None, 1, 7, 64)], check)


def hopper_decode(seqlen_q):
    """decode_sm90 over dense and paged caches, whose sequences are split over the blocks."""
    import test_gpu_kvcache

    def check(arguments):
        dtype, lens, page, shape, name = arguments
        call, plain = test_gpu_kvcache.problem(dtype, lens, seqlen_q, page, shape=shape, **features[name])
        out, lse = attile.flash_attention_with_kvcache(**on(call), return_lse=True, cfg=FlashAttentionConfig(kernel="decode_sm90"))
        Judge(plain).check(out.get(), lse.get())

    sinks = np.random.default_rng(5).standard_normal((16, 2)).astype(np.float32)
    lens = ((1, 700, 64, 0, 129), (3000,), tuple(i * 37 % 90 for i in range(40)), (500, 449, 512, 470, 480, 490))  # the last: none is split
    features = {
        "plain": {},
        "window": {"sliding_window": (40, 0), "softmax_aux": sinks},
        "cap": {"logits_soft_cap": 5.0, "softmax_scale": -0.2, "causal": False},
    }
    shapes = [(16, heads_k, dim, dim) for heads_k, dim in ((2, 64), (2, 128), (4, 256), (1, 128))]
    pages = (None, 1, 7, 16, 64, 256)
    chosen = list(itertools.product(("bfloat16", "float16"), lens, pages, shapes, features))
    every(chosen[seqlen_q % 7 :: 7], check)


def mla(pattern, **more):
    """mla_decode_generic_sm80 on the cases whose names match."""
    import mla_cases

    every(matching(pattern, mla_cases.SMALL, mla_cases.EDGE, mla_cases.REAL), lambda case: decode(case, "mla_decode_generic_sm80", **more))


def decode(case, kernel, **more):
    from reference_mla import expanded_decode

    out, lse = attile.mla_decode(**on(case.arrays()), return_lse=True, cfg=FlashMLAConfig(kernel=kernel), **more)
    Judge(expanded_decode(**case.arrays())).check(out.get(), lse.get())


def hopper_mla(pattern):
    """mla_decode_sm90 on the cases that it takes, and on its own, whose sequences are split over the blocks."""
    import mla_cases
    from machine import own_words

    kernel = "mla_decode_sm90"

    def takes_decode(case):
        try:
            attile.explain(attile.mla_decode, **on(case.arrays()), cfg=FlashMLAConfig(kernel=kernel))
        except NotImplementedError as error:
            return not own_words(kernel, error)
        return True

    base = mla_cases.MlaCase(id="hopper", dtype="bfloat16", batch=4, kv_lens=(300, 65, 0, 130), page_size=64, staircase=True)
    shapes = {"batch": 3, "kv_lens": None, "page_size": None, "seqlen_k": 300}
    own = mla_cases.variants(
        base,
        {
            "pages64": {},
            "pages1": {"page_size": 1},
            "pages3-tokens": {"page_size": 3, "seqlen_q": 3, "dtype": "float16"},
            "dense-sinks": {"page_size": None, "seqlen_k": 300, "sinks": (16, 2)},
            "rows80": {"heads": 40, "seqlen_q": 2},
            "512_64": {"latent": 512, "rope": 64, "joined": True},
            "512_64-rows80": {"latent": 512, "rope": 64, "heads": 80, "joined": True},
            "512_64-pages1": {"latent": 512, "rope": 64, "heads": 80, "page_size": 1},
            "512_128": {"latent": 512, "rope": 128},
            "256_32": {"latent": 256, "rope": 32},
            "320_0-cap": {"latent": 320, "rope": 0, "options": {"logits_soft_cap": 1.0}},
            "heads": {"latent": 512, "rope": 16, "head_rope": True, "heads": 5},
            "one": {"batch": 1, "kv_lens": (1500,)},
            "equal": {"batch": 6, "kv_lens": (300, 290, 257, 320, 300, 300)},  # as many blocks each
            "equal-heads": {"batch": 1, "kv_lens": (700,), "latent": 512, "rope": 16, "head_rope": True},
            "pairs-256_32": {"batch": 2, "kv_lens": (300, 290), "latent": 256, "rope": 32, "heads": 24, "joined": True},
            "pairs-sinks": {"batch": 2, "kv_lens": (515, 513), "latent": 200, "seqlen_q": 3, "sinks": (16, 2)},
            "pairs-128": {"batch": 2, "kv_lens": (700, 700), "latent": 104, "heads": 40, "dtype": "float16"},
            "pairs-heads": {"batch": 2, "kv_lens": (520, 513), "latent": 512, "rope": 16, "head_rope": True, "heads": 32},
            "pairs-rows80": {"batch": 1, "kv_lens": (700,), "latent": 256, "heads": 80, "joined": True},
            "many": {"batch": 450, "kv_lens": tuple(i * 37 % 90 for i in range(450)), "heads": 3},
            # Plans that shapes alone give.
            "shapes-256_32": shapes | {"latent": 256, "rope": 32, "heads": 24},
            "shapes-tokens": shapes | {"batch": 5, "seqlen_k": 130, "latent": 200, "heads": 24, "seqlen_q": 3, "sinks": (24, 1)},
            "shapes-short": shapes | {"seqlen_k": 20, "latent": 256, "dtype": "float16"},
            "shapes-heads": shapes | {"batch": 1, "seqlen_k": 700, "latent": 512, "rope": 16, "head_rope": True, "heads": 5},
            "shapes-heads-pairs": shapes | {"batch": 2, "seqlen_k": 520, "latent": 512, "rope": 16, "head_rope": True, "heads": 32},
            "shapes-pairs": shapes | {"batch": 2, "latent": 256, "rope": 32, "heads": 24},
            "shapes-rows80-pairs": shapes | {"batch": 1, "seqlen_k": 690, "latent": 256, "heads": 80},
        },
    )
    chosen = matching(pattern, mla_cases.SMALL, mla_cases.EDGE, mla_cases.REAL, own)
    every([case for case in chosen if takes_decode(case)], lambda case: decode(case, kernel))


def mla8():
    """A float8_e4m3 cache: cases in bfloat16, and every number of the format as the values of one key."""
    import test_gpu_mla_decode as decode

    def check(arguments):
        call, judge = decode.float8_call(*arguments)
        out, lse = attile.mla_decode(**on(call), return_lse=True)
        judge.check(out.get(), lse.get())

    every([(case, scale) for case in decode.FLOAT8 for scale in (0.5, None)], check)
    call, expected = decode.every_float8()
    np.testing.assert_array_equal(attile.mla_decode(**on(call)).get().reshape(-1), expected)


def hopper_mla8():
    """mla_decode_sm90 on a float8_e4m3 cache: at most 16 rows, which have a kernel of their own, and more."""
    import mla_cases
    import test_gpu_mla_decode as generic

    base = mla_cases.MlaCase(id="hopper8", dtype="bfloat16", batch=5, kv_lens=(300, 65, 0, 130, 700), page_size=64)
    own = mla_cases.variants(
        base,
        {
            "rows16": {"latent": 512, "rope": 64},
            "rows14": {"heads": 7, "seqlen_q": 2},
            "full": {"heads": 3, "seqlen_q": 4, "options": {"causal": False}},
            "rows72": {"heads": 24, "seqlen_q": 3},
            "dense": {"page_size": None, "seqlen_k": 700, "latent": 144, "sinks": (16, 2)},
            "no-rope": {"rope": 0, "options": {"logits_soft_cap": 1.0}, "index_dtype": "int64"},
            "many": {"batch": 90, "kv_lens": tuple(i * 37 % 300 for i in range(90)), "heads": 3, "page_size": 128},
        },
    )

    def check(case):
        call, judge = generic.float8_call(case, 0.5)
        out, lse = attile.mla_decode(**on(call), return_lse=True, cfg=FlashMLAConfig(kernel="mla_decode_sm90"))
        judge.check(out.get(), lse.get())

    every(own, check)


def planned():
    """The wrapper with index arrays on either side, and the append."""
    import gpu

    gpu.to_gpu, gpu.to_numpy, gpu.call_on = lambda x, _: ndarray(np.array(x)), ndarray.get, lambda call, _, host=(): on(call, host)
    import test_gpu_mla_wrapper as wrapper

    every([(case, side) for case in wrapper.GPU_CASES for side in ("host", "gpu")], lambda arguments: wrapper.test_cases(*arguments))
    every([(dtype, joined, side, "cupy") for dtype in cases.DTYPES for joined in (False, True) for side in ("host", "gpu")], lambda arguments: wrapper.test_append(*arguments))
    every(["host", "gpu"], wrapper.test_append_of_many_tokens)
    wrapper.test_sequences_of_different_lengths_and_rows_behind_them()
    wrapper.test_bad_indices_on_the_gpu_read_nothing_out_of_bounds()
    wrapper.test_append_skips_what_breaks_the_contract_on_the_gpu()


def merged():
    from test_merge import check, states

    def merge(arguments):
        dtype, spread, shape = arguments
        arrays = states(dtype, shape=shape, spread=spread)
        check([x.get() for x in attile.merge_states(*map(ndarray, arrays))], arrays)

    shapes = [(2, 5, 3, 24), (1, 300, 2, 64), (3, 2, 128, 512), (2, 3, 4, 7)]
    every([(d, spread, shape) for d in ("float64", "float32", "float16") for spread in (0.0, 3.0, 60.0) for shape in shapes], merge)


# ---- latents ----


def of_latents(pattern):
    """mla_attention with both strategies; the emulation's pieces are small."""

    def check(arguments):
        case, strategy = arguments
        judge = tolerance_mla.Judge(case.arrays())
        out, lse = attile.mla_attention(**on(case.arrays()), return_lse=True, cfg=FlashMLAConfig(strategy=strategy))
        judge.check(strategy, out.get(), lse.get())

    chosen = matching(pattern, mla_attention_cases.SMALL, mla_attention_cases.EDGE, mla_attention_cases.REAL, LATENTS)
    every(list(itertools.product(chosen, ("rebuild", "absorb"))), check)


def larger_latents():
    """Several tiles of rows, columns and depth; more pieces than one of a batch and of heads."""
    base = mla_attention_cases.MlaAttentionCase(id="larger", batch=3, seqlen_q=150, seqlen_k=290, heads_q=6, heads_k=3, rank=200, nope=136, rope_dim=16, head_dim_v=152)
    causal = options(causal=True, causal_alignment="bottom_right")
    shapes = {
        "causal": causal,
        "ending": {"seqlen_q": 128, "nope": 200, "head_dim_v": 200, "batch": 1, "heads_q": 2, "heads_k": 2} | options(causal=True),  # what no query sees is not rebuilt
        "window": options(sliding_window=(20, 3)),
        "packed": {"layout": "packed", "lens": (70, 0, 130, 1, 80), "seqlen_q": 300, "seqlen_k": 300, "rope": "shared"} | causal,
        "padded": {"layout": "padded", "lens": (290, 0, 140), "seqlen_q": 290, "rope": "heads"} | causal,
        "dropout": {"bias": (3, 6, 150, 290), "sinks": (6, 2)} | options(dropout_prob=0.2, dropout_seed=77),
    }
    for dtype in ("bfloat16", "float32"):
        yield from cases.variants(dataclasses.replace(base, id=f"larger-{dtype}", dtype=dtype), shapes)


LATENTS = list(larger_latents())


# ---- gradients ----


def check_gradients(case, **options):
    call = case.arrays()
    out, lse = attile.flash_attention(**on(call), return_lse=True)
    dout, dlse = reference_gradients.gradients_of_results(case, call)
    results = {"dout": dout} | ({} if dlse is None else {"dlse": dlse})
    got = attile.flash_attention_backward(**on(results | call), out=out, lse=lse, **options)
    reference_gradients.check(call, dout, dlse, attile.Gradients(*(x if x is None else x.get() for x in got)))


def backward(pattern, deterministic=False):
    """Gradients of what the backward takes, with rows that are not of a sequence full of NaN."""
    chosen = [case for case in matching(pattern, cases.SMALL, cases.EDGE, LARGER) if reference_gradients.judged(case)]
    every(chosen, lambda case: check_gradients(case, deterministic=deterministic))


def check_gradients_of_latents(case, **options):
    call = case.arrays()
    out, lse = attile.mla_attention(**on(call), return_lse=True, cfg=FlashMLAConfig(strategy="rebuild"))
    dout, dlse = reference_mla_gradients.gradients_of_results(case, call)
    results = {"dout": dout} | ({} if dlse is None else {"dlse": dlse})
    got = attile.mla_attention_backward(**on(results | call), out=out, lse=lse, **options)
    reference_mla_gradients.check(call, dout, dlse, attile.MLAGradients(*(x if x is None else x.get() for x in got)))


def backward_of_latents(pattern, deterministic=False):
    """Gradients of mla_attention in pieces as small."""
    every(matching(pattern, mla_attention_cases.SMALL, mla_attention_cases.EDGE, mla_attention_cases.REAL, LATENTS), lambda case: check_gradients_of_latents(case, deterministic=deterministic))
