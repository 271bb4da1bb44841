"""Headers of safetensors files: right ones are read, wrong ones are refused by name and at once."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest

from safelight.errors import CheckpointInvalid
from safelight.safetensors_header import read_header
from safelight.tensor_header import MAX_HEADER_BYTES, MAX_TENSORS
from tests.unit.fake_checkpoint import safetensors_bytes

TENSOR = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def test_names_dtypes_and_bytes_come_from_the_header_alone(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [2], "data_offsets": [16, 20]},
    }
    found = read_header(_write(tmp_path, safetensors_bytes(header, bytes(20))))
    assert found.tensors == {"a": "F32", "b": "BF16"}
    assert found.weight_bytes == 20


def test_a_file_without_tensors_is_empty_and_right(tmp_path: Path) -> None:
    assert read_header(_write(tmp_path, safetensors_bytes({}))).weight_bytes == 0


def test_padding_after_the_header_is_allowed(tmp_path: Path) -> None:
    raw = json.dumps({"a": TENSOR}).encode() + b"     "
    assert read_header(_write(tmp_path, safetensors_bytes(raw, bytes(16)))).weight_bytes == 16


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is truncated: 0 bytes"),
        (b"\x10\x00", "is truncated: 2 bytes"),
        (bytes(8), "its header is not readable"),
        (safetensors_bytes({"a": TENSOR}, bytes(15)), "is truncated"),
        (safetensors_bytes({"a": TENSOR})[:30], "truncated in its header"),
        (safetensors_bytes({"a": TENSOR}, bytes(17)), "is longer than its header says"),
        (struct.pack("<Q", 2**63) + b"{}", "is not a safetensors file"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + bytes(100), "is not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "is not a safetensors file"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is not a safetensors file"),
        (b"PK\x03\x04" + bytes(200), "not a safetensors file"),
        (safetensors_bytes(b"not json"), "its header is not readable"),
        (safetensors_bytes(b"[1, 2]"), "its header is not readable"),
        (safetensors_bytes(b'{"a": "\xff"}'), "its header is not readable"),
        (safetensors_bytes(b"[" * 100_000), "its header is not readable"),
        (safetensors_bytes(b'{"a":' + b"[" * 100_000), "its header is not readable"),
        (safetensors_bytes({"a": {"dtype": "F32", "shape": [4]}}), "its header is not readable"),
        (safetensors_bytes({"a": TENSOR | {"data_offsets": [0, "16"]}}, bytes(16)), "its header is not readable"),
        (safetensors_bytes({"a": TENSOR | {"data_offsets": [0, 2**70]}}), "is truncated"),
        (safetensors_bytes({"a": TENSOR | {"data_offsets": [0, -16]}}), "its tensors overlap or leave gaps"),
        (safetensors_bytes({"a": TENSOR | {"data_offsets": [-16, 0]}}), "its tensors overlap or leave gaps"),
        (safetensors_bytes({"a": TENSOR, "b": TENSOR}, bytes(16)), "its tensors overlap or leave gaps"),
        (safetensors_bytes({"a": TENSOR | {"data_offsets": [4, 20]}}, bytes(20)), "its tensors overlap or leave gaps"),
        (safetensors_bytes({"a": 7}), "its header is not readable"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_wrong_file_is_refused_by_name(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = _write(tmp_path, content)
    with pytest.raises(CheckpointInvalid) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    assert sentence in caught.value.message


def test_a_missing_file_and_a_directory_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointInvalid, match="nowhere cannot be read: No such file"):
        read_header(tmp_path / "nowhere")
    with pytest.raises(CheckpointInvalid, match="cannot be read: Is a directory"):
        read_header(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(1_400_000)) + b"}",
        b"{" + b",".join(b'"%d":0' % i for i in range(MAX_TENSORS + 1)) + b"}",
        (b"{" + b",".join(b'"%x":0' % i for i in range(500_000)))[: MAX_HEADER_BYTES - 8] + b"}",
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[%d]}' % (i, i) for i in range(MAX_TENSORS)) + b"}",
    ],
    ids=["83 MB", "one too many", "4 MB", "as many as may be"],
)
def test_a_header_bomb_is_refused_quickly(header: bytes, tmp_path: Path) -> None:
    path = _write(tmp_path, safetensors_bytes(header))
    start_s = time.process_time()
    with pytest.raises(CheckpointInvalid):
        read_header(path)
    assert time.process_time() - start_s < 0.2


def _write(folder: Path, content: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path
