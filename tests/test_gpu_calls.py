"""Calls on GPU arrays: each library's current stream, out=, graph capture, merge_states, errors that leave nothing behind."""

import threading

import attile
import cases
import gpu
import numpy as np
import pytest
from attile import flash_attention, merge_states
from calls import cu, good, packed, same
from test_merge import check as check_merged
from test_merge import states

pytestmark = pytest.mark.gpu


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


def on_gpu(library="torch", **call):
    return gpu.call_on(call or good(), library)


def close(got, expected):
    np.testing.assert_allclose(gpu.to_numpy(got), expected, rtol=2e-5, atol=2e-6)


# ---- streams ---------------------------------------------------------------------------------------------------------------


def test_torch_current_stream(torch):
    """Inputs that a side stream is still writing are read after it, and the default stream is not waited for."""
    expected = flash_attention(**good())
    late = on_gpu()
    flash_attention(**late)  # the first call of all loads kernels
    arrays = {name: torch.full_like(x, float("nan")) for name, x in late.items()}
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(gpu.SLOW_CLOCKS)
        for name, x in arrays.items():
            x.copy_(late[name])
        out = flash_attention(**arrays)
        done = side.record_event()
    assert not done.query(), "the call waited for the GPU"
    assert torch.cuda.default_stream().query(), "work went to the default stream"
    side.synchronize()
    close(out, expected)


def test_cupy_current_stream(cupy):
    expected = flash_attention(**good())
    late = on_gpu("cupy")
    flash_attention(**late)
    arrays = {name: cupy.full_like(x, np.nan) for name, x in late.items()}
    wait = cupy.RawKernel("extern \"C\" __global__ void wait_(long long n) { long long t = clock64(); while (clock64() - t < n); }", "wait_")
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as side:
        wait((1,), (1,), (np.int64(gpu.SLOW_CLOCKS),))
        for name, x in arrays.items():
            x[...] = late[name]
        out = flash_attention(**arrays)
        done = side.record()
    assert not done.done, "the call waited for the GPU"
    side.synchronize()
    close(out, expected)


def test_jax_inputs_that_are_still_computed():
    jax = pytest.importorskip("jax")
    expected = flash_attention(**good())
    arrays = on_gpu("jax")
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda i, y: y @ y / 2048, jax.numpy.ones((2048, 2048)))[0, 0] * 0 + x)
    for attempt in range(2):  # the first compiles
        out = flash_attention(**{name: slow(x) for name, x in arrays.items()})
        assert not (attempt and out.is_ready()), "the call waited for the GPU"
        assert next(iter(out.devices())).platform == "gpu"
        close(out, expected)
    close(out + 1, expected + 1)


def test_two_streams_at_once(torch):
    """Two threads, each on a stream of its own: results and scratch do not mix."""
    case = cases.Case(id="streams", batch=1, seqlen_q=3, seqlen_k=3000, heads_q=8, heads_k=8, head_dim=64, head_dim_v=64, dtype="bfloat16")
    calls = [gpu.call_on(case.arrays(seed=seed), "torch") for seed in (0, 1)]
    expected = [flash_attention(**call) for call in calls]
    torch.cuda.synchronize()
    wrong = []

    def work(call, answer):
        with torch.cuda.stream(torch.cuda.Stream()) as _:
            for _ in range(300):
                if not torch.equal(flash_attention(**call), answer):
                    wrong.append(call)
                    return

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_another_device(torch):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    expected = flash_attention(**good())
    arrays = {name: x.to("cuda:1") for name, x in on_gpu().items()}
    assert torch.cuda.current_device() == 0
    out = flash_attention(**arrays)
    assert out.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    close(out, expected)
    with pytest.raises(ValueError, match="key must be on the device of query: expected cuda:1, got cuda:0"):
        flash_attention(**arrays | {"key": arrays["key"].to("cuda:0")})


# ---- out and results -------------------------------------------------------------------------------------------------------


def test_out_in_place(torch):
    arrays = on_gpu()
    expected = flash_attention(**arrays)
    room = torch.full((2, 4, 5, 9), 7.0, device="cuda")
    out = room.transpose(1, 2)[..., 1:]
    version = out._version
    assert flash_attention(**arrays, out=out) is out
    assert out._version > version
    assert torch.equal(out, expected)
    assert (room[..., 0] == 7).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda q: q.cpu(), ValueError, "out must be on the device of the inputs: expected cuda:0, got cpu:0"),
        (lambda q: q.half(), TypeError, "out.dtype is wrong: expected float32, got float16"),
        (lambda q: q[:1], ValueError, "out.shape is wrong"),
    ],
)
def test_out_that_does_not_fit(torch, change, error, text):
    arrays = on_gpu()
    out = flash_attention(**arrays)
    with pytest.raises(error, match=f"^flash_attention: {text}"):
        flash_attention(**arrays, out=change(out))


def test_out_over_an_input(torch):
    x = torch.ones(1, 4, 2, 8, device="cuda")
    with pytest.raises(ValueError, match="out must not overlap an input"):
        flash_attention(x, x.clone(), x.clone(), out=x)


def test_results_are_of_the_library(gpu_library):
    arrays = on_gpu(gpu_library)
    out, lse = flash_attention(**arrays, return_lse=True)
    assert type(out) is type(lse) is type(arrays["query"])
    assert out.dtype == arrays["query"].dtype
    close(out, flash_attention(**good()))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (1, 1, 1, 1), (1, 300, 2, 64), (3, 2, 128, 512), (0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4)])
def test_merge_states(dtype, shape, gpu_library):
    arguments = states(dtype, shape=shape)
    if arguments[1].size:
        arguments[1][..., ::3] = -np.inf
        arguments[3][..., ::2] = np.inf
    out, lse = merge_states(*(gpu.to_gpu(x, gpu_library) for x in arguments))
    check_merged((gpu.to_numpy(out), gpu.to_numpy(lse)), arguments)


# ---- graphs ----------------------------------------------------------------------------------------------------------------


def test_capture_and_replay_with_new_lengths(torch):
    call = packed(out=None)
    arrays = gpu.call_on({name: x for name, x in call.items() if x is not None}, "torch")
    flash_attention(**arrays)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flash_attention(**arrays)
    for lengths_q, lengths_k in (((0, 4, 9), (0, 5, 11)), ((0, 1, 7), (0, 11, 11)), ((0, 0, 0), (0, 2, 3))):
        arrays["cum_seqlens_q"].copy_(torch.tensor(lengths_q))
        arrays["cum_seqlens_k"].copy_(torch.tensor(lengths_k))
        graph.replay()
        torch.cuda.synchronize()
        close(out, flash_attention(**call | {"cum_seqlens_q": cu(*lengths_q), "cum_seqlens_k": cu(*lengths_k)}))


def test_host_indices_are_refused_during_capture(torch):
    arrays = gpu.call_on(packed(out=None), "torch", host=("cum_seqlens_q", "cum_seqlens_k"))
    del arrays["out"]
    flash_attention(**arrays)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        with pytest.raises(ValueError, match="^flash_attention: cum_seqlens_q must be on the device of the data while a graph is captured"):
            flash_attention(**arrays)
        torch.zeros(1, device="cuda")
    flash_attention(**arrays)


# ---- lengths on the GPU ----------------------------------------------------------------------------------------------------


def test_bad_lengths_on_the_host_are_errors(torch):
    arrays = gpu.call_on(packed(out=None), "torch", host=("cum_seqlens_q", "cum_seqlens_k"))
    del arrays["out"]
    with pytest.raises(ValueError, match=r"cum_seqlens_q\[-1\] must be at most"):
        flash_attention(**arrays | {"cum_seqlens_q": cu(0, 4, 99)})


@pytest.mark.parametrize("lengths", [(0, 4, 99), (0, -7, 5), (3, 2, 1), (0, 2**31 - 1, 9)])
def test_bad_lengths_on_the_gpu_read_nothing_out_of_bounds(torch, lengths):
    """Run under memcheck too: what comes out is not defined, but the next call must be right."""
    arrays = gpu.call_on(packed(out=None), "torch")
    del arrays["out"]
    for name in ("cum_seqlens_q", "cum_seqlens_k"):
        flash_attention(**arrays | {name: torch.tensor(lengths, device="cuda", dtype=torch.int32)})
        torch.cuda.synchronize()
    close(flash_attention(**on_gpu()), flash_attention(**good()))


# ---- errors ----------------------------------------------------------------------------------------------------------------


def test_out_of_memory(torch):
    sequence = 65536 * 32 * 512 * 2  # bytes of out
    batch = torch.cuda.get_device_properties(0).total_memory // sequence + 1

    def huge(tokens, dim):
        return torch.randn(1, 1, 1, dim, device="cuda").bfloat16().expand(batch, tokens, 32, dim)

    with pytest.raises(MemoryError, match=rf"^flash_attention: memory on cuda:0 ran out: expected {batch * sequence} bytes"):
        flash_attention(huge(65536, 64), huge(3, 64), huge(3, 512))
    close(flash_attention(**on_gpu()), flash_attention(**good()))


def test_a_launch_that_fails(torch, cupy):
    """While a stream that the legacy default stream waits for is captured, the latter takes no work."""
    arrays, out = on_gpu(), flash_attention(**on_gpu())
    torch.cuda.synchronize()
    captured = cupy.cuda.Stream()
    with captured:
        captured.begin_capture()
    try:
        with pytest.raises(RuntimeError, match=r"^flash_attention: on cuda:0 \(.*\), .*captur"):
            flash_attention(**arrays, out=out)
    finally:
        with captured, pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            captured.end_capture()
    close(flash_attention(**arrays), flash_attention(**good()))


def test_mixed_devices_and_libraries(torch, cupy):
    arrays = on_gpu()
    with pytest.raises(ValueError, match="key must be on the device of query: expected cuda:0, got cpu:0"):
        flash_attention(**arrays | {"key": arrays["key"].cpu()})
    with pytest.raises(ValueError, match="key must be of the library of the first argument: expected torch, got cupy"):
        flash_attention(**arrays | {"key": on_gpu("cupy")["key"]})
    with pytest.raises(ValueError, match="platform must hold the arrays: expected cpu arrays"):
        flash_attention(**arrays, platform="cpu")
    assert same(flash_attention(**arrays, platform="cuda").cpu(), flash_attention(**arrays).cpu())


def test_what_no_kernel_takes(torch):
    arrays = {name: x.double() for name, x in on_gpu().items()}
    with pytest.raises(NotImplementedError) as caught:
        flash_attention(**arrays)
    for kernel in gpu.KERNELS:
        assert f"\n  {kernel}: " in str(caught.value)


def test_explain_and_show_config(torch):
    report = attile.explain(flash_attention, **on_gpu())
    assert report["kernel"] in gpu.KERNELS
    config = attile.show_config()
    assert config["gpus"][0]["name"] == torch.cuda.get_device_name(0)
    assert all(row["available"] for row in config["kernels"] if row["device"] == "cuda")
