"""GGUF headers, whole and damaged: read without their tensors, refused by name, and never worked at for long."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from safelight.errors import CheckpointInvalid
from safelight.gguf_header import read_gguf_header
from safelight.tensor_header import BLOCKS, MAX_HEADER_BYTES

MAX_SECONDS = 0.2
MAX_TENSORS = 5_000


def _write(path: Path, *, names: tuple[str, ...] = ("a.weight", "a.bias")) -> Path:
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_string("general.name", "Kontext ä")
    writer.add_array("general.tags", ["text-to-image", "flux"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_bool("is_true", True)
    writer.add_float64("ratio", 0.5)
    for name in names:
        data = gguf.quants.quantize(np.ones((3, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("norm", np.ones(5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return _write(tmp_path / "model.gguf")


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _gguf(tensors: int, pairs: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def _tensor(
    name: str = "a", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0, dimensions: int | None = None
) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    return _string(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


def test_it_says_what_the_reference_says(path: Path) -> None:
    found, reference = read_gguf_header(path), gguf.GGUFReader(path)
    assert found.metadata == {"general.architecture": "flux", "general.name": "Kontext ä"}
    assert list(found.entries) == [tensor.name for tensor in reference.tensors]
    for tensor in reference.tensors:
        entry = found.entries[tensor.name]
        assert entry.dtype == tensor.tensor_type.name
        assert entry.shape == tuple(tensor.shape.tolist()[::-1])
        assert found.data_start + entry.data_offsets[0] == tensor.data_offset
        assert entry.data_offsets[1] - entry.data_offsets[0] == tensor.n_bytes
    assert found.weight_bytes == sum(tensor.n_bytes for tensor in reference.tensors)


@pytest.mark.parametrize("name", [name for name, block in BLOCKS.items() if block.values > 1])
def test_blocks_are_as_large_as_the_reference_says(name: str) -> None:
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == tuple(BLOCKS[name])


@pytest.mark.parametrize("length", [0, 3, 4, 10, 24, 60, 200])
def test_a_file_that_ends_within_its_header_is_named(length: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointInvalid, match=r"model\.gguf is (truncated|not a GGUF file)"):
        read_gguf_header(path)


def test_a_file_that_ends_within_its_tensors_is_named(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointInvalid, match=r"model\.gguf is truncated: it lacks \d+ bytes of its tensors"):
        read_gguf_header(path)


def test_a_file_with_more_behind_it_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(100))
    with pytest.raises(CheckpointInvalid, match="overlap or leave gaps"):
        read_gguf_header(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", "is not a GGUF file"),
        (_gguf(0, 0, version=1), "version 1"),
        (_gguf(0, 0, version=0x03000000), "version 50331648"),
        (_gguf(1, 0, _tensor(kind=40) + bytes(1000)), "number format 40"),
        (_gguf(1, 0, _tensor(kind=10**9) + bytes(1000)), "number format 1000000000"),
        (_gguf(1, 0, _tensor(shape=(), dimensions=5) + bytes(1000)), "5 dimensions"),
        (_gguf(1, 0, _tensor(shape=(31,), kind=8) + bytes(1000)), "does not fill blocks of Q8_0"),
        (_gguf(1, 0, _tensor(shape=(16, 2), kind=8) + bytes(1000)), "does not fill blocks of Q8_0"),
        (_gguf(1, 0, _tensor(shape=(2**63, 2**63)) + bytes(1000)), "is truncated: it lacks"),
        (_gguf(1, 0, _tensor(offset=2**63) + bytes(1000)), "is truncated: it lacks"),
        (_gguf(2, 0, _tensor("a") + _tensor("b", offset=64) + bytes(250)), "overlap or leave gaps"),
        (_gguf(2, 0, _tensor("a") + _tensor("a", offset=128) + bytes(300)), "names a tensor twice"),
        (_gguf(0, 1, _string("general.alignment") + struct.pack("<II", 4, 0) + bytes(64)), "its alignment is 0"),
        (_gguf(0, 1, _string("general.alignment") + struct.pack("<II", 4, 48) + bytes(64)), "its alignment is 48"),
        (_gguf(0, 1, _string("general.alignment") + struct.pack("<I", 8) + _string("x") + bytes(64)), "alignment is"),
        (_gguf(0, 1, _string("x") + struct.pack("<I", 77) + bytes(64)), "a value of type 77"),
        (_gguf(0, 1, _string("x") + struct.pack("<IIQ", 9, 9, 1) + bytes(64)), "an array of 1"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointInvalid, match=sentence) as caught:
        read_gguf_header(path)
    assert str(path) in caught.value.message


def _many_strings() -> bytes:
    """All that fit into what is read of a header, in arrays of as many as one may have."""
    array = _string("x") + struct.pack("<IIQ", 9, 8, 19_000) + bytes(8 * 19_000)
    return _gguf(0, 100, array * 100)


BOMBS: dict[str, Callable[[], bytes]] = {
    "tensors without end": lambda: _gguf(2**64 - 1, 0, bytes(100)),
    "metadata without end": lambda: _gguf(0, 2**64 - 1, bytes(100)),
    "a name without end": lambda: _gguf(1, 0, struct.pack("<Q", 2**64 - 1)),
    "an array of numbers without end": lambda: _gguf(0, 1, _string("x") + struct.pack("<IIQ", 9, 12, 2**61)),
    "an array of strings without end": lambda: _gguf(0, 1, _string("x") + struct.pack("<IIQ", 9, 8, 2**61)),
    "strings upon strings": _many_strings,
    "a header of many megabytes": lambda: _gguf(10, 1, struct.pack("<Q", 2**25) + bytes(2 * MAX_HEADER_BYTES)),
    "as many tensors as can be, on one place": lambda: _gguf(
        MAX_TENSORS, 0, b"".join(_tensor(str(index)) for index in range(MAX_TENSORS)) + bytes(1000)
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_anybody_waits(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(BOMBS[name]())
    start = time.process_time()
    with pytest.raises(CheckpointInvalid, match=r"model\.gguf"):
        read_gguf_header(path)
    assert time.process_time() - start < MAX_SECONDS
