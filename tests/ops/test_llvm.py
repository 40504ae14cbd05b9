"""LLVM kernels: XLA's interface, how many there are, and what happens where they cannot run."""

import ctypes
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from colorjax.ops import dispatch
from colorjax.ops.cpu import llvm
from colorjax.ops.cpu.emitter import lanes
from colorjax.ops.patch_sum import patch_sum
from colorjax.ops.softmax_attention import dot_product_attention


@pytest.fixture
def unchecked(monkeypatch):
    """As in a process that has not compiled any kernel."""
    monkeypatch.setattr(llvm, "_engines", {})
    dispatch._llvm_works.cache_clear()
    yield
    dispatch._llvm_works.cache_clear()


def _patch_sum(height: int, width: int) -> np.ndarray:
    """A patch sum that takes the kernels where they run: of each pixel itself, once."""
    values = np.random.default_rng(0).normal(size=(1, height, width, 16)).astype(np.float32)
    weights = np.zeros((1, height, width, 9, 16), np.float32)
    weights[:, :, :, 4] = 1
    np.testing.assert_array_equal(patch_sum(jnp.asarray(values), jnp.asarray(weights), kernel_size=3), values)
    return values


def _assert_falls_back(message: str) -> None:
    with pytest.warns(RuntimeWarning, match=message) as caught:
        _patch_sum(5, 6)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _patch_sum(6, 5)
        with pytest.raises(ValueError, match='implementation="llvm" does not take'):
            patch_sum(jnp.zeros((1, 4, 4, 16)), jnp.zeros((1, 4, 4, 9, 16)), kernel_size=3, implementation="llvm")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("version", [(0, 99), (1, 0)])
def test_an_interface_that_xla_refuses_ends_in_xlas_form_with_one_warning(version, monkeypatch):
    monkeypatch.setattr(llvm, "_VERSION", version)
    _assert_falls_back(rf"API version \({version[0]}\.{version[1]}\)")


@pytest.mark.usefixtures("unchecked")
def test_a_processor_that_llvm_does_not_know_ends_in_xlas_form_with_one_warning(monkeypatch):
    def refuse(triple: str) -> None:
        raise RuntimeError(f"No available targets are compatible with triple {triple}")

    monkeypatch.setattr(llvm.llvm.Target, "from_triple", refuse)
    _assert_falls_back("No available targets")


def test_a_processor_without_known_features_has_the_smallest_vectors(monkeypatch):
    def refuse() -> None:
        raise RuntimeError("LLVM can't fetch host CPU features")

    monkeypatch.setattr(llvm.llvm, "get_host_cpu_features", refuse)
    lanes.cache_clear()
    assert lanes() == 4
    monkeypatch.undo()
    lanes.cache_clear()


def test_without_llvmlite_xlas_form_runs_with_one_warning():
    program = textwrap.dedent(
        """
        import sys, warnings
        sys.modules["llvmlite"] = None  # what an import finds if it is not installed
        import jax, jax.numpy as jnp
        from colorjax.ops.patch_sum import patch_sum
        from colorjax.ops.softmax_attention import dot_product_attention
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out = patch_sum(jnp.ones((1, 4, 4, 16)), jnp.ones((1, 4, 4, 9, 2)), kernel_size=3)
            assert (out == 9).all()
            x = jnp.ones((1, 5, 2))
            assert jnp.allclose(dot_product_attention(x, x, x), 1)
        assert len(caught) == 1, caught
        assert "llvmlite" in str(caught[0].message), caught[0].message
        """
    )
    environment = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_images_of_all_sizes_share_a_kernel():
    _patch_sum(4, 7)
    before = dict(llvm._engines)
    for height, width in [(2, 2), (9, 4), (3, 11)]:
        _patch_sum(height, width)
    for length in (3, 40):
        x = jnp.ones((1, length, 3))
        np.testing.assert_allclose(dot_product_attention(x, x, x), 1, rtol=1e-6)
    assert len(llvm._engines) <= len(before) + 1


def test_more_items_than_cores_and_fewer(monkeypatch):
    for cores in (1, 3):
        monkeypatch.setattr(llvm, "usable_cores", lambda cores=cores: cores)
        monkeypatch.setattr(llvm, "_engines", {})

        def add_one(emitter, item, operand, result):
            index = emitter.index((item, lanes()))
            emitter.store(emitter.builder.fadd(emitter.load(operand, index), emitter.constant(1)), result, index)

        for items in (1, 2, 50):
            x = jnp.arange(items * lanes(), dtype=jnp.float32)
            name = f"test_{cores}_cores"
            (out,) = llvm.call(name, add_one, items=items, sizes=[], operands=[x], results=[x.shape])
            np.testing.assert_array_equal(out, x + 1)


# XLA's interface


class _Extension(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p)]


class _Version(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    ]


class _Metadata(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("version", _Version),
        ("traits", ctypes.c_uint32),
        ("state", ctypes.c_int64),
    ]


class _MetadataExtension(ctypes.Structure):
    _fields_ = [("base", _Extension), ("metadata", ctypes.POINTER(_Metadata))]


class _Api(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("version", _Version)]


class _Frame(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("api", ctypes.POINTER(_Api))]


def test_a_kernel_tells_its_own_version_and_not_the_one_that_asks():
    engine = llvm.build(lambda emitter, item, array: None, 0, 1)
    handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(engine.get_function_address("handler"))
    metadata = _Metadata(traits=7, state=7)
    extension = _MetadataExtension(_Extension(type=1), ctypes.pointer(metadata))
    api = _Api(version=_Version(major=7, minor=8))
    frame = _Frame(extension=ctypes.addressof(extension), api=ctypes.pointer(api))
    assert handler(ctypes.addressof(frame)) is None
    assert (metadata.version.major, metadata.version.minor) == (0, 3)
    assert (metadata.traits, metadata.state) == (0, 0)


def test_the_mirrored_structures_are_the_installed_jaxlibs():
    header = (Path(jaxlib.__file__).parent / "include/xla/ffi/api/c_api.h").read_text()
    version = [int(*re.findall(rf"#define XLA_FFI_API_{part} (\d+)", header)) for part in ("MAJOR", "MINOR")]
    assert version[0] == llvm._VERSION[0]
    assert version[1] >= llvm._VERSION[1]
    assert "XLA_FFI_Extension_Metadata = 1," in header
    expected = {
        "Api_Version": ["struct_size", "extension_start", "major_version", "minor_version"],
        "Metadata": ["struct_size", "api_version", "traits", "state_type_id"],
        "Metadata_Extension": ["extension_base", "metadata"],
        "Buffer": ["struct_size", "extension_start", "dtype", "data"],
        "Args": ["struct_size", "extension_start", "size", "types", "args"],
        "Rets": ["struct_size", "extension_start", "size", "types", "rets"],
        "CallFrame": ["struct_size", "extension_start", "api", "ctx", "stage", "args", "rets"],
    }
    for name, fields in expected.items():
        (body,) = re.findall(rf"^struct XLA_FFI_{name} {{\n(.*?)^}};", header, re.MULTILINE | re.DOTALL)
        declared = re.findall(r"(\w+);", re.sub(r"//.*", "", body))
        assert declared[: len(fields)] == fields, name
