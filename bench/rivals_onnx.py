"""onnxruntime's attention operators: a model of one node, built with `onnx`.

MultiHeadAttention for equal heads, full, with or without a bias; GroupQueryAttention for causal prefill and for decode, where it also appends
the token to a buffer that past and present share (bound once, as its users do).
"""

import numpy as np
from problems import Contender, Refused
from rivals import library, only

TYPES = {"float32": "FLOAT", "float16": "FLOAT16"}


def onnxruntime(problem, sets):
    runtime, onnx = library("onnxruntime"), library("onnx")
    call = sets[0]
    only(call, "causal", "bias")
    if problem.dtype not in TYPES:
        raise Refused("float32 and float16")
    if call["query"].shape[-1] != call["value"].shape[-1]:
        raise Refused("Dv != D")
    decode = call["query"].shape[1] == 1
    grouped = call.get("causal") or decode
    if grouped and "bias" in call:
        raise Refused("grouped heads with a bias")
    if not grouped and (problem.dtype != "float32" or call["query"].shape[2] != call["key"].shape[2]):
        raise Refused("full attention in float32 only")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = problem.threads, 1
    options.log_severity_level = 3
    model = (group_query if grouped else multi_head)(onnx, problem.dtype, call)
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    bind = bind_decode if decode else bind_prefill
    batch, seqlen, heads, _ = call["query"].shape
    return Contender([bind(runtime, session, call) for call in sets], lambda out: out.numpy().reshape(batch, seqlen, heads, -1))


def model(onnx, node, inputs, outputs):
    helper = onnx.helper
    infos = [[helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in group] for group in (inputs, outputs)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph([node], "attention", *infos), opset_imports=opsets, ir_version=8)


def flat(call, name):
    """[B,T,H*D]"""
    return np.ascontiguousarray(call[name].reshape(*call[name].shape[:2], -1))


def multi_head(onnx, dtype, call):
    kind = onnx.TensorProto.FLOAT
    names = ["query", "key", "value"]
    inputs = [(name, kind, list(flat(call, name).shape)) for name in names]
    places = [*names, "", "", *(["bias"] if "bias" in call else [])]
    if "bias" in call:
        inputs.append(("bias", kind, list(call["bias"].shape)))
    node = onnx.helper.make_node("MultiHeadAttention", places, ["out"], domain="com.microsoft", num_heads=call["query"].shape[2])
    return model(onnx, node, inputs, [("out", kind, None)])


def group_query(onnx, dtype, call):
    kind, index = getattr(onnx.TensorProto, TYPES[dtype]), onnx.TensorProto.INT32
    heads, heads_k = call["query"].shape[2], call["key"].shape[2]
    past = [call["key"].shape[0], heads_k, "past", call["key"].shape[3]]
    inputs = [(name, kind, [past[0], "new", None]) for name in ("query", "key", "value")]
    inputs += [(name, kind, past) for name in ("past_key", "past_value")]
    inputs += [("seqlens_k", index, [past[0]]), ("total", index, [])]
    outputs = [("out", kind, None), ("present_key", kind, None), ("present_value", kind, None)]
    names = ([name for name, _, _ in group] for group in (inputs, outputs))
    node = onnx.helper.make_node("GroupQueryAttention", *names, domain="com.microsoft", num_heads=heads, kv_num_heads=heads_k)
    return model(onnx, node, inputs, outputs)


def value_of(runtime, x):
    return runtime.OrtValue.ortvalue_from_numpy(x)


def bind_prefill(runtime, session, call):
    batch, seqlen = call["query"].shape[:2]
    feeds = {name: flat(call, name) for name in ("query", "key", "value")}
    if "bias" in call:
        feeds["bias"] = call["bias"]
    if call.get("causal"):
        heads_k, head_dim = call["key"].shape[2:]
        nothing = np.zeros((batch, heads_k, 0, head_dim), call["key"].dtype)
        feeds |= {"past_key": nothing, "past_value": nothing}
        feeds |= {"seqlens_k": np.full(batch, seqlen - 1, np.int32), "total": np.array(seqlen, np.int32)}
    values = {name: value_of(runtime, x) for name, x in feeds.items()}
    return lambda: session.run_with_ort_values(["out"], values)[0]


def bind_decode(runtime, session, call):
    """The last key is the token to append: the operator writes it where it is already."""
    batch, seqlen = call["key"].shape[:2]
    new = {name: np.ascontiguousarray(call[name][:, -1:].reshape(batch, 1, -1)) for name in ("key", "value")}
    feeds = {"query": flat(call, "query"), **new}
    feeds |= {"seqlens_k": np.full(batch, seqlen - 1, np.int32), "total": np.array(seqlen, np.int32)}
    binding = session.io_binding()
    for name, x in feeds.items():
        binding.bind_ortvalue_input(name, value_of(runtime, x))
    for name in ("key", "value"):
        cache = value_of(runtime, np.ascontiguousarray(np.moveaxis(call[name], 1, 2)))
        binding.bind_ortvalue_input("past_" + name, cache)
        binding.bind_ortvalue_output("present_" + name, cache)
    out = value_of(runtime, np.zeros_like(feeds["query"]))
    binding.bind_ortvalue_output("out", out)

    def run():
        session.run_with_iobinding(binding)
        return out

    return run
