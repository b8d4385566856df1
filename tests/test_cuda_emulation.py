"""The generic CUDA kernels without a GPU: src/cuda compiled for the CPU (tests/cuda_emulation), called as ever through attile and judged by
the error model. It runs the kernels' arithmetic, their indexing, their barriers and the host code that launches them."""

import pytest
from emulated_library import build
from other_cuda import NEEDS, copy_package, run
from producers import needs_versions

pytestmark = [needs_versions, *NEEDS]


def slow(*arguments):
    return pytest.param(*arguments, marks=pytest.mark.slow)


def call(package, function, **more):
    return run(package, f"import emulated_calls\nemulated_calls.{function}", timeout=1200, **more)


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """A copy of the installed package with the emulated library in it."""
    folder = tmp_path_factory.mktemp("emulated")
    build(copy_package(folder), folder)
    return folder


@pytest.mark.parametrize(
    "pattern",
    [
        "(?!larger)",  # cases.SMALL and cases.EDGE
        "larger64-bfloat16|larger64-float32-(causal|everything)",
        "biased",
        r"larger(72_72|192_128|320_264|576_512)-bfloat16-packed|larger(96_96|256_256)-float32-bottom_right",
        slow("larger"),
    ],
)
def test_forward(package, pattern):
    call(package, f"forward({pattern!r})")


@pytest.mark.parametrize(
    "pattern",
    [
        "bfloat16|length",
        "hopper64_64-bfloat16-(full|bottom_right|packed|padded|everything|segments_causal|mask|softcap)$",
        "hopper64_64-bfloat16-(group(3|128|5_softcap|4_packed|4_padded|4_everything)|bias_float32)$",
        "hopper(192_128-bfloat16|40_72-float16)-(bottom_right|packed)",
        slow("hopper|edge|memory"),
    ],
)
def test_hopper_forward(package, pattern):
    call(package, f"hopper({pattern!r})")


@pytest.mark.parametrize("pattern", ["hopper64_64-bfloat16-(padded_keys|packed|group3|everything)$", slow("")])
def test_hopper_float8(package, pattern):
    call(package, f"hopper_float8({pattern!r})")


@pytest.mark.parametrize("splits", [2, 7])
def test_splits(package, splits):
    call(package, f"splits({splits})")


@pytest.mark.parametrize("lens", [(1, 130, 64, 0), slow((700,))], ids=str)
def test_caches(package, lens):
    call(package, f"caches({lens})")


@pytest.mark.parametrize("seqlen_q", [1, slow(2), slow(4)])
def test_hopper_decode(package, seqlen_q):
    call(package, f"hopper_decode({seqlen_q})")


@pytest.mark.parametrize("more", ["", "num_splits=2", slow("num_splits=7")])
@pytest.mark.parametrize("pattern", ["(?!long)", slow("long")])
def test_mla_decode(package, pattern, more):
    call(package, f"mla({pattern!r}, {more})")


@pytest.mark.parametrize("pattern", ["hopper", "(bfloat|float)16", "(?!hopper|bfloat|float|long)", slow("long")])
def test_hopper_mla_decode(package, pattern):
    call(package, f"hopper_mla({pattern!r})")


def test_hopper_mla_decode_of_two_parts_in_a_cluster(package):
    call(package, "hopper_mla('.*pairs')", ATTILE_EMULATED_MULTIPROCESSORS="4")  # two for each request, or for each row tile


def test_mla_decode_of_a_float8_cache(package):
    call(package, "mla8()")


def test_hopper_mla_decode_of_a_float8_cache(package):
    call(package, "hopper_mla8()")


def test_mla_plans_and_append(package):
    call(package, "planned()")


def test_infinite_bias(package):
    call(package, "infinite_bias()")


def test_merge_states(package):
    call(package, "merged()")


OF_MLA_ATTENTION = [
    "(bfloat|float)",  # mla_attention_cases.SMALL
    "edge-|padded|packed|memory-(gaps|bytes|reversed)|dims(1_|7_|17_|130_)|heads24_3",
    "larger-bfloat16-(ending|packed)",
    slow("dims|heads|length|memory|larger|deepseek|mha2mla|minilm"),
]


@pytest.mark.parametrize("pattern", OF_MLA_ATTENTION)
def test_mla_attention(package, pattern):
    call(package, f"of_latents({pattern!r})")


@pytest.mark.parametrize(
    "pattern",
    [
        "(bfloat|float)",  # cases.SMALL
        "bias|packed|padded|edge-heads(1|8|9)_|memory-(gaps|bytes|reversed)",
        r"larger64-bfloat16-(causal|gaps|everything|packed)|larger(100_1|192_128)-bfloat16-packed|larger72_72-float32-bottom_right",
        slow("larger"),
        slow("edge-|length|memory"),
    ],
)
def test_backward(package, pattern):
    call(package, f"backward({pattern!r})")


@pytest.mark.parametrize("pattern", ["(bfloat|float)16", "larger64-bfloat16-(causal|everything|packed)", slow("larger(64|128)-bfloat16")])
def test_deterministic_backward(package, pattern):
    """Elements of 16 bits have kernels of their own for it."""
    call(package, f"backward({pattern!r}, deterministic=True)")


@pytest.mark.parametrize("pattern", OF_MLA_ATTENTION)
def test_backward_of_mla_attention(package, pattern):
    call(package, f"backward_of_latents({pattern!r})")


def test_the_device_is_described(package):
    lines = run(package, "import attile\nconfig = attile.show_config()\nprint(config['gpus'][0]['name'], config['cuda'])")
    assert lines == ["emulated True"]


HOPPER = "hopper('hopper64_64-bfloat16-bottom_right')"
PRODUCT = "      ptx::wgmma_wait<1>();\n      ptx::pin(s);\n      --j;\n"
RING = "      v_ring.wait_full();\n      issue_pv();\n      if (!T::kTune.late_turn)"
STORE = "  ptx::named_barrier_sync(barrier, 128);\n  const RowOrigin at"
WAIT = "          ptx::cp_async_wait();\n          __syncthreads();\n"
JOINT = "      __syncthreads();\n      if (head < end)"
VALUES = "        if (i == 0) values.wait_full();\n"
MERGE = "  sync_consumers<T>();\n#pragma unroll 1\n  for (int i = threadIdx.x; i < p.rows * kGroups;"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "function"),
    [
        ("generic/forward_kernel.cuh", WAIT, WAIT.replace("__syncthreads();", ""), "forward('bfloat16|edge-dims')"),
        ("generic/forward_kernel.cuh", WAIT, WAIT.replace("ptx::cp_async_wait();", ""), "forward('bfloat16|edge-dims')"),
        ("tile/product.cuh", "return lane % 16 * stride + lane / 16 * 16;", "return lane % 16 * stride;", "forward('bfloat16')"),
        ("generic/backward_kernel.cuh", "    __syncthreads();  // the tile before is done with\n", "", "backward('larger64-bfloat16', deterministic=True)"),
        ("generic/scores.cuh", "at[m][r] += kN * 2;", "", "forward('biased')"),
        ("generic/backward_joint.cuh", JOINT, JOINT.replace("__syncthreads();", ""), "backward('larger64-bfloat16')"),
        ("forward/sm90/kernel.cuh", PRODUCT, PRODUCT.replace("ptx::wgmma_wait<1>();", ""), HOPPER),
        ("forward/sm90/kernel.cuh", RING, RING.replace("v_ring.wait_full();", ""), HOPPER),
        ("decode/sm90/consumer.cuh", VALUES, "", "hopper_decode(1)"),
        ("decode/sm90/output.cuh", MERGE, MERGE.replace("  sync_consumers<T>();\n", ""), "hopper_decode(1)"),
        ("forward/sm90/epilogue.cuh", STORE, STORE.replace("ptx::named_barrier_sync(barrier, 128);", ""), HOPPER),
    ],
    ids=["barrier", "wait", "fragment", "backward", "bias", "joint", "product", "ring", "store", "decode", "merge"],
)
def test_a_fault_is_noticed(tmp_path, file, old, new, function):
    build(copy_package(tmp_path), tmp_path, {file: (old, new)})
    with pytest.raises(AssertionError, match="calls failed|emulated CUDA: "):
        call(tmp_path, function)
