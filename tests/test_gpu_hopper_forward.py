"""forward_sm90 on a Hopper GPU: every case that fills its tiles, beside the generic kernel and judged by the error model; float8; the same
bits again and again; what it says when it refuses."""

import functools

import cases
import gpu
import hopper_cases
import numpy as np
import pytest
import reference
from attile import FlashAttentionConfig, explain, flash_attention, flash_attention_with_kvcache
from machine import own_words
from tolerance import Judge

KERNELS = ("forward_sm90", "forward_generic_sm80")


def on_hopper():
    return any(row["name"] == "forward_sm90" and row["available"] for row in gpu.CONFIG["kernels"])


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not on_hopper(), reason="needs a GPU of compute capability 9.0")]


@functools.cache
def judge_of(case):
    return Judge(case.arrays())


def run(case, kernel, library="torch"):
    """(out, lse) as NumPy arrays; the memory of out was NaN."""
    arrays = gpu.call_on(case.arrays(), library)
    judge = judge_of(case)
    arrays["out"] = gpu.to_gpu(np.full(judge.out.shape, np.nan, judge.dtype), library)
    out, lse = flash_attention(**arrays, return_lse=True, cfg=FlashAttentionConfig(kernel=kernel))
    return gpu.to_numpy(out), gpu.to_numpy(lse)


def case_named(name):
    return next(case for case in hopper_cases.CASES if case.id == name)


@pytest.mark.parametrize("chosen", KERNELS)
@pytest.mark.parametrize("case", hopper_cases.CASES, ids=str)
def test_every_case(case, chosen):
    assert judge_of(case).out.any()
    judge_of(case).check(*run(case, chosen))


@pytest.mark.parametrize("case", [case for case in hopper_cases.CASES if case.head_dim not in (96, 128, 192)], ids=str)
def test_what_may_lie_anywhere(case):
    """out in memory that TMA cannot write: two bytes off, and with gaps of one element between rows."""
    import torch

    judge = judge_of(case)
    *leading, dims = judge.out.shape
    room = torch.full((int(np.prod(leading)) * (dims + 1) + 1,), float("nan"), dtype=torch.bfloat16 if case.dtype == "bfloat16" else torch.float16, device="cuda")
    strides = np.cumprod([1, *leading[:0:-1]])[::-1] * (dims + 1)
    out = room.as_strided(judge.out.shape, (*map(int, strides), 1), 1)
    got, lse = flash_attention(**gpu.call_on(case.arrays(), "torch"), out=out, return_lse=True, cfg=FlashAttentionConfig(kernel="forward_sm90"))
    assert got is out
    judge.check(gpu.to_numpy(out.contiguous()), gpu.to_numpy(lse))
    gaps = room[1:].view(-1, dims + 1)[:, dims]
    assert gaps.isnan().all()


@pytest.mark.parametrize(
    "name",
    [
        f"hopper{dims}-bfloat16-{feature}"
        for dims in ("64_64", "128_128")
        for feature in hopper_cases.FEATURES | hopper_cases.SCORES | hopper_cases.FEW_QUERIES
    ]
    + [f"hopper{dims}-bfloat16-bottom_right" for dims in ("96_96", "192_128", "256_256")],
)
def test_the_same_bits_a_hundred_times(name):
    """Small head dims and few tiles: barriers that do not hold show here."""
    import torch

    arrays = gpu.call_on(case_named(name).arrays(), "torch")
    call = functools.partial(flash_attention, **arrays, return_lse=True, cfg=FlashAttentionConfig(kernel="forward_sm90"))
    first = call()
    for _ in range(100):
        for a, b in zip(first, call(), strict=True):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("lens", [None, (700, 300), (1, 0)])
@pytest.mark.parametrize("seqlen_q", [64, 300])
def test_dense_caches(lens, seqlen_q):
    rng = np.random.default_rng(3)
    dtype = cases.numpy_dtype("bfloat16")
    q, k, v = (rng.standard_normal((2, n, h, 128)).astype(dtype) for n, h in ((seqlen_q, 8), (700, 2), (700, 2)))
    plain = {"query": q, "key": k, "value": v, "causal": True, "causal_alignment": "bottom_right"}
    call = {"q": q, "k_cache": k, "v_cache": v}
    if lens:
        plain["cum_seqlens_k"] = np.cumsum((0, *lens)).astype(np.int32)
        call["cache_seqlens"] = np.array(lens, np.int32)
        for b, n in enumerate(lens):
            k[b, n:] = v[b, n:] = np.nan
    out, lse = flash_attention_with_kvcache(**gpu.call_on(call, "torch"), return_lse=True, cfg=FlashAttentionConfig(kernel="forward_sm90"))
    Judge(plain).check(gpu.to_numpy(out), gpu.to_numpy(lse))


@pytest.mark.parametrize("bias_dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("chosen", KERNELS)
def test_a_bias_of_minus_infinity_hides_keys(chosen, bias_dtype):
    """Whatever they are; one of NaN or +inf reaches its own row alone."""
    rng = np.random.default_rng(7)
    dtype = cases.numpy_dtype("bfloat16")
    call = {name: rng.standard_normal((1, n, 2, 128)).astype(dtype) for name, n in (("query", 200), ("key", 320), ("value", 320))}
    call["bias"] = rng.standard_normal((1, 2, 200, 320)).astype(cases.numpy_dtype(bias_dtype))
    call["bias"][..., 5:90] = call["bias"][:, :, 17] = -np.inf
    call["key"][:, 5:20], call["key"][:, 20:40] = np.nan, np.inf
    judge = Judge(call)
    cfg = FlashAttentionConfig(kernel=chosen)
    out, lse = flash_attention(**gpu.call_on(call, "torch"), return_lse=True, cfg=cfg)
    judge.check(gpu.to_numpy(out), gpu.to_numpy(lse))
    call["bias"][..., 50, 9] = np.nan
    broken = gpu.to_numpy(flash_attention(**gpu.call_on(call, "torch"), cfg=cfg)).astype(np.float32)
    assert np.isnan(broken[:, 50]).all()
    np.testing.assert_array_equal(np.delete(broken, 50, 1), np.delete(gpu.to_numpy(out).astype(np.float32), 50, 1))


# ---- float8 ----


def float8_problem(dims, seqlen_q, seqlen_k, **options):
    """Arguments in e4m3, and as float32 numbers, of which the reference computes in float64."""
    import torch

    generator = torch.Generator("cuda").manual_seed(5)
    shapes = {"query": (2, seqlen_q, 4, dims), "key": (2, seqlen_k, 2, dims), "value": (2, seqlen_k, 2, dims)}
    arrays = {name: torch.randn(shape, device="cuda", generator=generator).to(torch.float8_e4m3fn) for name, shape in shapes.items()}
    return arrays, {name: x.float().cpu().numpy() for name, x in arrays.items()} | options


def float8_error(expected, numbers, factors):
    """What rounding p to e4m3 and out to bfloat16 costs a plain computation, relative."""
    import torch

    q, k, v = (torch.from_numpy(numbers[name]).cuda().double() * factor for name, factor in zip(("query", "key", "value"), factors, strict=True))
    k, v = (x.repeat_interleave(2, 2) for x in (k, v))
    s = torch.einsum("bihd,bjhd->bhij", q, k) / numbers["query"].shape[-1] ** 0.5
    if numbers.get("causal"):
        s = s.masked_fill(~torch.ones(s.shape[-2:], dtype=torch.bool, device="cuda").tril(s.shape[-1] - s.shape[-2]), -torch.inf)
    p = torch.exp(s - s.amax(-1, keepdim=True))
    rounded = (p * 256).to(torch.float8_e4m3fn).double() / 256
    out = torch.einsum("bhij,bjhd->bihd", rounded, v) / p.sum(-1).transpose(1, 2)[..., None]
    return relative(out.bfloat16().double().cpu().numpy(), expected)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("options", [{}, {"causal": True, "causal_alignment": "bottom_right"}], ids=["full", "causal"])
@pytest.mark.parametrize(("dims", "scales"), [(64, "none"), (128, "none"), (256, "none"), (128, "numbers"), (64, "arrays"), (128, "arrays")])
@pytest.mark.parametrize("seqlen", [(130, 200), (200, 700)], ids=str)
def test_float8(dims, scales, seqlen, options):
    import torch

    arrays, numbers = float8_problem(dims, *seqlen, **options)
    factors, given = (1.0, 1.0, 1.0), {}
    if scales == "numbers":
        factors = (0.5, 1.5, 3.0)
        given = dict(zip(("q_scale", "k_scale", "v_scale"), factors, strict=True))
    expected = None
    size = factors[0] * factors[1]  # of the scores, and so of their errors: the products of e4m3 are the same whatever the scales
    if scales == "arrays":
        generator = torch.Generator("cuda").manual_seed(6)
        given = {name: torch.rand(2, 2, device="cuda", generator=generator) + 0.5 for name in ("q_scale", "k_scale", "v_scale")}
        spread = {name: x.cpu().numpy()[:, None, :, None] for name, x in given.items()}
        numbers["query"] = numbers["query"] * spread["q_scale"].repeat(2, 2)
        numbers["key"], numbers["value"] = numbers["key"] * spread["k_scale"], numbers["value"] * spread["v_scale"]
        size = (given["q_scale"] * given["k_scale"]).repeat_interleave(2, 1)[..., None].cpu().numpy()
    scaled = numbers | {name: numbers[name] * factor for name, factor in zip(("query", "key", "value"), factors, strict=True)}
    expected, expected_lse = reference.flash_attention(**scaled, return_lse=True)
    out, lse = flash_attention(**arrays, **options, **given, return_lse=True)
    assert out.dtype == torch.bfloat16
    assert relative(out.double().cpu().numpy(), expected) <= 2 * float8_error(expected, numbers, factors)
    assert (np.abs(lse.cpu().numpy() - expected_lse) <= 2e-3 * size).all()


FLOAT8_OPTIONS = ("window_bottom_right", "sinks", "padded_keys", "packed", "packed_window", "packed_own_keys", "group3", "group4_packed", "group4_padded") + (
    "bias",
    "bias_float32",
    "bias_of_keys",
    "mask",
    "segments_causal",
    "softcap",
    "packed_segments",
    "padded_mask",
    "everything",
    "group4_everything",
)
FLOAT8_CASES = [f"hopper{dims}-bfloat16-{feature}" for dims in ("64_64", "128_128") for feature in FLOAT8_OPTIONS] + [
    "hopper256_256-bfloat16-packed",
    "hopper256_256-bfloat16-group4",
]


def run_on_gpu(call):
    """(out, lse) as NumPy arrays, out in float64."""
    import torch

    arrays = {}
    for name, x in call.items():
        narrow = isinstance(x, np.ndarray) and x.dtype.itemsize == 1 and x.dtype.kind == "V"
        arrays[name] = torch.from_numpy(x.view(np.uint8)).cuda().view(torch.float8_e4m3fn) if narrow else gpu.call_on({name: x}, "torch")[name]
    out, lse = flash_attention(**arrays, return_lse=True, cfg=FlashAttentionConfig(kernel="forward_sm90"))
    assert out.dtype == torch.bfloat16
    return out.double().cpu().numpy(), lse.cpu().numpy()


@pytest.mark.parametrize("name", FLOAT8_CASES)
def test_float8_with_options(name):
    check_float8(case_named(name), run_on_gpu)


def check_float8(case, run):
    import ml_dtypes

    call = case.arrays()
    inputs = ("query", "key", "value")
    call |= {name: call[name].astype(ml_dtypes.float8_e4m3fn) for name in inputs}
    heads_k, batch = call["key"].shape[-2], len(case.lens_k or case.lens_q or ()) or case.batch
    scales = dict(zip(("q_scale", "k_scale", "v_scale"), np.random.default_rng(3).random((3, batch, heads_k), np.float32) + 0.5, strict=True))
    out, lse = run(call | scales)

    rows = call["key"].shape[-3]
    eye = np.eye(rows).reshape(rows, 1, rows)
    numbers = scaled_numbers(case, call, scales)
    expected, expected_lse = reference.flash_attention(**numbers, return_lse=True)
    assert expected.any()
    p = reference.flash_attention(**numbers | {"value": np.broadcast_to(eye, (*call["key"].shape[:-1], rows))})
    top = np.maximum(p.max(-1, keepdims=True), np.finfo(float).tiny)
    rounded = (p / top * 256).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * top / 256
    values = np.repeat(np.nan_to_num(numbers["value"]), call["query"].shape[-2] // heads_k, -2)
    plain = np.einsum("...ihj,...jhd->...ihd", rounded, values).astype(ml_dtypes.bfloat16).astype(np.float64)
    assert relative(out, expected) <= 2 * relative(plain, expected)
    assert np.array_equal(np.isinf(lse), np.isinf(expected_lse))
    np.testing.assert_allclose(lse, expected_lse, atol=2e-3)


def scaled_numbers(case, call, scales):
    """The call in float32, each sequence's q, k and v times their scales."""
    numbers = dict(call)
    for name, scale, ends in (("query", "q_scale", "cum_seqlens_q"), ("key", "k_scale", "cum_seqlens_k"), ("value", "v_scale", "cum_seqlens_k")):
        x = call[name].astype(np.float32)
        factors = np.repeat(scales[scale], x.shape[-2] // scales[scale].shape[1], 1)[..., None]
        if case.layout == "packed":
            for b, (begin, end) in enumerate(zip(call[ends][:-1], call[ends][1:], strict=True)):
                x[begin:end] *= factors[b]
        else:
            x *= factors[:, None]
        numbers[name] = x
    return numbers


def test_long_causal_float8_has_its_own_head_dim():
    """The workspace is a transpose of the values, padded to the head dim that a kernel is compiled for."""
    import torch

    q, k, v = (torch.zeros(1, 8192, 2, 128, device="cuda").to(torch.float8_e4m3fn) for _ in range(3))
    assert explain(flash_attention, q, k, v, causal=True)["workspace_bytes"] <= 2 * 8192 * 128 + 1024


# ---- what it says ----


def test_explain_names_it():
    case = case_named("hopper128_128-bfloat16-bias")
    report = explain(flash_attention, **gpu.call_on(case.arrays(), "torch"))
    assert report["kernel"] == "forward_sm90"
    assert report["plan"]["block_q"] == 128
    assert {row["kernel"]: row["reason"] for row in report["refused"]}["forward_generic_sm80"] == "forward_sm90 comes first"


def refusal(kernel="forward_sm90", **changes):
    import torch

    call = {name: torch.zeros(2, n, h, 128, dtype=torch.bfloat16, device="cuda") for name, n, h in (("query", 256, 4), ("key", 512, 2), ("value", 512, 2))}
    call |= changes
    with pytest.raises(NotImplementedError) as error:
        flash_attention(**call, cfg=FlashAttentionConfig(kernel=kernel))
    return own_words(kernel, error.value)


def zeros(*shape, dtype="bfloat16"):
    import torch

    return torch.zeros(shape, dtype=getattr(torch, dtype), device="cuda")


def eights(dims):
    import torch

    return {name: zeros(2, 256, 2, dims).to(torch.float8_e4m3fn) for name in ("query", "key", "value")}


REFUSALS = [
    (lambda: {name: zeros(2, 64, 2, 64, dtype="float32") for name in ("query", "key", "value")}, "takes float16, bfloat16 and float8_e4m3 only: got float32"),
    (lambda: {"value": zeros(2, 512, 2, 264)}, "takes head dims of at most 256: got 128 and 264"),
    (lambda: {"softmax_scale": -1.0}, "takes a positive softmax_scale only"),
    (lambda: {"query": zeros(2 * 256 * 4 * 128 + 1)[1:].view(2, 256, 4, 128)}, "query does not begin on 16 bytes"),
    (lambda: {"key": zeros(2, 512, 2, 132)[..., :128]}, "key's head stride is not a positive multiple of 16 bytes below 2^35: 264"),
    (lambda: {"value": zeros(2, 1, 2, 128).expand(2, 512, 2, 128)}, "value's token stride is not a positive multiple of 16 bytes below 2^35: 0"),
    (lambda: {"key": zeros(2, 0, 2, 128), "value": zeros(2, 0, 2, 128)}, "takes at least one sequence, head, query and key"),
    (lambda: eights(256) | {"logits_soft_cap": 5.0}, "takes bias, mask, segment ids and soft cap with float8_e4m3 for head dims of at most 128: got 256 and 256"),
    (lambda: eights(128) | {"value": eights(120)["value"]}, "takes head_dim_v that are multiples of 16 with float8_e4m3: got 120"),
    (lambda: {"dropout_prob": 0.1, "dropout_seed": 1}, "does not take dropout"),
    (lambda: {"normalize_output": False}, "does not take normalize_output=False"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSALS, ids=[reason for _, reason in REFUSALS])
def test_refusals(changes, reason):
    assert refusal(**changes()) == reason


def test_few_queries_go_to_decode_sm90():
    report = explain(flash_attention, zeros(1, 3, 8, 128), zeros(1, 4096, 8, 128), zeros(1, 4096, 8, 128))
    reasons = {row["kernel"]: row["reason"] for row in report["refused"]}
    assert report["kernel"] == "decode_sm90"
    assert reasons["forward_sm90"] == "fewer than 32 rows (queries x heads of a group) a sequence are not worth its tiles"


@pytest.mark.parametrize(("seqlen_q", "heads_q", "taken"), [(4, 8, "decode_sm90"), (8, 16, "forward_sm90"), (32, 4, "forward_sm90")])
def test_heads_of_a_group_are_rows_of_a_tile(seqlen_q, heads_q, taken):
    report = explain(flash_attention, zeros(64, seqlen_q, heads_q, 128), zeros(64, 600, 4, 128), zeros(64, 600, 4, 128))
    assert report["kernel"] == taken
