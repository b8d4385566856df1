"""A Cython extension that cimports attile's C interface and is linked against nothing of it."""

import importlib.util
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import attile

CONSUMER = """
# cython: language_level=3
from libc.string cimport memset
from attile.cython_api cimport *


cdef void describe(attile_tensor* t, float[:, :, ::1] x) noexcept:
    memset(t, 0, sizeof(attile_tensor))
    t.data = &x[0, 0, 0]
    t.dtype.code, t.dtype.bits, t.dtype.lanes = 2, 32, 1
    t.device_type, t.rank = 1, 3
    for d in range(3):
        t.shape[d] = x.shape[d]
        t.strides[d] = x.strides[d] // 4


def attention(float[:, :, ::1] q, float[:, :, ::1] k, float[:, :, ::1] v, float[:, :, ::1] out, bint causal):
    cdef attile_flash_attention_params params
    cdef attile_tensor tensors[4]
    cdef const attile_tensor* outputs[1]
    cdef attile_op* op = NULL
    cdef attile_status status
    describe(&tensors[0], q)
    describe(&tensors[1], k)
    describe(&tensors[2], v)
    describe(&tensors[3], out)
    memset(&params, 0, sizeof(params))
    params.struct_size = sizeof(params)
    params.query, params.key, params.value = &tensors[0], &tensors[1], &tensors[2]
    params.causal = causal
    params.normalize_output = 1
    outputs[0] = &tensors[3]
    with nogil:
        status = flash_attention_create(&params, &op)
        if status == ATTILE_OK:
            status = op_bind(op, outputs, 1)
        if status == ATTILE_OK:
            status = op_run(op, NULL, NULL, NULL)
        if op != NULL:
            op_destroy(op)
    if status != ATTILE_OK:
        raise ValueError(last_error().decode())


def abi():
    return abi_version(), ATTILE_ABI_VERSION
"""


@pytest.fixture(scope="module")
def consumer(tmp_path_factory):
    pytest.importorskip("Cython", reason="Cython is not installed")
    folder = tmp_path_factory.mktemp("consumer")
    (folder / "consumer.pyx").write_text(CONSUMER)
    subprocess.run([sys.executable, "-m", "cython", "-3", "-o", "consumer.c", "consumer.pyx"], cwd=folder, check=True)
    library = folder / ("consumer" + sysconfig.get_config_var("EXT_SUFFIX"))
    include = ["-I", attile.get_include(), "-I", sysconfig.get_path("include")]
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", *include, "consumer.c", "-o", str(library)], cwd=folder, check=True)
    spec = importlib.util.spec_from_file_location("consumer", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cython_call_equals_the_python_call(consumer):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((33, h, 16), np.float32) for h in (4, 2, 2))
    out = np.full_like(q, np.nan)
    consumer.attention(q, k, v, out, True)
    np.testing.assert_array_equal(out, attile.flash_attention(q, k, v, causal=True))


def test_cython_call_reports_the_same_error(consumer):
    q, k = np.zeros((2, 3, 8), np.float32), np.zeros((2, 2, 8), np.float32)
    with pytest.raises(ValueError, match=r"flash_attention: query.shape\[1\] must be a multiple of key.shape\[1\]"):
        consumer.attention(q, k, k, np.zeros_like(q), False)


def test_header_and_library_agree_on_the_abi(consumer):
    runtime, header = consumer.abi()
    assert runtime == header


def test_every_function_and_field_of_the_header_is_there():
    header = (Path(attile.get_include()) / "attile" / "attile.h").read_text()
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    declarations = Path(attile.__file__).with_name("cython_api.pxd").read_text()
    functions = re.findall(r"ATTILE_API [^;]*?\battile_(\w+)\(", header)
    assert len(functions) > 10
    assert set(functions) == set(re.findall(r"^cdef [^(]*?(\w+)\(", declarations, flags=re.MULTILINE))
    structs = re.findall(r"typedef struct (\w+_params) \{(.*?)\}", header, flags=re.DOTALL)
    assert len(structs) > 5
    for name, body in structs:
        fields = [" ".join(field.split()) for field in body.split(";") if field.strip()]
        lines = re.search(rf"ctypedef struct {name}:\n((?: {{8}}.*\n)+)", declarations).group(1)
        assert [line.strip() for line in lines.splitlines()] == fields, name
