"""The public surface: names, signatures, what each spelling of an option means, reports, and a config that has effect."""

import dataclasses
import importlib.util
import inspect
import json
import pathlib
import subprocess
import sys
import types

import attile
import cases
import numpy as np
import pytest
from machine import takes
from run_python import run_python

rng = np.random.default_rng(20261121)
Q = rng.standard_normal((2, 9, 4, 16), dtype=np.float32)
K = rng.standard_normal((2, 11, 2, 16), dtype=np.float32)
V = rng.standard_normal((2, 11, 2, 8), dtype=np.float32)

NAMES = {
    "FlashAttentionConfig",
    "FlashMLAConfig",
    "Gradients",
    "MLAGradients",
    "MaskInfo",
    "__version__",
    "explain",
    "flash_attention",
    "flash_attention_backward",
    "flash_attention_with_kvcache",
    "flash_mla",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "merge_states",
    "mla_attention",
    "mla_attention_backward",
    "mla_decode",
    "set_num_threads",
    "show_config",
}


def attention(*args, **kwargs):
    return attile.flash_attention(Q, K, V, *args, **kwargs)


def equal(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ---- names and signatures --------------------------------------------------------------------------------------------------


def test_public_names():
    assert set(attile.__all__) == NAMES
    assert sorted(attile.__all__) == list(attile.__all__)
    assert all(hasattr(attile, name) for name in NAMES)
    submodules = {name for name, value in vars(attile).items() if isinstance(value, types.ModuleType)}
    assert {name for name in vars(attile) if not name.startswith("_")} - submodules == NAMES - {"__version__"}


def test_flash_attention_signature():
    """The contract's, to the letter."""
    text = """
        query, key, value, bias=None, cum_seqlens_q=None, cum_seqlens_k=None, softmax_aux=None, *,
        mask_info=None, attention_mask=None, softmax_scale=None, dropout_prob=0.0, causal=False,
        causal_alignment="top_left", dropout_seed=None, sliding_window=None, logits_soft_cap=None,
        normalize_output=True, precision=None, logits_dtype=None, q_segment_ids=None, kv_segment_ids=None,
        q_scale=None, k_scale=None, v_scale=None, return_lse=False, out=None, platform="auto", cfg=None"""
    scope = {}
    exec(f"def expected({text}): pass", scope)
    assert without_annotations(attile.flash_attention) == inspect.signature(scope["expected"])


def test_flash_attention_backward_signature():
    """The contract's, to the letter."""
    text = """
        dout, query, key, value, out, lse, bias=None, cum_seqlens_q=None, cum_seqlens_k=None, softmax_aux=None, *,
        dlse=None, mask_info=None, attention_mask=None, softmax_scale=None, dropout_prob=0.0, causal=False, causal_alignment="top_left",
        dropout_seed=None, sliding_window=None, logits_soft_cap=None, precision=None, logits_dtype=None, q_segment_ids=None,
        kv_segment_ids=None, deterministic=False, platform="auto", cfg=None"""
    scope = {}
    exec(f"def expected({text}): pass", scope)
    assert without_annotations(attile.flash_attention_backward) == inspect.signature(scope["expected"])


def test_mla_attention_signature():
    """The contract's, to the letter."""
    text = """
        query, key_value, w_kc, w_vc, b_q=None, b_k=None, cu_seqlens=None, *, softmax_scale=None, causal=False,
        causal_alignment="top_left", attention_mask=None, bias=None, softmax_aux=None, logits_soft_cap=None,
        sliding_window=None, dropout_prob=0.0, dropout_seed=None, return_lse=False, out=None, platform="auto", cfg=None"""
    scope = {}
    exec(f"def expected({text}): pass", scope)
    assert without_annotations(attile.mla_attention) == inspect.signature(scope["expected"])
    assert attile.FlashMLAConfig() == attile.FlashMLAConfig(strategy=None, block_q=None, block_k=None, num_splits=0, kernel=None)


def test_mla_attention_backward_signature():
    """The contract's, to the letter."""
    text = """
        dout, query, key_value, w_kc, w_vc, out, lse, b_q=None, b_k=None, cu_seqlens=None, *, dlse=None, softmax_scale=None,
        causal=False, causal_alignment="top_left", attention_mask=None, bias=None, softmax_aux=None, logits_soft_cap=None, sliding_window=None,
        dropout_prob=0.0, dropout_seed=None, deterministic=False, platform="auto", cfg=None"""
    scope = {}
    exec(f"def expected({text}): pass", scope)
    assert without_annotations(attile.mla_attention_backward) == inspect.signature(scope["expected"])


def without_annotations(fn):
    signature = inspect.signature(fn)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=signature.empty)


def test_other_signatures():
    assert str(without_annotations(attile.merge_states)) == "(out_a, lse_a, out_b, lse_b)"
    assert str(without_annotations(attile.MaskInfo)) == "(attention_mask=None, q_segment_ids=None, kv_segment_ids=None)"
    assert str(without_annotations(attile.FlashAttentionConfig)) == "(block_q=None, block_k=None, num_splits=0, kernel=None)"
    assert str(without_annotations(attile.explain)) == "(fn, /, *args, **kwargs)"
    assert str(without_annotations(attile.show_config)) == "()"


def test_arguments_by_position_and_by_name_are_the_same():
    """One value for each parameter, that changes the result or is at home only at its place."""
    values = {
        "bias": rng.standard_normal((9, 11), dtype=np.float32),
        "cum_seqlens_q": np.array([0, 9, 15]),
        "cum_seqlens_k": np.array([0, 8, 19]),
        "softmax_aux": np.array([[0.5]], np.float32),
    }
    by_name = attention(**values)
    assert equal(attention(*values.values()), by_name)
    for left_out in values:
        assert not equal(attention(**{k: v for k, v in values.items() if k != left_out}), by_name)


def test_stub_matches_core():
    import ast

    from attile import _core

    stub = ast.parse((pathlib.Path(attile.__file__).parent / "_core.pyi").read_text())
    declared = {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    declared |= {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
    found = {name for name in vars(_core) if not name.startswith("_")} | {"__version__"}
    assert declared == found


def test_is_typed():
    assert (pathlib.Path(attile.__file__).parent / "py.typed").exists()


def test_version():
    major, minor, patch = map(int, attile.__version__.split("."))
    assert attile.show_config()["version"] == f"{major}.{minor}.{patch}"


# ---- what options mean -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0.25, np.float64(0.25), np.float32(0.25), np.float16(0.25)])
def test_numbers(number):
    assert equal(attention(softmax_scale=number), attention())
    assert equal(attention(logits_soft_cap=number), attention(logits_soft_cap=0.25))
    assert equal(attention(dropout_prob=number, dropout_seed=1), attention(dropout_prob=0.25, dropout_seed=1))


def test_numbers_of_other_types():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert equal(attention(softmax_scale=ml_dtypes.bfloat16(0.25)), attention())
    assert equal(attention(softmax_scale=1), attention(softmax_scale=1.0))
    assert equal(attention(softmax_scale=np.int8(2)), attention(softmax_scale=2.0))
    assert not equal(attention(softmax_scale=2), attention())


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_seeds(seed):
    expected = attention(dropout_prob=0.5, dropout_seed=seed)
    assert equal(attention(dropout_prob=np.float32(0.5), dropout_seed=np.uint64(seed)), expected)
    assert not equal(attention(dropout_prob=0.5, dropout_seed=seed ^ 1), expected)
    assert equal(attention(dropout_prob=0.0, dropout_seed=seed), attention())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (3, (3, 3)),
        ((2, None), [2, -1]),
        ((None, 1), (-1, np.int64(1))),
        (-1, None),
        ((None, None), None),
        (10**30, None),
        ((2**63 - 1, 2), (None, 2)),
        (0, (0, 0)),
        (np.int32(4), 4),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_windows(one, other, causal):
    assert equal(attention(sliding_window=one, causal=causal), attention(sliding_window=other, causal=causal))


def test_windows_differ():
    results = [attention(sliding_window=w).tobytes() for w in (None, 0, 3, (3, 1), (1, 3), (None, 1), (1, None))]
    assert len(set(results)) == len(results)


def test_booleans_and_strings():
    assert equal(attention(causal=np.True_, normalize_output=np.bool_(True)), attention(causal=True))
    assert not equal(attention(causal=True), attention())
    assert not equal(attention(causal=True, causal_alignment="bottom_right"), attention(causal=True))
    assert not equal(attention(normalize_output=False), attention())
    assert equal(attention(platform="cpu"), attention(platform="auto"))
    # a string made at run time is the same as a literal
    assert equal(attention(causal=True, causal_alignment="_".join(["bottom", "right"])), attention(causal=True, causal_alignment="bottom_right"))


def test_mask_info():
    class Anything:
        pass

    mask = rng.random((9, 11)) < 0.7
    q_ids, kv_ids = rng.integers(-1, 2, (2, 9)), rng.integers(-1, 2, (2, 11))
    expected = attention(attention_mask=mask, q_segment_ids=q_ids, kv_segment_ids=kv_ids)
    assert equal(attention(mask_info=attile.MaskInfo(mask, q_ids, kv_ids)), expected)
    assert equal(attention(mask_info=attile.MaskInfo(mask), q_segment_ids=q_ids, kv_segment_ids=kv_ids), expected)
    assert equal(attention(mask_info=attile.MaskInfo(None, q_ids, kv_ids), attention_mask=mask), expected)
    other = Anything()
    other.attention_mask, other.q_segment_ids, other.kv_segment_ids = mask, q_ids, kv_ids
    assert equal(attention(mask_info=other), expected)
    assert equal(attention(mask_info=attile.MaskInfo()), attention())

    class Computed:
        """Nothing but the call holds these arrays."""

        attention_mask = property(lambda self: mask.copy())
        q_segment_ids = property(lambda self: q_ids.copy())
        kv_segment_ids = property(lambda self: kv_ids.copy())

    assert equal(attention(mask_info=Computed()), expected)

    class Fails:
        @property
        def attention_mask(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attention(mask_info=Fails())


def spellings(*names):
    found = [pytest.param(lambda name=name: name, id=f"str {name}") for name in names]
    found += [pytest.param(lambda name=name: np.dtype(name), id=f"dtype {name}") for name in names if name != "bfloat16"]
    found += [pytest.param(lambda name=name: getattr(np, name), id=f"numpy {name}") for name in names if name != "bfloat16"]
    for library in ("torch", "jax.numpy", "ml_dtypes"):
        if importlib.util.find_spec(library.partition(".")[0]):
            found += [
                pytest.param(lambda name=name, library=library: getattr(importlib.import_module(library), name), id=f"{library} {name}")
                for name in names
                if library != "ml_dtypes" or name == "bfloat16"
            ]
    return found


@pytest.mark.parametrize("dtype", spellings("float32", "float16", "bfloat16"))
def test_logits_dtype(dtype):
    name = dtype()
    plain = next(n for n in ("bfloat16", "float16", "float32") if n in str(name))
    got = attention(logits_dtype=name)
    assert equal(got, attention(logits_dtype=plain))
    assert equal(got, attention()) == (plain == "float32")


def test_precision():
    exact = attention()
    assert equal(attention(precision="highest"), exact)
    assert equal(attention(precision=("default", None)), exact)
    assert equal(attention(precision=["default", "highest"]), exact)

    def asked(precision):
        """What the kernel is asked for, seen by a forced kernel that may refuse it."""
        try:
            attention(precision=precision, out=out)
        except NotImplementedError as error:
            return str(error)
        return out.tobytes()

    out = np.empty_like(exact)
    assert asked(("default", "high")) == asked("high")
    assert asked(("default", "default")) == asked("default")


def test_precision_of_jax():
    pytest.importorskip("jax")
    from attile.options import precision_name
    from jax.lax import DotAlgorithm, DotAlgorithmPreset, Precision

    name = lambda value: precision_name("f", value)  # noqa: E731
    assert [name(p) for p in (Precision.HIGHEST, Precision.HIGH, Precision.DEFAULT)] == ["highest", "high", "default"]
    assert name((Precision.DEFAULT, Precision.HIGH)) == "high"
    assert name((Precision.DEFAULT, None)) == "highest"
    assert equal(attention(precision=Precision.HIGHEST), attention())
    for algorithm in (DotAlgorithmPreset.BF16_BF16_F32, DotAlgorithm(np.float16, np.float16, np.float32)):
        with pytest.raises(NotImplementedError, match=r"^flash_attention: precision must not be a DotAlgorithm"):
            attention(precision=algorithm)


# ---- cost ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a busy machine fails it
def test_a_call_costs_microseconds():
    """All of a smallest call, the fastest of many."""
    import timeit

    x = np.ones((1, 1, 1, 64), np.float32)
    seconds = min(timeit.repeat(lambda: attile.flash_attention(x, x, x), number=1000, repeat=200)) / 1000
    assert seconds < 5e-6


# ---- config and explain ----------------------------------------------------------------------------------------------------


def test_config_is_a_value():
    config = attile.FlashAttentionConfig(block_q=16)
    assert config == attile.FlashAttentionConfig(16)
    assert hash(config) == hash(attile.FlashAttentionConfig(16))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.block_q = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        attile.MaskInfo().attention_mask = None


def explain(**kwargs):
    return attile.explain(attile.flash_attention, Q, K, V, **kwargs)


def test_explain_says_everything():
    report = explain(causal=True, return_lse=True)
    kernels = [kernel["name"] for kernel in attile.show_config()["kernels"] if kernel["device"] == "cpu" and kernel["function"] == "flash_attention"]
    assert report["function"] == "flash_attention"
    assert report["kernel"] in kernels
    assert {"block_q", "block_k", "num_splits", "workers"} <= report["plan"].keys()
    assert report["workspace_bytes"] >= 0
    assert {report["kernel"], *(refusal["kernel"] for refusal in report["refused"])} == set(kernels)
    assert all(refusal["reason"] for refusal in report["refused"])


def test_explain_computes_nothing():
    big = np.lib.stride_tricks.as_strided(np.ones(128, np.float32), (1, 2**24, 64, 128), (0, 0, 0, 4))
    out = np.full(Q.shape[:3] + V.shape[3:], 7, np.float32)
    assert attile.explain(attile.flash_attention, big, big, big)["kernel"]
    assert explain(out=out)["kernel"]
    assert (out == 7).all()
    with pytest.raises(ValueError, match=r"out.shape is wrong"):
        explain(out=out[..., :3])
    with pytest.raises(ValueError, match=r"out.shape is wrong"):
        explain(out=out[..., :3], return_lse=True)


def test_explain_merge_states():
    out, lse = attention(return_lse=True)
    assert attile.explain(attile.merge_states, out, lse, out, lse)["function"] == "merge_states"
    with pytest.raises(ValueError, match=r"^merge_states: lse_b.shape\[0\]"):
        attile.explain(attile.merge_states, out, lse, out, lse[:1])


def dtype_of(kernel):
    """A dtype that this kernel takes."""
    for dtype in ("float32", "bfloat16"):
        x = np.ones((1, 4, 1, 8)).astype(cases.numpy_dtype(dtype))
        try:
            attile.explain(attile.flash_attention, x, x, x, cfg=attile.FlashAttentionConfig(kernel=kernel))
        except NotImplementedError:
            continue
        return dtype
    raise AssertionError(f"{kernel} takes nothing")


def test_config_has_effect(runnable_kernel):
    dtype = cases.numpy_dtype(dtype_of(runnable_kernel))
    q, k = (rng.standard_normal((1, 150, 2, 16)).astype(dtype) for _ in range(2))
    if not takes(runnable_kernel, query=q, key=k, value=k):
        pytest.skip(f"{runnable_kernel} is for few query rows")
    config = attile.FlashAttentionConfig(block_q=16, block_k=32, num_splits=2, kernel=runnable_kernel)
    report = attile.explain(attile.flash_attention, q, k, k, cfg=config)
    assert report["kernel"] == runnable_kernel
    assert (report["plan"]["block_q"], report["plan"]["block_k"], report["plan"]["num_splits"]) == (16, 32, 2)
    for field, value in (("block_q", 48), ("block_k", 64), ("num_splits", 3)):
        other = attile.explain(attile.flash_attention, q, k, k, cfg=dataclasses.replace(config, **{field: value}))
        assert other["plan"][field] == value
    # other tiles round otherwise, if not in a bfloat16 out then in lse: the plan is what runs
    one = attile.flash_attention(q, k, k, cfg=config, return_lse=True)
    two = attile.flash_attention(q, k, k, cfg=dataclasses.replace(config, block_k=64, num_splits=1), return_lse=True)
    assert not all(map(equal, one, two))
    tolerance = 1e-5 if dtype == np.float32 else 2e-2
    for x, y in zip(one, two, strict=True):
        np.testing.assert_allclose(x.astype(float), y.astype(float), rtol=tolerance, atol=tolerance)
    assert equal(attention(cfg=attile.FlashAttentionConfig()), attention())
    assert equal(attention(cfg=attile.FlashAttentionConfig(num_splits=0, kernel=None)), attention())


def test_kernel_by_environment(runnable_kernel):
    code = """
    import sys
    sys.path.insert(0, sys.argv[2])
    import attile, cases
    import numpy as np
    x = np.ones((1, 4, 1, 8)).astype(cases.numpy_dtype(sys.argv[1]))
    print(attile.explain(attile.flash_attention, x, x, x)["kernel"])
    """
    folder = pathlib.Path(__file__).parent
    assert run_python(code, dtype_of(runnable_kernel), folder, ATTILE_KERNEL=runnable_kernel).strip() == runnable_kernel


# ---- reports ---------------------------------------------------------------------------------------------------------------


def test_show_config():
    config = attile.show_config()
    keys = "version abi_version compiler cpu_features kernels cuda gpus num_threads python platform numpy frameworks"
    assert set(keys.split()) <= config.keys()
    assert config["num_threads"] == attile.get_num_threads()
    assert config["numpy"] == np.__version__
    assert config["kernels"]
    assert any(kernel["available"] for kernel in config["kernels"])
    for kernel in config["kernels"]:
        assert {"name", "isa", "device", "available"} <= kernel.keys()
    numpy = config["frameworks"][0]
    assert numpy == {"name": "numpy", "version": np.__version__, "route": "NumPy's C struct"}


def test_show_config_sees_what_is_imported():
    pytest.importorskip("torch")
    import torch

    route = "DLPack C exchange API" if hasattr(torch.Tensor, "__dlpack_c_exchange_api__") else "__dlpack__"
    assert {"name": "torch", "version": torch.__version__, "route": route} in attile.show_config()["frameworks"]


def python_m_attile(*arguments):
    return subprocess.run([sys.executable, "-m", "attile", *arguments], capture_output=True, text=True, check=True).stdout


def test_python_m_attile():
    config = attile.show_config()
    text = python_m_attile()
    assert text.startswith(f"attile   {attile.__version__} ")
    for kernel in config["kernels"]:
        assert kernel["name"] in text
    assert "torch" not in text  # it imports no library to look at it


def test_python_m_attile_json():
    report = json.loads(python_m_attile("--json"))
    config = attile.show_config()
    assert {k: v for k, v in report.items() if k not in ("frameworks", "num_threads")} == {
        k: v for k, v in config.items() if k not in ("frameworks", "num_threads")
    }
    assert [framework["name"] for framework in report["frameworks"]] == ["numpy"]


def test_python_m_attile_refuses_unknown_options():
    run = subprocess.run([sys.executable, "-m", "attile", "--yaml"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "unrecognized arguments: --yaml" in run.stderr
