"""A model against its manifest: what is read, what is remembered, and what is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safelight.errors import CheckpointInvalid
from safelight.hub.manifest import MANIFEST_NAME, FileRecord, Manifest, write_manifest
from safelight.hub.verification import VERDICTS_NAME, verify
from tests.hub_server import folder_content
from tests.unit.fake_checkpoint import TRANSFORMER_FILE, write_checkpoint

VAE = f"vae/{TRANSFORMER_FILE}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "model")
    files = {
        name: FileRecord(len(data), hashlib.sha256(data).hexdigest()) for name, data in folder_content(folder).items()
    }
    manifest = Manifest(repository="acme/tiny", commit="c" * 40, revision="main", endpoint="", pulled_at=0, files=files)
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each file whose bytes are read."""
    found: list[int] = []
    sha256 = hashlib.sha256

    def counted() -> object:
        found.append(1)
        return sha256()

    monkeypatch.setattr(hashlib, "sha256", counted)
    return found


def test_files_that_were_right_are_not_read_again(model: Path, hashed: list[int]) -> None:
    verify(model)
    assert len(hashed) == len(folder_content(model)) - 2, "all but the manifest and the verdicts"
    hashed.clear()
    verify(model)
    assert not hashed


def test_of_several_workers_one_reads(model: Path, hashed: list[int]) -> None:
    with ThreadPoolExecutor(4) as workers:
        list(workers.map(verify, [model] * 4))
    assert len(hashed) == len(folder_content(model)) - 2


def test_a_file_that_was_touched_is_read_again_and_a_new_inode_too(model: Path, hashed: list[int]) -> None:
    verify(model)
    hashed.clear()
    os.utime(model / VAE, (1, 1))
    verify(model)
    assert len(hashed) == 1
    shutil.copy2(model / VAE, model / "copy")
    (model / "copy").replace(model / VAE)
    verify(model)
    assert len(hashed) == 2


def test_of_a_copy_every_file_is_read(model: Path, tmp_path: Path, hashed: list[int]) -> None:
    verify(model)
    count = len(hashed)
    verify(shutil.copytree(model, tmp_path / "copy"))
    assert len(hashed) == 2 * count


def test_damage_is_remembered_by_nobody(model: Path) -> None:
    data = (model / VAE).read_bytes()
    (model / VAE).write_bytes(data[:-1] + b"\1")
    for _ in range(2):
        with pytest.raises(CheckpointInvalid, match="is damaged: its hash is not the manifest's"):
            verify(model)
    (model / VAE).write_bytes(data)
    verify(model)


def test_each_file_is_told_of(model: Path) -> None:
    seen: list[str] = []
    verify(model, seen.append)
    assert sorted(seen) == sorted(set(folder_content(model)) - {MANIFEST_NAME, VERDICTS_NAME})


def test_who_is_told_may_end_it(model: Path) -> None:
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(model, stop)


def test_without_a_manifest_nothing_is_read(checkpoint_dir: Path, hashed: list[int]) -> None:
    verify(checkpoint_dir)
    assert not hashed


def _is_shorter(model: Path) -> str:
    (model / VAE).write_bytes((model / VAE).read_bytes()[:-1])
    return f"{model / VAE} has {(model / VAE).stat().st_size} bytes, not "


def _is_gone(model: Path) -> str:
    (model / VAE).unlink()
    return f"{model / VAE} cannot be read: No such file or directory"


def _has_a_file_more(model: Path) -> str:
    (model / "transformer" / "pipeline.py").write_text("import os")
    return f"{model}/transformer/pipeline.py is not in the model's manifest: remove it"


def _has_a_manifest_of_garbage(model: Path) -> str:
    (model / MANIFEST_NAME).write_bytes(b'{"files": {"\xff": 1}}')
    return f"{model / MANIFEST_NAME} is not what it should be"


def _has_a_manifest_that_leads_out(model: Path) -> str:
    text = (model / MANIFEST_NAME).read_text().replace('"vae/config.json"', '"../config.json"')
    (model / MANIFEST_NAME).write_text(text)
    return f"{model / MANIFEST_NAME} names a file outside its folder: '../config.json'"


WRONG = [_is_shorter, _is_gone, _has_a_file_more, _has_a_manifest_of_garbage, _has_a_manifest_that_leads_out]


@pytest.mark.parametrize("damage", WRONG, ids=lambda damage: damage.__name__.strip("_"))
def test_what_is_wrong_is_named(damage: Callable[[Path], str], model: Path) -> None:
    verify(model)
    sentence = damage(model)
    with pytest.raises(CheckpointInvalid) as caught:
        verify(model)
    assert sentence in caught.value.message


def test_hidden_files_of_a_file_manager_do_not_matter(model: Path) -> None:
    (model / "transformer" / ".DS_Store").write_bytes(b"")
    verify(model)


@pytest.mark.parametrize("content", [b"", b"{", b'{"vae/config.json": [1, 2]}', b"\xff"])
def test_verdicts_that_cannot_be_read_are_none(content: bytes, model: Path, hashed: list[int]) -> None:
    (model / VERDICTS_NAME).write_bytes(content)
    verify(model)
    assert hashed
    hashed.clear()
    verify(model)
    assert not hashed


def test_verdicts_that_cannot_be_written_cost_nothing_but_time(model: Path, hashed: list[int]) -> None:
    (model / VERDICTS_NAME).mkdir()
    for _ in range(2):
        hashed.clear()
        verify(model)
        assert hashed
    assert not list(model.glob(f"{VERDICTS_NAME}.*"))
